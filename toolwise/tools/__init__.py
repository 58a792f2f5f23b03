"""Tools the model may call: sandboxed `python`, `text_search`, `image_search`."""

from __future__ import annotations

from pathlib import Path

from toolwise.tools.base import Tool, ToolError, ToolResult, ToolSession

__all__ = ["Tool", "ToolError", "ToolResult", "ToolSession", "open_tools"]


def open_tools(
    corpus: Path | None,
    isolation: str = "bubblewrap",
    workers: int = 2,
    sandbox_url: str | None = None,
) -> list[Tool]:
    """The tools of a step: `python`, and `text_search` where there is a corpus.

    Args:
        corpus: JSONL file `text_search` looks in.
        isolation: lowest isolation accepted for the python sandbox.
        workers: sandboxes kept warm on this machine.
        sandbox_url: a sandbox server to use instead of this machine.

    Raises:
        InputError: no such isolation level, or the corpus can't be read.
        BackendError: the sandbox can't be had at this level here.
    """
    from toolwise.tools.python import PythonTool
    from toolwise.tools.text_search import TextSearchTool

    search = [TextSearchTool(corpus)] if corpus is not None else []
    return [PythonTool(isolation, workers, url=sandbox_url), *search]
