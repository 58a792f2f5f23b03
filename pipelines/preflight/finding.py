"""What a preflight has found out about one thing a profile needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

Verdict = Literal["there", "missing", "unknown"]

_MARKS: dict[Verdict, tuple[str, str]] = {
    "there": ("✓", "green"),
    "missing": ("✗", "red"),
    "unknown": ("?", "yellow"),
}


class Answer(NamedTuple):
    """What a registry or S3 says; `present` is None where it could not be asked from here."""

    present: bool | None
    why: str


class Finding(NamedTuple):
    """One thing a profile needs.

    Args:
        what: it.
        verdict: whether the cluster has it; `unknown` where that could not be told.
        why: what was found, or why it could not be told.
        mend: the command that makes it be there.
    """

    what: str
    verdict: Verdict
    why: str = ""
    mend: str = ""


def print_findings(findings: Sequence[Finding], console: Console) -> None:
    """Print one table; below it, whole, the commands that mend what is missing."""
    table = Table("", "needed", "found", box=None, title="Preflight", title_justify="left")
    for finding in findings:
        mark, style = _MARKS[finding.verdict]
        table.add_row(Text(mark, style=style), Text(finding.what), Text(finding.why))
    console.print(table)
    for finding in findings:
        if finding.verdict == "missing":
            console.print(Text(f"\n{finding.what}: {finding.why}", style="red"), soft_wrap=True)
            # Whole, so that it can be copied.
            console.print(Text(f"    {finding.mend}"), soft_wrap=True)
