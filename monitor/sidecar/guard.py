"""Who may see the pages that show turns and alerts, and reload."""

from __future__ import annotations

import re
from collections.abc import Callable
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from monitor.sidecar.bearer import BearerToken
from monitor.sidecar.listen import is_loopback

_PORT = re.compile(r":\d*$")
_LOOKS = ("GET", "HEAD")
_BASIC = 'Basic realm="affect-monitor", charset="UTF-8"'

Page = Callable[[Request], Response]


class PageGuard:
    """Lets those that have the token through; without a token, those on this machine.

    Args:
        token: The token; None where none is set.
        host: Address the pages are served on.
        refused: Called with the peer of every request that shows a wrong token, or none and would change something.
    """

    def __init__(self, token: BearerToken | None, host: str, refused: Callable[[str], None]) -> None:
        self._token, self._host, self._refused = token, host, refused

    def __call__(self, page: Page) -> Page:
        """The page, guarded."""
        return lambda request: self._refusal(request) or page(request)

    def _refusal(self, request: Request) -> Response | None:
        if self._token is None:
            return self._refuse_stranger(request)
        shown = request.headers.get("authorization", "")
        # A browser shows a password by itself, to whatever page makes it ask: good enough to look, not to change.
        looks = request.method in _LOOKS
        if self._token.admits(shown) or (looks and self._token.admits_password(shown)):
            return None
        # A browser looks without a password before it asks for one, at every first visit.
        if shown or not looks:
            self._refused(request.client.host if request.client else "")
        message = "asks for Authorization: Bearer TOKEN; browsers give the token as the password of any user\n"
        refusal = PlainTextResponse(message, HTTPStatus.UNAUTHORIZED, {"www-authenticate": "Bearer"})
        if looks:
            # On a line of its own: browsers read one challenge a line.
            refusal.headers.append("www-authenticate", _BASIC)
        return refusal

    def _refuse_stranger(self, request: Request) -> Response | None:
        if not is_loopback(self._host):
            message = "set token_file (--token-file, AFFECT_TOKEN_FILE) to open this page beyond loopback\n"
            return PlainTextResponse(message, HTTPStatus.FORBIDDEN)
        # A web page in a browser on this machine can have its own name point here, and would read the answer.
        if not is_loopback(_PORT.sub("", request.headers.get("host", ""))):
            return PlainTextResponse("ask for it by the name localhost or 127.0.0.1\n", HTTPStatus.FORBIDDEN)
        # So can it send a form here without reading the answer; programs name no origin.
        if request.method not in _LOOKS and "origin" in request.headers:
            return PlainTextResponse("web pages may look, and change nothing\n", HTTPStatus.FORBIDDEN)
        return None
