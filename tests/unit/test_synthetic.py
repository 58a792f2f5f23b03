"""The signboard environment: what is asked can be answered, and by construction only so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from toolwise.agent.processor import load_processor
from toolwise.agent.rendering import Renderer
from toolwise.data import decode_image, grade
from toolwise.data.parquet import read_tasks, read_trajectories
from toolwise.synthetic import arithmetic, facts, perception
from toolwise.synthetic.digits import ScanSplit, scans
from toolwise.synthetic.environment import (
    ABILITIES,
    PHRASES,
    Environment,
    SignboardSettings,
    make_environment,
    write_signboard,
)
from toolwise.synthetic.model import VIEW, build_model, build_processor
from toolwise.synthetic.perception import Size
from toolwise.synthetic.trajectories import Flaw
from toolwise.tools.python import PYTHON_SCHEMA
from toolwise.tools.text_search import TEXT_SEARCH_SCHEMA

SMALL = SignboardSettings(trajectories=300, rl_tasks=60, benchmark_items=120, corpus_distractors=10)


@pytest.fixture(scope="module")
def environment() -> Environment:
    return make_environment(0, SMALL)


def test_a_seed_makes_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("again", 3), ("other", 4)):
        write_signboard(tmp_path / name, seed, SMALL)
    first = (tmp_path / "one" / "corpus.jsonl").read_text()
    assert first == (tmp_path / "again" / "corpus.jsonl").read_text()
    assert first != (tmp_path / "other" / "corpus.jsonl").read_text()
    tasks = [read_tasks(tmp_path / n / "benchmark.parquet") for n in ("one", "again", "other")]
    assert tasks[0] == tasks[1]
    assert tasks[0] != tasks[2]


def test_what_is_written_is_what_was_made(tmp_path: Path, environment: Environment) -> None:
    write_signboard(tmp_path / "data", 0, SMALL)
    assert list(read_trajectories(tmp_path / "data" / "raw_trajectories.parquet")) == (
        environment.trajectories
    )
    assert read_tasks(tmp_path / "data" / "rl_tasks.parquet") == environment.rl_tasks


def test_no_scan_of_the_benchmark_is_seen_in_training() -> None:
    train, held_out = scans(ScanSplit.TRAIN), scans(ScanSplit.BENCHMARK)
    for digit in range(10):
        seen = {image.tobytes() for image in train[digit]}
        assert not seen & {image.tobytes() for image in held_out[digit]}
    # 1,399 of 1,797 scans agree with 15 neighbours; of the 275 held out, 250 with 20.
    assert [sum(map(len, split.values())) for split in (train, held_out)] == [1124, 250]


def test_drawn_questions_are_not_shared_between_splits(environment: Environment) -> None:
    def hard(tasks) -> set[str]:
        return {t.question for t in tasks if t.metadata["needs_tool"] and t.ability != "perception"}

    training = hard(t.task for t in environment.trajectories) | hard(environment.rl_tasks)
    assert hard(environment.benchmark)
    assert not training & hard(environment.benchmark)


@pytest.mark.parametrize("size", list(Size))
def test_a_digit_has_the_pixels_its_size_promises(size: Size) -> None:
    rng = np.random.default_rng(0)
    in_view = perception.CELL[size] / 3 * np.array(perception.FILL[size]) * VIEW / perception.SCENE
    expected = {Size.LARGE: (13, 15.4), Size.BORDERLINE: (4.3, 5.2), Size.DETAIL: (3.4, 4.3)}[size]
    assert expected[0] <= in_view[0] < in_view[1] <= expected[1]
    scene = perception.draw_scene(size, ScanSplit.TRAIN, rng)
    left, top, right, bottom = scene.box
    assert right - left == bottom - top == perception.CELL[size]


def test_the_sign_stands_in_its_box() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        scene = perception.draw_scene(Size.DETAIL, ScanSplit.TRAIN, rng)
        pixels = np.asarray(scene.image).astype(int)
        paper = (np.abs(pixels - pixels[0, 0]).sum(-1) > 60) & (pixels.mean(-1) > 170)
        if not paper.any():  # the sign covers the corner whose colour stood for the wall
            continue
        rows, columns = np.nonzero(paper)
        left, top, right, bottom = scene.box
        slack = perception.CELL[Size.DETAIL] // 3 // 16
        assert left - slack <= columns.min()
        assert columns.max() < right + slack
        assert top - slack <= rows.min()
        assert rows.max() < bottom + slack


def test_arithmetic_is_right() -> None:
    assert arithmetic.value("347+586") == "933"
    assert arithmetic.value("23*47") == "1081"
    assert len(set(arithmetic.easy_expressions())) == 100


def test_every_search_answer_stands_in_the_corpus(tmp_path: Path, environment: Environment) -> None:
    write_signboard(tmp_path / "data", 0, SMALL)
    lines = (tmp_path / "data" / "corpus.jsonl").read_text().splitlines()
    passages = {row["title"]: row["text"] for row in map(json.loads, lines)}
    for task in environment.benchmark:
        if task.ability == "search":
            assert task.answer[0] in passages[task.metadata["subject"]]


def test_facts_that_change_say_so_and_the_others_do_not() -> None:
    rng = np.random.default_rng(0)
    for fact in (facts.STILL[0], facts.changing_fact(rng)):
        for _ in range(10):
            question = facts.search_task("x", fact, rng).question
            assert ("s of today" in question) == fact.changes


def test_half_of_each_ability_needs_its_tool(environment: Environment) -> None:
    for ability in ABILITIES:
        needs = [t.metadata["needs_tool"] for t in environment.benchmark if t.ability == ability]
        decided = [need for need in needs if need is not None]
        assert len(decided) >= 0.8 * len(needs)
        assert abs(sum(decided) - len(decided) / 2) <= 0.15 * len(decided)


def test_raw_trajectories_mostly_call_tools_and_carry_every_flaw(environment: Environment) -> None:
    offered = [t for t in environment.trajectories if t.task.metadata.get("tools") != "none"]
    assert sum(t.tool_calls > 0 for t in offered) > 0.9 * len(offered)
    needless = [t for t in offered if t.tool_calls and t.task.metadata["needs_tool"] is False]
    assert len(needless) > 0.25 * len(offered)
    found = {t.task.metadata["flaw"] for t in offered if "flaw" in t.task.metadata}
    assert found == {flaw.value for flaw in Flaw}


def test_a_flawless_trajectory_shows_the_crop_of_its_box_and_answers_right(
    environment: Environment,
) -> None:
    crops = 0
    for trajectory in environment.trajectories:
        task = trajectory.task
        if "flaw" in task.metadata:
            continue
        last = trajectory.messages[-1]["content"]
        assert grade(task, last.removeprefix("<answer>").removesuffix("</answer>"))
        if task.ability == "perception" and trajectory.tool_calls:
            shown = decode_image(trajectory.messages[2]["content"][0]["image"])
            left, top, right, bottom = task.metadata["box"]
            crop = decode_image(task.images[0]).crop((left, top, right, bottom))
            assert shown.tobytes() == crop.tobytes()
            crops += 1
    assert crops > 20


def test_the_tiny_checkpoint_is_a_normal_one(tmp_path: Path, environment: Environment) -> None:
    from transformers import AutoModelForImageTextToText, Qwen3VLForConditionalGeneration

    processor = build_processor([PYTHON_SCHEMA, TEXT_SEARCH_SCHEMA], PHRASES)
    model = build_model(processor.tokenizer)
    assert 0.9e6 < sum(p.numel() for p in model.parameters()) < 3e6
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert isinstance(loaded, Qwen3VLForConditionalGeneration)
    again = load_processor(tmp_path)
    for task in environment.benchmark[:6]:
        text = f"{task.question} <answer>{task.answer[0]}</answer>"
        ids = again.tokenizer(text)["input_ids"]
        assert ids == processor.tokenizer(text)["input_ids"]
        assert again.tokenizer.decode(ids) == text


def test_a_tool_trajectory_of_the_tiny_tokenizer_fits_its_context(
    environment: Environment,
) -> None:
    renderer = Renderer(build_processor([PYTHON_SCHEMA, TEXT_SEARCH_SCHEMA], PHRASES))
    schemas = [PYTHON_SCHEMA, TEXT_SEARCH_SCHEMA]
    lengths = [
        len(renderer.conversation(t.messages, schemas).ids) for t in environment.trajectories
    ]
    assert max(lengths) < 200
