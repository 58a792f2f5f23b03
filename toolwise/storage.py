"""Where artifacts live: local paths, `s3://` and `hf://`, and writing that is all or nothing."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

from toolwise.errors import BackendError, InputError
from toolwise.retry import call_endpoint

INCOMPLETE = ".toolwise-incomplete"
"""Object that stands under an S3 prefix while a directory is being uploaded to it."""

T = TypeVar("T")


def local_copy(uri: str | Path) -> Path:
    """A local path with the content of `uri`: a file or a directory, to be read only.

    Args:
        uri: a path, `file://…`, `s3://bucket/key` (an object, or a prefix as a directory;
            endpoint from `AWS_ENDPOINT_URL_S3`), `hf://datasets/owner/name[@revision][/path]` or
            `hf://owner/name[@revision][/path]` (a model). Remote content is kept in
            `TOOLWISE_CACHE` (default `~/.cache/toolwise`) and fetched again when it changes.

    Raises:
        InputError: nothing is there.
        BackendError: the endpoint failed for good.
    """
    match _scheme(uri):
        case "s3":
            return _s3_download(str(uri))
        case "hf":
            return _hf_download(str(uri))
        case _:
            path = _local_path(uri)
            if not path.exists():
                raise InputError(f"{path} does not exist")
            return path


def local_files(uri: str | Path) -> list[Path]:
    """The files `uri` names, sorted: one, a folder's, or those that match its glob (`*`, `**`).

    Raises:
        InputError: nothing is there.
        BackendError: the endpoint failed for good.
    """
    text = str(uri)
    if "*" not in text:
        found = local_copy(uri)
        files = [found] if found.is_file() else _files(found)
    else:
        fixed, slash, begun = text[: text.index("*")].rpartition("/")
        pattern = begun + text[text.index("*") :]
        if _scheme(uri) == "hf":
            folder = _hf_download(fixed, pattern)
        else:
            folder = local_copy(fixed or slash or ".")
        files = sorted(path for path in folder.glob(pattern) if path.is_file())
    if not files:
        raise InputError(f"{uri}: no file is there")
    return files


def publish(path: Path, uri: str | Path) -> None:
    """Put the file or directory `path` at `uri`; readers see all of it or none.

    Raises:
        InputError: `path` is missing, or a remote directory already holds other files.
        BackendError: the endpoint failed for good.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist, so it cannot be published to {uri}")
    match _scheme(uri):
        case "s3":
            _s3_upload(path, str(uri))
        case "hf":
            _hf_upload(path, str(uri))
        case _:
            final = _local_path(uri)
            if final.exists() and final.samefile(path):
                return
            if path.is_dir():
                with atomic_directory(final) as room:
                    shutil.copytree(path, room, dirs_exist_ok=True)
            else:
                with atomic_file(final) as partial:
                    shutil.copyfile(path, partial)


def signed_url(uri: str, seconds: int, content_type: str) -> str:
    """An address from which anybody may read the object at `s3://…`, for so many seconds.

    Args:
        uri: the object, `s3://bucket/key`.
        seconds: how long.
        content_type: what the address says the object is.
    """
    name, key = _s3_parts(uri)
    wanted = {"Bucket": name, "Key": key, "ResponseContentType": content_type}
    client = _Bucket(name).client
    return client.generate_presigned_url("get_object", Params=wanted, ExpiresIn=seconds)


def cache_path(*identity: str) -> Path:
    """Where `TOOLWISE_CACHE` (default `~/.cache/toolwise`) keeps what `identity` determines."""
    root = Path(os.environ.get("TOOLWISE_CACHE") or "~/.cache/toolwise").expanduser()
    return root / hashlib.sha256("\n".join(identity).encode()).hexdigest()[:32]


def content_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes, or of the names and bytes of a directory's files."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    parts = [f"{p.relative_to(path).as_posix()} {content_digest(p)}" for p in _files(path)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """A path to write to; it becomes `path` when the block ends well, and vanishes otherwise."""
    final = Path(path).absolute()
    with _room(final) as room:
        partial = room / final.name
        yield partial
        _fsync(partial)
        partial.replace(final)
        _fsync(final.parent)


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """An empty directory to fill; it replaces `path` when the block ends well, else vanishes."""
    final = Path(path).absolute()
    with _room(final) as room:
        partial = room / final.name
        partial.mkdir()
        yield partial
        for folder, _, names in os.walk(partial):
            for name in names:
                _fsync(Path(folder, name))
            _fsync(Path(folder))
        if final.exists():
            final.rename(room / "replaced")
        partial.rename(final)
        _fsync(final.parent)


@contextmanager
def _room(final: Path) -> Iterator[Path]:
    """A temporary directory beside `final`, locked so that only a dead writer's is cleaned away."""
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _clean_stale_rooms(final)
        room, lock = _locked_room(final)
    except OSError as error:
        raise InputError(f"{final.parent} cannot be written to: {error.strerror}") from error
    try:
        yield room
    finally:
        shutil.rmtree(room, ignore_errors=True)
        os.close(lock)


@contextmanager
def _sole_writer(final: Path) -> Iterator[None]:
    """Have one process at a time fetch what stands at `final`; the others wait for its copy.

    A second copy would replace the first one under those that read it.
    """
    if final.exists():
        yield
        return
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        lock = final.with_name(f".{final.name}.lock").open("w")
    except OSError as error:
        raise InputError(f"{final.parent} cannot be written to: {error.strerror}") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _locked_room(final: Path) -> tuple[Path, int]:
    while True:
        room = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".partial", dir=final.parent))
        # Between mkdtemp and flock another writer may take the room for a stale one.
        with suppress(FileNotFoundError):
            lock = os.open(room, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if room.exists():
                return room, lock
            os.close(lock)


def _clean_stale_rooms(final: Path) -> None:
    for room in final.parent.glob(f".{final.name}.*.partial"):
        with suppress(FileNotFoundError):
            lock = os.open(room, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(room, ignore_errors=True)
            except BlockingIOError:
                continue
            finally:
                os.close(lock)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _scheme(uri: str | Path) -> str:
    scheme = "" if isinstance(uri, Path) else uri.partition("://")[0] if "://" in uri else ""
    if scheme not in ("", "file", "s3", "hf"):
        raise InputError(
            f"{uri}: {scheme}:// is not supported; use a path, file://, s3:// or hf://"
        )
    return scheme


def _local_path(uri: str | Path) -> Path:
    if isinstance(uri, str) and uri.startswith("file://"):
        return Path(unquote(urlsplit(uri).path))
    return Path(uri)


# --- S3 -------------------------------------------------------------------------------------


class _Bucket:
    """One bucket; every request is retried, and fails with the endpoint's name."""

    def __init__(self, name: str) -> None:
        import boto3  # slow to import; local runs never need it
        from botocore.config import Config

        # Retries are ours (`call_endpoint`), so that the bound is the same for every endpoint.
        once = Config(
            retries={"total_max_attempts": 1, "mode": "standard"},
            connect_timeout=10,
            read_timeout=60,
            # What boto3 signs an address with otherwise, new buckets do not take.
            signature_version="s3v4",
        )
        self.name = name
        self.client: Any = boto3.client("s3", config=once)
        self.endpoint = f"S3 at {self.client.meta.endpoint_url} (bucket {name})"

    def request(self, call: Callable[[], T]) -> T:
        """`call()` with retries; `BackendError` for every fault but a missing object or bucket."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return call_endpoint(call, self.endpoint, s3_transient)
        except ClientError as error:
            if _s3_code(error) in ("404", "NoSuchKey", "NoSuchBucket"):
                raise InputError(f"{self.endpoint}: not found ({error})") from error
            raise BackendError(f"{self.endpoint}: {error}") from error
        except (BotoCoreError, Boto3Error) as error:
            raise BackendError(f"{self.endpoint}: {error}") from error

    def etag(self, key: str) -> str | None:
        """The object's ETag, or None where there is no such object."""
        from botocore.exceptions import ClientError

        def head() -> str | None:
            try:
                return self.client.head_object(Bucket=self.name, Key=key)["ETag"]
            except ClientError as error:
                if _s3_code(error) == "404":
                    return None
                raise

        return self.request(head)

    def list(self, prefix: str) -> dict[str, str]:
        """Key → ETag of everything under `prefix`."""

        def pages() -> dict[str, str]:
            paginator = self.client.get_paginator("list_objects_v2")
            return {
                entry["Key"]: entry["ETag"]
                for page in paginator.paginate(Bucket=self.name, Prefix=prefix)
                for entry in page.get("Contents", [])
                if not entry["Key"].endswith("/")
            }

        return self.request(pages)

    def download(self, key: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.request(lambda: self.client.download_file(self.name, key, str(path)))

    def upload(self, path: Path, key: str) -> None:
        self.request(lambda: self.client.upload_file(str(path), self.name, key))


def _s3_code(error: Exception) -> str:
    response = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def s3_transient(error: Exception) -> bool:
    """Whether the same request to S3 may succeed later."""
    from boto3.exceptions import RetriesExceededError, S3UploadFailedError
    from botocore.exceptions import ClientError, ConnectionError, HTTPClientError

    if isinstance(error, S3UploadFailedError) and isinstance(error.__context__, Exception):
        return s3_transient(error.__context__)
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= 500 or status == 429 or _s3_code(error) in ("SlowDown", "RequestTimeout")
    return isinstance(error, HTTPClientError | ConnectionError | RetriesExceededError)


def _s3_parts(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    key = key.strip("/")
    if not bucket or not key:
        raise InputError(f"{uri}: an S3 address is s3://bucket/key")
    return bucket, key


def _s3_download(uri: str) -> Path:
    name, key = _s3_parts(uri)
    bucket = _Bucket(name)
    etag = bucket.etag(key)
    if etag is not None:
        final = cache_path(bucket.endpoint, key, etag) / Path(key).name
        with _sole_writer(final):
            if not final.exists():
                with atomic_file(final) as partial:
                    bucket.download(key, partial)
        return final
    objects = bucket.list(f"{key}/")
    if not objects:
        raise InputError(f"{uri} does not exist at {bucket.endpoint}")
    if f"{key}/{INCOMPLETE}" in objects:
        raise InputError(f"{uri} was not uploaded to the end; run the step that writes it again")
    contents = [f"{member} {etag}" for member, etag in objects.items()]
    final = cache_path(bucket.endpoint, key, *contents) / key.split("/")[-1]
    with _sole_writer(final):
        if not final.exists():
            with atomic_directory(final) as room:
                for member in objects:
                    target = (room / member.removeprefix(f"{key}/")).resolve()
                    if not target.is_relative_to(room.resolve()):
                        raise InputError(f"{uri}: the key {member!r} points outside the directory")
                    bucket.download(member, target)
    return final


def _s3_upload(path: Path, uri: str) -> None:
    name, key = _s3_parts(uri)
    bucket = _Bucket(name)
    if path.is_file():
        bucket.upload(path, key)
        return
    files = {f"{key}/{p.relative_to(path).as_posix()}": p for p in _files(path)}
    marker = f"{key}/{INCOMPLETE}"
    foreign = sorted(bucket.list(f"{key}/").keys() - files.keys() - {marker})
    if foreign:
        raise InputError(
            f"{uri} already holds files that are not part of {path} (first: {foreign[0]}); "
            "publish under a new name"
        )
    bucket.request(lambda: bucket.client.put_object(Bucket=name, Key=marker, Body=b""))
    for member, file in files.items():
        bucket.upload(file, member)
    bucket.request(lambda: bucket.client.delete_object(Bucket=name, Key=marker))


def _files(directory: Path) -> list[Path]:
    return sorted(p for p in directory.rglob("*") if p.is_file())


# --- Hugging Face Hub -----------------------------------------------------------------------


class _HubAddress(NamedTuple):
    kind: str
    repo: str
    revision: str | None
    path: str


def _hub_address(uri: str) -> _HubAddress:
    parts = [part for part in uri.removeprefix("hf://").split("/") if part]
    kind = parts.pop(0)[:-1] if parts and parts[0] in ("datasets", "models", "spaces") else "model"
    if len(parts) < 2:
        raise InputError(
            f"{uri}: a Hub address is hf://datasets/owner/name/path or hf://owner/name/path"
        )
    name, _, revision = parts[1].partition("@")
    return _HubAddress(kind, f"{parts[0]}/{name}", revision or None, "/".join(parts[2:]))


def _hub_request(call: Callable[[], T], uri: str) -> T:
    import httpx
    from huggingface_hub import errors

    endpoint = f"Hugging Face Hub at {_hub_endpoint() or 'https://huggingface.co'}"
    missing = (
        errors.RepositoryNotFoundError,
        errors.RevisionNotFoundError,
        errors.RemoteEntryNotFoundError,
        errors.HFValidationError,
    )

    def transient(error: Exception) -> bool:
        if isinstance(error, errors.HfHubHTTPError):
            return error.response.status_code >= 500 or error.response.status_code == 429
        return isinstance(error, errors.LocalEntryNotFoundError | OSError | httpx.HTTPError)

    try:
        return call_endpoint(call, endpoint, transient)
    except missing as error:
        raise InputError(f"{uri} does not exist at {endpoint}: {error}") from error
    except errors.HfHubHTTPError as error:
        raise BackendError(f"{endpoint}: {error}") from error


def _hub_endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT")


def _hf_download(uri: str, pattern: str | None = None) -> Path:
    import huggingface_hub as hub
    from huggingface_hub.errors import RemoteEntryNotFoundError

    kind, repo, revision, path = _hub_address(uri)

    def fetch() -> str:
        patterns = None
        if pattern:
            # The Hub's `**/` wants a folder, ours also means none.
            within = f"{path}/" if path else ""
            patterns = [within + pattern, within + pattern.replace("**/", "")]
        elif path:
            try:
                return hub.hf_hub_download(
                    repo, path, repo_type=kind, revision=revision, endpoint=_hub_endpoint()
                )
            except RemoteEntryNotFoundError:
                patterns = [f"{path}/*"]
        return hub.snapshot_download(
            repo,
            repo_type=kind,
            revision=revision,
            allow_patterns=patterns,
            endpoint=_hub_endpoint(),
        )

    found = Path(_hub_request(fetch, uri))
    if path and found.is_dir():
        found = found / path
    if not found.exists():
        raise InputError(f"{uri} does not exist")
    return found


def _hf_upload(path: Path, uri: str) -> None:
    import huggingface_hub as hub

    kind, repo, revision, inside = _hub_address(uri)
    api = hub.HfApi(endpoint=_hub_endpoint())

    def send() -> None:
        api.create_repo(repo, repo_type=kind, exist_ok=True, private=True)
        if path.is_dir():
            api.upload_folder(
                folder_path=path,
                repo_id=repo,
                repo_type=kind,
                revision=revision,
                path_in_repo=inside or None,
            )
        else:
            api.upload_file(
                path_or_fileobj=path,
                path_in_repo=inside or path.name,
                repo_id=repo,
                repo_type=kind,
                revision=revision,
            )

    _hub_request(send, uri)
