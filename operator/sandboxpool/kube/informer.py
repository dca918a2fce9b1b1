"""A cache of one kind, kept up to date by list and watch.

A relist replaces the cache: objects that the list does not contain are reported as deleted, which
no watch reports if they were deleted while it was down. Lists are consistent reads (without a
resourceVersion), in pages. Objects are decoded into the caller's projection; one that does not fit
is logged by name and skipped, so that it does not block the others.

A collection that the operator may be without, such as that of a namespace that does not exist yet,
is *unavailable* while the API server refuses to list it. Its cache is empty then.
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
# The server is asked to end a watch before its silence would look like a dead connection: without
# changes it may send no bookmark for minutes.
WATCH_SECONDS = (45, 60)
# After a failure a shorter watch shows sooner that the server works again.
RECOVERY_WATCH_SECONDS = (5, 15)
# After a watch that lasted this long the next one starts at once, without a tight loop.
HEALTHY_WATCH_SECONDS = 4.0
# A watch without progress for this long is broken, as each ends by itself before: its cache may
# be stale.
MAX_STALENESS_SECONDS = 120.0
# The operator tries again after this time at most where a collection may be refused.
REFUSED_RETRY_SECONDS = 10.0
# A cache is emptied if its watch has been refused for this long: permissions may be missing for
# a moment while they are replaced. It must end before the cache would be stale.
FORGET_SECONDS = 60.0
# After this many events other tasks run: a burst must not block the event loop.
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
        """The object's resourceVersion."""

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
        on_change: called with the old and the new state; one of them may be None. An object that
            was deleted and created again (another uid) is reported as two changes.
        label_selector: server-side filter.
        field_selector: server-side filter.
        on_restart: called with the cause each time the watch has to start again.
        on_availability: called when ``available`` changes; if None, the collection must be
            available, and a refusal is an error like any other.

    Attributes:
        available: whether the collection could be listed; None before the first response.
        synced: set when the collection was listed, or is unavailable.
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
        on_availability: Callable[[], None] | None = None,
    ) -> None:
        self.path = path
        self._client = client
        self._decode = msgspec.json.Decoder(type_).decode
        self._decode_event = msgspec.json.Decoder(_WatchEvent).decode
        self._on_change = on_change
        self._on_restart = on_restart
        self._on_availability = on_availability
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
        # Objects cached while notifications were held, and not yet reported.
        self._unnotified: dict[tuple[str, str], T] = {}
        self._relist_timeout: asyncio.Timeout | None = None
        self._listed = asyncio.Event()
        self._refused_since: float | None = None
        self.available: bool | None = None
        self.synced = asyncio.Event()

    def __iter__(self) -> Iterator[T]:
        return iter(self._objects.values())

    def __len__(self) -> int:
        return len(self._objects)

    def get(self, namespace: str, name: str) -> T | None:
        """Return the cached object, or None."""
        return self._objects.get((namespace, name))

    def staleness(self) -> float:
        """Seconds since the API server last confirmed that the cache is current; infinite at first.

        Without changes this is at most the duration of a watch, as each ends by itself. A cache
        that is empty because its collection is unavailable is never stale.
        """
        if self.available is False:
            return 0.0
        return self._clock() - self._progress_at

    def _progressed(self) -> None:
        self._progress += 1
        self._progress_at = self._clock()
        self._refused_since = None

    def hold_notifications(self) -> None:
        """Keep the cache up to date without callbacks until ``release_notifications``."""
        self._held = True

    async def release_notifications(self) -> None:
        """Report each cached object as new, the oldest first; then each change."""
        self._held = False
        self._unnotified, self._objects = self._objects, {}
        for turn, key in enumerate(sorted(self._unnotified, key=self._age_of), 1):
            # An object that has changed or was deleted meanwhile is reported already.
            obj = self._unnotified.pop(key, None)
            if obj is not None:
                self._put(key, obj)
            if turn % EVENTS_PER_YIELD == 0:
                await asyncio.sleep(0)

    def _age_of(self, key: tuple[str, str]) -> tuple[str, int]:
        # Creation times have whole seconds; resourceVersions order objects within a second.
        metadata = self._unnotified[key].metadata
        return metadata.creationTimestamp, parse_resource_version(metadata.resourceVersion)

    async def relist(self) -> None:
        """List again while ``run`` runs; return when the cache is no older than this call."""
        listed = self._listed = asyncio.Event()
        if self._relist_timeout is not None:
            self._relist_timeout.reschedule(asyncio.get_running_loop().time())
        await listed.wait()

    async def run(self) -> None:
        """List and watch until cancelled, with a backoff after failures."""
        self._clock = asyncio.get_running_loop().time
        while True:
            try:
                async with asyncio.timeout(None) as self._relist_timeout:
                    await self._list_and_watch()
            except TimeoutError:
                # `relist` was called.
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
                    self._set_available(True)
                    self.synced.set()
                    listed.set()
                lasted = await self._watch(lifetime)
                lifetime = WATCH_SECONDS
                if lasted >= HEALTHY_WATCH_SECONDS:
                    # The server has sent all changes, if any. Without a watch changes are missed,
                    # so the next one starts at once.
                    self._progressed()
                    self._on_restart("ended")
                    backoff = FIRST_BACKOFF_SECONDS
                    continue
                cause = "ended"
            except ApiError as error:
                if error.gone or error.status == 400:
                    # The resourceVersion is too old or invalid: a list returns a new one.
                    self._version = ""
                cause = "gone" if error.gone else str(error.status)
                wait = error.retry_after or 0.0
                backoff = max(backoff, min(wait, LONGEST_BACKOFF_SECONDS))
                refused = error.status == 403 and self._on_availability is not None
                if refused:
                    self._refuse()
                    backoff = min(backoff, REFUSED_RETRY_SECONDS)
                log = logger.info if error.gone or refused else logger.warning
                log("watch of %s: %s", self.path, error)
            except KubeError as error:
                cause = "connection"
                logger.warning("%s", error)
            except UNREADABLE as error:
                # A bookmark or an error was unreadable: a list returns a valid resourceVersion.
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

    def _refuse(self) -> None:
        """The API server does not let us read the collection."""
        now = self._clock()
        if self._refused_since is None:
            self._refused_since = now
        if self.available and not self._held and now - self._refused_since < FORGET_SECONDS:
            return
        # Before the objects are reported as deleted: they only are out of sight.
        self._set_available(False)
        self._version = ""
        self._unnotified.clear()
        for key in list(self._objects):
            self._put(key, None)
        self._listed.set()
        self.synced.set()

    def _set_available(self, available: bool) -> None:
        if self.available is available:
            return
        self.available = available
        if self._on_availability is not None:
            self._on_availability()

    async def _list(self) -> None:
        fresh: dict[tuple[str, str], T] = {}
        kept: set[tuple[str, str]] = set()
        params = {**self._params, "limit": str(PAGE_SIZE)}
        while True:
            answer = await self._client.get(self.path, params)
            try:
                page = msgspec.json.decode(answer, type=_List)
            except UNREADABLE as error:
                # An unreadable response comes from a proxy between us and the API server.
                raise KubeError(
                    f"list of {self.path}: the response is not a list: {error}"
                ) from error
            for raw in page.items or ():
                obj = self._decoded(raw)
                if obj is not None:
                    fresh[obj.metadata.namespace, obj.metadata.name] = self._deduplicated(obj)
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

    def _deduplicated(self, obj: T) -> T:
        """Return the cached object if it is equal: a new leader lists all objects again."""
        known = self._objects.get((obj.metadata.namespace, obj.metadata.name))
        return known if known is not None and _same(known, obj) else obj

    async def _watch(self, lifetime: tuple[int, int]) -> float:
        """Watch until the server ends the watch; return its duration in seconds."""
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
            # An object that cannot be decoded is deleted all the same.
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
                "%s: object %s cannot be decoded and is skipped: %s", self.path, _key_of(raw), error
            )
            return None

    def _put(self, key: tuple[str, str], new: T | None) -> None:
        if self._held:
            if new is not None:
                self._objects[key] = new
            else:
                self._objects.pop(key, None)
            return
        # This state is newer than the one not yet reported.
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
            # One failed callback must not stop the informer.
            metadata = (new or old).metadata  # type: ignore[union-attr]
            name = f"{metadata.namespace}/{metadata.name}"
            logger.exception("%s: the callback failed for a change of object %s", self.path, name)


def _same(one: Object, other: Object) -> bool:
    """Whether two objects have the same uid and resourceVersion."""
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
