"""The pods that a pool makes. Pure: a pool, a runtime and a name in, the body of a POST out."""

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sandboxpool.api import names
from sandboxpool.api.v1alpha1 import IsolationProof
from sandboxpool.pools.pool import Pool
from sandboxpool.runtimes.probe import ProbeImage, sandbox_probe_container
from sandboxpool.runtimes.resolve import Runtime
from sandboxpool.runtimes.verdict import Verdict

# A sandbox whose code is not trusted gets no token and no list of services; one that is
# restarted has lost its state, perhaps under another handler.
DEFAULTS: dict[str, Any] = {
    "automountServiceAccountToken": False,
    "enableServiceLinks": False,
    "restartPolicy": "Never",
}


@dataclass(frozen=True, slots=True)
class ClaimRef:
    """The claim that a pod is made for, or handed to."""

    name: str
    uid: str
    labels: tuple[tuple[str, str], ...] = ()
    annotations: tuple[tuple[str, str], ...] = ()


def pod_name(pool_name: str, seed: str) -> str:
    """Name a pod. The same seed gives the same name, so a repeated create cannot double it."""
    return f"{pool_name}-{hashlib.sha256(seed.encode()).hexdigest()[: names.POD_SUFFIX_LENGTH]}"


def fingerprint(excluded: Sequence[str]) -> str:
    """Short name for a set of excluded nodes; empty if there is none."""
    if not excluded:
        return ""
    return hashlib.sha256("\n".join(excluded).encode()).hexdigest()[:10]


# Sandboxes are Linux pods, and nothing else keeps a scheduler from an untainted Windows node.
NOT_WINDOWS: Final[Mapping[str, Any]] = {
    "key": names.OS_LABEL,
    "operator": "NotIn",
    "values": ["windows"],
}


def build_pod(
    pool: Pool,
    runtime: Runtime,
    verdict: Verdict,
    name: str,
    *,
    probe: ProbeImage,
    claim: ClaimRef | None = None,
) -> dict[str, Any]:
    """Build a pod of the pool's template.

    Args:
        pool: the pool.
        runtime: the class that it resolved to.
        verdict: which nodes to keep away from, and perhaps which to prefer.
        name: the pod's name.
        probe: what proves the isolation of each sandbox, where the pool wants that.
        claim: the claim that it is made for, if it is a cold one; else the pool owns it.
    """
    metadata = pool.template.get("metadata") or {}
    spec = copy.deepcopy(dict(pool.template.get("spec") or {}))
    for key, value in DEFAULTS.items():
        spec.setdefault(key, value)
    spec["runtimeClassName"] = runtime.class_name
    if pool.proof is IsolationProof.PER_SANDBOX:
        resources = (spec.get("containers") or [{}])[0].get("resources")
        first = sandbox_probe_container(
            probe, resources=resources, pod_security_context=spec.get("securityContext")
        )
        spec["initContainers"] = [first, *(spec.get("initContainers") or [])]
    spec["affinity"] = require(spec.get("affinity"), NOT_WINDOWS)
    if verdict.excluded:
        spec["affinity"] = exclude(spec.get("affinity"), verdict.excluded)
    if verdict.preferred:
        spec["affinity"] = prefer(spec.get("affinity"), verdict.preferred)
    labels = {
        **(metadata.get("labels") or {}),
        names.LABEL_POOL: pool.name,
        names.LABEL_POOL_UID: pool.uid,
        names.LABEL_REVISION: pool.revision,
    }
    annotations = {
        **(metadata.get("annotations") or {}),
        names.ANNOTATION_RUNTIME_UID: runtime.uid,
        names.ANNOTATION_HANDLER: runtime.handler,
        names.ANNOTATION_EXCLUSION: fingerprint(verdict.excluded),
        names.ANNOTATION_SAFE_TO_EVICT: "true",
    }
    owner = owner_reference(names.POOL_KIND, pool.name, pool.uid)
    if claim is not None:
        given = handed_over(claim, labels=labels, annotations=annotations)
        labels.update(given["labels"])
        annotations.update(given["annotations"])
        annotations[names.ANNOTATION_SOURCE] = "Cold"
        owner = given["ownerReferences"][0]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": pool.namespace,
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": [owner],
        },
        "spec": spec,
    }


def handed_over(
    claim: ClaimRef,
    *,
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The metadata that makes a pod the claim's: labels, annotations, and the only owner.

    Args:
        claim: the claim.
        labels: what the pod has already. A claim adds to it and replaces nothing, for policies
            select by it; a warm pod may have it from an older template than the pool's.
        annotations: the same.
    """
    return {
        "labels": {
            **{key: value for key, value in claim.labels if key not in (labels or {})},
            names.LABEL_CLAIM: claim.name,
            names.LABEL_CLAIM_UID: claim.uid,
        },
        "annotations": {
            **{key: value for key, value in claim.annotations if key not in (annotations or {})},
            # The one means by which autoscalers can be told; each knows its own.
            names.ANNOTATION_SAFE_TO_EVICT: "false",
            names.ANNOTATION_DO_NOT_DISRUPT: "true",
        },
        "ownerReferences": [owner_reference(names.CLAIM_KIND, claim.name, claim.uid)],
    }


def owner_reference(kind: str, name: str, uid: str) -> dict[str, Any]:
    """A controlling owner that does not hold up its own deletion."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": kind,
        "name": name,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def exclude(affinity: dict[str, Any] | None, hostnames: Sequence[str]) -> dict[str, Any]:
    """Keep a pod away from nodes, on top of the affinity that it has.

    An exclusion, not an inclusion: nodes that an autoscaler may yet add stay possible.
    """
    return require(
        affinity, {"key": names.HOSTNAME_LABEL, "operator": "NotIn", "values": list(hostnames)}
    )


def require(affinity: dict[str, Any] | None, requirement: Mapping[str, Any]) -> dict[str, Any]:
    """Ask something more of a pod's node, on top of the affinity that it has.

    Terms of a node affinity are alternatives, so the requirement goes into each of them; one
    without requirements, which matches nothing, must not begin to match.
    """
    affinity = dict(affinity or {})
    node_affinity = dict(affinity.get("nodeAffinity") or {})
    required = node_affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    terms = [
        {**term, "matchExpressions": [*(term.get("matchExpressions") or []), dict(requirement)]}
        if term.get("matchExpressions") or term.get("matchFields") or not required
        else term
        for term in required.get("nodeSelectorTerms") or [{}]
    ]
    node_affinity["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": terms}
    affinity["nodeAffinity"] = node_affinity
    return affinity


def prefer(affinity: dict[str, Any] | None, hostnames: Sequence[str]) -> dict[str, Any]:
    """Have the scheduler look at some nodes first, before all that the affinity prefers itself."""
    affinity = dict(affinity or {})
    node_affinity = dict(affinity.get("nodeAffinity") or {})
    key = "preferredDuringSchedulingIgnoredDuringExecution"
    there = {"key": names.HOSTNAME_LABEL, "operator": "In", "values": list(hostnames)}
    first = {"weight": 100, "preference": {"matchExpressions": [there]}}
    node_affinity[key] = [first, *(node_affinity.get(key) or [])]
    affinity["nodeAffinity"] = node_affinity
    return affinity
