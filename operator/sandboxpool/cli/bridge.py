"""The checks of `doctor` on the bridge to OpenSandbox."""

from collections.abc import Iterator, Sequence

from sandboxpool.api.opensandbox import LABEL_OPENSANDBOX, OptIn
from sandboxpool.cli import reading, releases
from sandboxpool.cli.cluster import Object
from sandboxpool.cli.findings import Finding, Severity


def check(bridges: Sequence[Object], pools: Sequence[Object]) -> Iterator[Finding]:
    """Yield what keeps OpenSandbox from using the pools that are open to it.

    Args:
        bridges: the Deployments of bridges.
        pools: the SandboxPools.
    """
    for one in bridges:
        wanted = reading.number(one, "spec", "replicas")
        ready = reading.number(one, "status", "readyReplicas") or 0
        if wanted is not None and ready < wanted:
            yield Finding(
                Severity.WARNING if ready else Severity.ERROR,
                "OpenSandboxBridgeNotReady",
                f"deployment/{reading.namespaced_name(one)}",
                f"{ready} of {wanted} replicas are ready",
                "OpenSandbox's CRDs may be missing: kubectl -n"
                f" {reading.text(one, 'metadata', 'namespace')} logs"
                f" deployment/{reading.name(one)} shows why",
            )
    served = {
        namespace for one in bridges for namespace in releases.namespaces_for_opensandbox(one)
    }
    for pool in pools:
        value = reading.text(pool, "metadata", "labels", LABEL_OPENSANDBOX)
        if not value:
            continue
        where = f"sandboxpool/{reading.namespaced_name(pool)}"
        namespace = reading.text(pool, "metadata", "namespace")
        if value not in list(OptIn):
            yield Finding(
                Severity.ERROR,
                "OpenSandboxLabelInvalid",
                where,
                f"the label {LABEL_OPENSANDBOX} has the value {value!r}",
                f"use one of {', '.join(OptIn)}, or remove the label",
            )
        elif namespace not in served:
            yield Finding(
                Severity.ERROR,
                "OpenSandboxNotServed",
                where,
                f"the pool is open to OpenSandbox, but no bridge serves namespace {namespace}",
                "install the chart with opensandbox.enabled=true and the namespace in"
                " opensandbox.namespaces, or remove the label",
            )
