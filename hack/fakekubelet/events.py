"""Events as a kubelet posts them: folded and rationed the way client-go does it.

The folding matters to whoever reads them. Equal texts make one Event with a growing count;
containerd 2.x puts the sandbox id into the text, so each try is an Event of its own until, at the
eleventh, client-go folds the rest into one whose text starts with `(combined from similar events)`.
And after a burst a pod's events are simply dropped: no event proves nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from fakekubelet.client import ApiError, Client
from fakekubelet.model import Pod

COMBINED = "(combined from similar events): "

_SIMILAR = 10
_BURST = 25
_REFILL_SECONDS = 300.0


@dataclass
class _EventCorrelation:
    """What was posted about one pod."""

    tokens: float
    refilled: float
    texts: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    posted: dict[tuple[str, str], tuple[str, int]] = field(default_factory=dict)


class EventRecorder:
    """Posts Events about pods."""

    def __init__(self, client: Client, *, burst: int = _BURST) -> None:
        self._client = client
        self._burst = burst
        self._ledgers: dict[str, _EventCorrelation] = {}

    async def emit(
        self, pod: Pod, node: str, reason: str, text: str, kind: str = "Warning"
    ) -> None:
        """Posts one Event, counts an old one up, or drops it.

        Args:
            pod: The pod it is about.
            node: The node whose kubelet says it.
            reason: The reason.
            text: The message.
            kind: The type, Warning or Normal.
        """
        ledger = self._ledgers.setdefault(
            pod.metadata.uid, _EventCorrelation(float(self._burst), time.monotonic())
        )
        if not self._allowed(ledger):
            return
        similar = ledger.texts.setdefault((kind, reason), set())
        similar.add(text)
        folded = len(similar) > _SIMILAR
        key = (reason, COMBINED if folded else text)
        message = COMBINED + text if folded else text
        old = ledger.posted.get(key)
        if old is None:
            body = _event(pod, node, reason, message, kind)
            ledger.posted[key] = (body["metadata"]["name"], 1)
            await self._send("POST", _path(pod), body)
        else:
            name, count = old
            ledger.posted[key] = (name, count + 1)
            patch = {"count": count + 1, "message": message, "lastTimestamp": _now()}
            await self._send("PATCH", f"{_path(pod)}/{name}", patch)

    def forget(self, uid: str) -> None:
        """Drops what is known about a pod that is gone."""
        self._ledgers.pop(uid, None)

    def _allowed(self, ledger: _EventCorrelation) -> bool:
        elapsed = time.monotonic() - ledger.refilled
        ledger.refilled += elapsed
        ledger.tokens = min(self._burst, ledger.tokens + elapsed / _REFILL_SECONDS)
        if ledger.tokens < 1:
            return False
        ledger.tokens -= 1
        return True

    async def _send(self, method: str, path: str, body: Any) -> None:
        try:
            if method == "POST":
                await self._client.post(path, body)
            else:
                await self._client.patch(path, body)
        except ApiError as error:
            # A namespace that is being deleted refuses Events; an old Event may have expired.
            if error.status not in {403, 404}:
                raise


def _path(pod: Pod) -> str:
    return f"/api/v1/namespaces/{pod.metadata.namespace}/events"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _event(pod: Pod, node: str, reason: str, message: str, kind: str) -> dict[str, Any]:
    stamp = _now()
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{pod.metadata.name}.{time.time_ns():x}",
            "namespace": pod.metadata.namespace,
        },
        "involvedObject": {
            "apiVersion": "v1",
            "kind": "Pod",
            "namespace": pod.metadata.namespace,
            "name": pod.metadata.name,
            "uid": pod.metadata.uid,
            "resourceVersion": pod.metadata.resource_version,
        },
        "type": kind,
        "reason": reason,
        "message": message,
        "source": {"component": "kubelet", "host": node},
        "reportingComponent": "kubelet",
        "reportingInstance": node,
        "firstTimestamp": stamp,
        "lastTimestamp": stamp,
        "count": 1,
    }
