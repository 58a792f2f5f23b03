"""Whether the figures of two evaluations compare: the same items, definitions and settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from pydantic import BaseModel, ConfigDict, field_validator

from toolwise.evaluation.metrics import ToolsOnMode

SHOWN = 12
"""Characters of a digest that a person is shown."""


class UsedJudge(BaseModel):
    """The judge that scored; how it was asked (timeout, budget, …) changes no verdict."""

    model_config = ConfigDict(strict=True, frozen=True)

    model: str
    base_url: str

    def __str__(self) -> str:
        return f"{self.model} at {self.base_url}"


class UsedBackend(BaseModel):
    """What a search tool searched; `toolwise.tools.search.settings` explains it."""

    model_config = ConfigDict(strict=True, frozen=True)

    backend: str
    url: str | None = None
    recording: str | None = None
    index: str | None = None
    model: str | None = None
    results: int | None = None

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self if value is not None)


class UsedSearch(BaseModel):
    """What the search tools searched."""

    model_config = ConfigDict(strict=True, frozen=True)

    text: UsedBackend | None = None
    image: UsedBackend | None = None

    def __str__(self) -> str:
        return " and ".join(f"{name} ({used})" for name, used in self if used is not None)


class AnswerSettings(BaseModel):
    """The settings that an evaluation's figures depend on; `EvaluationSettings` explains them.

    None is what is not known; of `search` and `judge`, that there was none.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    samples: int | None = None
    counterfactual_samples: int | None = None
    counterfactual_temperature: float | None = None
    counterfactual_top_p: float | None = None
    max_tokens: int | None = None
    max_turns: int | None = None
    search: UsedSearch | None = None
    judge: UsedJudge | None = None

    @field_validator("search")
    @classmethod
    def _empty_is_none(cls, search: UsedSearch | None) -> UsedSearch | None:
        return None if search == UsedSearch() else search


class Measured(Protocol):
    """What an evaluation says of how it was measured; None is what it does not say."""

    @property
    def benchmark(self) -> str | None:
        """Digest of the items."""
        ...

    @property
    def corpus(self) -> str | None:
        """Digest of the texts that were searched, where they were a file."""
        ...

    @property
    def metric_version(self) -> int | None:
        """Of the definitions of what is scored."""
        ...

    @property
    def settings(self) -> AnswerSettings:
        """How the answers were given."""
        ...


class Measurement(BaseModel):
    """The same, as `metrics.json` has it."""

    model_config = ConfigDict(strict=True, frozen=True)

    benchmark: str | None = None
    corpus: str | None = None
    metric_version: int | None = None
    settings: AnswerSettings = AnswerSettings()


def unlike(theirs: Measured, ours: Measured, mode: ToolsOnMode) -> Iterator[str]:
    """Why the figures of `theirs` do not compare with `ours`, in words; nothing where they do.

    Args:
        theirs: one evaluation, "it".
        ours: the other one, "here".
        mode: the answers that are compared; the number of sampled ones matters for them alone.
    """
    if theirs.benchmark != ours.benchmark:
        there, here = _digest(theirs.benchmark), _digest(ours.benchmark)
        yield f"it answered other items ({there}, here {here})"
    if theirs.corpus != ours.corpus:
        there, here = _digest(theirs.corpus), _digest(ours.corpus)
        yield f"it searched other texts ({there}, here {here})"
    if theirs.metric_version != ours.metric_version:
        yield (
            f"it was measured by {version_of_metrics(theirs.metric_version)}, here by "
            f"{version_of_metrics(ours.metric_version)}"
        )
    for name, there in theirs.settings:
        here = getattr(ours.settings, name)
        if there != here and (name != "samples" or mode == "sampled"):
            yield f"it was measured with {name} {_said(name, there)}, here with {_said(name, here)}"


def _said(name: str, value: float | UsedSearch | UsedJudge | None) -> str:
    if value is None:
        return "none" if name in ("search", "judge") else "unknown"
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def version_of_metrics(version: int | None) -> str:
    """A version in words."""
    return "metrics without a version" if version is None else f"version {version} of the metrics"


def _digest(digest: str | None) -> str:
    return "unknown ones" if digest is None else digest[:SHOWN]
