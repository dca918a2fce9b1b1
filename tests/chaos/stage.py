"""What a scenario plays on: a cluster, a proxy before it, an operator behind it, and a verdict."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from fakekubelet import FakeNodes
from localcluster.controlplane import ControlPlane
from sandboxpool.sandboxes.template import ClaimRef, claim_metadata
from support import Api, ApiError, invariants, timeline
from support.controllers import Controllers
from support.faultproxy import FaultProxy
from support.history import History
from support.operator_process import Operator
from support.waiting import eventually

Object = dict[str, Any]

# As short as a crowded machine allows: each death of the operator costs so much.
LEASE = {"SANDBOXPOOL_LEASE": "6/4/1"}
KINDS = ("Pod", "SandboxClaim", "SandboxPool")
_CATCH_UP_SECONDS = 15.0
_LOOK_SECONDS = 0.2
# An API server that restarts on a crowded machine takes its time.
_AWAY_SECONDS = 120.0
# So often in a row it must look quiet: a decision may be on its way.
_LOOKS = 4


@contextmanager
def supervised(operator: Operator) -> Iterator[None]:
    """Starts the operator again whenever it has ended, as a kubelet does."""
    over = threading.Event()

    def supervise() -> None:
        while not over.wait(_LOOK_SECONDS):
            if not operator.running:
                operator.start(ready=False)

    thread = threading.Thread(target=supervise, name="supervisor")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@dataclass
class Stage:
    """One namespace and all that happens in it.

    Attributes:
        api: A client of its own, which no fault touches.
        proxy: What the operator speaks through.
        seed: What everything random is drawn from.
        operator: It is started again whenever it ends.
        another: Starts a second one beside it.
        patience: How many seconds the operator gets to settle once all faults have ended.
        hasty: Whether the first thing that is seen to be wrong is enough.
        excused: The uids of objects that the test itself took apart, see `timeline`.
    """

    api: Api
    namespace: str
    operator: Operator
    another: Callable[[], object]
    proxy: FaultProxy
    plane: ControlPlane
    controllers: Controllers
    nodes: FakeNodes
    history: History
    seed: int = 0
    patience: float = 60.0
    hasty: bool = False
    excused: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def verdict(self) -> list[str]:
        """Waits until all is quiet and returns everything that was or is wrong.

        What sets things in motion must have happened before.
        """
        self.proxy.reset()
        not_converged = self._settle()
        self._catch_up()
        seen = invariants.snapshot(self.api, self.namespace)
        return [
            *timeline.judge(self.history.changes(), self.excused),
            *self._not_excused(invariants.violations(seen)),
            *(f"in the end: {text}" for text in not_converged),
        ]

    def _not_excused(self, found: list[str]) -> list[str]:
        names = {
            invariants.full_name(change.object)
            for change in self.history.changes()
            if change.uid in self.excused
        }
        return [text for text in found if not any(name in text for name in names)]

    def _settle(self) -> list[str]:
        deadline = time.monotonic() + self.patience
        quiet = 0
        while True:
            left = invariants.not_converged(invariants.snapshot(self.api, self.namespace))
            quiet = 0 if left else quiet + 1
            if self.hasty and timeline.judge(self.history.changes(), self.excused):
                return left
            if quiet == _LOOKS or time.monotonic() > deadline:
                return left
            time.sleep(_LOOK_SECONDS)

    def _catch_up(self) -> None:
        """Waits until the history has seen what there is now."""

        def behind() -> set[tuple[str, str]]:
            now = {
                (obj["metadata"]["uid"], obj["metadata"]["resourceVersion"])
                for kind in KINDS
                for obj in self.api.list(kind)
            }
            return now - {
                (change.uid, change.object["metadata"]["resourceVersion"])
                for change in self.history.changes()
            }

        eventually(
            behind,
            until=lambda left: not left,
            message="the history has seen everything",
            timeout=_CATCH_UP_SECONDS,
        )

    # --- What others do in a cluster ---

    def delete_pod(self, pod: Object, **options: Any) -> None:
        """Deletes a pod as somebody with kubectl would."""
        self.excused.add(pod["metadata"]["uid"])
        self.api.delete("Pod", pod["metadata"]["name"], **options)

    def take(self, pod: Object, claim: Object) -> None:
        """Makes a pod a claim's, as another operator would, or a late write of this one."""
        reference = ClaimRef(claim["metadata"]["name"], claim["metadata"]["uid"], (), ())
        self.api.patch("Pod", pod["metadata"]["name"], {"metadata": claim_metadata(reference)})

    def warm(self) -> list[Object]:
        """The pods that belong to no claim."""
        return [pod for pod in self.api.list("Pod") if not invariants.claim_uids(pod)]

    def until(self, attempt: Callable[[], object], message: str, timeout: float = 20.0) -> None:
        """Waits for something, with a deadline."""
        eventually(attempt, message=message, timeout=timeout)

    def soon(self, attempt: Callable[[], object], timeout: float = 5.0) -> bool:
        """Waits for something that happens with a guard or without it; says whether it did."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if attempt():
                return True
            time.sleep(_LOOK_SECONDS)
        return False

    def retry_until_answered(self, act: Callable[[], object]) -> None:
        """Does something once, though the API server may be away for a while."""
        deadline = time.monotonic() + _AWAY_SECONDS
        again = False
        while True:
            try:
                act()
            except ApiError as error:
                if again and error.status == 409:
                    # It was done before, and the answer was lost.
                    return
                if error.status < 500 or time.monotonic() > deadline:
                    raise
            except (aiohttp.ClientError, OSError):
                if time.monotonic() > deadline:
                    raise
            else:
                return
            again = True
            time.sleep(_LOOK_SECONDS)
