"""The application, and how it prints an error."""

from __future__ import annotations

from typing import Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from toolwise.errors import ToolwiseError

RUN = "The pipeline"
STEP = "Steps, by hand"
ENDPOINT = "The endpoint"

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
            raise typer.Exit(error.exit_status) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Train, prove, promote and serve models that call tools only when they must.",
)
