"""The PodDisruptionBudget over a pool's claimed sandboxes, where the pool protects them.

It is one constant object a pool: it selects what claims own by its labels, and asks for more
healthy pods than there can be, so that no eviction is granted however many claims there are. A
number is the only form that the disruption controller can reckon with here: for a percentage, and
for maxUnavailable, it looks up the scale of the pods' owner, and a SandboxClaim has none.

The pool's status tells of it before it is made. So whoever leads next knows that there may be one
to be removed.
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
# What somebody has deleted or altered is put right after so long.
BUDGET_RESYNC_SECONDS = 60.0
# So long after something went wrong, or while the pool's status does not tell of the budget yet.
RETRY_SECONDS = 5.0
NOTED_SECONDS = 1.0
# The largest that there is.
EVERY_ONE = 2**31 - 1


def budget_name(pool_name: str) -> str:
    """Name of a pool's budget."""
    return f"{pool_name}-claims"


def budget_spec(pool_uid: str) -> dict[str, Any]:
    """What the budget says; the same for as long as there is the pool."""
    return {
        "minAvailable": EVERY_ONE,
        "selector": {
            "matchLabels": {names.LABEL_POOL_UID: pool_uid},
            "matchExpressions": [{"key": names.LABEL_CLAIM_UID, "operator": "Exists"}],
        },
        # One whose readiness probe fails is its claim's all the same. What has not begun to run, or
        # has ended, no budget keeps.
        "unhealthyPodEvictionPolicy": "IfHealthyBudget",
    }


def budget_of(pool: Pool) -> dict[str, Any]:
    """The body of the POST."""
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
    """Makes, mends and removes the pools' budgets.

    Args:
        client: speaks to the API server.
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, client: ApiClient, clock: Callable[[], float]) -> None:
        self._client = client
        self._clock = clock
        # By the pool's uid: what was found last, for which wish, and when to look again.
        self._found: dict[str, tuple[Disruption, ConditionResult, float]] = {}

    def forget(self, pool_uid: str) -> None:
        """The pool is gone, and its budget goes with it."""
        self._found.pop(pool_uid, None)

    def due(self, pool_uid: str) -> float | None:
        """Seconds until the next look at a pool's budget; None where there is none."""
        found = self._found.get(pool_uid)
        return None if found is None else max(0.0, found[2] - self._clock())

    async def reconcile(self, pool: Pool) -> ConditionResult | None:
        """See to a pool's budget; return the condition to show, if one is wanted or was made."""
        assert pool.spec is not None, "asked before"
        wish = pool.spec.claims.disruption
        noted = any(condition.type == CONDITION for condition in pool.conditions)
        if wish is Disruption.ALLOW and not noted and pool.uid not in self._found:
            return None
        former = self._found.get(pool.uid)
        if former is not None and former[0] is wish and self._clock() < former[2]:
            return former[1]
        finding, pause = await self._look(pool, wish, noted=noted)
        if finding is None:
            self.forget(pool.uid)
        else:
            self._found[pool.uid] = wish, finding, self._clock() + pause
        return finding

    async def _look(
        self, pool: Pool, wish: Disruption, *, noted: bool
    ) -> tuple[ConditionResult | None, float]:
        """Return what is so now, and after how many seconds to look again."""
        name = budget_name(pool.name)
        try:
            if wish is Disruption.ALLOW:
                await self._remove(pool)
                return None, 0.0
            if not noted:
                text = f"PodDisruptionBudget {name} is about to be made"
                return ConditionResult(CONDITION, None, Reason.BUDGET_PENDING, text), NOTED_SECONDS
            return await self._make(pool)
        except (KubeError, *UNREADABLE) as error:
            return _failed(name, wish, error)

    async def _find(self, pool: Pool) -> Mapping[str, Any] | None:
        found = await self._client.find(_path(pool))
        return None if found is None else msgspec.json.decode(found, type=dict[str, Any])

    async def _make(self, pool: Pool) -> tuple[ConditionResult, float]:
        name = budget_name(pool.name)
        found = await self._find(pool)
        if found is None:
            await self._client.create(
                resource_path("policy/v1", "poddisruptionbudgets", pool.namespace), budget_of(pool)
            )
        elif not _is_of(found, pool):
            text = (
                f"a drain may evict claimed sandboxes: there is a PodDisruptionBudget {name} that "
                "is not this pool's: rename or delete it"
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


def _failed(name: str, wish: Disruption, error: Exception) -> tuple[ConditionResult, float]:
    """What it means that a budget could not be seen to, and after how many seconds to try again."""
    refused = isinstance(error, ApiError) and error.status == 403
    said = str(error)
    if refused:
        said += (
            "; the operator's ClusterRole must allow get, create, patch and delete of "
            "poddisruptionbudgets in the group policy"
        )
    if wish is Disruption.ALLOW:
        text = (
            f"PodDisruptionBudget {name} still protects claims, although spec.claims.disruption is "
            f"Allow: it was not removed: {said}"
        )
        return ConditionResult(CONDITION, True, Reason.BUDGET_REFUSED, text), RETRY_SECONDS
    text = f"a drain may evict claimed sandboxes: PodDisruptionBudget {name}: {said}"
    if refused:
        return ConditionResult(CONDITION, False, Reason.BUDGET_REFUSED, text), BUDGET_RESYNC_SECONDS
    return ConditionResult(CONDITION, None, Reason.BUDGET_PENDING, text), RETRY_SECONDS


def _path(pool: Pool) -> str:
    name = budget_name(pool.name)
    return resource_path("policy/v1", "poddisruptionbudgets", pool.namespace, name)


def _is_of(budget: Mapping[str, Any], pool: Pool) -> bool:
    """The pool owns it, and it is not on its way out."""
    metadata = budget["metadata"]
    owners = metadata.get("ownerReferences") or ()
    return "deletionTimestamp" not in metadata and any(o["uid"] == pool.uid for o in owners)
