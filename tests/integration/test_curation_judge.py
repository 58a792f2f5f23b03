"""The judge behind an OpenAI-compatible endpoint, over real HTTP."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from judge_server import (
    COST,
    DROP,
    FOR_SHOW,
    GOOD,
    KEEP,
    PRICE,
    PROMPT_TOKENS,
    REPLY_TOKENS,
    JudgeServer,
    Reply,
    scores,
    text_of,
)
from PIL import Image
from scripted_engine import ScriptedEngine

from toolwise import retry
from toolwise.agent import tool_message, user_message
from toolwise.curation.judge import (
    GIVE_UP_AFTER,
    JudgePanel,
    JudgeSettings,
    LlmJudge,
    TrajectoryScores,
)
from toolwise.curation.report import CurationReport
from toolwise.curation.rl import RlCurationSettings, curate_rl
from toolwise.curation.sft import SftCurationSettings, curate_sft
from toolwise.curation.verdicts import Verdict
from toolwise.data import Message, Task, Trajectory, encode_image
from toolwise.data.parquet import read_tasks, read_trajectories, write_tasks, write_trajectories
from toolwise.errors import BackendError, InputError
from toolwise.judge.spend import Budget, BudgetSpent
from toolwise.tools import ToolResult


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(retry, "LONGEST_WAIT", 0.02)
    server = JudgeServer(lambda body, before: (200, GOOD))
    yield server
    server.stop()


PICTURE = encode_image(Image.new("RGB", (8, 8), "red"))


def sum_of(number: int) -> Trajectory:
    task = Task(f"sum-{number}", "test", "math", f"What is {number}+1?", (str(number + 1),))
    call = {
        "id": "call_0",
        "type": "function",
        "function": {"name": "python", "arguments": {"code": f"print({number}+1)"}},
    }
    return Trajectory(
        task,
        (
            user_message(task),
            {"role": "assistant", "content": "", "tool_calls": [call]},
            tool_message("call_0", ToolResult(str(number + 1))),
            {"role": "assistant", "content": f"<answer>{number + 1}</answer>"},
        ),
    )


def test_the_judge_sees_everything_and_its_verdict_is_read(judge: JudgeServer) -> None:
    task = Task("t", "test", "perception", "Which colour?", ("red",), images=(PICTURE, b"broken"))
    messages: tuple[Message, ...] = (user_message(task), *sum_of(41).messages[1:])
    asked = LlmJudge(judge.settings())
    given = {"visual_relevance": 5.0, "reasoning_coherence": 3.0, "tool_use_rationale": 4.0}
    assert asked.trajectory(Trajectory(task, messages)) == Verdict(True, "", given)
    body = judge.requests[0]
    text = text_of(body)
    for part in (
        "Which colour?",
        '["red"]',
        "print(41+1)",
        "<answer>42</answer>",
        "cannot be read",
    ):
        assert part in text
    images = [p for p in body["messages"][1]["content"] if p["type"] == "image_url"]
    assert [p["image_url"]["url"][:22] for p in images] == ["data:image/png;base64,"]
    assert "for show" in body["messages"][0]["content"]
    form = body["response_format"]["json_schema"]
    assert form["strict"]
    assert form["schema"]["required"] == ["reason", *given]
    assert form["schema"]["properties"]["visual_relevance"]["maximum"] == 5
    assert judge.paths == ["/v1/chat/completions"]


def test_a_score_below_its_least_drops_the_row_and_the_worst_is_named(judge: JudgeServer) -> None:
    asked = LlmJudge(judge.settings())
    judge.answer = lambda body, before: (200, FOR_SHOW)
    verdict = asked.trajectory(sum_of(41))
    assert (verdict.keep, verdict.reason) == (False, "low tool use rationale: prints a constant")
    assert verdict.detail["tool_use_rationale"] == 2
    lenient = TrajectoryScores(visual_relevance=5, reasoning_coherence=1, tool_use_rationale=2)
    assert asked.trajectory(sum_of(41), lenient).keep
    strict = TrajectoryScores(visual_relevance=5, reasoning_coherence=5, tool_use_rationale=5)
    judge.answer = lambda body, before: (200, scores(5, 2, 4, "a gap"))
    assert asked.trajectory(sum_of(41), strict).reason == "low reasoning coherence: a gap"


def test_faults_are_retried_and_never_become_a_verdict(judge: JudgeServer) -> None:
    asked = LlmJudge(judge.settings())
    faults = [(500, "busy"), (429, "slow down"), (200, "I think so"), (200, scores(5, 6, 5))]
    judge.answer = lambda body, before: faults[before] if before < len(faults) else (200, GOOD)
    assert asked.trajectory(sum_of(1)).keep
    assert len(judge.requests) == 5

    judge.answer = lambda body, before: (200, "never JSON")
    with pytest.raises(BackendError, match=rf"127.*failed {retry.ATTEMPTS} times"):
        asked.trajectory(sum_of(2))

    judge.answer = lambda body, before: (401, "who are you")
    before = len(judge.requests)
    with pytest.raises(BackendError, match="who are you"):
        asked.trajectory(sum_of(3))
    assert len(judge.requests) == before + 1


def test_a_judge_that_is_gone_is_not_asked_for_ever(judge: JudgeServer) -> None:
    judge.answer = lambda body, before: (401, "gone")
    panel = JudgePanel(LlmJudge(judge.settings()).trajectory, judge.settings(concurrency=1))
    assert asyncio.run(panel.decide({n: sum_of(n) for n in range(50)})) == {}
    assert len(judge.requests) == GIVE_UP_AFTER
    with pytest.raises(BackendError, match=r"50 rows wait for the judge.*gone"):
        panel.settle(range(50))


def wrong(conversation: list[Message], tools: bool, index: int) -> str:
    return "<answer>?</answer>"


def test_rows_the_judge_failed_on_wait_and_only_they_are_asked_again(
    judge: JudgeServer, tmp_path: Path
) -> None:
    source, out = tmp_path / "raw.parquet", tmp_path / "curated"
    write_trajectories(source, [sum_of(n) for n in range(1, 7)])

    def broken_for_four(body: dict[str, Any], before: int) -> Reply:
        text = text_of(body)
        if "What is 4+1?" in text:
            return 500, "overloaded"
        return 200, FOR_SHOW if "What is 2+1?" in text else GOOD

    def curate(max_waiting: int, engine: ScriptedEngine) -> Any:
        settings = SftCurationSettings(judge=judge.settings(max_waiting=max_waiting))
        return curate_sft(source, source, None, out, settings, 0, engine=engine)

    judge.answer = broken_for_four
    with pytest.raises(BackendError, match=r"1 rows wait for the judge.*overloaded"):
        curate(0, ScriptedEngine(wrong))
    assert not out.exists()

    judge.requests.clear()
    again = ScriptedEngine(wrong)
    report = curate(1, again)
    assert again.batches == []
    assert {text_of(body).splitlines()[0] for body in judge.requests} == {"Question: What is 4+1?"}
    assert report.waiting == 1
    assert "1 rows wait for the judge" in (out / "report.md").read_text()
    waiting = read_trajectories(out / "waiting.parquet")
    assert [t.task.id for t in waiting] == ["sum-4"]
    rejected = pq.read_table(out / "rejected.parquet").to_pylist()
    assert [(row["id"], row["reason"]) for row in rejected] == [
        ("sum-2", "strategic-use: low tool use rationale: prints a constant")
    ]
    kept = [t.task.id for t in read_trajectories(out / "curated.parquet")]
    assert kept == ["sum-1", "sum-3", "sum-5", "sum-6"]


def curate_sums(judge: JudgeSettings, out: Path, numbers: range) -> CurationReport:
    source = out.parent / f"{out.name}.parquet"
    write_trajectories(source, [sum_of(number) for number in numbers])
    settings = SftCurationSettings(filters=("strategic-use",), judge=judge)
    return curate_sft(None, source, None, out, settings, 0)


def kept(out: Path) -> list[str]:
    return [t.task.id for t in read_trajectories(out / "curated.parquet")]


def test_a_rerun_over_the_same_rows_costs_nothing(judge: JudgeServer, tmp_path: Path) -> None:
    budget = Budget(cost=1.0, **PRICE)
    first = curate_sums(judge.settings(budget=budget), tmp_path / "a", range(1, 5))
    assert len(judge.requests) == 4
    assert "gave 4 replies for 4000 prompt and 400 reply tokens, 0.012 at" in first.notes[0]

    again = curate_sums(judge.settings(budget=budget), tmp_path / "b", range(1, 7))
    assert len(judge.requests) == 6
    assert "gave 2 replies" in again.notes[0]
    assert "4 more were remembered" in again.notes[0]
    assert kept(tmp_path / "b") == [f"sum-{number}" for number in range(1, 7)]

    # Another model, and other instructions, would be another judge.
    other = judge.settings().model_copy(update={"model": "other"})
    curate_sums(other, tmp_path / "c", range(1, 3))
    assert len(judge.requests) == 8


@pytest.mark.parametrize(
    "budget",
    [Budget(cost=2.5 * COST, **PRICE), Budget(tokens=3 * (PROMPT_TOKENS + REPLY_TOKENS))],
    ids=["cost", "tokens"],
)
def test_no_request_is_made_once_the_budget_is_spent_and_the_rest_waits(
    judge: JudgeServer, tmp_path: Path, budget: Budget
) -> None:
    tight = judge.settings(budget=budget, concurrency=1)
    report = curate_sums(tight, tmp_path / "tight", range(1, 9))
    assert len(judge.requests) == 3
    assert report.waiting == 5
    assert kept(tmp_path / "tight") == ["sum-1", "sum-2", "sum-3"]
    assert len(read_trajectories(tmp_path / "tight" / "waiting.parquet")) == 5
    assert "budget is spent" in (tmp_path / "tight" / "report.md").read_text()

    curate_sums(judge.settings(), tmp_path / "wide", range(1, 9))
    assert len(judge.requests) == 8
    assert len(kept(tmp_path / "wide")) == 8


def test_replies_that_cannot_be_read_are_paid_for_too(judge: JudgeServer, tmp_path: Path) -> None:
    judge.answer = lambda body, before: (200, "no JSON")
    asked = LlmJudge(judge.settings(budget=Budget(tokens=2200)), tmp_path)
    with pytest.raises(BudgetSpent):
        asked.trajectory(sum_of(1))
    assert len(judge.requests) == 2
    judge.answer = lambda body, before: (200, GOOD)
    resumed = LlmJudge(judge.settings(budget=Budget(tokens=2200)), tmp_path)
    with pytest.raises(BudgetSpent, match="2000 prompt and 200 reply tokens"):
        resumed.trajectory(sum_of(1))
    assert len(judge.requests) == 2


def test_a_limit_needs_a_server_that_counts_tokens(judge: JudgeServer) -> None:
    judge.counts_tokens = False
    assert LlmJudge(judge.settings()).trajectory(sum_of(1)).keep
    with pytest.raises(InputError, match=r"does not say how many tokens"):
        LlmJudge(judge.settings(budget=Budget(tokens=10))).trajectory(sum_of(1))
    with pytest.raises(ValueError, match=r"`cost` needs `prompt_price`"):
        Budget(cost=1.0)
    with pytest.raises(ValueError, match=r"`cost` needs `prompt_price` and `reply_price`"):
        Budget(cost=1.0, prompt_price=2.0)
    with pytest.raises(ValueError, match=r"`cost` needs `prompt_price` and `reply_price`"):
        Budget(cost=1.0, prompt_price=0.0, reply_price=0.0)
    assert Budget(cost=1.0, prompt_price=0.0, reply_price=2.0).cost == 1.0


def test_the_judge_finds_ambiguous_questions(judge: JudgeServer, tmp_path: Path) -> None:
    source, out = tmp_path / "tasks.parquet", tmp_path / "curated"
    write_tasks(source, [sum_of(n).task for n in range(1, 5)])
    judge.answer = lambda body, before: (200, DROP if "What is 2+1?" in text_of(body) else KEEP)

    def half_right(conversation: list[Message], tools: bool, index: int) -> str:
        question = conversation[0]["content"][-1]["text"]
        number = int(question.removeprefix("What is ").removesuffix("+1?"))
        return f"<answer>{number + index % 2}</answer>"

    settings = RlCurationSettings(generations=2, judge=judge.settings())
    engine = ScriptedEngine(half_right)
    report = curate_rl(source, source, None, out, settings, 0, engine=engine, tools=[])
    assert [t.id for t in read_tasks(out / "curated.parquet")] == ["sum-1", "sum-3", "sum-4"]
    dropped = {f.name: f.dropped for f in report.filters}
    assert (dropped["ambiguity"], dropped["rollouts"]) == (1, 0)
    assert "gave 4 replies" in report.notes[0]
    assert "one right answer" in judge.requests[0]["messages"][0]["content"]
