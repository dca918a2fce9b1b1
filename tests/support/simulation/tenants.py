"""Tenants of the simulated cluster who mean harm, or know no better.

The hostile one may create pods and Events in a namespace of his own, and knows every uid. All that
his pods say of themselves he may have made up, and so may he their statuses: a program writes its
own exit code and termination message.
"""

from __future__ import annotations

import random
from typing import Any

from sandboxpool.api import names
from sandboxpool.api.times import timestamp
from sandboxpool.runtimes.probe import LABEL_PROBE, PROBE_CONTAINER, SANDBOX_PROBE_CONTAINER
from support.simulation.apiserver import Object
from support.simulation.controllers import NO_SHIM
from support.simulation.world import NAMESPACE, World

ATTACKER = "attacker"
UNSTARTABLE = "registry.example/unstartable:1"
MADE_UP = "deadbeef-0000-4000-8000-00000000beef\nLinux version 4.19.0-gvisor"
# A path that containerd quotes when the profile is missing; the API server takes it.
QUOTED = 'cannot load seccomp profile "/x/no runtime for "runsc" is configured": no such file'


class Attacker:
    """Writes whatever may be written by who may only create pods and Events."""

    def __init__(self, world: World, chance: random.Random) -> None:
        self._world = world
        self._chance = chance
        self._number = 0
        world.watchdog.unchecked_namespaces.add(ATTACKER)

    def act(self) -> None:
        """Do one thing."""
        if self._chance.random() < 0.3:
            self._forge_event()
        else:
            self._forge_pod()

    def _victims(self) -> tuple[list[Object], list[Object]]:
        server = self._world.server
        return server.all("sandboxpools"), server.all("sandboxclaims")

    def _forge_pod(self) -> None:
        self._number += 1
        pools, claims = self._victims()
        pool = self._chance.choice(pools)
        claim = self._chance.choice([*claims, None]) if claims else None
        labels = {names.LABEL_POOL_UID: pool["metadata"]["uid"]}
        if claim is not None:
            labels |= {
                names.LABEL_CLAIM: claim["metadata"]["name"],
                names.LABEL_CLAIM_UID: claim["metadata"]["uid"],
            }
        if self._chance.random() < 0.2:
            labels[LABEL_PROBE] = "x"
        classes = self._world.server.all("runtimeclasses")
        uid = classes[0]["metadata"]["uid"] if classes else "x"
        owner = self._chance.choice([None, (names.POOL_KIND, pool), (names.CLAIM_KIND, claim)])
        owners = []
        if owner is not None and owner[1] is not None:
            kind, owned_by = owner
            metadata = (owned_by or {})["metadata"]
            owners = [
                {
                    "apiVersion": names.API_VERSION,
                    "kind": kind,
                    "name": metadata["name"],
                    "uid": metadata["uid"],
                    "controller": True,
                }
            ]
        body: Object = {
            "metadata": {
                "name": f"forged-{self._number}",
                "namespace": ATTACKER,
                "labels": labels,
                "annotations": {
                    names.ANNOTATION_HANDLER: "runsc",
                    names.ANNOTATION_RUNTIME_UID: uid,
                    names.ANNOTATION_SOURCE: self._chance.choice(["Warm", "Cold"]),
                },
                "ownerReferences": owners,
            },
            "spec": {
                "containers": [{"name": "main", "image": "registry.example/evil:1"}],
                # His own choice, of what he may use at all; mostly the node's own runtime.
                **({"runtimeClassName": "gvisor"} if self._chance.random() < 0.3 else {}),
            },
            "status": {"phase": "Pending", "conditions": []},
        }
        self._world._do(lambda: self._world.server.create("pods", body, by="user"))

    def lie(self) -> None:
        """Have each of his pods that runs say something of its node."""
        for pod in self._world.server.all("pods"):
            if pod["metadata"]["namespace"] != ATTACKER or not pod["spec"].get("nodeName"):
                continue
            node = self._world.server.find("nodes", pod["spec"]["nodeName"])
            own = node["status"]["nodeInfo"]["bootID"] if node is not None else ""
            said = self._chance.choice([MADE_UP, f"{own}\nLinux version 6.1"])
            init = {
                "name": self._chance.choice([SANDBOX_PROBE_CONTAINER, PROBE_CONTAINER]),
                "state": {"terminated": {"exitCode": 0, "message": said}},
            }
            stuck = {"waiting": {"reason": "CreateContainerError", "message": QUOTED}}
            running = {"running": {"startedAt": timestamp(self._world.wall())}}
            main = {"name": "main", "state": self._chance.choice([stuck, running])}
            status = {
                **pod["status"],
                "initContainerStatuses": [init],
                "containerStatuses": [main],
            }
            self._world._do(
                lambda pod=pod, status=status: self._world.server.update(
                    "pods", pod, "kubelet", status=status
                )
            )

    def _forge_event(self) -> None:
        """About one of the pools' pods, by its uid and perhaps its name, from its kubelet."""
        pods = self._world.pods()
        if not pods:
            return
        pod = self._chance.choice(pods)
        self._number += 1
        metadata = pod["metadata"]
        body = {
            "metadata": {"name": f"forged-{self._number}", "namespace": ATTACKER},
            "involvedObject": {
                "kind": "Pod",
                "namespace": self._chance.choice([ATTACKER, metadata["namespace"]]),
                "name": metadata["name"],
                "uid": metadata["uid"],
            },
            "reason": "FailedCreatePodSandBox",
            "message": self._chance.choice([NO_SHIM, 'no runtime for "runsc" is configured']),
            "source": {"host": pod["spec"].get("nodeName", "")},
            "lastTimestamp": timestamp(self._world.wall()),
        }
        self._world._do(lambda: self._world.server.create("events", body, by="user"))


def make_clumsy_pool(world: World, namespace: str, **spec: Any) -> None:
    """A tenant makes a pool whose sandboxes fail everywhere, with words that blame the runtime."""
    world.controllers.unstartable.add(UNSTARTABLE)
    containers = [{"name": "main", "image": UNSTARTABLE}]
    body = {
        "apiVersion": names.API_VERSION,
        "kind": names.POOL_KIND,
        "metadata": {"name": "pool", "namespace": namespace},
        "spec": {
            "runtimeClassName": "gvisor",
            "replicas": 2,
            "template": {"spec": {"containers": containers}},
            "startup": {"timeoutSeconds": 10},
            "isolationProof": "PerNode",
            **spec,
        },
    }
    world.watchdog.cause(20)
    world._do(lambda: world.server.create("sandboxpools", body, by="user"))


def of_victims(pods: list[Object]) -> dict[str, Object]:
    """The pods of the pools' own namespace by uid."""
    return {p["metadata"]["uid"]: p for p in pods if p["metadata"]["namespace"] == NAMESPACE}
