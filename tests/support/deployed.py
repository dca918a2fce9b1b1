"""The operator as the chart deploys it: its pod, its log, and its violent death."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from demo.install import NAMESPACE, RELEASE
from localcluster import nodes, process
from localcluster.kindcluster import kubectl
from support.api import Api, is_true
from support.waiting import eventually

Object = dict[str, Any]

# What it keeps of the nodes for its next start.
_RECORDS = "sandboxpool-nodes-"
_SELECTOR = f"app.kubernetes.io/instance={RELEASE}"
_READY_SECONDS = 90.0
_GONE_SECONDS = 60.0


@dataclass
class DeployedOperator:
    """The one pod of the Deployment.

    Attributes:
        api: A client with all rights.
    """

    api: Api
    _kept: list[str] = field(default_factory=list)

    def pods(self) -> list[Object]:
        """Its pods, those on their way out included."""
        return self.api.list("Pod", NAMESPACE, labelSelector=_SELECTOR)

    def ready(self) -> bool:
        """Whether exactly one pod is there and ready."""
        pods = self.pods()
        return len(pods) == 1 and is_true(pods[0], "Ready")

    def wait_ready(self) -> None:
        """Waits until it is ready."""
        eventually(self.ready, message="the deployed operator is ready", timeout=_READY_SECONDS)

    def stop(self) -> None:
        """Scales the Deployment to nothing and waits until no pod is left."""
        self.keep(self.log())
        self.api.scale("Deployment", RELEASE, 0, NAMESPACE)
        eventually(
            self.pods, until=lambda pods: not pods, message="no operator", timeout=_GONE_SECONDS
        )

    def start(self) -> None:
        """Scales the Deployment back to one."""
        self.api.scale("Deployment", RELEASE, 1, NAMESPACE)
        self.wait_ready()

    def replace(self) -> None:
        """Deletes its pod and waits for the Deployment's next one."""
        self.keep(self.log())
        (old,) = self.pods()
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
        """The operator's process on its node, found before it is needed."""
        (pod,) = self.pods()
        container = _container(pod)
        node = pod["spec"]["nodeName"]
        pid = nodes.exec_on(
            node,
            *("crictl", "inspect", "--output", "go-template", "--template", "{{.info.pid}}"),
            container["containerID"].rpartition("/")[2],
        )
        return Process(node, int(pid), container["restartCount"])

    def restarts(self) -> int:
        """How often its container was started again."""
        (pod,) = self.pods()
        return int(_container(pod)["restartCount"])

    def last_exit_code(self) -> int:
        """How the container before the present one ended."""
        (pod,) = self.pods()
        return int(_container(pod)["lastState"]["terminated"]["exitCode"])

    def get(self, path: str) -> str:
        """What it answers over HTTP, asked through the API server's proxy of its Service."""
        service = f"/api/v1/namespaces/{NAMESPACE}/services/{RELEASE}-metrics:http/proxy"
        return str(self.api.raw("GET", f"{service}{path}"))

    def metric(self, name: str, /, **labels: str) -> float:
        """The sum of the samples of a name that have these labels."""
        return sum(
            sample.value
            for family in text_string_to_metric_families(self.get("/metrics"))
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
    """A process in a node's own numbering."""

    node: str
    pid: int
    restarts: int

    def kill(self) -> None:
        """Ends it with SIGKILL: no signal handler, no grace, no word to the API server."""
        nodes.exec_on(self.node, "kill", "-KILL", str(self.pid))
