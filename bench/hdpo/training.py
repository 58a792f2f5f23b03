"""One arm with one seed: train it, watch it, measure it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PrinterCallback
from transformers.trainer_utils import SaveStrategy

from bench.hdpo.arms import Arm
from bench.hdpo.checkpoints import Material
from bench.hdpo.measuring import score_items
from bench.hdpo.scale import Scale
from toolwise.agent import Rollout, is_well_formed
from toolwise.agent.transformers_engine import TransformersEngine
from toolwise.data import grade
from toolwise.data.parquet import read_tasks
from toolwise.errors import InputError
from toolwise.tools import Tool
from toolwise.training.hdpo.rewards import accuracy_rewards
from toolwise.training.hdpo.run import build_trainer


def train_arm(
    arm: Arm, seed: int, made: Material, tools: Sequence[Tool], scale: Scale
) -> dict[str, Any]:
    """Train and measure; returns `steps`, what was seen of each, and `scores` of the items."""
    known = json.loads(made.known(arm.start).read_text())
    prompts = read_tasks(made.prompts)
    if len(prompts) < scale.prompts_per_step:
        raise InputError(f"{arm.label}: {len(prompts)} prompts are left, too few for a step")
    settings = arm.settings(scale)
    watch = Watch(arm, seed, scale.num_generations - settings.tool_free, scale, known)
    with tempfile.TemporaryDirectory() as work:
        trainer = build_trainer(
            made.start(arm.start),
            prompts,
            tools,
            Path(work),
            settings,
            seed,
            reward=watch.task_accuracy,
        )
        trainer.args.save_strategy = SaveStrategy.NO
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    engine = TransformersEngine(trainer.model.eval(), trainer.processing_class)
    scores = score_items(engine, read_tasks(made.items), tools)
    return {
        "steps": watch.steps,
        "scores": [
            [s.task_id, s.ability, s.mode, s.sample, int(s.correct), s.tool_calls] for s in scores
        ],
    }


class Watch:
    """The reward of an arm, which keeps count of what it sees.

    Args:
        arm: may have a judge that errs, and a bonus.
        seed: of the judge's errors.
        with_tools: rollouts of each group whose prompt offers tools.
        scale: for the size of a group.
        known: what the start knows of each prompt.
    """

    def __init__(
        self, arm: Arm, seed: int, with_tools: int, scale: Scale, known: dict[str, dict[str, Any]]
    ) -> None:
        self.steps: list[dict[str, Any]] = []
        self._arm = arm
        self._group = scale.num_generations
        self._with_tools = with_tools
        self._known = known
        self._rng = np.random.default_rng([seed, 5])

    def task_accuracy(
        self, rollout: Sequence[Rollout], log_metric: Callable[[str, float], None], **_: Any
    ) -> list[float]:
        """The accuracy reward as the arm's judge gives it."""
        right = np.array([grade(r.task, r.answer) for r in rollout])
        form = torch.tensor([is_well_formed([turn.text for turn in r.turns]) for r in rollout])
        calls = np.array([r.tool_calls for r in rollout])
        verdicts = right ^ (self._rng.random(len(right)) < self._arm.flipped)
        rewards = accuracy_rewards(torch.from_numpy(verdicts), form)
        self.steps.append(self._seen([r.task.id for r in rollout], right, verdicts, calls))
        return (rewards + self._arm.bonus / (1 + torch.from_numpy(calls))).tolist()

    def _seen(
        self, ids: Sequence[str], right: np.ndarray, verdicts: np.ndarray, calls: np.ndarray
    ) -> dict[str, Any]:
        """Counts of a step: calls by need among rollouts with tools, and what Q looks like."""
        offered = np.arange(len(ids)) % self._group < self._with_tools
        solvable = np.array([self._known[i]["solvable"] for i in ids])
        called = calls > 0
        q = verdicts.reshape(-1, self._group)
        calls_in_q = np.where(q, calls.reshape(-1, self._group), -1)
        differing = [len({c for c in row if c >= 0}) > 1 for row in calls_in_q.tolist()]
        return {
            "solvable": int((offered & solvable).sum()),
            "redundant": int((offered & solvable & called).sum()),
            "unsolvable": int((offered & ~solvable).sum()),
            "necessary": int((offered & ~solvable & called).sum()),
            "right": float(right[offered].mean()),
            "q": float(q.sum(axis=1).mean()),
            "signal": float(np.mean(differing)),
            "mixed": float(np.mean([0 < row.sum() < self._group for row in q])),
        }
