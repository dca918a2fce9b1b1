"""Leader election by a Lease, as client-go does it.

Clocks of two machines are never compared. Another process's lease has expired when *we* have
observed it unchanged for its duration. Our own lease expires, for us, some seconds earlier: the
renew deadline counts from the moment before the renewal was sent, on a clock that includes the time
in which the machine is suspended.
"""

import asyncio
import datetime
import logging
import random
import re
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
RELEASE_SECONDS = 1.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LeaderElectionTimes:
    """How long a lease lasts, in seconds.

    Attributes:
        lease_duration: others wait this long after they have observed the last renewal.
        renew_deadline: the holder stops this long after it has sent the last renewal. The
            difference covers the latency of a request and clock skew.
        retry_period: the pause between two renewals, and between two attempts to acquire.
    """

    lease_duration: int = 15
    renew_deadline: int = 10
    retry_period: int = 2

    @classmethod
    def parse(cls, text: str) -> "LeaderElectionTimes":
        """Parse three whole numbers of seconds such as 15/10/2.

        Raises:
            ValueError: they are not, or are not each less than the one before.
        """
        if re.fullmatch("[0-9]{1,9}(/[0-9]{1,9}){2}", text):
            times = cls(*map(int, text.split("/")))
            if times.lease_duration > times.renew_deadline > times.retry_period > 0:
                return times
        raise ValueError(
            "use three whole numbers of seconds such as 15/10/2, the lease's duration, the renew "
            "deadline and the pause between tries, each less than the one before"
        )


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
    """Seconds since the machine booted, including the time in which it was suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class LeaderElector:
    """Acquires the lease, renews it, releases it.

    Args:
        client: a client for the lease alone, so that renewals do not wait for other requests.
        namespace: the namespace of the lease.
        name: the lease's name; replicas of one release have the same.
        identity: unique to this process.
        times: the durations of the lease.
        clock: see ``boot_clock``.
        wall: seconds since the epoch, for people who read the lease.
        not_ready_reason: returns why this process cannot lead now; empty if it can.

    Attributes:
        leading: set when the lease has been acquired.
    """

    def __init__(
        self,
        client: ApiClient,
        namespace: str,
        *,
        name: str,
        identity: str,
        times: LeaderElectionTimes,
        clock: Callable[[], float],
        wall: Callable[[], float],
        not_ready_reason: Callable[[], str] = lambda: "",
    ) -> None:
        self.leading = asyncio.Event()
        self._client = client
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._times = times
        self._clock = clock
        self._wall = wall
        self._not_ready_reason = not_ready_reason
        self._held_until = float("-inf")
        # The lease as observed last, and since when. Without a version it does not exist, though
        # its last holder may not have noticed yet.
        self._spec = _Spec()
        self._version = ""
        self._observed_at = clock()

    @property
    def is_leader(self) -> bool:
        """Whether this process holds the lease now, so that it may write."""
        return self._clock() < self._held_until

    def require_leadership(self) -> None:
        """Check the lease right before a write is sent.

        Raises:
            NotLeaderError: this process does not hold the lease.
        """
        if not self.is_leader:
            raise NotLeaderError("nothing is written: this process does not hold the lease")

    async def run(self) -> None:
        """Acquire the lease, and renew it.

        Raises:
            NotLeaderError: the lease was lost, or this process can no longer lead.
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
                if (
                    self._seconds_until_free() <= 0
                    and not self._not_ready_reason()
                    and await self._try_acquire_or_renew()
                ):
                    return
            except KubeError as error:
                logger.warning("lease: %s", error)
            await asyncio.sleep(self._times.retry_period * random.uniform(0.5, 1.0))  # noqa: S311

    async def _renew_until_lost(self) -> None:
        while self.is_leader:
            await asyncio.sleep(min(self._times.retry_period, self._held_until - self._clock()))
            if reason := self._not_ready_reason():
                raise NotLeaderError(f"the lease is released: {reason}")
            try:
                await self._renew()
            except (ApiError, UnknownOutcomeError) as error:
                logger.warning("lease: %s", error)
        raise NotLeaderError(f"the lease was not renewed for {self._times.renew_deadline} s")

    async def _renew(self) -> None:
        while self.is_leader and not await self._try_acquire_or_renew():
            # It was deleted, or written by another process, or by us without a response.
            await self._read()
            if self._spec.holderIdentity != self._identity:
                self._held_until = float("-inf")
                raise NotLeaderError(f"the lease was lost to {self._spec.holderIdentity!r}")

    async def release(self) -> None:
        """Release the lease, so that the next leader need not wait until it expires."""
        if not self.is_leader:
            return
        self._held_until = float("-inf")
        free = msgspec.structs.replace(
            self._spec, holderIdentity="", leaseDurationSeconds=1, renewTime=self._now()
        )
        try:
            async with asyncio.timeout(RELEASE_SECONDS):
                while self._spec.holderIdentity == self._identity and not await self._write(free):
                    await self._read()
        except (KubeError, TimeoutError) as error:
            logger.warning("lease: not released, the next leader waits until it expires: %r", error)

    # --- Observing -------------------------------------------------------------------------------

    def _seconds_until_free(self) -> float:
        """Seconds until the lease may be acquired."""
        if self._spec.holderIdentity in (None, "", self._identity):
            return 0.0
        lasts = self._spec.leaseDurationSeconds or self._times.lease_duration
        return self._observed_at + lasts - self._clock()

    def _observe(self, body: bytes | msgspec.Raw) -> None:
        lease = _decoded(body, _Lease)
        self._version = lease.metadata.resourceVersion
        if lease.spec != self._spec:
            self._spec, self._observed_at = lease.spec, self._clock()

    async def _read(self) -> None:
        try:
            self._observe(await self._client.get(self._path(self._name)))
        except ApiError as error:
            if not error.not_found:
                raise
            self._version = ""

    async def _watch_until_free(self) -> None:
        """Watch the lease until it may be acquired, or the watch ends."""
        if self._seconds_until_free() <= 0:
            return
        params = {"fieldSelector": f"metadata.name={self._name}", "resourceVersion": self._version}
        async with self._client.watch(self._path(), params) as lines:
            while (left := self._seconds_until_free()) > 0:
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

    # --- Writing ---------------------------------------------------------------------------------

    async def _try_acquire_or_renew(self) -> bool:
        """Acquire or renew the lease; return False if it is not as observed last."""
        sent = self._clock()
        held = await self._write(self._renewed_spec())
        if held:
            self._held_until = sent + self._times.renew_deadline
        return held

    def _renewed_spec(self) -> _Spec:
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
        timeout = self._times.renew_deadline / 2
        if self.is_leader:
            timeout = min(timeout, self._held_until - self._clock())
        try:
            async with asyncio.timeout(timeout):
                if self._version:
                    metadata = {"resourceVersion": self._version}
                    body = {"metadata": metadata, "spec": fields}
                    answer = await self._client.merge_patch(self._path(self._name), body)
                else:
                    answer = await self._client.create(self._path(), self._new(fields))
        except ApiError as error:
            if error.not_found or error.conflict or error.already_exists:
                return False
            raise
        except TimeoutError as error:
            raise UnknownOutcomeError("the write of the lease timed out") from error
        self._observe(answer)
        return True

    def _new(self, spec: dict[str, Any]) -> dict[str, Any]:
        return {
            "apiVersion": API_VERSION,
            "kind": "Lease",
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": spec,
        }

    def _now(self) -> str:
        now = datetime.datetime.fromtimestamp(self._wall(), datetime.UTC)
        return now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def _path(self, name: str | None = None) -> str:
        return resource_path(API_VERSION, "leases", self._namespace, name)


def _decoded(body: bytes | msgspec.Raw, type_: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=type_)
    except UNREADABLE as error:
        raise UnknownOutcomeError(f"the response is not a Lease: {error}") from error


async def _next(lines: AsyncIterator[bytes], seconds: float) -> bytes | None:
    """The next line; None if none comes in time, or the watch has ended."""
    try:
        async with asyncio.timeout(seconds):
            return await anext(lines, None)
    except TimeoutError:
        return None
