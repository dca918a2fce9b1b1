"""Whether a request that is not served yet waits for its pool or has failed."""

from dataclasses import dataclass

from sandboxpool.api.core import Condition
from sandboxpool.api.reasons import Reason
from sandboxpool.opensandbox.kinds import SandboxPool

# While a pool's Ready is False for one of these, nobody gets a sandbox until somebody changes
# something: the application is told at once. All other causes pass by themselves or with more
# capacity, so the application waits, for as long as its server lets it.
DEFECTS = frozenset(
    {
        Reason.RUNTIME_CLASS_NOT_FOUND,
        Reason.HANDLER_MISMATCH,
        Reason.NO_NODE_SERVES,
        Reason.ALL_NODES_QUARANTINED,
        Reason.HANDLER_REMOVED,
        Reason.ISOLATION_NOT_PROVEN,
        Reason.TEMPLATE_REJECTED,
        Reason.POD_ALTERED,
        Reason.POD_NAME_TOO_LONG,
        Reason.INVALID_OBJECT,
        Reason.HANDLER_NOT_CONFIGURED,
        Reason.SHIM_MISSING,
        Reason.OCI_RUNTIME_MISSING,
        Reason.RUNTIME_MISCONFIGURED,
        Reason.GUEST_IMAGE_MISSING,
        Reason.KVM_UNAVAILABLE,
        Reason.VSOCK_UNAVAILABLE,
        Reason.CGROUP_DRIVER_MISMATCH,
        Reason.SNAPSHOTTER_MISSING,
        Reason.SNAPSHOTTER_FAILED,
        Reason.VMM_START_FAILED,
        Reason.USER_NAMESPACES_UNSUPPORTED,
        Reason.VOLUME_MOUNT_FAILED,
        Reason.IMAGE_PULL_FAILED,
        Reason.CONTAINER_CONFIG_ERROR,
        Reason.CONTAINER_START_ERROR,
        Reason.CONTAINER_FAILED,
        Reason.LIFECYCLE_HOOK_FAILED,
    }
)


# How long a request waits in silence. A defect may be of a moment: a RuntimeClass may be replaced.
DEFECT_SECONDS = 0.7
# The last warm sandboxes may have been bound to these very requests.
NOT_READY_SECONDS = 2.0
# A pool with warm sandboxes serves the request as soon as operator and API server come to it; to
# report a lack of capacity meanwhile would be wrong, and one more write of each request in a burst.
READY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a waiting request can expect.

    Attributes:
        defect: nobody gets a sandbox until somebody changes something.
        reason: the cause in CamelCase.
        message: the cause for people.
        patience: seconds for which a missing sandbox is not reported.
    """

    defect: bool
    reason: str
    message: str
    patience: float


def outlook_of(name: str, pool: SandboxPool | None) -> Outlook:
    """Tell what requests to the pool of this name can expect."""
    if pool is None or pool.metadata.deletionTimestamp is not None:
        message = f"SandboxPool {name!r} does not exist in this namespace"
        return Outlook(True, Reason.POOL_NOT_FOUND, message, DEFECT_SECONDS)
    ready = pool.ready
    if ready is None:
        message = f"SandboxPool {name!r} has no status yet"
        return Outlook(False, Reason.FILLING, message, NOT_READY_SECONDS)
    if ready.status == "True":
        # It serves others; this request's turn has not come.
        message = _of(pool, "Warm") or "all warm sandboxes are taken"
        return Outlook(False, Reason.FILLING, message, READY_SECONDS)
    defect = ready.status == "False" and ready.reason in DEFECTS
    verb = "cannot serve" if defect else "has no sandbox for this request"
    message = f"SandboxPool {name!r} {verb}: {ready.reason}: {ready.message}"
    return Outlook(defect, ready.reason, message, DEFECT_SECONDS if defect else NOT_READY_SECONDS)


def _of(pool: SandboxPool, type_: str) -> str:
    found: Condition | None = next((c for c in pool.status.conditions if c.type == type_), None)
    return found.message if found is not None else ""
