"""What a step tells MLflow, as lines of a spool.

An entry says all that is needed to deliver it from another process, and to tell that it has been
delivered before.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

State = Literal["FINISHED", "FAILED", "KILLED"]
Role = Literal["input", "output"]


class PipelineRun(NamedTuple):
    """A pipeline run, by the names its steps know it by.

    Args:
        experiment: the profile's name.
        name: the run's own.
    """

    experiment: str
    name: str


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


class OpenRun(_Entry):
    """A step begins: the first entry of its spool.

    Attributes:
        parent: the pipeline run.
        name: the step's.
        tags: of the run.
        started: milliseconds since 1970.
    """

    do: Literal["open"] = "open"
    parent: PipelineRun
    name: str
    tags: dict[str, str]
    started: int


class Params(_Entry):
    """Settings of the run."""

    do: Literal["params"] = "params"
    params: dict[str, str]


class Tag(_Entry):
    """A fact about the run."""

    do: Literal["tag"] = "tag"
    key: str
    value: str


class Point(NamedTuple):
    """One value of a metric; `timestamp` in milliseconds since 1970."""

    key: str
    value: float
    step: int
    timestamp: int


class Metrics(_Entry):
    """Values of metrics.

    Attributes:
        points: the values. With their times MLflow knows them again when they come twice.
        model: digest of the logged model they are of.
        dataset: name and digest of the data they were measured on.
    """

    do: Literal["metrics"] = "metrics"
    points: list[Point]
    model: str | None = None
    dataset: tuple[str, str] | None = None


class Data(_Entry):
    """A data file the run reads.

    Attributes:
        name, digest: which.
        place: where it stands.
        context: `training`, `evaluation`, ….
        rows: how many it has, where that is known.
    """

    do: Literal["data"] = "data"
    name: str
    digest: str
    place: str
    context: str
    rows: int | None = None


class Model(_Entry):
    """A checkpoint the run reads or has made.

    Attributes:
        digest: of its files; the same digest is the same logged model.
        name: what the UI calls it, if it is new.
        place: where it stands.
        role: what the run has to do with it.
        step: training step it is from.
        tags: of the logged model.
    """

    do: Literal["model"] = "model"
    digest: str
    name: str
    place: str
    role: Role
    step: int = 0
    tags: dict[str, str] = {}


class Artifact(_Entry):
    """A file or folder to keep.

    Attributes:
        file: path of the copy within the spool.
        folder: where it goes among the run's artifacts.
    """

    do: Literal["artifact"] = "artifact"
    file: str
    folder: str | None


class EndRun(_Entry):
    """A step has ended: the last entry of its spool."""

    do: Literal["end"] = "end"
    state: State
    failure: str | None
    ended: int


class EndPipeline(_Entry):
    """A pipeline run has ended: the only entry of its spool.

    Attributes:
        run: it.
        state, failure: how it ended, and why.
        by_steps: the reasons of the steps that failed stand for `failure`, if there are any.
        last: name of the step with which it succeeded if no step failed, whatever `state` says;
            empty where that no step failed will do.
        ended: when, in ms.
    """

    do: Literal["end pipeline"] = "end pipeline"
    run: PipelineRun
    state: State
    failure: str | None
    by_steps: bool = False
    last: str | None = None
    ended: int


Entry = Annotated[
    OpenRun | Params | Tag | Metrics | Data | Model | Artifact | EndRun | EndPipeline,
    Field(discriminator="do"),
]

ENTRY: TypeAdapter[Entry] = TypeAdapter(Entry)
