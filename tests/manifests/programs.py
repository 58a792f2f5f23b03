"""Whether the programs in containers take the options, variables and paths they are given."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

from tests.manifests.pods import Document
from toolwise.errors import InputError
from toolwise.serving import server as agent
from toolwise.storage import S3_KEYS, S3_REGION
from toolwise.tools import server as sandbox
from toolwise.tools.sandbox import SANDBOX_VARIABLE

_S3 = {*S3_KEYS, S3_REGION}


class Program(NamedTuple):
    """What a container's program takes.

    Args:
        start: its command, or the end of its image's name where the image brings the command.
        refusal: what it says of options that it does not take; empty where it takes them.
        variables: those it reads, beside `HOME`.
        paths: pattern of the paths that probes may ask it for.
    """

    start: tuple[str, ...]
    refusal: Callable[[list[str]], str]
    variables: Callable[[], set[str]]
    paths: str = ""


def _listed(*known: str) -> Callable[[list[str]], str]:
    """A program of which the options in use here are known by name."""

    def refusal(arguments: list[str]) -> str:
        named = (a.partition("=")[0] for a in arguments if a.startswith("-"))
        return ", ".join(f"unknown option {name}" for name in named if name not in known)

    return refusal


def _parsed(parse: Callable[[list[str]], Any]) -> Callable[[list[str]], str]:
    """A program of ours, by its own parser."""

    def refusal(arguments: list[str]) -> str:
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                parse(arguments)
        except SystemExit:
            return said.getvalue().strip().splitlines()[-1]
        except InputError as error:
            return str(error)
        return ""

    return refusal


def _agent_options(arguments: list[str]) -> None:
    kserves = ["--model_name=metis", "--predictor_host=metis-predictor", "--http_port=8080"]
    agent._settings(agent._parser().parse_args([*arguments, *kserves]))


def _script(arguments: list[str]) -> str:
    try:
        compile(arguments[0], "script", "exec")
    except SyntaxError as error:
        return str(error)
    return ""


def _mlflow_command(*path: str) -> Callable[[list[str]], str]:
    def refusal(arguments: list[str]) -> str:
        import click
        from mlflow.cli import cli

        command: Any = cli
        for name in path:
            command = command.commands[name]
        try:
            command.make_context("mlflow", list(arguments))
        except click.ClickException as error:
            return error.format_message()
        return ""

    return refusal


@cache
def _mlflow_variables() -> set[str]:
    from mlflow import environment_variables
    from mlflow.cli import cli

    known = {name for name in dir(environment_variables) if name.startswith("MLFLOW_")}
    known |= {str(parameter.envvar) for parameter in cli.commands["server"].params}
    # libpq's: https://www.postgresql.org/docs/current/libpq-envars.html
    return known | _S3 | {"PGPASSWORD", "PGSSLROOTCERT", "PGUSER"}


PROGRAMS = (
    Program(
        ("python", "-m", "toolwise.serving"),
        _parsed(_agent_options),
        lambda: {SANDBOX_VARIABLE, "MLFLOW_TRACKING_URI", "SERPER_API_KEY", *_S3},
        r"/v2/health/live|/v1/models/[a-z0-9-]+",
    ),
    Program(
        ("python", "-m", "toolwise.tools.server"),
        _parsed(sandbox.parser().parse_args),
        set,
        "|".join(route.path for route in sandbox.create_app("none").routes),  # pyright: ignore
    ),
    Program(("python", "-c"), _script, lambda: {"TOOLWISE_CACHE", *_S3}),
    Program(("mlflow", "server"), _mlflow_command("server"), _mlflow_variables, "/health"),
    Program(("mlflow", "db", "upgrade"), _mlflow_command("db", "upgrade"), _mlflow_variables),
    Program(
        ("vllm", "serve"),
        _listed(
            "--port",
            "--tensor-parallel-size",
            "--gpu-memory-utilization",
            "--max-model-len",
            "--weight-transfer-config",
            "--dtype",
            "--logprobs-mode",
            "--max-logprobs",
        ),
        lambda: {"VLLM_SERVER_DEV_MODE", *_S3},
        "/health",
    ),
    Program(
        ("pg_isready",),
        _listed("--username", "--dbname", "--host"),
        set,
    ),
    # https://hub.docker.com/_/postgres
    Program(
        ("library/postgres",),
        _listed(),
        lambda: {"PGDATA", "POSTGRES_DB", "POSTGRES_PASSWORD", "POSTGRES_USER"},
    ),
    # https://docs.searxng.org/admin/settings/settings_server.html
    Program(
        ("searxng/searxng",), _listed(), lambda: {"GRANIAN_HOST", "SEARXNG_SECRET"}, "/healthz"
    ),
    # https://kserve.github.io/website/docs/model-serving/generative-inference/overview
    Program(
        ("kserve/huggingfaceserver",),
        _listed(
            "--backend",
            "--enable-auto-tool-choice",
            "--max-model-len",
            "--model_name",
            "--tensor-parallel-size",
            "--tool-call-parser",
        ),
        set,
    ),
    # Command and variables are the TrainJob's.
    Program(("toolwise/trainer",), _listed(), set),
)


def program_of(container: Document) -> tuple[Program | None, list[str]]:
    """The program of a container, and what it is given."""
    line = [*container.get("command", ()), *container.get("args", ())]
    image = container.get("image", "kserve/huggingfaceserver:model")
    name = image.partition("@")[0].rpartition(":")[0]
    for program in PROGRAMS:
        count = len(program.start)
        if container.get("command"):
            if tuple(line[:count]) == program.start:
                return program, line[count:]
        elif name.endswith(program.start[0]) and count == 1:
            return program, line
    return None, line


def program_faults(container: Document) -> Iterator[str]:
    """What the program of a container would not take."""
    program, arguments = program_of(container)
    given = {variable["name"] for variable in container.get("env", ())}
    if program is None:
        yield "nobody knows its program: say in programs.py what that takes"
        return
    if said := program.refusal(arguments):
        yield f"{' '.join(program.start)}: {said}"
    for variable in container.get("env", ()):
        mounted = {mount["mountPath"] for mount in container.get("volumeMounts", ())}
        if variable["name"] == "HOME" and mounted and variable.get("value") not in mounted:
            yield f"HOME is {variable.get('value')}, where nothing is mounted"
    for name in sorted(given - program.variables() - {"HOME"}):
        yield f"{' '.join(program.start)} does not read {name}"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        way = container.get(probe, {})
        path = way.get("httpGet", {}).get("path", "")
        if path and not re.fullmatch(program.paths, path):
            yield f"{probe}: {' '.join(program.start)} has no path {path}"
        if command := way.get("exec", {}).get("command"):
            yield from (f"{probe}: {fault}" for fault in program_faults({"command": command}))
