"""Repositories of the Hugging Face Hub: fetched and uploaded to."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from toolwise.errors import BackendError, InputError
from toolwise.retry import call_endpoint

T = TypeVar("T")


class _Address(NamedTuple):
    kind: str
    repo: str
    revision: str | None
    path: str


def _address(uri: str) -> _Address:
    parts = [part for part in uri.removeprefix("hf://").split("/") if part]
    kind = parts.pop(0)[:-1] if parts and parts[0] in ("datasets", "models", "spaces") else "model"
    if len(parts) < 2:
        raise InputError(
            f"{uri}: a Hub address is hf://datasets/owner/name/path or hf://owner/name/path"
        )
    name, _, revision = parts[1].partition("@")
    return _Address(kind, f"{parts[0]}/{name}", revision or None, "/".join(parts[2:]))


def _request(call: Callable[[], T], uri: str) -> T:
    import httpx
    from huggingface_hub import errors

    endpoint = f"Hugging Face Hub at {_endpoint() or 'https://huggingface.co'}"
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


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT")


def download(uri: str, pattern: str | None = None) -> Path:
    """The Hub's cached copy of a file or a directory; with `pattern`, of the files that match."""
    import huggingface_hub as hub
    from huggingface_hub.errors import RemoteEntryNotFoundError

    kind, repo, revision, path = _address(uri)

    def fetch() -> str:
        patterns = None
        if pattern:
            # The Hub's `**/` wants a folder, ours also means none.
            within = f"{path}/" if path else ""
            patterns = [within + pattern, within + pattern.replace("**/", "")]
        elif path:
            try:
                return hub.hf_hub_download(
                    repo, path, repo_type=kind, revision=revision, endpoint=_endpoint()
                )
            except RemoteEntryNotFoundError:
                patterns = [f"{path}/*"]
        return hub.snapshot_download(
            repo,
            repo_type=kind,
            revision=revision,
            allow_patterns=patterns,
            endpoint=_endpoint(),
        )

    found = Path(_request(fetch, uri))
    if path and found.is_dir():
        found = found / path
    if not found.exists():
        raise InputError(f"{uri} does not exist")
    return found


def upload(path: Path, uri: str) -> None:
    """Put a file or directory into a repository, which is made where it is absent."""
    import huggingface_hub as hub

    kind, repo, revision, inside = _address(uri)
    api = hub.HfApi(endpoint=_endpoint())

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

    _request(send, uri)
