"""Waits until a sandbox sees the configuration of its claim."""

from collections.abc import Mapping
from typing import Any

from sandboxpool.api.config_files import CLAIM_UID_FILE, VOLUME
from sandboxpool.client import commands, requests
from sandboxpool.client.commands import Target
from sandboxpool.client.errors import CommandTimeout, ConfigNotVisible

WITHIN_SECONDS = 30.0
# Of a command to start and to report its end.
_COMMAND_SECONDS = 15.0
# One command that looks again and again costs less than a command for each look.
# $1: the file, $2: what it is to say, $3: tenths of a second.
_AWAIT = (
    'n=0; until [ "$(cat "$1" 2>/dev/null)" = "$2" ]; do [ "$n" -lt "$3" ] || exit 1; '
    "n=$((n + 1)); sleep 0.1 2>/dev/null || { sleep 1; n=$((n + 9)); }; done"
)


async def wait(target: Target, within: float = WITHIN_SECONDS) -> None:
    """Wait until the claim's uid is in the sandbox: all files of the volume change at once.

    Raises:
        ConfigNotVisible: The container does not mount them, or they did not come in time.
        CommandNotStarted: The image has no shell.
    """
    pod = await target.api.call(requests.get_pod(target.namespace, target.pod))
    directory = mount_path(pod, target.container)
    if not directory:
        raise ConfigNotVisible(
            f"pod {target.pod} has no volume {VOLUME!r} in its container: it was made while"
            " spec.claims.configPath of the pool was empty; set it, and claim another sandbox"
        )
    path = f"{directory}/{CLAIM_UID_FILE}"
    arguments = (path, target.claim["metadata"]["uid"], f"{10 * within:.0f}")
    try:
        result = await commands.run(
            target, ["sh", "-c", _AWAIT, "sh", *arguments], within=within + _COMMAND_SECONDS
        )
    except CommandTimeout:
        result = None
    if result is None or result.exit_code != 0:
        raise ConfigNotVisible(
            f"{path} of pod {target.pod} does not name the claim within {within:g} s: see that"
            " the kubelet of its node answers (`kubectl describe pod`)"
        )


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
