"""`toolwise.storage` against an S3 server and a Hub, both over loopback HTTP."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from moto.server import ThreadedMotoServer

from toolwise import retry
from toolwise.errors import BackendError, InputError
from toolwise.storage import INCOMPLETE, local_copy, publish
from toolwise.storage import s3 as s3_storage


class FailingServer(BaseHTTPRequestHandler):
    """Answers every request with 503 and counts them."""

    requests = 0

    def do_GET(self) -> None:
        type(self).requests += 1
        self.send_response(503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_PUT = do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Hub(BaseHTTPRequestHandler):
    """One dataset repository with one file, as the Hub serves it; the first request fails."""

    requests = 0

    def do_HEAD(self) -> None:
        type(self).requests += 1
        body = b"rows"
        if type(self).requests == 1:
            self.send_response(503)
            self.send_header("Content-Length", "0")
        elif self.path == "/datasets/acme/tasks/resolve/main/data/train.jsonl":
            self.send_response(200)
            self.send_header("ETag", '"0123456789abcdef"')
            self.send_header("X-Repo-Commit", "c" * 40)
            self.send_header("Content-Length", str(len(body)))
        else:
            self.send_response(404)
            missing = "RepoNotFound" if "/acme/tasks/" not in self.path else "EntryNotFound"
            self.send_header("X-Error-Code", missing)
            self.send_header("Content-Length", "0")
            body = b""
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_GET = do_HEAD

    def log_message(self, format: str, *args: Any) -> None:
        pass


def serve(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def failing() -> Iterator[str]:
    FailingServer.requests = 0
    yield from serve(FailingServer)


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.requests = 0
    yield from serve(Hub)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A client of an empty bucket named `artifacts`: moto's, or that of `make test-services`."""
    if endpoint := os.environ.get("TOOLWISE_TEST_S3"):
        yield from swift(endpoint, monkeypatch, tmp_path)
        return
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    # moto keeps its buckets from one server of a process to the next.
    httpx.post(f"http://{host}:{port}/moto-api/reset").raise_for_status()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{host}:{port}")
    credentials(monkeypatch, tmp_path)
    client = boto3.client("s3")
    client.create_bucket(Bucket="artifacts")
    yield client
    server.stop()


def swift(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The same on a real server; what is left of the bucket goes."""
    keys = {name: os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    credentials(monkeypatch, tmp_path)
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    bucket = boto3.resource("s3").Bucket("artifacts")
    bucket.create()
    yield boto3.client("s3")
    for item in bucket.objects.all():  # one by one: Swift asks for MD5 where many go at once
        item.delete()
    bucket.delete()


def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tester")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "tester")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("TOOLWISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(retry, "LONGEST_WAIT", 0.02)


def test_a_file_comes_back_as_it_was_and_again_when_it_changed(s3: Any, tmp_path: Path) -> None:
    source = tmp_path / "tasks.parquet"
    source.write_bytes(bytes(range(256)))
    publish(source, "s3://artifacts/run/tasks.parquet")
    copy = local_copy("s3://artifacts/run/tasks.parquet")
    assert copy.name == "tasks.parquet"
    assert copy.read_bytes() == source.read_bytes()

    source.write_bytes(b"newer")
    publish(source, "s3://artifacts/run/tasks.parquet")
    assert local_copy("s3://artifacts/run/tasks.parquet").read_bytes() == b"newer"


def test_a_directory_comes_back_whole_and_can_be_published_again(s3: Any, tmp_path: Path) -> None:
    source = tmp_path / "model"
    (source / "deep").mkdir(parents=True)
    (source / "config.json").write_text("{}")
    (source / "deep" / "weights").write_bytes(b"w" * 100)
    publish(source, "s3://artifacts/run/model")
    publish(source, "s3://artifacts/run/model")
    copy = local_copy("s3://artifacts/run/model")
    assert sorted(p.relative_to(copy).as_posix() for p in copy.rglob("*")) == [
        "config.json",
        "deep",
        "deep/weights",
    ]
    assert (copy / "deep" / "weights").read_bytes() == b"w" * 100


@pytest.mark.parametrize("key", ["model", "model/weights"])
def test_readers_that_come_at_once_share_one_download(
    s3: Any, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    s3.put_object(Bucket="artifacts", Key="model/weights", Body=b"w" * 100)
    fetch, fetched = s3_storage.Bucket.download, []
    both_looked = threading.Barrier(2)
    looked_up = s3_storage.cache_path

    def meet(*identity: str) -> Path:
        both_looked.wait(60)
        return looked_up(*identity)

    def counted(bucket: Any, member: str, path: Path) -> None:
        fetched.append(member)
        fetch(bucket, member, path)

    monkeypatch.setattr(s3_storage, "cache_path", meet)
    monkeypatch.setattr(s3_storage.Bucket, "download", counted)
    with ThreadPoolExecutor(2) as readers:
        copies = {*readers.map(local_copy, [f"s3://artifacts/{key}"] * 2)}
    assert fetched == ["model/weights"]
    [copy] = copies
    assert (copy if copy.is_file() else copy / "weights").read_bytes() == b"w" * 100


def test_an_interrupted_upload_is_not_read(s3: Any) -> None:
    s3.put_object(Bucket="artifacts", Key=f"model/{INCOMPLETE}", Body=b"")
    s3.put_object(Bucket="artifacts", Key="model/config.json", Body=b"{}")
    with pytest.raises(InputError, match="not uploaded to the end"):
        local_copy("s3://artifacts/model")


def test_a_directory_is_never_mixed_with_another(s3: Any, tmp_path: Path) -> None:
    s3.put_object(Bucket="artifacts", Key="model/other.bin", Body=b"x")
    source = tmp_path / "model"
    source.mkdir()
    (source / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"already holds .*other\.bin"):
        publish(source, "s3://artifacts/model")
    assert len(s3.list_objects_v2(Bucket="artifacts")["Contents"]) == 1


def test_a_missing_object_and_a_missing_bucket_are_the_users_fault(s3: Any) -> None:
    with pytest.raises(InputError, match="s3://artifacts/absent does not exist"):
        local_copy("s3://artifacts/absent")
    with pytest.raises(InputError, match="NoSuchBucket"):
        local_copy("s3://nowhere/absent")
    with pytest.raises(InputError, match="s3://bucket/key"):
        local_copy("s3://artifacts")


def test_a_key_that_climbs_out_of_its_directory_is_refused(s3: Any, tmp_path: Path) -> None:
    s3.put_object(Bucket="artifacts", Key="model/../../evil", Body=b"x")
    with pytest.raises(InputError, match="points outside"):
        local_copy("s3://artifacts/model")
    assert not list(tmp_path.rglob("evil"))


def test_a_failing_endpoint_is_retried_then_named(
    failing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", failing)
    credentials(monkeypatch, tmp_path)
    with pytest.raises(BackendError, match=rf"{failing}.*failed {retry.ATTEMPTS} times.*503"):
        local_copy("s3://artifacts/tasks.parquet")
    assert FailingServer.requests == retry.ATTEMPTS

    source = tmp_path / "a"
    source.write_text("x")
    with pytest.raises(BackendError, match=f"failed {retry.ATTEMPTS} times"):
        publish(source, "s3://artifacts/a")


def test_an_endpoint_nobody_listens_on_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    credentials(monkeypatch, tmp_path)
    with pytest.raises(BackendError, match=r"127\.0\.0\.1:9"):
        local_copy("s3://artifacts/tasks.parquet")


def test_a_hub_file_survives_one_fault_and_missing_ones_are_named(
    hub: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    credentials(monkeypatch, tmp_path)
    copy = local_copy("hf://datasets/acme/tasks/data/train.jsonl")
    assert copy.read_bytes() == b"rows"
    with pytest.raises(InputError, match="hf://datasets/acme/absent/x does not exist"):
        local_copy("hf://datasets/acme/absent/x")
    with pytest.raises(InputError, match="a Hub address is"):
        local_copy("hf://acme")
