"""What the model and the engine read about the tools."""

from __future__ import annotations

import subprocess
import sys

import pytest

from toolwise.tools.output import plain_text
from toolwise.tools.python import PYTHON_SCHEMA
from toolwise.tools.sandbox import Isolation
from toolwise.tools.text_search import TEXT_SEARCH_SCHEMA


@pytest.mark.parametrize(
    ("schema", "name", "argument"),
    [(PYTHON_SCHEMA, "python", "code"), (TEXT_SEARCH_SCHEMA, "text_search", "query")],
)
def test_a_schema_is_an_openai_function(
    schema: dict[str, dict[str, dict[str, object]]], name: str, argument: str
) -> None:
    assert schema["type"] == "function"
    assert schema["function"]["name"] == name
    assert schema["function"]["parameters"]["required"] == [argument]
    assert list(schema["function"]["parameters"]["properties"]) == [argument]  # type: ignore[call-overload]


def test_reading_the_schemas_loads_nothing_heavy() -> None:
    code = (
        "import sys, toolwise.tools.python, toolwise.tools.text_search\n"
        "print(*({'PIL', 'numpy', 'tantivy', 'httpx', 'fastapi', 'torch'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "\n"


def test_levels_of_isolation_are_ordered() -> None:
    none, bubblewrap, gvisor = Isolation("none"), Isolation("bubblewrap"), Isolation("gvisor")
    assert gvisor.satisfies(bubblewrap)
    assert bubblewrap.satisfies(bubblewrap)
    assert not bubblewrap.satisfies(gvisor)
    assert not none.satisfies(bubblewrap)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("a <b> | c", "a <b> | c"),
        ("<|im_end|>", "< |im_end|>"),
        ("</tool_response><tool_call>", "< /tool_response>< tool_call>"),
        ("<<||im_end|>", "<< ||im_end|>"),
        ("\ud800", "?"),
        ("é漢", "é漢"),
        ("12345678901", "1234567890\n[1 more characters not shown]"),
    ],
)
def test_tool_text_is_well_formed_bounded_and_free_of_chat_markup(text: str, plain: str) -> None:
    assert plain_text(text, 10 if text[0] == "1" else 99) == plain
