"""How a checkpoint is measured: the section `evaluate` of a profile."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from toolwise.agent.vllm_process import VLLMSettings
from toolwise.judge.endpoint import EndpointSettings
from toolwise.tools.sandbox.contract import Isolation
from toolwise.tools.search.settings import SearchSettings


class EvaluationSettings(BaseModel):
    """How a checkpoint is measured.

    Args:
        samples: answers per item at temperature 1 with tools on, beside the greedy one.
        counterfactual_samples: k answers per item with tools off; without any it is not known
            which items need a tool, and the rates that rest on it stay empty.
        counterfactual_temperature: of those; what a model knows is asked at the decoding settings
            it is used with, by default the ones published with Qwen3-VL.
        counterfactual_top_p: likewise.
        batch_size: answers per generation of a model in process.
        processes: its worker processes, each with one torch thread; does not change the result.
        concurrency: answers in flight of a model behind a server; does not change the result.
        timeout: seconds one such answer may take, tools and retries included.
        max_tokens: limit per assistant turn.
        max_turns: assistant turns per answer.
        isolation: lowest sandbox isolation accepted for `python`.
        search: the search tools; as the profile has it.
        judge: text model that scores where the benchmark asks for one; without it rules do, and
            the scores say so.
        vllm: answers of a checkpoint by vLLM; as the profile has it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    samples: int = Field(1, ge=0)
    counterfactual_samples: int = Field(8, ge=0)
    counterfactual_temperature: float = Field(0.7, gt=0)
    counterfactual_top_p: float = Field(0.8, gt=0, le=1)
    batch_size: int = Field(256, ge=1)
    processes: int = Field(1, ge=1)
    concurrency: int = Field(32, ge=1)
    timeout: float = Field(600.0, gt=0)
    max_tokens: int = Field(512, ge=1)
    max_turns: int = Field(4, ge=1)
    isolation: Isolation = Isolation.BUBBLEWRAP
    search: SearchSettings | None = None
    judge: EndpointSettings | None = None
    vllm: VLLMSettings | None = None


EXECUTION: dict[str, Any] = {
    "processes": True,
    "concurrency": True,
    "timeout": True,
    "judge": {"timeout", "concurrency", "budget"},
    "vllm": {"gpus", "memory", "start_seconds"},
}
"""Settings that do not change the result, as pydantic's `exclude` takes them."""
