"""Google through serper.dev: web search, and Lens for pictures.

Serper publishes no reference; this is the contract of its playground (https://serper.dev/playground)
as collected with live answers in https://github.com/api-evangelist/serper (conventions/, errors/,
examples/). `POST https://google.serper.dev/search` with `{"q"}` answers `{"searchParameters",
"answerBox", "knowledgeGraph", "organic": [{"title", "link", "snippet", "date", "position"}], …}`,
ten pages by default; `POST /lens` with `{"url"}`, the picture's public address, answers
`{"searchParameters", "organic": [{"title", "source", "link", "imageUrl", "thumbnailUrl"}]}`. The
key is sent as `X-API-KEY`. A wrong key is 403, used-up credits are 400 `Not enough credits`, too
many requests 429; a free account's query with operators is 400 `Query pattern not allowed`.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import httpx
from pydantic import BaseModel

from toolwise.errors import BackendError, InputError
from toolwise.tools.base import ToolError
from toolwise.tools.search.endpoint import SearchEndpoint
from toolwise.tools.search.results import SearchResult
from toolwise.tools.search.settings import SERPER_KEY

URL = "https://google.serper.dev"
SIGNED_SECONDS = 600
"""How long Google may fetch an uploaded picture."""


class _Page(BaseModel):
    title: str | None = None
    link: str | None = None
    snippet: str | None = None
    date: str | None = None
    source: str | None = None


class _AnswerBox(BaseModel):
    title: str | None = None
    answer: str | None = None
    snippet: str | None = None
    link: str | None = None


class _KnowledgeGraph(BaseModel):
    title: str | None = None
    type: str | None = None
    description: str | None = None
    descriptionLink: str | None = None


class _Reply(BaseModel):
    searchParameters: dict[str, object]
    organic: list[_Page] = []
    answerBox: _AnswerBox | None = None
    knowledgeGraph: _KnowledgeGraph | None = None

    def found(self) -> list[SearchResult]:
        """The answer box, the knowledge graph, pages."""
        results = []
        if box := self.answerBox:
            said = _joined(box.answer, box.snippet)
            results.append(SearchResult(box.title or "", box.link or "", said))
        if graph := self.knowledgeGraph:
            said = _joined(graph.type, graph.description)
            results.append(SearchResult(graph.title or "", graph.descriptionLink or "", said))
        for page in self.organic:
            said = _joined(page.date, page.source, page.snippet)
            results.append(SearchResult(page.title or "", page.link or "", said))
        return results


class SerperText:
    """Google web search.

    Args:
        url: where the API is.

    Raises:
        InputError: there is no key in the environment.
    """

    repeatable = False

    def __init__(self, url: str = URL) -> None:
        self._endpoint = _endpoint(url)

    def search(self, query: str) -> list[SearchResult]:
        return _ask(self._endpoint, "/search", {"q": query})

    def close(self) -> None:
        self._endpoint.close()


class SerperLens:
    """Google Lens. A picture is put into a bucket, and Google fetches it by a signed address.

    Args:
        upload: `s3://bucket/prefix` to put pictures under.
        url: where the API is.

    Raises:
        InputError: there is no key in the environment.
    """

    repeatable = False

    def __init__(self, upload: str, url: str = URL) -> None:
        self._upload = upload.rstrip("/")
        self._endpoint = _endpoint(url)

    def search(self, query: bytes) -> list[SearchResult]:
        return _ask(self._endpoint, "/lens", {"url": self._public_address(query)})

    def close(self) -> None:
        self._endpoint.close()

    def _public_address(self, image: bytes) -> str:
        from toolwise.storage import publish, signed_url

        uri = f"{self._upload}/{hashlib.sha256(image).hexdigest()}"
        with tempfile.TemporaryDirectory() as room:
            file = Path(room) / "image"
            file.write_bytes(image)
            publish(file, uri)
        return signed_url(uri, SIGNED_SECONDS, content_type=_content_type(image))


def _endpoint(url: str) -> SearchEndpoint:
    key = os.environ.get(SERPER_KEY)
    if not key:
        raise InputError(f"the search backend `serper` needs {SERPER_KEY} in the environment")
    return SearchEndpoint("Serper", url, {"X-API-KEY": key})


def _ask(endpoint: SearchEndpoint, path: str, body: dict[str, str]) -> list[SearchResult]:
    def refused(response: httpx.Response) -> Exception | None:
        if response.status_code in (401, 403):
            return BackendError(
                f"{endpoint.name}: HTTP {response.status_code}; {SERPER_KEY} is not accepted"
            )
        if response.status_code == 400 and "query pattern" in response.text.lower():
            return ToolError("the search engine does not take this query; use plain words")
        return None

    return endpoint.ask("POST", path, _Reply, json=body, refused=refused).found()


def _joined(*parts: str | None) -> str:
    return " · ".join(part for part in parts if part)


def _content_type(image: bytes) -> str:
    from toolwise.data import open_image  # imports PIL

    with open_image(image) as header:
        return header.get_format_mimetype() or "application/octet-stream"
