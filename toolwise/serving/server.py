"""The server process: `python -m toolwise.serving`."""

from __future__ import annotations

import argparse
import gc
import os
import signal
import socket
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from toolwise.errors import InputError, ToolwiseError
from toolwise.serving.settings import ServingSettings
from toolwise.storage import local_copy
from toolwise.tools import open_tools

if TYPE_CHECKING:
    from toolwise.serving.model import ServedEngine
    from toolwise.tracking.served import ServedTraces


UPSTREAM_KEY = "OPENAI_API_KEY"
"""Variable that holds the key of an upstream which asks for one."""


class Upstream(NamedTuple):
    """An OpenAI-compatible server (base URL up to `/v1`) and the model's name there."""

    url: str
    model: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM; returns 2 where a flag is wrong and 1 where the server failed."""
    try:
        options = _parser().parse_args(arguments)
        settings = _settings(options)
        # First of all: loading a model only to find the port taken would waste minutes.
        listener = listen(settings.host, settings.port)
        corpus = local_copy(options.corpus) if options.corpus else None
        serve(settings, listener, _source(options), corpus)
    except ToolwiseError as error:
        print(f"toolwise: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    return 0


def serve(
    settings: ServingSettings, listener: socket.socket, source: Path | Upstream, corpus: Path | None
) -> None:
    """Run the model server in this process, until SIGTERM.

    Args:
        settings: name and limits.
        listener: socket to serve on.
        source: checkpoint to load into this process, or the server to ask instead.
        corpus: what `text_search` searches; none leaves that tool out.

    Raises:
        InputError: checkpoint or corpus are not what they should be.
        BackendError: the sandbox cannot be had here.
    """
    from toolwise.serving.keys import KeyFile

    keys = KeyFile(settings.keys) if settings.keys else None
    tools = open_tools(corpus, settings.isolation, search=settings.search)

    # Slow to import, and what can be wrong with a flag is told without them.
    from kserve.model_server import ModelServer, app
    from kserve.protocol.rest.server import RESTServer
    from starlette.exceptions import HTTPException

    from toolwise.serving.admission import Admission
    from toolwise.serving.guard import Guard
    from toolwise.serving.model import AgentModel
    from toolwise.serving.routes import chat_application, openai_error, openai_router
    from toolwise.serving.telemetry import start_tracing

    tracing = start_tracing()
    model = AgentModel(settings, lambda: _open_engine(source), tools, _open_traces(settings))
    model.load()
    app.include_router(openai_router(model))
    app.add_exception_handler(HTTPException, openai_error)
    server = ModelServer(http_port=settings.port, enable_grpc=False)
    server.register_model(model)
    admission = Admission(settings.concurrency, settings.queue)
    guarded: Any = Guard(
        app,
        chat_application(model),
        admission,
        keys,
        settings.request_seconds,
        max_characters=settings.max_characters,
    )
    rest = RESTServer(
        guarded,
        server.dataplane,
        server.model_repository_extension,
        settings.port,
        grace_period=settings.request_seconds,
    )
    # What is there now stays: looking through it for garbage would hold requests up.
    gc.collect()
    gc.freeze()
    # uvicorn raises the signal again once it has finished what it had.
    signal.signal(signal.SIGTERM, _exit)
    try:
        rest.run(sockets=[listener])
    finally:
        tracing.shutdown()


def _open_traces(settings: ServingSettings) -> ServedTraces | None:
    if settings.trace_share == 0:
        return None
    from toolwise.tracking.served import ServedTraces

    return ServedTraces(settings.name, settings.trace_share)


def _open_engine(source: Path | Upstream) -> ServedEngine:
    if isinstance(source, Upstream):
        from toolwise.agent.openai_engine import OpenAIEngine

        # No time limit of its own: a request's deadline is the limit.
        upstream = OpenAIEngine(
            source.url, source.model, os.environ.get(UPSTREAM_KEY), timeout=None
        )
        upstream.name = f"the model's server at {source.url}"
        return upstream
    from toolwise.agent.transformers_engine import TransformersEngine
    from toolwise.serving.continuous import ContinuousEngine

    return ContinuousEngine(TransformersEngine.load(source))


def listen(host: str, port: int) -> socket.socket:
    """The listening socket; raises `InputError` where the port cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except OSError as error:
        raise InputError(
            f"cannot listen on {host} port {port}: {error.strerror}; "
            "stop what uses it or choose another with --port"
        ) from error
    return listener


def _exit(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m toolwise.serving", allow_abbrev=False)
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model-dir", help="checkpoint to serve from this process")
    model.add_argument("--upstream", help="OpenAI-compatible server to ask, up to /v1")
    # KServe adds --model_name, --predictor_host and --http_port to a transformer's arguments.
    model.add_argument("--predictor_host", help="KServe predictor to ask")
    parser.add_argument("--upstream-model", help="the model's name there, if it differs")
    parser.add_argument("--corpus", help="JSONL that text_search searches")
    for name, field in ServingSettings.model_fields.items():
        flags = ["--" + name.replace("_", "-")]
        flags += {"name": ["--model_name"], "port": ["--http_port"]}.get(name, [])
        default = getattr(field.default, "value", field.default)
        told = "" if default is None else f" (default: {default})"
        text = f"{field.description}{told}".replace("%", "%%")
        parser.add_argument(*flags, dest=name, default=field.default, help=text)
    return parser


def _settings(options: argparse.Namespace) -> ServingSettings:
    values = {name: getattr(options, name) for name in ServingSettings.model_fields}
    try:
        return ServingSettings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        flag = str(first["loc"][0]).replace("_", "-")
        raise InputError(f"--{flag} {first['input']}: {first['msg']}") from None


def _source(options: argparse.Namespace) -> Path | Upstream:
    if options.model_dir:
        if find_spec("torch") is None:
            raise InputError(
                f"--model-dir {options.model_dir}: torch, which it takes to run a model in this "
                "process, is not installed. Install toolwise[serve], or name a server of the "
                "model with --upstream"
            )
        return local_copy(options.model_dir)
    url = options.upstream
    if options.predictor_host:
        url = f"http://{options.predictor_host}/openai/v1"
    return Upstream(url, options.upstream_model or options.name)
