"""A small API client: one pooled HTTP/1.1 session, bytes in and out, errors told apart.

Bodies are built by pure functions as dicts and decoded by the caller into projections. What is
deliberately missing: generated models, discovery, retries of writes. A write is repeated only
where the server said that it did not take place (429, or 503 with Retry-After).
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from email.utils import parsedate_to_datetime
from typing import Any, Final, Protocol

import aiohttp
import kopf
import msgspec
from aiohttp.connector import Connection

from sandboxpool.kube.credentials import token_source
from sandboxpool.kube.errors import UNREADABLE, ApiError, UnknownOutcomeError

JSON: Final = "application/json"
MERGE_PATCH: Final = "application/merge-patch+json"
STRATEGIC_PATCH: Final = "application/strategic-merge-patch+json"
JSON_PATCH: Final = "application/json-patch+json"

REQUEST_TIMEOUT_SECONDS: Final = 30.0
CONNECT_TIMEOUT_SECONDS: Final = 10.0
# A healthy watch ends within a minute, if it has nothing to say.
WATCH_SILENCE_SECONDS: Final = 90.0
# A request that hangs keeps a connection busy. The queues bound how many keys are slow at once, so
# that many of those leave enough connections to whoever is answered at once.
MAX_CONNECTIONS: Final = 500
THROTTLED_ATTEMPTS: Final = 5
LONGEST_THROTTLE_SECONDS: Final = 10.0

_encode = msgspec.json.Encoder().encode


class RequestObserver(Protocol):
    """Told of each finished request; ``code`` is the HTTP status or ``<error>``."""

    def __call__(self, verb: str, code: str, seconds: float) -> None:
        """Take note of one request."""


class _StatusDetails(msgspec.Struct):
    retryAfterSeconds: float | None = None


class Status(msgspec.Struct):
    """The API server's Status object, as far as we read it."""

    reason: str = ""
    message: str = ""
    code: int = 0
    details: _StatusDetails | None = None


def error_of(http_status: int, body: bytes, retry_after: str | None = None) -> ApiError:
    """Make an error of an answer; a body that is no Status becomes the message."""
    try:
        status = msgspec.json.decode(body, type=Status)
    except UNREADABLE:
        status = Status(message=body[:500].decode("utf-8", "replace"))
    seconds: float | None = None
    if retry_after is not None and retry_after.isdigit():
        seconds = float(retry_after)
    elif status.details is not None:
        seconds = status.details.retryAfterSeconds
    return ApiError(http_status, status.reason, status.message, seconds)


def resource_path(
    api_version: str,
    resource: str,
    namespace: str | None = None,
    name: str | None = None,
    subresource: str | None = None,
) -> str:
    """Return the URL path of a collection, an object or a subresource."""
    root = "/api/" if "/" not in api_version else "/apis/"
    path = f"{root}{api_version}"
    if namespace is not None:
        path += f"/namespaces/{namespace}"
    path += f"/{resource}"
    if name is not None:
        path += f"/{name}"
    if subresource is not None:
        path += f"/{subresource}"
    return path


class ApiClient:
    """Requests to one API server; use as an async context manager.

    Args:
        info: where the API server is, and who we are.
        user_agent: what we call ourselves.
        observe: told of each finished request.
        permit: called right before each write is sent; what it raises keeps the write from being.
        on_date: told the Date of the answers, in seconds since the epoch, as they arrive.
    """

    def __init__(
        self,
        info: kopf.ConnectionInfo,
        *,
        user_agent: str,
        observe: RequestObserver | None = None,
        before_write: Callable[[], None] = lambda: None,
        on_date: Callable[[float], None] = lambda date: None,
    ) -> None:
        self._server = info.server.rstrip("/")
        self._proxy = info.proxy_url
        self._ca_path = info.ca_path
        self._ssl = info.as_ssl_context() if self._server.startswith("https") else None
        self._authorization: Callable[[], dict[str, str]] = token_source(info)
        self._user_agent = user_agent
        self._observe = observe or (lambda verb, code, seconds: None)
        self._permit = before_write
        self._on_date = on_date
        self._last_date = ""
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "ApiClient":
        permit = self._permit

        class Request(aiohttp.ClientRequest):
            # Waiting for a free connection may take long: only what comes after it is "right
            # before".
            async def send(self, conn: Connection) -> aiohttp.ClientResponse:
                if self.method != "GET":
                    permit()
                return await super().send(conn)

        connector = aiohttp.TCPConnector(
            limit=MAX_CONNECTIONS, ssl=self._ssl if self._ssl is not None else True
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            proxy=self._proxy,
            # To look for cookies that nobody sets takes a tenth of a request's CPU.
            cookie_jar=aiohttp.DummyCookieJar(),
            request_class=Request,
            headers={"User-Agent": self._user_agent, "Accept": JSON},
            timeout=aiohttp.ClientTimeout(
                total=REQUEST_TIMEOUT_SECONDS, connect=CONNECT_TIMEOUT_SECONDS
            ),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str, params: Mapping[str, str] | None = None) -> bytes:
        """Read an object or a list."""
        return await self._request("GET", path, params=params)

    async def find(self, path: str) -> bytes | None:
        """Read an object; None if there is none of this name."""
        try:
            return await self.get(path)
        except ApiError as error:
            if error.not_found:
                return None
            raise

    async def create(
        self, path: str, body: Mapping[str, Any], params: Mapping[str, str] | None = None
    ) -> bytes:
        """POST an object to its collection."""
        return await self._request("POST", path, body=body, params=params)

    async def merge_patch(self, path: str, body: Mapping[str, Any]) -> bytes:
        """Merge-patch an object; a resourceVersion in its metadata makes it conditional."""
        return await self._request("PATCH", path, body=body, content_type=MERGE_PATCH)

    async def strategic_patch(self, path: str, body: Mapping[str, Any]) -> bytes:
        """Patch one of Kubernetes' own kinds by its merge keys, such as a condition by its type."""
        return await self._request("PATCH", path, body=body, content_type=STRATEGIC_PATCH)

    async def json_patch(self, path: str, body: list[dict[str, Any]]) -> bytes:
        """JSON-patch an object; a ``test`` operation makes it conditional."""
        return await self._request("PATCH", path, body=body, content_type=JSON_PATCH)

    async def replace_status(
        self, path: str, uid: str, status: Mapping[str, Any], *, version: str | None = None
    ) -> bytes:
        """Replace the whole status of the object with this uid.

        Args:
            path: the object's path.
            uid: the object that is meant; a merge patch of /status would ignore it.
            status: the new status.
            version: if given, the object must still be of this resourceVersion.

        Raises:
            ApiError: 404 if the name is gone, 422 if a test fails: it names another object now,
                or a newer version of it.
        """
        tests = [{"op": "test", "path": "/metadata/uid", "value": uid}]
        if version is not None:
            tests.append({"op": "test", "path": "/metadata/resourceVersion", "value": version})
        return await self.json_patch(
            path + "/status", [*tests, {"op": "add", "path": "/status", "value": status}]
        )

    async def delete(
        self, path: str, *, uid: str, resource_version: str | None = None, grace: int | None = None
    ) -> bytes:
        """Delete exactly the object that was looked at, and none that took its name since."""
        preconditions = {"uid": uid}
        if resource_version is not None:
            preconditions["resourceVersion"] = resource_version
        body: dict[str, Any] = {"preconditions": preconditions}
        if grace is not None:
            body["gracePeriodSeconds"] = grace
        return await self._request("DELETE", path, body=body)

    async def _request(
        self,
        method: str,
        path: str,
        *,
        body: object | None = None,
        params: Mapping[str, str] | None = None,
        content_type: str = JSON,
    ) -> bytes:
        data = None if body is None else _encode(body)
        for attempt in range(1, THROTTLED_ATTEMPTS + 1):
            try:
                return await self._send(method, path, data, params, content_type)
            except ApiError as error:
                throttled = error.status == 429 or (
                    error.status == 503 and error.retry_after is not None
                )
                if not throttled or attempt == THROTTLED_ATTEMPTS:
                    raise
                wait = error.retry_after or 0.2 * 2**attempt
            await asyncio.sleep(min(wait, LONGEST_THROTTLE_SECONDS))
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _send(
        self,
        method: str,
        path: str,
        data: bytes | None,
        params: Mapping[str, str] | None,
        content_type: str,
    ) -> bytes:
        assert self._session is not None, "use the client as a context manager"
        headers = dict(self._authorization())
        if data is not None:
            headers["Content-Type"] = content_type
        started = time.perf_counter()
        code = "<error>"
        try:
            async with self._session.request(
                method, self._server + path, data=data, params=params, headers=headers
            ) as response:
                self._note_date(response)
                payload = await response.read()
                code = str(response.status)
                if response.status >= 400:
                    raise error_of(response.status, payload, response.headers.get("Retry-After"))
                return payload
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            self._distrusted(error)
            raise UnknownOutcomeError(f"{method} {path}: {type(error).__name__} {error}") from error
        finally:
            self._observe(method, code, time.perf_counter() - started)

    def _distrusted(self, error: BaseException) -> None:
        """Read the CA's file anew if a certificate was not trusted: it is rotated in place."""
        if isinstance(error, aiohttp.ClientConnectorCertificateError) and self._ca_path:
            assert self._ssl is not None, "only https has certificates"
            with suppress(OSError):
                self._ssl.load_verify_locations(cafile=self._ca_path)

    def _note_date(self, response: aiohttp.ClientResponse) -> None:
        text = response.headers.get("Date", "")
        if text == self._last_date:
            # It says nothing new: it was as late as it is now when it came for the first time.
            return
        self._last_date = text
        with suppress(ValueError, OverflowError):
            self._on_date(parsedate_to_datetime(text).timestamp())

    @asynccontextmanager
    async def watch(
        self, path: str, params: Mapping[str, str]
    ) -> AsyncGenerator[AsyncIterator[bytes]]:
        """Open a watch and give its lines; the stream ends when the server or the wire does.

        Raises:
            ApiError: the server refused the watch.
            UnknownOutcomeError: the connection failed, or nothing came for too long.
        """
        assert self._session is not None, "use the client as a context manager"
        timeout = aiohttp.ClientTimeout(
            total=None, connect=CONNECT_TIMEOUT_SECONDS, sock_read=WATCH_SILENCE_SECONDS
        )
        try:
            async with self._session.get(
                self._server + path,
                params={**params, "watch": "1"},
                headers=self._authorization(),
                timeout=timeout,
            ) as response:
                self._note_date(response)
                self._note_date(response)
                self._observe("WATCH", str(response.status), 0.0)
                if response.status >= 400:
                    raise error_of(
                        response.status,
                        await response.read(),
                        response.headers.get("Retry-After"),
                    )
                yield _lines(response)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            self._distrusted(error)
            raise UnknownOutcomeError(f"watch {path}: {type(error).__name__} {error}") from error


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    # Objects may be larger than any line limit of a stream reader, so lines are cut here.
    rest = b""
    async for chunk in response.content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n") if rest else chunk.split(b"\n")
        for line in lines:
            if line:
                yield line
