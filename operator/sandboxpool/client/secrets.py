"""Secrets of a claim: through a command's input, into memory.

They pass no object of the API, no argument of a command and no disk.
"""

import posixpath
from collections.abc import Mapping
from typing import Any

from sandboxpool.client import files, requests
from sandboxpool.client.commands import Target
from sandboxpool.client.errors import SecretsUnsupported

_MODE = 0o600
_CURE = (
    "add to the pool's template a volume `emptyDir: {medium: Memory}` and mount it in the container"
)


async def write(target: Target, secrets: Mapping[str, bytes | str], directory: str | None) -> None:
    """Write each secret into a file of its name.

    Args:
        target: The sandbox.
        secrets: The contents by file name.
        directory: Where; the one memory volume of the container if unset.

    Raises:
        SecretsUnsupported: That is no memory volume.
    """
    for name in secrets:
        if not name or "/" in name or name in (".", "..") or "\0" in name:
            raise ValueError(f"{name!r} cannot be the file name of a secret")
    pod = await target.api.call(requests.get_pod(target.namespace, target.pod))
    mounts = memory_mounts(pod, target.container)
    if directory is None:
        if len(mounts) != 1:
            found = f"has several memory volumes ({', '.join(mounts)}): name one with secrets_path="
            raise SecretsUnsupported(
                f"pod {target.pod} {found}"
                if mounts
                else f"pod {target.pod} has no memory volume for secrets: {_CURE}"
            )
        directory = mounts[0]
    elif not any(_is_within(directory, mount) for mount in mounts):
        raise SecretsUnsupported(
            f"{directory} of pod {target.pod} is in no memory volume, and secrets would reach the"
            f" node's disk: {_CURE}"
        )
    for name, value in secrets.items():
        data = value.encode() if isinstance(value, str) else value
        await files.write(target, f"{directory.rstrip('/')}/{name}", data, mode=_MODE)


def _is_within(directory: str, mount: str) -> bool:
    return f"{posixpath.normpath(directory)}/".startswith(f"{mount}/")


def memory_mounts(pod: Mapping[str, Any], container: str = "") -> list[str]:
    """Return where a container has memory volumes that it can write to."""
    spec = pod["spec"]
    volumes = {
        volume["name"]
        for volume in spec.get("volumes") or ()
        if (volume.get("emptyDir") or {}).get("medium") == "Memory"
    }
    chosen = container or (pod["metadata"].get("annotations") or {}).get(
        "kubectl.kubernetes.io/default-container", spec["containers"][0]["name"]
    )
    return [
        mount["mountPath"].rstrip("/")
        for entry in spec["containers"]
        if entry["name"] == chosen
        for mount in entry.get("volumeMounts") or ()
        if mount["name"] in volumes and not mount.get("readOnly")
    ]
