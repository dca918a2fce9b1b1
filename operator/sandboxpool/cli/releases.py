"""What the Deployment of an operator says about its release."""

from collections.abc import Sequence

from sandboxpool.api import names
from sandboxpool.cli import reading
from sandboxpool.cli.cluster import Object


def watched_namespaces(deployment: Object) -> frozenset[str]:
    """Return the namespaces that the operator is limited to; empty for all."""
    return frozenset(filter(None, _variable(deployment, "WATCH_NAMESPACES").split(",")))


def namespaces_for_opensandbox(deployment: Object) -> frozenset[str]:
    """Return the namespaces that the bridge to OpenSandbox serves."""
    return frozenset(filter(None, _variable(deployment, "OPENSANDBOX_NAMESPACES").split(",")))


def lease_name(deployment: Object) -> str:
    """Return the name of the operator's Lease."""
    return _variable(deployment, "RELEASE") or names.DEFAULT_RELEASE


def meeting(deployments: Sequence[Object]) -> list[Object]:
    """Return the operators that process a namespace which another one processes, too."""
    return [
        one
        for one in deployments
        if any(other is not one and _meet(one, other) for other in deployments)
    ]


def _meet(one: Object, other: Object) -> bool:
    ours, theirs = watched_namespaces(one), watched_namespaces(other)
    return not ours or not theirs or not ours.isdisjoint(theirs)


def _variable(deployment: Object, name: str) -> str:
    for container in reading.objects(deployment, "spec", "template", "spec", "containers"):
        for variable in reading.objects(container, "env"):
            if reading.text(variable, "name") == f"SANDBOXPOOL_{name}":
                return reading.text(variable, "value")
    return ""
