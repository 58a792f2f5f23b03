"""Rendered conversations to the tensors a Qwen-VL model trains on.

Legend: B conversations, L the longest one's tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from toolwise.agent.mrope import mrope_positions
from toolwise.agent.rendering import RenderedConversation, Renderer
from toolwise.data import encode_image

IGNORED = -100
"""Label of a token the loss does not count."""

_WHITE = encode_image(Image.new("RGB", (64, 64), "white"))


def collate(conversations: Sequence[RenderedConversation], renderer: Renderer) -> dict[str, Tensor]:
    """Pad on the right; labels are the ids where the assistant wrote, `IGNORED` elsewhere.

    Positions are worked out here, once, where transformers would loop over the batch at every
    forward pass.

    Returns:
        `input_ids`, `attention_mask`, `labels` [B, L], `position_ids` [3, B, L], and
        `pixel_values`, `image_grid_thw` where there are images.
    """
    shape = (len(conversations), max(len(c.ids) for c in conversations))
    ids_BL = torch.full(shape, renderer.end_id)
    attention_BL = torch.zeros(shape, dtype=torch.long)
    labels_BL = torch.full(shape, IGNORED)
    position_3BL = torch.zeros((3, *shape), dtype=torch.long)
    pixels = []
    for row, conversation in enumerate(conversations):
        length = len(conversation.ids)
        ids = torch.tensor(conversation.ids)
        images = [renderer.pixels(image) for image in conversation.images]
        pixels += images
        ids_BL[row, :length] = ids
        attention_BL[row, :length] = 1
        wrote = torch.tensor(conversation.mask, dtype=torch.bool)
        labels_BL[row, :length] = torch.where(wrote, ids, IGNORED)
        positions, _ = mrope_positions(
            conversation.ids, [p.grid for p in images], 0, renderer.image_id, renderer.merge_size
        )
        position_3BL[:, row, :length] = positions
    batch = {
        "input_ids": ids_BL,
        "attention_mask": attention_BL,
        "labels": labels_BL,
        "position_ids": position_3BL,
    }
    if pixels:
        batch["pixel_values"] = torch.cat([p.values for p in pixels])
        batch["image_grid_thw"] = torch.tensor([p.grid for p in pixels])
    return batch


def blank(renderer: Renderer) -> RenderedConversation:
    """A picture that nobody says anything about: beside it, the vision encoder has work to do."""
    t, h, w = renderer.pixels(_WHITE).grid
    ids = [renderer.image_id] * (t * h * w // renderer.merge_size**2) + [renderer.end_id]
    return RenderedConversation(ids, [0] * len(ids), (_WHITE,))
