"""`python -m toolwise.report`: print reports, draw the picture, fill in a README."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from toolwise.errors import ToolwiseError
from toolwise.report.measures import read_report
from toolwise.report.plots import accuracy_against_calls
from toolwise.report.readme import write_results
from toolwise.report.terminal import print_report
from toolwise.storage import atomic_file


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m toolwise.report")
    parser.add_argument("reports", nargs="+", type=Path, metavar="report.json", help="one per seed")
    parser.add_argument(
        "--picture", type=Path, help="write accuracy against calls of the first report, as SVG"
    )
    parser.add_argument("--readme", type=Path, help="write the results table into this file")
    options = parser.parse_args(arguments)
    try:
        reports = [read_report(path) for path in options.reports]
        if options.picture:
            with atomic_file(options.picture) as partial:
                partial.write_bytes(accuracy_against_calls(reports[0]))
        if options.readme:
            write_results(options.readme, reports)
        if not options.picture and not options.readme:
            for path in options.reports:
                print_report(path, Console())
    except ToolwiseError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
