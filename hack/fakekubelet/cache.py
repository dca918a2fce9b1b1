"""List and watch of one collection, for as long as the fake runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import aiohttp
import msgspec

from fakekubelet.client import ApiError, Client
from fakekubelet.model import Bookmark, ListMeta, Meta, WatchEvent

_log = logging.getLogger(__name__)
_RETRY_SECONDS = 0.2
# What a cut connection, a restarted API server or a slow one looks like.
TRANSIENT = (aiohttp.ClientError, TimeoutError, OSError)


class HasMeta(Protocol):
    """Anything that has metadata."""

    metadata: Meta


T = TypeVar("T", bound=HasMeta)


class _List(msgspec.Struct, Generic[T]):
    metadata: ListMeta
    items: list[T] | None = None


class Reflector(Generic[T]):
    """Follows one collection and reports what changes.

    A relist replaces: what is gone from the list is reported as gone.

    Attributes:
        objects: What is known now, by uid.
        synced: Set once the first list is in.
    """

    def __init__(
        self,
        client: Client,
        path: str,
        kind: type[T],
        *,
        changed: Callable[[T], None] = lambda _: None,
        gone: Callable[[T], None] = lambda _: None,
        **selectors: str,
    ) -> None:
        self._client = client
        self._path = path
        self._selectors = selectors
        self._changed = changed
        self._gone = gone
        self._object = msgspec.json.Decoder(kind)
        self._list: msgspec.json.Decoder[_List[T]] = msgspec.json.Decoder(
            _List[kind]  # type: ignore[valid-type]
        )
        self._event = msgspec.json.Decoder(WatchEvent)
        self._bookmark = msgspec.json.Decoder(Bookmark)
        self.objects: dict[str, T] = {}
        self.synced = asyncio.Event()

    async def run(self) -> None:
        """Follows the collection until cancelled, through every failure."""
        while True:
            try:
                version = await self._relist()
                self.synced.set()
                while version:
                    version = await self._watch(version)
            except (ApiError, *TRANSIENT) as error:
                _log.info("following %s: %s", self._path, error)
            await asyncio.sleep(_RETRY_SECONDS)

    async def _relist(self) -> str:
        raw = await self._client.get_raw(self._path, **self._selectors)
        listed = self._list.decode(raw)
        now = {item.metadata.uid: item for item in listed.items or []}
        for uid in [uid for uid in self.objects if uid not in now]:
            self._gone(self.objects.pop(uid))
        for uid, item in now.items():
            self.objects[uid] = item
            self._changed(item)
        return listed.metadata.resource_version

    async def _watch(self, version: str) -> str:
        """Watches until the stream ends; returns where to go on, empty for "list again"."""
        async for line in self._client.watch(self._path, version, **self._selectors):
            event = self._event.decode(line)
            if event.type == "ERROR":
                return ""
            if event.type == "BOOKMARK":
                version = self._bookmark.decode(event.object).metadata.resource_version
                continue
            item = self._object.decode(event.object)
            version = item.metadata.resource_version
            if event.type == "DELETED":
                self.objects.pop(item.metadata.uid, None)
                self._gone(item)
            else:
                self.objects[item.metadata.uid] = item
                self._changed(item)
        return version
