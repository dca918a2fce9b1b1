"""Sandboxes for applications: claim one from a pool, run commands in it, move files, release it.

    with SandboxPools.from_config().claim("python", ttl=600) as sandbox:
        result = sandbox.run(["python", "-c", "print(6 * 7)"], timeout=30)

`AsyncSandboxPools` is the same over asyncio. Nothing of the operator is imported here, and the
official Kubernetes client only where it is asked for the configuration.
"""

from sandboxpool.client.aio import (
    AsyncCommand,
    AsyncForward,
    AsyncSandbox,
    AsyncSandboxes,
    AsyncSandboxPools,
)
from sandboxpool.client.claims import SandboxInfo
from sandboxpool.client.commands import Chunk, Result
from sandboxpool.client.core import ClaimOptions
from sandboxpool.client.errors import (
    AccessDenied,
    ApiError,
    BindTimeout,
    ClaimConflict,
    ClaimError,
    ClaimRefused,
    CommandError,
    CommandFailed,
    CommandNotStarted,
    CommandTimeout,
    ConfigNotVisible,
    ConfigurationError,
    ConnectionLost,
    FileError,
    FilesUnsupported,
    ForwardError,
    NotInstalled,
    NoWarmSandbox,
    OutputLimitExceeded,
    PoolNotFound,
    RuntimeMismatch,
    SandboxError,
    SandboxExpired,
    SandboxLost,
    SandboxPoolError,
    SecretsUnsupported,
)
from sandboxpool.client.sync import Command, Forward, Sandbox, Sandboxes, SandboxPools

__all__ = [
    "AccessDenied",
    "ApiError",
    "AsyncCommand",
    "AsyncForward",
    "AsyncSandbox",
    "AsyncSandboxPools",
    "AsyncSandboxes",
    "BindTimeout",
    "Chunk",
    "ClaimConflict",
    "ClaimError",
    "ClaimOptions",
    "ClaimRefused",
    "Command",
    "CommandError",
    "CommandFailed",
    "CommandNotStarted",
    "CommandTimeout",
    "ConfigNotVisible",
    "ConfigurationError",
    "ConnectionLost",
    "FileError",
    "FilesUnsupported",
    "Forward",
    "ForwardError",
    "NoWarmSandbox",
    "NotInstalled",
    "OutputLimitExceeded",
    "PoolNotFound",
    "Result",
    "RuntimeMismatch",
    "Sandbox",
    "SandboxError",
    "SandboxExpired",
    "SandboxInfo",
    "SandboxLost",
    "SandboxPoolError",
    "SandboxPools",
    "Sandboxes",
    "SecretsUnsupported",
]
