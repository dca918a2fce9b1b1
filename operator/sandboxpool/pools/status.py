"""A pool's status, computed from the same input as the decision. Pure.

Every condition is set every time. ``Ready`` sums them up for an alert: it is about whether
claims can be served, so it does not flap while a pool refills.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from sandboxpool.api import names
from sandboxpool.api.conditions import Finding, conditions
from sandboxpool.api.times import epoch, timestamp
from sandboxpool.pools.decide import PoolInput, PoolPlan, TemplateState, foreign, outdated
from sandboxpool.pools.members import Member, State
from sandboxpool.pools.pool import Pool
from sandboxpool.reasons import Reason

MAX_ISSUES = 8
MAX_EXAMPLES = 5

# What an SRE should hear first when several pods are in trouble for different causes.
_SEVERITY = (
    Reason.SANDBOX_CREATE_FAILED,
    Reason.SANDBOX_START_TIMEOUT,
    Reason.CONTAINER_FAILED,
    Reason.POD_FAILED,
    Reason.CONTAINER_CONFIG_ERROR,
    Reason.IMAGE_PULL_FAILED,
    Reason.UNSCHEDULABLE,
)


def invalid_status(pool: Pool, now: float) -> dict[str, Any]:
    """The status of a pool whose spec does not fit the API: nothing is done with it."""
    finding = Finding(
        "Ready",
        False,
        Reason.INVALID_OBJECT,
        f"the object does not fit the API and is left alone: {pool.problem}",
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
        pool: the pool, with the status as it stands.
        given: what was decided on.
        plan: what was decided.
        startup: measured start-up times, as the API has them.
    """
    counts = dict.fromkeys(State, 0)
    for member in given.members:
        # A pod of another class is none that a claim could have, however warm it is.
        state = member.state
        counts[State.STRANDED if state is State.WARM and foreign(member, given) else state] += 1
    unclaimed = [member for member in given.members if member.unclaimed]
    issues = _issues(given.members, _former_issues(pool), given.now)
    verdict = given.verdict
    findings = _findings(given, plan, counts, issues)
    status: dict[str, Any] = {
        "observedGeneration": pool.generation,
        "replicas": len(unclaimed),
        "selector": f"{names.LABEL_POOL_UID}={pool.uid},!{names.LABEL_CLAIM_UID}",
        "target": plan.target,
        "warm": counts[State.WARM],
        "starting": counts[State.STARTING],
        "claimed": counts[State.CLAIMED],
        "stopping": counts[State.STOPPING],
        "outdated": sum(outdated(m, given) or foreign(m, given) for m in unclaimed),
        "failed": counts[State.FAILED],
        "runtime": {
            **_identity(pool, given),
            "nodes": {
                "eligible": verdict.eligible,
                "serving": len(verdict.serving),
                "notServing": len(verdict.not_serving),
                "unknown": len(verdict.unknown),
                "quarantined": 0,
            },
            "servingOfEligible": f"{len(verdict.serving)}/{verdict.eligible}",
            "issues": issues,
        },
        "conditions": conditions(findings, pool.status, pool.generation, given.now),
    }
    if startup is not None:
        status["startup"] = dict(startup)
    return status


def _identity(pool: Pool, given: PoolInput) -> dict[str, Any]:
    """The class, its uid and its handler; while it is missing, what they were last."""
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
    """What the status says of the runtime now; damage counts as absence."""
    runtime = pool.status.get("runtime")
    return runtime if isinstance(runtime, dict) else {}


def _resolved(given: PoolInput) -> Finding:
    resolution, type_ = given.resolution, "RuntimeResolved"
    runtime = resolution.runtime
    if resolution.usable and runtime is not None:
        former = [
            m
            for m in given.members
            if m.class_name == runtime.class_name
            and m.runtime_uid != runtime.uid
            and m.state is not State.STOPPING
        ]
        if former:
            return Finding(
                type_,
                True,
                Reason.RUNTIME_CHANGED,
                f"RuntimeClass {runtime.class_name!r} was deleted and made again, its handler is "
                f"{runtime.handler!r} now: of {len(former)} sandboxes of the former one the warm "
                "are replaced and the claimed left alone",
            )
    return Finding(type_, resolution.usable, resolution.reason, resolution.message)


def _findings(
    given: PoolInput, plan: PoolPlan, counts: Mapping[State, int], issues: list[dict[str, Any]]
) -> list[Finding]:
    resolved = _resolved(given)
    serving = _nodes_serving(given)
    template = Finding(
        "TemplateAccepted",
        {
            TemplateState.ACCEPTED: True,
            TemplateState.REJECTED: False,
            TemplateState.NOT_CHECKED: None,
        }[given.template.state],
        given.template.reason,
        given.template.message,
    )
    warm = _warm(given, plan, counts, issues)
    up_to_date = _up_to_date(given)
    return [
        _ready(given, plan, counts, (resolved, template, serving, warm)),
        resolved,
        serving,
        template,
        warm,
        up_to_date,
    ]


def _ready(
    given: PoolInput, plan: PoolPlan, counts: Mapping[State, int], causes: tuple[Finding, ...]
) -> Finding:
    resolved, template, *_ = causes
    for finding in (resolved, template):
        if finding.holds is not True:
            return Finding("Ready", False, finding.reason, finding.message)
    if counts[State.WARM]:
        return Finding(
            "Ready", True, Reason.SANDBOX_WARM, f"{counts[State.WARM]} of {plan.target} are warm"
        )
    if given.spec.replicas == 0:
        return Finding("Ready", True, Reason.SCALED_TO_ZERO, "spec.replicas is 0")
    first = next((finding for finding in causes if finding.holds is False), causes[-1])
    return Finding("Ready", False, first.reason, first.message)


def _nodes_serving(given: PoolInput) -> Finding:
    verdict = given.verdict
    runtime = given.resolution.runtime
    type_ = "NodesServing"
    if runtime is None:
        return Finding(
            type_, None, Reason.RUNTIME_CLASS_NOT_FOUND, "without its RuntimeClass no node is asked"
        )
    handler = runtime.handler
    if not verdict.eligible:
        return Finding(
            type_,
            False,
            Reason.NO_ELIGIBLE_NODE,
            "no Ready, schedulable node satisfies the selectors, affinity and tolerations of the "
            "RuntimeClass and the template: correct them, or add such a node",
        )
    if verdict.not_excluded:
        return Finding(
            type_,
            bool(verdict.serving),
            Reason.EXCLUSION_CAP_EXCEEDED,
            f"{verdict.not_excluded} more nodes lack the handler {handler!r} than a pod can be "
            "told to avoid: set scheduling.nodeSelector of the RuntimeClass to a label that only "
            "serving nodes carry",
        )
    if not verdict.hopeful:
        return Finding(
            type_,
            False,
            Reason.NO_NODE_SERVES,
            f"none of {verdict.eligible} eligible nodes lists the handler {handler!r}: configure "
            "it in the nodes' container runtime (and restart that), or add nodes that have it",
        )
    if not verdict.serving:
        return Finding(
            type_,
            None,
            Reason.HANDLERS_UNKNOWN,
            f"none of {verdict.eligible} eligible nodes reports its handlers, which needs "
            "Kubernetes 1.31 with containerd 2.0 or CRI-O 1.30: whether they serve "
            f"{handler!r} shows only when a sandbox starts",
        )
    if verdict.not_serving:
        examples = ", ".join(verdict.not_serving[:MAX_EXAMPLES])
        return Finding(
            type_,
            True,
            Reason.SOME_NODES_NOT_SERVING,
            f"{len(verdict.serving)} of {verdict.eligible} eligible nodes serve {handler!r}; new "
            f"sandboxes keep away from those that do not: {examples}",
        )
    return Finding(
        type_,
        True,
        Reason.HANDLER_SERVED,
        f"{len(verdict.serving)} of {verdict.eligible} eligible nodes serve {handler!r}",
    )


def _warm(
    given: PoolInput, plan: PoolPlan, counts: Mapping[State, int], issues: list[dict[str, Any]]
) -> Finding:
    warm, target = counts[State.WARM], plan.target
    so_far = f"{warm} of {target} are warm"
    if given.spec.replicas == 0:
        return Finding("Warm", True, Reason.SCALED_TO_ZERO, "spec.replicas is 0")
    if warm >= target and target == given.spec.replicas:
        return Finding("Warm", True, Reason.AT_TARGET, so_far)
    if plan.held is Reason.PAUSED:
        return Finding(
            "Warm", False, Reason.PAUSED, f"{so_far}; set spec.paused to false to fill the pool"
        )
    if given.resolution.usable and given.template.state is TemplateState.ACCEPTED:
        if issues:
            worst = issues[0]
            where = f" on {', '.join(worst['nodes'])}" if worst["nodes"] else ""
            return Finding(
                "Warm",
                False,
                Reason(worst["reason"]),
                f"{so_far}; {worst['count']} not starting{where}: {worst['message']}",
            )
        if given.trouble.failures and warm < target:
            return Finding(
                "Warm",
                False,
                given.trouble.reason,
                f"{so_far}; the last {given.trouble.failures} rounds failed, the next try waits "
                f"for a growing delay: {given.trouble.message}",
            )
    if plan.held is not None and warm < target:
        return Finding("Warm", False, plan.held, f"{so_far}: {_why_held(given, plan.held)}")
    if target < given.spec.replicas:
        return Finding(
            "Warm",
            False,
            Reason.CLAMPED_BY_MAX_SANDBOXES,
            f"{so_far}; spec.replicas is {given.spec.replicas}, but spec.maxSandboxes "
            f"({given.spec.max_sandboxes}) counts claimed and terminating sandboxes too: raise it, "
            "or wait until claims end",
        )
    return Finding("Warm", False, Reason.FILLING, so_far)


def _why_held(given: PoolInput, held: Reason) -> str:
    if held is given.resolution.reason:
        return given.resolution.message
    if held is given.template.reason:
        return given.template.message
    if held in (Reason.NO_NODE_SERVES, Reason.NO_ELIGIBLE_NODE):
        return "one sandbox stays pending until a node can take it"
    if held is Reason.CEILING_HELD_BY_LOST_NODE:
        return (
            "spec.maxSandboxes is reached by sandboxes on a node that is lost: bring the node "
            "back, or delete it and its pods"
        )
    return "spec.maxSandboxes is reached, terminating sandboxes included"


def _up_to_date(given: PoolInput) -> Finding:
    old = [m for m in given.members if m.alive and outdated(m, given)]
    if not old:
        return Finding("UpToDate", True, Reason.OK, "every warm sandbox is of the newest revision")
    if given.template.state is not TemplateState.ACCEPTED:
        return Finding(
            "UpToDate",
            False,
            given.template.reason,
            f"{len(old)} are of an older revision and kept, because the new one is not accepted",
        )
    waits = given.spec.update.type == "OnClaim"
    return Finding(
        "UpToDate",
        False,
        Reason.WAITING_FOR_CLAIMS if waits else Reason.ROLLING,
        f"{len(old)} of an older revision "
        + ("wait to be claimed" if waits else "are being replaced"),
    )


def _issues(
    members: tuple[Member, ...], former: Mapping[str, str], now: float
) -> list[dict[str, Any]]:
    """Group the pods in trouble by cause, the worst first."""
    groups: dict[Reason, list[Member]] = defaultdict(list)
    for member in members:
        if member.unclaimed and member.failure is not None:
            groups[member.failure.reason].append(member)
    found = []
    for reason in sorted(groups, key=_SEVERITY.index):
        group = sorted(groups[reason], key=lambda m: (m.created, m.name))
        first = group[0].failure
        found.append(
            {
                "reason": str(reason),
                "count": len(group),
                "nodes": sorted({m.node_name for m in group if m.node_name})[:MAX_EXAMPLES],
                "since": former.get(reason) or timestamp(now),
                "message": first.message if first else "",
            }
        )
    return found[:MAX_ISSUES]


def _former_issues(pool: Pool) -> dict[str, str]:
    """Since when each issue has stood, from the status as it is; damage counts as absence."""
    listed = former_runtime(pool).get("issues")
    former = {}
    for issue in listed if isinstance(listed, list) else ():
        if isinstance(issue, dict) and epoch(str(issue.get("since"))):
            former[str(issue.get("reason"))] = str(issue["since"])
    return former
