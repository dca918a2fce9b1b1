"""Evidence that a runtime isolates: what a sandbox reads, held against its node. Pure.

A container that shares the node's kernel reads the node's own boot id; the kernel of gVisor or of
a virtual machine has another. No answer is no evidence, and never the same as a good one.

A sandbox that runs keeps its kernel when the kubelet or the container runtime is upgraded below it.
So an answer that a change of software has made void for the next sandboxes still holds for those
that were started before, as far as that is certain.
"""

import contextlib
import heapq
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from sandboxpool.api import names
from sandboxpool.api.core import ContainerStatus, Pod, Terminated
from sandboxpool.api.times import epoch
from sandboxpool.api.v1alpha1 import Isolation as Isolation
from sandboxpool.runtimes.diagnosis import truncate
from sandboxpool.runtimes.nodes import Machine, NodeFacts
from sandboxpool.runtimes.probe import (
    ANNOTATION_BOOT_ID,
    ANNOTATION_NODE_UID,
    CONTROL,
    NODES_KERNEL,
    OWN_KERNEL,
    PROBE_CONTAINER,
    SANDBOX_PROBE_CONTAINER,
    UNREADABLE,
    architecture_hint,
)

MAX_KERNEL = 120
MAX_KINDS = 8
MAX_AGE_SECONDS = 86_400.0
# A change of software was seen so long after it at most: a kubelet tells of its container runtime
# within seconds, a watch may have stood still for two minutes, and clocks differ.
UNSEEN_CHANGE_SECONDS = 180.0
# A node whose probes get no answer is taken for one that gives none after so long.
PROBE_UNANSWERED_SECONDS = 300.0
# Start times have whole seconds.
_GRAIN_SECONDS = 1.0

_BOOT_ID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


_WORST_FIRST = (Isolation.NOT_PROVEN, Isolation.UNAVAILABLE, Isolation.PROVEN)


@dataclass(frozen=True, slots=True)
class Software:
    """What evidence is about: a change of any of it asks anew."""

    machine: Machine
    container_runtime: str
    kubelet: str
    handlers: frozenset[str] | None

    def is_on(self, node: NodeFacts) -> bool:
        """Whether the node still has it; quicker than to compare with ``software_of``."""
        return (
            self.machine.boot_id == node.boot_id
            and self.machine.uid == node.uid
            and self.container_runtime == node.container_runtime
            and self.kubelet == node.kubelet
            and self.handlers == node.handlers
        )


def software_of(node: NodeFacts) -> Software:
    """Take from a node what evidence is about."""
    return Software(node.machine, node.container_runtime, node.kubelet, node.handlers)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was learned of one handler on one node, or of one sandbox.

    Attributes:
        at: epoch seconds at which it was judged.
        software: what it is about.
        class_uid: the RuntimeClass by which the sandbox was made.
        kernel: as ``/proc/version`` names it inside, cut; empty if no message arrived.
        message: one sentence.
    """

    isolation: Isolation
    at: float
    software: Software
    class_uid: str
    kernel: str
    message: str


def no_evidence(node: NodeFacts, class_uid: str, now: float, message: str) -> Evidence:
    """Say that the question was asked, and why there is no answer."""
    return Evidence(Isolation.UNAVAILABLE, now, software_of(node), class_uid, "", truncate(message))


@dataclass(frozen=True, slots=True)
class SupersededEvidence:
    """An answer about what is no more, which holds for the sandboxes that are left of it.

    Attributes:
        before: epoch seconds; it is about sandboxes that were started earlier.
        evidence: the answer.
    """

    before: float
    evidence: Evidence


def refutation(handler: str) -> Isolation:
    """Which answer speaks against a handler; a positive control must not see another kernel."""
    return Isolation.PROVEN if handler == CONTROL else Isolation.NOT_PROVEN


def started_at(pod: Pod) -> float | None:
    """When a pod's sandbox was started at the latest; None if that is not certain.

    A container ends with its sandbox, so the one that has run for longest tells. It is the node's
    clock that says so; one that is behind the API server's is not believed.

    Returns:
        Epoch seconds.
    """
    listed = (*pod.status.initContainerStatuses, *pod.status.containerStatuses)
    running = (status.state.running for status in listed)
    times = [at for state in running if state is not None and (at := epoch(state.startedAt or ""))]
    first = min(times, default=0.0)
    return first if first + _GRAIN_SECONDS >= epoch(pod.metadata.creationTimestamp) > 0 else None


def control_failure(control: Evidence) -> str:
    """Why nothing that is read on a node proves isolation, by its positive control."""
    if control.isolation is Isolation.PROVEN:
        return (
            "the node publishes a boot id that is not its kernel's: a container without isolation "
            "reads another one too, so that nothing can be proven there"
        )
    return f"the positive control, a container without isolation, gave no answer: {control.message}"


def has_run(pod: Pod) -> bool:
    """A probe pod's own code has run to its end, so a sandbox started."""
    ended = _ended(pod.status.containerStatuses, PROBE_CONTAINER)
    return ended is not None and ended.exitCode in (OWN_KERNEL, NODES_KERNEL, UNREADABLE)


def judge_probe(pod: Pod, node: NodeFacts, now: float) -> Evidence | None:
    """Judge a probe pod by its exit code.

    Returns:
        None while it has not ended, or if the node is another machine than it was made for.
    """
    annotations = pod.metadata.annotations
    made_for = Machine(
        uid=annotations.get(ANNOTATION_NODE_UID, ""),
        boot_id=annotations.get(ANNOTATION_BOOT_ID, ""),
    )
    if made_for != node.machine:
        return None
    class_uid = annotations.get(names.ANNOTATION_RUNTIME_UID, "")
    ended = _ended(pod.status.containerStatuses, PROBE_CONTAINER)
    if ended is None and not pod.finished:
        return None
    if has_run(pod) and pod.spec.nodeName != node.name:
        # Admission can change the affinity, and then it has compared with another node's boot id.
        cause = f"the probe ran on node {pod.spec.nodeName!r}, and was meant for {node.name!r}"
        return no_evidence(node, class_uid, now, cause)
    if ended is None or not has_run(pod):
        status = pod.status
        cause = f"{status.reason or status.phase} {status.message}"
        if ended is not None:
            cause = f"exit code {ended.exitCode} {ended.reason} {ended.message}"
            cause += architecture_hint(cause)
        return no_evidence(node, class_uid, now, f"the probe ended before it could answer: {cause}")
    if ended.exitCode == UNREADABLE:
        return no_evidence(node, class_uid, now, _unreadable(node))
    _, kernel = _read(ended)
    return _judged(ended.exitCode == OWN_KERNEL, kernel, node, class_uid, now)


def judge_sandbox(pod: Pod, node: NodeFacts, now: float) -> Evidence | None:
    """Judge a sandbox by what its own probe container read: it speaks for that sandbox alone.

    Returns:
        None while the probe container has not ended, or if the pod has none.
    """
    ended = _ended(pod.status.initContainerStatuses, SANDBOX_PROBE_CONTAINER)
    if ended is None or pod.spec.nodeName != node.name:
        return None
    class_uid = pod.metadata.annotations.get(names.ANNOTATION_RUNTIME_UID, "")
    seen, kernel = _read(ended)
    if ended.exitCode != 0:
        cause = f"exit code {ended.exitCode} {ended.reason} {ended.message}"
        cause += architecture_hint(cause)
        return no_evidence(node, class_uid, now, f"the sandbox's probe did not run: {cause}")
    if not node.boot_id:
        return no_evidence(node, class_uid, now, _unreadable(node))
    if seen != node.boot_id and not _BOOT_ID.fullmatch(seen):
        # Also what the kubelet writes when it cannot read the file.
        return no_evidence(
            node,
            class_uid,
            now,
            "the sandbox's probe ran, but no boot id arrived: if its runtime hands no termination "
            f"messages out, use isolationProof: PerNode: {ended.message}",
        )
    return _judged(seen != node.boot_id, kernel, node, class_uid, now)


def _judged(isolated: bool, kernel: str, node: NodeFacts, class_uid: str, now: float) -> Evidence:
    if isolated:
        isolation, message = Isolation.PROVEN, "the sandbox has a kernel of its own"
    else:
        isolation = Isolation.NOT_PROVEN
        message = "the sandbox runs on the node's own kernel: inside, the boot id is the node's"
    if kernel:
        message += f" ({kernel})"
    return Evidence(isolation, now, software_of(node), class_uid, kernel, message)


def _unreadable(node: NodeFacts) -> str:
    if not node.boot_id:
        return f"node {node.name} does not publish its boot id (status.nodeInfo.bootID)"
    return "the sandbox started, but /proc/sys/kernel/random/boot_id could not be read in it"


def _ended(statuses: list[ContainerStatus], name: str) -> Terminated | None:
    return next((status.state.terminated for status in statuses if status.name == name), None)


def _read(ended: Terminated) -> tuple[str, str]:
    """The two lines of a probe's message; empty if they did not arrive."""
    seen, _, kernel = ended.message.partition("\n")
    return seen.strip(), kernel.strip()[:MAX_KERNEL]


_KindKey = tuple[str, str, Isolation, str]


@dataclass(frozen=True, slots=True)
class EvidenceSummary:
    """Nodes that are alike, and what was seen on them.

    Attributes:
        nodes: how many.
        example: one of them.
        at: epoch seconds of the newest evidence.
        message: the example's.
    """

    container_runtime: str
    kubelet: str
    isolation: Isolation
    kernel: str
    nodes: int
    example: str
    at: float
    message: str


class EvidenceStore:
    """What is known of each handler on each node. In memory; for all pools of a handler.

    Only the operator's own probes write here.

    Args:
        max_age: seconds after which a proof is none any more. It is asked for again before.
    """

    def __init__(self, max_age: float = MAX_AGE_SECONDS) -> None:
        self._max_age = max_age
        self._nodes: defaultdict[str, dict[str, Evidence]] = defaultdict(dict)
        # When to look at the age of what is known of a node and handler.
        self._due: list[tuple[float, str, str]] = []
        self._renewal_due: set[tuple[str, str]] = set()
        # Of one handler on one node at most two: what refutes sandboxes, and what proves them.
        self._superseded: dict[str, dict[str, tuple[SupersededEvidence, ...]]] = {}
        # Since when this process has known each node, in epoch seconds.
        self._seen_since: dict[str, float] = {}
        # Since when probes get no answer, and those of them for which that is long.
        self._unanswered_since: dict[tuple[str, str], float] = {}
        self._unanswered: set[tuple[str, str]] = set()

    def put(self, node: str, handler: str, evidence: Evidence) -> bool:
        """Take evidence in; return whether anything but its age has changed.

        No answer does not take the place of an answer about the same software.
        """
        old = self._nodes[node].get(handler)
        if (
            old is not None
            and evidence.isolation is Isolation.UNAVAILABLE
            and old.isolation is not Isolation.UNAVAILABLE
            and old.software == evidence.software
        ):
            return False
        if evidence.isolation is refutation(handler):
            # Whatever was known of sandboxes that run there: it speaks against all of them.
            self._keep_former(node, handler, ())
        elif old is not None and evidence.isolation is not Isolation.UNAVAILABLE:
            self._retire_refutation(node, handler, old, evidence.at)
        self._keep(node, handler, evidence)
        return old is None or replace(old, at=evidence.at) != evidence

    def _keep(self, node: str, handler: str, evidence: Evidence) -> None:
        key = node, handler
        self._nodes[node][handler] = evidence
        self._renewal_due.discard(key)
        if evidence.isolation is Isolation.UNAVAILABLE:
            if key not in self._unanswered_since:
                self._unanswered_since[key] = evidence.at
                heapq.heappush(self._due, (evidence.at + PROBE_UNANSWERED_SECONDS, node, handler))
        else:
            self._answered(key)
        if evidence.isolation is Isolation.PROVEN:
            # Each at its own time, so that a fleet is not asked all at once.
            share = zlib.crc32(f"{node} {handler}".encode()) / 2**32
            ask_at = evidence.at + self._max_age * (0.75 + 0.2 * share)
            heapq.heappush(self._due, (ask_at, node, handler))

    def _answered(self, key: tuple[str, str]) -> None:
        self._unanswered_since.pop(key, None)
        self._unanswered.discard(key)

    def expire(self, now: float) -> list[tuple[str, str]]:
        """Let time pass; return the nodes and handlers of which something else is known by it.

        A proof is to be asked for again, or is too old and forgotten: what nobody has confirmed
        for so long is not known. Or a node has been silent for long.
        """
        found = []
        while self._due and self._due[0][0] <= now:
            _, node, handler = heapq.heappop(self._due)
            evidence = self._nodes.get(node, {}).get(handler)
            since = self._unanswered_since.get((node, handler))
            if since is not None and since + PROBE_UNANSWERED_SECONDS <= now:
                self._unanswered.add((node, handler))
                found.append((node, handler))
            if evidence is None or evidence.isolation is not Isolation.PROVEN:
                continue
            age = now - evidence.at
            if age >= self._max_age:
                self.forget(node, handler, now)
            elif age >= 0.75 * self._max_age:
                self._renewal_due.add((node, handler))
                heapq.heappush(self._due, (evidence.at + self._max_age, node, handler))
            else:
                # A newer one has its own time.
                continue
            found.append((node, handler))
        return found

    def is_renewal_due(self, node: str, handler: str) -> bool:
        """Whether a proof is to be asked for again, though it still holds."""
        return (node, handler) in self._renewal_due

    def is_unanswered(self, node: str, handler: str) -> bool:
        """Whether probes have got no answer for long."""
        return (node, handler) in self._unanswered

    def has_positive_control(self, node: NodeFacts) -> bool:
        """Whether a container without isolation was seen to read the node's own boot id."""
        control = self.current(node, CONTROL)
        return control is not None and control.isolation is Isolation.NOT_PROVEN

    def current(self, node: NodeFacts, handler: str) -> Evidence | None:
        """What is known of a handler on the node as it is now; None if nothing is."""
        records = self._nodes.get(node.name)
        evidence = records.get(handler) if records is not None else None
        return evidence if evidence is not None and evidence.software.is_on(node) else None

    def has_superseded(self, node: str) -> bool:
        """Whether sandboxes of one handler on the node may stand differently."""
        return node in self._superseded

    def evidence_for(self, pod: Pod, node: NodeFacts, handler: str) -> Evidence | None:
        """What is known of the sandbox of a pod on the node, by when it was started.

        Args:
            pod: on this node.
            node: as it is now.
            handler: what the pod's class stood for, or the positive control.
        """
        current = self.current(node, handler)
        former = self._superseded.get(node.name, {}).get(handler, ())
        refuting = refutation(handler)
        if not former or (current is not None and current.isolation is refuting):
            return current
        started = started_at(pod)
        for known in former:
            refutes = known.evidence.isolation is refuting
            holds = started < known.before if started is not None else refutes
            if holds and known.evidence.software.machine == node.machine:
                return known.evidence
        return current

    def observe_node(self, name: str, node: NodeFacts | None, now: float) -> None:
        """Take what is about other software than the node's of now for former; None: it is gone.

        Args:
            name: the node's.
            node: as it is now.
            now: epoch seconds.
        """
        records = self._nodes.pop(name, None) or {}
        if node is None:
            left: dict[str, Evidence] = {}
            self._seen_since.pop(name, None)
            self._superseded.pop(name, None)
        else:
            since = self._seen_since.setdefault(name, now)
            left = {h: known for h, known in records.items() if known.software.is_on(node)}
            stood_until = now - UNSEEN_CHANGE_SECONDS
            for handler in records.keys() - left.keys():
                old = records[handler]
                # What changed while nobody watched may have done so right after the answer.
                until = max(old.at, stood_until) if since <= stood_until else old.at
                self._retire(name, handler, old, until=until, now=now)
            self._drop_former_of_others(name, node.machine)
        for handler in records.keys() - left.keys():
            self._renewal_due.discard((name, handler))
            self._answered((name, handler))
        if left:
            self._nodes[name] = left

    def _retire(self, node: str, handler: str, old: Evidence, *, until: float, now: float) -> None:
        """Other software runs from now on; the former did for certain until then."""
        if old.isolation is Isolation.UNAVAILABLE:
            return
        if old.isolation is refutation(handler):
            self._retire_refutation(node, handler, old, now)
            return
        known = self._superseded.get(node, {}).get(handler, ())
        refuting = [one for one in known if one.evidence.isolation is refutation(handler)]
        # A proof that is older still speaks of no other sandboxes than this one.
        self._keep_former(node, handler, (*refuting, SupersededEvidence(until, old)))

    def _retire_refutation(self, node: str, handler: str, old: Evidence, now: float) -> None:
        """Whatever was started until now was not isolated, and never will be."""
        if old.isolation is refutation(handler):
            self._keep_former(node, handler, (SupersededEvidence(now, old),))

    def _keep_former(self, node: str, handler: str, former: tuple[SupersededEvidence, ...]) -> None:
        known = self._superseded.setdefault(node, {})
        known.pop(handler, None)
        if former:
            known[handler] = former
        if not known:
            del self._superseded[node]

    def _drop_former_of_others(self, node: str, machine: Machine) -> None:
        known = self._superseded.pop(node, {})
        left = {
            handler: former
            for handler, former in known.items()
            if former[0].evidence.software.machine == machine
        }
        if left:
            self._superseded[node] = left

    def forget(self, node: str, handler: str, now: float) -> None:
        """Ask again, as after a quarantine; what was refuted stays so."""
        self._renewal_due.discard((node, handler))
        self._answered((node, handler))
        old = self._nodes[node].pop(handler, None) if node in self._nodes else None
        if old is not None:
            self._retire_refutation(node, handler, old, now)

    def summaries(
        self, handler: str, include_node: Callable[[str], bool] = lambda node: True
    ) -> list[EvidenceSummary]:
        """Sum up by kind of node, what is worst first, bounded.

        Args:
            handler: the runtime.
            include_node: whether a node, by name, is of interest.
        """
        groups: defaultdict[_KindKey, list[tuple[str, Evidence]]] = defaultdict(list)
        for node, records in self._nodes.items():
            if (seen := records.get(handler)) is not None and include_node(node):
                software = seen.software
                key = software.container_runtime, software.kubelet, seen.isolation, seen.kernel
                groups[key].append((node, seen))
        kinds = []
        for key, members in groups.items():
            example, seen = min(members, key=lambda member: member[0])
            newest = max(evidence.at for _, evidence in members)
            kinds.append(EvidenceSummary(*key, len(members), example, newest, seen.message))
        kinds.sort(key=lambda k: (_WORST_FIRST.index(k.isolation), -k.nodes, k.example))
        return kinds[:MAX_KINDS]

    def dump(self, node: str) -> dict[str, Any]:
        """What is known of a node, as plain JSON; a question without an answer is not."""
        return {
            handler: msgspec.to_builtins(evidence, order="deterministic")
            for handler, evidence in sorted(self._nodes.get(node, {}).items())
            if evidence.isolation is not Isolation.UNAVAILABLE
        }

    def dump_former(self, node: str) -> dict[str, Any]:
        """What is left of former answers about a node, as plain JSON."""
        return {
            handler: msgspec.to_builtins(former, order="deterministic")
            for handler, former in sorted(self._superseded.get(node, {}).items())
        }

    def load(self, node: str, data: Mapping[str, Any], former: Mapping[str, Any]) -> None:
        """Take in what was dumped, where nothing is known yet; what does not fit is left out."""
        for handler, written in data.items():
            with contextlib.suppress(msgspec.ValidationError):
                evidence = msgspec.convert(written, Evidence)
                if handler not in self._nodes[node]:
                    self._keep(node, handler, evidence)
        for handler, written in former.items():
            with contextlib.suppress(msgspec.ValidationError):
                known = msgspec.convert(written, tuple[SupersededEvidence, ...])
                if known and handler not in self._superseded.get(node, {}):
                    self._keep_former(node, handler, known)
