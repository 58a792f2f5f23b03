"""Commands that do one step, by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console

from toolwise.cli.application import STEP, app, stdout
from toolwise.cli.options import (
    CorpusOption,
    ImagesOption,
    ModelOption,
    OnlyOption,
    OptionalCorpus,
    OutOption,
    ProfileOption,
    SeedOption,
    SourceOption,
)
from toolwise.cli.tracking import name_tracking
from toolwise.errors import InputError
from toolwise.tools.sandbox.contract import Isolation

if TYPE_CHECKING:
    from pydantic import BaseModel

    from toolwise.events import EventSink
    from toolwise.steps import FinishedStep


Settings = TypeVar("Settings", bound="BaseModel")


def run_by_hand(
    name: str,
    profile: str,
    seed: int | None,
    outputs: dict[str, Path],
    stage: str = "",
    changes: Mapping[str, Any] | None = None,
    again: bool = False,
    **inputs: Path,
) -> None:
    """Run one step with its section of the profile, with progress, and publish its outputs.

    `changes` are settings that the command line has instead of the profile; with `again`, what an
    earlier run did is done once more.
    """
    from toolwise.profile import load_profile

    for path in outputs.values():
        _check_vacant(path)
    settings = load_profile(profile)
    name_tracking(profile)
    section = settings.section_of(name)
    if changes:
        section = _changed(section, changes)
    step = _shown(
        name, section, settings.seed if seed is None else seed, stage, again=again, **inputs
    )
    step.publish(**{key: str(path) for key, path in outputs.items()})
    for path in outputs.values():
        stdout.print(f"Wrote {path}", soft_wrap=True)


def _check_vacant(out: Path) -> None:
    if out.exists():
        raise InputError(f"{out} exists already; remove it or choose another --out")


def _shown(
    name: str,
    section: BaseModel,
    seed: int,
    stage: str = "",
    *,
    again: bool = False,
    **inputs: Path,
) -> FinishedStep:
    """Run one step and show its progress."""
    from toolwise.steps import run_step

    return _displayed(
        f"{name} {stage}".rstrip(),
        lambda sink: run_step(
            name,
            section.model_dump_json(),
            seed,
            stage=stage,
            again=again,
            sink=sink,
            **{key: str(path) for key, path in inputs.items()},
        ),
    )


def _displayed(label: str, work: Callable[[EventSink], FinishedStep]) -> FinishedStep:
    """Show what the work tells of its progress."""
    from toolwise.console import LineDisplay, LiveDisplay, RunBoard

    board = RunBoard.of([label])
    with LiveDisplay(board, stdout) if stdout.is_terminal else LineDisplay(stdout) as display:
        return work(lambda event: display.changed(event, board.take(event)))


def _rows(kind: str, address: str, source: str | None, images: str | None) -> Path:
    """The rows at `address` as files of `toolwise.data`; read first where they are published ones.

    Args:
        kind: `trajectories` or `tasks`.
        address: a path, `s3://…` or `hf://…`.
        source: the format, by name; recognised where it is not given.
        images: where the pictures are, if not beside the data.
    """
    from toolwise.data.sources import find_source, is_ours
    from toolwise.preparation import PublishedData, PublishedSet
    from toolwise.profile import DataSettings
    from toolwise.storage import local_copy

    if source is not None:
        find_source(source)
    if "*" not in address:
        path = local_copy(address)
        if is_ours(path, {"trajectories": "messages", "tasks": "question"}[kind]):
            return path
        # As it stands here, so that the same path is the same data from any folder.
        address = address if "://" in address else str(path.absolute())
    one = PublishedSet(path=address, source=source, images=images)
    published = PublishedData.model_validate({kind: [one]})
    return _shown("prepare-data", DataSettings(published=published), 0).outputs[kind]


def _changed(section: Settings, changes: Mapping[str, Any]) -> Settings:
    """A section with some settings replaced; raises `InputError` where one is not allowed."""
    return _checked(type(section), {**section.model_dump(), **changes})


def _checked(kind: type[Settings], values: Mapping[str, Any]) -> Settings:
    """Settings made of `values`; raises `InputError` where one is not allowed."""
    from pydantic import ValidationError

    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


@app.command(rich_help_panel=STEP)
def prepare_data(out: OutOption, profile: ProfileOption = "demo", seed: SeedOption = None) -> None:
    """Make or fetch trajectories, prompts, benchmark and corpus."""
    names = ("trajectories", "tasks", "benchmark", "corpus")
    endings = (".parquet", ".parquet", ".parquet", ".jsonl")
    files = {name: out / f"{name}{ending}" for name, ending in zip(names, endings, strict=True)}
    run_by_hand("prepare-data", profile, seed, files)


@app.command(rich_help_panel=STEP)
def base_model(out: OutOption, profile: ProfileOption = "demo", seed: SeedOption = None) -> None:
    """Train the small built-in base model, or fetch a published one."""
    run_by_hand("base-model", profile, seed, {"model": out})


@app.command(rich_help_panel=STEP)
def curate_sft(
    trajectories: Annotated[
        str,
        typer.Option(
            help="Raw trajectories, as prepare-data writes them or as somebody published them: "
            "a file, folder or glob, s3:// or hf://."
        ),
    ],
    out: OutOption,
    source: SourceOption = None,
    images: ImagesOption = None,
    model: Annotated[
        Path | None, typer.Option(help="Checkpoint folder; `necessity` asks it.", exists=True)
    ] = None,
    corpus: OptionalCorpus = None,
    only: OnlyOption = None,
    profile: ProfileOption = "demo",
    seed: SeedOption = None,
) -> None:
    """Keep the trajectories worth imitating."""
    _check_vacant(out)
    rows = _rows("trajectories", trajectories, source, images)
    inputs = {"model": model, "trajectories": rows, "corpus": corpus}
    run_by_hand(
        "curate-sft",
        profile,
        seed,
        {"curated": out},
        changes={"filters": only} if only else {},
        **{name: path for name, path in inputs.items() if path is not None},
    )


@app.command(rich_help_panel=STEP)
def train_sft(
    model: ModelOption,
    curated: Annotated[Path, typer.Option(help="Folder that curate-sft wrote.", exists=True)],
    out: OutOption,
    profile: ProfileOption = "demo",
    seed: SeedOption = None,
) -> None:
    """Cold start: supervised fine-tuning on curated trajectories."""
    run_by_hand("train-sft", profile, seed, {"checkpoint": out}, model=model, curated=curated)


@app.command(rich_help_panel=STEP)
def curate_rl(
    tasks: Annotated[
        str,
        typer.Option(
            help="Candidate prompts, as prepare-data writes them or as somebody published them: "
            "a file, folder or glob, s3:// or hf://."
        ),
    ],
    out: OutOption,
    source: SourceOption = None,
    images: ImagesOption = None,
    model: Annotated[
        Path | None, typer.Option(help="Checkpoint folder; `rollouts` asks it.", exists=True)
    ] = None,
    corpus: OptionalCorpus = None,
    benchmark: Annotated[
        Path | None,
        typer.Option(help="Held-out tasks (Parquet), which no prompt may repeat.", exists=True),
    ] = None,
    only: OnlyOption = None,
    profile: ProfileOption = "demo",
    seed: SeedOption = None,
) -> None:
    """Keep the prompts reinforcement learning can learn from."""
    from toolwise.profile import load_profile

    _check_vacant(out)
    changes: dict[str, Any] = {"filters": only} if only else {}
    if benchmark and load_profile(profile).curate_rl.deduplicate is None:
        changes["deduplicate"] = {}
    rows = _rows("tasks", tasks, source, images)
    inputs = {"model": model, "tasks": rows, "corpus": corpus, "benchmark": benchmark}
    run_by_hand(
        "curate-rl",
        profile,
        seed,
        {"curated": out},
        changes=changes,
        **{name: path for name, path in inputs.items() if path is not None},
    )


@app.command(rich_help_panel=STEP)
def train_hdpo(
    model: ModelOption,
    curated: Annotated[Path, typer.Option(help="Folder that curate-rl wrote.", exists=True)],
    corpus: CorpusOption,
    out: OutOption,
    profile: ProfileOption = "demo",
    seed: SeedOption = None,
) -> None:
    """HDPO: reinforcement learning that cures needless calls."""
    run_by_hand(
        "train-hdpo",
        profile,
        seed,
        {"checkpoint": out},
        model=model,
        curated=curated,
        corpus=corpus,
    )


@app.command(rich_help_panel=STEP)
def evaluate(
    model: Annotated[
        str, typer.Option(help="Checkpoint folder; with --base-url, the model's name there.")
    ],
    benchmark: Annotated[
        str, typer.Option(help="A benchmark's name (toolwise benchmarks), or held-out tasks.")
    ],
    out: OutOption,
    base_url: Annotated[
        str | None, typer.Option(help="OpenAI-compatible server of the model, up to /v1.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            help="Rows of a named benchmark, if not where it is published: a file, folder or "
            "glob, s3:// or hf://."
        ),
    ] = None,
    corpus: OptionalCorpus = None,
    judge_url: Annotated[
        str | None, typer.Option(help="OpenAI-compatible server of a model that helps to score.")
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="That model's name.")] = None,
    score_only: Annotated[
        bool,
        typer.Option(
            "--score-only",
            help="One greedy answer per item; which calls were needless is then not known.",
        ),
    ] = False,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Answers in flight at --base-url.")
    ] = None,
    isolation: Annotated[
        Isolation | None,
        typer.Option(
            help="Lowest isolation of the sandbox that is accepted; what --profile asks for, or "
            "bubblewrap where none is named."
        ),
    ] = None,
    stage: Annotated[str, typer.Option(help="Name of the checkpoint in reports.")] = "model",
    profile: Annotated[
        str | None,
        typer.Option(
            help="As elsewhere; by default qwen3-vl-8b for a published benchmark or a server, else "
            "demo."
        ),
    ] = None,
    seed: SeedOption = None,
) -> None:
    """Measure a model with and without tools."""
    from toolwise.agent.openai_engine import ServedModel
    from toolwise.evaluation.benchmarks import benchmark_names, published
    from toolwise.profile import load_profile
    from toolwise.steps.by_hand import Measurement, measure
    from toolwise.storage import local_copy

    _check_vacant(out)
    named = benchmark in benchmark_names()
    large = base_url is not None or (named and published(benchmark) is not None)
    chosen = profile or ("qwen3-vl-8b" if large else "demo")
    settings = load_profile(chosen)
    name_tracking(chosen)
    if (judge_url is None) != (judge_model is None):
        raise InputError("--judge-url and --judge-model go together")
    changes: dict[str, Any] = {
        **({"samples": 0, "counterfactual_samples": 0} if score_only else {}),
        **({"concurrency": concurrency} if concurrency else {}),
        **({"judge": {"base_url": judge_url, "model": judge_model}} if judge_url else {}),
    }
    if isolation or profile is None:
        changes["isolation"] = isolation or Isolation.BUBBLEWRAP
    if profile is None:
        changes["vllm"] = None  # of a cluster's profile that nobody has named
    if not named and source is not None:
        raise InputError(f"--source is for a benchmark by name, and {benchmark} is none")
    measurement = Measurement(
        model=_checked(ServedModel, {"base_url": base_url, "model": model})
        if base_url
        else local_copy(model).resolve(),
        benchmark=benchmark if named else local_copy(benchmark).resolve(),
        source=source,
        corpus=corpus,
        settings=_changed(settings.evaluate, changes),
        stage=stage,
    )
    chosen_seed = settings.seed if seed is None else seed
    step = _displayed(f"evaluate {stage}", lambda sink: measure(measurement, chosen_seed, sink))
    step.publish(evaluation=str(out))
    stdout.print(f"Wrote {out}", soft_wrap=True)
    if named and published(benchmark):
        from toolwise.report.published import print_published, read_evaluation

        print_published([read_evaluation(out)], stdout, only_measured=True)


@app.command(rich_help_panel=STEP)
def paper_table(
    evaluations: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders that evaluate wrote, of benchmarks by name."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Markdown file to write them to as well.")
    ] = None,
) -> None:
    """Print the paper's tables, with your evaluations beside its rows."""
    from toolwise.report.published import markdown, print_published, read_evaluation

    measured = [read_evaluation(folder) for folder in evaluations or []]
    print_published(measured, stdout)
    if out:
        out.write_text(markdown(measured), encoding="utf-8")
        stdout.print(f"Wrote {out}", soft_wrap=True)


@app.command(rich_help_panel=STEP)
def benchmarks() -> None:
    """List the benchmarks, and where their items come from."""
    from rich.table import Table

    from toolwise.evaluation.benchmarks import benchmark_names, published

    table = Table("name", "title", "items", box=None)
    for name in benchmark_names():
        known = published(name)
        table.add_row(name, known.title if known else "", known.source if known else "made here")
    # Wide enough for every address: one that is cut cannot be copied.
    Console(width=max(stdout.width, 120), height=stdout.height, highlight=False).print(table)


@app.command(rich_help_panel=STEP)
def deploy(
    model: ModelOption,
    evaluation: Annotated[Path, typer.Option(help="Evaluation of the model.", exists=True)],
    benchmark: Annotated[Path, typer.Option(help="Tasks to ask two of.", exists=True)],
    corpus: CorpusOption,
    out: OutOption,
    profile: ProfileOption = "demo",
    seed: SeedOption = None,
) -> None:
    """Serve a checkpoint, and ask the endpoint two questions.

    As the profile says: with an InferenceService of KServe, or a process here.
    """
    run_by_hand(
        "deploy",
        profile,
        seed,
        {"endpoint": out},
        model=model,
        evaluation=evaluation,
        benchmark=benchmark,
        corpus=corpus,
    )
