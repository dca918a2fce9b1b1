"""Admission plugins of the simulated API server: what they change, refuse and hold up.

A plugin is asked about writes of pods that a real one would be asked about too: creations, dry
runs of creations, and changes; some are asked about changes of nodes. Several may be in force at
once; they are asked one after another.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sandboxpool.kube.errors import ApiError

Object = dict[str, Any]

CREATE, CHECK, CHANGE = "create", "check", "change"
# A change of a node, about which only those are asked that say so.
CHANGE_NODE = "change node"
# A webhook's timeout, unless its configuration says otherwise.
WEBHOOK_SECONDS = 10.0


@dataclass(frozen=True, eq=False)
class Plugin:
    """One plugin, and which writes of pods it is asked about.

    Attributes:
        answer: given the pod as it would be stored; returns it as it shall be, or raises the
            ApiError that refuses it.
        pool: asked only about pods whose names are made from this pool's; of all if empty.
        namespace: asked only about pods of this namespace; of all if empty.
        on: which writes it is asked about.
        seconds: how long it takes to answer.
    """

    answer: Callable[[Object], Object] = lambda pod: pod
    pool: str = ""
    namespace: str = ""
    on: frozenset[str] = frozenset({CREATE, CHECK, CHANGE})
    seconds: float = 0.0

    def concerns(self, what: str, namespace: str, name: str) -> bool:
        """Whether it is asked about a write."""
        of_pool = not self.pool or name.rpartition("-")[0] == self.pool
        return what in self.on and of_pool and self.namespace in ("", namespace)


@dataclass
class Admission:
    """The plugins in force."""

    plugins: list[Plugin] = field(default_factory=list)

    def add(self, plugin: Plugin) -> Plugin:
        """Put a plugin in force; return it, to be removed later."""
        self.plugins.append(plugin)
        return plugin

    def remove(self, plugin: Plugin) -> None:
        """A plugin is in force no longer."""
        self.plugins.remove(plugin)

    @contextmanager
    def during(self, plugin: Plugin) -> Iterator[None]:
        """A plugin is in force within."""
        self.add(plugin)
        try:
            yield
        finally:
            self.remove(plugin)

    def _asked(self, what: str, namespace: str, name: str) -> Iterable[Plugin]:
        return [p for p in self.plugins if p.concerns(what, namespace, name)]

    def seconds(self, what: str, namespace: str, name: str) -> float:
        """How long it takes until a write has been judged."""
        return sum(p.seconds for p in self._asked(what, namespace, name))

    def review(self, what: str, pod: Object) -> Object:
        """Judge a write of a pod.

        Raises:
            ApiError: it is refused.
        """
        metadata = pod["metadata"]
        for plugin in self._asked(what, metadata.get("namespace", ""), metadata["name"]):
            pod = plugin.answer(pod)
        return pod


# --- What plugins do -----------------------------------------------------------------------------


def _with_metadata(pod: Object, **parts: Any) -> Object:
    return {**pod, "metadata": {**pod["metadata"], **parts}}


def drops_labels(*names: str, **where: Any) -> Plugin:
    """Takes off labels that it does not know."""

    def answer(pod: Object) -> Object:
        labels: Mapping[str, str] = pod["metadata"].get("labels") or {}
        return _with_metadata(pod, labels={k: v for k, v in labels.items() if k not in names})

    return Plugin(answer, **where)


def keeps_nodes_as_they_are(prefix: str) -> Plugin:
    """Takes labels that begin so off every node that is changed."""

    def answer(node: Object) -> Object:
        labels: Mapping[str, str] = node["metadata"].get("labels") or {}
        left = {k: v for k, v in labels.items() if not k.startswith(prefix)}
        return _with_metadata(node, labels=left)

    return Plugin(answer, on=frozenset({CHANGE_NODE}))


def drops_owner(**where: Any) -> Plugin:
    """Takes off all owner references."""
    return Plugin(lambda pod: _with_metadata(pod, ownerReferences=[]), **where)


def sets_class(name: str | None, **where: Any) -> Plugin:
    """Gives each pod a RuntimeClass of its own choice; with None it takes it away."""

    def answer(pod: Object) -> Object:
        spec = {k: v for k, v in pod["spec"].items() if k != "runtimeClassName"}
        return {**pod, "spec": {**spec, "runtimeClassName": name} if name else spec}

    return Plugin(answer, **{"on": frozenset({CREATE, CHECK}), **where})


def refuses(
    status: int = 403,
    reason: str = "Forbidden",
    text: str = 'admission webhook "policy.example" denied the request: label owner is missing',
    **where: Any,
) -> Plugin:
    """Refuses, in other words each time: it adds the number of its decision."""
    decisions = itertools.count(1)

    def answer(pod: Object) -> Object:
        del pod
        raise ApiError(status, reason, f"{text} (decision {next(decisions):08x})")

    return Plugin(answer, **where)


def hangs(seconds: float = WEBHOOK_SECONDS, *, fails: bool = True, **where: Any) -> Plugin:
    """Does not answer in time; whether that fails the request is for `failurePolicy` to say."""

    def answer(pod: Object) -> Object:
        if fails:
            text = 'failed calling webhook "slow.example": context deadline exceeded'
            raise ApiError(500, "InternalError", text)
        return pod

    return Plugin(answer, seconds=seconds, **where)


def lacks_service_account(name: str = "default", **where: Any) -> Plugin:
    """The pods' ServiceAccount is not there yet; word for word what kube-apiserver says."""

    def answer(pod: Object) -> Object:
        namespace, pod_name = pod["metadata"]["namespace"], pod["metadata"]["name"]
        text = (
            f'pods "{pod_name}" is forbidden: error looking up service account '
            f'{namespace}/{name}: serviceaccount "{name}" not found'
        )
        raise ApiError(403, "Forbidden", text)

    return Plugin(answer, **{"on": frozenset({CREATE, CHECK}), **where})


def quota(limit: int, pods: Callable[[], Iterable[Object]], namespace: str) -> Plugin:
    """A ResourceQuota of so many pods; those that have ended do not count.

    Args:
        limit: how many pods the namespace may hold.
        pods: all pods that there are.
        namespace: which it is.
    """

    def answer(pod: Object) -> Object:
        used = sum(
            p["metadata"].get("namespace") == namespace
            and p.get("status", {}).get("phase") not in ("Failed", "Succeeded")
            for p in pods()
        )
        if used >= limit:
            text = (
                f'pods "{pod["metadata"]["name"]}" is forbidden: exceeded quota: team, '
                f"requested: pods=1, used: pods={used}, limited: pods={limit}"
            )
            raise ApiError(403, "Forbidden", text)
        return pod

    return Plugin(answer, namespace=namespace, on=frozenset({CREATE, CHECK}))
