"""Computes a pool's status from the same input as the decision. Pure."""

from collections.abc import Mapping
from typing import Any

from sandboxpool.api import names
from sandboxpool.api.conditions import ConditionResult, conditions
from sandboxpool.api.reasons import Reason
from sandboxpool.api.times import epoch
from sandboxpool.api.v1alpha1 import (
    PoolRuntime,
    PoolStartup,
    SandboxPoolStatus,
    UnfitPoolStatus,
)
from sandboxpool.cluster.pool import Pool
from sandboxpool.cluster.sandbox_state import SandboxState
from sandboxpool.pools.conditions import pool_conditions
from sandboxpool.pools.issues import quarantine_issues, startup_issues
from sandboxpool.pools.plan import PoolInput, PoolPlan, of_other_runtime, outdated

MAX_FAILURES = 8


def invalid_status(pool: Pool, now: float) -> dict[str, Any]:
    """The status of a pool whose spec is invalid: the pool is not reconciled."""
    finding = ConditionResult(
        "Ready",
        False,
        Reason.INVALID_OBJECT,
        f"the object is invalid and is not reconciled, correct it: {pool.spec_error}",
    )
    return UnfitPoolStatus(
        observedGeneration=pool.generation,
        conditions=conditions([finding], pool.conditions, pool.generation, now),
    ).to_wire()


def pool_status(
    pool: Pool, given: PoolInput, plan: PoolPlan, startup: PoolStartup | None
) -> dict[str, Any]:
    """Compute the whole status, as it is sent.

    Args:
        pool: the pool with its current status.
        given: the input of the decision.
        plan: the decision.
        startup: the measured start-up times, in the form of the API.
    """
    members = given.members
    counts = {state: members.count(state) for state in SandboxState}
    # A warm pod of another class can never be allocated.
    unfit = members.where(lambda m: m.state is SandboxState.WARM and of_other_runtime(m, given))
    strangers = sum(1 for _ in unfit)
    counts[SandboxState.WARM] -= strangers
    counts[SandboxState.STRANDED] += strangers
    to_replace = members.where(
        lambda m: m.unclaimed and (outdated(m, given) or of_other_runtime(m, given))
    )
    starting_issues = startup_issues(members, _former_issues(pool), given.now)
    node_issues = quarantine_issues(given)
    known = {issue.reason for issue in node_issues}
    issues = [*node_issues, *(issue for issue in starting_issues if issue.reason not in known)]
    verdict = given.verdict
    uid, handler = _identity(pool, given)
    runtime = given.resolution.runtime
    return SandboxPoolStatus(
        observedGeneration=pool.generation,
        replicas=sum(1 for _ in members.where(lambda m: m.unclaimed)),
        selector=f"{names.LABEL_POOL_UID}={pool.uid},!{names.LABEL_CLAIM_UID}",
        target=plan.target,
        warm=counts[SandboxState.WARM],
        starting=counts[SandboxState.STARTING],
        unproven=counts[SandboxState.UNPROVEN],
        unready=counts[SandboxState.UNREADY],
        stranded=counts[SandboxState.STRANDED],
        failed=counts[SandboxState.FAILED],
        outdated=sum(1 for _ in to_replace),
        claimed=counts[SandboxState.CLAIMED] + counts[SandboxState.COLD],
        ended=counts[SandboxState.ENDED],
        stopping=counts[SandboxState.STOPPING],
        runtime=PoolRuntime(
            className=given.spec.runtime_class_name,
            uid=uid,
            handler=handler,
            overhead=dict(runtime.overhead) if runtime is not None else {},
            nodes=verdict.counts,
            servingOfEligible=f"{len(verdict.serving)}/{verdict.eligible}",
            issues=issues[:MAX_FAILURES],
        ),
        startup=startup,
        conditions=conditions(
            pool_conditions(given, plan, counts, starting_issues),
            pool.conditions,
            pool.generation,
            given.now,
        ),
    ).to_wire()


def _identity(pool: Pool, given: PoolInput) -> tuple[str, str]:
    """The uid and handler of the class; the last known ones while the class is missing."""
    runtime = given.resolution.runtime
    if runtime is not None:
        return runtime.uid, runtime.handler
    former = former_runtime(pool)
    if former.get("className") != given.spec.runtime_class_name:
        return "", ""
    return str(former.get("uid", "")), str(former.get("handler", ""))


def former_runtime(pool: Pool) -> Mapping[str, Any]:
    """The runtime in the current status; empty if it is malformed."""
    runtime = pool.status.get("runtime")
    return runtime if isinstance(runtime, dict) else {}


def _former_issues(pool: Pool) -> dict[str, str]:
    """By reason, the start of each issue in the current status; malformed ones are ignored."""
    listed = former_runtime(pool).get("issues")
    former = {}
    for issue in listed if isinstance(listed, list) else ():
        if isinstance(issue, dict) and epoch(str(issue.get("since"))):
            former[str(issue.get("reason"))] = str(issue["since"])
    return former
