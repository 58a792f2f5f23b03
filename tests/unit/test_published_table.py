"""The paper's tables: its figures as published, and one's own beside them, told apart."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from toolwise.errors import InputError
from toolwise.evaluation.benchmarks import benchmark_names, published
from toolwise.evaluation.metrics import RolloutScore, summarise
from toolwise.report.published import (
    Line,
    headings,
    lines,
    markdown,
    print_published,
    published_figures,
    read_evaluation,
)

PERCEPTION, REASONING = published_figures().tables


def evaluation(
    folder: Path, benchmark: str, correct: list[bool], score: float, model: str | None = "mine"
) -> Path:
    """A folder as `evaluate` leaves it, of greedy answers with a call where they are wrong."""
    rows = [
        RolloutScore(str(i), "math", "greedy", 0, right, int(not right), 0, 10, 1.0, 0.0, "x")
        for i, right in enumerate(correct)
    ]
    metrics = {
        "greedy": summarise(rows, "greedy"),
        "published": {
            "name": benchmark,
            "title": benchmark.title(),
            "figures": {"score": score},
            "scored_by": {"rule": len(rows)},
        },
        **({"model": {"base_url": "http://x/v1", "model": model}} if model else {}),
    }
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def by_model(shown: list[Line]) -> dict[str, Line]:
    return {line.cells[0]: line for line in shown}


def test_the_columns_are_benchmarks_there_are():
    for table in published_figures().tables:
        for column in table.columns:
            assert column.benchmark in benchmark_names()
            assert published(column.benchmark) is not None


def test_the_rows_asked_for_are_there_with_the_papers_figures():
    rows = by_model(list(lines(PERCEPTION, [])))
    assert headings(PERCEPTION)[:4] == ["V*Bench", "HR4K", "HR8K", "TreeBench"]
    assert rows["Metis"].cells[1:] == (
        *("91.1", "83.5", "82.0", "45.2"),
        *("70.3", "72.5", "83.4", "54.1"),
    )
    assert rows["Skywork-R1V4-30B-A3B"].cells[1:] == (
        *("88.0", "82.8", "79.8", "–"),
        *("71.4", "–", "–", "–"),
    )
    assert {"Qwen3-VL-8B-Instruct", "DeepEyesV2", "Thyme", "Mini-o3", "SenseNova-MARS-8B"} < set(
        rows
    )
    assert not any(line.measured for line in rows.values())


def test_the_average_of_a_full_row_is_the_one_the_paper_prints():
    rows = by_model(list(lines(REASONING, [])))
    averages = {model: line.cells[-1] for model, line in rows.items() if line.cells[-1] != "–"}
    assert averages == {
        "Qwen2.5-VL-7B-Instruct": "49.5",
        "Qwen3-VL-8B-Instruct": "59.4",
        "DeepEyes": "51.8",
        "DeepEyesV2": "53.7",
        "Metis": "66.9",
    }


def test_ones_own_row_has_its_interval_and_is_marked(tmp_path: Path):
    # 2 of 3: Wilson's 95% interval is 0.2077 … 0.9385.
    own = read_evaluation(evaluation(tmp_path / "v", "vstar", [True, True, False], 2 / 3))
    [line] = [line for line in lines(PERCEPTION, [own]) if line.measured]
    assert line.cells == ("mine", "66.7 [20.8, 93.9]", *["–"] * 7)
    assert list(lines(REASONING, [own])) == list(lines(REASONING, []))
    text = markdown([own])
    assert (
        "| mine | 66.7 [20.8, 93.9] | – | – | – | – | – | – | – | measured with Toolwise |" in text
    )
    assert "| Metis | 91.1 |" in text
    assert "published, not measured here |" in text
    assert published_figures().source in text
    tools = next(row for row in text.splitlines() if row.startswith("| mine | Vstar |"))
    assert "0.67 [0.21, 0.94] | 0.33 [0.06, 0.79] | – |" in tools
    assert tools.endswith("| rule 3 |")


def test_a_score_that_is_no_share_of_right_answers_has_no_interval(tmp_path: Path):
    folders = [
        evaluation(tmp_path / name, name, [True, False], 0.25)
        for name in ("mathvista", "mathverse", "wemath", "dynamath", "logicvista")
    ]
    shown = by_model(list(lines(REASONING, [read_evaluation(folder) for folder in folders])))
    assert shown["mine"].cells == ("mine", *["25.0"] * 6)


def test_a_checkpoints_name_is_the_folder_its_evaluations_lie_in(tmp_path: Path):
    folder = evaluation(tmp_path / "sft-2" / "vstar", "vstar", [True], 1.0, model=None)
    assert read_evaluation(folder).model == "sft-2"


def test_two_evaluations_of_one_model_on_one_benchmark_are_refused(tmp_path: Path):
    twice = [
        read_evaluation(evaluation(tmp_path / name, "vstar", [True], 1.0)) for name in ("a", "b")
    ]
    with pytest.raises(InputError, match="two evaluations are of mine on Vstar"):
        list(lines(PERCEPTION, twice))


def test_what_is_no_evaluation_of_a_published_benchmark_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"metrics\.json cannot be read"):
        read_evaluation(tmp_path)
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(InputError, match="not an evaluation of a published benchmark"):
        read_evaluation(tmp_path)


def test_on_a_terminal_only_what_was_measured_may_be_shown(tmp_path: Path):
    console = Console(width=160, record=True, file=io.StringIO())
    own = read_evaluation(evaluation(tmp_path / "v", "vstar", [True], 1.0))
    print_published([own], console, only_measured=True)
    text = console.export_text()
    assert "V*Bench" in text
    assert "HR4K" not in text
    assert "MathVista" not in text
    assert "100.0 [20.7, 100.0]" in text
