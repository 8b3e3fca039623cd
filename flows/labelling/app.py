"""The pages: one item at a time, its answers side by side; nothing but forms, so that they work without a script.

Every page is made anew from the file, so that a reload, a restart and a second window show what is there.
"""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.datastructures import MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from data.labelling.display import pieces
from data.labelling.records import LONGEST_COMMENT
from data.labelling.store import LabelStore, Place
from flows.labelling.access import Access, Forged, NotSignedIn, Visitor, require_own_form
from flows.labelling.forms import answer_of, fields_of, seconds_of

HERE = Path(__file__).parent
LARGEST_FORM_BYTES = 64 * 1024

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
GRADES = [
    (2, "A is better", "A better"),
    (1, "A is slightly better", "A slightly"),
    (0, "About the same", "Tie"),
    (-1, "B is slightly better", "B slightly"),
    (-2, "B is better", "B better"),
]


def shown(text: str) -> Markup:
    """Text as it is, escaped; characters that nobody would see are named."""
    named = Markup('<span class="mark" title="hidden character">{}</span>')
    return Markup("").join(named.format(mark) if mark else escape(plain) for plain, mark in pieces(text))


def letter(index: int) -> str:
    """What the answer at a place of the page is called: A to Z, then AA and on."""
    return (letter(index // 26 - 1) if index >= 26 else "") + chr(ord("A") + index % 26)


_pages = Environment(
    loader=FileSystemLoader(HERE / "pages"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
_pages.filters.update(shown=shown, letter=letter)


@dataclass(frozen=True)
class LabelPage:
    """What the pages work on. ``on_label`` is called after every label that was taken, and not for a form sent twice."""

    store: LabelStore
    access: Access
    on_label: Callable[[], None]


class SafeHeaders:
    """Puts the headers that keep a page from being framed, sniffed, cached or made to load anything else on every response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, receive, send_with_headers)


# What a request brings


def _page_of(request: Request) -> LabelPage:
    return request.app.state.page


Page = Annotated[LabelPage, Depends(_page_of)]
Position = Annotated[int, InPath(ge=1, le=10**9)]
PlaceBefore = Annotated[int, Query(ge=0, le=10**9)]


def _visitor(request: Request, page: Page) -> Visitor:
    return page.access.visitor(request)


Known = Annotated[Visitor, Depends(_visitor)]


async def _fields(request: Request) -> dict[str, str]:
    """The fields of a form, the last of each name."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_FORM_BYTES:
            raise HTTPException(413, "That is too long: shorten the comment.")
    try:
        return dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=200))
    except ValueError as error:
        raise HTTPException(400, "That form cannot be read.") from error


def _own_fields(request: Request, visitor: Known, fields: Annotated[dict[str, str], Depends(_fields)]) -> dict[str, str]:
    require_own_form(request, visitor, fields)
    return fields


Fields = Annotated[dict[str, str], Depends(_own_fields)]

router = APIRouter(default_response_class=HTMLResponse)


def _render(name: str, page: LabelPage, visitor: Visitor | None, status: int = 200, **values: Any) -> HTMLResponse:
    known = {"visitor": visitor, "task": page.store.name, "guidelines": page.store.settings().guidelines}
    progress = page.store.progress(visitor.name) if visitor else None
    return HTMLResponse(_pages.get_template(name).render(**known, progress=progress, **values), status)


# Entering


@router.get("/")
def start(page: Page, visitor: Known) -> Response:
    """What to label next."""
    return RedirectResponse("/next", 303)


@router.get("/enter/{token}")
def enter(token: str, request: Request, page: Page) -> Response:
    """The page behind an annotator's link. It answers with a page, not a redirect: that one would come without the cookie."""
    name = page.access.annotator_of(token)
    if name is None:
        raise NotSignedIn
    return _with_cookie(_render("welcome.html", page, Visitor(name, "")), page, token)


@router.post("/sign-in")
def sign_in(request: Request, page: Page, fields: Annotated[dict[str, str], Depends(_fields)]) -> Response:
    """Enter under a name."""
    require_own_form(request, None, fields)
    try:
        token = page.access.sign_in(fields.get("name", "").strip())
    except ValueError as error:
        return _render("sign_in.html", page, None, 422, links_only=page.access.links_only, fault=str(error))
    return _with_cookie(RedirectResponse("/next", 303), page, token)


def _with_cookie(response: Response, page: LabelPage, token: str) -> Response:
    response.set_cookie(page.access.cookie, token, max_age=90 * 86400, httponly=True, samesite="strict")
    return response


# Labelling


@router.get("/next")
def next_item(page: Page, visitor: Known, after: PlaceBefore = 0, saved: PlaceBefore = 0) -> Response:
    """On to what is not labelled yet."""
    position = page.store.next_open(visitor.name, after)
    suffix = f"?saved={saved}" if saved else ""
    return RedirectResponse(f"/item/{position}{suffix}" if position else f"/done{suffix}", 303)


@router.get("/item/{position}")
def item(position: Position, page: Page, visitor: Known, saved: PlaceBefore = 0) -> Response:
    """One item."""
    place = page.store.place(visitor.name, position)
    if place is None:
        raise HTTPException(404, "There is no such item in your list.")
    return _show(page, visitor, place, saved=saved)


@router.post("/item/{position}")
def label(position: Position, page: Page, visitor: Known, fields: Fields) -> Response:
    """Take an answer, or a skip."""
    place = page.store.place(visitor.name, position)
    if place is None:
        raise HTTPException(404, "There is no such item in your list.")
    if "skip" in fields:
        page.store.skip(visitor.name, position)
        return RedirectResponse(f"/next?after={position}", 303)
    try:
        answer = answer_of(fields, place.order)
        is_new = page.store.label(visitor.name, position, answer, form=fields.get("form", ""), seconds=seconds_of(fields))
    except ValueError as error:
        return _show(page, visitor, place, 422, fault=str(error), fields=fields)
    if is_new:
        page.on_label()
    return RedirectResponse(f"/next?after={position}&saved={position}", 303)


@router.get("/done")
def done(page: Page, visitor: Known, saved: PlaceBefore = 0) -> Response:
    """Nothing is left for this annotator."""
    return _render("done.html", page, visitor, saved=saved)


@router.get("/overview")
def overview(page: Page, visitor: Known) -> Response:
    """All that the annotator has seen."""
    return _render("overview.html", page, visitor, places=page.store.places(visitor.name))


def _show(
    page: LabelPage,
    visitor: Visitor,
    place: Place,
    status: int = 200,
    *,
    saved: int = 0,
    fault: str = "",
    fields: dict[str, str] | None = None,
) -> HTMLResponse:
    asked = page.store.item(place.item)
    values = fields if fields is not None else fields_of(place)
    return _render(
        "pair.html" if len(place.order) == 2 else "ranking.html",
        page,
        visitor,
        status,
        place=place,
        prompt=asked.prompt,
        answers=[asked.completions[index] for index in place.order],
        last=len(page.store.places(visitor.name)),
        values=values,
        form=secrets.token_hex(16),
        now=time.time(),
        grades=GRADES,
        saved=saved,
        fault=fault,
        longest=LONGEST_COMMENT,
    )


# The application


def create_app(page: LabelPage, hosts: list[str]) -> FastAPI:
    """The application. ``hosts``: names under which it may be reached, ["*"] for any; others are refused (DNS rebinding)."""
    app = FastAPI(title="Labelling", openapi_url=None, docs_url=None, redoc_url=None)
    app.state.page = page
    app.include_router(router)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    app.add_middleware(SafeHeaders)
    app.add_exception_handler(NotSignedIn, _not_signed_in)
    app.add_exception_handler(Forged, _forged)
    app.add_exception_handler(HTTPException, _fault)
    app.add_exception_handler(404, _fault)
    app.add_exception_handler(RequestValidationError, _fault)
    return app


def _not_signed_in(request: Request, error: Exception) -> Response:
    page = _page_of(request)
    return _render("sign_in.html", page, None, 401, links_only=page.access.links_only, fault="")


def _forged(request: Request, error: Exception) -> Response:
    text = "This form does not belong to your session. Open the page again and repeat the answer; nothing was saved."
    return _render("fault.html", _page_of(request), None, 403, text=text)


def _fault(request: Request, error: Exception) -> Response:
    known = isinstance(error, HTTPException)
    status, text = (error.status_code, str(error.detail)) if known else (404, "There is no such page.")
    return _render("fault.html", _page_of(request), None, status, text=text)
