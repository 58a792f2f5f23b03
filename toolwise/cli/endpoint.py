"""Commands of the endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from toolwise.cli.application import ENDPOINT, app, stdout
from toolwise.cli.options import (
    ModelOption,
    ProfileOption,
)


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
                calls = f"{told.tool_calls} call{'' if told.tool_calls == 1 else 's'}"
                how = f"{calls}, {told.tokens} tokens, {told.seconds:.2f} s"
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
