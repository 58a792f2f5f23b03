"""Curation for the cold start: real sandbox, real index, a scripted base model."""

import json
import struct
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from scripted_engine import ScriptedEngine

from toolwise.curation.sft import FilterName, SftCurationSettings, curate_sft, kind
from toolwise.data import Message, Task, Trajectory
from toolwise.data.parquet import read_trajectories, write_trajectories
from toolwise.errors import BackendError, InputError
from toolwise.synthetic.environment import SignboardSettings, write_signboard

SETTINGS = SftCurationSettings(batch_size=16, tool_free_share=0.1, replay=5)


@pytest.fixture(scope="module")
def signboard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signboard") / "data"
    write_signboard(
        folder,
        7,
        SignboardSettings(trajectories=180, rl_tasks=3, benchmark_items=3, corpus_distractors=20),
    )
    return folder


class Base:
    """Right on what needs no tool (by a table made from the data); otherwise wrong.

    Every third sample of a shaky item is wrong too: in eight samples such an item fails.
    """

    def __init__(self, trajectories: list[Trajectory], fail_at: int | None = None) -> None:
        self.known = {
            key(t.messages[0]): t.task for t in trajectories if not t.task.metadata["needs_tool"]
        }
        self.asked: Counter[str] = Counter()
        self.turns = 0
        self.fail_at = fail_at

    def solves(self, trajectory: Trajectory) -> bool:
        task = self.known.get(key(trajectory.messages[0]))
        return task is not None and not shaky(task)

    def __call__(self, conversation: list[Message], tools: bool, index: int) -> str:
        assert not tools
        self.turns += 1
        if self.turns == self.fail_at:
            raise BackendError("the model is gone")
        task = self.known.get(key(conversation[0]))
        if task is None:
            return "<answer>?</answer>"
        self.asked[task.id] += 1
        wrong = shaky(task) and self.asked[task.id] % 3 == 0
        return f"<answer>{'?' if wrong else task.answer[0]}</answer>"


def shaky(task: Task) -> bool:
    return task.id.endswith("5")


def key(message: Message) -> str:
    return repr(message["content"])


def curate(
    data: Path, out: Path, trajectories: Path | None = None, **options: Any
) -> tuple[Any, ScriptedEngine]:
    source = trajectories or data / "raw_trajectories.parquet"
    options.setdefault("settings", SETTINGS)
    if "engine" not in options:
        options["engine"] = ScriptedEngine(Base(read_trajectories(source)))
    report = curate_sft(data, source, data / "corpus.jsonl", out, seed=0, **options)
    return report, options["engine"]


def test_planted_flaws_go_and_what_needs_its_tool_stays(signboard: Path, tmp_path: Path) -> None:
    out = tmp_path / "curated"
    notes: list[tuple[int, int, str]] = []
    report, engine = curate(signboard, out, progress=lambda *told: notes.append(told))
    raw = read_trajectories(signboard / "raw_trajectories.parquet")
    kept = read_trajectories(out / "curated.parquet")
    rejected = pq.read_table(out / "rejected.parquet").to_pylist()
    reasons = {row["id"]: row["reason"] for row in rejected}
    flaws = {t.task.id: t.task.metadata.get("flaw") for t in raw}

    for number, flaw in flaws.items():
        if flaw == "failing_code":
            assert reasons[number] == "re-execution: the call fails"
        elif flaw == "made_up_output":
            assert reasons[number].startswith("re-execution: the result differs")
        elif flaw == "for_show":
            assert reasons[number].partition(":")[0] in ("strategic-use", "necessity")
    assert any(flaw for flaw in flaws.values())

    using = [t for t in kept if kind(t) == "tool-using"]
    clean = [t for t in raw if kind(t) == "tool-using" and not t.task.metadata.get("flaw")]
    base = Base(raw)
    expected = [t for t in clean if not base.solves(t)]
    assert any(not t.task.metadata["needs_tool"] for t in expected)
    assert using == expected
    solved = [t for t in clean if t not in expected]
    assert {reasons[t.task.id] for t in solved} == {
        "necessity: solved without tools in every sample"
    }

    assert {t.task.id for t in kept} | set(reasons) == {t.task.id for t in raw}
    assert len(kept) + len(rejected) == len(raw)
    assert report.read == len(raw)
    assert sum(report.kept.values()) == len(kept)
    assert [f.name for f in report.filters] == [
        "form",
        "re-execution",
        "answer",
        "necessity",
        "strategic-use",
    ]
    assert sum(f.dropped for f in report.filters) + report.not_needed == len(rejected)
    assert json.loads((out / "report.json").read_text())["kept"] == report.kept
    assert "| necessity |" in (out / "report.md").read_text()
    assert notes[-1] == (len(raw), len(raw), "strategic-use")
    assert sorted(p.name for p in out.iterdir()) == [
        "curated.parquet",
        "rejected.parquet",
        "report.html",
        "report.json",
        "report.md",
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["curated"]
    assert all(not tools for _, tools, _ in engine.batches)
    assert max(size for size, _, _ in engine.batches) <= SETTINGS.batch_size


def test_the_tool_free_share_is_of_each_ability_and_the_replay_is_bounded(
    signboard: Path, tmp_path: Path
) -> None:
    curate(signboard, tmp_path / "curated")
    kept = read_trajectories(tmp_path / "curated" / "curated.parquet")
    raw = read_trajectories(signboard / "raw_trajectories.parquet")
    for ability in ("perception", "math", "search"):
        kinds = Counter(kind(t) for t in kept if t.task.ability == ability)
        there = sum(kind(t) == "tool-free" for t in raw if t.task.ability == ability)
        assert kinds["tool-free"] == min(there, round(kinds["tool-using"] / 9))
    assert sum(kind(t) == "replay" for t in kept) == 5
    assert all(t.task.metadata["tools"] == "none" for t in kept if kind(t) == "replay")


def test_curation_never_reads_whether_the_tool_is_needed(signboard: Path, tmp_path: Path) -> None:
    raw = read_trajectories(signboard / "raw_trajectories.parquet")
    model = Base(raw)

    def altered(task: Task, flip: bool) -> Task:
        rest = {k: v for k, v in task.metadata.items() if k != "needs_tool"}
        return replace(
            task,
            metadata={**rest, "needs_tool": not task.metadata["needs_tool"]} if flip else rest,
        )

    results = []
    for name, rows in {
        "as it is": raw,
        "removed": [replace(t, task=altered(t.task, flip=False)) for t in raw],
        "flipped": [replace(t, task=altered(t.task, flip=True)) for t in raw],
    }.items():
        source = tmp_path / name / "raw.parquet"
        write_trajectories(source, rows)
        model.asked.clear()
        out = tmp_path / name / "curated"
        report, _ = curate(signboard, out, source, engine=ScriptedEngine(model))
        kept = [t.task.id for t in read_trajectories(out / "curated.parquet")]
        reasons = pq.read_table(out / "rejected.parquet", columns=["id", "reason"]).to_pylist()
        results.append((kept, reasons, report.kept, report.composition))
    assert results[0] == results[1] == results[2]


def test_a_step_that_died_goes_on_and_ends_with_the_same_result(
    signboard: Path, tmp_path: Path
) -> None:
    raw = read_trajectories(signboard / "raw_trajectories.parquet")
    whole, undisturbed = curate(signboard, tmp_path / "whole")
    out = tmp_path / "resumed"
    dying = ScriptedEngine(Base(raw, fail_at=250))
    with pytest.raises(BackendError, match="the model is gone"):
        curate(signboard, out, engine=dying)
    assert not out.exists()
    second = ScriptedEngine(Base(raw))
    resumed, _ = curate(signboard, out, engine=second)
    assert 0 < len(second.batches) < len(undisturbed.batches)
    assert undisturbed.batches[-len(second.batches) :] == second.batches
    for name in ("curated.parquet", "rejected.parquet", "report.md"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert resumed.kept == whole.kept


def bomb() -> bytes:
    """A PNG of a few bytes whose header announces more pixels than Pillow agrees to decode."""
    size = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in ((b"IHDR", size), (b"IDAT", zlib.compress(bytes(9))))
    )


def test_an_image_of_too_many_pixels_is_rejected_and_counted(
    signboard: Path, tmp_path: Path
) -> None:
    raw = read_trajectories(signboard / "raw_trajectories.parquet")
    number = next(n for n, row in enumerate(raw) if row.task.images)
    raw[number] = replace(raw[number], task=replace(raw[number].task, images=(bomb(),)))
    source, out = tmp_path / "raw.parquet", tmp_path / "curated"
    write_trajectories(source, raw)
    report, _ = curate(signboard, out, source)
    assert report.filters[0].reasons == {"corrupt image": 1}
    rejected = {
        row["id"]: row["reason"] for row in pq.read_table(out / "rejected.parquet").to_pylist()
    }
    assert rejected[raw[number].task.id].startswith("form: corrupt image: Image size (2500000000")


def test_rows_and_files_that_cannot_be_used_are_named(signboard: Path, tmp_path: Path) -> None:
    source = tmp_path / "raw.parquet"
    raw = read_trajectories(signboard / "raw_trajectories.parquet")
    write_trajectories(source, raw)
    table = pq.read_table(source)
    rows = table.to_pylist()
    rows[0]["messages"] = "{"
    picture = next(n for n, row in enumerate(rows) if n and row["images"])
    rows[picture]["images"][0]["bytes"] = rows[picture]["images"][0]["bytes"][:50]
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), source)
    engine = ScriptedEngine(Base(raw))
    report, _ = curate(signboard, tmp_path / "curated", source, engine=engine)
    assert report.unreadable == 1
    assert json.loads((tmp_path / "curated" / "rejects.jsonl").read_text())["row"] == 0
    assert report.filters[0].reasons == {"corrupt image": 1}

    write_trajectories(source, [t for t in raw if kind(t) == "replay"])
    with pytest.raises(InputError, match="no tool-using trajectory is left"):
        curate(signboard, tmp_path / "empty", source, engine=engine)
    assert not (tmp_path / "empty").exists()
    with pytest.raises(InputError, match="absent does not exist"):
        curate_sft(tmp_path / "absent", source, None, tmp_path / "x", SETTINGS, 0)


@pytest.mark.parametrize("name", ["form", "re-execution", "answer", "strategic-use"])
def test_a_filter_runs_alone_and_needs_no_model_unless_it_asks_one(
    signboard: Path, tmp_path: Path, name: FilterName
) -> None:
    source, corpus = signboard / "raw_trajectories.parquet", signboard / "corpus.jsonl"
    alone = SETTINGS.model_copy(update={"filters": (name,)})
    report = curate_sft(None, source, corpus, tmp_path / "out", alone, 0)
    assert [(f.name, f.seen > 0) for f in report.filters] == [(name, True)]
    rejected = pq.read_table(tmp_path / "out" / "rejected.parquet", columns=["reason"])
    filters = {row["reason"].partition(":")[0] for row in rejected.to_pylist()}
    assert filters - {"tool-free", "replay"} == ({name} if report.filters[0].dropped else set())

    asking = SETTINGS.model_copy(update={"filters": ("necessity",)})
    with pytest.raises(InputError, match="asks the base model and none is given"):
        curate_sft(None, source, corpus, tmp_path / "none", asking, 0)


def test_two_runs_never_work_on_the_same_output(signboard: Path, tmp_path: Path) -> None:
    source = signboard / "raw_trajectories.parquet"
    refused: list[str] = []

    def second_run(done: int, total: int, note: str) -> None:
        if not refused:
            with pytest.raises(InputError, match="another run is at work") as raised:
                curate_sft(source, source, None, tmp_path / "out", SETTINGS, 0)
            refused.append(str(raised.value))

    curate(signboard, tmp_path / "out", progress=second_run)
    assert refused
