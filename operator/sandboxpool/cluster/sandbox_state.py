"""The states of a sandbox."""

from enum import Enum


class SandboxState(Enum):
    """Where a pod stands in its pool; the states exclude each other."""

    STARTING = "starting"
    WARM = "warm"
    # It was ready and is not now, though its node is well: not handed out before it is again.
    UNREADY = "unready"
    # Ready, but the proof of isolation that the pool wants is not there yet: not handed out.
    UNPROVEN = "unproven"
    # Its node is lost, cordoned, leaving, quarantined, or no longer serves the handler, or the
    # runtime does not isolate there: never handed out.
    STRANDED = "stranded"
    FAILED = "failed"
    # Being started for one claim.
    COLD = "cold"
    CLAIMED = "claimed"
    # A claim's, kept for its logs: its containers have ended, and it takes no room.
    ENDED = "ended"
    STOPPING = "stopping"
