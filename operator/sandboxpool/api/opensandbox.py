"""What a SandboxPool says about OpenSandbox."""

from enum import StrEnum

from sandboxpool.api.names import GROUP

# On a SandboxPool: OpenSandbox may use it, and what runs in its sandboxes. On a SandboxClaim: the
# bridge has created it, for a BatchSandbox of the same name.
LABEL_OPENSANDBOX = f"{GROUP}/opensandbox"


class OptIn(StrEnum):
    """The values of the label."""

    EXECUTOR = "Executor"
    """OpenSandbox's task-executor runs in the sandboxes and starts execd with the task."""
    PRESTARTED = "Prestarted"
    """The template itself starts execd: no task is delivered."""
