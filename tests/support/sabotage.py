"""The operator with changes to its code: guards taken out, or long times made short.

    python -m support.sabotage NAME...

A test of a guard is worth what it finds when the guard is missing. Each change here is one
function that replaces one part of the operator before it starts; the operator itself knows
nothing of them.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import secrets
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from sandboxpool import __main__ as main_module
from sandboxpool.allocation import candidate_tracker
from sandboxpool.allocation.allocator import Allocator, Candidate
from sandboxpool.api.core import Pod
from sandboxpool.api.reasons import Reason
from sandboxpool.app import build
from sandboxpool.app import operator as app
from sandboxpool.claims.attempt import Attempt
from sandboxpool.claims.pending import PendingReconciler
from sandboxpool.claims.requests import ClaimRequests
from sandboxpool.cluster.sandbox_state import SandboxState
from sandboxpool.kube import client
from sandboxpool.kube.errors import KubeError, NotLeaderError
from sandboxpool.kube.informer import Informer
from sandboxpool.kube.lease import LeaderElector
from sandboxpool.kube.watches import Watches
from sandboxpool.pools import cold_starter
from sandboxpool.pools import decide as decisions
from sandboxpool.pools import reconcile as pools
from sandboxpool.pools.expectations import Expectations
from sandboxpool.pools.plan import PoolInput, PoolPlan
from sandboxpool.pools.state import PoolState
from sandboxpool.runtimes.host_state import HostState
from sandboxpool.sandboxes import template
from sandboxpool.sandboxes.members import Members

# Where the wall clock's shift is found: a file with one little-endian double, in seconds.
CLOCK_FILE = "CHAOS_CLOCK_FILE"

CHANGES: dict[str, Callable[[], None]] = {}


def _change(function: Callable[[], None]) -> Callable[[], None]:
    CHANGES[function.__name__] = function
    return function


# --- Times ---------------------------------------------------------------------------------------


@_change
def impatient_watches() -> None:
    """A watch that says nothing for two seconds is given up, instead of 90."""
    client.WATCH_SILENCE_SECONDS = 2.0  # type: ignore[misc]


@_change
def frequent_sweeps() -> None:
    """Sweeps and lists come each second, instead of each minute."""
    app.SWEEP_SECONDS = app.LIST_SECONDS = 1.0


@_change
def shifted_clock() -> None:
    """The wall clock is off by what stands in a file; the monotonic one goes on."""
    with Path(os.environ[CLOCK_FILE]).open("rb") as file:
        shift = mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ)

    def wall() -> float:
        return time.time() + float(struct.unpack("<d", shift[:8])[0])

    _given(app.Operator.__init__, wall=wall)


# --- Writes --------------------------------------------------------------------------------------


@_change
def binding_ignores_versions() -> None:
    """Write 1 takes a pod whatever has become of it."""
    original = client.ApiClient.merge_patch

    async def merge_patch(self: client.ApiClient, path: str, body: Mapping[str, Any]) -> bytes:
        metadata = {k: v for k, v in body["metadata"].items() if k != "resourceVersion"}
        return await original(self, path, {**body, "metadata": metadata})

    _set(client.ApiClient, merge_patch)


@_change
def unknown_outcomes_are_failures() -> None:
    """After a lost answer to write 1 the next pod is taken."""

    async def read_back(*_: object) -> None:
        return None

    _set(ClaimRequests, read_back)


@_change
def lost_bindings_go_elsewhere() -> None:
    """After a lost write 1, which the pod does not carry, the next pod is taken."""
    original = ClaimRequests.read_back

    async def read_back(
        self: ClaimRequests, claim: Any, path: str, candidate: Candidate, failure: KubeError
    ) -> Pod | None:
        with suppress(KubeError):
            return await original(self, claim, path, candidate, failure)
        return None

    _set(ClaimRequests, read_back)


@_change
def status_ignores_uids() -> None:
    """Write 2 goes to whoever has the claim's name."""

    async def replace_status(
        self: client.ApiClient,
        path: str,
        uid: str,
        status: Mapping[str, Any],
        *,
        version: str | None = None,
    ) -> bytes:
        return await self.json_patch(
            path + "/status", [{"op": "add", "path": "/status", "value": status}]
        )

    _set(client.ApiClient, replace_status)


@_change
def status_ignores_versions() -> None:
    """A claim's status is written whatever has become of the claim since it was looked at."""
    original = client.ApiClient.replace_status

    async def replace_status(
        self: client.ApiClient,
        path: str,
        uid: str,
        status: Mapping[str, Any],
        *,
        version: str | None = None,
    ) -> bytes:
        return await original(self, path, uid, status)

    _set(client.ApiClient, replace_status)


@_change
def deletes_without_conditions() -> None:
    """A DELETE takes whoever has the name, whatever has become of it."""

    async def delete(
        self: client.ApiClient,
        path: str,
        *,
        uid: str,
        resource_version: str | None = None,
        grace: int | None = None,
    ) -> bytes:
        return await self._request("DELETE", path, body={})

    _set(client.ApiClient, delete)


@_change
def retries_take_new_names() -> None:
    """A create that is repeated asks for another pod."""
    original, asked = client.ApiClient.create, set[str]()

    async def create(
        self: client.ApiClient,
        path: str,
        body: Mapping[str, Any],
        params: Mapping[str, str] | None = None,
    ) -> bytes:
        name = body["metadata"].get("name", "")
        if name in asked and params is None:
            metadata = {**body["metadata"], "name": name[:-4] + secrets.token_hex(2)}
            body = {**body, "metadata": metadata}
        asked.add(name)
        return await original(self, path, body, params)

    _set(client.ApiClient, create)


@_change
def cold_names_are_random() -> None:
    """A pod that is made for a claim has a name that nobody can know."""
    _set(cold_starter, pod_name=lambda pool, seed: template.pod_name(pool, secrets.token_hex(16)))


# --- Leadership ----------------------------------------------------------------------------------


@_change
def writes_need_no_lease() -> None:
    """Whether the lease is ours is asked before no write."""
    _set(LeaderElector, require_leadership=lambda _: None)


@_change
def lost_leases_are_ignored() -> None:
    """Who has lost the lease goes on."""

    async def _elect(self: app.Operator) -> None:
        with suppress(NotLeaderError):
            await self._elector.run()

    _set(app.Operator, _elect)


# --- Memory --------------------------------------------------------------------------------------


@_change
def taken_pods_are_forgotten() -> None:
    """Between the two writes only the cache knows whose the pod is."""

    def __setattr__(self: Attempt, name: str, value: Any) -> None:
        object.__setattr__(self, name, None if name == "bound_pod" else value)

    _set(Attempt, __setattr__)


@_change
def bindings_are_forgotten() -> None:
    """A claim that was told of its pod counts as waiting until the cache shows it."""
    _set(Attempt, record_written_version=lambda *_: None)


@_change
def expectations_are_forgotten() -> None:
    """What was asked for and is not seen was not asked for."""
    _set(Expectations, count_creating=lambda _: (0, 0), is_creating=lambda *_: False)


@_change
def leaving_pods_are_offered() -> None:
    """A pod that is being deleted stays on the shelf."""
    _set(Allocator, remove_candidate=lambda self, pod: pod not in self._allocated)
    _set(Expectations, is_deleting=lambda *_: False)


@_change
def lists_only_add() -> None:
    """What a list lacks stays in the cache."""
    original = Informer._list

    async def _list(self: Informer[Any]) -> None:
        put = self._put
        self._put = lambda key, new: put(key, new) if new is not None else None  # type: ignore[method-assign]
        try:
            await original(self)
        finally:
            del self._put

    _set(Informer, _list)


@_change
def everybody_leads() -> None:
    """The lease is nobody's business."""

    async def _acquire(_: LeaderElector) -> None:
        return

    async def _renew_until_lost(_: LeaderElector) -> None:
        await asyncio.Event().wait()

    _set(LeaderElector, _acquire, _renew_until_lost, is_leader=property(lambda _: True))


@_change
def silence_is_patience() -> None:
    """A watch that says nothing is waited for, however long."""
    client.WATCH_SILENCE_SECONDS = 86400.0  # type: ignore[misc]


@_change
def set_back_clocks_are_trusted() -> None:
    """A pool waits until the wall clock says so, whatever has happened to that."""
    _set(PoolState, refresh_backoff=lambda *_: None)


@_change
def half_a_view_is_enough() -> None:
    """Decisions are made before the caches are complete."""

    async def wait_for_sync(_: Watches) -> None:
        return

    async def _take_over(self: app.Operator) -> None:
        for _, informer in self._watches:
            await informer.release_notifications()
        await self._listed.wait()

    _set(Watches, wait_for_sync)
    _set(app.Operator, _take_over)


# --- Decisions -----------------------------------------------------------------------------------


@_change
def leaving_pods_make_room() -> None:
    """Terminating pods do not count against maxSandboxes."""

    def decide(given: PoolInput) -> PoolPlan:
        here = Members(m for m in given.members if m.state is not SandboxState.STOPPING)
        return decisions.decide(replace(given, members=here))

    _set(pools, decide)


@_change
def unseen_pods_are_lost() -> None:
    """A pod that the watch no longer shows is not asked for."""

    async def find_pod(*_: object) -> None:
        return None

    _set(ClaimRequests, find_pod)


@_change
def second_pods_are_kept() -> None:
    """A claim keeps whatever carries its uid."""
    original = ClaimRequests.delete_pod

    async def delete_pod(self: ClaimRequests, pod: Any, why: str) -> None:
        if why != "its claim has another pod":
            await original(self, pod, why)

    _set(ClaimRequests, delete_pod)


@_change
def orphans_are_guessed() -> None:
    """A pod whose claim is not in the cache is deleted without asking."""

    async def read(*_: object) -> None:
        return None

    _set(ClaimRequests, read)


@_change
def nodes_do_not_matter() -> None:
    """A pod is handed out wherever it stands."""

    def is_ready_on_host(pod: Pod, host_state: HostState) -> bool:
        return pod.ready and pod.metadata.deletionTimestamp is None

    _set(candidate_tracker, is_ready_on_host)


@_change
def last_come_is_first_served() -> None:
    """The newest claim gets the next pod."""
    original = Allocator.add_candidate

    def add_candidate(self: Allocator, pool: str, candidate: Candidate) -> str | None:
        waiting = self._pool_state(pool).waiting
        if waiting:
            waiting.move_to_end(next(reversed(waiting)), last=False)
        return original(self, pool, candidate)

    _set(Allocator, add_candidate)


@_change
def one_claim_at_a_time_and_in_line() -> None:
    """A claim that finds no pod is waited for before the next one of any pool is looked at."""
    turn = asyncio.Lock()

    async def _none_warm(
        self: PendingReconciler, claim: Any, attempt: Any, pool: Any, left: float
    ) -> float | None:
        async with turn:
            while (  # noqa: ASYNC110
                pod := self._allocator.allocate(pool.uid, claim.uid)
            ) is None:
                await asyncio.sleep(0.01)
        await self._binder.bind(claim, attempt, pool, pod)
        return None

    _set(PendingReconciler, _none_warm)
    _set(build, _lane_of=lambda *_: None)


@_change
def waiting_is_reported() -> None:
    """A claim that waits says so, each time it is looked at."""
    original, looks = PendingReconciler._none_warm, deque(range(1_000_000))

    async def _none_warm(self: PendingReconciler, claim: Any, *rest: Any) -> float | None:
        await self._status_writer.set_pending(
            claim, Reason.NO_WARM_SANDBOX, f"look {looks.popleft()}"
        )
        return await original(self, claim, *rest)

    _set(PendingReconciler, _none_warm)


def _given(function: Callable[..., Any], **values: Any) -> None:
    """Changes what a function takes for arguments that nobody gives."""
    defaults = function.__kwdefaults__ or {}
    for name, value in values.items():
        if name not in defaults:
            raise AttributeError(f"{function.__qualname__} has no default for {name}")
        defaults[name] = value


def _set(owner: type | ModuleType, *functions: Callable[..., Any], **named: Any) -> None:
    for name, function in {**{f.__name__: f for f in functions}, **named}.items():
        if not hasattr(owner, name):
            raise AttributeError(f"{owner.__name__} has no {name} to be changed")
        setattr(owner, name, function)


if __name__ == "__main__":
    for change in sys.argv[1:]:
        CHANGES[change]()
    sys.exit(main_module.main())
