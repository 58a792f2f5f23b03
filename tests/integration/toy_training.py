"""A tiny model taught a few trajectories: rollouts with calls, shown images and answers."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from toolwise.data import Message, Task, Trajectory, encode_image
from toolwise.data.parquet import write_trajectories
from toolwise.synthetic.model import build_model, build_processor
from toolwise.tools.python import PYTHON_SCHEMA
from toolwise.training.settings import SftSettings
from toolwise.training.sft import train_sft

RED, BLUE = (encode_image(Image.new("RGB", (96, 64), colour)) for colour in ("red", "blue"))

TASKS = [
    Task("red", "toy", "perception", "colour?", ("red",), images=(RED,)),
    Task("blue", "toy", "perception", "colour?", ("blue",), images=(BLUE,)),
    Task("sum", "toy", "math", "sum?", ("7",)),
    Task("none", "toy", "math", "sum?", ("7",), metadata={"tools": "none"}),
]


def question(task: Task) -> Message:
    images = [{"type": "image", "image": image} for image in task.images]
    return {"role": "user", "content": [*images, {"type": "text", "text": task.question}]}


def call(code: str) -> Message:
    function = {"name": "python", "arguments": {"code": code}}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "call_0", "type": "function", "function": function}],
    }


def result(*parts: dict[str, object]) -> Message:
    return {"role": "tool", "tool_call_id": "call_0", "content": list(parts)}


def answer(text: str) -> Message:
    return {"role": "assistant", "content": f"<answer>{text}</answer>"}


def trajectories() -> list[Trajectory]:
    """One with a tool image per colour, one with printed text, one without tools; the same twice,
    without a call, where the tools are on."""
    red, blue, total, free = TASKS
    shown = [
        Trajectory(task, (question(task), call("show(image)"), result(image), answer(task.id)))
        for task, image in (
            (red, {"type": "image", "image": RED}),
            (blue, {"type": "image", "image": BLUE}),
        )
    ]
    printed = [call("print(7)"), result({"type": "text", "text": "7"}), answer("7")]
    direct = [Trajectory(t, (question(t), answer(t.answer[0]))) for t in (red, blue, total, free)]
    return [*shown, Trajectory(total, (question(total), *printed)), *direct]


def write_base(folder: Path) -> Path:
    """An untrained checkpoint."""
    processor = build_processor([PYTHON_SCHEMA])
    build_model(processor.tokenizer).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def cold_start(folder: Path, steps: int = 60) -> Path:
    """A checkpoint that calls or answers at about even odds, and mostly rightly."""
    torch.set_num_threads(1)
    base, data = write_base(folder / "base"), folder / "trajectories.parquet"
    write_trajectories(data, trajectories() * 4)
    settings = SftSettings(steps=steps, batch_size=14, learning_rate=2e-3, warmup_steps=5)
    train_sft(base, data, folder / "sft", settings, tools=[PYTHON_SCHEMA])
    return folder / "sft"
