"""Objects in S3: fetched to a cache, published, and signed for others to read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from toolwise.errors import BackendError, InputError
from toolwise.retry import call_endpoint
from toolwise.storage.atomic import atomic_directory, atomic_file, sole_writer
from toolwise.storage.content import cache_path, files_in

INCOMPLETE = ".toolwise-incomplete"
"""Object that stands under an S3 prefix while a directory is being uploaded to it."""

S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL_S3")
"""Variables that S3's clients read, and keys of the secret that pods have them from."""

S3_REGION = "AWS_DEFAULT_REGION"
"""The like for the region; optional, as most servers but AWS have none."""

T = TypeVar("T")


class Bucket:
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
            if _code(error) in ("404", "NoSuchKey", "NoSuchBucket"):
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
                if _code(error) == "404":
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


def _code(error: Exception) -> str:
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
        return status >= 500 or status == 429 or _code(error) in ("SlowDown", "RequestTimeout")
    return isinstance(error, HTTPClientError | ConnectionError | RetriesExceededError)


def _parts(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    key = key.strip("/")
    if not bucket or not key:
        raise InputError(f"{uri}: an S3 address is s3://bucket/key")
    return bucket, key


def download(uri: str) -> Path:
    """A cached copy of the object, or of all objects under the prefix."""
    name, key = _parts(uri)
    bucket = Bucket(name)
    etag = bucket.etag(key)
    if etag is not None:
        final = cache_path(bucket.endpoint, key, etag) / Path(key).name
        with sole_writer(final):
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
    with sole_writer(final):
        if not final.exists():
            with atomic_directory(final) as room:
                for member in objects:
                    target = (room / member.removeprefix(f"{key}/")).resolve()
                    if not target.is_relative_to(room.resolve()):
                        raise InputError(f"{uri}: the key {member!r} points outside the directory")
                    bucket.download(member, target)
    return final


def upload(path: Path, uri: str) -> None:
    """Put a file at a key, or a directory under a prefix; see `publish`."""
    name, key = _parts(uri)
    bucket = Bucket(name)
    if path.is_file():
        bucket.upload(path, key)
        return
    files = {f"{key}/{p.relative_to(path).as_posix()}": p for p in files_in(path)}
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


def signed_url(uri: str, seconds: int, content_type: str) -> str:
    """An address from which anybody may read the object at `s3://…`, for so many seconds.

    Args:
        uri: the object, `s3://bucket/key`.
        seconds: how long.
        content_type: what the address says the object is.
    """
    name, key = _parts(uri)
    wanted = {"Bucket": name, "Key": key, "ResponseContentType": content_type}
    client = Bucket(name).client
    return client.generate_presigned_url("get_object", Params=wanted, ExpiresIn=seconds)
