"""The judge of open answers, over real HTTP. The scripted server replies with its prompt."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from scripted_server import ScriptedServer

from toolwise import retry
from toolwise.data import AnswerType, Task
from toolwise.errors import BackendError, InputError
from toolwise.evaluation.benchmarks import Score, published
from toolwise.evaluation.scoring.answer_judge import LlmAnswerJudge
from toolwise.judge.endpoint import EndpointSettings

YES_OR_NO = r"\s*[01]\s*"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(retry, "LONGEST_WAIT", 0.02)
    with ScriptedServer() as running:
        yield running


def judge_at(server: ScriptedServer, cache: Path | None = None, **options: Any) -> LlmAnswerJudge:
    return LlmAnswerJudge(EndpointSettings(base_url=server.url, model="judge", **options), cache)


def test_the_judge_is_asked_the_prompt_and_nothing_else(server: ScriptedServer):
    assert judge_at(server)(" 1 ", YES_OR_NO) == "1"
    (request,) = server.requests
    assert request["messages"] == [{"role": "user", "content": " 1 "}]
    assert request["model"] == "judge"
    assert request["temperature"] == 0


def test_the_same_question_is_paid_for_once_also_in_another_run(
    server: ScriptedServer, tmp_path: Path
):
    cache = tmp_path / "replies.jsonl"
    assert judge_at(server, cache)("1") == "1"
    again = judge_at(server, cache)
    assert [again("1"), again("1"), again("2")] == ["1", "1", "2"]
    assert len(server.requests) == 2
    assert judge_at(server, tmp_path / "other.jsonl")("1") == "1"
    assert len(server.requests) == 3


def test_another_model_is_asked_itself(server: ScriptedServer, tmp_path: Path):
    cache = tmp_path / "replies.jsonl"
    judge_at(server, cache)("1")
    other = EndpointSettings(base_url=server.url, model="other")
    LlmAnswerJudge(other, cache)("1")
    assert len(server.requests) == 2


def test_a_line_cut_short_by_a_kill_is_asked_for_again(server: ScriptedServer, tmp_path: Path):
    cache = tmp_path / "replies.jsonl"
    judge = judge_at(server, cache)
    for question in ("1", "2"):
        judge(question)
    cache.write_bytes(cache.read_bytes()[:-5])
    after = judge_at(server, cache)
    assert [after("1"), after("2"), after("3")] == ["1", "2", "3"]
    assert [request["messages"][0]["content"] for request in server.requests] == list("12") + list(
        "23"
    )
    assert all(json.loads(line) for line in cache.read_text().splitlines()[-2:])


def test_a_reply_without_the_form_is_no_verdict_and_is_not_kept(
    server: ScriptedServer, tmp_path: Path
):
    cache = tmp_path / "replies.jsonl"
    with pytest.raises(BackendError, match=r"judge judge at http.*the form.*perhaps"):
        judge_at(server, cache)("perhaps", YES_OR_NO)
    assert len(server.requests) == retry.ATTEMPTS
    assert cache.read_text() == ""


def test_reasoning_in_front_of_a_reply_is_not_part_of_it(server: ScriptedServer):
    assert judge_at(server)("<think>0 or 1? It is 1.</think>\n1", YES_OR_NO) == "1"


def test_a_fault_that_passes_is_waited_out_and_one_that_stays_is_an_error(server: ScriptedServer):
    judge = judge_at(server)
    assert judge("!once 503") == "<answer>after all</answer>"
    with pytest.raises(BackendError, match="judge judge at http"):
        judge("!status 500")
    before = len(server.requests)
    with pytest.raises(BackendError, match="scripted 401"):
        judge("!status 401")
    assert len(server.requests) == before + 1  # a refusal does not pass


def test_a_judge_that_does_not_answer_in_time_is_an_error(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(retry, "ATTEMPTS", 2)
    with pytest.raises(BackendError, match="timed out"):
        judge_at(server, timeout=0.2)("!hold")


def test_threads_may_ask_at_once(server: ScriptedServer, tmp_path: Path):
    cache = tmp_path / "replies.jsonl"
    judge = judge_at(server, cache)
    questions = [str(number) for number in range(20)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(judge, questions)) == questions
    again = judge_at(server, cache)
    assert [again(question) for question in questions] == questions
    assert len(server.requests) == 20


def test_a_cache_that_cannot_be_written_is_named(server: ScriptedServer, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"replies\.jsonl: the judge's replies cannot be kept"):
        judge_at(server, tmp_path / "file" / "replies.jsonl")


def test_an_item_whose_judge_gives_no_verdict_is_not_scored(server: ScriptedServer):
    mathverse = published("mathverse")
    assert mathverse is not None
    metadata = {"standard": "Find x.|1", "version": "Text Lite"}
    task = Task("1", "mathverse", "math", "?", ("50 cm",), (), AnswerType.MATH, (), metadata)
    with pytest.raises(BackendError, match="the form"):  # it is sent its prompt up to `|`
        mathverse.score(task, "half a metre", judge_at(server))
    assert mathverse.score(task, "half a metre", None) == Score(False, "rule (no judge)")
