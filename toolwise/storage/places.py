"""Reading from and publishing to a place, wherever it is: a path, `s3://…` or `hf://…`."""

from __future__ import annotations

import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

from toolwise.errors import InputError
from toolwise.storage import hub, s3
from toolwise.storage.atomic import atomic_directory, atomic_file
from toolwise.storage.content import files_in


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
            return s3.download(str(uri))
        case "hf":
            return hub.download(str(uri))
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
        files = [found] if found.is_file() else files_in(found)
    else:
        fixed, slash, begun = text[: text.index("*")].rpartition("/")
        pattern = begun + text[text.index("*") :]
        if _scheme(uri) == "hf":
            folder = hub.download(fixed, pattern)
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
            s3.upload(path, str(uri))
        case "hf":
            hub.upload(path, str(uri))
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
