"""Qwen-VL's multimodal rotary positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def mrope_positions(
    ids: Sequence[int],
    grids: Sequence[tuple[int, int, int]],
    start: int,
    image_id: int,
    merge: int,
) -> tuple[Tensor, int]:
    """Qwen-VL's multimodal rotary positions, continued from `start`.

    Text advances all three axes by one; an image of t·h·w merged patches gets (time, row, column)
    offsets and advances them by max(h, w).

    Returns:
        Positions [3, len(ids)], and the position after the last token.
    """
    columns: list[Tensor] = []
    position, index, remaining = start, 0, iter(grids)
    while index < len(ids):
        if ids[index] == image_id:
            frames, height, width = next(remaining)
            height, width = height // merge, width // merge
            t, h, w = torch.meshgrid(
                torch.arange(frames), torch.arange(height), torch.arange(width), indexing="ij"
            )
            columns.append(torch.stack([t, h, w]).reshape(3, -1) + position)
            index += frames * height * width
            position += max(height, width)
        else:
            end = index
            while end < len(ids) and ids[end] != image_id:
                end += 1
            columns.append(torch.arange(position, position + end - index).expand(3, -1))
            position += end - index
            index = end
    return torch.cat(columns, dim=1), position
