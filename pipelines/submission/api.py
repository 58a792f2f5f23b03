"""The Kubeflow Pipelines API, v2beta1, as far as a submission needs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, Field, ValidationError

from pipelines.submission.authentication import ADVICE, Credentials
from pipelines.submission.server import Server, is_loopback
from toolwise.errors import BackendError, InputError

SECONDS = 30.0
"""How long one request may take."""

ENDED = frozenset({"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"})
"""States a run stays in."""

M = TypeVar("M", bound=BaseModel)


class ServerAway(BackendError):
    """The server did not answer, or not as one; another try may do."""


class NotSignedIn(BackendError):
    """The server wants credentials, or others."""


class NotThere(BackendError):
    """The server has nothing of that name."""


class RunError(BaseModel):
    """Why a run or a task ended."""

    message: str = ""


class TaskDetail(BaseModel):
    """A node of a run: a step, or one of the server's own around it."""

    display_name: str = ""
    state: str | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    error: RunError | None = None


class RunDetails(BaseModel):
    """The nodes of a run."""

    task_details: list[TaskDetail] | None = None


class Run(BaseModel):
    """A run as the server has it."""

    run_id: str
    display_name: str = ""
    state: str | None = None
    error: RunError | None = None
    run_details: RunDetails | None = None

    @property
    def ended(self) -> bool:
        """Whether it stays as it is."""
        return self.state in ENDED

    @property
    def tasks(self) -> list[TaskDetail]:
        """Its nodes."""
        return (self.run_details and self.run_details.task_details) or []


class _Pipeline(BaseModel):
    pipeline_id: str
    display_name: str = ""


class _Version(BaseModel):
    pipeline_version_id: str
    display_name: str = ""


class _Experiment(BaseModel):
    experiment_id: str
    display_name: str = ""


class _Health(BaseModel):
    """What the API server says, or the UI before it: that one goes on saying what it last heard.

    Args:
        multi_user: whether there are several users; left out where the UI has heard nothing yet,
            and by some API servers where there are not.
        reached: whether the UI has just reached the API server, which it gives one second.
    """

    multi_user: bool | None = None
    reached: bool = Field(default=True, alias="apiServerReady")


class PipelinesApi:
    """The API of one server, for one user.

    Every method raises `ServerAway` where the server does not answer as one, `NotSignedIn` where it
    wants (other) credentials, and `BackendError` where it refuses.

    Args:
        server: where.
        credentials: as whom.
    """

    def __init__(self, server: Server, credentials: Credentials) -> None:
        self.server = server
        self._credentials = credentials
        self._http = httpx.Client(timeout=SECONDS, trust_env=not is_loopback(server.url))

    def multi_user(self) -> bool:
        """Whether the server keeps its users' runs in namespaces of theirs."""
        health = self._model(_Health, self._ask("GET", "healthz"))
        if health.multi_user is None and not health.reached:
            raise ServerAway(
                f"the Kubeflow Pipelines UI at {self.server.url} has not reached its API server yet"
            )
        return bool(health.multi_user)

    def pipeline(self, name: str, namespace: str | None) -> str | None:
        """Id of the pipeline called `name`; None where there is none."""
        found = self._all("pipelines", "pipelines", _Pipeline, {"namespace": namespace})
        return next((one.pipeline_id for one in found if one.display_name == name), None)

    def upload(self, package: Path, name: str, namespace: str | None) -> str:
        """Make a pipeline; returns its id."""
        answer = self._upload("pipelines/upload", package, {"name": name, "namespace": namespace})
        return self._model(_Pipeline, answer).pipeline_id

    def version(self, pipeline: str, name: str) -> str | None:
        """Id of the version called `name`; None where there is none."""
        found = self._all(f"pipelines/{pipeline}/versions", "pipeline_versions", _Version, {})
        return next((one.pipeline_version_id for one in found if one.display_name == name), None)

    def upload_version(self, package: Path, name: str, pipeline: str) -> str:
        """Add a version to a pipeline; returns its id."""
        query = {"name": name, "pipelineid": pipeline}
        answer = self._upload("pipelines/upload_version", package, query)
        return self._model(_Version, answer).pipeline_version_id

    def experiment(self, name: str, namespace: str | None) -> str:
        """Id of the experiment called `name`, made if it is new."""
        found = self._all("experiments", "experiments", _Experiment, {"namespace": namespace})
        for one in found:
            if one.display_name == name:
                return one.experiment_id
        body = {"display_name": name} | ({"namespace": namespace} if namespace else {})
        made = self._ask("POST", "experiments", json=body)
        return self._model(_Experiment, made).experiment_id

    def start(self, run: dict[str, Any]) -> str:
        """Start a run; returns its id."""
        return self._model(Run, self._ask("POST", "runs", json=run)).run_id

    def run(self, run_id: str) -> Run:
        """The run as it is; raises `InputError` where there is none."""
        try:
            answer = self._ask("GET", f"runs/{run_id}")
        except NotThere as why:
            raise InputError(str(why)) from None
        return self._model(Run, answer)

    def _all(
        self, path: str, key: str, kind: type[M], query: Mapping[str, str | None]
    ) -> Iterator[M]:
        token = ""
        while True:
            asked = {**query, "page_token": token, "page_size": "100"}
            answer = self._ask("GET", path, params={k: v for k, v in asked.items() if v})
            for one in answer.get(key) or []:
                yield self._model(kind, one)
            token = answer.get("next_page_token")
            if not token:
                return

    def _upload(self, path: str, package: Path, query: Mapping[str, str | None]) -> dict[str, Any]:
        files = {"uploadfile": (package.name, package.read_bytes())}
        params = {key: value for key, value in query.items() if value}
        return self._ask("POST", path, params=params, files=files)

    def _model(self, kind: type[M], answer: Any) -> M:
        try:
            return kind.model_validate(answer)
        except ValidationError as error:
            raise ServerAway(
                f"{self.server.url} does not answer as Kubeflow Pipelines does: {error}"
            ) from None

    def _ask(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        reply = self._send(method, path, request)
        if _turned_away(reply) and self._credentials.renew():
            reply = self._send(method, path, request)
        if _turned_away(reply):
            raise NotSignedIn(
                f"the Kubeflow Pipelines server at {self.server.url} does not take "
                f"{self._credentials.name} ({_told(reply)}).\n{ADVICE}"
            )
        if reply.is_redirect:
            raise BackendError(
                f"{self.server.url} has moved ({_told(reply)}): give the new address in KFP_HOST"
            )
        if reply.status_code == 429 or reply.status_code >= 500:
            raise ServerAway(f"{self.server.url} answers {reply.status_code} {_said(reply)}")
        if reply.status_code == 404 and path == "healthz":
            raise BackendError(
                f"{reply.url} answers 404, so {self.server.url} is no Kubeflow Pipelines server"
            )
        if not reply.is_success:
            raise (NotThere if reply.status_code == 404 else BackendError)(
                f"the Kubeflow Pipelines server at {self.server.url} refused: {reply.status_code} "
                f"{reply.reason_phrase}: {_said(reply)}"
            )
        try:
            answer = reply.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ServerAway(f"{reply.url} answers something that is no JSON object")
        return answer

    def _send(self, method: str, path: str, request: dict[str, Any]) -> httpx.Response:
        url = f"{self.server.url}/apis/v2beta1/{path}"
        try:
            return self._http.request(method, url, headers=self._credentials.headers(), **request)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ServerAway(
                f"no Kubeflow Pipelines server answers at {self.server.url} ({error})"
            ) from None


def _turned_away(reply: httpx.Response) -> bool:
    """Whether the server does not know who asks: proxies lead to a page to sign in at."""
    page = "text/html" in reply.headers.get("Content-Type", "")
    led = reply.is_redirect and not _moved(reply)
    return reply.status_code == 401 or led or (reply.status_code == 403 and page)


def _moved(reply: httpx.Response) -> bool:
    """Whether a redirect is to the same thing elsewhere (https, another host), or is for good."""
    target = reply.url.join(reply.headers["Location"])
    return reply.status_code in (301, 308) or target.path == reply.url.path


def _told(reply: httpx.Response) -> str:
    """Status, and where a redirect leads."""
    if not reply.is_redirect:
        return str(reply.status_code)
    target = reply.url.join(reply.headers["Location"]).copy_with(query=None)
    return f"{reply.status_code} to {target}"


def _said(reply: httpx.Response) -> str:
    return reply.text.strip()[:500] or "nothing more"
