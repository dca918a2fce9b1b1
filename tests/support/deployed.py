"""What the chart deploys, the operator first: its pods, their log, and their violent death."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from demo.install import NAMESPACE, RELEASE
from fakekubelet import ApiError
from localcluster import nodes, process
from localcluster.kindcluster import kubectl
from sandboxpool.api.names import DEFAULT_RELEASE as LEASE
from support.api import Api, is_true
from support.waiting import eventually

Object = dict[str, Any]

# What it keeps of the nodes for its next start.
_RECORDS = "sandboxpool-nodes-"
_READY_SECONDS = 90.0
_GONE_SECONDS = 60.0


@dataclass
class DeployedOperator:
    """The pods of the Deployment: the one that leads, and those that stand by.

    Attributes:
        api: A client with all rights.
        deployment: The Deployment's name, which its pods have as a label.
        lease: The name of the Lease by which one leads.
        metrics: What the names of its own metrics begin with.
    """

    api: Api
    deployment: str = RELEASE
    lease: str = LEASE
    metrics: str = "sandboxpool"
    _kept: list[str] = field(default_factory=list)
    _replicas: int = 0

    def pods(self) -> list[Object]:
        """Its pods, those on their way out included."""
        # By its name too: the pod of `helm test` is of the same release.
        of = {"name": self.deployment, "instance": RELEASE}
        selector = ",".join(f"app.kubernetes.io/{label}={value}" for label, value in of.items())
        return self.api.list("Pod", NAMESPACE, labelSelector=selector)

    def leader(self) -> Object:
        """The pod that holds the lease.

        Raises:
            LookupError: There is none.
        """
        holder = self.api.get("Lease", self.lease, NAMESPACE)["spec"].get("holderIdentity") or ""
        for pod in self.pods():
            if holder.startswith(f"{pod['metadata']['name']}_"):
                return pod
        raise LookupError(f"no pod is {holder!r}")

    def ready(self) -> bool:
        """Whether all pods are there and ready, and one of them leads."""
        pods = self.pods()
        wanted = self.api.get("Deployment", self.deployment, NAMESPACE)["spec"]["replicas"]
        all_ready = len(pods) == wanted and all(is_true(pod, "Ready") for pod in pods)
        return all_ready and self.metric(f"{self.metrics}_leader") == 1

    def wait_ready(self) -> None:
        """Waits until it is ready."""
        eventually(self.ready, message="the deployed operator is ready", timeout=_READY_SECONDS)

    def stop(self, *, keep: bool = True) -> None:
        """Scales the Deployment to nothing and waits until no pod is left."""
        if keep:
            self.keep(self.log())
        self._replicas = self.api.get("Deployment", self.deployment, NAMESPACE)["spec"]["replicas"]
        self.api.scale("Deployment", self.deployment, 0, NAMESPACE)
        eventually(
            self.pods, until=lambda pods: not pods, message="no operator", timeout=_GONE_SECONDS
        )

    def start(self) -> None:
        """Scales the Deployment back to what it was."""
        self.api.scale("Deployment", self.deployment, self._replicas, NAMESPACE)
        self.wait_ready()

    @contextmanager
    def log_set_aside(self) -> Iterator[list[str]]:
        """Gives what it logs during a block once that has ended, and starts it anew.

        What goes wrong meanwhile is the block's doing and stands in no log that is read later.
        """
        self.keep(self.log())
        before = set(self.log().splitlines())
        lines: list[str] = []
        try:
            yield lines
        finally:
            # Nobody else makes pods of the Deployment: controllers and scheduler work by then.
            eventually(self.answers, message="the operator answers", timeout=_READY_SECONDS)
            lines += [line for line in self.log().splitlines() if line not in before]
            self.stop(keep=False)
            self.start()

    def answers(self) -> bool:
        """Whether it is ready, also where the API server may not answer yet."""
        try:
            return self.ready()
        except (ApiError, LookupError, OSError, aiohttp.ClientError):
            return False

    def replace(self) -> None:
        """Deletes the leader's pod and waits until another leads and the Deployment is whole."""
        self.keep(self.log())
        old = self.leader()
        self.api.delete("Pod", old["metadata"]["name"], NAMESPACE)
        eventually(
            self.pods,
            until=lambda pods: old["metadata"]["uid"] not in {p["metadata"]["uid"] for p in pods},
            message="the old operator is gone",
            timeout=_GONE_SECONDS,
        )
        self.wait_ready()

    def records(self) -> dict[str, Object]:
        """What it has written down for its next start, by node."""
        return {
            node: json.loads(record)
            for kept in self._kept_objects()
            for node, record in (kept.get("data") or {}).items()
        }

    def forget(self) -> None:
        """Starts one that knows nothing of the nodes."""
        self.stop()
        for kept in self._kept_objects():
            self.api.delete("ConfigMap", kept["metadata"]["name"], NAMESPACE)
        self.start()

    def _kept_objects(self) -> list[Object]:
        found = self.api.list("ConfigMap", NAMESPACE)
        return [kept for kept in found if kept["metadata"]["name"].startswith(_RECORDS)]

    def process(self) -> Process:
        """The leader's process on its node, found before it is needed."""
        pod = self.leader()
        container = _container(pod)
        node = pod["spec"]["nodeName"]
        pid = nodes.exec_on(
            node,
            *("crictl", "inspect", "--output", "go-template", "--template", "{{.info.pid}}"),
            container["containerID"].rpartition("/")[2],
        )
        return Process(pod["metadata"]["name"], node, int(pid), container["restartCount"])

    def restarts(self, of: Process) -> int:
        """How often a process's container was started again."""
        return int(_container(self.api.get("Pod", of.pod, NAMESPACE))["restartCount"])

    def exit_code(self, of: Process) -> int:
        """How a process ended whose container was started again since."""
        container = _container(self.api.get("Pod", of.pod, NAMESPACE))
        return int(container["lastState"]["terminated"]["exitCode"])

    def get(self, path: str) -> str:
        """What it answers at its metrics port, asked through the API server's proxy."""
        service = f"/api/v1/namespaces/{NAMESPACE}/services/{self.deployment}-metrics:http/proxy"
        return str(self.api.raw("GET", f"{service}{path}"))

    def probe(self, path: str) -> str:
        """What the leader answers at its health port, asked through the API server's proxy."""
        return str(self.api.raw("GET", f"{self._proxied('health')}{path}"))

    def _proxied(self, port: str) -> str:
        pod = self.leader()
        (number,) = [
            entry["containerPort"]
            for entry in pod["spec"]["containers"][0]["ports"]
            if entry["name"] == port
        ]
        return f"/api/v1/namespaces/{NAMESPACE}/pods/{pod['metadata']['name']}:{number}/proxy"

    def metric(self, name: str, /, **labels: str) -> float:
        """The sum of the leader's samples of a name that have these labels."""
        path = f"{self._proxied('http')}/metrics"
        return sum(
            sample.value
            for family in text_string_to_metric_families(str(self.api.raw("GET", path)))
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def log(self, lines: int | None = None) -> str:
        """The log of its container, and of the one before it if it was restarted."""
        limit = () if lines is None else (f"--tail={lines}",)
        texts = []
        for pod in self.pods():
            name = pod["metadata"]["name"]
            for which in ("--previous", "--previous=false"):
                try:
                    texts.append(kubectl("-n", NAMESPACE, "logs", name, which, *limit))
                except process.CommandError:
                    continue  # It was never restarted, or has not started yet.
        return "".join(texts)

    def keep(self, log: str) -> None:
        """Keeps the log of one that is about to go, or that ran elsewhere in its stead."""
        self._kept.append(log)

    def whole_log(self) -> str:
        """All that was kept, and the log of now."""
        return "".join([*self._kept, self.log()])


def _container(pod: Object) -> Object:
    (container,) = pod["status"]["containerStatuses"]
    return dict(container)


@dataclass(frozen=True, slots=True)
class Process:
    """A pod's process in its node's own numbering."""

    pod: str
    node: str
    pid: int
    restarts: int

    def kill(self) -> None:
        """Ends it with SIGKILL: no signal handler, no grace, no word to the API server."""
        nodes.exec_on(self.node, "kill", "-KILL", str(self.pid))
