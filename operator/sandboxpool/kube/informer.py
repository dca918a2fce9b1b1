"""A cache of one kind, kept by list and watch, with replace semantics.

A relist replaces: what the list no longer holds is reported as deleted, which no watch can do
for what vanished while it was down. Lists are read with quorum (no resourceVersion), in pages.
Objects are decoded into the caller's projection; one that does not fit is logged by name and
skipped, so a damaged object never stops the others.
"""

import asyncio
import logging
import math
import random
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

import msgspec

from sandboxpool.kube.client import ApiClient, error_of
from sandboxpool.kube.errors import UNREADABLE, ApiError, KubeError
from sandboxpool.util.resource_version import parse_resource_version

logger = logging.getLogger(__name__)

PAGE_SIZE = 500
FIRST_BACKOFF_SECONDS = 0.2
LONGEST_BACKOFF_SECONDS = 30.0
# The server is asked to end a watch before its silence would look like a dead connection: where
# nothing changes it need not send a bookmark for minutes.
WATCH_SECONDS = (45, 60)
# After a failure it is asked to end sooner: its end shows that all is well again.
RECOVERY_WATCH_SECONDS = (5, 15)
# One that has lived so long before its end is no part of a tight loop.
HEALTHY_WATCH_SECONDS = 4.0
# A watch without a sign of life for so long is broken, as each ends by itself before: what its
# cache shows may be true no more.
MAX_STALENESS_SECONDS = 120.0
# After so many events without a pause other tasks get a turn: a burst must not stall the loop.
EVENTS_PER_YIELD = 50


class Meta(Protocol):
    """The metadata that an informer needs."""

    @property
    def name(self) -> str:
        """The object's name."""

    @property
    def namespace(self) -> str:
        """The object's namespace; empty if it has none."""

    @property
    def uid(self) -> str:
        """The object's uid."""

    @property
    def resourceVersion(self) -> str:
        """The version of this state of the object."""

    @property
    def creationTimestamp(self) -> str:
        """When the object was created, as the API writes times."""


class Object(Protocol):
    """Anything with metadata."""

    @property
    def metadata(self) -> Meta:
        """The object's metadata."""


T = TypeVar("T", bound=Object)


class _ListMeta(msgspec.Struct):
    resourceVersion: str = ""
    # "continue" is a Python keyword, so the wire's name is mapped.
    cont: str = msgspec.field(default="", name="continue")


class _List(msgspec.Struct):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


class _WatchEvent(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _BareMeta(msgspec.Struct):
    name: str = "?"
    namespace: str = ""
    resourceVersion: str = ""


class _PartialObjectMetadata(msgspec.Struct):
    metadata: _BareMeta


class Informer(Generic[T]):
    """List and watch one collection; call back on each change.

    Args:
        client: the API client.
        path: the collection's URL path (all namespaces, or one).
        type_: the msgspec projection to decode into.
        on_change: called with the old and the new state; one of them may be None. A name that
            was deleted and made again with another uid is reported as two changes.
        label_selector: server-side filter.
        field_selector: server-side filter.
        on_restart: called with the cause each time the watch has to start again.
    """

    def __init__(
        self,
        client: ApiClient,
        path: str,
        type_: type[T],
        on_change: Callable[[T | None, T | None], None],
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
        on_restart: Callable[[str], None] = lambda cause: None,
    ) -> None:
        self.path = path
        self._client = client
        self._decode = msgspec.json.Decoder(type_).decode
        self._decode_event = msgspec.json.Decoder(_WatchEvent).decode
        self._on_change = on_change
        self._on_restart = on_restart
        self._params = {}
        if label_selector:
            self._params["labelSelector"] = label_selector
        if field_selector:
            self._params["fieldSelector"] = field_selector
        self._objects: dict[tuple[str, str], T] = {}
        self._version = ""
        self._progress = 0
        self._progress_at = -math.inf
        self._clock: Callable[[], float] = lambda: 0.0
        self._held = False
        # Objects that were kept while muted, and of which nobody was told yet.
        self._unnotified: dict[tuple[str, str], T] = {}
        self._relist_timeout: asyncio.Timeout | None = None
        self._listed = asyncio.Event()
        self.synced = asyncio.Event()

    def __iter__(self) -> Iterator[T]:
        return iter(self._objects.values())

    def __len__(self) -> int:
        return len(self._objects)

    def get(self, namespace: str, name: str) -> T | None:
        """Return the cached object, or None."""
        return self._objects.get((namespace, name))

    def staleness(self) -> float:
        """Seconds since the API server has last shown that nothing is missed; infinite at first.

        Where nothing changes it is less than a watch lasts, as each ends by itself.
        """
        return self._clock() - self._progress_at

    def _progressed(self) -> None:
        self._progress += 1
        self._progress_at = self._clock()

    def hold_notifications(self) -> None:
        """Keep the cache up to date and call nobody back until ``release_notifications``."""
        self._held = True

    async def release_notifications(self) -> None:
        """Call back for each object as if it were new, the oldest first; then for each change."""
        self._held = False
        self._unnotified, self._objects = self._objects, {}
        for turn, key in enumerate(sorted(self._unnotified, key=self._age_of), 1):
            # One that has changed since, or is gone, has been told of.
            obj = self._unnotified.pop(key, None)
            if obj is not None:
                self._put(key, obj)
            if turn % EVENTS_PER_YIELD == 0:
                await asyncio.sleep(0)

    def _age_of(self, key: tuple[str, str]) -> tuple[str, int]:
        # Creation times have whole seconds; among untouched objects versions tell the rest.
        metadata = self._unnotified[key].metadata
        return metadata.creationTimestamp, parse_resource_version(metadata.resourceVersion)

    async def relist(self) -> None:
        """List anew while ``run`` runs; return when the cache is no older than this call."""
        listed = self._listed = asyncio.Event()
        if self._relist_timeout is not None:
            self._relist_timeout.reschedule(asyncio.get_running_loop().time())
        await listed.wait()

    async def run(self) -> None:
        """List and watch until cancelled, whatever the API server does meanwhile."""
        self._clock = asyncio.get_running_loop().time
        while True:
            try:
                async with asyncio.timeout(None) as self._relist_timeout:
                    await self._list_and_watch()
            except TimeoutError:
                # Asked for: see `relist`.
                self._version = ""

    async def _list_and_watch(self) -> None:
        backoff = FIRST_BACKOFF_SECONDS
        lifetime = WATCH_SECONDS
        while True:
            before = self._progress
            try:
                if not self._version:
                    listed = self._listed
                    await self._list()
                    self.synced.set()
                    listed.set()
                lasted = await self._watch(lifetime)
                lifetime = WATCH_SECONDS
                if lasted >= HEALTHY_WATCH_SECONDS:
                    # It has said all that there was to say, even if that was nothing. Nobody
                    # watches now, so the next one begins at once.
                    self._progressed()
                    self._on_restart("ended")
                    backoff = FIRST_BACKOFF_SECONDS
                    continue
                cause = "ended"
            except ApiError as error:
                if error.gone or error.status == 400:
                    # Too old, or none at all: whoever gave it to us, the next comes from a list.
                    self._version = ""
                cause = "gone" if error.gone else str(error.status)
                wait = error.retry_after or 0.0
                backoff = max(backoff, min(wait, LONGEST_BACKOFF_SECONDS))
                log = logger.info if error.gone else logger.warning
                log("watch of %s: %s", self.path, error)
            except KubeError as error:
                cause = "connection"
                logger.warning("%s", error)
            except UNREADABLE as error:
                # A bookmark or an error that is none: only a list can tell where we are.
                self._version = ""
                cause = "unreadable"
                logger.warning("watch of %s: %s", self.path, error)
            self._on_restart(cause)
            if cause not in ("ended", "gone"):
                lifetime = RECOVERY_WATCH_SECONDS
            progressed = self._progress > before
            if progressed:
                backoff = FIRST_BACKOFF_SECONDS
            # Never in a tight loop.
            await asyncio.sleep(backoff * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
            if not progressed:
                backoff = min(backoff * 2, LONGEST_BACKOFF_SECONDS)

    async def _list(self) -> None:
        fresh: dict[tuple[str, str], T] = {}
        kept: set[tuple[str, str]] = set()
        params = {**self._params, "limit": str(PAGE_SIZE)}
        while True:
            answer = await self._client.get(self.path, params)
            try:
                page = msgspec.json.decode(answer, type=_List)
            except UNREADABLE as error:
                # Something between us and the API server answered in its place.
                raise KubeError(f"list of {self.path}: no list: {error}") from error
            for raw in page.items or ():
                obj = self._decoded(raw)
                if obj is not None:
                    fresh[obj.metadata.namespace, obj.metadata.name] = self._one_copy(obj)
                elif (key := _key_of(raw)) is not None:
                    kept.add(key)
            if not page.metadata.cont:
                break
            self._progressed()
            params["continue"] = page.metadata.cont
        for key in [key for key in self._objects if key not in fresh and key not in kept]:
            self._put(key, None)
        for turn, (key, obj) in enumerate(fresh.items(), 1):
            self._put(key, obj)
            if turn % EVENTS_PER_YIELD == 0:
                await asyncio.sleep(0)
        self._version = page.metadata.resourceVersion
        self._progressed()

    def _one_copy(self, obj: T) -> T:
        """What is cached already, if it is the same: a new leader lists all that it knows."""
        known = self._objects.get((obj.metadata.namespace, obj.metadata.name))
        return known if known is not None and _same(known, obj) else obj

    async def _watch(self, lifetime: tuple[int, int]) -> float:
        """Watch until the server ends it in good order; return how many seconds that took."""
        params = {
            **self._params,
            "resourceVersion": self._version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(random.randint(*lifetime)),  # noqa: S311 - no secret
        }
        began = self._clock()
        async with self._client.watch(self.path, params) as lines:
            async for line in lines:
                self._version = self._apply(line) or self._version
                self._progressed()
                if self._progress % EVENTS_PER_YIELD == 0:
                    await asyncio.sleep(0)
        return self._clock() - began

    def _apply(self, line: bytes) -> str:
        try:
            event = self._decode_event(line)
        except UNREADABLE as error:
            logger.warning("watch of %s: unreadable line skipped: %s", self.path, error)
            return ""
        if event.type == "ERROR":
            failure = error_of(0, bytes(event.object))
            failure.status = msgspec.json.decode(event.object, type=_Code).code or 500
            raise failure
        if event.type == "BOOKMARK":
            bare = msgspec.json.decode(event.object, type=_PartialObjectMetadata)
            return bare.metadata.resourceVersion
        if event.type == "DELETED":
            # The end of an object is its end, even where it can no longer be read.
            gone = msgspec.json.decode(event.object, type=_PartialObjectMetadata).metadata
            self._put((gone.namespace, gone.name), None)
            return gone.resourceVersion
        obj = self._decoded(event.object)
        if obj is None:
            return ""
        key = (obj.metadata.namespace, obj.metadata.name)
        self._put(key, obj)
        return obj.metadata.resourceVersion

    def _decoded(self, raw: msgspec.Raw) -> T | None:
        try:
            return self._decode(raw)
        except UNREADABLE as error:
            logger.warning(
                "%s: object %s does not fit and is skipped: %s", self.path, _key_of(raw), error
            )
            return None

    def _put(self, key: tuple[str, str], new: T | None) -> None:
        if self._held:
            if new is not None:
                self._objects[key] = new
            else:
                self._objects.pop(key, None)
            return
        # Whatever comes now is newer.
        self._unnotified.pop(key, None)
        old = self._objects.get(key)
        if new is None:
            if old is None:
                return
            del self._objects[key]
            self._notify(old, None)
            return
        if old is not None:
            if old.metadata.uid != new.metadata.uid:
                del self._objects[key]
                self._notify(old, None)
                old = None
            elif _same(old, new):
                return
        self._objects[key] = new
        self._notify(old, new)

    def _notify(self, old: T | None, new: T | None) -> None:
        try:
            self._on_change(old, new)
        except Exception:
            # One object must not keep the news of all others from us.
            metadata = (new or old).metadata  # type: ignore[union-attr]
            name = f"{metadata.namespace}/{metadata.name}"
            logger.exception("%s: a change of object %s could not be taken in", self.path, name)


def _same(one: Object, other: Object) -> bool:
    """Whether two states of an object are one and the same."""
    ours, theirs = one.metadata, other.metadata
    return (ours.uid, ours.resourceVersion) == (theirs.uid, theirs.resourceVersion)


class _Code(msgspec.Struct):
    code: int = 0


def _key_of(raw: msgspec.Raw) -> tuple[str, str] | None:
    try:
        bare = msgspec.json.decode(raw, type=_PartialObjectMetadata)
    except UNREADABLE:
        return None
    return bare.metadata.namespace, bare.metadata.name
