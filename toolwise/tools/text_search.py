"""The `text_search` tool: passages of a local corpus, found by BM25."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from toolwise.errors import InputError
from toolwise.tools.base import ToolError, ToolResult
from toolwise.tools.output import plain_text

TEXT_SEARCH_SCHEMA: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "text_search",
        "description": "Search a text corpus; the passages that match best come back.",
        "parameters": {
            "type": "object",
            "properties": {"query": {"type": "string", "description": "what to look for"}},
            "required": ["query"],
        },
    },
}

MAX_WORDS = 64
PASSAGE_CHARS = 2000
NOTHING_FOUND = "No passage found."


class Passage(NamedTuple):
    """One row of a corpus."""

    id: str
    title: str
    text: str


def read_corpus(path: Path) -> Iterator[Passage]:
    """Rows of a JSONL corpus, `{"id", "title", "text"}` each.

    Raises:
        InputError: the file can't be read, or a row is not a passage (named by its line).
    """
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _passage(line, f"{path}, line {number}")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the search corpus {path} can't be read: {error}") from error


def _passage(line: str, where: str) -> Passage:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON: {error.msg}") from None
    if not isinstance(row, dict):
        raise InputError(f'{where}: a passage is an object {{"id", "title", "text"}}')
    for field in Passage._fields:
        if not isinstance(row.get(field), str):
            raise InputError(f"{where}: `{field}` must be a string")
    return Passage(row["id"], row["title"], row["text"])


class TextSearchTool:
    """BM25 over the titles and texts of a JSONL corpus, indexed in memory.

    Args:
        corpus: JSONL file of `{"id", "title", "text"}`.
        top_k: passages a search returns, one per line; equal scores stand in corpus order.

    Raises:
        InputError: the corpus can't be read, has a bad row, or is empty.
    """

    name = "text_search"
    schema = TEXT_SEARCH_SCHEMA

    def __init__(self, corpus: Path, top_k: int = 1) -> None:
        import tantivy  # slow to import, and schemas are read without it

        builder = tantivy.SchemaBuilder()
        builder.add_unsigned_field("row", stored=True)
        builder.add_text_field("title", tokenizer_name="en_stem")
        builder.add_text_field("text", tokenizer_name="en_stem", stored=True)
        self._index = tantivy.Index(builder.build())
        writer = self._index.writer(num_threads=1)
        rows = 0
        for rows, passage in enumerate(read_corpus(corpus), start=1):
            writer.add_document(tantivy.Document(row=rows, title=passage.title, text=passage.text))
        if rows == 0:
            raise InputError(f"the search corpus {corpus} is empty")
        writer.commit()
        writer.wait_merging_threads()
        self._index.reload()
        self._top_k = top_k

    async def open(self, images: Sequence[bytes]) -> TextSearchSession:
        return TextSearchSession(self)

    async def aclose(self) -> None:
        """Nothing was started."""

    def search(self, query: str) -> list[str]:
        """Texts of the best passages, best first.

        Raises:
            ToolError: there is no word in `query`.
        """
        words = dict.fromkeys(re.findall(r"\w+", query.lower()))
        if not words:
            raise ToolError(f"the query {query[:80]!r} has no word to look for")
        # Lower-case words, and nothing but words: none of it is query syntax.
        parsed = self._index.parse_query(" ".join(list(words)[:MAX_WORDS]), ["title", "text"])
        searcher = self._index.searcher()
        # A few more than asked, so that equal scores can be put in corpus order.
        hits = searcher.search(parsed, self._top_k + 16).hits
        found = [(-score, searcher.doc(address).to_dict()) for score, address in hits]
        found.sort(key=lambda hit: (hit[0], hit[1]["row"]))
        return [document["text"][0] for _, document in found[: self._top_k]]


class TextSearchSession:
    """Searches keep no state."""

    def __init__(self, tool: TextSearchTool) -> None:
        self._tool = tool

    async def call(self, arguments: dict[str, Any]) -> ToolResult:
        """Search for `arguments["query"]`."""
        query = arguments.get("query")
        if not isinstance(query, str):
            raise ToolError('text_search takes {"query": "…"}: `query` must be a string')
        started = time.perf_counter()
        passages = await asyncio.to_thread(self._tool.search, query)
        lines = [plain_text(" ".join(text.split()), PASSAGE_CHARS) for text in passages]
        text = "\n".join(lines) or NOTHING_FOUND
        return ToolResult(text, seconds=time.perf_counter() - started)

    async def close(self) -> None:
        """Nothing to give back."""
