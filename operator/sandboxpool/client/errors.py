"""What can go wrong, each with what to do about it.

An error that has its cause in the pool carries the reason of the operator's own vocabulary, as it
stands in conditions, events and metrics, and the operator's own message.
"""

from sandboxpool.api.reasons import Reason


class SandboxPoolError(Exception):
    """Base of all errors of the client.

    Attributes:
        message: The cause and the cure.
        reason: One word: of the operator's vocabulary where the operator said so, of Kubernetes'
            where the API server did, else empty.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason


class ConfigurationError(SandboxPoolError):
    """There is no usable kubeconfig and no service account."""


# The API server.


class ConnectionLost(SandboxPoolError, ConnectionError):
    """The API server cannot be reached, or the connection broke.

    What was asked for may have been done all the same.
    """


class ApiError(SandboxPoolError):
    """The API server refused a request.

    Attributes:
        status: The HTTP status.
    """

    def __init__(self, message: str, reason: str = "", status: int = 0) -> None:
        super().__init__(message, reason)
        self.status = status


class AccessDenied(ApiError):
    """The rights do not allow a request.

    Attributes:
        verb: The verb that is missing, as a Role has it.
        resource: The resource, with its group and subresource: `sandboxclaims.sandboxpool.io`,
            `pods/exec`.
        namespace: Where.
    """

    def __init__(self, message: str, *, verb: str, resource: str, namespace: str) -> None:
        super().__init__(message, "Forbidden", 403)
        self.verb = verb
        self.resource = resource
        self.namespace = namespace


class NotInstalled(ApiError):
    """The cluster does not know SandboxClaims."""


# Claims.


class ClaimError(SandboxPoolError):
    """A claim got no sandbox.

    Attributes:
        claim: The claim's name; empty where there is none.
    """

    def __init__(self, message: str, reason: str = "", claim: str = "") -> None:
        super().__init__(message, reason)
        self.claim = claim


class PoolNotFound(ClaimError):
    """The namespace has no pool of that name."""


class NoWarmSandbox(ClaimError):
    """The pool is empty or full, and the claim does not wait (`on_empty`)."""


class BindTimeout(ClaimError, TimeoutError):
    """No sandbox became ready for the claim in time."""


class RuntimeMismatch(ClaimError):
    """The pool has another runtime, or wants less proof, than the claim asserts."""


class ClaimRefused(ClaimError):
    """The pool does not allow what the claim asks for."""


class ClaimConflict(ClaimError):
    """There is a claim of that name already, and it is another one."""


# Sandboxes.


class SandboxError(SandboxPoolError):
    """Something went wrong with a sandbox that a claim had."""


class SandboxLost(SandboxError):
    """The sandbox is no more; whatever was in it is gone."""


class SandboxExpired(SandboxLost):
    """The sandbox has reached the end of its time to live."""


class CommandError(SandboxError):
    """A command did not do what was asked.

    Attributes:
        stdout: What it had written, as far as it was kept.
        stderr: The same of its standard error.
    """

    def __init__(
        self, message: str, reason: str = "", *, stdout: bytes = b"", stderr: bytes = b""
    ) -> None:
        super().__init__(message, reason)
        self.stdout = stdout
        self.stderr = stderr


class CommandNotStarted(CommandError):
    """The runtime could not start the command: mostly, the image has no such program."""


class CommandTimeout(CommandError, TimeoutError):
    """The command took longer than the timeout."""


class CommandFailed(CommandError):
    """The command ended with another exit code than 0, where that was to be an error.

    Attributes:
        exit_code: The exit code.
    """

    def __init__(self, message: str, exit_code: int, *, stdout: bytes, stderr: bytes) -> None:
        super().__init__(message, "NonZeroExitCode", stdout=stdout, stderr=stderr)
        self.exit_code = exit_code


class OutputLimitExceeded(CommandError):
    """The command wrote more than the limit."""


class FileError(SandboxError, OSError):
    """A file in the sandbox cannot be read or written; the message is the sandbox's own."""


class FilesUnsupported(SandboxError):
    """The image has neither what `tar` does nor a shell."""


class SecretsUnsupported(SandboxError):
    """The sandbox has no memory volume for secrets."""


class ConfigNotVisible(SandboxError):
    """The sandbox does not show the claim's configuration."""


class ForwardError(SandboxError):
    """A port of the sandbox cannot be reached."""


_OF_CLAIMS: dict[str, type[ClaimError]] = {
    Reason.POOL_NOT_FOUND: PoolNotFound,
    Reason.NO_WARM_SANDBOX: NoWarmSandbox,
    Reason.MAX_SANDBOXES_REACHED: NoWarmSandbox,
    Reason.MAX_STARTING_REACHED: NoWarmSandbox,
    Reason.BIND_TIMEOUT: BindTimeout,
    Reason.RUNTIME_CLASS_MISMATCH: RuntimeMismatch,
    Reason.ISOLATION_PROOF_MISMATCH: RuntimeMismatch,
    Reason.METADATA_NOT_ALLOWED: ClaimRefused,
    Reason.CONFIG_NOT_MOUNTED: ClaimRefused,
}


def claim_error_for(reason: str) -> type[ClaimError]:
    """Return the class for the reason of a claim that failed."""
    return _OF_CLAIMS.get(reason, ClaimError)
