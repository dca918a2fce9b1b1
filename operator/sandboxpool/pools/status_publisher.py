"""Writing a pool's status: only what is new, at most once a second.

A condition that changes its status or its reason is announced by an event.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from sandboxpool.api import names
from sandboxpool.api.reasons import Reason
from sandboxpool.cluster.pool import Pool
from sandboxpool.cluster.pools import PoolStore
from sandboxpool.kube.client import ApiClient, resource_path
from sandboxpool.kube.errors import ApiError
from sandboxpool.kube.events import EventRecorder
from sandboxpool.pools.status import former_runtime

STATUS_INTERVAL_SECONDS = 1.0

# Reasons that come and go while a pool does its ordinary work: no event is posted for them.
_QUIET = frozenset(
    {
        Reason.FILLING,
        Reason.AT_TARGET,
        Reason.SCALED_TO_ZERO,
        Reason.OK,
        Reason.WAITING_FOR_CLAIMS,
        Reason.TEMPLATE_NOT_CHECKED,
        Reason.EVIDENCE_PENDING,
        Reason.BUDGET_PENDING,
        # Announced when the class's uid changes, with both handlers.
        Reason.RUNTIME_CHANGED,
    }
)


class StatusPublisher:
    """Remembers what was sent, and what the server made of it."""

    def __init__(
        self,
        client: ApiClient,
        pools: PoolStore,
        events: EventRecorder,
        clock: Callable[[], float],
    ) -> None:
        self._client = client
        self._pools = pools
        self._events = events
        self._clock = clock
        self._sent: dict[str, tuple[float, dict[str, Any], Any]] = {}

    def forget(self, pool_uid: str) -> None:
        """The pool is gone."""
        self._sent.pop(pool_uid, None)

    def due(self, pool_uid: str) -> float:
        """Seconds until a status of this pool may be written; until then it need not be known."""
        sent = self._sent.get(pool_uid)
        return max(0.0, sent[0] + STATUS_INTERVAL_SECONDS - self._clock()) if sent else 0.0

    async def publish(self, pool: Pool, status: dict[str, Any]) -> float | None:
        """Write the status if it says something new; return when to try again, if not yet."""
        current = self._pools.by_uid(pool.uid)
        if current is None or status == current.status:
            return None
        _, sent, echo = self._sent.get(pool.uid, (0.0, None, None))
        if status == sent and current.status == echo:
            # The server holds what we sent, in its own words.
            return None
        wait = self.due(pool.uid)
        if wait > 0:
            return wait
        path = resource_path(names.API_VERSION, names.POOLS, pool.namespace, pool.name)
        try:
            answer = msgspec.json.decode(await self._client.replace_status(path, pool.uid, status))
        except ApiError as error:
            if error.not_found or self._pools.by_uid(pool.uid) is None:
                return None
            raise
        self._announce(current, status)
        self._sent[pool.uid] = self._clock(), status, answer.get("status")
        self._pools.observe(answer)
        return None

    def _announce(self, pool: Pool, status: dict[str, Any]) -> None:
        """Post an event for each cause that is new; several conditions may share one."""
        was, now_is = former_runtime(pool), status.get("runtime", {})
        same_name = was.get("className") == now_is.get("className")
        if same_name and was.get("uid") and was["uid"] != now_is["uid"]:
            self._events.warning(
                pool.reference,
                str(Reason.RUNTIME_CHANGED),
                f"RuntimeClass {now_is['className']!r} was deleted and made again: its handler "
                f"was {was.get('handler')!r} and is {now_is['handler']!r} now",
            )
        before = {c.type: (c.status, c.reason) for c in pool.conditions}
        announced = set()
        for condition in status["conditions"]:
            type_, now = condition["type"], (condition["status"], condition["reason"])
            if type_ == "Ready" or before.get(type_) == now or now[1] in _QUIET:
                continue
            if now in announced or (now[0] == "True" and type_ not in before):
                continue
            announced.add(now)
            post = self._events.normal if now[0] == "True" else self._events.warning
            post(pool.reference, now[1], condition["message"])
