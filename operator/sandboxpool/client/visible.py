"""Waits until a sandbox sees the configuration of its claim."""

from collections.abc import Mapping
from typing import Any

from sandboxpool.api.config_files import CLAIM_UID_FILE, VOLUME
from sandboxpool.client import commands, requests
from sandboxpool.client.commands import Target
from sandboxpool.client.errors import ConfigNotVisible

WITHIN_SECONDS = 30.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 0.5


async def wait(target: Target, within: float = WITHIN_SECONDS) -> None:
    """Wait until the claim's uid is in the sandbox: all files of the volume change at once.

    Raises:
        ConfigNotVisible: The container does not mount them, or they did not come in time.
        CommandNotStarted: The image has no `cat`.
    """
    pod = await target.api.call(requests.get_pod(target.namespace, target.pod))
    directory = mount_path(pod, target.container)
    if not directory:
        raise ConfigNotVisible(
            f"pod {target.pod} has no volume {VOLUME!r} in its container: it was made while"
            " spec.claims.configPath of the pool was empty; set it, and claim another sandbox"
        )
    path = f"{directory}/{CLAIM_UID_FILE}"
    io = target.api.io
    deadline, pause = io.monotonic() + within, _FIRST_PAUSE
    expected = target.claim["metadata"]["uid"].encode()
    while True:
        left = max(1.0, deadline - io.monotonic())
        result = await commands.run(target, ["cat", path], within=left)
        if result.exit_code == 0 and result.stdout == expected:
            return
        if io.monotonic() + pause > deadline:
            raise ConfigNotVisible(
                f"{path} of pod {target.pod} does not name the claim within {within:g} s: see that"
                " the kubelet of its node answers (`kubectl describe pod`)"
            )
        await io.sleep(pause)
        pause = min(_LONGEST_PAUSE, 2 * pause)


def mount_path(pod: Mapping[str, Any], container: str = "") -> str:
    """Return where a container has the files; empty where it has none."""
    spec = pod["spec"]
    chosen = container or (pod["metadata"].get("annotations") or {}).get(
        "kubectl.kubernetes.io/default-container", spec["containers"][0]["name"]
    )
    for entry in [*spec["containers"], *(spec.get("initContainers") or ())]:
        for mount in entry.get("volumeMounts") or ():
            if entry["name"] == chosen and mount["name"] == VOLUME:
                return str(mount["mountPath"])
    return ""
