"""HDPO's loss against values worked out by hand, and its properties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolwise.training.hdpo import hdpo_loss
from toolwise.training.hdpo.loss import surrogate

# Two rollouts of three tokens; the second wrote only two, its last column is padding.
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])
OLD = torch.zeros(2, 3)
# Ratios new/old: 1, 1.5, 0.5 and 2, 1, (padding).
LOGPS = torch.tensor([[1.0, 1.5, 0.5], [2.0, 1.0, 9.0]]).log()
ACC = torch.tensor([1.0, -1.0])
EFF = torch.tensor([0.5, 0.0])


def values(**changes: object) -> tuple[float, float, float]:
    arguments = {"logps": LOGPS, "old_logps": OLD, "mask": MASK}
    arguments |= {"accuracy_advantages": ACC, "efficiency_advantages": EFF}
    found = hdpo_loss(**(arguments | changes))  # type: ignore[arg-type]
    return found.loss.item(), found.accuracy.item(), found.efficiency.item()


def test_token_mean_of_both_surrogates() -> None:
    # Clip to [0.8, 1.2]. A = 1, ratios 1, 1.5, 0.5: −min(1, 1)= −1, −min(1.5, 1.2) = −1.2,
    # −min(0.5, 0.8) = −0.5. A = −1, ratios 2, 1: max(2, 1.2) = 2, max(1, 1) = 1.
    # Accuracy: (−1 − 1.2 − 0.5 + 2 + 1)/5 = 0.06.
    # Efficiency: A = 0.5 on the first rollout only: (−0.5 − 0.6 − 0.25)/3 = −0.45.
    # Loss: 0.06 + 0.15·(−0.45) = −0.0075.
    assert values() == pytest.approx((-0.0075, 0.06, -0.45), abs=1e-6)


def test_group_normalisation_averages_efficiency_over_all_tokens() -> None:
    # (−0.5 − 0.6 − 0.25)/5 = −0.27; 0.06 + 0.15·(−0.27) = 0.0195.
    assert values(normalize="group") == pytest.approx((0.0195, 0.06, -0.27), abs=1e-6)


def test_rollout_mean_gives_every_rollout_the_same_weight() -> None:
    # Accuracy: mean of −2.7/3 = −0.9 and 3/2 = 1.5 is 0.3. Efficiency: −1.35/3 over one rollout;
    # over both with "group": −0.45/2.
    assert values(aggregation="rollout") == pytest.approx((0.2325, 0.3, -0.45), abs=1e-6)
    found = values(aggregation="rollout", normalize="group")
    assert found == pytest.approx((0.3 - 0.15 * 0.225, 0.3, -0.225), abs=1e-6)


def test_weights_scale_the_channels() -> None:
    # 2·0.06 + 1·(−0.45).
    assert values(w_acc=2.0, w_tool=1.0)[0] == pytest.approx(-0.33, abs=1e-6)
    assert values(w_tool=0.0)[0] == pytest.approx(0.06, abs=1e-6)


def test_clip_bounds_are_separate() -> None:
    # Clip to [0.9, 1.3]: only the ratio 1.5 with A = 1 changes, −1.3 for −1.2; a lower bound binds
    # where A < 0 and the ratio is below it, which none is here: (−2.8 + 3)/5 = 0.04.
    assert values(clip_low=0.1, clip_high=0.3)[1] == pytest.approx(0.04, abs=1e-6)
    # A = −1 and ratio 0.5: max(0.5, 1 − clip_low).
    low = values(accuracy_advantages=torch.tensor([-1.0, 0.0]), clip_low=0.4)
    # Tokens 1, 1.5, max(0.5, 0.6): 3.1/5.
    assert low[1] == pytest.approx(0.62, abs=1e-6)


def test_dual_clip_bounds_the_loss_of_negative_advantages() -> None:
    # Ratio 5 with A = −1 costs 5; with dual_clip = 3 it costs 3. Other tokens: ratio 1, loss ±1.
    logps = torch.tensor([[5.0, 1.0, 1.0], [5.0, 1.0, 1.0]]).log()
    advantages = torch.tensor([-1.0, 1.0])
    # (3 + 1 + 1 − 1.2 − 1)/5 = 0.56, without the bound (5 + 1 + 1 − 1.2 − 1)/5 = 0.96.
    bounded = values(logps=logps, accuracy_advantages=advantages)
    free = values(logps=logps, accuracy_advantages=advantages, dual_clip=None)
    assert bounded[1] == pytest.approx(0.56, abs=1e-6)
    assert free[1] == pytest.approx(0.96, abs=1e-6)


def test_sequence_level_clips_the_geometric_mean_of_a_rollouts_ratios() -> None:
    # (1·1.5·0.5)^(1/3) = 0.908560 and (2·1)^(1/2) = 1.414214. A = 1: −min(0.908560, 0.908560) on
    # three tokens; A = −1: max(1.414214, 1.2) on two. (−2.725680 + 2.828427)/5 = 0.020549.
    # Efficiency: −0.5·0.908560.
    found = values(level="sequence")
    assert found[1:] == pytest.approx((0.020549, -0.454280), abs=1e-6)


def test_off_policy_two_surrogates_are_not_one_of_the_mixed_advantage() -> None:
    # One token, ratio 1.5, A_acc = 1, A_tool = −1. Two surrogates: −min(1.5, 1.2) = −1.2, clipped,
    # without a gradient; and max(1.5, 1.2) = 1.5, whose derivative is 1.5. With w_tool = 0.15:
    # −1.2 + 0.225 = −0.975, derivative 0.225. One surrogate of 1 − 0.15 = 0.85: −0.85·1.2 = −1.02,
    # clipped: it does not push back against the call at all.
    one = torch.ones(1, 1)

    def both(ratio: float) -> tuple[tuple[float, float], tuple[float, float]]:
        found = []
        for arguments in ((one[0], -one[0], 0.15), (0.85 * one[0], 0 * one[0], 0.15)):
            logps = (ratio * one).log().requires_grad_()
            loss = hdpo_loss(logps, 0 * one, *arguments[:2], one, w_tool=arguments[2]).loss
            loss.backward()
            assert logps.grad is not None
            found.append((loss.item(), logps.grad.item()))
        return found[0], found[1]

    decoupled, mixed = both(1.5)
    assert decoupled == pytest.approx((-0.975, 0.225), abs=1e-6)
    assert mixed == pytest.approx((-1.02, 0.0), abs=1e-6)
    # On policy they are the same: −1 + 0.15 = −0.85.
    for one_way in both(1.0):
        assert one_way == pytest.approx((-0.85, -0.85))


def test_gradient_is_the_policy_gradient_on_policy() -> None:
    # At ratio 1 the derivative of −ratio·A is −A per token, over 5 tokens; and −A_tool over the 3
    # tokens that qualify: −1/5 − 0.15·0.5/3 on the first rollout, +1/5 on the second.
    logps = torch.zeros(2, 3, requires_grad=True)
    hdpo_loss(logps, OLD, ACC, EFF, MASK).loss.backward()
    assert logps.grad is not None
    first, second = -1 / 5 - 0.15 * 0.5 / 3, 1 / 5
    expected = torch.tensor([[first] * 3, [second, second, 0.0]])
    assert torch.allclose(logps.grad, expected, atol=1e-7)


def test_no_rollout_qualifies_gives_zero_with_a_gradient_of_zero() -> None:
    logps = LOGPS.clone().requires_grad_()
    found = hdpo_loss(logps, OLD, torch.zeros(2), torch.zeros(2), MASK)
    found.loss.backward()
    assert found.loss.item() == 0.0
    assert logps.grad is not None
    assert not logps.grad.any()


def test_an_empty_mask_gives_zero_and_not_nan() -> None:
    for aggregation in ("token", "rollout"):
        assert values(mask=torch.zeros(2, 3), aggregation=aggregation) == (0.0, 0.0, 0.0)


def test_masked_tokens_have_no_say_even_where_they_are_not_finite() -> None:
    logps = LOGPS.clone()
    logps[1, 2] = -math.inf
    old = OLD.clone()
    old[1, 2] = -math.inf
    assert values(logps=logps, old_logps=old) == pytest.approx(values())
    leaf = logps.requires_grad_()
    hdpo_loss(leaf, old, ACC, EFF, MASK).loss.backward()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("wrong", [{"normalize": "tokens"}, {"aggregation": "mean"}])
def test_unknown_names_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        values(**wrong)


FLOATS = st.floats(-2, 2, width=32, allow_subnormal=False)


@given(
    advantages=st.lists(FLOATS, min_size=4, max_size=4),
    shift=st.floats(-0.5, 0.5, width=32, allow_subnormal=False),
    scale=st.sampled_from([0.5, 2.0, 4.0]),
    order=st.permutations(range(4)),
    aggregation=st.sampled_from(["token", "rollout"]),
)
@settings(max_examples=80, deadline=None)
def test_properties_of_the_loss(
    advantages: list[float], shift: float, scale: float, order: list[int], aggregation: str
) -> None:
    advantage = torch.tensor(advantages)
    old = torch.linspace(-2, -0.1, 20).view(4, 5)
    logps = old + shift * torch.linspace(-1, 1, 20).view(4, 5)
    mask = (torch.arange(5) <= torch.tensor([[4], [0], [2], [3]])).long()
    arguments = (logps, old, advantage, advantage, mask)
    found = hdpo_loss(*arguments, aggregation=aggregation)  # type: ignore[arg-type]

    # Rows may come in any order.
    rows = [tensor[torch.tensor(order)] for tensor in arguments]
    moved = hdpo_loss(*rows, aggregation=aggregation)  # type: ignore[arg-type]
    assert torch.allclose(moved.loss, found.loss, atol=1e-6)

    # The loss is linear in the advantages' scale.
    scaled = hdpo_loss(logps, old, scale * advantage, advantage, mask, aggregation=aggregation)  # type: ignore[arg-type]
    assert torch.allclose(scaled.accuracy, scale * found.accuracy, atol=1e-5)

    # Rollouts without an efficiency signal don't dilute it.
    without = advantage.clone()
    without[1] = 0.0
    kept = torch.tensor([0, 2, 3])
    all_rows = hdpo_loss(logps, old, advantage, without, mask, aggregation=aggregation)  # type: ignore[arg-type]
    few_rows = hdpo_loss(
        *(tensor[kept] for tensor in (logps, old, advantage, without, mask)),
        aggregation=aggregation,  # type: ignore[arg-type]
    )
    assert torch.allclose(all_rows.efficiency, few_rows.efficiency, atol=1e-6)


def test_a_share_of_the_count_below_one_divides_as_any_other() -> None:
    # Two rollouts over four processes: each divides by 2/4, so that the mean of the four is the
    # mean over both.
    zeros = torch.zeros(1, 3)
    found = surrogate(
        zeros,
        zeros,
        torch.ones(1),
        torch.ones(1, 3),
        clip_low=0.2,
        clip_high=0.2,
        dual_clip=None,
        aggregation="rollout",
        count=torch.tensor(0.5),
    )
    assert found.item() == pytest.approx(-2.0)
