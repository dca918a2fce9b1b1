"""Leader election by a Lease: of several processes the one that holds it acts, the others wait.

Times of two machines are never compared. Somebody else's lease has run out when *we* have seen it
unchanged for as long as it says. Our own has run out, for us, some seconds before that: they are
counted from the moment before the renewing write was sent, on a clock that goes on while the
machine sleeps.
"""

import asyncio
import datetime
import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from sandboxpool.kube.client import ApiClient, error_of, resource_path
from sandboxpool.kube.errors import (
    UNREADABLE,
    ApiError,
    KubeError,
    NotLeaderError,
    UnknownOutcomeError,
)

logger = logging.getLogger(__name__)

API_VERSION = "coordination.k8s.io/v1"
NAME = "sandboxpool"
RELEASE_SECONDS = 1.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LeaderElectionTimes:
    """How long a lease lasts, in seconds.

    Attributes:
        duration: others wait so long after they have seen the last renewal.
        deadline: the holder stops so long after it has sent the last renewal; the difference is
            what a request may be under way, and what two clocks may differ in pace.
        retry: pause between two renewals, and between two tries.
    """

    lease_duration: int = 15
    renew_deadline: int = 10
    retry_period: int = 2


class _Spec(msgspec.Struct, frozen=True):
    holderIdentity: str | None = None
    leaseDurationSeconds: int | None = None
    acquireTime: str | None = None
    renewTime: str | None = None
    leaseTransitions: int | None = None


class _Meta(msgspec.Struct):
    resourceVersion: str


class _Lease(msgspec.Struct):
    metadata: _Meta
    spec: _Spec = _Spec()


class _WatchEvent(msgspec.Struct):
    type: str
    object: msgspec.Raw


def boot_clock() -> float:
    """Seconds since the machine was started, those included in which it slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class LeaderElector:
    """Takes the lease, keeps it, gives it back.

    Args:
        client: speaks to the API server for this alone, so that renewals never wait for others.
        namespace: the operator's own.
        identity: names this process, and never any other.
        times: how long a lease lasts.
        clock: see ``boot_clock``.
        wall: seconds since the epoch, for people who read the lease.
        unfit: why this process cannot lead at this moment; empty if it can.

    Attributes:
        leading: set when the lease has become ours.
    """

    def __init__(
        self,
        client: ApiClient,
        namespace: str,
        *,
        identity: str,
        times: LeaderElectionTimes,
        clock: Callable[[], float],
        wall: Callable[[], float],
        not_ready_reason: Callable[[], str] = lambda: "",
    ) -> None:
        self.leading = asyncio.Event()
        self._client = client
        self._namespace = namespace
        self._identity = identity
        self._times = times
        self._clock = clock
        self._wall = wall
        self._unfit = not_ready_reason
        self._until = float("-inf")
        # The lease as we saw it last, and since when. Without a version it does not exist, and
        # whoever was seen to hold it may not know that yet.
        self._spec = _Spec()
        self._version = ""
        self._since = clock()

    @property
    def is_leader(self) -> bool:
        """Whether we hold the lease at this moment, so that we may write."""
        return self._clock() < self._until

    def require_leadership(self) -> None:
        """To be called right before a write is sent.

        Raises:
            NotLeaderError: we do not hold the lease.
        """
        if not self.is_leader:
            raise NotLeaderError("nothing is written without the lease")

    async def run(self) -> None:
        """Wait for the lease, and keep it.

        Raises:
            NotLeaderError: we had it and have lost it, or can lead no longer.
        """
        await self._acquire()
        logger.info("%s leads", self._identity)
        self.leading.set()
        await self._renew_until_lost()

    async def _acquire(self) -> None:
        while True:
            try:
                await self._read()
                await self._watch_until_free()
                if self._left() <= 0 and not self._unfit() and await self._try_acquire_or_renew():
                    return
            except KubeError as error:
                logger.warning("lease: %s", error)
            await asyncio.sleep(self._times.retry_period * random.uniform(0.5, 1.0))  # noqa: S311

    async def _renew_until_lost(self) -> None:
        while self.is_leader:
            await asyncio.sleep(min(self._times.retry_period, self._until - self._clock()))
            if why := self._unfit():
                raise NotLeaderError(f"the lease is given up: {why}")
            try:
                await self._renew()
            except (ApiError, UnknownOutcomeError) as error:
                logger.warning("lease: %s", error)
        raise NotLeaderError(f"the lease was not renewed for {self._times.renew_deadline} s")

    async def _renew(self) -> None:
        while self.is_leader and not await self._try_acquire_or_renew():
            # Deleted, or written by somebody else; or by us, and we never heard of it.
            await self._read()
            if self._spec.holderIdentity != self._identity:
                self._until = float("-inf")
                raise NotLeaderError(f"the lease was lost to {self._spec.holderIdentity!r}")

    async def release(self) -> None:
        """Give the lease back, so that the next need not wait for its end."""
        if not self.is_leader:
            return
        self._until = float("-inf")
        free = msgspec.structs.replace(
            self._spec, holderIdentity="", leaseDurationSeconds=1, renewTime=self._now()
        )
        try:
            async with asyncio.timeout(RELEASE_SECONDS):
                while self._spec.holderIdentity == self._identity and not await self._write(free):
                    await self._read()
        except (KubeError, TimeoutError) as error:
            logger.warning("lease: not given back: %r", error)

    # --- What we see -----------------------------------------------------------------------------

    def _left(self) -> float:
        """Seconds until the lease may be taken."""
        if self._spec.holderIdentity in (None, "", self._identity):
            return 0.0
        lasts = self._spec.leaseDurationSeconds or self._times.lease_duration
        return self._since + lasts - self._clock()

    def _observe(self, body: bytes | msgspec.Raw) -> None:
        lease = _decoded(body, _Lease)
        self._version = lease.metadata.resourceVersion
        if lease.spec != self._spec:
            self._spec, self._since = lease.spec, self._clock()

    async def _read(self) -> None:
        try:
            self._observe(await self._client.get(self._path(NAME)))
        except ApiError as error:
            if not error.not_found:
                raise
            self._version = ""

    async def _watch_until_free(self) -> None:
        """Follow the lease until it may be taken, or the watch ends."""
        if self._left() <= 0:
            return
        params = {"fieldSelector": f"metadata.name={NAME}", "resourceVersion": self._version}
        async with self._client.watch(self._path(), params) as lines:
            while (left := self._left()) > 0:
                line = await _next(lines, left)
                if line is None:
                    return
                event = _decoded(line, _WatchEvent)
                if event.type == "ERROR":
                    raise error_of(0, bytes(event.object))
                if event.type == "DELETED":
                    self._version = ""
                else:
                    self._observe(event.object)

    # --- What we write ---------------------------------------------------------------------------

    async def _try_acquire_or_renew(self) -> bool:
        """Take or renew the lease; return False if it is not as we saw it last."""
        sent = self._clock()
        held = await self._write(self._ours())
        if held:
            self._until = sent + self._times.renew_deadline
        return held

    def _ours(self) -> _Spec:
        now, before = self._now(), self._spec
        if before.holderIdentity == self._identity:
            return msgspec.structs.replace(before, renewTime=now)
        former = before.leaseTransitions
        return _Spec(
            holderIdentity=self._identity,
            leaseDurationSeconds=self._times.lease_duration,
            acquireTime=now,
            renewTime=now,
            leaseTransitions=former + 1 if former is not None else 0,
        )

    async def _write(self, spec: _Spec) -> bool:
        fields = msgspec.to_builtins(spec)
        patience = self._times.renew_deadline / 2
        if self.is_leader:
            patience = min(patience, self._until - self._clock())
        try:
            async with asyncio.timeout(patience):
                if self._version:
                    metadata = {"resourceVersion": self._version}
                    body = {"metadata": metadata, "spec": fields}
                    answer = await self._client.merge_patch(self._path(NAME), body)
                else:
                    answer = await self._client.create(self._path(), _new(self._namespace, fields))
        except ApiError as error:
            if error.not_found or error.conflict or error.already_exists:
                return False
            raise
        except TimeoutError as error:
            raise UnknownOutcomeError("no answer to the write of the lease") from error
        self._observe(answer)
        return True

    def _now(self) -> str:
        now = datetime.datetime.fromtimestamp(self._wall(), datetime.UTC)
        return now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def _path(self, name: str | None = None) -> str:
        return resource_path(API_VERSION, "leases", self._namespace, name)


def _new(namespace: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": "Lease",
        "metadata": {"name": NAME, "namespace": namespace},
        "spec": spec,
    }


def _decoded(body: bytes | msgspec.Raw, type_: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=type_)
    except UNREADABLE as error:
        raise UnknownOutcomeError(f"what should be a lease is none: {error}") from error


async def _next(lines: AsyncIterator[bytes], seconds: float) -> bytes | None:
    """The next line; None if there is none in time, or none any more."""
    try:
        async with asyncio.timeout(seconds):
            return await anext(lines, None)
    except TimeoutError:
        return None
