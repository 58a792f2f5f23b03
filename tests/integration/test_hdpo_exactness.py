"""HDPOTrainer's losses, gradients and advantages against TRL's trainer and the pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from recorded_rollouts import (
    PROMPTS,
    G,
    GRPOOnRecords,
    arguments,
    assert_same_gradients,
    base_model,
    load,
    loss_and_gradients,
    on_records,
    right,
    scored,
)
from transformers import set_seed
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from toolwise.agent import Rollout
from toolwise.agent.processor import load_processor
from toolwise.data import Task
from toolwise.training.hdpo import HDPOConfig, HDPOTrainer, hdpo_advantages, hdpo_loss
from toolwise.training.hdpo.advantages import Scale
from toolwise.training.hdpo.rewards import efficiency_rewards

B = len(PROMPTS) * G
CALLS = torch.tensor([0, 0, 1, 2] * len(PROMPTS))
RIGHT = torch.tensor([1, 0, 1, 1] * 3 + [1, 0, 1, 0])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_model(tmp_path_factory.mktemp("exactness"))


def off_policy(trainer: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """The batch as if another policy had sampled it, so that ratios are not 1 and clips bind."""
    mask = batch["completion_mask"] * batch["tool_mask"]
    with torch.no_grad():
        logps, _ = trainer.record_logps(trainer.model, batch["records"], mask.shape[1])
    shift = torch.linspace(-0.6, 0.6, mask.numel()).view_as(mask)
    return {**batch, "old_per_token_logps": logps + shift * mask}


class TestWithoutTheEfficiencyChannel:
    """w_tool = 0."""

    @pytest.fixture(scope="class")
    def trainers(self, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
        """TRL's trainer and ours, both with TRL's generation."""

        def length(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
            return [float(sum(ids) % 7) for ids in completion_ids]

        settings = arguments(tmp_path_factory.mktemp("trl"), prompts=2, max_completion_length=6)
        prompts = [[{"role": "user", "content": text}] for text in ("sum?", "colour?")]
        return [
            kind(
                model=load(base),
                reward_funcs=length,
                args=args,
                processing_class=load_processor(base),
                train_dataset=Dataset.from_dict({"prompt": prompts}),
            )
            for kind, args in (
                (GRPOTrainer, GRPOConfig(**settings)),
                (HDPOTrainer, HDPOConfig(**settings, w_tool=0.0)),
            )
        ]

    @pytest.mark.parametrize(
        ("loss_type", "scale_rewards", "level"),
        [
            *[(kind, "group", "token") for kind in ("dapo", "grpo", "bnpo", "dr_grpo", "luspo")],
            *[(kind, "group", "token") for kind in ("cispo", "sapo", "vespo")],
            ("dapo", "batch", "token"),
            ("grpo", "none", "token"),
            ("grpo", "group", "sequence"),
        ],
    )
    def test_loss_and_every_gradient_are_grpo_trainers_to_the_bit(
        self, trainers: Any, loss_type: str, scale_rewards: str, level: str
    ) -> None:
        found = []
        for trainer in trainers:
            trainer.loss_type = trainer.args.loss_type = loss_type
            trainer.scale_rewards = scale_rewards
            trainer.importance_sampling_level = level
            trainer.current_gradient_accumulation_steps = 1
            trainer.model.train()
            set_seed(1)
            rows = [{"prompt": [{"role": "user", "content": t}]} for t in ("sum?", "colour?")]
            batch = trainer._generate_and_score_completions([r for r in rows for _ in range(G)])
            logps = torch.zeros(batch["completion_mask"].shape) - 5.6
            batch["old_per_token_logps"] = logps  # about that of an untrained model: some clip
            found.append((batch["advantages"], *loss_and_gradients(trainer, batch)))
        theirs, ours = found
        assert theirs[0].any()
        assert torch.equal(ours[0], theirs[0])
        assert ours[1] == theirs[1]
        assert ours[2].keys() == theirs[2].keys()
        for name, gradient in theirs[2].items():
            assert torch.equal(ours[2][name], gradient), name

    @pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo"])
    def test_on_the_agent_loops_rollouts_they_are_grpo_trainers(
        self, base: Path, tmp_path: Path, loss_type: str
    ) -> None:
        # The same rollouts, with images that tools showed, through TRL's own forward pass. It pads
        # where ours does not, so that sums are rounded differently.
        theirs = GRPOOnRecords.build(base, tmp_path, loss_type=loss_type)
        ours = on_records(base, tmp_path, loss_type=loss_type, w_tool=0.0)
        their_batch, batch = scored(theirs), scored(ours)
        assert "pixel_values" in their_batch
        assert torch.equal(batch["advantages"], their_batch["advantages"])
        loss, gradients = loss_and_gradients(ours, batch)
        their_loss, their_gradients = loss_and_gradients(theirs, their_batch)
        assert loss == pytest.approx(their_loss, abs=1e-6)
        assert_same_gradients(their_gradients, gradients)


class TestTheTwoChannels:
    @pytest.mark.parametrize(
        ("settings", "expected"),
        [
            ({"loss_type": "dapo"}, {"aggregation": "token"}),
            ({"loss_type": "grpo"}, {"aggregation": "rollout"}),
            ({"loss_type": "bnpo"}, {"aggregation": "token"}),
            (
                {"loss_type": "grpo", "importance_sampling_level": "sequence"},
                {"aggregation": "rollout", "level": "sequence"},
            ),
        ],
    )
    def test_loss_and_gradients_are_those_of_hdpo_loss(
        self, base: Path, tmp_path: Path, settings: dict[str, str], expected: dict[str, Any]
    ) -> None:
        trainer = on_records(base, tmp_path, w_acc=0.7, w_tool=0.4, delta=3.0, **settings)
        batch = off_policy(trainer, scored(trainer))
        found, through_trainer = loss_and_gradients(trainer, batch)
        mask = batch["completion_mask"] * batch["tool_mask"]
        logps, _ = trainer.record_logps(trainer.model, batch["records"], mask.shape[1])
        loss = hdpo_loss(
            logps,
            batch["old_per_token_logps"],
            batch["advantages"],
            batch["efficiency_advantages"],
            mask,
            w_acc=0.7,
            w_tool=0.4,
            **expected,
        )
        loss.loss.backward()
        gradients = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
        assert abs(loss.efficiency.item()) > 1e-3
        assert found == pytest.approx(loss.loss.item(), abs=1e-6)
        logged = [trainer._metrics["train"][f"loss/{c}"][-1] for c in ("accuracy", "efficiency")]
        assert logged == pytest.approx([loss.accuracy.item(), loss.efficiency.item()], abs=1e-6)
        # Rows without a signal were left out of the trainer's forward pass, not out of the mean.
        assert_same_gradients(gradients, through_trainer)

    def test_dr_grpo_divides_by_the_longest_completion_there_may_be(
        self, base: Path, tmp_path: Path
    ) -> None:
        changes = {"w_acc": 0.0, "w_tool": 1.0, "max_completion_length": 50}
        found = {}
        for loss_type in ("dapo", "dr_grpo"):
            trainer = on_records(base, tmp_path, loss_type=loss_type, **changes)
            batch = off_policy(trainer, scored(trainer))
            found[loss_type] = loss_and_gradients(trainer, batch)[0]
        mask = batch["completion_mask"] * batch["tool_mask"]
        qualifying = batch["efficiency_advantages"] != 0
        tokens = mask[qualifying].sum().item()
        expected = found["dapo"] * tokens / (qualifying.sum().item() * 50)
        assert found["dr_grpo"] == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("scale", ["group", "batch", "none"])
    def test_scale_rewards_holds_for_both(self, base: Path, tmp_path: Path, scale: Scale) -> None:
        trainer = on_records(base, tmp_path, scale_rewards=scale)
        batch = scored(trainer)
        efficiency = efficiency_rewards(RIGHT, CALLS)
        expected = hdpo_advantages(RIGHT.float(), efficiency, RIGHT, G, scale=scale)
        torch.testing.assert_close(batch["efficiency_advantages"], expected.efficiency)
        theirs = hdpo_advantages(RIGHT.float(), efficiency, RIGHT, G, eps=1e-4, scale=scale)
        torch.testing.assert_close(batch["advantages"], theirs.accuracy)

    def test_in_later_epochs_on_a_batch_they_are_not_one_mixed_advantage(
        self, base: Path, tmp_path: Path
    ) -> None:
        # Three updates from one batch of rollouts, at a learning rate that makes clips bind.
        trainer = on_records(
            base, tmp_path, num_iterations=3, max_steps=3, learning_rate=3e-3, w_tool=0.5, delta=3.0
        )
        seen = []
        compute = trainer._compute_loss

        def computed(model: Any, batch: dict[str, Any]) -> torch.Tensor:
            mask = batch["completion_mask"] * batch["tool_mask"]
            with torch.no_grad():
                logps, _ = trainer.record_logps(model, batch["records"], mask.shape[1])
            accuracy, efficiency = batch["advantages"], batch["efficiency_advantages"]
            # One surrogate that has the same gradient on policy: both averaged over all tokens.
            share = mask.sum() / mask[efficiency != 0].sum()
            mixed = accuracy + 0.5 * share * efficiency
            losses = [
                hdpo_loss(logps, batch["old_per_token_logps"], a, e, mask, w_tool=0.5).loss.item()
                for a, e in ((accuracy, efficiency), (mixed, 0 * efficiency))
            ]
            loss = compute(model, batch)
            seen.append((loss.item(), *losses))
            return loss

        trainer._compute_loss = computed  # type: ignore[method-assign]
        trainer.train()
        assert len(seen) == 3
        for loss, two, _ in seen:
            assert loss == pytest.approx(two, abs=1e-5)
        first, *later = [abs(two - one) for _, two, one in seen]
        assert first < 1e-5
        assert max(later) > 1e-2

    def test_a_kl_term_takes_the_reference_through_the_same_forward_pass(
        self, base: Path, tmp_path: Path
    ) -> None:
        trainer = on_records(base, tmp_path, beta=0.5)
        batch = scored(trainer)
        before, _ = loss_and_gradients(trainer, batch)
        assert trainer._metrics["train"]["kl"] == [pytest.approx(0.0, abs=1e-6)]
        with torch.no_grad():
            trainer.model.get_input_embeddings().weight.mul_(1.3)
        loss_and_gradients(trainer, batch)
        assert trainer._metrics["train"]["kl"][1] > 1e-3
        without = on_records(base, tmp_path)
        assert loss_and_gradients(without, scored(without))[0] == pytest.approx(before, abs=1e-6)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"loss_type": "cispo"},
            {"top_entropy_quantile": 0.5},
            {"off_policy_mask_threshold": 0.5},
        ],
    )
    def test_what_only_one_channel_could_follow_is_refused(
        self, tmp_path: Path, wrong: dict[str, Any]
    ) -> None:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            HDPOConfig(**arguments(tmp_path, **wrong))
        HDPOConfig(**arguments(tmp_path, **wrong), w_tool=0.0)


class TestARolloutWhoseJudgeFailed:
    UNJUDGED = torch.arange(B) % G == 0

    @pytest.mark.parametrize("missing", [None, float("nan")])
    @pytest.mark.parametrize("formatted", [False, True], ids=["alone", "beside another reward"])
    def test_is_in_neither_channel_and_not_counted_as_wrong(
        self, base: Path, tmp_path: Path, missing: float | None, formatted: bool
    ) -> None:
        def judge(rollout: Any, **_: Any) -> list[float | None]:
            judged = zip(right(rollout), self.UNJUDGED.tolist(), strict=True)
            return [missing if failed else value for value, failed in judged]

        def form(rollout: Any, **_: Any) -> list[float]:
            return [0.1] * len(rollout)

        trainer = on_records(base, tmp_path, reward=[judge, form] if formatted else judge)
        batch = scored(trainer)
        assert not batch["advantages"][self.UNJUDGED].any()
        assert not batch["efficiency_advantages"][self.UNJUDGED].any()
        # Those left are compared among themselves: wrong, right with one call, right with two.
        left = hdpo_advantages(
            RIGHT[~self.UNJUDGED].float(),
            efficiency_rewards(RIGHT, CALLS)[~self.UNJUDGED],
            RIGHT[~self.UNJUDGED],
            3,
        )
        efficiency = batch["efficiency_advantages"][~self.UNJUDGED]
        torch.testing.assert_close(efficiency, left.efficiency)
        advantages = batch["advantages"][~self.UNJUDGED]
        torch.testing.assert_close(advantages, left.accuracy, atol=1e-3, rtol=0)
        (accuracy,) = trainer._metrics["train"]["accuracy"]
        assert accuracy == pytest.approx(7 / 12)  # of those judged
        assert trainer._metrics["train"]["judge_failures"] == [pytest.approx(0.25)]


class TestAJudgeThatFails:
    """Beside a function that always has a reward, the format's."""

    @staticmethod
    def format(rollout: Sequence[Rollout], **_: Any) -> list[float | None]:
        return [0.1] * len(rollout)

    @staticmethod
    def without(missing: float | None, prompts: Sequence[Task]) -> Any:
        """The judge, which says so of these prompts."""

        def judge(rollout: Sequence[Rollout], **_: Any) -> list[float | None]:
            verdicts = right(rollout)
            return [
                missing if r.task in prompts else v for r, v in zip(rollout, verdicts, strict=True)
            ]

        async def judge_asynchronously(**given: Any) -> list[float | None]:
            return judge(**given)

        return judge, judge_asynchronously

    @pytest.mark.parametrize("asynchronous", [False, True])
    def test_an_outage_takes_whole_groups_out_of_both_channels_and_counts_none_as_wrong(
        self, base: Path, tmp_path: Path, asynchronous: bool
    ) -> None:
        judge = self.without(float("nan"), PROMPTS[:2])[asynchronous]
        trainer: Any = on_records(base, tmp_path, reward=[judge, self.format])
        batch = scored(trainer)
        metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
        assert metrics["judge_failures"] == 0.5
        assert metrics["accuracy"] == RIGHT[2 * G :].float().mean()
        assert metrics["missed_call_rate"] == pytest.approx(2 / 8)
        for name in ("advantages", "efficiency_advantages"):
            assert not batch[name][: 2 * G].any()
            assert batch[name][2 * G :].any()

    def test_one_that_fails_everywhere_leaves_nothing_to_learn_and_no_rate(
        self, base: Path, tmp_path: Path
    ) -> None:
        judge, _ = self.without(float("nan"), PROMPTS)
        trainer: Any = on_records(base, tmp_path, reward=[judge, self.format])
        batch = scored(trainer)
        assert trainer._metrics["train"]["judge_failures"] == [1.0]
        assert math.isnan(trainer._metrics["train"]["accuracy"][-1])
        assert not batch["advantages"].any()
        assert not batch["efficiency_advantages"].any()

    def test_one_that_does_not_apply_leaves_the_reward_to_the_others(
        self, base: Path, tmp_path: Path
    ) -> None:
        judge, _ = self.without(None, PROMPTS[:2])
        trainer: Any = on_records(base, tmp_path, reward=[judge, self.format], correct_above=0.05)
        scored(trainer)
        assert trainer._metrics["train"]["judge_failures"] == [0.0]
        assert trainer._metrics["train"]["accuracy"] == [1.0]


def test_w_acc_weighs_the_accuracy_channel_and_not_the_kl_term(base: Path, tmp_path: Path) -> None:
    found = {}
    for w_acc in (1.0, 0.5):
        for part in ("both", "kl"):
            trainer: Any = on_records(
                base, tmp_path, beta=0.5, w_acc=w_acc, w_tool=0.0, loss_type="grpo"
            )
            batch = off_policy(trainer, scored(trainer))
            batch["ref_per_token_logps"] = batch["ref_per_token_logps"] - 0.3
            if part == "kl":
                batch["advantages"] = torch.zeros_like(batch["advantages"])
            found[w_acc, part], _ = loss_and_gradients(trainer, batch)
    assert found[0.5, "kl"] == pytest.approx(found[1.0, "kl"], rel=1e-6)
    whole, half = (found[w, "both"] - found[w, "kl"] for w in (1.0, 0.5))
    assert abs(whole) > 1e-3
    assert half == pytest.approx(0.5 * whole, rel=1e-3)


def test_the_accuracy_loss_is_logged_as_if_it_had_its_whole_weight(
    base: Path, tmp_path: Path
) -> None:
    logged = []
    for w_acc in (1.0, 0.5, 0.0):
        trainer: Any = on_records(base, tmp_path, beta=0.5, w_acc=w_acc, loss_type="grpo")
        loss_and_gradients(trainer, off_policy(trainer, scored(trainer)))
        logged += trainer._metrics["train"]["loss/accuracy"]
    assert logged == [pytest.approx(logged[0], abs=1e-6)] * 3
    assert abs(logged[0]) > 1e-3


@pytest.mark.parametrize(
    "setting",
    [
        {"top_k": 20},
        {"min_p": 0.1},
        {"repetition_penalty": 1.1},
        {"generation_kwargs": {"no_repeat_ngram_size": 3}},
    ],
)
def test_decoding_that_the_agent_loop_does_not_do_is_refused(
    base: Path, tmp_path: Path, setting: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(setting))} is a setting of TRL's generation"):
        on_records(base, tmp_path, **setting)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"variant": "coupled", "multi_objective_aggregation": "normalize_then_sum"},
            "multi_objective_aggregation cannot be 'normalize_then_sum'",
        ),
        (
            {"variant": "eapo", "multi_objective_aggregation": "normalize_then_sum"},
            "multi_objective_aggregation cannot be 'normalize_then_sum'",
        ),
        ({"tool_free": 1, "top_p": 0.9}, "set top_p=1"),
    ],
)
def test_settings_that_would_be_without_effect_or_biased_are_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        HDPOConfig(**arguments(tmp_path, **settings))
