"""The forward pass over rollouts of the agent loop, whose tools may have shown images.

B: rollouts of a batch. T: completion tokens, padded to the longest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from toolwise.agent import TokenRecord
from toolwise.agent.rendering import RenderedConversation, Renderer
from toolwise.training.batching import blank, collate


class RecordScores(NamedTuple):
    """What the policy thinks of the tokens it wrote, each [B, T], 0 elsewhere."""

    logps: Tensor
    entropies: Tensor


def score_records(
    model: Any,
    records: Sequence[TokenRecord],
    width: int,
    renderer: Renderer,
    *,
    device: torch.device,
    suppressed_ids: Sequence[int] = (),
    rows: Sequence[int] | None = None,
    most: int | None = None,
    in_step: bool = False,
) -> RecordScores:
    """Log-probabilities and entropies of the records' completions.

    Args:
        model: the policy (or a reference), with TRL's fused head.
        records: B conversations.
        width: T.
        renderer: preprocesses their images.
        device: where the model is.
        suppressed_ids: tokens that are no part of the distribution.
        rows: those to compute, None for all; the others keep what was sampled, without a
            gradient (minus which is an estimate of the entropy).
        most: conversations of one forward pass; any number where not given.
        in_step: for several processes, which must all do the same: no splitting by length, for
            DDP takes one forward pass per backward pass, and the vision encoder runs even where
            no row has an image, or the others would wait for its gradients.
    """
    sampled = torch.zeros(len(records), width)
    for row, record in enumerate(records):
        sampled[row, : len(record.logprobs)] = torch.tensor(record.logprobs)
    logps_BT, entropies_BT = sampled.to(device), -sampled.to(device)
    lengths = [len(r.prompt_ids) + len(r.completion_ids) for r in records]
    if rows is None:
        rows = range(len(records))
    elif not rows:  # the loss needs a graph all the same
        rows = [lengths.index(min(lengths))]
    most = most or len(rows)
    for chunk in _in_order(rows, most) if in_step else _similar_lengths(rows, lengths, most):
        conversations = [_conversation(records[row]) for row in chunk]
        if in_step and not any(conversation.images for conversation in conversations):
            conversations.append(blank(renderer))
        batch = collate(conversations, renderer)
        with _suppressed(model, suppressed_ids):
            output = model(**{k: v.to(device) for k, v in batch.items()}, fused_lm_head=True)
        scored = output.label_mask[: len(chunk)]
        columns = [torch.tensor(records[row].mask).nonzero().flatten() for row in chunk]
        index = (
            torch.tensor(chunk, device=device).repeat_interleave(scored.sum(dim=1)),
            torch.cat(columns).to(device),
        )
        logps_BT = logps_BT.index_put(index, output.log_probs[: len(chunk)][scored].float())
        if output.entropy is not None:  # a reference has none
            entropy = output.entropy[: len(chunk)][scored].float()
            entropies_BT = entropies_BT.index_put(index, entropy)
    return RecordScores(logps_BT, entropies_BT)


def _conversation(record: TokenRecord) -> RenderedConversation:
    return RenderedConversation(
        [*record.prompt_ids, *record.completion_ids],
        [*([0] * len(record.prompt_ids)), *record.mask],
        record.images,
    )


def _in_order(rows: Sequence[int], most: int) -> Iterator[list[int]]:
    """Rows in as many chunks wherever there are as many rows."""
    for start in range(0, len(rows), most):
        yield list(rows[start : start + most])


def _similar_lengths(rows: Sequence[int], lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Rows in chunks that pad little: none shorter than two thirds of its chunk's longest."""
    chunk: list[int] = []
    for row in sorted(rows, key=lambda row: -lengths[row]):
        if chunk and (len(chunk) == most or 3 * lengths[row] < 2 * lengths[chunk[0]]):
            yield chunk
            chunk = []
        chunk.append(row)
    yield chunk


@contextmanager
def _suppressed(model: Any, ids: Sequence[int]) -> Iterator[None]:
    """Leave tokens out of the distribution, by a bias on the head while the block runs."""
    head = getattr(model, "module", model).get_output_embeddings()
    if not ids or head.bias is not None:
        yield
        return
    bias = torch.zeros(head.weight.shape[0], dtype=head.weight.dtype, device=head.weight.device)
    bias[list(ids)] = -1e4
    head.bias = nn.Parameter(bias, requires_grad=False)
    try:
        yield
    finally:
        head.bias = None
