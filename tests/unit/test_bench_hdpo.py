"""What the HDPO study makes of its runs, on worked cases."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import get_args

import pytest

from bench.hdpo import checkpoints, headline, report, study
from bench.hdpo.arms import Start, arms
from bench.hdpo.checkpoints import code_digest
from bench.hdpo.exact import Method, Prompt, break_even, coupled, grpo, push
from bench.hdpo.figures import collect, first_stays_under
from bench.hdpo.scale import Scale
from toolwise.markdown import filled


@pytest.fixture(autouse=True)
def demo(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the study takes from a demo run."""
    steps = tmp_path_factory.mktemp("demo")
    for output in ("base-model/run/model", "train-sft/run/checkpoint"):
        (steps / output).mkdir(parents=True)
        (steps / output / "weights").write_text(output)
    monkeypatch.setattr("bench.demo.STEPS", steps)
    checkpoints.material.cache_clear()


class TestFirstStaysUnder:
    TEN = (10,) * 6

    def test_is_the_step_from_which_the_window_stays_below(self) -> None:
        # Over two steps: 9/20, 3/20, 0, 0, 0 from step 2 on.
        assert first_stays_under([6, 3, 0, 0, 0, 0], self.TEN, 0.05, window=2) == 4

    def test_a_relapse_starts_it_over(self) -> None:
        # Below at step 3 (0/20), not at 4 and 5 (3/20), below from 6 on.
        assert first_stays_under([6, 0, 0, 3, 0, 0], self.TEN, 0.05, window=2) == 6

    def test_a_relapse_at_the_end_means_never(self) -> None:
        assert first_stays_under([0, 0, 0, 0, 0, 1], self.TEN, 0.05, window=2) is None

    def test_exactly_the_threshold_is_not_under(self) -> None:
        assert first_stays_under([1, 0, 0], [10, 10, 10], 0.05, window=2) == 3

    def test_no_step_counts_before_its_window_is_full(self) -> None:
        assert first_stays_under([0, 0, 0], [10, 10, 10], 0.05, window=3) == 3

    def test_a_window_without_data_says_nothing(self) -> None:
        assert first_stays_under([0, 0, 0, 0], [10, 0, 0, 10], 0.05, window=2) == 4


class TestExact:
    @pytest.mark.parametrize("alpha", [0.05, 1.0])
    def test_coupled_in_groups_that_are_all_right_is_the_sum_over_all_sequences(
        self, alpha: float
    ) -> None:
        # 2^8 sequences of call (reward 1 + α/2) and direct (1 + α), each a group.
        call, expected = 0.7, 0.0
        for sequence in product((0, 1), repeat=8):
            chance = call ** sum(sequence) * (1 - call) ** (8 - sum(sequence))
            rewards = [1 + alpha / (1 + called) for called in sequence]
            if len(set(rewards)) > 1:
                spread = stdev(rewards) + 1e-4
                expected += chance * fmean(
                    (reward - fmean(rewards)) / spread * ((1 - called) - (1 - call))
                    for reward, called in zip(rewards, sequence, strict=True)
                )
        found = push(Prompt(call, 1.0, 1.0), Method(coupled(alpha)))
        assert found.mean == pytest.approx(expected, rel=1e-4)

    def test_accuracy_alone_pushes_nowhere_where_both_ways_are_as_good(self) -> None:
        assert push(Prompt(0.8, 0.6, 0.6), Method(grpo)).mean == pytest.approx(0, abs=1e-6)

    def test_accuracy_alone_breaks_even_at_the_accuracy_of_a_call(self) -> None:
        assert break_even(Method(grpo), 0.8, 0.6) == pytest.approx(0.6, abs=1e-3)

    def test_hdpo_in_groups_that_are_all_right_pushes_w_tool_times_its_qualifying_mean(
        self,
    ) -> None:
        # Of 2^8 sequences all but the two pure ones qualify, whole: the same standardised rewards
        # as a coupled reward's, averaged over them only.
        call = 0.7
        alone = push(Prompt(call, 1.0, 1.0), Method(coupled(1.0))).mean
        pure = call**8 + (1 - call) ** 8
        found = push(Prompt(call, 1.0, 1.0), Method(grpo, w_tool=0.15))
        assert found.mean == pytest.approx(0.15 * alone / (1 - pure), rel=1e-3)

    def test_a_judge_that_errs_in_half_of_its_verdicts_says_nothing(self) -> None:
        assert push(Prompt(0.8, 0.9, 0.1, flipped=0.5), Method(grpo)).mean == pytest.approx(
            0, abs=1e-6
        )


def run(called: list[int], correct: list[int], redundant: list[int]) -> dict[str, object]:
    """A run of two items, "a" solvable without tools and "b" not, and of three steps."""
    scores = [
        ["a", "math", "greedy", 0, correct[0], called[0]],
        ["b", "math", "greedy", 0, correct[1], called[1]],
        ["a", "math", "sampled", 0, correct[0], called[0]],
        ["b", "math", "sampled", 0, correct[1], called[1]],
        ["a", "math", "tools_off", 0, 1, 0],
        ["b", "math", "tools_off", 0, 0, 0],
    ]
    steps = [
        {
            "solvable": 10,
            "redundant": count,
            "unsolvable": 5,
            "necessary": 5,
            **dict.fromkeys(("right", "q", "signal", "mixed"), 0.5),
        }
        for count in redundant
    ]
    return {"scores": scores, "steps": steps, "cpu_seconds": 1.0}


def test_seeds_are_pooled_item_by_item_and_compared_in_pairs() -> None:
    reference, *_ = [arm for arm in arms() if arm.label == "main: hdpo 0.15"]
    rival, *_ = [arm for arm in arms() if arm.label == "main: coupled 0.1"]
    quiet = [0] * 6
    records = [
        (reference, 0, run([0, 1], [1, 1], quiet)),
        (reference, 1, run([0, 1], [1, 1], [9, *quiet[1:]])),
        (rival, 0, run([1, 1], [1, 1], [9] * 6)),
        (rival, 1, run([0, 0], [1, 0], quiet)),
    ]
    known = {"mild": {"p": {"solvable": True, "mixed": False, "called": 0.8}}}
    found = collect(records, known, Scale(prompts_per_step=6))
    first, second = found["arms"]
    assert [first["sampled"][m]["value"] for m in first["sampled"]] == [1.0, 0.0, 1.0]
    assert [second["sampled"][m]["value"] for m in second["sampled"]] == [0.75, 0.5, 0.5]
    assert second["sampled"]["accuracy"]["count"] == 4  # two items of two seeds
    assert first["against"] == {}
    against = second["against"]["hdpo 0.15"]
    assert {name: (d["value"], d["count"]) for name, d in against.items()} == {
        "accuracy": (-0.25, 4),
        "redundant_call_rate": (0.5, 2),
        "necessary_call_rate": (-0.5, 2),
    }
    # Windows of five steps of 48 rollouts: full at step 5; the second seed's has 9/50 there.
    assert first["rollouts_until_under"] == {"0.5": [5 * 48] * 2, "0.05": [5 * 48, 6 * 48]}
    assert second["rollouts_until_under"] == {"0.5": [None, 5 * 48], "0.05": [None, 5 * 48]}


def test_every_arm_of_the_study_has_settings_and_a_label_of_its_own() -> None:
    labels = [arm.label for arm in arms()]
    assert len(labels) == len(set(labels))
    assert all(arm.settings(Scale()).steps == arm.longer * Scale().steps for arm in arms())


WORKER = """
import os, pathlib, signal, sys
folder, killed = map(pathlib.Path, sys.argv[1:3])
for path in sys.argv[3:]:
    try:
        (folder / path).with_suffix(".taken").touch(exist_ok=False)
    except FileExistsError:
        continue
    if path == sys.argv[-1] and not killed.exists():
        killed.touch()
        (folder / path).with_suffix(".taken").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / path).touch()
"""
"""Does the jobs nobody has taken, but for the last, at which the first one there is killed."""


def test_what_a_killed_worker_leaves_is_done_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "WORK", tmp_path)
    scale = Scale(seeds=1, only="never abstains")
    wanted = [job.path for job in study.jobs(scale)]
    names = [path.name for path in wanted]
    killed = tmp_path / "killed"
    worker = [sys.executable, "-c", WORKER, str(tmp_path / "arms"), str(killed), *names]
    study.train_missing(scale, worker)
    assert killed.exists()
    assert all(path.exists() for path in wanted)


@pytest.mark.parametrize("end", ["sys.exit(3)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_study_whose_workers_get_nothing_done_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(study, "WORK", tmp_path)
    worker = [sys.executable, "-c", f"import os, signal, sys; {end}"]
    with pytest.raises(SystemExit, match="a worker of the study failed"):
        study.train_missing(Scale(seeds=1), worker)


@pytest.fixture
def done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scale]:
    """A study of one seed, all arms of which are done."""
    monkeypatch.setattr(study, "WORK", tmp_path)
    monkeypatch.setattr(checkpoints, "WORK", tmp_path)
    checkpoints.material.cache_clear()
    scale = Scale(seeds=1)
    for start in get_args(Start):
        known = checkpoints.material(scale).known(start)
        known.parent.mkdir(exist_ok=True)
        known.write_text('{"p": {"solvable": true, "mixed": false, "called": 0.8}}')
    (tmp_path / "arms").mkdir()
    for job in study.jobs(scale):
        job.path.write_text(json.dumps(run([0, 1], [1, 1], [0] * 6)))
    yield scale
    checkpoints.material.cache_clear()


def test_a_part_of_the_study_leaves_the_other_arms_in_the_results(done: Scale) -> None:
    part = done.model_copy(update={"only": "never abstains"})
    assert 0 < len(list(study.jobs(part))) < len(list(study.jobs(done)))
    assert study.finished(part) == study.finished(done)


def test_arms_that_answered_no_item_in_common_are_reported_without_a_difference() -> None:
    reference, *_ = [arm for arm in arms() if arm.label == "main: hdpo 0.15"]
    rival, *_ = [arm for arm in arms() if arm.label == "main: coupled 0.1"]
    ours, theirs = run([0, 1], [1, 1], [0] * 6), run([0, 1], [1, 1], [0] * 6)
    # Without tools theirs is right where ours is wrong: they share no item of either kind.
    theirs["scores"] = [
        [item, ability, mode, sample, correct if mode != "tools_off" else 1 - correct, calls]
        for item, ability, mode, sample, correct, calls in theirs["scores"]  # type: ignore[misc]
    ]
    known = {"mild": {"p": {"solvable": True, "mixed": False, "called": 0.8}}}
    found = collect([(reference, 0, ours), (rival, 0, theirs)], known, Scale(steps=6))
    against = found["arms"][1]["against"]["hdpo 0.15"]
    assert against["accuracy"]["count"] == 2
    assert against["redundant_call_rate"] is against["necessary_call_rate"] is None
    assert "| coupled 0.1 | +0.0 (+0.0 … +0.0) | – | – |" in report.parts(found)["study"]


def test_both_results_files_are_of_one_run() -> None:
    arms_file, figures_file = (study.RESULTS.with_name(n) for n in ("hdpo_arms.json", "hdpo.json"))
    written = json.loads(figures_file.read_text())["figures"]
    assert written == headline(json.loads(arms_file.read_text()))


def test_the_page_shows_what_the_results_file_says() -> None:
    page = report.PAGE.read_text()
    results = json.loads(study.RESULTS.read_text())
    assert filled(page, report.parts(results)) == page


def test_comments_and_docstrings_do_not_make_other_code(tmp_path: Path) -> None:
    file = tmp_path / "code.py"
    digests = []
    body = "x = lambda: 'y'\ndef f():\n    {}return 1\n"
    for text in (body, f"# a reason\n{body}", f'"""What."""\n{body}', body.replace("1", "2")):
        for docstring in ("", '"Why."\n    '):
            file.write_text(text.format(docstring))
            digests.append(code_digest([file]))
    assert len(set(digests[:6])) == len(set(digests[6:])) == 1
    assert digests[0] != digests[6]


@pytest.mark.parametrize(
    "path",
    [
        "training/hdpo/loss.py",
        "agent/loop.py",
        "tools/sandbox/bubblewrap.py",
        "tools/search/corpus.py",
        "data/grading.py",
    ],
)
def test_a_result_is_kept_for_the_code_that_made_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    copy = tmp_path / "toolwise"
    shutil.copytree(checkpoints.SOURCE / "toolwise", copy)
    monkeypatch.setattr(checkpoints, "SOURCE", tmp_path)
    monkeypatch.setattr(study, "SOURCE", tmp_path)

    def first() -> Path:
        checkpoints.material.cache_clear()
        study._training_code.cache_clear()
        return next(study.jobs(Scale())).path

    before = first()
    (copy / "training" / "hdpo" / "collapse.py").write_text("x = 1\n")  # an alarm trains nothing
    assert first() == before
    (copy / path).write_text((copy / path).read_text() + "\nx = 1\n")
    assert first() != before
    checkpoints.material.cache_clear()
    study._training_code.cache_clear()
