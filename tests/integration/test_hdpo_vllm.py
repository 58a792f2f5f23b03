"""HDPOTrainer with the agent loop and vLLM, colocated or a server.

All but vLLM itself is real: in its place the policy decodes, as slowly as plainly.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
import torch
from datasets import Dataset
from recorded_rollouts import base_model, load
from token_server import TokenServer
from toy_training import TASKS, cold_start
from transformers import AutoModelForImageTextToText
from trl.generation import vllm_generation
from trl.generation.vllm_client import VLLMClient
from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer import grpo_trainer

from toolwise.agent import Limits
from toolwise.agent.processor import load_processor
from toolwise.agent.transformers_engine import TransformersEngine
from toolwise.agent.vllm_engine import VLLMEngine
from toolwise.agent.vllm_server import VLLMServer
from toolwise.data import encode_image
from toolwise.tools import Tool, open_tools
from toolwise.training.hdpo import HDPOConfig, HDPOTrainer
from toolwise.training.hdpo.agent import InProcessAgent
from toolwise.training.hdpo.colocated import ColocatedVLLM

G = 4
PROMPTS = TASKS[:3]
OFF = 0.1
"""What this vLLM's rounding adds to each log-probability."""


class Llm:
    """vLLM as far as TRL uses it; refuses to generate when it should be asleep."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.llm_engine = SimpleNamespace(
            model_config=SimpleNamespace(max_model_len=512),
            reset_encoder_cache=lambda: self.happened.append("forgotten"),
        )
        self._decoder = TokenServer(TransformersEngine(model, processor))
        self._requests = 0
        self.awake: set[str] = set()
        self.happened: list[str] = []

    def wake_up(self, tags: list[str]) -> None:
        self.awake |= set(tags)

    def sleep(self, level: int) -> None:
        assert level == 2
        self.happened.append("sleep")
        self.awake.clear()

    def generate(self, prompts: list[dict[str, Any]], sampling_params: Any, **_: Any) -> list[Any]:
        assert self.awake == {"weights", "kv_cache"}
        self.happened.append("generate")
        return [self._output(prompt, vars(sampling_params)) for prompt in prompts]

    def _output(self, prompt: dict[str, Any], wanted: dict[str, Any]) -> Any:
        shown = prompt.get("multi_modal_data", {}).get("image", [])
        images = [encode_image(image) for image in (shown if isinstance(shown, list) else [shown])]
        ids = prompt["prompt_token_ids"]
        self._requests += 1
        wanted = {**wanted, "seed": self._requests}
        written, logprobs = self._decoder._decode(ids, images, wanted)
        scores = [
            {token: SimpleNamespace(logprob=logprob + OFF, rank=0)}
            for token, logprob in zip(written, logprobs, strict=True)
        ]
        said = SimpleNamespace(token_ids=written, logprobs=scores)
        return SimpleNamespace(prompt_token_ids=ids, outputs=[said])


class Generation(VLLMGeneration):
    """TRL's own, over that."""

    def _init_vllm(self) -> None:
        self.llm = Llm(self.model, self.processing_class)
        self._llm_weights_sleeping = self.enable_sleep_mode

    def sync_weights(self) -> None:
        self.llm.happened.append("weights")
        self.llm.wake_up(["weights"])
        self._llm_weights_sleeping = False


class ServerGeneration(VLLMGeneration):
    """TRL's own, but for the client that hands weights over by NCCL."""

    server: TokenServer

    def _init_vllm(self) -> None:
        info = {"model_config": {"logprobs_mode": "processed_logprobs"}}
        self.vllm_client = SimpleNamespace(get_server_info=lambda: info)
        client = self._client()
        self.vllm_client.generate = client.generate
        self.vllm_client.session, self.vllm_client.base_url = client.session, client.base_url
        self.requests_before: list[int] = []

    def _client(self) -> VLLMClient:
        client = object.__new__(VLLMClient)  # its own constructor wants vLLM installed
        client.session, client.base_url, client.model = (
            requests.Session(),
            self.server.url,
            "/model",
        )
        return client

    def sync_weights(self) -> None:  # the server decodes with the policy itself
        self.requests_before.append(len(self.server.requests))


def three_of_four(rollout: Sequence[Any], **_: Any) -> list[float | None]:
    return [float(row % G != 0) for row in range(len(rollout))]


@pytest.fixture(scope="module")
def tools() -> Iterator[Sequence[Tool]]:
    opened = open_tools(None)
    yield opened
    for tool in opened:
        asyncio.run(tool.aclose())


def settings(folder: Path, **mode: Any) -> HDPOConfig:
    chosen: dict[str, Any] = {
        "max_steps": 2,
        "per_device_train_batch_size": G,
        "gradient_accumulation_steps": len(PROMPTS),
        "num_generations": G,
        "max_completion_length": 90,
        "use_vllm": True,
        "vllm_importance_sampling_mode": "token_truncate",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        **mode,
    }
    return HDPOConfig(output_dir=str(folder), **chosen)


@pytest.fixture
def trainer(tmp_path: Path, tools: Sequence[Tool], monkeypatch: pytest.MonkeyPatch) -> HDPOTrainer:
    monkeypatch.setattr(grpo_trainer, "VLLMGeneration", Generation)
    monkeypatch.setattr(vllm_generation, "SamplingParams", SimpleNamespace, raising=False)
    checkpoint = cold_start(tmp_path)
    processor = load_processor(checkpoint)
    return HDPOTrainer(
        model=AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32),
        reward_funcs=three_of_four,
        args=settings(tmp_path, vllm_mode="colocate", vllm_enable_sleep_mode=True),
        processing_class=processor,
        agent=lambda made: InProcessAgent(
            VLLMEngine(ColocatedVLLM(made.vllm_generation), processor), tools, Limits(max_turns=3)
        ),
        tasks=PROMPTS,
    )


def test_it_gets_the_weights_once_a_batch_and_sleeps_only_after_its_last_turn(
    trainer: Any,
) -> None:
    sizes = []
    forward = trainer.model.forward
    trainer.model.forward = lambda *given, **named: (
        sizes.append(len(named["input_ids"])) or forward(*given, **named)
    )
    trainer.train()
    # Processes take different numbers of turns; what all of them take part in is done once.
    first, *batches, rest = " ".join(trainer.vllm_generation.llm.happened).split("weights ")
    assert (first, len(batches)) == ("", 1)
    for batch in (*batches, rest):
        forgotten, *turns = batch.split("sleep")[0].split()
        assert forgotten == "forgotten"  # what the encoder made of images with the old weights
        assert batch.count("sleep") == 1
        assert len(turns) >= 2
        assert set(turns) == {"generate"}
    assert max(sizes) <= G  # as the estimate of memory has it, though 12 are scored at once


def test_what_it_sampled_otherwise_than_the_policy_is_made_up_for_in_both_channels(
    trainer: Any,
) -> None:
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    rows = [{"prompt": index} for index in range(len(PROMPTS)) for _ in range(G)]
    batch = trainer._generate_and_score_completions(rows)
    written = (batch["completion_mask"] * batch["tool_mask"]).bool()
    ratio = batch["importance_sampling_ratio"].expand(written.shape)[written]
    torch.testing.assert_close(ratio, torch.full_like(ratio, math.exp(-OFF)), rtol=1e-3, atol=0)
    found = {}
    for corrected in (True, False):
        trainer.use_vllm = corrected
        given = dict(batch)
        if not corrected:
            del given["importance_sampling_ratio"]
        trainer._compute_loss(trainer.model, given)
        metrics = trainer._metrics["train"]
        names = ("loss/accuracy", "loss/efficiency")
        found[corrected] = [metrics[name].pop() for name in names]
    assert all(abs(loss) > 1e-4 for loss in found[False])
    assert found[True] == pytest.approx([math.exp(-OFF) * loss for loss in found[False]], rel=1e-3)


def test_a_servers_rollouts_are_the_policys_and_it_gets_the_weights_before_each_batch(
    tmp_path: Path, tools: Sequence[Tool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpo_trainer, "VLLMGeneration", ServerGeneration)
    checkpoint = cold_start(tmp_path)
    processor = load_processor(checkpoint)
    model: Any = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
    with TokenServer(TransformersEngine(model, processor)) as server:
        monkeypatch.setattr(ServerGeneration, "server", server, raising=False)
        trainer: Any = HDPOTrainer(
            model=model,
            reward_funcs=three_of_four,
            args=settings(tmp_path, vllm_mode="server", vllm_server_base_url=server.url),
            processing_class=processor,
            agent=InProcessAgent(
                VLLMEngine(VLLMServer(server.url), processor), tools, Limits(max_turns=3)
            ),
            tasks=PROMPTS,
        )
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        trainer.train()
    # A batch of rollouts takes turns of 12 requests or fewer; weights come before the first.
    first, second = trainer.vllm_generation.requests_before
    assert first == 0
    assert second > len(PROMPTS) * G
    assert len(server.requests) - second > len(PROMPTS) * G
    assert server.forgotten_at == [first, second]
    assert {path for path, _ in server.requests} >= {"/v1/completions", "/inference/v1/generate"}
    steps = [entry for entry in trainer.state.log_history if "accuracy" in entry]
    assert len(steps) == 2
    for step in steps:
        assert step["tool_call_rate"] > 0
        assert step["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=1e-3)
    assert any(not torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_trls_own_generation_from_a_server_trains_both_channels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpo_trainer, "VLLMGeneration", ServerGeneration)
    base = base_model(tmp_path)
    processor, model = load_processor(base), load(base)

    def every_other(completions: Sequence[Any], **_: Any) -> list[float | None]:
        return [float(row % 2) for row in range(len(completions))]

    with TokenServer(TransformersEngine(model, processor)) as server:
        monkeypatch.setattr(ServerGeneration, "server", server, raising=False)
        trainer: Any = HDPOTrainer(
            model=model,
            reward_funcs=every_other,
            args=settings(
                tmp_path,
                vllm_mode="server",
                vllm_server_base_url=server.url,
                max_completion_length=4,
                gradient_accumulation_steps=2,
            ),
            processing_class=processor,
            train_dataset=Dataset.from_dict(
                {"prompt": [[{"role": "user", "content": text}] for text in ("sum?", "colour?")]}
            ),
        )
        trainer.train()
    assert trainer.vllm_generation.requests_before == [0, 1]
    assert [(path, body["n"]) for path, body in server.requests] == [("/v1/completions", G)] * 2
    steps = [entry for entry in trainer.state.log_history if "accuracy" in entry]
    for step in steps:
        assert step["accuracy"] == 0.5
        assert step["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=1e-3)
        assert step["grad_norm"] > 0
    assert len(steps) == 2
