"""Draw docs/architecture.svg: `python -m docs.architecture`."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).with_name("architecture.svg")
WIDTH, HEIGHT = 1180, 690
LINE = 17
"""Height of a line of text."""


class Zone(NamedTuple):
    """A part of the system, and what installs or runs it."""

    x: int
    y: int
    width: int
    height: int
    title: str
    by: str
    colour: str


class Box(NamedTuple):
    """One thing that runs; lines of text, the first one its name."""

    x: int
    y: int
    width: int
    height: int
    lines: tuple[str, ...]


class Arrow(NamedTuple):
    """Who asks whom: corners of a line, and what for, written at a place."""

    corners: tuple[tuple[int, int], ...]
    label: str = ""
    at: tuple[int, int] = (0, 0)
    both: bool = False


ZONES = (
    Zone(20, 60, 180, 250, "Your machine", "", "#eef2f7"),
    Zone(230, 60, 680, 120, "Pipeline", "Kubeflow Pipelines", "#e6f0fb"),
    Zone(230, 260, 330, 150, "Training", "Kubeflow Trainer, k8s/", "#fdf0dc"),
    Zone(590, 260, 320, 150, "Endpoint", "KServe, k8s/", "#e5f5e8"),
    Zone(230, 510, 680, 150, "Services", "charts/toolwise", "#f3eafa"),
)

STEPS = ("prepare data", "curate", "SFT", "curate", "HDPO", "evaluate", "gate", "deploy")

BOXES = (
    Box(35, 95, 150, 50, ("make images", "five images")),
    Box(35, 160, 150, 60, ("helm install", "kubectl apply -k", "services, runtimes")),
    Box(35, 235, 150, 60, ("toolwise submit", "compiles, checks,", "starts, follows")),
    *(Box(245 + 82 * n, 105, 72, 55, tuple(name.split())) for n, name in enumerate(STEPS)),
    Box(245, 300, 145, 90, ("TrainJob", "torchrun on", "nodes × GPUs,", "agent loop inside")),
    Box(440, 300, 105, 90, ("vLLM", "rollouts, with", "the weights of", "each step")),
    Box(605, 300, 130, 90, ("agent", "runs tools,", "gives the", "final answer")),
    Box(790, 300, 105, 90, ("vLLM", "the promoted", "checkpoint")),
    Box(
        245,
        550,
        200,
        90,
        ("MLflow, PostgreSQL", "runs, metrics, traces,", "model registry:", "champion, previous"),
    ),
    Box(470, 550, 200, 90, ("sandbox", "runs what models write,", "in gVisor;", "reaches nothing")),
    Box(695, 550, 200, 90, ("SearXNG", "text_search;", "reaches the web,", "no private address")),
    Box(
        960,
        60,
        190,
        120,
        (
            "S3",
            "data and corpus,",
            "what trainings are",
            "handed and leave,",
            "published models,",
            "MLflow's artifacts",
        ),
    ),
    Box(960, 300, 110, 90, ("gateway", "names, TLS")),
    Box(960, 550, 190, 90, ("clients", "OpenAI's", "chat completions")),
)

ARROWS = (
    Arrow(((185, 250), (215, 250), (215, 130), (230, 130)), "run", (203, 122)),
    Arrow(
        ((445, 160), (445, 215), (317, 215), (317, 300)), "creates and follows a job", (327, 235)
    ),
    Arrow(((609, 160), (609, 215), (445, 215))),
    Arrow(((390, 345), (440, 345)), "", both=True),
    Arrow(((855, 160), (855, 215), (670, 215), (670, 300)), "applies, waits, asks", (680, 208)),
    Arrow(((735, 345), (790, 345)), "turns", (747, 337)),
    Arrow(((960, 345), (925, 345), (925, 435), (575, 435), (575, 345), (605, 345))),
    Arrow(((1015, 550), (1015, 390)), "questions", (1022, 480)),
    Arrow(((910, 120), (960, 120)), "", both=True),
    Arrow(((895, 325), (940, 325), (940, 235), (1015, 235), (1015, 180)), "model", (948, 229)),
    Arrow(
        ((280, 390), (280, 455), (1110, 455), (1110, 180)),
        "inputs, checkpoints",
        (390, 449),
        both=True,
    ),
    Arrow(
        ((262, 180), (262, 240), (222, 240), (222, 595), (245, 595)),
        "metrics, traces",
        (130, 480),
    ),
    Arrow(((375, 390), (375, 480), (530, 480), (530, 550)), "code", (537, 500)),
    Arrow(((640, 390), (640, 550)), "code", (606, 500)),
    Arrow(((700, 390), (700, 480), (795, 480), (795, 550)), "queries", (802, 500)),
)


def drawing() -> str:
    """The picture as SVG, the same every time."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" font-family="Helvetica, Arial, sans-serif" '
        'font-size="13" role="img" aria-label="How the parts of Toolwise talk to each other">',
        '<defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto-start-reverse"><path d="M0,0 L8,4 L0,8 z" fill="#44546a"/>'
        "</marker></defs>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(20, 34, "Toolwise on Kubernetes", 'font-size="20" font-weight="bold"'),
        *(line for zone in ZONES for line in _zone(zone)),
        *(line for arrow in ARROWS for line in _arrow(arrow)),
        *(line for box in BOXES for line in _box(box)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _zone(zone: Zone) -> Iterator[str]:
    yield (
        f'<rect x="{zone.x}" y="{zone.y}" width="{zone.width}" height="{zone.height}" rx="10" '
        f'fill="{zone.colour}"/>'
    )
    yield _text(zone.x + 15, zone.y + 23, zone.title, 'font-weight="bold" fill="#44546a"')
    right = zone.x + zone.width - 15
    yield _text(right, zone.y + 23, zone.by, 'font-size="12" fill="#44546a" text-anchor="end"')


def _box(box: Box) -> Iterator[str]:
    yield (
        f'<rect x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}" rx="6" '
        'fill="#ffffff" stroke="#8496b0"/>'
    )
    middle = box.x + box.width // 2
    top = box.y + (box.height - LINE * len(box.lines)) // 2 + 13
    for number, line in enumerate(box.lines):
        weight = 'font-weight="bold" ' if number == 0 else 'fill="#44546a" '
        yield _text(middle, top + LINE * number, line, f'{weight}text-anchor="middle"')


def _arrow(arrow: Arrow) -> Iterator[str]:
    points = " ".join(f"{x},{y}" for x, y in arrow.corners)
    start = ' marker-start="url(#head)"' if arrow.both else ""
    yield (
        f'<polyline points="{points}" fill="none" stroke="#44546a" stroke-width="1.4"'
        f'{start} marker-end="url(#head)"/>'
    )
    if arrow.label:
        yield _text(*arrow.at, arrow.label, 'font-size="12" font-style="italic" fill="#44546a"')


def _text(x: int, y: int, words: str, style: str) -> str:
    return f'<text x="{x}" y="{y}" {style}>{escape(words)}</text>'


if __name__ == "__main__":
    FILE.write_text(drawing(), encoding="utf-8")
    print(f"wrote {FILE}")
