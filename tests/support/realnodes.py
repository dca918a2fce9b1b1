"""Pools that real kubelets can run, and what the nodes of the local cluster say and see."""

from __future__ import annotations

from typing import Any

import yaml

from localcluster import kindcluster, nodes, paths
from localcluster.containerd import BUILT_IN
from localcluster.nodeimage import SAMPLE_IMAGE
from support import objects
from support.api import Api, is_true

Object = dict[str, Any]

# Classes that no test changes; the session makes them.
GVISOR = "e2e-gvisor"
RUNC = "e2e-runc"
CLASSES = {GVISOR: "runsc", RUNC: "runc"}

WITH_GVISOR = "sandboxpool-worker"
WITHOUT_GVISOR = "sandboxpool-worker2"
WITH_BROKEN_KATA = "sandboxpool-worker3"
GVISOR_NODES = {WITH_GVISOR, WITH_BROKEN_KATA}


def template(image: str = SAMPLE_IMAGE, **pod_spec: Any) -> Object:
    """A pod that starts anywhere in the local cluster and ends at once when told to."""
    return objects.pod_template(
        image,
        **{
            # There is no DNS; without this each sync of a pod emits an event.
            "dnsPolicy": "Default",
            # Its process ignores SIGTERM, as the first of a container does unless it asks for it.
            "terminationGracePeriodSeconds": 1,
            **pod_spec,
        },
    )


def pool(
    name: str = "pool",
    runtime_class: str = GVISOR,
    replicas: int = 1,
    *,
    pod: Object | None = None,
    **spec: Any,
) -> Object:
    """A SandboxPool of real pods."""
    made = objects.pool(name, runtime_class, replicas, template=pod or template(), **spec)
    if runtime_class != RUNC and "isolationProof" not in spec:
        # What shares the node's kernel on purpose wants no proof of the contrary.
        del made["spec"]["isolationProof"]
    return made


def run_in(pod: Object, *command: str) -> str:
    """What a command prints that is run in a pod."""
    metadata = pod["metadata"]
    where = ("exec", "-n", metadata["namespace"], metadata["name"], "--")
    return kindcluster.kubectl(*where, *command)


def proc_version(pod: Object) -> str:
    """The kernel that a pod sees."""
    return run_in(pod, "cat", "/proc/version")


def node_kernel(api: Api, node: str) -> str:
    """The version of a node's own kernel."""
    return str(api.get("Node", node)["status"]["nodeInfo"]["kernelVersion"])


def cordon(api: Api, node: str, unschedulable: bool = True) -> None:
    """Does what `kubectl cordon` does, or undoes it."""
    api.patch_spec("Node", node, unschedulable=unschedulable or None)


def remove_samples(api: Api) -> None:
    """Removes the pools and claims of a demo: what is seen of their runtimes is seen by all."""
    for file in sorted((paths.REPOSITORY / "samples").glob("*.yaml")):
        for sample in yaml.safe_load_all(file.read_text()):
            if sample["kind"] in ("SandboxPool", "SandboxClaim"):
                api.delete(sample["kind"], sample["metadata"]["name"], "default")


def restore_nodes(api: Api) -> None:
    """Makes all nodes what `localcluster up` made them; cheap where nothing was changed."""
    for name in kindcluster.node_names():
        node = api.get("Node", name)
        if node["spec"].get("unschedulable"):
            cordon(api, name, unschedulable=False)
        wanted = set(kindcluster.HANDLERS[kindcluster.role_of(name)])
        said = kindcluster.reported_handlers(node) - BUILT_IN
        if said != wanted or not is_true(node, "Ready"):
            nodes.restore(name)
        else:
            nodes.restore_shims(name)
