"""What people and nature do in the simulated cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sandboxpool.api import names
from support.invariants import claim_uids
from support.simulation.apiserver import ApiServer, Object, labels
from support.simulation.controllers import Controllers
from support.simulation.machines import is_true
from support.simulation.watchdog import Watchdog

NAMESPACE = "default"
IMAGE = "registry.example/a:1"


def template_of(image: str) -> Object:
    """A pool's template of one container."""
    return {"spec": {"containers": [{"name": "main", "image": image}]}}


class People:
    """Makes, changes and deletes objects, and tells the watchdog that there is a cause."""

    server: ApiServer
    controllers: Controllers
    watchdog: Watchdog
    # Pools with pods that others have changed: what is theirs is a matter of opinion.
    _counts_amiss: set[str]

    def _do(self, act: Any, *args: Any) -> Any:
        raise NotImplementedError

    def pool(self, name: str = "pool", namespace: str = NAMESPACE) -> Object | None:
        """The pool of this name, if there is one."""
        return self.server.find("sandboxpools", name, namespace)

    def claim(self, name: str, namespace: str = NAMESPACE) -> Object | None:
        """The claim of this name, if there is one."""
        return self.server.find("sandboxclaims", name, namespace)

    def phase(self, name: str, namespace: str = NAMESPACE) -> str:
        """How far a claim is; `Pending` too if nothing was said yet, and `` if there is none."""
        claim = self.claim(name, namespace)
        return "" if claim is None else (claim.get("status") or {}).get("phase") or "Pending"

    def ready(self, name: str = "pool", namespace: str = NAMESPACE) -> list[Object]:
        """The pods of a pool's stock that are ready."""
        pool = self.pool(name, namespace)
        uid = pool["metadata"]["uid"] if pool is not None else ""
        return [
            p
            for p in self.pods()
            if labels(p)[names.LABEL_POOL_UID] == uid
            and not claim_uids(p)
            and is_true(p, "Ready")
            and "deletionTimestamp" not in p["metadata"]
        ]

    def pods(self) -> list[Object]:
        """The pods of all pools, claimed ones included, in the order of their making."""
        ours = (p for p in self.server.all("pods") if names.LABEL_POOL_UID in labels(p))
        return sorted(ours, key=lambda p: int(p["metadata"]["uid"].removeprefix("uid-")))

    def make_pool(
        self,
        name: str = "pool",
        replicas: int = 2,
        *,
        namespace: str = NAMESPACE,
        image: str = IMAGE,
        labels: Mapping[str, str] | None = None,
        **spec: Any,
    ) -> None:
        """An SRE makes a pool; further fields of the spec by their API names."""
        self.watchdog.cause(replicas)
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.POOL_KIND,
            "metadata": {"name": name, "namespace": namespace, "labels": dict(labels or {})},
            "spec": {
                "runtimeClassName": "gvisor",
                "replicas": replicas,
                "template": template_of(image),
                "isolationProof": "None",
                **spec,
            },
        }
        self._do(lambda: self.server.create("sandboxpools", body, by="user"))

    def make_class(self, name: str) -> None:
        """An SRE makes a class of the handler that all nodes have, if there is none of the name."""
        self.watchdog.cause(10)
        if self.server.find("runtimeclasses", name) is None:
            body = {"metadata": {"name": name}, "handler": "runsc"}
            self._do(lambda: self.server.create("runtimeclasses", body, by="user"))

    def change_pool(self, name: str, *, namespace: str = NAMESPACE, **spec: Any) -> None:
        """An SRE changes fields of a pool's spec; None removes one."""
        pool = self.pool(name, namespace)
        assert pool is not None
        new = {k: v for k, v in {**pool["spec"], **spec}.items() if v is not None}
        self.watchdog.cause(2 * new["replicas"] + 2)
        self._do(lambda: self.server.update("sandboxpools", pool, "user", spec=new))

    def make_claim(
        self, name: str, pool: str = "pool", *, namespace: str = NAMESPACE, **spec: Any
    ) -> None:
        """An application asks for a sandbox."""
        self.watchdog.cause()
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.CLAIM_KIND,
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"poolName": pool, **spec},
        }
        self._do(lambda: self.server.create("sandboxclaims", body, by="user"))

    def delete(self, resource: str, obj: Object, grace: int | None = None) -> None:
        """Somebody deletes an object."""
        self.watchdog.cause(2)
        self._do(lambda: self.server.delete(resource, obj, by="user", grace=grace))

    def change(self, resource: str, obj: Object, **parts: Any) -> None:
        """Somebody replaces parts of an object, which from then on is not judged any more."""
        self.watchdog.cause(2)
        self.watchdog.spoil(obj)
        if resource == "pods":
            self._counts_amiss.add(labels(obj)[names.LABEL_POOL_UID])
        self._do(lambda: self.server.update(resource, obj, "user", **parts))

    def touch(self, resource: str, obj: Object) -> None:
        """Somebody annotates an object, as many do, and nothing is wrong with that."""
        note = {**(obj["metadata"].get("annotations") or {}), "note": str(self.server.version)}
        metadata = {**obj["metadata"], "annotations": note}
        self._do(lambda: self.server.update(resource, obj, "user", metadata=metadata))

    # --- Nature ----------------------------------------------------------------------------------

    def nature(self, act: str, *args: Any, **kwargs: Any) -> None:
        """Have the controllers do something, such as `lose_node`."""
        self.watchdog.cause(len(self.pods()) + 2)
        self._do(lambda: getattr(self.controllers, act)(*args, **kwargs))
