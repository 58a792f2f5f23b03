"""Perception: read the number on a sign, which may be large, borderline, or a tiny detail.

A 288×288 scene is shown to the model as a 48×48 view. A sign stands somewhere in one cell of the
scene and is as large in its cell's view as a large one is in the scene's: a large sign, with 16
pixels a digit, can be read at once, a detail, with four, only after `python` has cropped its cell.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from toolwise.data import Task, encode_image
from toolwise.synthetic.digits import ScanSplit, draw_digit

SCENE = 288


class Size(StrEnum):
    """How large the number is in the view."""

    LARGE = "large"
    BORDERLINE = "borderline"
    DETAIL = "detail"


CELL = {Size.LARGE: SCENE, Size.BORDERLINE: SCENE // 2, Size.DETAIL: SCENE // 4}
"""Side of the cell a sign stands in, in scene pixels."""
UNITS = 3
"""A digit is written in a square of a third of its cell's side."""

QUESTION = "What number is on the sign?"
PAGE_QUESTION = "Read the page."
WHERE_QUESTION = "Where is the sign?"


class Scene(NamedTuple):
    """A rendered sign.

    `box` is the cell the sign stands in: left, top, right, bottom in scene pixels.
    """

    image: Image.Image
    number: str
    size: Size
    box: tuple[int, int, int, int]


def draw_scene(size: Size, split: ScanSplit, rng: np.random.Generator) -> Scene:
    """Render one sign with a number (10–99) at random colours and place."""
    number = str(rng.integers(10, 100))
    cell = CELL[size]
    column, row = map(int, rng.integers(0, SCENE // cell, 2))
    box = (column * cell, row * cell, (column + 1) * cell, (row + 1) * cell)
    unit = cell // UNITS
    left = box[0] + unit * int(rng.integers(0, UNITS - 1))
    top = box[1] + unit * int(rng.integers(0, UNITS))
    image = _wall(rng)
    _write(image, [number], (left, top), unit, split, rng)
    return Scene(image, number, size, box)


def draw_page(split: ScanSplit, rng: np.random.Generator) -> Scene:
    """A page of three numbers of three digits, as large as a large sign's (base stage only)."""
    rows = ["".join(map(str, rng.integers(0, 10, 3))) for _ in range(3)]
    image = _wall(rng)
    _write(image, rows, (0, 0), SCENE // UNITS, split, rng)
    return Scene(image, " ".join(rows), Size.LARGE, (0, 0, SCENE, SCENE))


def _wall(rng: np.random.Generator) -> Image.Image:
    return Image.new("RGB", (SCENE, SCENE), tuple(map(int, rng.integers(90, 160, 3))))


def _write(
    image: Image.Image,
    rows: list[str],
    corner: tuple[int, int],
    unit: int,
    split: ScanSplit,
    rng: np.random.Generator,
) -> None:
    """Put up a sign with these rows of digits, one unit square a digit, slightly out of place."""
    paper, ink = (tuple(map(int, rng.integers(*span, 3))) for span in ((185, 256), (0, 70)))
    slack = unit // 16
    left, top = (at + int(rng.integers(-slack, slack + 1)) for at in corner)
    right, bottom = left + unit * len(rows[0]), top + unit * len(rows)
    ImageDraw.Draw(image).rectangle((left, top, right - 1, bottom - 1), paper)
    for row, digits in enumerate(rows):
        for column, digit in enumerate(digits):
            size = int(rng.integers(round(0.82 * unit), round(0.96 * unit) + 1))
            margin = (unit - size) // 2
            mask = draw_digit(int(digit), size, split, rng)
            at = (left + column * unit + margin, top + row * unit + margin)
            image.paste(ink, at, mask)


def crop_code(box: tuple[int, int, int, int]) -> str:
    """The python call that shows one part of the picture."""
    return "show(image.crop(({}, {}, {}, {})))".format(*box)


def perception_task(task_id: str, size: Size, split: ScanSplit, rng: np.random.Generator) -> Task:
    """One question about a sign; `metadata` says by construction whether it needs a crop."""
    scene = draw_scene(size, split, rng)
    return Task(
        id=task_id,
        source="signboard",
        ability="perception",
        question=QUESTION,
        answer=(scene.number,),
        images=(encode_image(scene.image),),
        metadata={
            "needs_tool": {Size.LARGE: False, Size.DETAIL: True}.get(size),
            "size": size.value,
            "box": list(scene.box),
        },
    )
