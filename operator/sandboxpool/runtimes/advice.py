"""What to add to a RuntimeClass so that the scheduler itself finds the nodes that serve it."""

import re
from collections import Counter
from collections.abc import Iterable

from sandboxpool.api.names import EXCLUSION_PREFIX, HOSTNAME_LABEL
from sandboxpool.runtimes.nodes import NodeFacts

Label = tuple[str, str]

# A label that speaks of the runtime is there because of it, so it will be on the next node too.
_SPEAKING = ("runtime", "kata", "gvisor", "runsc", "firecracker", "sandbox")
# Kubernetes' own labels (zone, architecture) tell nodes apart for other reasons: by coincidence.
_COINCIDENTAL = ("kubernetes.io", "k8s.io")
# The last word of a key whose value belongs to one machine.
_ID_WORDS = frozenset({"id", "uid", "uuid", "hostname", "ip", "serial"})


def separating_label(serving: Iterable[NodeFacts], others: Iterable[NodeFacts]) -> Label | None:
    """Find a label that every serving node has and none of the others.

    Labels that name one machine do not count: the next node would not have them.

    Args:
        serving: the nodes that serve the handler.
        others: the nodes to keep away from.

    Returns:
        Key and value for ``scheduling.nodeSelector``; None if there is no such label, or nothing
        to separate. The same nodes give the same answer, in whatever order they come.
    """
    serving, others = list(serving), list(others)
    if not serving or not others:
        return None
    shared = set(serving[0].labels)
    for node in serving[1:]:
        # Mostly nothing is lost, and to see that is cheaper than to make a set of what is left.
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
        # What several nodes share belongs to none; what one has may be its own.
        candidates -= _ids(candidates, serving[0], others)
    return min(candidates, key=_rank, default=None)


def cure(label: Label | None) -> str:
    """What to do about nodes that do not serve the handler, as the end of a sentence.

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
        "exactly the serving nodes carry"
    )


def exclusion_pending_message(nodes: int) -> str:
    """Why sandboxes are not made yet, as the end of a sentence that begins with them."""
    return (
        f"wait for a moment: {nodes} nodes that they must keep away from are yet to be labelled so"
    )


def hostnames_cost(hostnames: int) -> str:
    """What it costs that pods name hostnames, and what to do about it."""
    return (
        f"the operator may not label nodes, so that new sandboxes name the {hostnames} hostnames "
        "that they keep away from: an autoscaler such as Karpenter makes no node for such a pod, "
        "and nodes whose kubernetes.io/hostname is missing or not their own are not told apart. "
        "Give the operator the right to patch nodes (nodes.exclusionLabels of the chart)"
    )


def _ids(labels: Iterable[Label], node: NodeFacts, others: Iterable[NodeFacts]) -> set[Label]:
    """Those of a node's labels that name this one machine."""
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
        # Never the same value twice.
        or len(elsewhere[key]) == elsewhere[key].total() > 1
    }


def _rank(label: Label) -> tuple[bool, bool, int, Label]:
    key, _ = label
    speaks = any(word in key.lower() for word in _SPEAKING)
    domain = key.rpartition("/")[0]
    coincidental = any(domain == d or domain.endswith(f".{d}") for d in _COINCIDENTAL)
    return not speaks, coincidental, len(key), label
