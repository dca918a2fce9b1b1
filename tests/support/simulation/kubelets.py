"""The kubelets of all nodes, and the container runtimes below them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sandboxpool.api.times import timestamp
from sandboxpool.runtimes.probe import NODES_KERNEL, OWN_KERNEL, PROBE_CONTAINER
from support.simulation.apiserver import ApiServer, Object
from support.simulation.machines import (
    ENDED,
    FakeNode,
    Start,
    containers_of,
    images_of,
    is_true,
    with_condition,
)

RETRY_SECONDS = 10.0
NO_SHIM = (
    "Failed to create pod sandbox: rpc error: code = Unknown desc = failed to start sandbox: "
    "failed to create containerd task: failed to start shim: start failed: exit status 1"
)
NO_SECRET = 'MountVolume.SetUp failed for volume "key" : secret "absent" not found'
NO_IMAGE = "Back-off pulling image: dial tcp: lookup registry.example: no such host"


@dataclass
class Kubelets:
    """Starts, stops and reports pods.

    Attributes:
        unstartable: images whose sandboxes the runtime fails on every node, whoever asks.
        unmountable: images whose pods name a Secret that does not exist.
        short_lived: images whose program ends by itself, and so many seconds after it was ready,
            at least and at most.
    """

    server: ApiServer
    random: random.Random
    wall: Callable[[], float]
    unstartable: set[str] = field(default_factory=set)
    unmountable: set[str] = field(default_factory=set)
    short_lived: dict[str, tuple[float, float]] = field(default_factory=dict)
    nodes: dict[str, FakeNode] = field(default_factory=dict)
    _addresses: int = 0

    @property
    def never_ready(self) -> set[str]:
        """The images whose sandboxes do not become ready, or not for long, wherever they are."""
        return self.unstartable | self.unmountable | self.short_lived.keys()

    def _later(self, least: float, most: float, act: Callable[..., None], *args: Any) -> None:
        asyncio.get_running_loop().call_later(self.random.uniform(least, most), act, *args)

    def _now(self) -> str:
        return timestamp(self.wall())

    def _pod(self, uid: str) -> Object | None:
        return next((p for p in self.server.all("pods") if p["metadata"]["uid"] == uid), None)

    # --- Starts ----------------------------------------------------------------------------------

    def _start(self, uid: str) -> None:
        pod = self._pod(uid)
        node = self.nodes.get(pod["spec"]["nodeName"]) if pod is not None else None
        if pod is not None and node is not None:
            self._later(*node.seconds, self._try, uid, node.name)

    def _try(self, uid: str, name: str) -> None:
        """The container runtime is asked for the sandbox; where that fails, again and again."""
        pod, node = self._pod(uid), self.nodes.get(name)
        if pod is None or node is None or "deletionTimestamp" in pod["metadata"]:
            return
        if not node.alive or node.starts is Start.HANGS:
            self._later(RETRY_SECONDS, RETRY_SECONDS * 1.5, self._try, uid, name)
            return
        images = images_of(pod)
        if images & self.unmountable:
            self._say(pod, name, NO_SECRET, "FailedMount")
            self._later(RETRY_SECONDS, RETRY_SECONDS * 1.5, self._try, uid, name)
            return
        cannot_start = not self._serves(pod, name) or bool(images & self.unstartable)
        if node.starts is Start.FAILS or cannot_start:
            self._say(pod, name, NO_SHIM)
            self._later(RETRY_SECONDS, RETRY_SECONDS * 1.5, self._try, uid, name)
            return
        if not node.pulls or images & node.unpullable:
            self.server.update("pods", pod, "kubelet", status=self._without_image(pod))
            self._later(RETRY_SECONDS, RETRY_SECONDS * 1.5, self._try, uid, name)
            return
        self._addresses += 1
        address = f"10.0.{self._addresses >> 8}.{self._addresses & 255}"
        self.server.update("pods", pod, "kubelet", status=self._started(pod, node, address))
        for image in images & self.short_lived.keys():
            self._later(*self.short_lived[image], self._ends_by_itself, uid)

    def _serves(self, pod: Object, name: str) -> bool:
        class_name = pod["spec"].get("runtimeClassName")
        if not class_name:
            # The node's default runtime.
            return True
        found = self.server.find("runtimeclasses", class_name)
        node = self.server.find("nodes", name)
        if found is None or node is None:
            return False
        listed = {handler["name"] for handler in node["status"].get("runtimeHandlers", [])}
        return found["handler"] in listed

    def _started(self, pod: Object, node: FakeNode, address: str) -> Object:
        now = self._now()
        names = [str(container.get("name")) for container in containers_of(pod)]
        states: dict[str, Object] = {name: {"running": {"startedAt": now}} for name in names}
        if PROBE_CONTAINER in names:
            isolated = node.isolates and pod["spec"].get("runtimeClassName")
            code = OWN_KERNEL if isolated else NODES_KERNEL
            states[PROBE_CONTAINER] = {"terminated": {"exitCode": code}}
        # None of a probe's answers is 0, so that every one ends its pod as failed.
        ends = PROBE_CONTAINER in names
        status = {
            **pod["status"],
            "phase": "Failed" if ends else "Running",
            "podIP": address,
            "podIPs": [{"ip": address}],
            "containerStatuses": [
                {"name": name, "restartCount": 0, "state": state} for name, state in states.items()
            ],
        }
        reached = ["PodReadyToStartContainers", "Initialized", *([] if ends else ["Ready"])]
        for type_ in reached:
            status = with_condition(status, type_, True, now)
        return status

    def _without_image(self, pod: Object) -> Object:
        waiting = {"reason": "ImagePullBackOff", "message": NO_IMAGE}
        names = [str(container.get("name")) for container in containers_of(pod)]
        statuses = [{"name": n, "restartCount": 0, "state": {"waiting": waiting}} for n in names]
        return {**pod["status"], "containerStatuses": statuses}

    def _say(
        self, pod: Object, node: str, message: str, reason: str = "FailedCreatePodSandBox"
    ) -> None:
        now = self._now()
        name, metadata = f"{pod['metadata']['name']}.{reason.lower()}", pod["metadata"]
        old = self.server.find("events", name, metadata["namespace"])
        if old is not None:
            self.server.update("events", old, "kubelet", lastTimestamp=now, message=message)
            return
        body = {
            "metadata": {"name": name, "namespace": metadata["namespace"]},
            "involvedObject": {
                "kind": "Pod",
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata["uid"],
            },
            "reason": reason,
            "message": message,
            "source": {"component": "kubelet", "host": node},
            "lastTimestamp": now,
        }
        self.server.create("events", body, by="kubelet")

    # --- Ends ------------------------------------------------------------------------------------

    def _stop(self, uid: str) -> None:
        pod = self._pod(uid)
        if pod is None:
            return
        node = self.nodes.get(pod["spec"].get("nodeName", ""))
        if node is not None and not node.alive:
            self._later(5.0, 10.0, self._stop, uid)
            return
        if pod["status"].get("phase") == "Running" and self.random.random() < 0.5:
            # What is told to stop exits, and the kubelet says so if it comes to that.
            pod = self.end(pod, 143)
        self.server.remove("pods", pod, by="kubelet")

    def end(self, pod: Object, code: int = 1, why: str = "Error") -> Object:
        """A pod's containers end, as if its program had."""
        ended = {"terminated": {"exitCode": code, "reason": why}}
        listed = pod["status"].get("containerStatuses") or ()
        status = with_condition(pod["status"], "Ready", False, self._now(), reason="PodFailed")
        containers = [{**container, "state": ended} for container in listed]
        status = {**status, "phase": "Failed", "containerStatuses": containers}
        return self.server.update("pods", pod, "kubelet", status=status)

    def run_out_of_memory(self, pod: Object) -> None:
        """A pod's containers are killed for the memory that they use."""
        self.end(pod, 137, "OOMKilled")

    def relieve(self, pod: Object) -> None:
        """The kubelet evicts a pod, as its node runs short of memory."""
        text = "The node was low on resource: memory."
        status = self._disrupted(pod, "TerminationByKubelet", text)
        said = {**status, "reason": "Evicted", "message": text}
        self.end({**pod, "status": said}, 137)

    def disrupt(self, pod: Object, reason: str, grace: int | None = None) -> None:
        """A controller says why it deletes a pod, and does."""
        now = self._pod(pod["metadata"]["uid"])
        if now is not None:
            status = self._disrupted(now, reason, f"by {reason}")
            now = self.server.update("pods", now, "controller", status=status)
            self.server.delete("pods", now, by="user", grace=grace)

    def _disrupted(self, pod: Object, reason: str, message: str) -> Object:
        said = {"reason": reason, "message": message}
        return with_condition(pod["status"], "DisruptionTarget", True, self._now(), **said)

    def _ends_by_itself(self, uid: str) -> None:
        pod = self._pod(uid)
        if pod is not None and pod["status"]["phase"] == "Running":
            self.end(pod)

    # --- Readiness -------------------------------------------------------------------------------

    def set_ready(self, pod: Object, ready: bool) -> None:
        """A running pod's readiness probe begins to fail, or to succeed again."""
        now = self._pod(pod["metadata"]["uid"])
        if now is None or now["status"].get("phase") != "Running" or "podIP" not in now["status"]:
            return
        more = {} if ready else {"reason": "ContainersNotReady"}
        status = with_condition(now["status"], "Ready", ready, self._now(), **more)
        self.server.update("pods", now, "kubelet", status=status)

    def flap(self, seconds: float, pods: list[Object] | None = None) -> None:
        """Readiness probes fail for a while: those of some pods, or of all that are ready."""
        chosen = self.server.all("pods") if pods is None else pods
        for pod in [p for p in chosen if is_true(p, "Ready")]:
            self.set_ready(pod, False)
            self._later(seconds, seconds, self._recover, pod["metadata"]["uid"])

    def _recover(self, uid: str) -> None:
        pod = self._pod(uid)
        node = self.nodes.get(pod["spec"].get("nodeName", "")) if pod is not None else None
        if pod is not None and node is not None and node.alive:
            self.set_ready(pod, True)

    def load_of(self, name: str) -> int:
        """How many pods take up room on a node."""
        return sum(
            p["spec"].get("nodeName") == name and p["status"].get("phase") not in ENDED
            for p in self.server.all("pods")
        )
