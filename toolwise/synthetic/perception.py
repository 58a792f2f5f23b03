"""Perception: read the number on a sign, which may be large, borderline, or a tiny detail.

A 288×288 scene is shown to the model as a 48×48 view. A large sign, with about 14 pixels a digit,
can be read there at once. A detail, with about four, stands in one cell of a 3×3 grid and can be
read only after `python` has cropped that cell, which the view then enlarges three times.
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


CELL = {Size.LARGE: SCENE, Size.BORDERLINE: SCENE // 3, Size.DETAIL: SCENE // 3}
"""Side of the cell a sign stands in, in scene pixels; a digit stands in a third of that."""
FILL = {Size.LARGE: (0.82, 0.96), Size.BORDERLINE: (0.82, 0.96), Size.DETAIL: (0.66, 0.80)}
"""Height of a digit as a share of its third, from and up to."""

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
    left = box[0] + cell // 3 * int(rng.integers(0, 2))
    top = box[1] + cell // 3 * int(rng.integers(0, 3))
    image = _wall(rng)
    _write(image, [number], (left, top), size, split, rng)
    return Scene(image, number, size, box)


def draw_page(split: ScanSplit, rng: np.random.Generator) -> Scene:
    """A page of three numbers of three digits, as large as a large sign's (base stage only)."""
    rows = ["".join(map(str, rng.integers(0, 10, 3))) for _ in range(3)]
    image = _wall(rng)
    _write(image, rows, (0, 0), Size.LARGE, split, rng)
    return Scene(image, " ".join(rows), Size.LARGE, (0, 0, SCENE, SCENE))


def _wall(rng: np.random.Generator) -> Image.Image:
    return Image.new("RGB", (SCENE, SCENE), tuple(map(int, rng.integers(90, 160, 3))))


def _write(
    image: Image.Image,
    rows: list[str],
    corner: tuple[int, int],
    size: Size,
    split: ScanSplit,
    rng: np.random.Generator,
) -> None:
    """Put up a sign with these rows of digits, one unit square a digit, slightly out of place."""
    paper, ink = (tuple(map(int, rng.integers(*span, 3))) for span in ((185, 256), (0, 70)))
    unit = CELL[size] // 3
    slack = unit // 16
    left, top = (at + int(rng.integers(-slack, slack + 1)) for at in corner)
    right, bottom = left + unit * len(rows[0]), top + unit * len(rows)
    ImageDraw.Draw(image).rectangle((left, top, right - 1, bottom - 1), paper)
    for row, digits in enumerate(rows):
        for column, digit in enumerate(digits):
            side = round(unit * rng.uniform(*FILL[size]))
            margin = (unit - side) // 2
            mask = draw_digit(int(digit), side, split, rng)
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
