"""Rollouts per second of the agent loop and of TRL's own tool loop, on the same model and tools.

The model is the demo's after SFT; each batch has 24 other prompts, a third each of perception, math
and search, 8 rollouts of each. Both run in one process on the same weights, in turn, with as many
torch threads as the environment gives them; the sandboxes of the python tool are processes beside
it.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForImageTextToText
from transformers.utils.chat_template_utils import get_json_schema
from trl.trainer.grpo_config import GRPOConfig

from bench.demo import demo_output
from toolwise.agent import Limits, Sampling, run_agent
from toolwise.agent.processor import load_processor
from toolwise.agent.transformers_engine import TransformersEngine
from toolwise.data import Task, decode_image
from toolwise.data.parquet import read_tasks
from toolwise.tools import Tool, ToolError, ToolSession, open_tools
from toolwise.training.hdpo.tool_images import ToolImagesGRPOTrainer

PROMPTS = 24
GROUP = 8
TURN_TOKENS = 32
REPEATS = 5


def measure() -> dict[str, float]:
    """Medians of five batches each, and where the time of each went."""
    checkpoint, tasks, corpus = _material()
    processor = load_processor(checkpoint)
    model: Any = AutoModelForImageTextToText.from_pretrained(checkpoint)
    tools = open_tools(corpus, "bubblewrap")
    engine = TransformersEngine(model, processor)
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(model, processor, tools, tasks, engine.suppressed_ids, folder)
        sides = {
            "toolwise": lambda seed: _ours(engine, _batch(tasks, seed), tools, seed),
            "trl": trainer.roll,
        }
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        calls: dict[str, list[int]] = {name: [] for name in sides}
        spent: dict[str, Counter[str]] = {name: Counter() for name in sides}
        for seed in range(REPEATS + 1):
            for name, roll in sides.items():
                model.train()
                with _clocks(model, processor, spent[name]):
                    started = time.perf_counter()
                    made = roll(seed)
                if seed:  # the first of each warms up
                    seconds[name].append(time.perf_counter() - started)
                    calls[name].append(made)
                else:
                    spent[name].clear()
    asyncio.run(_close(tools))
    figures: dict[str, float] = {
        "torch_threads": torch.get_num_threads(),
        "rollouts": PROMPTS * GROUP,
    }
    for name in sides:
        figures[f"{name}_rollouts_per_second"] = PROMPTS * GROUP / statistics.median(seconds[name])
        figures[f"{name}_calls_per_rollout"] = statistics.mean(calls[name]) / (PROMPTS * GROUP)
        for part in ("model", "images"):
            figures[f"{name}_seconds_{part}"] = spent[name][part] / REPEATS
        figures[f"{name}_seconds"] = statistics.mean(seconds[name])
    pairs = zip(seconds["trl"], seconds["toolwise"], strict=True)
    figures["ratio"] = statistics.median(theirs / ours for theirs, ours in pairs)
    figures["toolwise_padding_share"] = engine.stats.padding_share
    figures["toolwise_shared_share"] = engine.stats.shared_share
    return figures


def _material() -> tuple[Path, list[Task], Path]:
    """A checkpoint after SFT, the prompts, and the corpus."""
    checkpoint, data = demo_output("train-sft", "checkpoint"), demo_output("prepare-data", "data")
    tasks, corpus = data / "rl_tasks.parquet", data / "corpus.jsonl"
    return checkpoint, list(read_tasks(tasks))[: PROMPTS * (REPEATS + 1)], corpus


def _batch(every: Sequence[Any], number: int) -> Sequence[Any]:
    return every[number * PROMPTS : (number + 1) * PROMPTS]


def _ours(
    engine: TransformersEngine, tasks: Sequence[Task], tools: Sequence[Tool], seed: int
) -> int:
    rollouts = asyncio.run(
        run_agent(
            engine,
            [task for task in tasks for _ in range(GROUP)],
            tools,
            sampling=Sampling(temperature=1.0, max_tokens=TURN_TOKENS, seed=seed),
            limits=Limits(max_turns=4),
            keep_tokens=True,
        )
    )
    return sum(rollout.tool_calls for rollout in rollouts)


class _Environment:
    """The tools of one rollout, as TRL calls them."""

    tasks: Sequence[Task]
    tools: dict[str, Tool]

    def __init__(self) -> None:
        self._sessions: dict[str, ToolSession] = {}
        self._task: Task | None = None

    def reset(self, task: int, **_: Any) -> None:
        for session in self._sessions.values():
            asyncio.run(session.close())
        self._sessions, self._task = {}, self.tasks[task]

    async def _call(self, name: str, arguments: dict[str, Any]) -> list[dict[str, Any]]:
        assert self._task is not None
        if name not in self._sessions:
            self._sessions[name] = await self.tools[name].open(self._task.images)
        try:
            result = await self._sessions[name].call(arguments)
        except ToolError as error:
            return [{"type": "text", "text": f"Error: {error}"}]
        shown = [{"type": "image", "image": decode_image(image)} for image in result.images]
        return [*shown, {"type": "text", "text": result.text}] if result.text else shown

    async def python(self, code: str) -> list[dict[str, Any]]:
        return await self._call("python", {"code": code})

    async def text_search(self, query: str) -> list[dict[str, Any]]:
        return await self._call("text_search", {"query": query})


class _Done(Exception):
    """The rollouts are made; rewards are another matter."""


class _TrlRollouts(ToolImagesGRPOTrainer):
    rows: list[dict[str, Any]]
    calls = 0

    def roll(self, seed: int) -> int:
        """One batch of rollouts; returns the tool calls in it."""
        torch.manual_seed(seed)
        try:
            rows = _batch(self.rows, seed)
            self._generate_and_score_completions([row for row in rows for _ in range(GROUP)])
        except _Done:
            return self.calls
        raise AssertionError("TRL makes its rollouts elsewhere")

    def _generate(self, prompts: list[Any]) -> Any:
        completions = super()._generate(prompts)[3]
        self.calls = sum(len(m.get("tool_calls") or ()) for c in completions for m in c)
        raise _Done


def _trainer(
    model: Any,
    processor: Any,
    tools: Sequence[Tool],
    tasks: Sequence[Task],
    suppressed: Sequence[int],
    folder: str,
) -> _TrlRollouts:
    for tool in tools:
        _describe(getattr(_Environment, tool.name), tool.schema)
    _Environment.tasks, _Environment.tools = tasks, {tool.name: tool for tool in tools}
    rows = [
        {
            "prompt": [{"role": "user", "content": task.prompt}],
            "images": [decode_image(image) for image in task.images],
            "task": number,
        }
        for number, task in enumerate(tasks)
    ]
    trainer = _TrlRollouts(
        model=model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=PROMPTS * GROUP,
            num_generations=GROUP,
            temperature=1.0,
            max_completion_length=4 * TURN_TOKENS,
            max_tool_calling_iterations=3,
            # TRL would let each turn have the tokens of all.
            generation_kwargs={
                "suppress_tokens": list(suppressed),
                "max_new_tokens": TURN_TOKENS,
            },
            report_to="none",
            use_cpu=True,
        ),
        processing_class=processor,
        train_dataset=Dataset.from_list([{k: row[k] for k in ("prompt", "task")} for row in rows]),
        environment_factory=_Environment,
    )
    trainer.rows = rows
    return trainer


def _describe(method: Callable[..., Any], schema: dict[str, Any]) -> None:
    """Give a method the docstring from which TRL reads this very schema."""
    function = schema["function"]
    arguments = function["parameters"]["properties"].items()
    lines = [f"    {name}: {value['description']}" for name, value in arguments]
    method.__doc__ = "\n".join([function["description"], "", "Args:", *lines])
    method.__annotations__.pop("return", None)
    assert get_json_schema(method) == schema


@contextmanager
def _clocks(model: Any, processor: Any, spent: Counter[str]) -> Iterator[None]:
    """Add up the seconds in the model and in image preprocessing."""
    clocked = {
        (model, "forward"): "model",
        (type(processor.image_processor), "__call__"): "images",
    }
    before = {key: getattr(*key) for key in clocked}

    def clock(function: Callable[..., Any], part: str) -> Callable[..., Any]:
        @wraps(function)  # generation looks at the signature
        def clocked_function(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent[part] += time.perf_counter() - started

        return clocked_function

    for key, part in clocked.items():
        setattr(*key, clock(before[key], part))
    try:
        yield
    finally:
        for key, function in before.items():
            setattr(*key, function)


async def _close(tools: Sequence[Tool]) -> None:
    await asyncio.gather(*(tool.aclose() for tool in tools))
