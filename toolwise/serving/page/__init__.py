"""The page at `/`: drop a picture, ask, and see the answer, the calls and the time.

Three static files; the page speaks to the endpoint as any other client does.
"""

from __future__ import annotations

from pathlib import Path

import fastapi
from fastapi.responses import JSONResponse, Response

_HERE = Path(__file__).parent
_FILES = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def page_router() -> fastapi.APIRouter:
    """`/` and the page's files; who does not ask `/` for HTML is told what KServe tells there."""
    contents = {name: (_HERE / name).read_bytes() for name in ("index.html", *_FILES)}

    async def index(request: fastapi.Request) -> Response:
        if "text/html" not in request.headers.get("accept", ""):
            return JSONResponse({"status": "alive"})
        return Response(contents["index.html"], headers=_HEADERS, media_type="text/html")

    async def file(name: str) -> Response:
        if name not in _FILES:
            raise fastapi.HTTPException(404)
        return Response(contents[name], headers=_HEADERS, media_type=_FILES[name])

    router = fastapi.APIRouter()
    router.add_api_route("/", index, methods=["GET"], response_model=None)
    router.add_api_route("/page/{name}", file, methods=["GET"], response_model=None)
    return router
