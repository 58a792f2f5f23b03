"""The answers an evaluation has so far, in a file that outlives a kill."""

from __future__ import annotations

import hashlib
import pickle
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from toolwise import __version__
from toolwise.agent.openai_engine import ServedModel
from toolwise.errors import InputError
from toolwise.evaluation.rollouts import json_line
from toolwise.evaluation.settings import EXECUTION, EvaluationSettings
from toolwise.evaluation.worker import AnsweredBatch, EngineFactory, WorkerSetup
from toolwise.storage import content_digest

_BATCH = TypeAdapter(AnsweredBatch)


class Identity(BaseModel):
    """Which evaluation answers are of: those of the same one can be put together.

    Args:
        versions: of the packages that gave them.
        model: digest of the checkpoint; of a server its address and name.
        benchmark, corpus: digests of the items, and of what was searched.
        settings: how, less what does not change the result.
        seed: of the sampling.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    versions: dict[str, str]
    model: str
    benchmark: str
    corpus: str | None
    settings: dict[str, Any]
    seed: int

    @classmethod
    def of(cls, setup: WorkerSetup, settings: EvaluationSettings, seed: int) -> Self:
        """The identity of an evaluation that is about to begin."""
        used = () if isinstance(setup.model, ServedModel) else ("torch", "transformers")
        return cls(
            versions={"toolwise": __version__, **{package: version(package) for package in used}},
            model=_model_identity(setup.model),
            benchmark=content_digest(setup.benchmark),
            corpus=setup.corpus and content_digest(setup.corpus),
            settings=comparable(settings),
            seed=seed,
        )


def comparable(settings: EvaluationSettings) -> dict[str, Any]:
    """The settings that change the result."""
    return settings.model_dump(mode="json", exclude=EXECUTION)


class WorkFile:
    """Finished batches, a line each, beside the output until that is published.

    Its first line says of which evaluation; one left by another is started over. A last line cut
    short by a kill is dropped.
    """

    def __init__(self, path: Path, identity: Identity) -> None:
        self.path = path
        self.finished: dict[int, AnsweredBatch] = {}
        self._identity = identity.model_dump_json()

    def __enter__(self) -> WorkFile:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lines = self.path.read_text("utf-8").split("\n") if self.path.exists() else []
        except OSError as error:
            raise InputError(
                f"{self.path.parent} cannot be written to: {error.strerror}"
            ) from error
        kept = [f"{self._identity}\n"]
        if lines[:1] == [self._identity]:
            # What follows the last line break is empty, or was cut short.
            for line in lines[1:-1]:
                batch = _BATCH.validate_json(line)
                self.finished[batch.number] = batch
                kept.append(f"{line}\n")
        self._file = self.path.open("w", encoding="utf-8")
        self._write(*kept)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, batch: AnsweredBatch) -> None:
        """Keep a finished batch."""
        self.finished[batch.number] = batch
        self._write(json_line(batch))

    def discard(self) -> None:
        """Drop the file: its content has been published."""
        self.path.unlink()

    def _write(self, *lines: str) -> None:
        self._file.writelines(lines)
        self._file.flush()


def read_answers(path: Path) -> tuple[Identity, list[AnsweredBatch]]:
    """A finished work file: of which evaluation it is, and its batches.

    Raises:
        InputError: it is none.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            identity = Identity.model_validate_json(next(lines, ""))
            return identity, [_BATCH.validate_json(line) for line in lines]
    except (OSError, ValidationError) as error:
        raise InputError(f"{path}: not the answers of an evaluation: {error}") from None


def _model_identity(model: Path | EngineFactory | ServedModel) -> str:
    """What tells one model from another; of a server all that is known is its address and name."""
    match model:
        case Path():
            return content_digest(model)
        case ServedModel():
            return str(model)
        case _:
            return hashlib.sha256(pickle.dumps(model)).hexdigest()
