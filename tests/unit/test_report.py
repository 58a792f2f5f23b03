"""The report says what the run's own files say, and says so where one is missing."""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Iterator
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from rich.console import Console

from toolwise.curation.report import CurationReport, FilterCount
from toolwise.data import encode_image
from toolwise.errors import InputError
from toolwise.evaluation.metrics import RolloutScore, solvable_items, summarise, write_scores
from toolwise.promotion.gate import GatePolicy, decide
from toolwise.report import build_report, print_report
from toolwise.report.__main__ import main
from toolwise.report.plots import PALETTE, accuracy_against_calls, training_curves
from toolwise.report.readme import results_table

ABILITIES = ("math", "perception", "search")
ITEMS = 40

# Per stage: chance of a call on an item that needs none, on one that needs it, and of being right.
CALL_RATES = {"base": (0.0, 0.0), "sft": (1.0, 1.0), "hdpo": (0.02, 0.98)}


def rollout_scores(stage: str) -> list[RolloutScore]:
    draw = random.Random(stage)
    scores = []
    for ability in ABILITIES:
        for number in range(ITEMS):
            needs_tool = number % 2 == 1
            rows = [("greedy", 0), *(("sampled", k) for k in range(4))]
            rows += [("tools_off", k) for k in range(8)]
            for mode, sample in rows:
                calls = mode != "tools_off" and draw.random() < CALL_RATES[stage][needs_tool]
                slip = mode != "tools_off" and draw.random() < 0.03
                scores.append(
                    RolloutScore(
                        task_id=f"{ability}-{number}",
                        ability=ability,
                        mode=mode,
                        sample=sample,
                        correct=(calls or not needs_tool) and not slip,
                        tool_calls=int(calls),
                        tool_errors=0,
                        completion_tokens=60 if calls else 12,
                        seconds=0.2 if calls else 0.05,
                        tool_seconds=0.01 if calls else 0.0,
                        answer="42",
                    )
                )
    return scores


def sample_rollouts(stage: str, scores: list[RolloutScore]) -> list[dict]:
    """Greedy rollouts of the first four items of each ability, as an evaluation keeps them."""
    return [
        {
            **asdict(row),
            "accepted": [row.answer],
            "messages": messages(row),
        }
        for row in scores
        if row.mode == "greedy" and int(row.task_id.split("-")[1]) < 4
    ]


def messages(row: RolloutScore) -> list[dict]:
    question = {
        "math": [text("What is 347 + 586?")],
        "perception": [picture("37", 288), text("Which number is on the <sign>?")],
        "search": [text("Who is the mayor of Lindholm as of today?")],
    }[row.ability]
    code = {
        "math": {"code": "print(347 + 586)"},
        "perception": {"code": "show(image.crop((96, 96, 192, 192)).resize((288, 288)))"},
        "search": {"query": "mayor Lindholm"},
    }[row.ability]
    result = {
        "math": [text("933")],
        "perception": [picture("37", 96)],
        "search": [text("1. Ada Lindgren has been mayor of Lindholm since May.")],
    }[row.ability]
    name = "text_search" if row.ability == "search" else "python"
    call = {"id": "call_0", "type": "function", "function": {"name": name, "arguments": code}}
    return [
        {"role": "user", "content": question},
        *(
            [
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "call_0", "content": result},
            ]
            if row.tool_calls
            else []
        ),
        {"role": "assistant", "content": f"<answer>{row.answer}</answer>"},
    ]


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def picture(number: str, size: int) -> dict:
    image = Image.new("RGB", (size, size), "#8fb3c9")
    ImageDraw.Draw(image).rectangle((96, 96, 192, 192), fill="white")
    ImageDraw.Draw(image).text((130, 130), number, fill="black")
    data = base64.b64encode(encode_image(image)).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


@pytest.fixture(scope="module", autouse=True)
def commit() -> Iterator[str]:
    """Others may commit while the tests run."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TOOLWISE_GIT_COMMIT", "0123abc")
        yield "0123abc"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files the steps of a run leave behind."""
    root = tmp_path_factory.mktemp("run")
    by_stage = {stage: rollout_scores(stage) for stage in CALL_RATES}
    for stage, scores in by_stage.items():
        (root / stage).mkdir()
        write_scores(root / stage / "scores.jsonl", scores)
        metrics = {
            "greedy": summarise(scores, "greedy"),
            "sampled": summarise(scores, "sampled"),
            "items": len(ABILITIES) * ITEMS,
            "solvable": sum(solvable_items(scores).values()),
        }
        (root / stage / "metrics.json").write_text(json.dumps(metrics))
        (root / stage / "samples.jsonl").write_text(
            "".join(json.dumps(sample) + "\n" for sample in sample_rollouts(stage, scores))
        )
    policy = GatePolicy(redundant_call_rate_max=0.1, necessary_call_rate_min=0.9)
    decide(policy, by_stage["hdpo"], baseline=by_stage["sft"]).write(root / "decision.json")
    for step in ("sft", "rl"):
        curation(step, root / f"curate-{step}")
    draw = random.Random(0)
    (root / "train_log.jsonl").write_text(
        "".join(
            json.dumps(
                {
                    "step": step,
                    "accuracy": 0.9 + 0.05 * draw.random(),
                    "tool_call_rate": 0.5 + 0.5 * 0.95**step + 0.05 * draw.random(),
                    "qualifying/rollouts": 0.5 + 0.1 * draw.random(),
                    "qualifying/groups": 0.7 + 0.1 * draw.random(),
                    "advantage/accuracy": 0.3 * 0.98**step + 0.05 * draw.random(),
                    "advantage/efficiency": 0.4 * 0.95**step + 0.05 * draw.random(),
                }
            )
            + "\n"
            for step in range(1, 81)
        )
    )
    return root


def curation(step: str, directory: Path) -> Path:
    directory.mkdir()
    CurationReport(
        step=step,
        seed=3,
        settings={},
        read=400,
        unreadable=1,
        waiting=0,
        not_needed=0,
        kept={"math": 70, "perception": 80, "search": 60},
        composition={"tool-using": 203, "tool-free": 7},
        filters=[
            FilterCount(
                name="execution",
                seen=399,
                dropped=39,
                seconds=4.2,
                reasons={"the code fails": 22, "the result differs": 17},
                seen_by_ability={"math": 133, "perception": 133, "search": 133},
                dropped_by_ability={"math": 13, "perception": 20, "search": 6},
            ),
            FilterCount(
                name="needless",
                seen=360,
                dropped=150,
                seconds=9.1,
                reasons={"solved in all 8 tool-free samples": 150},
                seen_by_ability={"math": 120, "perception": 113, "search": 127},
                dropped_by_ability={"math": 50, "perception": 33, "search": 67},
            ),
        ],
    ).write(directory)
    return directory / "report.json"


def build(run: Path, out_dir: Path, **changes) -> Path:
    arguments = {
        "stages": {stage: run / stage for stage in CALL_RATES},
        "decision": run / "decision.json",
        "training_log": run / "train_log.jsonl",
        "curation_reports": [run / f"curate-{step}" / "report.json" for step in ("sft", "rl")],
        "seconds": {"base-model": 61.2, "train-sft": 83.0, "train-hdpo": 140.7},
        "endpoint": None,
        "seed": 3,
        "out_dir": out_dir,
        "profile": "demo",
    }
    return build_report(**{**arguments, **changes})


@pytest.fixture(scope="module")
def built(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """report.json of the whole run, with the page beside it."""
    return build(run, tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def bare(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """report.json of a run that only measured its base model."""
    return build(
        run,
        tmp_path_factory.mktemp("bare"),
        stages={"base": run / "base"},
        decision=None,
        training_log=None,
        curation_reports=[],
    )


class Page(HTMLParser):
    """What a reader of the page gets: text, figures by table cell, addresses, headings."""

    VOID = frozenset({"meta", "img", "source", "link", "br", "input"})

    def __init__(self, report_json: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.figures: dict[str, tuple[float, str]] = {}
        self.attributes: list[tuple[str, str, str]] = []
        self._cell: str | None = None
        self._value: float | None = None
        self.feed(report_json.with_suffix(".html").read_text(encoding="utf-8"))
        assert self.open == [], "every tag is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.attributes += [(tag, name, value) for name, value in found.items()]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "td":
            self._cell = found.get("data-key")
        if tag == "data" and self._cell:
            self._value = float(found["value"])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            return
        self.text += data
        if self._value is not None and self._cell:
            self.figures[self._cell] = (self._value, data)
            self._value = None

    def all(self, tag: str, name: str) -> list[str]:
        return [value for t, n, value in self.attributes if (t, n) == (tag, name)]


def test_every_figure_on_the_page_is_the_one_in_report_json(built: Path):
    report, page = json.loads(built.read_text()), Page(built)
    expected = {
        f"{stage}.{mode}.{ability}.{name}": entry["value"]
        for stage, modes in report["stages"].items()
        for mode in ("greedy", "sampled")
        for ability, metrics in modes[mode].items()
        for name, entry in metrics.items()
        if entry["value"] is not None
    }
    assert {key: value for key, (value, _) in page.figures.items()} == expected
    value, shown = page.figures["hdpo.greedy.overall.necessary_call_rate"]
    assert shown == f"{100 * value:.1f}%"
    assert page.figures["hdpo.greedy.overall.calls_per_rollout"][1] == (
        f"{report['stages']['hdpo']['greedy']['overall']['calls_per_rollout']['value']:.2f}"
    )


def test_the_stages_in_report_json_are_what_summarise_says(built: Path):
    report = json.loads(built.read_text())
    scores = rollout_scores("hdpo")
    for mode in ("greedy", "sampled"):
        assert report["stages"]["hdpo"][mode] == summarise(scores, mode)
    assert list(report["stages"]) == ["base", "sft", "hdpo"]
    assert report["stages"]["hdpo"]["items"] == 120
    assert report["stages"]["hdpo"]["solvable"] == 60
    assert report["seed"] == 3
    assert report["seconds"]["train-sft"] == 83.0
    assert report["gate"]["decision"] in ("promote", "reject")
    assert report["endpoint"] is None
    assert report["versions"]["python"].startswith("3.")
    assert report["versions"]["torch"]


def test_the_paired_change_is_the_difference_of_the_two_values(built: Path):
    report = json.loads(built.read_text())
    changes = report["changes"]
    assert (changes["before"], changes["after"]) == ("sft", "hdpo")
    for ability in ("overall", *ABILITIES):
        before, after = (report["stages"][s]["greedy"][ability] for s in ("sft", "hdpo"))
        change = changes["greedy"][ability]["tool_call_rate"]
        difference = after["tool_call_rate"]["value"] - before["tool_call_rate"]["value"]
        assert change["value"] == pytest.approx(difference)
        assert change["low"] <= change["value"] <= change["high"]


def test_an_evaluation_without_sampled_answers_has_no_sampled_changes(run: Path, tmp_path: Path):
    for stage in ("sft", "hdpo"):
        scores = [row for row in rollout_scores(stage) if row.mode != "sampled"]
        folder = tmp_path / stage
        folder.mkdir()
        write_scores(folder / "scores.jsonl", scores)
        metrics = json.loads((run / stage / "metrics.json").read_text())
        metrics["sampled"] = summarise(scores, "sampled")
        (folder / "metrics.json").write_text(json.dumps(metrics))
        (folder / "samples.jsonl").write_text((run / stage / "samples.jsonl").read_text())
    built = build(run, tmp_path, stages={stage: tmp_path / stage for stage in ("sft", "hdpo")})
    changes = json.loads(built.read_text())["changes"]
    assert changes["sampled"] == {}
    assert set(changes["greedy"]) == {"overall", *ABILITIES}
    of_changes = Page(built).text.partition("What HDPO changed against SFT")[2]
    table = " ".join(of_changes.partition("Curation")[0].split())
    assert table.count("no data") == 3 * len(changes["greedy"])


def test_the_headline_states_the_change_in_figures(built: Path):
    report = json.loads(built.read_text())
    sft, hdpo = (report["stages"][stage]["greedy"]["overall"] for stage in ("sft", "hdpo"))
    text = " ".join(Page(built).text.split())
    for name, shown in (("redundant_call_rate", "redundant calls"), ("accuracy", "accuracy")):
        assert f"{shown} {sft[name]['value']:.1%} → {hdpo[name]['value']:.1%}" in text
    saved = 1 - hdpo["calls_per_rollout"]["value"] / sft["calls_per_rollout"]["value"]
    assert f"({saved:.0%} fewer)" in text


def test_the_page_fetches_nothing_runs_nothing_and_can_be_read_without_eyes(built: Path):
    page = Page(built)
    addresses = page.all("img", "src") + page.all("source", "srcset")
    assert len(addresses) > 6
    assert all(address.startswith("data:image/") for address in addresses)
    assert all(address.startswith("#") for address in page.all("a", "href"))
    assert not [tag for tag, _, _ in page.attributes if tag in ("script", "link", "iframe")]
    assert "@import" not in built.with_suffix(".html").read_text()
    assert len(page.all("img", "alt")) == len(page.all("img", "src"))
    assert all(page.all("img", "alt"))
    assert {"col", "row", "rowgroup"} == set(page.all("th", "scope"))
    assert page.all("html", "lang") == ["en"]


def test_the_pictures_are_svg_and_their_words_are_text(built: Path):
    pictures = [
        base64.b64decode(address.partition("base64,")[2]).decode()
        for address in Page(built).all("img", "src")
        if address.startswith("data:image/svg+xml")
    ]
    accuracy, calls, training = pictures
    for words in ("Overall", "Math", "Perception", "Search", "Tool-call rate", "HDPO"):
        assert f">{words}<" in accuracy
    assert ">Items solvable without tools<" in calls
    for words in ("Accuracy", "Tool-call rate", "Size of Q", "Mean |advantage|"):
        assert f">{words}<" in training


def test_a_stage_keeps_its_colour_when_another_is_missing(built: Path):
    report = json.loads(built.read_text())
    of_hdpo = PALETTE[2].encode()
    assert of_hdpo in accuracy_against_calls(report)
    del report["stages"]["base"]
    assert of_hdpo in accuracy_against_calls(report)
    assert PALETTE[0].encode() not in accuracy_against_calls(report)


def test_samples_show_the_task_image_the_code_the_crop_and_the_answer(built: Path):
    page = Page(built)
    alts = page.all("img", "alt")
    assert any(alt.startswith("Image of item perception-") for alt in alts)
    assert "Image the tool returned" in alts
    assert "show(image.crop((96, 96, 192, 192)).resize((288, 288)))" in page.text
    assert "mayor Lindholm" in page.text
    assert "Which number is on the <sign>?" in page.text, "what a model or user wrote is escaped"
    assert "answered without a tool" in page.text
    assert "answered with a tool" in page.text


def test_the_page_counts_what_each_filter_dropped_and_why(built: Path):
    text = " ".join(Page(built).text.split())
    assert "SFT: 400 read, 210 kept" in text
    assert "RL: 400 read, 210 kept" in text
    assert "Execution 399 39 math: 13, perception: 20, search: 6 the code fails: 22," in text
    assert "By kind: tool-using: 203, tool-free: 7" in text
    assert "Could not be read: 1." in text
    assert json.loads(built.read_text())["curation"][0]["filters"][1]["dropped"] == 150


def test_the_page_says_how_to_do_the_run_again(built: Path, commit: str):
    text = Page(built).text
    assert f"git checkout {commit}" in text
    assert "make demo SEED=3" in text


def test_an_image_that_is_not_inline_is_left_out(run: Path, tmp_path: Path):
    stage = tmp_path / "hdpo"
    stage.mkdir()
    for name in ("metrics.json", "scores.jsonl"):
        (stage / name).write_text((run / "hdpo" / name).read_text())
    samples = (run / "hdpo" / "samples.jsonl").read_text()
    (stage / "samples.jsonl").write_text(
        samples.replace("data:image/png;base64,", "https://example.org/")
    )
    build(run, tmp_path, stages={"sft": run / "sft", "hdpo": stage})
    assert "https://example.org/" not in "".join(Page(tmp_path / "report.json").all("img", "src"))


def test_what_a_run_lacks_is_named_on_the_page(bare: Path):
    text = Page(bare).text
    assert "No two stages were measured, so there is nothing to compare." in text
    assert "No training curves: this run has no HDPO training log." in text
    assert "No decision: this run did not reach the gate." in text
    assert "No endpoint: this run deployed nothing." in text
    assert "No curation report: this run curated nothing." in text


def test_a_rejected_model_has_no_endpoint_and_the_page_says_why(run: Path, tmp_path: Path):
    policy = GatePolicy(redundant_call_rate_max=0.0)
    rejected = tmp_path / "rejected.json"
    decide(policy, rollout_scores("hdpo"), baseline=rollout_scores("sft")).write(rejected)
    build(run, tmp_path, decision=rejected)
    page = Page(tmp_path / "report.json")
    assert "No endpoint: the gate rejected the model, so nothing was deployed." in page.text
    assert "gate: reject" in page.text


def test_the_endpoints_answers_are_on_the_page(run: Path, tmp_path: Path):
    answers = [
        {
            "task_id": "math-0",
            "question": "What is 3 + 4?",
            "expected": "7",
            "answer": "7",
            "correct": True,
            "tool_calls": 0,
            "seconds": 0.31,
        }
    ]
    endpoint = tmp_path / "endpoint.json"
    endpoint.write_text(json.dumps({"url": "http://here/openai/v1", "answers": answers}))
    report = json.loads(build(run, tmp_path, endpoint=endpoint).read_text())
    assert report["endpoint"]["answers"] == answers
    assert "What is 3 + 4?" in Page(tmp_path / "report.json").text


def test_a_log_with_other_columns_draws_what_it_knows(run: Path, tmp_path: Path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "accuracy": 0.5}\n{"step": 2, "accuracy": NaN, "loss": 0.1}\n')
    report = json.loads(build(run, tmp_path, training_log=log).read_text())
    assert report["training"] == {"step": [1, 2], "accuracy": [0.5, None]}
    assert training_curves(report) is not None
    assert training_curves({"training": {"step": [1], "loss": [0.5]}}) is None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"stages": {"base": Path("nowhere")}}, "nowhere/metrics.json"),
        ({"training_log": Path("nowhere.jsonl")}, "nowhere.jsonl"),
        ({"decision": Path("nowhere.json")}, "nowhere.json"),
    ],
)
def test_a_file_that_was_promised_and_is_not_there_is_named(
    run: Path, tmp_path: Path, changes: dict, named: str
):
    with pytest.raises(InputError, match=named):
        build(run, tmp_path / "out", **changes)
    assert not (tmp_path / "out" / "report.json").exists()


def test_the_same_run_gives_the_same_bytes(run: Path, built: Path, tmp_path: Path):
    again = build(run, tmp_path)
    for suffix in (".json", ".html"):
        assert built.with_suffix(suffix).read_bytes() == again.with_suffix(suffix).read_bytes()


def printed(report_json: Path) -> str:
    console = Console(width=80, file=io.StringIO(), record=True)
    print_report(report_json, console)
    return console.export_text()


def test_the_terminal_shows_every_stage_with_intervals_in_80_columns(built: Path):
    entry = json.loads(built.read_text())["stages"]["hdpo"]["sampled"]["math"][
        "redundant_call_rate"
    ]
    text = printed(built)
    assert f"{entry['value']:.2f} [{entry['low']:.2f}, {entry['high']:.2f}]" in text
    assert "…" not in text
    for words in ("Base", "SFT", "HDPO", "Greedy", "Sampled at temperature 1", "perception"):
        assert words in text
    assert "redundant call rate" in text
    assert "284.9" in text, "all seconds together"


def test_the_terminal_says_that_the_gate_was_not_reached(bare: Path):
    assert "not reached" in printed(bare)


def test_a_report_that_is_none_is_refused_by_name(tmp_path: Path):
    for content in ("{", "[]", "{}"):
        wrong = tmp_path / "report.json"
        wrong.write_text(content)
        with pytest.raises(InputError, match=r"report\.json"):
            printed(wrong)
    with pytest.raises(InputError, match="make demo"):
        printed(tmp_path / "absent.json")


def test_the_command_draws_the_picture_and_fills_in_the_readme(built: Path, tmp_path: Path):
    second = json.loads(built.read_text())
    second["seed"] = 1
    second["stages"]["hdpo"]["greedy"]["overall"]["accuracy"] = {
        "value": 0.25,
        "count": 4,
        "low": 0.1,
        "high": 0.5,
    }
    other = tmp_path / "report.json"
    other.write_text(json.dumps(second))
    readme, drawn = tmp_path / "README.md", tmp_path / "docs" / "result.svg"
    readme.write_text("# Before\n<!-- results: start -->\nold\n<!-- results: end -->\nAfter\n")
    assert main([str(built), str(other), "--picture", str(drawn), "--readme", str(readme)]) == 0
    assert drawn.read_text().startswith("<?xml")
    text = readme.read_text()
    assert text.startswith("# Before\n")
    assert text.endswith("\nAfter\n")
    assert "old" not in text
    row = next(line for line in text.splitlines() if line.startswith("| 1 | HDPO |"))
    assert "| 0.25 [0.10, 0.50] |" in row
    first = json.loads(built.read_text())["stages"]["hdpo"]["greedy"]["overall"]["accuracy"][
        "value"
    ]
    both = next(line for line in text.splitlines() if line.startswith("| HDPO |"))
    assert f"| {(first + 0.25) / 2:.2f} [0.25, {first:.2f}] |" in both
    assert "Mean of 2 seeds [lowest, highest]." in text


def test_one_seed_is_one_table_with_its_intervals(built: Path):
    report = json.loads(built.read_text())
    text = results_table([report])
    rate = report["stages"]["hdpo"]["greedy"]["overall"]["redundant_call_rate"]
    row = next(
        line for line in text.splitlines() if line.startswith(f"| {report['seed']} | HDPO |")
    )
    assert f"{rate['value']:.2f} [{rate['low']:.2f}, {rate['high']:.2f}]" in row
    assert "<details>" not in text
    assert "Values with 95% intervals." in text


def test_a_readme_without_markers_is_left_alone(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    readme = tmp_path / "README.md"
    readme.write_text("mine")
    assert main([str(built), "--readme", str(readme)]) == 2
    assert readme.read_text() == "mine"
    assert "results: start" in capsys.readouterr().err
