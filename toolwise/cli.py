"""The command line: `toolwise --help`.

Commands import what they need when they run, so that help and completion stay quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from toolwise.errors import InputError, ToolwiseError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from pipelines.submission.api import PipelinesApi
    from toolwise.events import EventSink
    from toolwise.profile import Profile
    from toolwise.promotion.registry import Registry
    from toolwise.steps import FinishedStep

Settings = TypeVar("Settings", bound="BaseModel")

RUN = "The pipeline"
STEP = "Steps, by hand"
ENDPOINT = "The endpoint"

ProfileOption = Annotated[
    str, typer.Option(help="Profile by name (see pipelines/profiles) or path of a YAML file.")
]
RegistryOption = Annotated[
    str | None,
    typer.Option(help="Registry that Toolwise's images are pulled from; as the profile has it."),
]
SeedOption = Annotated[
    int | None, typer.Option(min=0, max=2**31 - 1, help="Seed; the profile's own by default.")
]
HostOption = Annotated[
    str | None,
    typer.Option(
        envvar="KFP_HOST",
        help="Address of the Kubeflow Pipelines server; found in the cluster or by kubectl, "
        "if not given.",
    ),
]
RunFolderOption = Annotated[
    Path | None, typer.Option("--run-dir", help="Folder of the run; runs/<profile> by default.")
]
ModelOption = Annotated[Path, typer.Option(help="Checkpoint folder.", exists=True)]
CorpusOption = Annotated[
    Path, typer.Option(help="JSON lines that text_search searches.", exists=True)
]
SourceOption = Annotated[
    str | None,
    typer.Option(
        help="Format of published rows, by name (docs/adding-a-source.md); recognised by default."
    ),
]
ImagesOption = Annotated[
    str | None, typer.Option(help="Folder or zip of the pictures, if not beside the rows.")
]
OptionalCorpus = Annotated[
    Path | None, typer.Option(help="JSON lines that text_search searches.", exists=True)
]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option(help="Run this filter and no other; may be repeated.", metavar="FILTER"),
]
OutOption = Annotated[Path, typer.Option(help="Where the result goes; must not exist yet.")]

stdout = Console(highlight=False)
stderr = Console(stderr=True, highlight=False)


class Commands(TyperGroup):
    """Prints errors a person can mend in red, without a traceback, and exits 1."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse what no file, tag or log entry could hold."""
        for argument in args:
            try:
                argument.encode()
            except UnicodeEncodeError:
                raise typer.BadParameter(f"{argument!a} is not valid UTF-8") from None
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ToolwiseError as error:
            stderr.print(
                Text.assemble(("Error: ", "bold red"), (str(error), "red")), soft_wrap=True
            )
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Train, prove, promote and serve models that call tools only when they must.",
)


@app.command(rich_help_panel=RUN)
def run(
    profile: ProfileOption = "demo", seed: SeedOption = None, run_dir: RunFolderOption = None
) -> None:
    """Run the whole pipeline on this machine; finished steps are re-used."""
    from pipelines.local import print_outcome, run_locally
    from toolwise.profile import load_profile

    settings = load_profile(profile)
    chosen_seed = settings.seed if seed is None else seed
    folder = run_dir or Path("runs") / settings.name
    report_json = run_locally(settings, chosen_seed, folder, stdout)
    print_outcome(report_json, stdout)


@app.command("compile", rich_help_panel=RUN)
def compile_(
    profile: ProfileOption = "demo",
    output: Annotated[
        Path | None, typer.Option(help="File to write; build/metis-<profile>.yaml by default.")
    ] = None,
    registry: RegistryOption = None,
) -> None:
    """Compile the pipeline to Kubeflow's IR YAML."""
    from pipelines.metis import compile_pipeline

    settings = _profile(profile, registry)
    path = output or Path("build") / f"metis-{settings.name}.yaml"
    compile_pipeline(settings, path)
    stdout.print(f"Wrote {path}", soft_wrap=True)


def _profile(name: str, registry: str | None) -> Profile:
    from toolwise.profile import load_profile

    settings = load_profile(name)
    return settings if registry is None else settings.at_registry(registry)


@app.command(rich_help_panel=RUN)
def estimate(profile: ProfileOption = "demo") -> None:
    """Say what the training steps need of memory and time, and whether that is there."""
    from toolwise.profile import load_profile

    _estimate(load_profile(profile))


def _estimate(profile: Profile) -> None:
    """Print what the training steps need; raises `InputError` where one cannot fit."""
    from toolwise.training.launcher.estimate import check, estimate_profile
    from toolwise.training.launcher.estimate_table import print_estimate

    estimates = estimate_profile(profile)
    for needed in estimates:
        print_estimate(needed, stdout)
    for needed in estimates:
        check(needed)


@app.command(rich_help_panel=RUN)
def submit(
    profile: ProfileOption = "qwen3-vl-8b",
    seed: SeedOption = None,
    host: HostOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Compile and check the cluster; submit nothing.")
    ] = False,
    follow: Annotated[bool, typer.Option(help="Stay until the run has ended.")] = True,
    skip_preflight: Annotated[
        bool, typer.Option("--skip-preflight", help="Do not check the cluster first.")
    ] = False,
    registry: RegistryOption = None,
) -> None:
    """Submit the pipeline to a Kubeflow Pipelines server, and follow the run.

    KFP_TOKEN, KFP_COOKIE, or KFP_USERNAME and KFP_PASSWORD sign in (docs/operating.md).
    """
    from pipelines.metis import compile_pipeline
    from pipelines.submission.following import how_to_go_on
    from pipelines.submit import kubeflow_of, open_server, submit_pipeline
    from toolwise.profile import load_profile

    kubeflow_of(load_profile(profile))
    settings = _profile(profile, registry)
    _estimate(settings)
    if dry_run:
        path = Path("build") / f"metis-{settings.name}.yaml"
        compile_pipeline(settings, path)
        stdout.print(f"Wrote {path}", soft_wrap=True)
    if not skip_preflight:
        _preflight(settings)
    if dry_run:
        stdout.print("Nothing was submitted")
        return
    with open_server(host) as api:
        submitted = submit_pipeline(settings, settings.seed if seed is None else seed, api)
        stdout.print(f"Submitted {submitted.name}: {submitted.link}", soft_wrap=True)
        if follow:
            _follow(settings, submitted.run_id, api)
        else:
            stdout.print(how_to_go_on(submitted.run_id, settings.name), soft_wrap=True)


@app.command("follow", rich_help_panel=RUN)
def follow_(
    run_id: Annotated[str, typer.Argument(help="Id of a submitted run.")],
    profile: ProfileOption = "qwen3-vl-8b",
    host: HostOption = None,
) -> None:
    """Follow a submitted run to its end."""
    from pipelines.submit import kubeflow_of, link_of, open_server
    from toolwise.profile import load_profile

    settings = load_profile(profile)
    kubeflow_of(settings)
    with open_server(host) as api:
        stdout.print(f"Following {link_of(api.server, run_id)}", soft_wrap=True)
        _follow(settings, run_id, api)


def _follow(profile: Profile, run_id: str, api: PipelinesApi) -> None:
    """Follow a run; Ctrl-C leaves it going."""
    from pipelines.submission.following import how_to_go_on
    from pipelines.submit import follow_run

    try:
        follow_run(profile, run_id, api, stdout)
    except KeyboardInterrupt:
        stdout.print(how_to_go_on(run_id, profile.name), soft_wrap=True)
        raise typer.Exit(130) from None


@app.command(rich_help_panel=RUN)
def preflight(profile: ProfileOption = "qwen3-vl-8b", registry: RegistryOption = None) -> None:
    """Check that the cluster has what a profile needs, and say how to mend what it lacks."""
    from pipelines.submit import kubeflow_of
    from toolwise.profile import load_profile

    kubeflow_of(load_profile(profile))
    settings = _profile(profile, registry)
    if not _preflight(settings):
        raise typer.Exit(1)


def _preflight(profile: Profile) -> bool:
    """Check the cluster, where there is one to ask; raises `InputError` where something lacks."""
    from pipelines.preflight import Unreachable, check, print_findings

    try:
        findings = check(profile)
    except Unreachable as why:
        stderr.print(Text(f"Preflight skipped: {why}", style="yellow"), soft_wrap=True)
        return False
    print_findings(findings, stdout)
    missing = [finding.what for finding in findings if finding.verdict == "missing"]
    if missing:
        raise InputError(
            f"the cluster lacks {len(missing)} of what profile {profile.name} needs: "
            f"{', '.join(missing)}"
        )
    return True


@app.command(rich_help_panel=RUN)
def report(
    path: Annotated[Path, typer.Argument(help="report.json of a run.")] = Path(
        "runs/demo/report.json"
    ),
) -> None:
    """Print the figures of a finished run."""
    from toolwise.evaluation.report import print_report

    print_report(path, stdout)


@app.command(rich_help_panel=RUN)
def compare(
    runs: Annotated[
        list[str] | None,
        typer.Argument(help="Pipeline runs, by MLflow's name or id; the newest by default."),
    ] = None,
    profile: ProfileOption = "demo",
    sampled: Annotated[
        bool, typer.Option("--sampled", help="The answers at temperature 1, not the greedy ones.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Where the plot goes.")] = Path("compare.svg"),
) -> None:
    """Compare the checkpoints of runs in MLflow: accuracy against tool rates."""
    from toolwise.evaluation.report.comparison import Compared, comparison_plot, print_comparison
    from toolwise.steps.running import experiment_name
    from toolwise.storage import atomic_file
    from toolwise.tracking import Connection
    from toolwise.tracking.evaluations import read_evaluations

    _name_tracking(profile)
    found = read_evaluations(Connection(), experiment_name(), runs or ())
    compared = [Compared(one.run, one.stage, one.metrics) for one in found]
    mode = "sampled" if sampled else "greedy"
    print_comparison(compared, stdout, mode)
    with atomic_file(out) as partial:
        partial.write_bytes(comparison_plot(compared, mode))
    stdout.print(f"Wrote {out}", soft_wrap=True)


@app.command(rich_help_panel=ENDPOINT)
def serve(
    model: ModelOption,
    corpus: Annotated[
        Path | None, typer.Option(help="JSON lines that text_search searches.", exists=True)
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port; the profile's by default.")
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(help="YAML file of API keys (docs/serving.md).", exists=True)
    ] = None,
    profile: ProfileOption = "demo",
) -> None:
    """Serve a checkpoint at /openai/v1/chat/completions, and a page at /, until stopped."""
    from toolwise.profile import load_profile
    from toolwise.serving.server import listen
    from toolwise.serving.server import serve as serve_here

    settings = load_profile(profile).serve
    given = {"port": port, "keys": keys}
    settings = settings.model_copy(
        update={name: value for name, value in given.items() if value is not None}
    )
    serve_here(settings, listen(settings.host, settings.port), model, corpus)


@app.command(rich_help_panel=ENDPOINT)
def ask(
    question: Annotated[str, typer.Argument(help="What to ask.")],
    image: Annotated[
        list[str] | None,
        typer.Option(help="Picture to ask about, a file or a URL; may be repeated."),
    ] = None,
    tools: Annotated[bool, typer.Option(help="Whether the model may call tools.")] = True,
    url: Annotated[
        str, typer.Option(envvar="TOOLWISE_URL", help="Base URL of the endpoint.")
    ] = "http://127.0.0.1:8080/openai/v1",
    model: Annotated[str, typer.Option(help="Model name at the endpoint.")] = "toolwise",
) -> None:
    """Ask an endpoint one question, and show its calls, its answer and its time.

    TOOLWISE_API_KEY holds the key where the endpoint asks for one.
    """
    from toolwise.serving.asking import Called, Ended, ask_stream

    answered = False
    for told in ask_stream(url, model, question, image or [], tools):
        match told:
            case Called():
                name = told.name or "a tool, in a malformed call"
                what = f"called {name} {told.arguments or ''}".rstrip()
                stdout.print(Text(f"{what} in {told.seconds:.2f} s", style="dim"), soft_wrap=True)
            case Ended():
                how = f"{told.tool_calls} calls, {told.tokens} tokens, {told.seconds:.2f} s"
                stdout.print(Text("" if answered else "(no answer)"))
                stdout.print(Text(how, style="dim"))
            case piece:
                answered = True
                stdout.print(Text(piece), end="", soft_wrap=True)


@app.command(rich_help_panel=ENDPOINT)
def stop(
    run_dir: Annotated[Path, typer.Option(help="Folder of the run whose endpoint to stop.")] = Path(
        "runs/demo"
    ),
) -> None:
    """Stop the endpoint that a run left serving."""
    from pipelines.local import endpoint_folder
    from toolwise.serving.deploy import stop_local

    stopped = stop_local(endpoint_folder(run_dir))
    stdout.print("Stopped" if stopped else "No endpoint was running")


def _run_step(
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
    _run_step("prepare-data", profile, seed, files)


@app.command(rich_help_panel=STEP)
def base_model(out: OutOption, profile: ProfileOption = "demo", seed: SeedOption = None) -> None:
    """Train the small built-in base model, or fetch a published one."""
    _run_step("base-model", profile, seed, {"model": out})


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
    _run_step(
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
    _run_step("train-sft", profile, seed, {"checkpoint": out}, model=model, curated=curated)


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
    _run_step(
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
    _run_step(
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
    stage: Annotated[str, typer.Option(help="Name of the checkpoint in reports.")] = "model",
    profile: Annotated[
        str | None,
        typer.Option(help="As elsewhere; demo, or qwen3-vl-8b with --base-url, by default."),
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
    settings = load_profile(profile or ("qwen3-vl-8b" if base_url else "demo"))
    if (judge_url is None) != (judge_model is None):
        raise InputError("--judge-url and --judge-model go together")
    changes: dict[str, Any] = {
        **({"samples": 0, "counterfactual_samples": 0} if score_only else {}),
        **({"concurrency": concurrency} if concurrency else {}),
        **({"judge": {"base_url": judge_url, "model": judge_model}} if judge_url else {}),
    }
    named = benchmark in benchmark_names()
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
        from toolwise.evaluation.report.published import print_published, read_evaluation

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
    from toolwise.evaluation.report.published import markdown, print_published, read_evaluation

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
def promote(
    challenger: Annotated[Path, typer.Option(help="Evaluation of the model.", exists=True)],
    baseline: Annotated[
        Path, typer.Option(help="Evaluation of the model it was trained from.", exists=True)
    ],
    model: Annotated[
        Path | None,
        typer.Option(help="Checkpoint folder; the evaluation has to be of it.", exists=True),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the decision goes; must not exist yet.")
    ] = None,
    champion: Annotated[
        Path | None,
        typer.Option(
            help="Evaluation of the champion on the same items, where its own is of others.",
            exists=True,
        ),
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="Policy (YAML); the profile's by default.", exists=True)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Explain the decision, and change nothing.")
    ] = False,
    profile: ProfileOption = "demo",
    seed: SeedOption = None,
) -> None:
    """Hold an evaluation against the policy, and register the model."""
    from toolwise.profile import load_profile
    from toolwise.promotion.judging import judge
    from toolwise.promotion.policy import GatePolicy
    from toolwise.steps.functions import evaluation_run

    thresholds = GatePolicy.load(policy) if policy else load_profile(profile).promote
    if dry_run:
        judged = judge(
            _registry(profile),
            thresholds,
            challenger,
            baseline,
            model=model,
            run_id=evaluation_run(challenger),
            champion=champion,
        )
        stdout.print(Text(judged.decision.explain()), soft_wrap=True)
        return
    if model is None or out is None:
        raise InputError(
            "without --dry-run, --model says what to register and --out where to write"
        )
    _registry(profile)
    inputs = {"model": model, "challenger": challenger, "baseline": baseline, "champion": champion}
    _run_step(
        "promote",
        profile,
        seed,
        {"decision": out},
        changes=thresholds.model_dump(),
        # There may be another champion since.
        again=True,
        **{name: path for name, path in inputs.items() if path is not None},
    )


@app.command(rich_help_panel=ENDPOINT)
def rollback(
    reason: Annotated[str, typer.Option(help="Why; it goes into the registry and the log.")],
    profile: ProfileOption = "demo",
) -> None:
    """Make the previous champion the champion again."""
    registry = _registry(profile)
    version = registry.rollback(reason)
    stdout.print(
        f"Version {version} of {registry.name} is the champion again. What serves stays as it is "
        "until that version is deployed.",
        soft_wrap=True,
    )


@app.command(rich_help_panel=ENDPOINT)
def decisions(profile: ProfileOption = "demo") -> None:
    """Print every promotion, rejection and rollback, oldest first."""
    from rich.table import Table

    table = Table("when (UTC)", "what", "version", "champion before", "why", box=None)
    for entry in _registry(profile).decisions():
        when = f"{entry.at:%Y-%m-%d %H:%M:%S}"
        table.add_row(when, entry.action, entry.version, entry.against or "–", Text(entry.why))
    stdout.print(table)


def _registry(profile: str) -> Registry:
    """The profile's registered model, where its pipeline keeps it."""
    from toolwise.promotion.registry import Registry
    from toolwise.steps.running import experiment_name
    from toolwise.tracking import Connection

    _name_tracking(profile)
    return Registry(experiment_name(), Connection())


def _name_tracking(profile: str) -> None:
    """Let the environment name MLflow and the experiment, as the profile's pipeline does."""
    from pipelines.local import tracking_uri
    from toolwise.profile import load_profile

    name = load_profile(profile).name
    os.environ.setdefault("MLFLOW_TRACKING_URI", tracking_uri(Path("runs") / name))
    os.environ.setdefault("MLFLOW_EXPERIMENT_NAME", name)


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
    """Serve a checkpoint as a process of its own, and ask it two questions."""
    _run_step(
        "deploy",
        profile,
        seed,
        {"endpoint": out},
        model=model,
        evaluation=evaluation,
        benchmark=benchmark,
        corpus=corpus,
    )


if __name__ == "__main__":
    sys.exit(app())
