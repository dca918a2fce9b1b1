"""Recommends changes to a RuntimeClass with which the scheduler itself finds the serving nodes."""

import re
from collections import Counter
from collections.abc import Iterable

from sandboxpool.api.names import EXCLUSION_PREFIX, HOSTNAME_LABEL
from sandboxpool.runtimes.nodes import NodeFacts

Label = tuple[str, str]

# A label that names the runtime was set because of it, so new serving nodes will have it too.
_RUNTIME_WORDS = ("runtime", "kata", "gvisor", "runsc", "firecracker", "sandbox")
# Kubernetes' own labels (zone, architecture) separate the serving nodes only by coincidence.
_KUBERNETES_DOMAINS = ("kubernetes.io", "k8s.io")
# The last word of a key whose value identifies one machine.
_ID_WORDS = frozenset({"id", "uid", "uuid", "hostname", "ip", "serial"})


def separating_label(serving: Iterable[NodeFacts], others: Iterable[NodeFacts]) -> Label | None:
    """Find a label that every serving node has and that none of the other nodes has.

    Labels that identify one machine do not count: a new node would not have them.

    Args:
        serving: the nodes that serve the handler.
        others: the nodes that do not.

    Returns:
        Key and value for ``scheduling.nodeSelector``; None if there is no such label, or nothing
        to separate. The result does not depend on the order of the nodes.
    """
    serving, others = list(serving), list(others)
    if not serving or not others:
        return None
    shared = set(serving[0].labels)
    for node in serving[1:]:
        # Usually nothing is removed, and the subset test is cheaper than a new set.
        if not shared <= node.labels:
            shared &= node.labels
    for node in others:
        shared -= node.labels
    candidates = {
        label
        for label in shared
        if label[0] != HOSTNAME_LABEL and not label[0].startswith(EXCLUSION_PREFIX)
    }
    if len(serving) == 1:
        # A label that several nodes share identifies none of them; that of a single node may.
        candidates -= _machine_labels(candidates, serving[0], others)
    return min(candidates, key=_rank, default=None)


def cure(label: Label | None) -> str:
    """Say what to do about nodes that do not serve the handler, as the end of a sentence.

    Args:
        label: the label that separates the serving nodes; None if there is none.
    """
    if label is None:
        return (
            "label the nodes that serve it, and set scheduling.nodeSelector of the RuntimeClass "
            "to that label"
        )
    key, value = label
    return (
        f"set scheduling.nodeSelector of the RuntimeClass to {{{key}: {value!r}}}, a label that "
        "exactly the serving nodes have"
    )


def exclusion_pending_message(nodes: int) -> str:
    """Say why sandboxes are not created yet; the sentence begins with the sandboxes."""
    return (
        "wait until the operator has set the exclusion labels of "
        f"{nodes} nodes that must not run them"
    )


def hostnames_cost(hostnames: int) -> str:
    """Explain the drawbacks of exclusion by hostname, and how to avoid them."""
    return (
        "the operator is not allowed to label nodes, so the node affinity of new sandboxes lists "
        f"{hostnames} excluded hostnames: an autoscaler such as Karpenter adds no node for such a "
        "pod, and a node whose kubernetes.io/hostname label is missing or not unique cannot be "
        "excluded. Allow the operator to patch nodes (nodes.exclusionLabels of the chart)"
    )


def _machine_labels(
    labels: Iterable[Label], node: NodeFacts, others: Iterable[NodeFacts]
) -> set[Label]:
    """Return those labels of a node that identify this one machine."""
    elsewhere: dict[str, Counter[str]] = {key: Counter() for key, _ in labels}
    for other in others:
        for key, value in other.labels:
            if key in elsewhere:
                elsewhere[key][value] += 1
    return {
        (key, value)
        for key, value in labels
        if value in (node.name, node.name.partition(".")[0])
        or re.split(r"[-_./]", key.lower())[-1] in _ID_WORDS
        # No value occurs twice.
        or len(elsewhere[key]) == elsewhere[key].total() > 1
    }


def _rank(label: Label) -> tuple[bool, bool, int, Label]:
    key, _ = label
    names_runtime = any(word in key.lower() for word in _RUNTIME_WORDS)
    domain = key.rpartition("/")[0]
    coincidental = any(domain == d or domain.endswith(f".{d}") for d in _KUBERNETES_DOMAINS)
    return not names_runtime, coincidental, len(key), label
