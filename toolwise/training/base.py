"""The base stage: teach the tiny model to answer directly, and nothing about tools.

It stands for the pretraining of a published model. Afterwards the model reads large signs, does
one-digit arithmetic and knows the facts that stand still; it also reads pages, finds signs, repeats
strings and reads a value off a passage, which is what using a tool's result will take.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import reduce
from PIL import Image
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils.data import DataLoader, IterableDataset

from toolwise.agent.rendering import RenderedConversation, Renderer
from toolwise.data import Message
from toolwise.progress import Log, Progress
from toolwise.storage import atomic_directory
from toolwise.synthetic import arithmetic, facts, perception
from toolwise.synthetic.digits import ScanSplit
from toolwise.synthetic.environment import PHRASES
from toolwise.synthetic.model import VIEW, build_model, build_processor
from toolwise.synthetic.perception import Size
from toolwise.synthetic.settings import BaseStageSettings
from toolwise.tools.python import PYTHON_SCHEMA
from toolwise.tools.text_search import TEXT_SEARCH_SCHEMA
from toolwise.training.batching import IGNORED, collate
from toolwise.training.resuming import per_device

# Each lesson's share of a batch.
_LESSONS = {
    "page": 0.18,
    "sign": 0.22,
    "where": 0.15,
    "math": 0.15,
    "fact": 0.11,
    "repeat": 0.10,
    "passage": 0.09,
}
_QUESTIONS = ("sign", "math", "fact")
"""Lessons that are questions of the environment: asked half the time with tools on offer."""
_SCHEMAS = (PYTHON_SCHEMA, TEXT_SEARCH_SCHEMA)
LABEL_SMOOTHING = 0.008
"""Leaves the model about as unsure of what it knows as published base models are: right nearly
always when greedy, not in all of eight samples. An infallible base model would leave curation no
needless call to keep, and so no reflex to cure."""


def train_base(
    out_dir: Path,
    seed: int,
    settings: BaseStageSettings,
    *,
    log: Log | None = None,
    progress: Progress | None = None,
) -> None:
    """Train the tiny model from scratch and write it as a Hugging Face checkpoint.

    The loss is the cross-entropy of the answer's tokens. Processes of a group share the lessons of
    a step. The same seed and number of processes give the same model.
    """
    torch.set_flush_denormal(True)
    torch.manual_seed(seed)
    # Matrices this small gain little from a second thread, and lose much on a busy machine.
    torch.set_num_threads(1)
    group = PartialState(cpu=True)
    processor = build_processor(_SCHEMAS, PHRASES)
    model = build_model(processor.tokenizer, seed=seed).train()
    lessons = _Lessons(
        Renderer(processor),
        per_device(settings.batch_size),
        np.random.default_rng([seed, 48, group.process_index]),
    )
    # A worker draws and renders while the model trains.
    stream = iter(DataLoader(lessons, batch_size=None, num_workers=1, prefetch_factor=4))
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: _warm_hold_decay(step, settings.steps)
    )
    for step in range(settings.steps):
        sums = torch.zeros(2)
        for batch in next(stream):
            labels = batch.pop("labels")[:, 1:]
            logits = model(**batch).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1),
                labels.flatten(),
                reduction="sum",
                label_smoothing=LABEL_SMOOTHING,
            )
            loss.backward()
            sums += torch.stack([loss.detach(), (labels != IGNORED).sum()])
        mean = _mean_over_group(model, sums)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
        if log and step % 10 == 9:
            log({"loss": mean}, step + 1)
        if progress:
            progress(step + 1, settings.steps, f"loss {mean:.3f}")
    if group.is_main_process:
        with atomic_directory(out_dir) as folder:
            model.eval().save_pretrained(folder)
            processor.save_pretrained(folder)


def _mean_over_group(model: torch.nn.Module, sums: torch.Tensor) -> float:
    """Make every process's gradients those of the group's mean loss, and return that.

    Args:
        model: with gradients of this process's summed loss.
        sums: [2], that loss and the tokens it counts.
    """
    for parameter in model.parameters():  # a process without images has none for the encoder
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients: Any = [parameter.grad for parameter in model.parameters()]
    # At once: each meeting of the processes waits for the slower one.
    everything = torch.cat([parameters_to_vector(gradients), sums])
    everything = cast(torch.Tensor, reduce(everything, "sum"))
    total, count = everything[-2:].tolist()
    vector_to_parameters(everything[:-2] / count, gradients)
    return total / count


def _warm_hold_decay(step: int, steps: int, warm_up: int = 50, hold: float = 0.65) -> float:
    """Linear warm-up, then the full learning rate, then a linear fall to 1% of it."""
    fall = max(0.0, step / steps - hold) / (1 - hold)
    return min(1.0, (step + 1) / warm_up) * (1 - 0.99 * fall)


class _Lessons(IterableDataset[list[dict[str, torch.Tensor]]]):
    """An endless stream of batches, each in two parts: short and long conversations."""

    def __init__(self, renderer: Renderer, batch_size: int, rng: np.random.Generator) -> None:
        self._renderer = renderer
        self._batch_size = batch_size
        self._rng = rng

    def __iter__(self) -> Iterator[list[dict[str, torch.Tensor]]]:
        torch.set_num_threads(1)
        names, shares = list(_LESSONS), list(_LESSONS.values())
        while True:
            drawn = self._rng.choice(names, size=self._batch_size, p=shares)
            conversations = [
                self._renderer.conversation(self._lesson(name), self._tools(name)) for name in drawn
            ]
            yield [collate(part, self._renderer) for part in _short_and_long(conversations)]

    def _tools(self, name: str) -> Sequence[dict[str, Any]]:
        """The tools a lesson's prompt offers, though none of them is ever called here."""
        return _SCHEMAS if name in _QUESTIONS and self._rng.random() < 0.5 else ()

    def _lesson(self, name: str) -> list[Message]:
        rng = self._rng
        match name:
            case "page":
                scene = perception.draw_page(ScanSplit.TRAIN, rng)
                return _ask(perception.PAGE_QUESTION, scene.number, scene.image)
            case "sign":
                size = list(Size)[int(rng.integers(len(Size)))]
                scene = perception.draw_scene(size, ScanSplit.TRAIN, rng)
                image = scene.image.crop(scene.box)
                return _ask(perception.QUESTION, scene.number, image)
            case "where":
                size = list(Size)[int(rng.choice(3, p=(0.1, 0.3, 0.6)))]
                scene = perception.draw_scene(size, ScanSplit.TRAIN, rng)
                box = ", ".join(map(str, scene.box))
                return _ask(perception.WHERE_QUESTION, box, scene.image)
            case "math":
                task = arithmetic.math_task("", False, rng)
                return _ask(task.question, task.answer[0])
            case "fact":
                fact = facts.STILL[int(rng.integers(len(facts.STILL)))]
                task = facts.search_task("", fact, rng)
                return _ask(task.question, task.answer[0])
            case "repeat":
                still = facts.STILL[int(rng.integers(len(facts.STILL)))]
                texts = (
                    arithmetic.hard_expression(rng),
                    facts.changing_fact(rng).query,
                    still.query,
                )
                text = texts[int(rng.choice(3, p=(0.4, 0.4, 0.2)))]
                return _ask(f"Repeat: {text}", text)
            case _:
                fact = facts.changing_fact(rng)
                task = facts.search_task("", fact, rng)
                return _ask(f"{fact.passage}\n{task.question}", fact.value)


def _short_and_long(
    conversations: Sequence[RenderedConversation],
) -> Iterator[list[RenderedConversation]]:
    """The conversations in two parts, cut where that leaves the least padding."""
    rising = sorted(conversations, key=lambda c: len(c.ids))
    longest = len(rising[-1].ids)
    spared = [n * (longest - len(rising[n - 1].ids)) for n in range(1, len(rising) + 1)]
    cut = 1 + spared.index(max(spared))
    return (part for part in (rising[:cut], rising[cut:]) if part)


def _ask(question: str, answer: str, image: Image.Image | None = None) -> list[Message]:
    parts = []
    if image is not None:
        # As the image processor would: packing and unpacking the whole scene costs more.
        view = image.resize((VIEW, VIEW), Image.Resampling.BICUBIC)
        data = io.BytesIO()
        view.save(data, format="BMP")
        parts = [{"type": "image", "image": data.getvalue()}]
    return [
        {"role": "user", "content": [*parts, {"type": "text", "text": question}]},
        {"role": "assistant", "content": f"<answer>{answer}</answer>"},
    ]
