"""What both curations work with: inputs at hand, a model, tools, and a place for verdicts."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from toolwise import __version__
from toolwise.agent import Engine
from toolwise.agent.vllm_process import VLLMSettings, opened_engine
from toolwise.curation.filtering import CORES
from toolwise.errors import InputError
from toolwise.storage import local_copy
from toolwise.tools import Tool, open_tools
from toolwise.tools.search.settings import SearchSettings


@dataclass(frozen=True, slots=True)
class Inputs:
    """What one curation is given, as paths or URIs.

    Args:
        rows: what to filter (Parquet).
        model: a checkpoint, where a model is asked in process.
        corpus: what `text_search` searches.
    """

    rows: str | Path
    model: str | Path | None = None
    corpus: str | Path | None = None


@dataclass(frozen=True, slots=True)
class Workbench:
    """What one curation works with.

    Args:
        source: the rows to filter, on this machine.
        model: the model, where one was asked for.
        tools: what trajectories and rollouts call.
        seed: the run's seed.
        verdicts: directory that keeps verdicts until the result is published.
        identity: the inputs every verdict depends on.
    """

    source: Path
    model: Engine | None
    tools: Sequence[Tool]
    seed: int
    verdicts: Path
    identity: object

    @property
    def engine(self) -> Engine:
        """The model.

        Raises:
            InputError: none was given.
        """
        if self.model is None:
            raise InputError("this asks a model and none is given (--model)")
        return self.model

    def batch_seed(self, *what: object) -> int:
        """A sampling seed for one batch, the same in a run that was resumed."""
        return int.from_bytes(self._digest(*what)[:4])

    def rank(self, *what: object) -> bytes:
        """A place in a random order that the seed decides."""
        return self._digest("rank", *what)

    def _digest(self, *what: object) -> bytes:
        return hashlib.sha256(repr((self.seed, *what)).encode()).digest()


@contextmanager
def open_workbench(
    inputs: Inputs,
    out_dir: Path,
    seed: int,
    *,
    isolation: str,
    search: SearchSettings | None,
    vllm: VLLMSettings | None = None,
    engine: Engine | None = None,
    tools: Sequence[Tool] | None = None,
) -> Iterator[Workbench]:
    """Fetch the inputs and start what is not given; verdicts are kept if the block fails.

    Args:
        inputs: what to fetch.
        out_dir: where the result will be; verdicts are kept beside it.
        seed: the run's seed.
        isolation: lowest sandbox level accepted.
        search: the search tools; as the profile has it.
        vllm: the model answers by a vLLM of its own; without it, in this process.
        engine: the model, instead of one that is started here.
        tools: instead of the python sandbox and `text_search` over the corpus.

    Raises:
        InputError: an input is missing, or another run is at work on the same output.
        BackendError: the sandbox cannot be had, or storage failed.
    """
    model_path = local_copy(inputs.model) if inputs.model is not None else None
    rows = local_copy(inputs.rows)
    corpus_path = local_copy(inputs.corpus) if inputs.corpus is not None else None
    stamps = [content_stamp(path) for path in (model_path, rows, corpus_path) if path]
    verdicts = out_dir.absolute().parent / f".{out_dir.name}.work"
    lock = _lock(verdicts)
    opened: Sequence[Tool] = []
    started = ExitStack()
    try:
        if engine is None and model_path is not None:
            engine = started.enter_context(opened_engine(model_path, vllm))
        if tools is None:
            tools = opened = open_tools(corpus_path, isolation, CORES, search=search)
        identity = (__version__, seed, engine.name if engine else "", stamps, search)
        yield Workbench(rows, engine, tools, seed, verdicts, identity)
        shutil.rmtree(verdicts)
    finally:
        started.close()
        asyncio.run(_close(opened))
        os.close(lock)


def _lock(verdicts: Path) -> int:
    """Make the directory and take it for this process, until the descriptor is closed."""
    verdicts.mkdir(parents=True, exist_ok=True)
    lock = os.open(verdicts, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise InputError(f"another run is at work in {verdicts}; wait for it to end") from None
    return lock


async def _close(tools: Sequence[Tool]) -> None:
    await asyncio.gather(*(tool.aclose() for tool in tools))


def content_stamp(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and modification time of a file, or of every file of a directory."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return tuple((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files)
