"""What is shown of one RuntimeClass, from everything that is known of it. Pure.

The status is bounded: it counts nodes and gives examples, so that it is as small for five thousand
nodes as for five.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sandboxpool.api.conditions import ConditionResult, conditions, stored_conditions
from sandboxpool.api.reasons import Reason
from sandboxpool.api.times import epoch, timestamp
from sandboxpool.api.v1alpha1 import (
    IsolationEvidence,
    PoolStartup,
    RuntimeAdvice,
    RuntimeIssue,
    SandboxCounts,
    SandboxRuntimeStatus,
)
from sandboxpool.cluster.sandbox_state import SandboxState
from sandboxpool.runtimes.advice import cure
from sandboxpool.runtimes.evidence import EvidenceSummary, Isolation
from sandboxpool.runtimes.failure_history import WINDOW_SECONDS, FailureSummary
from sandboxpool.runtimes.resolve import Runtime
from sandboxpool.runtimes.verdict import Verdict

MAX_FAILURES = 16
MAX_EXAMPLES = 5
# Node names can have 253 characters each, though few have more than 60.
MAX_EXAMPLES_TEXT = 300
MAX_POOLS = 20
MAX_EVIDENCE_TEXT = 256
# Nothing that counts as a change of the object's content but its status: it is never edited.
GENERATION = 1

_NOTHING_PROVEN = "no node that can take a sandbox was seen to isolate"
_MEND_ISOLATION = (
    "Mend the handler's configuration there, or, if that is what is wanted, set "
    "spec.isolationProof of its pools to None"
)


@dataclass(frozen=True, slots=True)
class RuntimeStatusInput:
    """Everything that the status of one RuntimeClass depends on.

    Attributes:
        runtime: the class; None if it does not exist, which is of interest while pools name it.
        verdict: how the nodes stand to it, by the constraints of the class alone.
        issues: what goes wrong with its handler, the worst first.
        evidence: what was seen of its isolation, by kind of node, the worst first.
        pools: namespace/name of the pools that name the class.
        sandboxes: how many sandboxes these pools have in each state.
        startup: the start-up times of these sandboxes as the API has them; None without samples.
        proof_wanted: some pool wants proof of isolation.
        proven: some sandbox may be handed out with that proof, or could be on some node.
        now: seconds since the epoch.
    """

    class_name: str
    runtime: Runtime | None
    verdict: Verdict
    now: float
    issues: Sequence[FailureSummary] = ()
    evidence: Sequence[EvidenceSummary] = ()
    pools: Sequence[str] = ()
    sandboxes: Mapping[SandboxState, int] = field(default_factory=dict)
    startup: PoolStartup | None = None
    proof_wanted: bool = False
    proven: bool = False

    @property
    def handler(self) -> str:
        """What the class resolves to; empty if it does not exist."""
        return self.runtime.handler if self.runtime is not None else ""


def runtime_status(given: RuntimeStatusInput, former: Mapping[str, Any]) -> dict[str, Any]:
    """Compute the whole status, as it is sent.

    Args:
        given: what is known.
        former: the status as it stands on the server, possibly damaged by others. It says since
            when conditions and issues have stood, and what a class that is missing was.
    """
    verdict, runtime, advice = given.verdict, given.runtime, given.verdict.advice
    return SandboxRuntimeStatus(
        exists=runtime is not None,
        # While the class is missing, what it was last.
        classUID=str(former.get("classUID", "")) if runtime is None else runtime.uid,
        handler=str(former.get("handler", "")) if runtime is None else runtime.handler,
        overhead={} if runtime is None else dict(runtime.overhead),
        nodes=verdict.counts,
        servingOfEligible=f"{len(verdict.serving)}/{verdict.eligible}",
        issues=_issues(given, former),
        pools=sorted(given.pools)[:MAX_POOLS],
        poolCount=len(given.pools),
        sandboxes=_sandboxes(given.sandboxes),
        startup=given.startup,
        evidence=[_evidence(kind) for kind in given.evidence],
        advice=None if advice is None else RuntimeAdvice(nodeSelector=dict([advice])),
        conditions=conditions(_findings(given), stored_conditions(former), GENERATION, given.now),
    ).to_wire()


def urgent_part(status: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a status that people wait for.

    What is left out changes with every sandbox and every failure: counts of sandboxes, start-up
    times, the times and texts of what was seen before.
    """
    parts = {k: v for k, v in status.items() if k not in ("sandboxes", "startup")}
    for name, restless in (
        ("conditions", ("message",)),
        ("issues", ("lastSeen", "message")),
        ("evidence", ("lastProbed", "message")),
    ):
        parts[name] = [
            {k: v for k, v in part.items() if k not in restless} for part in listed(status, name)
        ]
    return parts


def listed(status: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """The objects of a list in a status; damage counts as absence."""
    found = status.get(name)
    return [part for part in found if isinstance(part, dict)] if isinstance(found, list) else []


def _sandboxes(counted: Mapping[SandboxState, int]) -> SandboxCounts:
    """The counts; pools count what is being started for a claim as the claim's."""
    return SandboxCounts(
        warm=counted.get(SandboxState.WARM, 0),
        starting=counted.get(SandboxState.STARTING, 0),
        unproven=counted.get(SandboxState.UNPROVEN, 0),
        unready=counted.get(SandboxState.UNREADY, 0),
        stranded=counted.get(SandboxState.STRANDED, 0),
        failed=counted.get(SandboxState.FAILED, 0),
        claimed=counted.get(SandboxState.CLAIMED, 0),
        ended=counted.get(SandboxState.ENDED, 0),
        stopping=counted.get(SandboxState.STOPPING, 0),
    )


def _issues(given: RuntimeStatusInput, former: Mapping[str, Any]) -> list[RuntimeIssue]:
    """The issues; one that stood before the operator's own memory began keeps its beginning."""
    stood = {(i.get("handler"), i.get("reason")): i for i in listed(former, "issues")}
    issues = []
    for row in given.issues[:MAX_FAILURES]:
        before = stood.get((row.handler, str(row.reason)), {})
        since, until = (epoch(str(before.get(key, ""))) for key in ("firstSeen", "lastSeen"))
        goes_on = 0 < since < row.first_seen <= until + WINDOW_SECONDS
        issues.append(
            RuntimeIssue(
                reason=str(row.reason),
                handler=row.handler,
                count=row.count,
                nodes=_examples(row.nodes),
                firstSeen=timestamp(since if goes_on else row.first_seen),
                lastSeen=timestamp(row.last_seen),
                message=row.message,
            )
        )
    return issues


def _evidence(kind: EvidenceSummary) -> IsolationEvidence:
    return IsolationEvidence(
        containerRuntime=kind.container_runtime[:MAX_EVIDENCE_TEXT],
        kubelet=kind.kubelet[:MAX_EVIDENCE_TEXT],
        isolation=kind.isolation,
        kernel=kind.kernel,
        nodes=kind.nodes,
        exampleNode=kind.example,
        lastProbed=timestamp(kind.at),
        message=kind.message[:MAX_EVIDENCE_TEXT],
    )


def _examples(nodes: Sequence[str]) -> list[str]:
    """The first few names: always one, and no more than fit the bound."""
    few = list(nodes[:MAX_EXAMPLES])
    while len(few) > 1 and sum(map(len, few)) > MAX_EXAMPLES_TEXT:
        few.pop()
    return few


def _named(some: Sequence[str], count: int) -> str:
    """Names in a sentence, of which there are more than are named."""
    few = _examples(some)
    more = f" and {count - len(few)} more" if count > len(few) else ""
    return ", ".join(few) + more


# --- Conditions ----------------------------------------------------------------------------------


def _findings(given: RuntimeStatusInput) -> list[ConditionResult]:
    ready, isolation = _ready(given), _isolation_proven(given)
    return [ready, _healthy(given, ready, isolation), isolation]


def _ready(given: RuntimeStatusInput) -> ConditionResult:
    """Whether some node can take a sandbox that may be handed out."""
    startable = _startable(given)
    if startable.status is False or not given.proof_wanted or given.proven:
        return startable
    # Where nothing is proven, nothing is handed out.
    silent = next((k for k in given.evidence if k.isolation is Isolation.UNAVAILABLE), None)
    if silent is not None:
        text = f"{_NOTHING_PROVEN}: there is no evidence {_on(given, silent)}"
        return ConditionResult(startable.type, False, Reason.EVIDENCE_UNAVAILABLE, text)
    text = f"{_NOTHING_PROVEN} yet: probes are on their way"
    return ConditionResult(startable.type, None, Reason.EVIDENCE_PENDING, text)


def _startable(given: RuntimeStatusInput) -> ConditionResult:
    """Whether sandboxes can be started somewhere, whatever is known of their isolation."""
    verdict, type_ = given.verdict, "Ready"
    if given.runtime is None:
        pools = _named(sorted(given.pools), len(given.pools))
        return ConditionResult(
            type_,
            False,
            Reason.RUNTIME_CLASS_NOT_FOUND,
            f"RuntimeClass {given.class_name!r} does not exist, but pools name it ({pools}): "
            "create it, or set spec.runtimeClassName of the pools to one that does",
        )
    if not verdict.eligible:
        return ConditionResult(
            type_,
            False,
            Reason.NO_ELIGIBLE_NODE,
            "no Ready, schedulable node satisfies the scheduling of the RuntimeClass: correct it, "
            "or add such a node",
        )
    if not verdict.serving:
        return _none_serves(given)
    if verdict.not_serving:
        return ConditionResult(
            type_,
            True,
            Reason.SOME_NODES_NOT_SERVING,
            f"{_so_far(given)}; new sandboxes keep away from the others. To let the scheduler do "
            f"so by itself, {cure(verdict.advice)}",
        )
    return ConditionResult(type_, True, Reason.HANDLER_SERVED, _so_far(given))


def _so_far(given: RuntimeStatusInput) -> str:
    verdict = given.verdict
    return (
        f"{len(verdict.serving)} of {verdict.eligible} eligible nodes serve the handler "
        f"{given.handler!r}"
    )


def _none_serves(given: RuntimeStatusInput) -> ConditionResult:
    verdict, type_, handler = given.verdict, "Ready", given.handler
    if verdict.unknown:
        running = sum(
            given.sandboxes.get(state, 0) for state in (SandboxState.WARM, SandboxState.CLAIMED)
        )
        return ConditionResult(
            type_,
            True if running or given.proven else None,
            Reason.HANDLERS_UNKNOWN,
            f"no eligible node reports that it serves {handler!r}, and {len(verdict.unknown)} of "
            f"{verdict.eligible} report no handlers, which needs Kubernetes 1.31 with containerd "
            f"2.0 or CRI-O 1.30; {running} sandboxes run",
        )
    if verdict.quarantined:
        causes = {row.reason for row in given.issues}
        return ConditionResult(
            type_,
            False,
            causes.pop() if len(causes) == 1 else Reason.ALL_NODES_QUARANTINED,
            f"every eligible node that lists {handler!r} is kept out: {_quarantine(given)}",
        )
    if verdict.not_isolating:
        return ConditionResult(
            type_,
            False,
            Reason.ISOLATION_NOT_PROVEN,
            f"on every eligible node that lists {handler!r} a sandbox was seen to share the node's "
            f"kernel: {_named(verdict.not_isolating, len(verdict.not_isolating))}. "
            f"{_MEND_ISOLATION}",
        )
    return ConditionResult(
        type_,
        False,
        Reason.NO_NODE_SERVES,
        f"none of {verdict.eligible} eligible nodes lists the handler {handler!r}: configure it in "
        "the nodes' container runtime (and restart that), or add nodes that have it",
    )


def _healthy(
    given: RuntimeStatusInput, ready: ConditionResult, isolation: ConditionResult
) -> ConditionResult:
    """Whether nothing speaks against the runtime, anywhere."""
    type_, verdict = "Healthy", given.verdict
    if ready.status is False:
        return ConditionResult(type_, False, ready.reason, ready.message)
    if isolation.status is False:
        return ConditionResult(type_, False, isolation.reason, isolation.message)
    if verdict.quarantined:
        return ConditionResult(type_, False, Reason.NODE_QUARANTINED, _quarantine(given))
    if given.issues:
        return ConditionResult(type_, False, given.issues[0].reason, _worst(given.issues[0]))
    if ready.status is None:
        return ConditionResult(type_, None, ready.reason, ready.message)
    return ConditionResult(type_, True, Reason.OK, "no trouble was seen within the hour")


def _quarantine(given: RuntimeStatusInput) -> str:
    nodes = given.verdict.quarantined
    why = f"; {_worst(given.issues[0])}" if given.issues else ""
    return f"quarantined after failures: {_named(nodes, len(nodes))}{why}"


def _worst(row: FailureSummary) -> str:
    return f"{row.reason} on {_named(row.nodes, row.count)}: {row.message}"


def _isolation_proven(given: RuntimeStatusInput) -> ConditionResult:
    """Whether sandboxes were seen to have kernels of their own, where proof is wanted."""
    type_ = "IsolationProven"
    if not given.proof_wanted:
        return ConditionResult(
            type_, None, Reason.PROOF_NOT_WANTED, "no pool of the class wants proof"
        )
    worst = next(iter(given.evidence), None)
    if worst is None:
        return ConditionResult(type_, None, Reason.EVIDENCE_PENDING, "no node has been probed yet")
    seen = _on(given, worst)
    if worst.isolation is Isolation.NOT_PROVEN:
        text = f"{seen}. Such sandboxes are not handed out. {_MEND_ISOLATION}"
        return ConditionResult(type_, False, Reason.ISOLATION_NOT_PROVEN, text)
    if worst.isolation is Isolation.UNAVAILABLE:
        text = f"there is no evidence {seen}"
        return ConditionResult(type_, False, Reason.EVIDENCE_UNAVAILABLE, text)
    return ConditionResult(type_, True, Reason.ISOLATION_PROVEN, seen)


def _on(given: RuntimeStatusInput, kind: EvidenceSummary) -> str:
    """What was seen, and on how many nodes."""
    nodes = sum(other.nodes for other in given.evidence if other.isolation is kind.isolation)
    return f"on {_named([kind.example], nodes)}: {kind.message}"
