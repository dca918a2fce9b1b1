"""Builds the pods of a pool, and the metadata of claimed pods. Pure."""

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sandboxpool.api import names
from sandboxpool.api.v1alpha1 import IsolationProof
from sandboxpool.cluster.pool import Pool
from sandboxpool.runtimes.exclusion import by_label, hostname_requirements, require_node_affinity
from sandboxpool.runtimes.node_constraints import wants_user_namespace
from sandboxpool.runtimes.probe import ProbeImage, sandbox_probe_container
from sandboxpool.runtimes.resolve import Runtime
from sandboxpool.runtimes.verdict import Verdict
from sandboxpool.sandboxes.config_volume import add_config_volume

# Untrusted code gets no service account token and no service environment variables. A restarted
# container would have lost its state, and might run under another handler.
DEFAULTS: dict[str, Any] = {
    "automountServiceAccountToken": False,
    "enableServiceLinks": False,
    "restartPolicy": "Never",
}


@dataclass(frozen=True, slots=True)
class ClaimRef:
    """The claim that a pod is created for or bound to."""

    name: str
    uid: str
    labels: tuple[tuple[str, str], ...] = ()
    annotations: tuple[tuple[str, str], ...] = ()
    config: str = ""
    """The claim's configuration as JSON; empty where it has none."""


def pod_name(pool_name: str, seed: str) -> str:
    """Name a pod. The same seed gives the same name, so a retried create adds no second pod."""
    return f"{pool_name}-{hashlib.sha256(seed.encode()).hexdigest()[: names.POD_SUFFIX_LENGTH]}"


# Sandboxes are Linux pods, and an untainted Windows node would otherwise be schedulable.
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
        runtime: the runtime of the pool's class.
        verdict: says whether nodes are excluded by label or by hostname, and the hostnames.
        name: the pod's name.
        probe: the probe that proves isolation, where the pool requires that of each sandbox.
        claim: the claim that owns the pod, for a cold start; otherwise the pool owns it.
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
    if pool.config_path:
        add_config_volume(spec, pool.config_path)
    away = (
        hostname_requirements(verdict.excluded)
        if verdict.by_hostname
        else by_label(
            runtime.handler,
            pool.uid,
            proof_wanted=pool.proof is not IsolationProof.NONE,
            user_namespaces=wants_user_namespace(spec),
        )
    )
    spec["affinity"] = require_node_affinity(spec.get("affinity"), [NOT_WINDOWS, *away])
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
        names.ANNOTATION_SAFE_TO_EVICT: "true",
    }
    if pool.config_path:
        annotations[names.ANNOTATION_CONFIG_PATH] = pool.config_path
    owner = controller_reference(names.POOL_KIND, pool.name, pool.uid)
    if claim is not None:
        given = claim_metadata(claim, labels=labels, annotations=annotations)
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


def claim_metadata(
    claim: ClaimRef,
    *,
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The metadata that makes a pod the claim's: labels, annotations, and the only owner.

    Args:
        claim: the claim.
        labels: the pod's labels. A claim replaces none of them, because policies select by them; a
            warm pod may have them from an older revision of the template.
        annotations: the pod's annotations, which a claim does not replace either.
    """
    return {
        "labels": {
            **{key: value for key, value in claim.labels if key not in (labels or {})},
            names.LABEL_CLAIM: claim.name,
            names.LABEL_CLAIM_UID: claim.uid,
        },
        "annotations": {
            **{key: value for key, value in claim.annotations if key not in (annotations or {})},
            # For the Cluster Autoscaler and for Karpenter.
            names.ANNOTATION_SAFE_TO_EVICT: "false",
            names.ANNOTATION_DO_NOT_DISRUPT: "true",
            **({names.ANNOTATION_CONFIG: claim.config} if claim.config else {}),
        },
        "ownerReferences": [controller_reference(names.CLAIM_KIND, claim.name, claim.uid)],
    }


def controller_reference(kind: str, name: str, uid: str) -> dict[str, Any]:
    """A controller owner reference that does not block the owner's deletion."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": kind,
        "name": name,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }
