"""GET /admin/: the live page and its files. They hold no data, so everybody may have them."""

from __future__ import annotations

from functools import cache
from importlib import resources

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}
FILES = (
    *("page.css", "icon.svg", "main.js", "connection.js", "elements.js", "dialogs.js"),
    *("status.js", "nodes.js", "links.js", "cache.js", "routing.js", "requests.js", "events.js"),
)
"""The files of the page beside index.html."""
HOME = "/admin/"
FILE_PATHS = tuple(f"/admin/page/{name}" for name in FILES)
PAGE_PATHS = ("/admin", HOME, *FILE_PATHS)
HEADERS = {
    # Nothing comes from elsewhere, nothing goes elsewhere, and no text becomes markup or a script.
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; object-src 'none'; require-trusted-types-for 'script'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}

router = APIRouter(include_in_schema=False)


@router.get("/admin", response_model=None)
async def to_home() -> Response:
    """Answers with the address of the live page, /admin/: its links are relative to that."""
    return RedirectResponse("admin/")


@router.get(HOME, response_model=None)
async def home() -> Response:
    """Answers the live page: what the cluster does now, and what an operator may do about it. It
    asks for the admin token by itself."""
    return _reply("index.html")


async def file(request: Request) -> Response:
    """Answers one of the page's files."""
    return _reply(request.url.path.rpartition("/")[2])


def _reply(name: str) -> Response:
    media_type = MEDIA_TYPES[name.rpartition(".")[2]]
    return Response(_content(name), media_type=media_type, headers=HEADERS)


@cache
def _content(name: str) -> bytes:
    return resources.files("coordinator.http.live").joinpath(f"page/{name}").read_bytes()


for path in FILE_PATHS:
    router.add_api_route(path, file, response_model=None)
