"""What kubelet and containerd say when a sandbox cannot be made, word for word.

`{id}` stands for the sandbox id, which is another one at every try, `{handler}` for the handler.
Each text was seen on a real node, or read in the source of the runtime where none was at hand.
"""

from __future__ import annotations

import secrets

REASON = "FailedCreatePodSandBox"
PREFIX = "Failed to create pod sandbox: "
_RPC = "rpc error: code = Unknown desc = "

NO_RUNTIME = _RPC + (
    'unable to get OCI runtime for sandbox "{id}": no runtime for "{handler}" is configured'
)
NO_RUNTIME_CONTAINERD_1 = _RPC + (
    'failed to get sandbox runtime: no runtime for "{handler}" is configured'
)
SHIM_MISSING = _RPC + (
    'failed to start sandbox "{id}": failed to create containerd task: failed to start shim: '
    'failed to resolve runtime path: runtime "io.containerd.runsc.v1" binary not installed '
    '"containerd-shim-runsc-v1": file does not exist'
)
KVM_MISSING = _RPC + (
    'failed to start sandbox "{id}": failed to create containerd task: failed to create shim task: '
    'OCI runtime create failed: opening device file for platform "kvm": error opening KVM '
    "device file (/dev/kvm): no such file or directory"
)
CLASS_NOT_FOUND = 'runtimeclass.node.k8s.io "{runtime_class}" not found'


def render(text: str, *, handler: str, runtime_class: str | None) -> str:
    """Fills in a text as one try of the kubelet would have it.

    Args:
        text: One of the texts of this module, or a test's own.
        handler: The handler that was asked for.
        runtime_class: The name of the pod's RuntimeClass.
    """
    # Not str.format: real texts are full of braces.
    filled = (
        text.replace("{id}", secrets.token_hex(32))
        .replace("{handler}", handler)
        .replace("{runtime_class}", runtime_class or "")
    )
    return filled if filled.startswith(PREFIX) else PREFIX + filled


def container_error(handler: str) -> str:
    """What a container's status says when its node lost the handler under a running pod."""
    return f'failed to get sandbox runtime: no runtime for "{handler}" is configured'
