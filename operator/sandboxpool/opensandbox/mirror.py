"""Keeps OpenSandbox's Pool of each SandboxPool that is open to OpenSandbox.

OpenSandbox's server refuses a request for a pool that has no Pool. Ours has no template and no
capacity, so that OpenSandbox's own controller makes no pods of it.
"""

import logging
from collections.abc import Callable

import msgspec

from sandboxpool.api import names as own_names
from sandboxpool.api.opensandbox import LABEL_OPENSANDBOX, OptIn
from sandboxpool.kube.client import ApiClient, resource_path
from sandboxpool.kube.errors import ApiError
from sandboxpool.kube.events import EventRecorder
from sandboxpool.opensandbox import names
from sandboxpool.opensandbox.collection import Collection
from sandboxpool.opensandbox.decide import TIMER_SECONDS
from sandboxpool.opensandbox.kinds import Mirror, MirrorStatus, SandboxPool
from sandboxpool.opensandbox.reasons import BridgeReason
from sandboxpool.util.references import ObjectReference

logger = logging.getLogger(__name__)

# The status changes with each claim, and only people read it: a burst of claims costs one write in
# so many seconds.
STATUS_SECONDS = 5.0

Key = tuple[str, str]


def is_mirror_of(mirror: Mirror | None, pool: SandboxPool) -> bool:
    """Whether the Pool is ours, and of this SandboxPool."""
    owner = mirror.metadata.controller if mirror is not None else None
    return owner is not None and owner.uid == pool.metadata.uid


def _is_of_us(mirror: Mirror) -> bool:
    owner = mirror.metadata.controller
    return (
        owner is not None
        and owner.kind == own_names.POOL_KIND
        and mirror.metadata.labels.get(names.LABEL_MANAGED_BY) == names.MANAGED_BY
    )


def about(pool: SandboxPool) -> ObjectReference:
    """A reference to a pool, for events."""
    return ObjectReference(own_names.API_VERSION, own_names.POOL_KIND, *pool.key, pool.metadata.uid)


class MirrorReconciler:
    """Creates, updates and deletes the Pools.

    Args:
        client: the API client.
        pools: the SandboxPools.
        mirrors: OpenSandbox's Pools.
        events: records what an SRE has to know.
        clock: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        *,
        client: ApiClient,
        pools: Collection[SandboxPool],
        mirrors: Collection[Mirror],
        events: EventRecorder,
        clock: Callable[[], float],
    ) -> None:
        self._client = client
        self._pools = pools
        self._mirrors = mirrors
        self._events = events
        self._clock = clock
        self._status_written: dict[Key, float] = {}

    async def reconcile(self, key: Key) -> float | None:
        """Make the Pool of one SandboxPool what it must be."""
        pool, mirror = self._pools.get(*key), self._mirrors.get(*key)
        if pool is None or pool.mode is None:
            self._status_written.pop(key, None)
            if pool is not None and pool.opt_in and pool.metadata.deletionTimestamp is None:
                self._report_label(pool)
            if mirror is not None and _is_of_us(mirror):
                await self._delete(mirror)
            return None
        if mirror is None:
            await self._create(pool)
            return None
        if is_mirror_of(mirror, pool):
            return await self._update_status(pool, mirror)
        if _is_of_us(mirror):
            # Of a former SandboxPool of this name.
            await self._delete(mirror)
            return None
        self._events.warning(
            about(pool),
            BridgeReason.NAME_TAKEN,
            f"OpenSandbox cannot use this pool: a Pool ({names.GROUP}) named"
            f" {pool.metadata.name!r} exists that is not the operator's; delete or rename it",
        )
        return None

    def _report_label(self, pool: SandboxPool) -> None:
        self._events.warning(
            about(pool),
            BridgeReason.LABEL_INVALID,
            f"OpenSandbox cannot use this pool: the label {LABEL_OPENSANDBOX} has the value"
            f" {pool.opt_in!r}; use one of {', '.join(OptIn)}",
        )

    async def _create(self, pool: SandboxPool) -> None:
        namespace, name = pool.key
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.POOL_KIND,
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": {names.LABEL_MANAGED_BY: names.MANAGED_BY},
                "ownerReferences": [
                    {
                        "apiVersion": own_names.API_VERSION,
                        "kind": own_names.POOL_KIND,
                        "name": name,
                        "uid": pool.metadata.uid,
                        "controller": True,
                        "blockOwnerDeletion": False,
                    }
                ],
            },
            "spec": {"capacitySpec": {"bufferMin": 0, "bufferMax": 0, "poolMin": 0, "poolMax": 0}},
        }
        try:
            await self._client.create(_path(namespace), body)
        except ApiError as error:
            # The watch shows the one that exists.
            if not error.already_exists and not error.namespace_terminating:
                raise

    async def _delete(self, mirror: Mirror) -> None:
        namespace, name = mirror.metadata.namespace, mirror.metadata.name
        try:
            await self._client.delete(_path(namespace, name), uid=mirror.metadata.uid)
        except ApiError as error:
            if not error.not_found and not error.conflict:
                raise

    async def _update_status(self, pool: SandboxPool, mirror: Mirror) -> float | None:
        given = pool.status
        wanted = MirrorStatus(
            total=given.warm + given.starting + given.claimed,
            allocated=given.claimed,
            available=given.warm,
            revision=str(given.observedGeneration),
        )
        if wanted == mirror.status:
            return None
        wait = self._status_written.get(pool.key, float("-inf")) + STATUS_SECONDS - self._clock()
        if wait > TIMER_SECONDS:
            return wait
        self._status_written[pool.key] = self._clock()
        try:
            await self._client.replace_status(
                _path(*pool.key), mirror.metadata.uid, msgspec.to_builtins(wanted)
            )
        except ApiError as error:
            if not error.not_found:
                raise
        return None


def _path(namespace: str, name: str | None = None) -> str:
    return resource_path(names.API_VERSION, names.POOLS, namespace, name)
