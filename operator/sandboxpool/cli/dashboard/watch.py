"""Keeps the objects of a cluster in memory by list and watch, and says how current they are."""

import asyncio
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from sandboxpool.api import names
from sandboxpool.cli import times
from sandboxpool.cli.cluster import (
    CLAIMS,
    CLASSES,
    DEPLOYMENTS,
    LEASES,
    NODES,
    POOLS,
    RUNTIMES,
    Object,
    Resource,
)
from sandboxpool.cli.dashboard.pruned import prune
from sandboxpool.cli.releases import lease_name
from sandboxpool.client.api import Api
from sandboxpool.client.errors import AccessDenied, ApiError, SandboxPoolError
from sandboxpool.client.requests import Request

WATCHED = (POOLS, RUNTIMES, CLAIMS, NODES, CLASSES)
# Whether the operator runs. A Lease changes every few seconds, so these are read now and then.
POLLED = (DEPLOYMENTS, LEASES)
# What is beyond it is counted and not shown.
MAX_OBJECTS = 50_000
_PAGE = 500
# The API server ends a watch itself within that many seconds; apart, so that not all end at once.
_WATCH_SECONDS = (240, 300)
# So much longer the client waits for an end that does not come.
_GRACE_SECONDS = 30.0
_FIRST_RETRY_SECONDS = 1.0
_LONGEST_RETRY_SECONDS = 20.0
# Somebody may grant the right, or install the CRDs, while the page is open.
_DENIED_SECONDS = 15.0
_POLL_SECONDS = 15.0
_NOT_FOUND, _GONE = 404, 410


class Currency(StrEnum):
    """How current what is known of a kind is."""

    STARTING = "Starting"
    LIVE = "Live"
    STALE = "Stale"
    DENIED = "Denied"
    MISSING = "Missing"


@dataclass
class Feed:
    """What is known of one kind.

    Attributes:
        resource: The kind.
        currency: How current it is.
        since: When it became so.
        message: Why it is not live, and what to do.
        scope: The namespace it is read in; None for all.
        objects: The objects by namespace and name.
        omitted: How many there are beyond the limit; a lower bound.
    """

    resource: Resource
    since: datetime
    currency: Currency = Currency.STARTING
    message: str = ""
    scope: str | None = None
    objects: dict[tuple[str, str], Object] = field(default_factory=dict)
    omitted: int = 0


class _Expired(Exception):
    """The resourceVersion is too old: what there is has to be listed again."""


class Watcher:
    """The objects of a cluster, kept up to date while `run` runs.

    Args:
        api: The API server; its input and output are asyncio's.
        namespace: Where to look if the rights do not suffice for all namespaces.
    """

    def __init__(self, api: Api, namespace: str) -> None:
        self._api = api
        self._namespace = namespace
        self._changed = asyncio.Event()
        self.version = 0
        self.feeds: Mapping[Resource, Feed] = {
            resource: Feed(resource, times.now()) for resource in (*WATCHED, *POLLED)
        }

    async def run(self) -> None:
        """List and watch until cancelled; then close the connections."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for feed in self.feeds.values():
                    tasks.create_task(self._keep(feed))
        finally:
            self._api.close()
            # A connection that is aborted is closed by the loop's next round.
            await asyncio.sleep(0)

    async def wait_newer(self, version: int, within: float) -> None:
        """Return when something differs from a version, or after so many seconds."""
        try:
            async with asyncio.timeout(within):
                while self.version == version:
                    await self._changed.wait()
        except TimeoutError:
            return

    def _bump(self) -> None:
        self.version += 1
        self._changed.set()
        self._changed = asyncio.Event()

    def _become(self, feed: Feed, currency: Currency, message: str = "") -> None:
        if (feed.currency, feed.message) == (currency, message):
            return
        if feed.currency is not currency:
            feed.since = times.now()
        feed.currency, feed.message = currency, message
        self._bump()

    async def _keep(self, feed: Feed) -> None:
        failures = 0
        while True:
            try:
                version = await self._list(feed)
                self._become(feed, Currency.LIVE)
                failures = 0
                if feed.resource in POLLED:
                    await asyncio.sleep(_POLL_SECONDS)
                    continue
                while True:
                    begun = times.now()
                    version = await self._watch(feed, version)
                    if (times.now() - begun).total_seconds() < _FIRST_RETRY_SECONDS:
                        # Something on the way ends watches at once.
                        await asyncio.sleep(_FIRST_RETRY_SECONDS)
            except _Expired:
                # Listed again, but not in a tight loop.
                pause = _FIRST_RETRY_SECONDS
            except AccessDenied as error:
                polled = feed.resource in POLLED
                if feed.resource.namespaced and feed.scope is None and not polled:
                    feed.scope = self._namespace
                    continue
                # What was seen may have been seen with rights that are gone.
                feed.objects.clear()
                self._become(feed, Currency.DENIED, error.message)
                pause = _DENIED_SECONDS
                feed.scope = None
            except ApiError as error:
                missing = error.status == _NOT_FOUND
                if missing:
                    feed.objects.clear()
                self._become(feed, Currency.MISSING if missing else Currency.STALE, error.message)
                pause = _DENIED_SECONDS if missing else _backoff(failures)
            except SandboxPoolError as error:
                # A connection that ends says little; one that cannot be made again says more.
                if failures or feed.currency is not Currency.LIVE:
                    self._become(feed, Currency.STALE, error.message)
                pause = _backoff(failures)
            failures += 1
            await asyncio.sleep(pause)

    async def _list(self, feed: Feed) -> str:
        """Replace what is known by what there is; return its resourceVersion."""
        found: dict[tuple[str, str], Object] = {}
        omitted, version = 0, ""
        while feed.resource is LEASES and self.feeds[DEPLOYMENTS].currency is Currency.STARTING:
            # They name the Leases.
            await self.wait_newer(self.version, _POLL_SECONDS)
        for selector in self._selectors(feed.resource):
            following = ""
            while True:
                query = [("limit", str(_PAGE)), *selector]
                query += [("continue", following)] if following else []
                answer = await self._call("list", feed, query)
                for item in answer.get("items") or ():
                    if len(found) < MAX_OBJECTS:
                        found[_key(item)] = prune(feed.resource, item)
                    else:
                        omitted += 1
                metadata = answer.get("metadata") or {}
                following = metadata.get("continue") or ""
                version = str(metadata.get("resourceVersion") or "")
                if not following or omitted:
                    break
            omitted += int(metadata.get("remainingItemCount") or 0) if omitted else 0
        if (found, omitted) != (feed.objects, feed.omitted):
            feed.objects, feed.omitted = found, omitted
            self._bump()
        return version

    def _selectors(self, resource: Resource) -> Iterator[Sequence[tuple[str, str]]]:
        """What a list asks for: one list for each, and their objects together."""
        if resource is DEPLOYMENTS:
            yield [("labelSelector", "app.kubernetes.io/name=sandboxpool")]
        elif resource is LEASES:
            # A release that is limited to namespaces has a Lease of its own name.
            deployments = self.feeds[DEPLOYMENTS].objects.values()
            for name in sorted({names.DEFAULT_RELEASE, *map(lease_name, deployments)}):
                yield [("fieldSelector", f"metadata.name={name}")]
        else:
            yield []

    async def _watch(self, feed: Feed, version: str) -> str:
        """Follow the changes until the watch ends; return the version to go on from."""
        seconds = random.randint(*_WATCH_SECONDS)  # noqa: S311 - no secret
        query = [
            ("watch", "true"),
            ("resourceVersion", version),
            ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", str(seconds)),
        ]
        try:
            watch = await self._api.watch(self._request("watch", feed, query))
        except ApiError as error:
            if error.status == _GONE:
                raise _Expired from error
            raise
        # A watch that begins again goes on from where the last has ended: nothing is missed.
        self._become(feed, Currency.LIVE)
        try:
            while (event := await watch.next_event(seconds + _GRACE_SECONDS)) is not None:
                type_, obj = event
                if type_ == "ERROR":
                    if obj.get("code") == _GONE:
                        raise _Expired
                    raise ApiError(f"watch {feed.resource.qualified}: {obj.get('message')}")
                version = str((obj.get("metadata") or {}).get("resourceVersion") or version)
                self._apply(feed, type_, obj)
        finally:
            watch.close()
        return version

    def _apply(self, feed: Feed, type_: str, obj: Object) -> None:
        if type_ == "BOOKMARK":
            return
        key = _key(obj)
        before = feed.objects.get(key)
        if type_ == "DELETED":
            if before is None:
                return
            del feed.objects[key]
        else:
            after = prune(feed.resource, obj)
            if before is None and len(feed.objects) >= MAX_OBJECTS:
                feed.omitted += type_ == "ADDED"
            elif before == after:
                return
            else:
                feed.objects[key] = after
        self._bump()

    async def _call(self, verb: str, feed: Feed, query: list[tuple[str, str]]) -> Object:
        try:
            return await self._api.call(self._request(verb, feed, query))
        except ApiError as error:
            if error.status == _GONE:
                raise _Expired from error
            raise

    @staticmethod
    def _request(verb: str, feed: Feed, query: list[tuple[str, str]]) -> Request:
        resource = feed.resource
        return Request(
            "GET",
            resource.path(feed.scope),
            verb,
            resource.qualified,
            (feed.scope or "") if resource.namespaced else "",
            tuple(query),
        )


def _backoff(failures: int) -> float:
    longest = min(_LONGEST_RETRY_SECONDS, _FIRST_RETRY_SECONDS * 2.0 ** min(failures, 10))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


def _key(obj: Object) -> tuple[str, str]:
    metadata = obj.get("metadata") or {}
    return str(metadata.get("namespace") or ""), str(metadata.get("name") or "")
