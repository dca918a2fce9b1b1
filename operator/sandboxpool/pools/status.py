"""Computes a pool's status from the same input as the decision. Pure."""

from collections.abc import Mapping
from typing import Any

from sandboxpool.api import names
from sandboxpool.api.conditions import ConditionResult, conditions
from sandboxpool.api.reasons import Reason
from sandboxpool.api.times import epoch
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
    return {
        "observedGeneration": pool.generation,
        "conditions": conditions([finding], pool.status, pool.generation, now),
    }


def pool_status(
    pool: Pool, given: PoolInput, plan: PoolPlan, startup: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Compute the whole status.

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
    superseded = members.where(
        lambda m: m.unclaimed and (outdated(m, given) or of_other_runtime(m, given))
    )
    starting_issues = startup_issues(members, _former_issues(pool), given.now)
    node_issues = quarantine_issues(given)
    known = {issue["reason"] for issue in node_issues}
    issues = [*node_issues, *(issue for issue in starting_issues if issue["reason"] not in known)]
    verdict = given.verdict
    status: dict[str, Any] = {
        "observedGeneration": pool.generation,
        "replicas": sum(1 for _ in members.where(lambda m: m.unclaimed)),
        "selector": f"{names.LABEL_POOL_UID}={pool.uid},!{names.LABEL_CLAIM_UID}",
        "target": plan.target,
        "warm": counts[SandboxState.WARM],
        "starting": counts[SandboxState.STARTING],
        "unproven": counts[SandboxState.UNPROVEN],
        "unready": counts[SandboxState.UNREADY],
        "stranded": counts[SandboxState.STRANDED],
        "failed": counts[SandboxState.FAILED],
        "outdated": sum(1 for _ in superseded),
        "claimed": counts[SandboxState.CLAIMED] + counts[SandboxState.COLD],
        "ended": counts[SandboxState.ENDED],
        "stopping": counts[SandboxState.STOPPING],
        "runtime": {
            **_identity(pool, given),
            "nodes": {
                "eligible": verdict.eligible,
                "serving": len(verdict.serving),
                "notServing": len(verdict.not_serving),
                "unknown": len(verdict.unknown),
                "quarantined": len(verdict.quarantined),
                "notIsolating": len(verdict.not_isolating),
                "unproven": len(verdict.unproven),
            },
            "servingOfEligible": f"{len(verdict.serving)}/{verdict.eligible}",
            "issues": issues[:MAX_FAILURES],
        },
        "conditions": conditions(
            pool_conditions(given, plan, counts, starting_issues),
            pool.status,
            pool.generation,
            given.now,
        ),
    }
    if startup is not None:
        status["startup"] = dict(startup)
    return status


def _identity(pool: Pool, given: PoolInput) -> dict[str, Any]:
    """The class with its uid and handler; the last known ones while the class is missing."""
    name = given.spec.runtime_class_name
    runtime = given.resolution.runtime
    if runtime is not None:
        return {
            "className": name,
            "uid": runtime.uid,
            "handler": runtime.handler,
            "overhead": dict(runtime.overhead),
        }
    former = former_runtime(pool)
    known = former if former.get("className") == name else {}
    return {
        "className": name,
        "uid": str(known.get("uid", "")),
        "handler": str(known.get("handler", "")),
        "overhead": {},
    }


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
