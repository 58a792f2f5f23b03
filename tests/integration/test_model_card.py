"""The lineage of a registered version, as MLflow has it, and the card made of it."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from mlflow.tracking import MlflowClient
from pyarrow import parquet
from pydantic import BaseModel

from toolwise import tracking
from toolwise.evaluation.metrics import RolloutScore, summarise, write_scores
from toolwise.profile import load_profile, profile_names
from toolwise.promotion.gate import decide
from toolwise.promotion.lineage import Lineage, Stage, UsedData, read_lineage
from toolwise.promotion.model_card import LONGEST_DESCRIPTION, description, model_card
from toolwise.promotion.policy import GatePolicy
from toolwise.promotion.registry import Registry
from toolwise.steps import Step, perform
from toolwise.steps.lineage import licence, linked
from toolwise.storage import content_digest
from toolwise.tracking import PipelineRun
from toolwise.tracking.runs import _flat

SCORES = [
    RolloutScore(
        f"{i}", "math", mode, 0, mode == "greedy" or i % 2 == 0, calls, 0, 9, 0.5, 0.0, "7"
    )
    for i in range(200)
    for mode, right, calls in (("greedy", True, i % 2), ("tools_off", i % 2 == 0, 0))
]

DECISION = decide(GatePolicy(), SCORES, baseline=SCORES)


class Trained:
    """A base model, an SFT model made from it and measured, on record in MLflow."""

    def __init__(self, uri: str, folder: Path) -> None:
        self.folder = folder
        self.metrics = {
            **{mode: summarise(SCORES, mode) for mode in ("greedy", "sampled")},
            "benchmark": "b1",
            "items": 200,
            "solvable": 100,
            "settings": {"counterfactual_samples": 8},
        }
        self.data = folder / "curated.parquet"
        parquet.write_table(pa.table({"question": ["one", "two", "three"]}), self.data)
        self.base, self.sft = self._checkpoint("base"), self._checkpoint("sft")
        run = PipelineRun("card", "run")
        with tracking.step(run, "base-model", params={"seed": 0}, uri=uri) as step:
            step.writes_model(self.base, "base", tags={"toolwise.licence": "apache-2.0"})
        with tracking.step(run, "train-sft", params={"steps": 400}, uri=uri) as step:
            step.reads_model(self.base, "model")
            step.dataset(self.data, "training")
            step.writes_model(self.sft, "sft", step=400)
        self.training = step.run_id
        with tracking.step(run, "evaluate sft", uri=uri) as step:
            self.model_id = step.evaluation("sft", self._evaluation(), self.data, self.sft)
        self.evaluation = step.run_id

    def _checkpoint(self, name: str) -> Path:
        checkpoint = self.folder / name
        checkpoint.mkdir()
        (checkpoint / "weights").write_text(name)
        return checkpoint

    def _evaluation(self) -> Path:
        directory = self.folder / "evaluation"
        directory.mkdir()
        write_scores(directory / "scores.jsonl", SCORES)
        (directory / "metrics.json").write_text(json.dumps(self.metrics))
        (directory / "samples.jsonl").write_text("")
        return directory


@pytest.fixture(scope="module")
def trained(mlflow_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    # One file is training data and benchmark here: both are told apart by what they are for.
    return Trained(mlflow_uri, tmp_path_factory.mktemp("card"))


@pytest.fixture(scope="module")
def lineage(mlflow_uri: str, trained: Trained) -> Lineage:
    return read_lineage(tracking.Connection(mlflow_uri), trained.evaluation)


def test_the_lineage_goes_from_the_evaluation_to_the_base_model(lineage: Lineage, trained: Trained):
    assert lineage.model_id == trained.model_id
    assert lineage.evaluation.checkpoint == content_digest(trained.sft)
    assert [stage.name for stage in lineage.trainings] == ["train-sft", "base-model"]
    sft, base = lineage.trainings
    assert sft.run_id == trained.training
    assert sft.params == {"steps": "400"}
    assert [(d.name, d.context, d.rows) for d in sft.data] == [("curated.parquet", "training", 3)]
    assert sft.data[0].digest == content_digest(trained.data)[:32]
    assert (base.checkpoint, base.licence) == (content_digest(trained.base), "apache-2.0")


def test_the_checkpoint_measured_is_the_logged_model_its_training_made(
    mlflow_uri: str, trained: Trained
):
    model = MlflowClient(mlflow_uri).get_logged_model(trained.model_id)
    assert model.source_run_id == trained.training
    metrics = {metric.key: metric for metric in model.metrics or []}
    accuracy = metrics["greedy/overall/accuracy"]
    assert (accuracy.value, accuracy.dataset_name) == (1.0, "curated.parquet")
    assert accuracy.dataset_digest == content_digest(trained.data)[:32]


def test_the_card_says_data_training_metrics_with_intervals_limits_and_licence(
    lineage: Lineage, trained: Trained
):
    card = model_card("signboard", lineage, trained.metrics, DECISION, "s3://models/sft")
    # 100 calls on 200 items: Wilson's interval of one half is 0.5 ± 0.0686.
    assert "| Tool-call rate | 0.50 [0.43, 0.57] (200) | 0.50 [0.43, 0.57] (200) |" in card
    digest = content_digest(trained.data)[:32]
    assert f"| train-sft | training | curated.parquet | 3 | `{digest}` |" in card
    assert "| steps | 400 |" in card
    assert f"**{DECISION.decision}**" in card
    assert all(criterion.why in card for criterion in DECISION.criteria)
    assert "counts as needing one in 34% of cases" in card  # 1 - 0.95**8
    assert "The checkpoint it starts from says: apache-2.0." in card
    assert [line for line in card.splitlines() if line.startswith("## ")] == [
        f"## {part}" for part in ("Decision", "Metrics", "Data", "Training", "Limits", "Licence")
    ]


def test_what_is_not_on_record_is_said_to_be_unknown(lineage: Lineage, trained: Trained):
    unknown = Lineage("", None, lineage.evaluation, ())
    card = model_card("signboard", unknown, trained.metrics, DECISION, "served")
    assert "How it was trained is not on record." in card
    assert "overlap with the benchmark is unknown" in card
    assert "does not say. Find out before" in card


def test_a_registered_version_carries_its_card_and_its_lineage(
    mlflow_uri: str, lineage: Lineage, trained: Trained
):
    registry = Registry("card", tracking.Connection(mlflow_uri))
    version = registry.register(trained.evaluation, "s3://models/sft")
    registry.describe(version, "# card", lineage.tags())
    digest = content_digest(trained.data)[:32]
    stored = MlflowClient(mlflow_uri).get_model_version("card", version)
    assert stored.description == "# card"
    assert stored.run_id == trained.evaluation
    assert stored.tags["toolwise.digest"] == content_digest(trained.sft)
    assert stored.tags["toolwise.git_commit"] == lineage.evaluation.commit
    for step in ("train-sft", "evaluate sft"):
        assert stored.tags[f"toolwise.data.{step}/curated.parquet"] == digest


def test_data_files_of_one_name_keep_a_digest_for_each_step(lineage: Lineage):
    curated = UsedData("curated.parquet", "1" * 32, "training", 10)
    sft, base = lineage.trainings
    hdpo = replace(sft, name="train-hdpo", data=(replace(curated, digest="2" * 32),))
    tags = replace(lineage, trainings=(hdpo, replace(sft, data=(curated,)), base)).tags()
    assert tags["toolwise.data.train-hdpo/curated.parquet"] == "2" * 32
    assert tags["toolwise.data.train-sft/curated.parquet"] == "1" * 32


def of_profile(name: str) -> Lineage:
    """What a pipeline run of a profile puts on record: all settings, and data of every step."""
    profile = load_profile(name)

    def stage(step: str, settings: BaseModel, *files: str) -> Stage:
        data = tuple(UsedData(file, "d" * 32, "training", 10_000) for file in files)
        params = {"seed": "0", **dict(_flat(settings))}
        return Stage(step, "b" * 32, "c" * 40, params, data, "e" * 64, "apache-2.0")

    return Lineage(
        "f" * 32,
        "m-" + "0" * 32,
        stage("evaluate hdpo", profile.evaluate, "benchmark.parquet"),
        (
            stage("train-hdpo", profile.hdpo, "curated.parquet", "corpus.jsonl"),
            stage("train-sft", profile.sft, "curated.parquet"),
            stage("base-model", profile.base),
        ),
    )


@pytest.mark.parametrize("profile", profile_names())
def test_the_description_of_a_version_fits_mlflows_database_and_leads_to_the_card(profile: str):
    lineage = of_profile(profile)
    scores = [
        replace(row, task_id=f"{ability}-{row.task_id}", ability=ability, mode=mode)
        for ability in ("perception", "math", "search")
        for row in SCORES
        for mode in (("greedy", "sampled") if row.mode == "greedy" else ("tools_off",))
    ]
    metrics = {
        **{mode: summarise(scores, mode) for mode in ("greedy", "sampled")},
        "items": 600,
        "solvable": 300,
        "settings": {"counterfactual_samples": 8},
    }
    decision = decide(GatePolicy(), scores, baseline=scores)
    known = (profile, lineage, metrics, decision, "s3://models/runs/1/hdpo")
    assert len(model_card(*known)) > LONGEST_DESCRIPTION
    text = description(*known, "runs:/1/model_card.md")
    assert len(text) <= LONGEST_DESCRIPTION
    assert "in the whole card, `runs:/1/model_card.md`" in text
    assert all(criterion.why in text for criterion in decision.criteria)
    assert "says: apache-2.0." in text
    assert f"| train-hdpo | training | curated.parquet | 10000 | `{'d' * 32}` |" in text
    assert "| Accuracy | 1.00 [0.99, 1.00] (600) |" in text


def test_a_description_of_very_much_data_is_cut_between_lines(trained: Trained, lineage: Lineage):
    sft, base = lineage.trainings
    files = tuple(UsedData(f"part-{n:03}.parquet", "d" * 32, "training", 1) for n in range(200))
    much = replace(lineage, trainings=(replace(sft, data=files), base))
    text = description("card", much, trained.metrics, DECISION, "s3://m", "runs:/1/model_card.md")
    assert len(text) <= LONGEST_DESCRIPTION
    *_, last, _, rest = text.splitlines()
    assert last.startswith("| train-sft | training | part-")
    assert last.endswith(" |")
    assert rest == "The rest is in the whole card."


def test_a_checkpoint_that_leaves_the_machine_is_logged_with_its_address(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    monkeypatch.setenv("TOOLWISE_WORK", str(tmp_path))
    digests: dict[str, str] = {}

    def train(step: Step) -> dict[str, Path]:
        checkpoint = step.folder / "checkpoint"
        checkpoint.mkdir()
        (checkpoint / "weights").write_text(step.settings)
        digests[step.settings] = content_digest(checkpoint)
        return {"checkpoint": checkpoint}

    client, found = MlflowClient(mlflow_uri), {}
    for address in ("s3://bucket/run/checkpoint", str(tmp_path / "published")):
        settings = json.dumps({"to": address})
        perform(linked(train), "train-hdpo", settings, 0, {}, address=address)
        experiment = client.get_experiment_by_name("toolwise")
        assert experiment is not None
        [model] = client.search_logged_models(
            [experiment.experiment_id], f"tags.`toolwise.digest` = '{digests[settings]}'"
        )
        found[address] = model.params["checkpoint"]
    remote, local = found.values()
    assert remote == "s3://bucket/run/checkpoint"
    assert local.startswith(str(tmp_path / "train-hdpo"))


@pytest.mark.parametrize(
    ("curve", "last"),
    [('{"step": 1, "loss": 0.5}\n{"step": 25, "loss": 0.1}\n{"step": 25}\n', 25), (None, 0)],
)
def test_a_checkpoint_is_logged_with_the_last_step_of_its_curve(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, curve: str | None, last: int
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    monkeypatch.setenv("TOOLWISE_WORK", str(tmp_path))
    ids: list[str] = []

    def train(step: Step) -> dict[str, Path]:
        checkpoint = step.folder / "checkpoint"
        checkpoint.mkdir()
        (checkpoint / "weights").write_text(f"{last}")
        if curve is not None:
            (checkpoint / "train_log.jsonl").write_text(curve)
        ids.append(step.run.run_id)
        return {"checkpoint": checkpoint}

    perform(linked(train), "train-hdpo", "{}", last, {})
    outputs = MlflowClient(mlflow_uri).get_run(ids[0]).outputs
    assert outputs is not None
    assert [output.step for output in outputs.model_outputs] == [last]


@pytest.mark.parametrize(
    ("readme", "said"),
    [
        ("---\nlicense: mit\ntags: [a]\n---\n# Model\nlicense: other\n", "mit"),
        ("# Model\nlicense: mit\n", ""),
        ("---\ntags: [a]\n---\nlicense: mit\n", ""),
    ],
)
def test_a_licence_is_what_the_front_matter_of_the_readme_says(
    tmp_path: Path, readme: str, said: str
):
    (tmp_path / "README.md").write_text(readme)
    assert licence(tmp_path) == said
