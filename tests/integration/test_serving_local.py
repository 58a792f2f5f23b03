"""A checkpoint deployed as a process of its own and asked, with the tiny model in process."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai
import psutil
import pytest
import torch
from PIL import Image
from served import START_SECONDS, free_port

from toolwise.data import Task, encode_image
from toolwise.data.parquet import write_tasks
from toolwise.errors import BackendError, InputError
from toolwise.serving.cluster import DeploymentSettings
from toolwise.serving.deploy import (
    LOG,
    Endpoint,
    ask,
    ask_two,
    deploy_local,
    is_deployed,
    stop_local,
)
from toolwise.serving.settings import ServingSettings
from toolwise.steps import run_step
from toolwise.synthetic.model import build_model, build_processor
from toolwise.tools.python import PYTHON_SCHEMA
from toolwise.tools.text_search import TEXT_SEARCH_SCHEMA

QUESTION = Task("a", "test", "math", "2 + 2?", ("4",))
RED = encode_image(Image.new("RGB", (40, 30), "red"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    processor = build_processor([PYTHON_SCHEMA, TEXT_SEARCH_SCHEMA])
    processor.save_pretrained(path)
    build_model(processor.tokenizer).save_pretrained(path)
    return path


def untried(_: Endpoint) -> None:
    """Take the endpoint as it is."""


def checkpoint_saying(token: str, path: Path) -> Path:
    """A checkpoint that says nothing but this token."""
    processor = build_processor([PYTHON_SCHEMA, TEXT_SEARCH_SCHEMA])
    processor.save_pretrained(path)
    model = build_model(processor.tokenizer)
    with torch.no_grad():
        for weights in model.parameters():
            weights.zero_()
        model.model.language_model.norm.weight.fill_(1)
        words = model.get_input_embeddings().weight
        words.fill_(1)
        words[processor.tokenizer.convert_tokens_to_ids(token)] = 10
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_text(json.dumps({"id": "1", "title": "x", "text": "y"}))
    return path


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def settings() -> ServingSettings:
    return ServingSettings(port=free_port(), max_tokens=8, max_turns=2)


@pytest.fixture(scope="module")
def endpoint(
    checkpoint: Path, corpus: Path, run_dir: Path, settings: ServingSettings
) -> Iterator[Endpoint]:
    yield deploy_local(checkpoint, corpus, run_dir, settings, untried, START_SECONDS)
    stop_local(run_dir)


def test_the_server_outlives_whoever_deployed_it(endpoint: Endpoint, run_dir: Path) -> None:
    assert is_deployed(run_dir)
    assert endpoint.pid is not None
    assert os.getsid(endpoint.pid) == endpoint.pid


def test_an_untrained_model_answers_with_its_tokens_counted(endpoint: Endpoint) -> None:
    reply = ask(endpoint, "What number is on the sign?", [RED])
    assert set(reply.toolwise) >= {"calls", "tool_calls", "abstained", "stop_reason"}
    assert reply.seconds > 0


def test_the_same_seed_gives_the_same_text(endpoint: Endpoint) -> None:
    with openai.OpenAI(base_url=endpoint.url, api_key="none") as client:

        def sample(seed: int) -> str | None:
            reply = client.chat.completions.create(
                model=endpoint.model,
                messages=[{"role": "user", "content": "hi"}],
                temperature=1,
                seed=seed,
            )
            assert reply.usage is not None
            assert reply.usage.completion_tokens <= 8
            return reply.choices[0].message.content

        first = sample(1)
        assert sample(1) == first
        assert any(sample(seed) != first for seed in range(2, 6))


def test_a_conversation_beyond_the_context_is_refused(endpoint: Endpoint) -> None:
    with pytest.raises(InputError, match="512"):
        ask(endpoint, "x" * 5000)


def test_two_tasks_are_asked_graded_and_written(endpoint: Endpoint, tmp_path: Path) -> None:
    direct = Task("a", "test", "math", "2 + 2?", ("4",))
    needs_tool = Task("b", "test", "perception", "What colour?", ("red",), (RED,), choices=("r",))
    out = tmp_path / "endpoint.json"
    answers = ask_two(endpoint, direct, needs_tool, out)

    assert [a.task_id for a in answers] == ["a", "b"]
    assert not any(a.correct for a in answers)
    written = json.loads(out.read_text())
    assert (written["url"], written["pid"]) == (endpoint.url, endpoint.pid)
    assert [set(a) for a in written["answers"]] == 2 * [
        {"task_id", "question", "expected", "answer", "correct", "tool_calls", "seconds"}
    ]
    assert written["answers"][1]["question"] == "What colour?\n(A) r"


def test_another_deployment_on_the_port_is_refused_and_leaves_the_first(
    endpoint: Endpoint, checkpoint: Path, settings: ServingSettings, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"port {settings.port}"):
        deploy_local(checkpoint, None, tmp_path, settings, untried, START_SECONDS)
    assert not is_deployed(tmp_path)
    assert httpx.get(f"{endpoint.url}/models").status_code == 200


def test_deploying_again_replaces_the_server(
    endpoint: Endpoint, checkpoint: Path, corpus: Path, run_dir: Path, settings: ServingSettings
) -> None:
    again = deploy_local(checkpoint, corpus, run_dir, settings, untried, START_SECONDS)
    assert again.url == endpoint.url
    assert again.pid != endpoint.pid
    assert endpoint.pid is not None
    assert not psutil.pid_exists(endpoint.pid)
    assert stop_local(run_dir)
    assert not is_deployed(run_dir)
    assert not stop_local(run_dir)
    with pytest.raises(BackendError, match=endpoint.url):
        ask(endpoint, "anyone there?")


def test_what_is_no_checkpoint_is_told_with_the_servers_words(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    settings = ServingSettings(port=free_port())
    with pytest.raises(InputError, match=r"config\.json"):
        deploy_local(tmp_path / "model", None, tmp_path / "run", settings, untried, START_SECONDS)
    assert (tmp_path / "run" / LOG).exists()


def test_a_server_that_is_not_ready_in_time_is_stopped(checkpoint: Path, tmp_path: Path) -> None:
    settings = ServingSettings(port=free_port())
    with pytest.raises(BackendError, match="not ready within 0 s"):
        deploy_local(checkpoint, None, tmp_path, settings, untried, ready_seconds=0)
    assert not is_deployed(tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", settings.port))


def test_a_process_id_used_again_is_not_stopped(tmp_path: Path) -> None:
    (tmp_path / "server.json").write_text(
        json.dumps({"pid": os.getpid(), "created": 1.0, "grace_seconds": 1})
    )
    assert not stop_local(tmp_path)


@pytest.fixture
def deploys(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Path], Endpoint]]:
    """The step `deploy` with a checkpoint, as a pipeline runs it; its endpoint."""
    monkeypatch.setenv("TOOLWISE_WORK", str(tmp_path / "steps"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    write_tasks(tmp_path / "benchmark.parquet", [QUESTION])
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "scores.jsonl").touch()
    serve = ServingSettings(port=free_port(), max_tokens=4)
    settings = DeploymentSettings(serve=serve).model_dump_json()

    def deploy(model: Path) -> Endpoint:
        inputs = {
            "model": model,
            "evaluation": tmp_path / "evaluation",
            "benchmark": tmp_path / "benchmark.parquet",
            "corpus": corpus,
        }
        done = run_step("deploy", settings, 0, **{name: str(at) for name, at in inputs.items()})
        written = json.loads(done.outputs["endpoint"].read_text())
        return Endpoint(written["url"], written["model"], written["pid"])

    yield deploy
    stop_local(tmp_path / "steps" / "deploy")


def test_what_does_not_work_gives_way_to_the_model_before(
    deploys: Callable[[Path], Endpoint], tmp_path: Path
) -> None:
    """One has no answer to the questions, the other does not start."""
    run_dir = tmp_path / "steps" / "deploy"
    seven = checkpoint_saying("7", tmp_path / "seven")
    mute = checkpoint_saying("<|im_end|>", tmp_path / "mute")
    (tmp_path / "nothing").mkdir()
    first = deploys(seven)
    assert ask(first, "2 + 2?").answer == "7777"

    with pytest.raises(BackendError, match=r"no answer to the question a\n.* is back and ready"):
        deploys(mute)
    assert ask(first, "2 + 2?").answer == "7777"
    with pytest.raises(InputError, match=r"(?s)config\.json.* is back and ready"):
        deploys(tmp_path / "nothing")
    assert ask(first, "2 + 2?").answer == "7777"
    assert (run_dir / "model").readlink() == seven


def test_a_first_deployment_that_does_not_work_is_stopped(
    deploys: Callable[[Path], Endpoint], tmp_path: Path
) -> None:
    mute = checkpoint_saying("<|im_end|>", tmp_path / "mute")
    with pytest.raises(BackendError, match="no answer to the question a\nThere was none before"):
        deploys(mute)
    assert not is_deployed(tmp_path / "steps" / "deploy")
