"""What a benchmark stands on: a control plane, kubelets, pools, and one binder of claims at a time.

A binder is the operator, or the floor: never both, for they would bind the same claims.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from bench import floor, kubelet
from bench.counters import Request, writes
from bench.load import Subject
from fakekubelet import Access
from localcluster import process
from localcluster.controlplane import ControlPlane
from sandboxpool.api import names
from support import Api, objects
from support.crds import apply_crds
from support.operator_process import Operator

Side = Literal["floor", "operator"]

SYSTEM = "sandboxpool-system"
PROBE_IMAGE = "registry.example/probe:1"
CLASS, HANDLER = "gvisor", "runsc"
NODES = 10
POOL = "pool"
_HACK = Path(__file__).resolve().parents[1]
_START_SECONDS = 120.0
_FILL_SECONDS = 300.0


class Rig:
    """One control plane with all around it; use as a context manager."""

    def __init__(self, folder: Path, *, nodes: int = NODES) -> None:
        self._folder = folder
        self._nodes = nodes
        # Thousands of claims are removed between measurements.
        self._plane = ControlPlane(apiserver_args=["--delete-collection-workers=16"])
        self._floor: subprocess.Popen[bytes] | None = None
        self._kubelet: subprocess.Popen[bytes] | None = None
        self._starts = 0

    def __enter__(self) -> Self:
        self._plane.start()
        try:
            self.api = Api(self._plane.kubeconfig, "default").__enter__()
            apply_crds(self.api)
            self.api.create(objects.namespace(SYSTEM))
            self.api.create(objects.runtime_class(CLASS, HANDLER))
            self.operator = Operator(
                self._plane.kubeconfig,
                self._folder,
                SYSTEM,
                {"SANDBOXPOOL_PROBE_IMAGE": PROBE_IMAGE, "SANDBOXPOOL_LOG_LEVEL": "info"},
            )
            self._kubelet = self._python(
                "bench.kubelet",
                kubelet.READY,
                f"--nodes={self._nodes}",
                f"--handler={HANDLER}",
                f"--report={self._folder / 'kubelet.json'}",
            )
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        if self._kubelet is not None:
            process.terminate(self._kubelet, grace=5)
        if hasattr(self, "api"):
            self.api.__exit__()
        self._plane.stop()

    @property
    def access(self) -> Access:
        """How to reach the API server."""
        return Access.from_kubeconfig(self._plane.kubeconfig)

    @property
    def kubelet_pid(self) -> int:
        """The process of all kubelets."""
        assert self._kubelet is not None, "it runs as long as the rig does"
        return self._kubelet.pid

    def writes(self) -> dict[Request, float]:
        """Requests that write, up to now, as the API server counted them."""
        return writes(str(self.api.raw("GET", "/metrics")))

    # --- Binders ---------------------------------------------------------------------------------

    def start(self, side: Side, namespace: str) -> int:
        """Have one side bind the claims of a namespace; return its process id."""
        if side == "operator":
            if self.operator.pid is None:
                # It would look after what the floor has bound, and mend it.
                self.clear(namespace)
                self.start_operator()
            assert self.operator.pid is not None, "it is ready, so it runs"
            return self.operator.pid
        if self._floor is None or self._floor.poll() is not None:
            self.stop()
            pool = self.api.get(names.POOL_KIND, POOL, namespace)
            self._floor = self._python(
                "bench.floor",
                floor.READY,
                f"--namespace={namespace}",
                f"--pool-uid={pool['metadata']['uid']}",
            )
        return self._floor.pid

    def start_operator(self) -> float:
        """Start the operator; return the seconds until its caches were synced, before it led."""
        began = time.monotonic()
        self.operator.start()
        synced = time.monotonic() - began
        leads = "sandboxpool_leader"
        wait(lambda: self.operator.metric(leads) == 1, _START_SECONDS, "the operator to lead")
        return synced

    def stop(self) -> None:
        """End whoever binds claims."""
        if self._floor is not None:
            process.terminate(self._floor, grace=5)
            self._floor = None
        if hasattr(self, "operator") and self.operator.running:
            self.operator.terminate()

    def _python(self, module: str, ready: str, *arguments: str) -> subprocess.Popen[bytes]:
        self._starts += 1
        log = self._folder / f"{module}-{self._starts}.log"
        child = process.spawn(
            [
                "env",
                f"PYTHONPATH={_HACK}:{_HACK.parent / 'operator'}",
                sys.executable,
                "-m",
                module,
                f"--kubeconfig={self._plane.kubeconfig}",
                *arguments,
            ],
            log=log,
        )
        wait(
            lambda: child.poll() is not None or ready in process.tail(log, 1000),
            _START_SECONDS,
            f"start of {module}",
        )
        if child.poll() is not None:
            raise RuntimeError(f"{module} ended:\n{process.tail(log)}")
        return child

    # --- Pools and claims ------------------------------------------------------------------------

    def add_pool(self, namespace: str, name: str = POOL, replicas: int = 0, **spec: Any) -> None:
        """Create a pool, in a namespace that may exist."""
        if self.api.find("Namespace", namespace) is None:
            self.api.create(objects.namespace(namespace))
        pool = objects.pool(
            name,
            CLASS,
            replicas,
            startup={"maxStarting": 1000},
            # As an operator would be run: with proof that the runtime isolates.
            **{"isolationProof": "PerNode", **spec},
        )
        self.api.create({**pool, "metadata": {"name": name, "namespace": namespace}})

    def subject(self, namespace: str, name: str = POOL) -> Subject:
        """Claims of a pool, for a load generator."""
        return Subject.of(
            f"{names.API_VERSION}/{names.CLAIMS}",
            namespace,
            objects.claim(pool=name),
            "status.phase=Bound",
        )

    def fill(self, namespace: str, warm: int) -> float:
        """Have the operator make a pool's sandboxes; return the seconds that it took."""
        self.start("operator", namespace)
        began = time.monotonic()
        self.set_pool(namespace, replicas=warm, paused=False)

        def filled() -> bool:
            if self._kubelet is None or self._kubelet.poll() is not None:
                raise RuntimeError("the kubelets have ended")
            return self.warm(namespace) == warm

        wait(filled, _FILL_SECONDS, f"{warm} warm sandboxes")
        return time.monotonic() - began

    def set_pool(self, namespace: str, **fields: Any) -> None:
        """Change a pool's spec."""
        self.api.patch_spec(names.POOL_KIND, POOL, namespace, **fields)

    def warm(self, namespace: str) -> int:
        """How many warm sandboxes a pool says it has."""
        pool = self.api.get(names.POOL_KIND, POOL, namespace)
        return int((pool.get("status") or {}).get("warm", 0))

    def settle(self, namespace: str) -> None:
        """Wait until every sandbox that was asked for is there."""

        def quiet() -> bool:
            status = self.api.get(names.POOL_KIND, POOL, namespace).get("status") or {}
            path = f"/api/v1/namespaces/{namespace}/pods?fieldSelector=status.phase%3DPending"
            return status.get("starting") == 0 and not self.count(path)

        wait(quiet, _FILL_SECONDS, "no sandbox that starts")

    def clear(self, namespace: str) -> None:
        """Remove all claims and their pods; nothing binds meanwhile, and no collector is needed."""
        self.stop()
        claims = f"/apis/{names.API_VERSION}/namespaces/{namespace}/{names.CLAIMS}"
        pods = f"/api/v1/namespaces/{namespace}/pods?labelSelector={names.LABEL_CLAIM_UID}"
        for path in (claims, pods):
            # A request may not take longer than the client waits: large sets go in several.
            while self.count(path):
                self.api.raw("DELETE", path + ("&" if "?" in path else "?") + "limit=500", _NOW)

    def count(self, path: str) -> int:
        """At least how many objects are at a path: 0 or 1."""
        query = "&" if "?" in path else "?"
        return len(self.api.raw("GET", f"{path}{query}limit=1")["items"])


_NOW = {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0}


def wait(done: Callable[[], bool], seconds: float, what: str, *, poll: float = 0.1) -> None:
    """Wait for a condition.

    Raises:
        TimeoutError: it did not come true in time.
    """
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not in {seconds:g} s")
        time.sleep(poll)
