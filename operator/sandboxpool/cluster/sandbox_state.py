"""The states of a sandbox."""

from enum import Enum


class SandboxState(Enum):
    """The state of a pod in its pool; the states are mutually exclusive."""

    STARTING = "starting"
    WARM = "warm"
    # The pod was ready and is not now, though its node is ready: not allocatable until it is again.
    UNREADY = "unready"
    # Ready, but without the proof of isolation that the pool requires: not allocatable yet.
    UNPROVEN = "unproven"
    # The node is not ready, cordoned, being removed, quarantined, or does not serve the handler, or
    # the runtime does not isolate there: not allocatable.
    STRANDED = "stranded"
    FAILED = "failed"
    # Starting for one claim.
    COLD = "cold"
    CLAIMED = "claimed"
    # Claimed and kept for its logs: its containers have ended and use no resources.
    ENDED = "ended"
    STOPPING = "stopping"
