"""Whether a pod that the API server has made is what was sent, in all that we rely on. Pure.

Mutating admission may change whatever it likes. A pod without our labels is shown by no watch of
ours; one without our owner belongs to nobody; one of another class does not isolate.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from sandboxpool.api import names
from sandboxpool.api.core import OwnerReference
from sandboxpool.runtimes.diagnosis import truncate

_OURS = f"{names.GROUP}/"


class _Metadata(msgspec.Struct):
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    ownerReferences: list[OwnerReference] = []


class _Spec(msgspec.Struct):
    runtimeClassName: str = ""


class _Made(msgspec.Struct):
    metadata: _Metadata
    spec: _Spec


def forbidden_mutation(sent: Mapping[str, Any], answer: bytes) -> str:
    """Say what admission has changed that it must not; empty if there is nothing.

    Args:
        sent: the body of the POST, as `build_pod` builds it.
        answer: the answer to it, or to its dry run.

    Raises:
        msgspec.DecodeError: the answer is no pod. Also the other errors of unreadable bytes.
    """
    made = msgspec.json.decode(answer, type=_Made)
    metadata, found = sent["metadata"], made.metadata
    wrong = [
        *_differing("metadata.labels", metadata["labels"], found.labels),
        *_differing("metadata.annotations", metadata["annotations"], found.annotations),
    ]
    wanted = {owner["uid"] for owner in metadata["ownerReferences"]}
    if {owner.uid for owner in found.ownerReferences if owner.controller} != wanted:
        wrong.append("metadata.ownerReferences")
    if made.spec.runtimeClassName != sent["spec"]["runtimeClassName"]:
        wrong.append(
            f"spec.runtimeClassName ({sent['spec']['runtimeClassName']!r} was sent, "
            f"{made.spec.runtimeClassName!r} came back)"
        )
    if not wrong:
        return ""
    return truncate(
        f"an admission plugin changes what this pool's pods must keep: {', '.join(wrong)}: have "
        "it leave these fields of the operator's pods alone"
    )


def _differing(field: str, sent: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    ours = sorted(key for key in sent if key.startswith(_OURS) and found.get(key) != sent[key])
    return [f"{field}[{key}]" for key in ours]
