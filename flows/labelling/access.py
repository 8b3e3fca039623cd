"""Who may label: tokens, the cookie that holds one, and the token against forged forms. Only digests of tokens are stored."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from starlette.requests import Request

from data.labelling.store import LabelStore

_NAME = re.compile(r"\w(?:[\w .@+-]{0,62}\w)?")


class NotSignedIn(Exception):
    """The page is for annotators, and this visitor has no valid token."""


class Forged(Exception):
    """A form that does not come from a page of ours."""


@dataclass(frozen=True)
class Visitor:
    """An annotator, and the token against forged forms of their session."""

    name: str
    csrf: str


class Access:
    """The door of one labelling task.

    links_only: only holders of a link that was made for them may enter; else everybody who reaches the page may, under a name they give.
    """

    def __init__(self, store: LabelStore, *, links_only: bool) -> None:
        self.store = store
        self.links_only = links_only
        # Cookies are shared by all ports of a host: tasks served side by side must not overwrite each other's.
        self.cookie = f"label-{hashlib.sha256(store.name.encode()).hexdigest()[:12]}"

    def link_token(self, name: str) -> str:
        """The token of an annotator's link: the same at every start, as long as the file with the secret stays.

        Raises:
            ValueError: the name cannot be one.
        """
        token = hmac.new(_secret(self.store.path.with_suffix(".secret")), checked_name(name).encode(), hashlib.sha256).hexdigest()
        self.store.add_annotator(name, digest_of(token), by_link=True)
        return token

    def sign_in(self, name: str) -> str:
        """A token for whoever gives this name. Raises ValueError as ``link_token``, and where links are needed."""
        if self.links_only:
            raise ValueError("open the link that was made for you")
        token = secrets.token_hex(32)
        self.store.add_annotator(checked_name(name), digest_of(token), by_link=False)
        return token

    def annotator_of(self, token: str) -> str | None:
        """Whose token it is."""
        return self.store.annotator_of(digest_of(token), links_only=self.links_only)

    def visitor(self, request: Request) -> Visitor:
        """Who sends this request. Raises NotSignedIn."""
        token = request.cookies.get(self.cookie, "")
        name = self.annotator_of(token)
        if name is None:
            raise NotSignedIn
        return Visitor(name, csrf_of(token))


def checked_name(name: str) -> str:
    """The name, if it can be an annotator's. Raises ValueError."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot be an annotator's name: use 1 to 64 letters, digits, spaces and . @ + - _, a letter or digit first and last"
        )
    return name


def digest_of(token: str) -> str:
    """What is stored of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def csrf_of(token: str) -> str:
    """The token against forged forms of a session; does not tell the session's."""
    return hashlib.sha256(b"form\0" + token.encode("utf-8", "surrogatepass")).hexdigest()


def require_own_form(request: Request, visitor: Visitor | None, fields: dict[str, str]) -> None:
    """Raises Forged unless the form was sent by a page of ours, in the session of this visitor."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise Forged
    if visitor is not None and not hmac.compare_digest(visitor.csrf.encode(), fields.get("csrf", "").encode()):
        raise Forged


def _secret(path: Path) -> bytes:
    """The key of the links, readable by its owner only; made at the first use."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_bytes()
    with os.fdopen(descriptor, "wb") as file:
        key = secrets.token_bytes(32)
        file.write(key)
        file.flush()
        os.fsync(file.fileno())
    return key
