"""Whether a SandboxPool's manifest would work here: from what the cluster says to findings."""

from collections.abc import Sequence

from sandboxpool.api import names
from sandboxpool.cli import reading
from sandboxpool.cli.cluster import Object
from sandboxpool.cli.findings import Finding, Severity
from sandboxpool.cli.runtimes import handlers_of


def problem_of(documents: Sequence[object]) -> str:
    """Return why a file is no SandboxPool's manifest; empty if it is one."""
    if len(documents) != 1:
        return f"it has {len(documents)} documents: write one SandboxPool"
    if not isinstance(obj := documents[0], dict):
        return "it has no object: write one SandboxPool"
    if obj.get("kind") != names.POOL_KIND or obj.get("apiVersion") != names.API_VERSION:
        return f"it is no {names.POOL_KIND} of {names.API_VERSION}"
    return "" if reading.name(obj) else "it has no metadata.name"


def pod_of(pool: Object) -> Object:
    """Return the pod of a pool's template, for a dry run.

    The operator adds labels, tolerations and constraints of nodes, which an admission policy of
    the cluster may judge otherwise.
    """
    template = reading.mapping(pool, "spec", "template")
    metadata = reading.mapping(template, "metadata")
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": f"{reading.name(pool)}-",
            "labels": reading.mapping(metadata, "labels"),
            "annotations": reading.mapping(metadata, "annotations"),
        },
        "spec": {
            **reading.mapping(template, "spec"),
            "runtimeClassName": reading.text(pool, "spec", "runtimeClassName"),
        },
    }


def check_runtime(
    pool: Object, classes: Sequence[Object] | None, nodes: Sequence[Object] | None
) -> list[Finding]:
    """Return what speaks against the pool's runtime.

    Args:
        pool: The manifest.
        classes: All RuntimeClasses; None where they could not be read.
        nodes: All nodes; None where they could not be read.
    """
    wanted = reading.text(pool, "spec", "runtimeClassName")
    if classes is None:
        return []
    found = next((one for one in classes if reading.name(one) == wanted), None)
    if found is None:
        return [
            Finding(
                Severity.ERROR,
                "ClassMissing",
                "spec.runtimeClassName",
                f"there is no RuntimeClass {wanted!r}",
                f"create it, or use one of: {', '.join(map(reading.name, classes)) or '<none>'}",
            )
        ]
    handler = reading.text(found, "handler")
    listed = [handlers_of(node) for node in nodes or ()]
    if listed and not any(one is None or handler in one for one in listed):
        return [
            Finding(
                Severity.ERROR,
                "ClassWithoutNodes",
                "spec.runtimeClassName",
                f"no node reports handler {handler!r} of RuntimeClass {wanted!r}",
                "configure the handler in the container runtime of a node, or use another class",
            )
        ]
    return []


def refused(what: str, where: str, message: str) -> Finding:
    """Return that the API server refused a dry run."""
    return Finding(Severity.ERROR, what, where, message, "change the manifest as the message says")
