"""How long a claim takes, as an application sees it: from its POST to `Bound` in a watch."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import msgspec
import yaml

from demo.kube import DemoError, evidence, read
from fakekubelet import Access, ApiError, Client

DEADLINE_SECONDS = 60.0


def timed(kubeconfig: Path, file: Path, namespace: str = "default") -> tuple[float, dict[str, Any]]:
    """Create the claim in a file and return the seconds until it was bound, and the claim.

    The watch and the connection are open before the clock starts: an application has them too.

    Raises:
        DemoError: The claim was refused, or not bound in time.
    """
    claim = yaml.safe_load(file.read_text())
    name = claim["metadata"]["name"]
    try:
        return asyncio.run(_timed(kubeconfig, claim, namespace))
    except TimeoutError:
        found = read("sandboxclaim", name)
        raise DemoError(
            f"claim {name} is not bound after {DEADLINE_SECONDS:.0f} s\n"
            f"{evidence('sandboxclaim', name, found)}"
        ) from None
    except ApiError as error:
        raise DemoError(f"claim {name} was refused: {error}") from error


async def _timed(
    kubeconfig: Path, claim: dict[str, Any], namespace: str
) -> tuple[float, dict[str, Any]]:
    path = f"/apis/{claim['apiVersion']}/namespaces/{namespace}/sandboxclaims"
    async with Client(Access.from_kubeconfig(kubeconfig)) as client:
        version = (await client.get(path))["metadata"]["resourceVersion"]
        async with asyncio.timeout(DEADLINE_SECONDS):
            watching = asyncio.create_task(
                _until_bound(client, path, version, claim["metadata"]["name"])
            )
            try:
                # Long enough for the watch to be open; it misses nothing even if it is not.
                await asyncio.sleep(0.2)
                began = time.monotonic()
                await client.post(path, claim)
                bound, seen = await watching
            finally:
                watching.cancel()
    return seen - began, bound


async def _until_bound(
    client: Client, path: str, version: str, name: str
) -> tuple[dict[str, Any], float]:
    async for line in client.watch(path, version, fieldSelector=f"metadata.name={name}"):
        now = time.monotonic()
        claim = msgspec.json.decode(line)["object"]
        phase = (claim.get("status") or {}).get("phase")
        if phase == "Bound":
            return claim, now
        if phase in ("Failed", "Expired", "Lost"):
            raise DemoError(f"claim {name} is {phase}\n{evidence('sandboxclaim', name, claim)}")
    raise DemoError(f"the watch of claim {name} ended before it was bound")
