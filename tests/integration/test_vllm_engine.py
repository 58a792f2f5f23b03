"""The engine over vLLM: against a server that speaks its protocol, and the engine in process.

vLLM itself is not run here.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from PIL import Image
from token_server import CONTEXT, TokenServer
from trl.generation.vllm_generation import VLLMGeneration

from toolwise.agent import Sampling
from toolwise.agent.transformers_engine import TransformersEngine
from toolwise.agent.vllm_engine import VLLMEngine
from toolwise.agent.vllm_server import VLLMServer
from toolwise.data import Message, encode_image
from toolwise.errors import BackendError, InputError
from toolwise.synthetic.model import build_model, build_processor
from toolwise.tools.python import PYTHON_SCHEMA
from toolwise.training.hdpo.colocated import ColocatedVLLM

RED, BLUE = (encode_image(Image.new("RGB", (96, 64), colour)) for colour in ("red", "blue"))
PROCESSOR = build_processor([PYTHON_SCHEMA])


@pytest.fixture(scope="module")
def local() -> TransformersEngine:
    torch.set_num_threads(1)
    return TransformersEngine(build_model(PROCESSOR.tokenizer).eval(), PROCESSOR)


def question(text: str, *images: bytes) -> list[Message]:
    parts: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


CONVERSATIONS = [question("sum?"), question("colour?", RED), question("which?", BLUE, RED)]
SHOWN: list[Message] = [
    {
        "role": "tool",
        "tool_call_id": "call_0",
        "content": [{"type": "image", "image": BLUE}, {"type": "text", "text": "there"}],
    }
]


def two_turns(engine: Any, sampling: Sampling) -> list[Any]:
    """A turn of each conversation, an image shown to the first two, and their second turn."""
    batch = engine.start(CONVERSATIONS, [PYTHON_SCHEMA])
    asyncio.run(batch.generate([0, 1, 2], sampling))
    for index in (0, 1):
        batch.append(index, SHOWN)
    asyncio.run(batch.generate([1, 0], sampling))
    return [batch.tokens(index) for index in range(3)]


def assert_same(one: Sequence[Any], other: Sequence[Any]) -> None:
    for ours, theirs in zip(one, other, strict=True):
        assert ours.prompt_ids == theirs.prompt_ids
        assert ours.completion_ids == theirs.completion_ids
        assert ours.mask == theirs.mask
        assert ours.images == theirs.images
        assert ours.prompt_images == theirs.prompt_images
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)


class TestOverAServer:
    def test_greedy_conversations_are_those_of_the_engine_in_process(
        self, local: TransformersEngine
    ) -> None:
        greedy = Sampling(max_tokens=5)
        with TokenServer(local) as server:
            found = two_turns(VLLMEngine(VLLMServer(server.url), PROCESSOR), greedy)
            paths = [path for path, _ in server.requests]
        assert_same(found, two_turns(local, greedy))
        # Text alone is completed at once; the same images are rendered once per turn.
        assert paths.count("/v1/completions") == 1
        assert paths.count("/v1/chat/completions/render") == 4
        assert paths.count("/inference/v1/generate") == 4

    def test_a_seed_makes_rollouts_repeatable_and_each_its_own(
        self, local: TransformersEngine
    ) -> None:
        sampling = Sampling(temperature=1.0, max_tokens=6, seed=3)
        with TokenServer(local) as server:
            engine = VLLMEngine(VLLMServer(server.url), PROCESSOR)
            same = [engine.start([CONVERSATIONS[0]] * 3, ()) for _ in range(2)]
            first, again = (asyncio.run(batch.generate(range(3), sampling)) for batch in same)
        assert [turn.token_ids for turn in first] == [turn.token_ids for turn in again]
        assert len({turn.token_ids for turn in first}) == 3

    def test_what_the_model_must_not_write_is_no_part_of_the_distribution(
        self, local: TransformersEngine
    ) -> None:
        with TokenServer(local) as server:
            engine = VLLMEngine(VLLMServer(server.url), PROCESSOR)
            two_turns(engine, Sampling(max_tokens=1))
            bodies = [body for path, body in server.requests if "render" not in path]
        for body in bodies:
            wanted = body.get("sampling_params", body)
            assert set(wanted["logit_bias"]) == {str(token) for token in local.suppressed_ids}
            # Nothing is left to the generation_config of the served checkpoint.
            assert (wanted["top_k"], wanted["min_p"], wanted["repetition_penalty"]) == (0, 0.0, 1.0)

    def test_a_passing_failure_is_asked_again(self, local: TransformersEngine) -> None:
        with TokenServer(local, failures=2) as server:
            engine = VLLMEngine(VLLMServer(server.url), PROCESSOR)
            batch = engine.start([CONVERSATIONS[0]], ())
            (turn,) = asyncio.run(batch.generate([0], Sampling(max_tokens=2)))
        assert turn.completion_tokens == 2

    def test_a_server_that_is_not_there_is_named(self, local: TransformersEngine) -> None:
        with TokenServer(local) as server:
            url = server.url
        batch = VLLMEngine(VLLMServer(url), PROCESSOR).start([CONVERSATIONS[0]], ())
        with pytest.raises(BackendError, match=url):
            asyncio.run(batch.generate([0], Sampling(max_tokens=2)))

    def test_a_full_context_ends_a_rollout_and_refuses_a_prompt(
        self, local: TransformersEngine
    ) -> None:
        with TokenServer(local) as server:
            engine = VLLMEngine(VLLMServer(server.url), PROCESSOR)
            batch = engine.start([question("x" * 300)], ())
            asyncio.run(batch.generate([0], Sampling(max_tokens=2)))
            result = {"type": "text", "text": "y" * 300}
            batch.append(0, [{"role": "tool", "tool_call_id": "call_0", "content": [result]}])
            (turn,) = asyncio.run(batch.generate([0], Sampling(max_tokens=2)))
            assert (turn.finish_reason, turn.completion_tokens) == ("length", 0)
            longer = engine.start([question("x" * 600)], ())
            with pytest.raises(InputError, match=f"reads {CONTEXT}"):
                asyncio.run(longer.generate([0], Sampling(max_tokens=2)))


class InThisProcess:
    """What `ColocatedVLLM` uses of TRL's `VLLMGeneration`, decoding as the server does."""

    mode = "colocate"
    tensor_parallel_size = 1
    temperature = top_p = 1.0
    max_completion_length = 1

    def __init__(self, server: TokenServer) -> None:
        self._server = server
        self.generation_kwargs: dict[str, Any] = {"min_tokens": 1}

    def generate(
        self,
        prompts: list[list[int]],
        images: list[list[Any] | None] | None,
        num_generations: int,
        profiler: Any = None,
    ) -> tuple[Any, ...]:
        wanted = {
            "seed": None,
            "temperature": self.temperature,
            "max_tokens": self.max_completion_length,
            **self.generation_kwargs,
        }
        shown = images or [None] * len(prompts)
        found = [
            self._server._decode(ids, [encode_image(view) for view in views or ()], wanted)
            for ids, views in zip(prompts, shown, strict=True)
        ]
        assert num_generations == 1
        logprobs = [[[value] for value in values] for _, values in found]
        return prompts, [ids for ids, _ in found], logprobs, None


class TestColocated:
    def test_greedy_conversations_are_those_of_the_engine_in_process(
        self, local: TransformersEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def context(_: Any) -> int:
            return CONTEXT

        monkeypatch.setattr(ColocatedVLLM, "context", context)
        generation = InThisProcess(TokenServer(local))
        engine = VLLMEngine(ColocatedVLLM(generation), PROCESSOR)
        greedy = Sampling(max_tokens=4)
        assert_same(two_turns(engine, greedy), two_turns(local, greedy))
        assert generation.generation_kwargs["min_tokens"] == 1  # what the user set is kept

    def test_trl_still_generates_by_these_names(self) -> None:
        ours, theirs = (
            list(inspect.signature(kind.generate).parameters)
            for kind in (InThisProcess, VLLMGeneration)
        )
        assert ours == theirs
        taken = inspect.signature(VLLMGeneration.__init__).parameters
        for name in ("mode", "tensor_parallel_size", "temperature", "top_p", "generation_kwargs"):
            assert name in taken
        assert "max_completion_length" in taken

    def test_a_model_spread_over_processes_is_refused(self, local: TransformersEngine) -> None:
        generation = InThisProcess(TokenServer(local))
        generation.tensor_parallel_size = 2
        with pytest.raises(ValueError, match="use a server"):
            ColocatedVLLM(generation)
