"""MLflow at one address, and which of its failures may pass."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import mlflow
import requests
from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, InterfaceError, OperationalError, SQLAlchemyError

from toolwise.errors import BackendError, InputError
from toolwise.retry import call_endpoint
from toolwise.storage import s3_transient

REQUEST_SECONDS = 30
"""How long one request to an MLflow server may take, unless its own variable says otherwise."""

_TRANSIENT = {"TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR", "REQUEST_LIMIT_EXCEEDED"}
_FAILURES = (
    MlflowException,
    SQLAlchemyError,
    requests.RequestException,
    BotoCoreError,
    ClientError,
    Boto3Error,
    OSError,
)

T = TypeVar("T")


class Connection:
    """MLflow at one address; it is reached with the first request.

    Args:
        uri: tracking URI (`sqlite:///…`, `postgresql://…`, `http://…`); by default what
            `MLFLOW_TRACKING_URI` says.
    """

    def __init__(self, uri: str | None = None) -> None:
        # The bound on retries is ours, and MLflow's own would multiply it.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(REQUEST_SECONDS))
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        if uri is not None:
            mlflow.set_tracking_uri(uri)  # traces only know the process-wide address
        self.uri = mlflow.get_tracking_uri()
        self._made: MlflowClient | None = None
        self._making = threading.Lock()
        if self.sqlite_file:
            # One write at a time is all that SQLite takes; more would time out waiting.
            os.environ.setdefault("MLFLOW_ASYNC_TRACE_LOGGING_MAX_WORKERS", "1")

    @property
    def sqlite_file(self) -> Path | None:
        """The database file, where the address is one."""
        return Path(self.uri.removeprefix("sqlite:///")) if self.uri.startswith("sqlite:") else None

    @property
    def is_new(self) -> bool:
        """Whether the address is an SQLite file that is not there yet, so that it holds nothing."""
        return self.sqlite_file is not None and not self.sqlite_file.exists()

    @property
    def name(self) -> str:
        """What errors call it; a password in the address is not shown."""
        try:
            address = make_url(self.uri).render_as_string(hide_password=True)
        except (ArgumentError, ValueError):  # not a database
            address = self.uri
        return f"MLflow at {address}"

    @property
    def client(self) -> MlflowClient:
        """For one attempt at a request; raises what MLflow raises.

        Raises:
            InputError: the folder of an SQLite file cannot be made.
        """
        with self._making:
            if self._made is None:
                self._make_folder()
                self._made = MlflowClient(self.uri)
        return self._made

    def _make_folder(self) -> None:
        if file := self.sqlite_file:
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"{file.parent} cannot be written to: {error.strerror}") from error

    def request(self, call: Callable[[MlflowClient], T]) -> T:
        """`call(client)`, retried while the failure may pass.

        Raises:
            BackendError: it failed for good; names the address and the last error.
        """
        try:
            return call_endpoint(lambda: call(self.client), self.name, may_pass)
        except _FAILURES as error:
            raise BackendError(f"{self.name}: {error}") from error


def may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed later: MLflow, its database or S3 is away."""
    if isinstance(error, MlflowException):
        return error.error_code in _TRANSIENT
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code >= 500 or error.response.status_code == 429
    if isinstance(error, requests.RequestException | OperationalError | InterfaceError):
        return True
    return isinstance(error, Exception) and s3_transient(error)
