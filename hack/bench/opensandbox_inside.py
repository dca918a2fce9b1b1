"""The part of `make bench-opensandbox` that runs in the cluster, as an application would.

It has no arguments: what it measures is appended as a call, and it prints the figures as JSON.
"""

import json
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

from kubernetes import client, config, watch
from opensandbox import SandboxSync
from opensandbox.config import ConnectionConfigSync

NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace").read_text()
BATCH_SANDBOXES = ("sandbox.opensandbox.io", "v1alpha1", NAMESPACE, "batchsandboxes")
CLAIMS = ("sandboxpool.io", "v1alpha1", NAMESPACE, "sandboxclaims")
WAIT_SECONDS = 60.0

config.load_incluster_config()  # type: ignore[no-untyped-call]
api: Any = client.CustomObjectsApi()
connection = ConnectionConfigSync(domain="127.0.0.1:8080").with_transport_if_missing(
    max_connections=200
)
Moments = dict[str, float]


class Observer:
    """Notes when a watch shows the stages of each sandbox."""

    def __init__(self, *kinds: tuple[str, str, str, str]) -> None:
        self._moments: dict[str, Moments] = {}
        self._changed = threading.Condition()
        for kind in kinds:
            version = api.list_namespaced_custom_object(*kind)["metadata"]["resourceVersion"]
            threading.Thread(target=self._follow, args=(kind, version), daemon=True).start()

    def _follow(self, kind: tuple[str, str, str, str], version: str) -> None:
        events: Any = watch.Watch()  # type: ignore[no-untyped-call]
        for event in events.stream(
            api.list_namespaced_custom_object, *kind, resource_version=version
        ):
            now = time.perf_counter()
            found = event["object"]
            phase = (found.get("status") or {}).get("phase", "")
            with self._changed:
                seen = self._moments.setdefault(found["metadata"]["name"], {})
                seen.setdefault(f"{kind[3]} made", now)
                seen.setdefault(f"{kind[3]} {phase}", now)
                self._changed.notify_all()

    def moments(self, name: str, until: str) -> Moments:
        """The moments of an object, once it has come so far."""
        with self._changed:
            there = self._changed.wait_for(
                lambda: until in self._moments.get(name, {}), WAIT_SECONDS
            )
            assert there, f"{name} is not {until}: {self._moments.get(name)}"
            return dict(self._moments[name])


def create(pool: str) -> SandboxSync:
    """Creates a sandbox as applications do."""
    return SandboxSync.create(
        "none",
        extensions={"poolRef": pool},
        timeout=timedelta(minutes=10),
        connection_config=connection,
    )


def sdk(pool: str, observer: Observer | None) -> Moments:
    """Creates a sandbox; returns what the steps took, in milliseconds."""
    began = time.perf_counter()
    sandbox = create(pool)
    returned = time.perf_counter()
    took = {"total": returned - began}
    if observer is not None:
        seen = observer.moments(sandbox.id, "batchsandboxes Succeed")
        made, bound = seen["sandboxclaims made"], seen["sandboxclaims Bound"]
        took["bridge"] = made - seen["batchsandboxes made"]
        took["bridge"] += seen["batchsandboxes Succeed"] - bound
        took["claim"] = bound - made
        took["server and SDK"] = took["total"] - took["bridge"] - took["claim"]
    return {name: 1000 * seconds for name, seconds in took.items()}


def bare(pool: str, observer: Observer) -> Moments:
    """Claims a sandbox without OpenSandbox, from the request to the sight of the bound claim."""
    name = f"bare-{uuid.uuid4().hex[:12]}"
    body = {
        "apiVersion": "sandboxpool.io/v1alpha1",
        "kind": "SandboxClaim",
        "metadata": {"name": name, "labels": {"bench": "bare"}},
        "spec": {"poolName": pool},
    }
    began = time.perf_counter()
    api.create_namespaced_custom_object(*CLAIMS, body)
    bound = observer.moments(name, "sandboxclaims Bound")["sandboxclaims Bound"]
    return {"total": 1000 * (bound - began)}


def end_all() -> None:
    """Ends all sandboxes after a measurement."""
    for sandbox in api.list_namespaced_custom_object(*BATCH_SANDBOXES)["items"]:
        api.delete_namespaced_custom_object(*BATCH_SANDBOXES, sandbox["metadata"]["name"])
    api.delete_collection_namespaced_custom_object(*CLAIMS, label_selector="bench=bare")
    print("{}")


def one_by_one(pool: str, number: int) -> None:
    """The two ways in turn, one sandbox in flight."""
    observer = Observer(BATCH_SANDBOXES, CLAIMS)
    figures: dict[str, list[Moments]] = {"sdk": [], "bare": []}
    create_one(pool)  # What only the first request takes.
    for _ in range(number):
        figures["sdk"].append(sdk(pool, observer))
        figures["bare"].append(bare(pool, observer))
    print(json.dumps(figures))


def create_one(pool: str) -> None:
    """Creates a sandbox and ends it."""
    sandbox = create(pool)
    sandbox.kill()


def at_once(pool: str, number: int, in_flight: int, which: str) -> None:
    """So many sandboxes, so many of them in flight."""
    observer = Observer(CLAIMS) if which == "bare" else None

    def one(_: int) -> Moments:
        return bare(pool, observer) if observer is not None else sdk(pool, None)

    with ThreadPoolExecutor(in_flight) as threads:
        began = time.perf_counter()
        moments = list(threads.map(one, range(number)))
        seconds = time.perf_counter() - began
    print(json.dumps({which: moments, "seconds": seconds}))
