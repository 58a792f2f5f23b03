"""The collapse alarm on two trainings of the demo's SFT model: one healthy, one that breaks.

The healthy one is HDPO, with larger steps than the study's. The other has a loud efficiency channel
and a high learning rate: direct answers spread to prompts that need a tool. Curves go to
`bench/results/collapse_alarm_curves.json`.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback

from bench.hdpo.checkpoints import Material, prepare
from bench.hdpo.scale import Scale
from toolwise.data.parquet import read_tasks
from toolwise.tools import Tool, open_tools
from toolwise.training.hdpo.collapse import ALARM, MISSED
from toolwise.training.hdpo.run import build_trainer
from toolwise.training.settings import HdpoSettings

HEALTHY = HdpoSettings(
    steps=40,  # 960 groups, so that a long window of the alarm (800) has an earlier one
    prompts_per_step=24,
    num_generations=4,
    learning_rate=1e-4,
    freeze_vision=True,
    aggregation="rollout",
    max_tokens=32,
)
BREAKING = HEALTHY.model_copy(update={"steps": 30, "learning_rate": 1e-3, "w_tool": 5.0})
CURVES = Path(__file__).parent / "results" / "collapse_alarm_curves.json"
KEPT = ("accuracy", "tool_call_rate", MISSED, "necessary_call_rate/estimate", ALARM)


def measure() -> dict[str, float]:
    """For each training: accuracy and missed calls at both ends, and the first step of an alarm."""
    made = prepare(Scale())
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        running = {
            name: pool.submit(_curve, made, settings)
            for name, settings in (("healthy", HEALTHY), ("breaking", BREAKING))
        }
        curves = {name: future.result() for name, future in running.items()}
    CURVES.write_text(json.dumps(curves) + "\n")
    figures: dict[str, float] = {}
    for name, curve in curves.items():
        for metric in ("accuracy", "tool_call_rate", MISSED):
            for end, entries in (("first", curve[:5]), ("last", curve[-5:])):
                mean = sum(entry[metric] for entry in entries) / len(entries)
                figures[f"{name}_{metric}_{end}_five_steps"] = mean
        alarmed = [step for step, entry in enumerate(curve, start=1) if entry[ALARM]]
        figures[f"{name}_steps_with_alarm"] = len(alarmed)
        if alarmed:
            figures[f"{name}_first_alarm_at_step"] = alarmed[0]
    return figures


def _curve(made: Material, settings: HdpoSettings) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    tools = open_tools(made.corpus, "bubblewrap")
    with tempfile.TemporaryDirectory() as work:
        trainer = build_trainer(
            made.start("mild"), list(read_tasks(made.prompts)), tools, Path(work), settings, 0
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    asyncio.run(_close(tools))
    log: list[dict[str, Any]] = [e for e in trainer.state.log_history if "train_runtime" not in e]
    return [{name: entry.get(name) for name in KEPT} for entry in log]


async def _close(tools: Sequence[Tool]) -> None:
    await asyncio.gather(*(tool.aclose() for tool in tools))
