"""Published data, made ready for the steps: from folders and S3, killed midway, half broken."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto.server import ThreadedMotoServer
from typer.testing import CliRunner, Result

from toolwise.cli import app
from toolwise.data.parquet import read_tasks, read_trajectories
from toolwise.errors import InputError
from toolwise.preparation import PublishedData, prepare_published
from toolwise.profile import load_profile

SAMPLES = Path(__file__).parents[1] / "data" / "sources"
BENCHMARKS = Path(__file__).parents[1] / "data" / "benchmarks"

PUBLISHED = {
    "trajectories": [
        str(SAMPLES / "metis_coldstart"),
        {"path": str(SAMPLES / "deepeyesv2_sft"), "source": "deepeyesv2_sft"},
        str(SAMPLES / "thyme_sft" / "data" / "comp*.parquet"),
    ],
    "tasks": [str(SAMPLES / "metis_rl"), str(SAMPLES / "metis_rl"), str(SAMPLES / "deepeyesv2_rl")],
    "benchmark": str(SAMPLES / "openmmreasoner" / "rl"),
}

KILLED = """
import json, os, signal, sys
from pathlib import Path
from toolwise.preparation import PublishedData, prepare_published

def progress(done, total, note):
    if note.startswith("tasks"):
        os.kill(os.getpid(), signal.SIGKILL)

prepare_published(PublishedData.model_validate_json(sys.argv[1]), Path(sys.argv[2]), 0, progress)
"""


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "published.jsonl"
    rows = [
        {"id": "0", "contents": '"Aniline"\nOtto Unverdorben isolated it in 1826.'},
        {"id": 7, "title": "Indigo", "text": "A dye.", "url": "https://example.com"},
        {"id": "8", "title": "Nothing"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def published(corpus: Path) -> PublishedData:
    return PublishedData.model_validate({**PUBLISHED, "corpus": str(corpus)})


def rejected(folder: Path, kind: str) -> list[tuple[str, int]]:
    lines = (folder / f"{kind}.rejects.jsonl").read_text().splitlines()
    return [(Path(line["file"]).name, line["row"]) for line in map(json.loads, lines)]


def test_every_kind_is_read_from_all_its_sets(tmp_path: Path, corpus: Path) -> None:
    told: list[tuple[int, int, str]] = []
    folder = tmp_path / "out"
    count = prepare_published(published(corpus), folder, 0, lambda *event: told.append(event))
    trajectories = read_trajectories(folder / "raw_trajectories.parquet")
    assert [row.task.source for row in trajectories] == (
        ["metis-coldstart"] * 3 + ["deepeyesv2_sft"] * 3 + ["thyme_sft"]
    )
    tasks = [task.id for task in read_tasks(folder / "rl_tasks.parquet")]
    assert tasks[:6] == [
        "vthinker-sft/source_index_0",
        "deepeyes-perception/source_index_1",
        "fvqa/source_index_2",
        "vthinker-sft/source_index_0#2",
        "deepeyes-perception/source_index_1#2",
        "fvqa/source_index_2#2",
    ]
    assert len(tasks) == 10
    assert [task.id for task in read_tasks(folder / "benchmark.parquet")] == ["virl39k/0"]
    passages = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    assert passages == [
        {"id": "0", "title": "Aniline", "text": "Otto Unverdorben isolated it in 1826."},
        {"id": "7", "title": "Indigo", "text": "A dye."},
    ]
    assert count == 4
    assert rejected(folder, "trajectories") == [("sft_part_1.json", 1)]
    assert rejected(folder, "tasks") == [("train.parquet", 3)] * 2
    assert rejected(folder, "corpus") == [("published.jsonl", 2)]
    assert told[0] == (0, 4, "trajectories: 0 rows")
    assert [done for done, _, _ in told] == [0, 1, 2, 3]


def test_a_killed_preparation_goes_on_and_gives_what_an_undisturbed_one_gives(
    tmp_path: Path, corpus: Path
) -> None:
    folder = tmp_path / "out"
    process = subprocess.run(
        [sys.executable, "-c", KILLED, published(corpus).model_dump_json(), str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.returncode == -signal.SIGKILL
    done = folder / "raw_trajectories.parquet"
    before = done.stat().st_mtime_ns
    assert not (folder / "rl_tasks.parquet").exists()
    assert prepare_published(published(corpus), folder, 0) == 4
    assert done.stat().st_mtime_ns == before, "not read again"
    whole = tmp_path / "whole"
    prepare_published(published(corpus), whole, 0)
    for name in ("raw_trajectories.parquet", "rl_tasks.parquet", "corpus.jsonl"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()


def test_a_kind_of_which_nothing_can_be_read_is_an_error_that_says_why(tmp_path: Path) -> None:
    (tmp_path / "odd.jsonl").write_text('{"text": "once"}\n' * 3)
    odd = PublishedData.model_validate({"tasks": str(tmp_path / "odd.jsonl")})
    with pytest.raises(InputError) as caught:
        prepare_published(odd, tmp_path / "out", 0)
    assert "tasks: no row could be read (3 rejected;" in str(caught.value)
    assert "odd.jsonl, row 0: no known source has the columns ['text']" in str(caught.value)
    assert not (tmp_path / "out" / "rl_tasks.parquet").exists()


def test_benchmarks_are_given_by_name(tmp_path: Path) -> None:
    named = PublishedData.model_validate(
        {
            "benchmark": [
                {"source": "vstar", "path": str(BENCHMARKS / "vstar.parquet")},
                {"source": "treebench", "path": str(BENCHMARKS / "treebench.tsv")},
            ]
        }
    )
    prepare_published(named, tmp_path / "out", 0)
    items = read_tasks(tmp_path / "out" / "benchmark.parquet")
    assert {item.source for item in items} == {"vstar", "treebench"}
    assert len({item.id for item in items}) == len(items)


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("TOOLWISE_CACHE", str(tmp_path / "cache"))
    client = boto3.client("s3")
    client.create_bucket(Bucket="published")
    yield client
    server.stop()


def test_a_data_set_and_its_pictures_come_from_s3(tmp_path: Path, bucket: Any) -> None:
    for file in ("json/sft_part_0.json", "json/sft_part_1.json"):
        bucket.upload_file(str(SAMPLES / "deepeyesv2_sft" / file), "published", f"deepeyes/{file}")
    bucket.upload_file(
        str(SAMPLES / "deepeyesv2_sft" / "images.zip"), "published", "pictures/images.zip"
    )
    data = {
        "trajectories": {
            "path": "s3://published/deepeyes",
            "images": "s3://published/pictures/images.zip",
        }
    }
    assert prepare_published(PublishedData.model_validate(data), tmp_path / "out", 0) == 1
    assert len(read_trajectories(tmp_path / "out" / "raw_trajectories.parquet")) == 3


@pytest.fixture
def by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOLWISE_WORK", str(tmp_path / "steps"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.delenv("TOOLWISE_EVENTS", raising=False)


def toolwise(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, list(arguments))


@pytest.mark.usefixtures("by_hand")
def test_published_trajectories_are_curated_straight_from_their_file(tmp_path: Path) -> None:
    out = tmp_path / "curated"
    result = toolwise(
        "curate-sft",
        *("--trajectories", str(SAMPLES / "metis_coldstart"), "--source", "metis_coldstart"),
        *("--only", "form", "--only", "re-execution", "--out", str(out)),
    )
    assert result.exit_code == 0, result.output
    kept = {row.task.id for row in read_trajectories(out / "curated.parquet")}
    assert {"metis-coldstart/sft_0", "metis-coldstart/sft_1"} <= kept


@pytest.mark.usefixtures("by_hand")
def test_published_prompts_are_curated_straight_from_their_file(tmp_path: Path) -> None:
    out = tmp_path / "curated"
    result = toolwise(
        "curate-rl",
        *("--tasks", str(SAMPLES / "metis_rl" / "train.parquet")),
        *("--only", "image", "--only", "question", "--out", str(out)),
    )
    assert result.exit_code == 0, result.output
    kept = [task.id for task in read_tasks(out / "curated.parquet")]
    assert kept == [
        "vthinker-sft/source_index_0",
        "deepeyes-perception/source_index_1",
        "fvqa/source_index_2",
    ]


@pytest.mark.usefixtures("by_hand")
@pytest.mark.parametrize(
    ("command", "rows", "source", "filters"),
    [
        ("curate-sft", "--trajectories", "deepeyesv2_sft", ("form", "re-execution")),
        ("curate-sft", "--trajectories", "thyme_sft", ("form",)),
        ("curate-sft", "--trajectories", "v_interaction", ("form", "re-execution")),
        ("curate-sft", "--trajectories", "sharegpt", ("form", "re-execution")),
        ("curate-sft", "--trajectories", "openai_messages", ("form", "re-execution")),
        ("curate-rl", "--tasks", "deepeyesv2_rl", ("image", "question")),
        ("curate-rl", "--tasks", "openmmreasoner", ("image", "question")),
    ],
)
def test_the_samples_of_every_source_go_through_curation(
    tmp_path: Path, command: str, rows: str, source: str, filters: tuple[str, ...]
) -> None:
    out = tmp_path / "curated"
    only = [part for name in filters for part in ("--only", name)]
    result = toolwise(command, rows, str(SAMPLES / source), *only, "--out", str(out))
    assert result.exit_code == 0, result.output
    report = json.loads((out / "report.json").read_text())
    assert sum(report["kept"].values()) > 0
    assert [entry["name"] for entry in report["filters"]] == list(filters)
    assert (out / "report.html").exists()


def test_an_unknown_source_lists_those_there_are(tmp_path: Path) -> None:
    process = subprocess.run(
        [
            *(sys.executable, "-m", "toolwise.cli", "curate-rl", "--source", "metis"),
            *("--tasks", str(SAMPLES / "metis_rl"), "--out", str(tmp_path / "out")),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.returncode == 1
    assert "there is no source 'metis'; there are: metis_coldstart, metis_rl" in process.stderr
    assert "Traceback" not in process.stderr


def test_a_profile_names_published_data_shortly_or_in_full(tmp_path: Path) -> None:
    profile = {
        "name": "mine",
        "data": {
            "published": {
                "trajectories": "hf://datasets/Accio-Lab/Metis-ColdStart",
                "tasks": [{"path": "s3://bucket/rows.jsonl", "source": "openai_messages"}],
                "benchmark": ["vstar", "hrbench_4k"],
                "corpus": "corpus.jsonl",
            }
        },
        "base": {"train": {}},
        **{name: {} for name in ("curate_sft", "sft", "curate_rl", "hdpo", "evaluate")},
        "promote": {},
        "serve": {},
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(profile))
    data = load_profile(str(path)).data.published
    assert data is not None
    assert data.trajectories[0].path == "hf://datasets/Accio-Lab/Metis-ColdStart"
    assert data.tasks[0].source == "openai_messages"
    assert [one.path for one in data.benchmark] == ["vstar", "hrbench_4k"]
    del profile["data"]["published"]["tasks"]
    path.write_text(yaml.safe_dump(profile))
    with pytest.raises(InputError, match=r"data\.published lacks `tasks`"):
        load_profile(str(path))
