"""What to add to a RuntimeClass so that the scheduler itself finds the nodes that serve it."""

import re
from collections import Counter
from collections.abc import Iterable

from sandboxpool.api.names import HOSTNAME_LABEL
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
    found: frozenset[Label] | None = None
    names: set[str] = set()
    seen = 0
    for node in serving:
        seen += 1
        found = node.labels if found is None else found & node.labels
        names |= {node.name, node.name.partition(".")[0]}
    candidates = {
        (key, value) for key, value in found or () if key != HOSTNAME_LABEL and value not in names
    }
    # What one serving node has may be its own; what several share is not.
    alone = seen == 1
    elsewhere: dict[str, Counter[str]] = {key: Counter() for key, _ in candidates}
    nothing_to_separate = True
    for node in others:
        nothing_to_separate = False
        candidates -= node.labels
        if alone:
            for key, value in node.labels:
                if key in elsewhere:
                    elsewhere[key][value] += 1
    if nothing_to_separate:
        return None
    if alone:
        candidates = {label for label in candidates if not _is_id(label[0], elsewhere[label[0]])}
    return min(candidates, key=_rank, default=None)


def _is_id(key: str, elsewhere: Counter[str]) -> bool:
    """Whether a key names one machine: by its last word, or by never having a value twice."""
    last_word = re.split(r"[-_./]", key.lower())[-1]
    return last_word in _ID_WORDS or len(elsewhere) == elsewhere.total() > 1


def _rank(label: Label) -> tuple[bool, bool, int, Label]:
    key, _ = label
    speaks = any(word in key.lower() for word in _SPEAKING)
    domain = key.rpartition("/")[0]
    coincidental = any(domain == d or domain.endswith(f".{d}") for d in _COINCIDENTAL)
    return not speaks, coincidental, len(key), label
