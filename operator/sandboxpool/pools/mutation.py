"""Checks that mutating admission left the fields alone that the operator relies on. Pure.

A pod without the operator's labels is not in the watch; a pod without its owner reference belongs
to no pool; a pod of another RuntimeClass may not be isolated.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from sandboxpool.api import names
from sandboxpool.api.core import OwnerReference
from sandboxpool.runtimes.diagnosis import truncate

_PREFIX = f"{names.GROUP}/"


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
    """Describe what admission changed that it must not change; empty if there is nothing.

    Args:
        sent: the body of the POST, as `build_pod` builds it.
        answer: the response to it, or to its dry run.

    Raises:
        msgspec.DecodeError: the response is not a pod; also the other errors of `UNREADABLE`.
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
        f"a mutating admission plugin changes {', '.join(wrong)} of this pool's pods: configure it "
        "to leave these fields of the operator's pods alone"
    )


def _differing(field: str, sent: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    own = sorted(key for key in sent if key.startswith(_PREFIX) and found.get(key) != sent[key])
    return [f"{field}[{key}]" for key in own]
