"""Markdown that commands write: tables, and the parts of a page that are written for it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from toolwise.errors import InputError
from toolwise.storage import atomic_file


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], *, numbers: int | None = None) -> str:
    """A table; a cell stays in its line and column, whatever it holds.

    Args:
        head: names of the columns.
        rows: a cell for each.
        numbers: the column from which on they hold numbers, which are set flush right.
    """
    left = len(head) if numbers is None else numbers
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    lines = [head, rule, *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: Any) -> str:
    # A backslash before the bar would be taken for the one that escapes it.
    return re.sub(r"(\\*)\|", r"\1\1\|", " ".join(str(value).splitlines()))


def filled(page: str, parts: Mapping[str, str]) -> str:
    """The page with each part between its two markers, `<!-- name: start -->` and `… end -->`.

    Raises:
        InputError: a part has no such place, or more than one.
    """
    for name, content in parts.items():
        start, end = f"<!-- {name}: start -->", f"<!-- {name}: end -->"
        before, _, rest = page.partition(start)
        _, ended, after = rest.partition(end)
        if not ended or page.count(start) > 1 or page.count(end) > 1:
            raise InputError(f"{start} and {end}, once each, have to mark the place")
        page = f"{before}{start}\n{content}\n{end}{after}"
    return page


def fill(page: Path, parts: Mapping[str, str]) -> None:
    """Write the parts into the page in this file; see `filled`.

    Raises:
        InputError: it cannot be read, or a part has no place in it; names the file.
    """
    try:
        text = filled(page.read_text(encoding="utf-8"), parts)
    except (OSError, UnicodeDecodeError, InputError) as error:
        raise InputError(f"{page}: {error}") from None
    with atomic_file(page) as partial:
        partial.write_text(text, encoding="utf-8")
