"""The arms: every way of training that is compared, by regime."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from bench.hdpo.scale import Scale
from toolwise.training.settings import HdpoSettings

Start = Literal["mild", "early", "reflex"]
"""The cold start. `mild` is the demo's SFT model: nearly always right, and it abstains at times.
`early` has been trained for less long, so that groups mix right and wrong. After `reflex` hardly
any rollout abstains."""


@dataclass(frozen=True)
class Arm:
    """One way of training.

    Args:
        regime: arms of one regime differ in the method only.
        name: of the method.
        changes: to the study's training settings.
        start: checkpoint trained from.
        flipped: share of verdicts on answers that the judge turns round.
        bonus: reward of 1/(T+1) times this, paid whether the answer is right or not.
        longer: times the study's steps.
    """

    regime: str
    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    start: Start = "mild"
    flipped: float = 0.0
    bonus: float = 0.0
    longer: int = 1

    @property
    def label(self) -> str:
        return f"{self.regime}: {self.name}"

    def settings(self, scale: Scale) -> HdpoSettings:
        """How it is trained: the demo's settings at the study's size."""
        common = {
            "steps": self.longer * scale.steps,
            "prompts_per_step": scale.prompts_per_step,
            "num_generations": scale.num_generations,
            "freeze_vision": True,
            "learning_rate": 1.5e-4,
            "aggregation": "rollout",
            "max_tokens": 32,
        }
        return HdpoSettings(**{**common, **self.changes})


def arms() -> Iterator[Arm]:
    """Every arm of the study."""
    main = "main"
    for w_tool in (0.05, 0.1, 0.15, 0.2, 0.3):
        yield Arm(main, f"hdpo {w_tool}", {"w_tool": w_tool})
    yield Arm(main, "grpo", {"variant": "grpo"})
    for alpha in (0.05, 0.1, 0.3, 1.0):
        yield Arm(main, f"coupled {alpha}", {"variant": "coupled", "alpha": alpha})
    yield Arm(main, "hdpo 0.15, tool-free 2", {"tool_free": 2})
    uncorrected = {"tool_free": 2, "tool_free_correction": False}
    yield Arm(main, "hdpo 0.15, tool-free 2 uncorrected", uncorrected)
    yield Arm(main, "hdpo 0.15, difficulty-aware", {"difficulty_aware": True})
    eapo = {"variant": "eapo", "alpha": 0.5}
    yield Arm(main, "eapo 0.5", eapo)
    yield Arm(main, "hdpo 0.15, token mean", {"aggregation": "token"})
    yield Arm(main, "hdpo 0.15, over all", {"efficiency_normalize": "group"})
    over_all_tokens = {"aggregation": "token", "efficiency_normalize": "group"}
    yield Arm(main, "hdpo 0.15, token mean over all", over_all_tokens)

    longer = "three times as long"
    yield Arm(longer, "hdpo 0.15", longer=3)
    yield Arm(longer, "hdpo 0.3", {"w_tool": 0.3}, longer=3)
    for alpha in (0.1, 1.0):
        yield Arm(longer, f"coupled {alpha}", {"variant": "coupled", "alpha": alpha}, longer=3)

    mixed = "groups mix right and wrong"
    yield Arm(mixed, "hdpo 0.15", start="early")
    yield Arm(mixed, "hdpo 0.3", {"w_tool": 0.3}, start="early")
    yield Arm(mixed, "grpo", {"variant": "grpo"}, start="early")
    for alpha in (0.1, 0.3, 1.0):
        yield Arm(mixed, f"coupled {alpha}", {"variant": "coupled", "alpha": alpha}, start="early")

    hard = "never abstains"
    yield Arm(hard, "hdpo 0.15", start="reflex")
    yield Arm(hard, "coupled 0.3", {"variant": "coupled", "alpha": 0.3}, start="reflex")
    yield Arm(hard, "hdpo 0.15, tool-free 2", {"tool_free": 2}, start="reflex")
    yield Arm(hard, "hdpo 0.15, tool-free 2 uncorrected", uncorrected, start="reflex")
    yield Arm(hard, "eapo 0.5", eapo, start="reflex")
    biased = "eapo 0.5, tool-free 2 uncorrected"
    yield Arm(hard, biased, {**eapo, **uncorrected}, start="reflex")
    for name, changes in (
        ("hdpo 0.3", {"w_tool": 0.3}),
        ("hdpo 0.15, tool-free 2 uncorrected", uncorrected),
        (biased, {**eapo, **uncorrected}),
    ):
        yield Arm(f"{hard}, {longer}", name, changes, start="reflex", longer=3)

    for flipped, alphas in ((0.05, (0.1,)), (0.15, (0.1, 1.0))):
        noisy = f"judge wrong in {flipped:.0%}"
        yield Arm(noisy, "hdpo 0.15", flipped=flipped)
        yield Arm(noisy, "hdpo 0.3", {"w_tool": 0.3}, flipped=flipped)
        for alpha in alphas:
            coupled = {"variant": "coupled", "alpha": alpha}
            yield Arm(noisy, f"coupled {alpha}", coupled, flipped=flipped)

    unconditional = "bonus paid to wrong answers too"
    yield Arm(unconditional, "coupled 0.1", {"variant": "grpo"}, bonus=0.1)
    yield Arm(unconditional, "coupled 1.0", {"variant": "grpo"}, bonus=1.0)
