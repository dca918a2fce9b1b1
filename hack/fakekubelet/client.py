"""The few Kubernetes API calls that a fake kubelet makes: raw JSON over aiohttp.

No models and no discovery: a benchmark must measure the operator and the API server, not the
client library of the fake nodes.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aiohttp
import msgspec
import yaml

MERGE_PATCH = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"

_REQUEST_TIMEOUT = 30.0
# A watch that says nothing for this long is taken for dead: bookmarks come about every minute.
_WATCH_SILENCE = 120.0
_WATCH_SECONDS = 300


class ApiError(Exception):
    """The API server answered with an error.

    Attributes:
        status: The HTTP status.
        body: The text of the answer, usually a Status object.
    """

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"{status}: {body[:500]}")
        self.status = status
        self.body = body


@dataclass(frozen=True, slots=True)
class Access:
    """Where an API server is and how to speak to it."""

    url: str
    token: str | None = None
    tls: ssl.SSLContext | None = None

    @classmethod
    def from_kubeconfig(cls, path: Path) -> Self:
        """Reads the current context of a kubeconfig file.

        Args:
            path: The kubeconfig; tokens, client certificates and CA data or files are understood.
        """
        config: dict[str, Any] = yaml.safe_load(path.read_text())
        context = _named(config["contexts"], config["current-context"])["context"]
        cluster = _named(config["clusters"], context["cluster"])["cluster"]
        user = _named(config["users"], context["user"])["user"]
        return cls(cluster["server"].rstrip("/"), user.get("token"), _tls(cluster, user))


def _named(items: list[dict[str, Any]], name: str) -> dict[str, Any]:
    for item in items:
        if item["name"] == name:
            return item
    raise KeyError(f"the kubeconfig has no entry named {name!r}")


def _tls(cluster: Mapping[str, Any], user: Mapping[str, Any]) -> ssl.SSLContext | None:
    if not cluster["server"].startswith("https"):
        return None
    data = cluster.get("certificate-authority-data")
    context = ssl.create_default_context(
        cafile=cluster.get("certificate-authority"),
        cadata=base64.b64decode(data).decode() if data else None,
    )
    if cluster.get("insecure-skip-tls-verify"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if "client-certificate" in user:
        context.load_cert_chain(user["client-certificate"], user["client-key"])
    elif "client-certificate-data" in user:
        _load_inline_certificate(context, user)
    return context


def _load_inline_certificate(context: ssl.SSLContext, user: Mapping[str, Any]) -> None:
    # OpenSSL's binding only takes files, so the pair touches a private temporary directory.
    with tempfile.TemporaryDirectory() as folder:
        certificate, key = Path(folder, "crt"), Path(folder, "key")
        certificate.write_bytes(base64.b64decode(user["client-certificate-data"]))
        key.write_bytes(base64.b64decode(user["client-key-data"]))
        context.load_cert_chain(certificate, key)


class Client:
    """A connection to one API server, bounded in how much it does at once."""

    def __init__(self, access: Access, *, concurrency: int = 32) -> None:
        self._access = access
        self._slots = asyncio.Semaphore(concurrency)
        self._session: aiohttp.ClientSession | None = None
        self.writes = 0

    async def __aenter__(self) -> Self:
        headers = {"User-Agent": "fakekubelet"}
        if self._access.token:
            headers["Authorization"] = f"Bearer {self._access.token}"
        # The semaphore bounds requests; watches hold connections for long and must not eat slots.
        connector = aiohttp.TCPConnector(limit=0, ssl=self._access.tls or True)
        self._session = aiohttp.ClientSession(connector=connector, headers=headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str, **query: str) -> Any:
        """Reads an object or a list."""
        return msgspec.json.decode(await self.get_raw(path, **query))

    async def get_raw(self, path: str, **query: str) -> bytes:
        """Reads an object or a list and leaves the decoding to the caller."""
        return await self.send("GET", path, query=query)

    async def post(self, path: str, body: Any) -> Any:
        """Creates an object."""
        return msgspec.json.decode(await self.send("POST", path, body=body))

    async def patch(self, path: str, body: Any, content_type: str = MERGE_PATCH) -> Any:
        """Patches an object, by default with a merge patch."""
        answer = await self.send("PATCH", path, body=body, content_type=content_type)
        return msgspec.json.decode(answer)

    async def delete(self, path: str, body: Any = None) -> Any:
        """Deletes an object."""
        return msgspec.json.decode(await self.send("DELETE", path, body=body))

    async def send(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> bytes:
        """Sends one request and returns the body of the answer.

        Raises:
            ApiError: If the answer is not a success.
        """
        if method != "GET":
            self.writes += 1
        async with (
            self._slots,
            self._live().request(
                method,
                self._access.url + path,
                params=query,
                data=None if body is None else msgspec.json.encode(body),
                headers={"Content-Type": content_type},
                timeout=aiohttp.ClientTimeout(total=_REQUEST_TIMEOUT),
            ) as response,
        ):
            data = await response.read()
            if response.status >= 400:
                raise ApiError(response.status, data.decode(errors="replace"))
            return data

    async def watch(self, path: str, version: str, **query: str) -> AsyncIterator[bytes]:
        """Yields the raw lines of one watch until the server ends it.

        Args:
            path: The collection to watch.
            version: The resourceVersion to start from.
            **query: Selectors.

        Raises:
            ApiError: If the server refuses the watch.
        """
        params = {
            **query,
            "watch": "1",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(_WATCH_SECONDS),
        }
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=_WATCH_SILENCE)
        async with self._live().get(
            self._access.url + path, params=params, timeout=timeout
        ) as response:
            if response.status >= 400:
                raise ApiError(response.status, await response.text())
            rest = b""
            # Not readline(): it refuses lines above its buffer size, and a pod can be larger.
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    if line:
                        yield line

    def _live(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("the client is used outside of its `async with`")
        return self._session
