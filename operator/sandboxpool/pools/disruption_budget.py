"""Reconciles the PodDisruptionBudget over the claimed sandboxes of a pool that protects them.

Each pool has one budget, and its spec is constant: the budget selects the pool's claimed pods by
their labels and requires more healthy pods than there can be, so no eviction is granted. The
budget has to be a number: for a percentage, and for maxUnavailable, the disruption controller looks
up the scale subresource of the pods' owner, and a SandboxClaim has none.

The pool's status announces the budget before the budget is created, so the next leader knows that
there may be one to delete.
"""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from sandboxpool.api import names
from sandboxpool.api.conditions import ConditionResult
from sandboxpool.api.reasons import Reason
from sandboxpool.api.v1alpha1 import Disruption
from sandboxpool.cluster.pool import Pool
from sandboxpool.kube.client import ApiClient, resource_path
from sandboxpool.kube.errors import UNREADABLE, ApiError, KubeError
from sandboxpool.sandboxes.template import controller_reference

CONDITION = "ClaimsProtected"
# A budget that somebody has deleted or changed is repaired within this time.
BUDGET_RESYNC_SECONDS = 60.0
# The retry interval after an error, and while the pool's status does not announce the budget yet.
RETRY_SECONDS = 5.0
ANNOUNCED_SECONDS = 1.0
MAX_INT32 = 2**31 - 1


def budget_name(pool_name: str) -> str:
    """Name of a pool's budget."""
    return f"{pool_name}-claims"


def budget_spec(pool_uid: str) -> dict[str, Any]:
    """The budget's spec, constant for the lifetime of the pool."""
    return {
        "minAvailable": MAX_INT32,
        "selector": {
            "matchLabels": {names.LABEL_POOL_UID: pool_uid},
            "matchExpressions": [{"key": names.LABEL_CLAIM_UID, "operator": "Exists"}],
        },
        # A running pod whose readiness probe fails is protected too. No budget protects pods that
        # do not run yet or have ended.
        "unhealthyPodEvictionPolicy": "IfHealthyBudget",
    }


def budget_of(pool: Pool) -> dict[str, Any]:
    """The budget as it is created."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {
            "name": budget_name(pool.name),
            "namespace": pool.namespace,
            "labels": {names.LABEL_POOL: pool.name, names.LABEL_POOL_UID: pool.uid},
            "ownerReferences": [controller_reference(names.POOL_KIND, pool.name, pool.uid)],
        },
        "spec": budget_spec(pool.uid),
    }


class DisruptionBudgets:
    """Creates, repairs and deletes the pools' budgets.

    Args:
        client: the API client.
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, client: ApiClient, clock: Callable[[], float]) -> None:
        self._client = client
        self._clock = clock
        # By the pool's uid: the setting, the condition of the last reconcile, and the next resync.
        self._found: dict[str, tuple[Disruption, ConditionResult, float]] = {}

    def forget(self, pool_uid: str) -> None:
        """Forget a deleted pool; the garbage collector deletes its budget."""
        self._found.pop(pool_uid, None)

    def due(self, pool_uid: str) -> float | None:
        """Seconds until a pool's budget is reconciled again; None if it has no budget."""
        found = self._found.get(pool_uid)
        return None if found is None else max(0.0, found[2] - self._clock())

    async def reconcile(self, pool: Pool) -> ConditionResult | None:
        """Reconcile a pool's budget; return its condition, None without a budget."""
        assert pool.spec is not None, "checked by the caller"
        wanted = pool.spec.claims.disruption
        announced = any(condition.type == CONDITION for condition in pool.conditions)
        if wanted is Disruption.ALLOW and not announced and pool.uid not in self._found:
            return None
        former = self._found.get(pool.uid)
        if former is not None and former[0] is wanted and self._clock() < former[2]:
            return former[1]
        finding, pause = await self._reconcile(pool, wanted, announced=announced)
        if finding is None:
            self.forget(pool.uid)
        else:
            self._found[pool.uid] = wanted, finding, self._clock() + pause
        return finding

    async def _reconcile(
        self, pool: Pool, wanted: Disruption, *, announced: bool
    ) -> tuple[ConditionResult | None, float]:
        """Return the condition, and the seconds until the next resync."""
        name = budget_name(pool.name)
        try:
            if wanted is Disruption.ALLOW:
                await self._remove(pool)
                return None, 0.0
            if not announced:
                text = f"PodDisruptionBudget {name} is about to be created"
                return ConditionResult(
                    CONDITION, None, Reason.BUDGET_PENDING, text
                ), ANNOUNCED_SECONDS
            return await self._ensure(pool)
        except (KubeError, *UNREADABLE) as error:
            return _failed(name, wanted, error)

    async def _find(self, pool: Pool) -> Mapping[str, Any] | None:
        found = await self._client.find(_path(pool))
        return None if found is None else msgspec.json.decode(found, type=dict[str, Any])

    async def _ensure(self, pool: Pool) -> tuple[ConditionResult, float]:
        name = budget_name(pool.name)
        found = await self._find(pool)
        if found is None:
            await self._client.create(
                resource_path("policy/v1", "poddisruptionbudgets", pool.namespace), budget_of(pool)
            )
        elif not _is_of(found, pool):
            text = (
                f"a drain may evict claimed sandboxes: another object owns PodDisruptionBudget "
                f"{name}, whose name this pool needs: rename or delete it"
            )
            return ConditionResult(CONDITION, False, Reason.BUDGET_CONFLICT, text), RETRY_SECONDS
        elif found.get("spec") != budget_spec(pool.uid):
            await self._client.json_patch(
                _path(pool),
                [
                    {"op": "test", "path": "/metadata/uid", "value": found["metadata"]["uid"]},
                    {"op": "add", "path": "/spec", "value": budget_spec(pool.uid)},
                ],
            )
        text = f"PodDisruptionBudget {name} refuses evictions of claimed sandboxes until claims end"
        return ConditionResult(CONDITION, True, Reason.BUDGET_KEPT, text), BUDGET_RESYNC_SECONDS

    async def _remove(self, pool: Pool) -> None:
        found = await self._find(pool)
        if found is None or not _is_of(found, pool):
            return
        try:
            await self._client.delete(_path(pool), uid=found["metadata"]["uid"])
        except ApiError as error:
            if not (error.not_found or error.conflict):
                raise


def _failed(name: str, wanted: Disruption, error: Exception) -> tuple[ConditionResult, float]:
    """Return the condition after a failed reconcile, and the seconds until the retry."""
    refused = isinstance(error, ApiError) and error.status == 403
    cause = str(error)
    if refused:
        cause += (
            "; the operator's ClusterRole must allow get, create, patch and delete of "
            "poddisruptionbudgets in the group policy"
        )
    if wanted is Disruption.ALLOW:
        text = (
            f"PodDisruptionBudget {name} still protects claims, although spec.claims.disruption is "
            f"Allow: it could not be deleted: {cause}"
        )
        return ConditionResult(CONDITION, True, Reason.BUDGET_REFUSED, text), RETRY_SECONDS
    text = f"a drain may evict claimed sandboxes: PodDisruptionBudget {name}: {cause}"
    if refused:
        return ConditionResult(CONDITION, False, Reason.BUDGET_REFUSED, text), BUDGET_RESYNC_SECONDS
    return ConditionResult(CONDITION, None, Reason.BUDGET_PENDING, text), RETRY_SECONDS


def _path(pool: Pool) -> str:
    name = budget_name(pool.name)
    return resource_path("policy/v1", "poddisruptionbudgets", pool.namespace, name)


def _is_of(budget: Mapping[str, Any], pool: Pool) -> bool:
    """Whether the pool owns the budget, and the budget is not being deleted."""
    metadata = budget["metadata"]
    owners = metadata.get("ownerReferences") or ()
    return "deletionTimestamp" not in metadata and any(o["uid"] == pool.uid for o in owners)
