"""Tables that hold anything, and parts of a page written between their markers."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolwise.errors import InputError
from toolwise.markdown import fill, filled, table

PAGE = "# Page\n<!-- a: start -->\nold\n<!-- a: end -->\nkept\n<!-- b: start --><!-- b: end -->\n"


def test_a_cell_stays_in_its_line_and_column():
    made = table(["name", "n"], [["a|b\nc", 1], ["d", 2.5]], numbers=1)
    assert made.splitlines() == [
        "| name | n |",
        "| --- | ---: |",
        r"| a\|b c | 1 |",
        "| d | 2.5 |",
    ]
    # An escaped backslash, then an escaped bar: what a reader sees is one of each.
    assert table(["a"], [["x\\|y"], ["\r\nz"]]).splitlines()[2:] == [r"| x\\\|y |", "|  z |"]
    assert table(["a", "b"], []).splitlines() == ["| a | b |", "| --- | --- |"]


def test_only_the_named_parts_of_a_page_change(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    fill(page, {"b": "two", "a": "one"})
    assert page.read_text() == (
        "# Page\n<!-- a: start -->\none\n<!-- a: end -->\nkept\n"
        "<!-- b: start -->\ntwo\n<!-- b: end -->\n"
    )
    assert filled(page.read_text(), {"a": "one"}) == page.read_text()


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "<!-- a: start -->",
        "<!-- a: end -->",
        "<!-- a: end --><!-- a: start -->",
        2 * "<!-- a: start --><!-- a: end -->",
    ],
)
def test_a_page_without_the_place_is_left_alone(tmp_path: Path, broken: str):
    page = tmp_path / "page.md"
    page.write_text(broken)
    with pytest.raises(InputError, match=f"{page}: <!-- a: start --> and <!-- a: end -->"):
        fill(page, {"a": "one"})
    assert page.read_text() == broken


def test_a_page_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"absent\.md: .*No such file"):
        fill(tmp_path / "absent.md", {"a": "one"})
