"""Choosing tokens from logits.

Legend: N rows of logits, M conversations, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, searchsorted, zeros_like

from toolwise.agent.engine import Sampling


def choose(
    logits_NV: Tensor, row_M: Sequence[int], noise_M: Tensor | None, sampling: Sampling
) -> tuple[list[int], list[float]]:
    """Choose a token for each conversation.

    Args:
        logits_NV: minus infinity where a token must not be written.
        row_M: the row each conversation is in.
        noise_M: uniform on [0, 1), float64; None is greedy.
        sampling: temperature and nucleus.

    Returns:
        Tokens, and their log-probabilities under the distribution they are from, [M] each.
    """
    if noise_M is None:
        logprobs_NV = logits_NV.log_softmax(-1)
        token_M = logprobs_NV.argmax(-1)[row_M]
    else:
        logprobs_NV = (logits_NV / sampling.temperature).log_softmax(-1)
        if sampling.top_p < 1:
            logprobs_NV = _nucleus(logprobs_NV, sampling.top_p)
        # In float64 the product stays below the total, and a token without mass is never hit.
        mass_MV = logprobs_NV.double().exp().cumsum(-1)[row_M]
        token_M = searchsorted(mass_MV, (noise_M * mass_MV[:, -1])[:, None], right=True)[:, 0]
    return token_M.tolist(), logprobs_NV[row_M, token_M].tolist()


def _nucleus(logprobs_NV: Tensor, top_p: float) -> Tensor:
    """Keep the smallest set of tokens whose mass reaches `top_p`, renormalised."""
    ordered_NV, order_NV = logprobs_NV.sort(dim=-1, descending=True)
    outside_NV = ordered_NV.exp().cumsum(-1) - ordered_NV.exp() >= top_p
    drop_NV = zeros_like(outside_NV).scatter(1, order_NV, outside_NV)
    return logprobs_NV.masked_fill(drop_NV, float("-inf")).log_softmax(-1)
