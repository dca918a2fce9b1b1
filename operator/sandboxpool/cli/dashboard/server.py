"""The web application: who may ask, the pages, and their changes as they come."""

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib import resources

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sandboxpool.cli.dashboard.pages import Pages, Parts
from sandboxpool.cli.dashboard.watch import Watcher

# Changes are gathered that long, so that a fleet in motion does not keep browsers busy.
UPDATE_SECONDS = 1.0
# Without changes a comment is sent, which shows both sides that the connection is alive.
HEARTBEAT_SECONDS = 10.0
MAX_STREAMS = 16
# The browser waits that long before it connects again.
RETRY_MILLISECONDS = 2000

_STATIC = {"page.css": "text/css", "page.js": "text/javascript"}
_HEADERS = (
    # No request to the outside, no inline code, no page around this one.
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
        " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    ("Cache-Control", "no-store"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    # The URL has the token.
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
)
_ENCODED_HEADERS = [(key.lower().encode(), value.encode()) for key, value in _HEADERS]


def new_token() -> str:
    """Return what the URL has to have, so that nobody else on this machine can read the page."""
    return secrets.token_urlsafe(24)


class Guard:
    """Answers only those who know the token, by a name of the loopback address, and only GET.

    A page on the web can make a browser connect here under a name of its own that resolves to
    127.0.0.1; the Host header then has that name.
    """

    def __init__(self, app: ASGIApp, token: str, port: int) -> None:
        self._app = app
        self._token = token
        self._hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or pass it on with the token as its root path."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_ENCODED_HEADERS]
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send_with_headers)
            return
        root = f"/{self._token}"
        await self._app({**scope, "root_path": root}, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        hosts = [value.decode("latin-1") for key, value in scope["headers"] if key == b"host"]
        if len(hosts) != 1 or hosts[0] not in self._hosts:
            return PlainTextResponse("The Host header names another server.\n", 421)
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("Only GET.\n", 405, {"Allow": "GET, HEAD"})
        first, slash, _ = scope["path"].removeprefix("/").partition("/")
        if not slash or not secrets.compare_digest(first.encode(), self._token.encode()):
            return PlainTextResponse("Open the URL that the command has printed.\n", 404)
        return None


class Site:
    """The pages and their streams."""

    def __init__(self, watcher: Watcher, pages: Pages) -> None:
        self._watcher = watcher
        self._pages = pages
        self._streams = 0

    def application(self, token: str, port: int) -> ASGIApp:
        """Return the application for a server on this port."""

        @contextlib.asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            watching = asyncio.create_task(self._watcher.run())
            try:
                yield
            finally:
                watching.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await watching

        routes = [
            *(Route(f"/{page}", self._page, methods=["GET"]) for page in self._pages.all),
            Route("/stream", self._stream, methods=["GET"]),
            Route("/static/{name}", _static, methods=["GET"]),
        ]
        return Guard(Starlette(routes=routes, lifespan=lifespan), token, port)

    async def _page(self, request: Request) -> Response:
        page = request.url.path.rpartition("/")[2]
        parameters = dict(request.query_params)
        parts = await self._pages.all[page](parameters)
        return HTMLResponse(self._pages.layout(page, parameters, parts))

    async def _stream(self, request: Request) -> Response:
        parameters = dict(request.query_params)
        render = self._pages.all.get(parameters.pop("page", ""))
        if render is None:
            return PlainTextResponse("There is no such page.\n", 404)
        if self._streams >= MAX_STREAMS:
            return PlainTextResponse("Too many pages are open.\n", 503, {"Retry-After": "30"})
        changes = self._changes(lambda: render(parameters))
        return StreamingResponse(changes, media_type="text/event-stream")

    async def _changes(self, render: Callable[[], Awaitable[Parts]]) -> AsyncIterator[str]:
        self._streams += 1
        sent: Parts = {}
        try:
            yield f"retry: {RETRY_MILLISECONDS}\n\n"
            while True:
                version = self._watcher.version
                parts = await render()
                changed = {name: html for name, html in parts.items() if sent.get(name) != html}
                sent = parts
                yield f"event: parts\ndata: {json.dumps(changed)}\n\n"
                await asyncio.sleep(UPDATE_SECONDS)
                await self._watcher.wait_newer(version, HEARTBEAT_SECONDS)
        finally:
            self._streams -= 1


async def _static(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in _STATIC:
        return PlainTextResponse("There is no such file.\n", 404)
    text = (resources.files("sandboxpool.cli.dashboard") / "static" / name).read_text()
    return Response(text, media_type=_STATIC[name])
