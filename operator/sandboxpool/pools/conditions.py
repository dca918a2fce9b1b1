"""The conditions of a pool, each a small function of what was decided on. Pure.

Every condition is set every time. ``Ready`` sums them up for an alert: it is about whether
claims can be served, so it does not flap while a pool refills.
"""

from collections.abc import Mapping, Sequence

from sandboxpool.api.conditions import ConditionResult
from sandboxpool.api.reasons import Reason
from sandboxpool.api.v1alpha1 import IsolationProof, PoolIssue
from sandboxpool.cluster.sandbox_state import SandboxState
from sandboxpool.pools.plan import PoolInput, PoolPlan, TemplateState, outdated
from sandboxpool.runtimes.advice import cure, exclusion_pending_message, hostnames_cost
from sandboxpool.runtimes.evidence import Isolation
from sandboxpool.runtimes.node_constraints import wants_user_namespace

MAX_EXAMPLES = 5

HELD_BY_LOST_NODES = (
    "no more are made while so many lie on nodes that are not Ready, put there because they "
    "tolerate that: delete the Node objects of machines that are lost, and name the taints that "
    "are meant in the tolerations of the template and its RuntimeClass"
)


def pool_conditions(
    given: PoolInput,
    plan: PoolPlan,
    counts: Mapping[SandboxState, int],
    issues: Sequence[PoolIssue],
) -> list[ConditionResult]:
    """All conditions of a pool, in the order in which they shall stand.

    Args:
        given: what was decided on.
        plan: what was decided.
        counts: how many of the pool's pods are in each state.
        issues: what keeps its pods from starting, as the status shows it, the worst first.
    """
    resolved = _resolved(given)
    serving = _nodes_serving(given)
    template = ConditionResult(
        "TemplateAccepted",
        {
            TemplateState.ACCEPTED: True,
            TemplateState.REJECTED: False,
            TemplateState.NOT_CHECKED: None,
        }[given.template.state],
        given.template.reason,
        given.template.message,
    )
    isolation = _isolation_proven(given)
    warm = _warm(given, plan, counts, issues)
    up_to_date = _up_to_date(given)
    return [
        _ready(given, plan, counts, (resolved, template, serving, *isolation, warm)),
        resolved,
        serving,
        template,
        *isolation,
        warm,
        up_to_date,
        _guarded(given),
        *([] if given.budget_condition is None else [given.budget_condition]),
    ]


def _guarded(given: PoolInput) -> ConditionResult:
    """Whether a pod author of the pool's namespace can pass a pod of his own off as a sandbox."""
    if given.guarded:
        text = (
            "the admission policy that was installed with the operator lets nobody else write "
            "owners, labels and annotations of sandboxpool.io on pods"
        )
        return ConditionResult("PodsGuarded", True, Reason.ADMISSION_POLICY_INSTALLED, text)
    text = (
        "whoever may create pods in this namespace can pass one of his own off as a sandbox of "
        "this pool: install the chart with admission.enabled and admission.pods.enabled, or let "
        "nobody else create pods here"
    )
    return ConditionResult("PodsGuarded", False, Reason.NO_ADMISSION_POLICY, text)


def _ready(
    given: PoolInput,
    plan: PoolPlan,
    counts: Mapping[SandboxState, int],
    causes: tuple[ConditionResult, ...],
) -> ConditionResult:
    resolved, template, *_ = causes
    for finding in (resolved, template):
        if finding.status is not True:
            return ConditionResult("Ready", False, finding.reason, finding.message)
    if counts[SandboxState.WARM]:
        return ConditionResult(
            "Ready",
            True,
            Reason.SANDBOX_WARM,
            f"{counts[SandboxState.WARM]} of {plan.target} are warm",
        )
    if given.spec.replicas == 0:
        return ConditionResult("Ready", True, Reason.SCALED_TO_ZERO, "spec.replicas is 0")
    first = next((finding for finding in causes if finding.status is False), causes[-1])
    return ConditionResult("Ready", False, first.reason, first.message)


def _nodes_serving(given: PoolInput) -> ConditionResult:
    verdict = given.verdict
    runtime = given.resolution.runtime
    type_ = "NodesServing"
    if runtime is None:
        return ConditionResult(
            type_, None, Reason.RUNTIME_CLASS_NOT_FOUND, "without its RuntimeClass no node is asked"
        )
    handler = runtime.handler
    if not verdict.eligible:
        return ConditionResult(
            type_,
            False,
            Reason.NO_ELIGIBLE_NODE,
            "no Ready, schedulable node satisfies the selectors, affinity and tolerations of the "
            "RuntimeClass and the template: correct them, or add such a node",
        )
    if not verdict.has_candidate_nodes:
        return _no_node_serves(given, handler)
    if not verdict.serving:
        return ConditionResult(
            type_,
            None,
            Reason.HANDLERS_UNKNOWN,
            f"{len(verdict.unknown)} of {verdict.eligible} eligible nodes do not report their "
            "handlers, which needs Kubernetes 1.31 with containerd 2.0 or CRI-O 1.30: whether they "
            f"serve {handler!r} shows only when a sandbox starts, and no other node serves it"
            + (f"; {_quarantined_too(given)}" if verdict.quarantined else ""),
        )
    so_many = f"{len(verdict.serving)} of {verdict.eligible} eligible nodes serve {handler!r}"
    if verdict.unproven:
        examples = ", ".join(verdict.unproven[:MAX_EXAMPLES])
        so_many += f", {len(verdict.unproven)} give no proof that it isolates ({examples})"
    cost = f"; {hostnames_cost(len(verdict.excluded))}" if verdict.excluded else ""
    if verdict.quarantined:
        return ConditionResult(
            type_,
            True,
            Reason.NODE_QUARANTINED,
            f"{so_many}; {_quarantined_too(given)}{cost}",
        )
    if cost:
        return ConditionResult(type_, True, Reason.EXCLUDED_BY_HOSTNAME, so_many + cost)
    if verdict.not_serving:
        examples = ", ".join(verdict.not_serving[:MAX_EXAMPLES])
        return ConditionResult(
            type_,
            True,
            Reason.SOME_NODES_NOT_SERVING,
            f"{so_many}; new sandboxes keep away from those that do not ({examples}); to have the "
            f"scheduler know it too, {cure(verdict.advice)}{_by_user_namespaces(given)}",
        )
    return ConditionResult(type_, True, Reason.HANDLER_SERVED, so_many)


def _no_node_serves(given: PoolInput, handler: str) -> ConditionResult:
    verdict, type_ = given.verdict, "NodesServing"
    if verdict.quarantined:
        causes = {quarantine.reason for _, quarantine in given.quarantines}
        return ConditionResult(
            type_,
            False,
            causes.pop() if len(causes) == 1 else Reason.ALL_NODES_QUARANTINED,
            f"every eligible node that lists the handler {handler!r} is kept out: "
            f"{_quarantined_too(given)}",
        )
    if verdict.not_isolating:
        return ConditionResult(
            type_,
            False,
            Reason.ISOLATION_NOT_PROVEN,
            _not_isolating(verdict.not_isolating, handler),
        )
    if given.backoff.reason is Reason.AUTOSCALER_ADDS_WRONG_NODES:
        return ConditionResult(
            type_,
            False,
            Reason.AUTOSCALER_ADDS_WRONG_NODES,
            f"nodes joined for a waiting sandbox, and none lists the handler {handler!r}: set "
            "scheduling.nodeSelector of the RuntimeClass to a label of the node group that has it; "
            "until then a sandbox waits only from time to time",
        )
    return ConditionResult(
        type_,
        False,
        Reason.NO_NODE_SERVES,
        f"none of {verdict.eligible} eligible nodes lists the handler {handler!r}: configure "
        "it in the nodes' container runtime (and restart that), or add nodes that have it"
        + _by_user_namespaces(given),
    )


def _by_user_namespaces(given: PoolInput) -> str:
    """What else a node must have to serve pods of this template."""
    if not wants_user_namespace(given.spec.template.spec):
        return ""
    return (
        "; spec.template.spec.hostUsers is false, so a node serves it only if its "
        "status.runtimeHandlers does not deny the handler features.userNamespaces"
    )


def _quarantined_too(given: PoolInput) -> str:
    return f"{len(given.verdict.quarantined)} quarantined, {_first_quarantine(given)}"


def _first_quarantine(given: PoolInput) -> str:
    if not given.quarantines:
        return "the cause is not known any more"
    node, quarantine = given.quarantines[0]
    return f"such as {node}: {quarantine.reason}: {quarantine.message}"


def _not_isolating(nodes: Sequence[str], handler: str) -> str:
    return (
        f"on {', '.join(nodes[:MAX_EXAMPLES])} a sandbox of handler {handler!r} sees the node's "
        "own kernel: it is not isolated and never handed out. Mend the handler's configuration "
        "there, or, if that is what is wanted, set spec.isolationProof to None"
    )


def _isolation_proven(given: PoolInput) -> list[ConditionResult]:
    """The condition, if the pool wants proof."""
    if given.spec.isolation_proof is IsolationProof.NONE:
        return []
    type_ = "IsolationProven"
    members = given.members
    handler = given.resolution.runtime.handler if given.resolution.runtime else ""
    apart = members.of(SandboxState.STRANDED, SandboxState.FAILED)
    refuted = {m.node_name for m in apart if m.host_state.isolation_failed} | set(
        given.verdict.not_isolating
    )
    if refuted:
        text = _not_isolating(sorted(refuted), handler)
        return [ConditionResult(type_, False, Reason.ISOLATION_NOT_PROVEN, text)]
    waiting = list(members.of(SandboxState.UNPROVEN))
    without = [m for m in waiting if m.host_state.isolation is Isolation.UNAVAILABLE]
    if without:
        first = without[0]
        text = (
            f"{len(without)} ready sandboxes are not handed out, because there is no evidence of "
            f"their isolation, such as on {first.node_name}: {first.host_state.isolation_message}"
        )
        if given.verdict.unproven:
            text += ". Others take their place on nodes where there is"
        return [ConditionResult(type_, False, Reason.EVIDENCE_UNAVAILABLE, text)]
    if waiting:
        nodes = sorted({m.node_name for m in waiting})[:MAX_EXAMPLES]
        text = f"{len(waiting)} ready sandboxes wait for the probe of {', '.join(nodes)}"
        return [ConditionResult(type_, None, Reason.EVIDENCE_PENDING, text)]
    if members.count(SandboxState.WARM):
        text = "every warm sandbox runs on another kernel than its node's"
        return [ConditionResult(type_, True, Reason.ISOLATION_PROVEN, text)]
    return [ConditionResult(type_, None, Reason.EVIDENCE_PENDING, "no sandbox is ready yet")]


def _warm(
    given: PoolInput,
    plan: PoolPlan,
    counts: Mapping[SandboxState, int],
    issues: Sequence[PoolIssue],
) -> ConditionResult:
    warm, target = counts[SandboxState.WARM], plan.target
    so_far = f"{warm} of {target} are warm"
    if given.spec.replicas == 0:
        return ConditionResult("Warm", True, Reason.SCALED_TO_ZERO, "spec.replicas is 0")
    if warm >= target and target == given.spec.replicas:
        return ConditionResult("Warm", True, Reason.AT_TARGET, so_far)
    if plan.blocked_by is Reason.PAUSED:
        return ConditionResult(
            "Warm", False, Reason.PAUSED, f"{so_far}; set spec.paused to false to fill the pool"
        )
    if plan.blocked_by is Reason.CACHE_STALE:
        text = (
            f"{so_far}; nothing is made while the operator's watch of pods shows nothing: see its "
            "log, and whether it can list pods"
        )
        return ConditionResult("Warm", False, Reason.CACHE_STALE, text)
    if plan.blocked_by is Reason.HELD_BY_LOST_NODES:
        return ConditionResult("Warm", False, plan.blocked_by, f"{so_far}; {HELD_BY_LOST_NODES}")
    if given.resolution.usable and given.template.state is TemplateState.ACCEPTED:
        if issues:
            worst = issues[0]
            where = f" on {', '.join(worst.nodes)}" if worst.nodes else ""
            return ConditionResult(
                "Warm",
                False,
                Reason(worst.reason),
                f"{so_far}; {worst.count} not ready{where}: {worst.message}",
            )
        if given.backoff.reason is Reason.NAMESPACE_TERMINATING:
            return ConditionResult(
                "Warm", False, given.backoff.reason, f"{so_far}; {given.backoff.message}"
            )
        if given.backoff.failures and warm < target:
            return ConditionResult(
                "Warm",
                False,
                given.backoff.reason,
                f"{so_far}; the last {given.backoff.failures} rounds failed, the next try waits "
                f"for a growing delay: {given.backoff.message}",
            )
    if plan.blocked_by is not None and warm < target:
        return ConditionResult(
            "Warm", False, plan.blocked_by, f"{so_far}: {_why_held(given, plan)}"
        )
    if target < given.spec.replicas:
        return ConditionResult(
            "Warm",
            False,
            Reason.CLAMPED_BY_MAX_SANDBOXES,
            f"{so_far}; spec.replicas is {given.spec.replicas}, but spec.maxSandboxes "
            f"({given.spec.max_sandboxes}) counts claimed and terminating sandboxes too: raise it, "
            "or wait until claims end",
        )
    return ConditionResult("Warm", False, Reason.FILLING, so_far)


def _why_held(given: PoolInput, plan: PoolPlan) -> str:
    held = plan.blocked_by
    if held is given.resolution.reason:
        return given.resolution.message
    if held is given.template.reason:
        return given.template.message
    failed = next((d for d in plan.delete if d.failed and d.reason is held), None)
    if failed is not None:
        return f"{failed.member.name} is given up: {failed.message}"
    if held is Reason.EXCLUSION_PENDING:
        return f"sandboxes {exclusion_pending_message(given.verdict.exclusions_pending)}"
    if not given.verdict.has_candidate_nodes:
        return "one sandbox stays pending until a node can take it"
    if held is Reason.CEILING_HELD_BY_LOST_NODE:
        return (
            "spec.maxSandboxes is reached by sandboxes on a node that is lost: bring the node "
            "back, or delete it and its pods"
        )
    return "spec.maxSandboxes is reached, terminating sandboxes included"


def _up_to_date(given: PoolInput) -> ConditionResult:
    old = list(given.members.where(lambda m: m.in_stock and outdated(m, given)))
    if not old:
        return ConditionResult(
            "UpToDate", True, Reason.OK, "every warm sandbox is of the newest revision"
        )
    if given.template.state is not TemplateState.ACCEPTED:
        return ConditionResult(
            "UpToDate",
            False,
            given.template.reason,
            f"{len(old)} are of an older revision and kept, because the new one is not accepted",
        )
    waits = given.spec.update.type == "OnClaim"
    return ConditionResult(
        "UpToDate",
        False,
        Reason.WAITING_FOR_CLAIMS if waits else Reason.ROLLING,
        f"{len(old)} of an older revision "
        + ("wait to be claimed" if waits else "are being replaced"),
    )


def _resolved(given: PoolInput) -> ConditionResult:
    resolution, type_ = given.resolution, "RuntimeResolved"
    runtime = resolution.runtime
    if resolution.usable and runtime is not None:
        former = list(
            given.members.where(
                lambda m: (
                    m.class_name == runtime.class_name
                    and m.runtime_uid != runtime.uid
                    and m.state is not SandboxState.STOPPING
                )
            )
        )
        if former:
            return ConditionResult(
                type_,
                True,
                Reason.RUNTIME_CHANGED,
                f"RuntimeClass {runtime.class_name!r} was deleted and made again, its handler is "
                f"{runtime.handler!r} now: of {len(former)} sandboxes of the former one the warm "
                "are replaced and the claimed left alone",
            )
    return ConditionResult(type_, resolution.usable, resolution.reason, resolution.message)
