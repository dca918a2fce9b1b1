"""The floor: the two writes of a claim, done by a bare loop with no operator between.

    python -m bench.floor --kubeconfig FILE --namespace NS --pool-uid UID

Warm pods are listed once and kept in memory; for each new claim of the watch one is taken, made
the claim's by a conditional merge patch, and the claim is told by a guarded JSON patch. Nothing is
checked, remembered, mended or refilled: what an operator needs beyond this is its own cost.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import time
from collections import deque
from pathlib import Path
from typing import Any

import msgspec

from fakekubelet.client import JSON_PATCH, Access, Client
from sandboxpool.api import names
from sandboxpool.sandboxes.template import ClaimRef, claim_metadata

READY = "floor: ready"
# Enough to keep an API server busy; more only makes its queues longer.
WORKERS = 16

Pod = dict[str, Any]


class _Meta(msgspec.Struct, frozen=True):
    # A bookmark has no name.
    name: str = ""
    uid: str = ""
    resourceVersion: str = ""
    generation: int = 0


class _Status(msgspec.Struct, frozen=True):
    phase: str = ""


class _Claim(msgspec.Struct, frozen=True):
    metadata: _Meta
    status: _Status = _Status()


class _Event(msgspec.Struct, frozen=True):
    type: str
    object: _Claim


async def bind(client: Client, namespace: str, claim: _Meta, pod: Pod) -> None:
    """The two writes."""
    ref = ClaimRef(name=claim.name, uid=claim.uid)
    metadata = pod["metadata"]
    patch = {"metadata": {"resourceVersion": metadata["resourceVersion"], **claim_metadata(ref)}}
    await client.send(
        "PATCH",
        f"/api/v1/namespaces/{namespace}/pods/{metadata['name']}",
        body=patch,
        content_type="application/merge-patch+json",
    )
    await client.send(
        "PATCH",
        f"/apis/{names.API_VERSION}/namespaces/{namespace}/{names.CLAIMS}/{claim.name}/status",
        body=[
            {"op": "test", "path": "/metadata/uid", "value": claim.uid},
            {"op": "add", "path": "/status", "value": status_of(pod, claim.generation)},
        ],
        content_type=JSON_PATCH,
    )


def status_of(pod: Pod, generation: int) -> dict[str, Any]:
    """The status of a bound claim, with the same fields as the operator's."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    metadata, status = pod["metadata"], pod["status"]
    common = {"status": "True", "lastTransitionTime": now, "observedGeneration": generation}
    return {
        "observedGeneration": generation,
        "phase": "Bound",
        "podName": metadata["name"],
        "podUID": metadata["uid"],
        "podIP": status["podIP"],
        "podIPs": [address["ip"] for address in status["podIPs"]],
        "nodeName": pod["spec"]["nodeName"],
        "runtime": {
            "className": pod["spec"]["runtimeClassName"],
            "handler": metadata["annotations"][names.ANNOTATION_HANDLER],
        },
        "source": "Warm",
        "boundAt": now,
        "conditions": [
            {
                "type": "Bound",
                "reason": "Bound",
                "message": f"sandbox {metadata['name']}",
                **common,
            },
            {"type": "Ready", "reason": "PodReady", "message": "the pod is ready", **common},
        ],
    }


async def warm_pods(client: Client, namespace: str, pool_uid: str) -> list[Pod]:
    """The pods of a pool that are ready and nobody's."""
    listed = await client.get(
        f"/api/v1/namespaces/{namespace}/pods",
        labelSelector=f"{names.LABEL_POOL_UID}={pool_uid},!{names.LABEL_CLAIM_UID}",
    )
    return [
        pod
        for pod in listed["items"]
        if any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"]["conditions"])
    ]


async def run(access: Access, namespace: str, pool_uid: str, workers: int) -> None:
    """Bind claims until cancelled."""
    async with Client(access, concurrency=workers) as client:
        path = f"/apis/{names.API_VERSION}/namespaces/{namespace}/{names.CLAIMS}"
        warm = deque(await warm_pods(client, namespace, pool_uid))
        claims: asyncio.Queue[_Meta] = asyncio.Queue()

        async def work() -> None:
            while True:
                claim = await claims.get()
                await bind(client, namespace, claim, warm.popleft())

        decode = msgspec.json.Decoder(_Event).decode
        listed = await client.get(path, limit="1")
        version = listed["metadata"]["resourceVersion"]
        gc.freeze()
        print(READY, flush=True)
        async with asyncio.TaskGroup() as parts:
            for _ in range(workers):
                parts.create_task(work())
            while True:
                async for line in client.watch(path, version):
                    event = decode(line)
                    version = event.object.metadata.resourceVersion
                    if event.type == "ADDED" and event.object.status.phase in ("", "Pending"):
                        claims.put_nowait(event.object.metadata)


def main() -> None:
    """Run the loop until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m bench.floor")
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--pool-uid", required=True)
    parser.add_argument("--workers", type=int, default=WORKERS)
    given = parser.parse_args()
    access = Access.from_kubeconfig(given.kubeconfig)
    asyncio.run(run(access, given.namespace, given.pool_uid, given.workers))


if __name__ == "__main__":
    main()
