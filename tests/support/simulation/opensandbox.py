"""OpenSandbox as the bridge meets it: what its CRDs admit, and its server with a user who waits.

The server writes BatchSandboxes and reads their annotations and statuses; it knows nothing of
SandboxPools. It never writes a status.
"""

from __future__ import annotations

import asyncio
import datetime
import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from sandboxpool.kube.errors import ApiError
from sandboxpool.opensandbox import names
from support.simulation.apiserver import ApiServer, Change, Object

COUNTERS = (
    "allocated",
    "ready",
    "replicas",
    "taskFailed",
    "taskPending",
    "taskRunning",
    "taskSucceed",
    "taskUnknown",
)
PHASES = frozenset({"Pending", "Succeed", "Pausing", "Paused", "Resuming", "Failed"})
CONDITION_TYPES = frozenset(
    {
        "Ready",
        "Progressing",
        "Paused",
        "PauseFailed",
        "ResumeFailed",
        "PodFailed",
        "PoolAllocationPending",
    }
)
CAPACITIES = ("bufferMin", "bufferMax", "poolMin", "poolMax")
# For how long the server waits: for capacity, and at all.
CAPACITY_SECONDS = 15.0
CREATE_SECONDS = 25.0


def check_batch_sandbox(obj: Object) -> None:
    """Refuse what OpenSandbox's CRD of BatchSandboxes does not admit.

    Raises:
        ApiError: 422.
    """
    status = obj.get("status")
    if status is None:
        return
    wrong = [name for name in COUNTERS if not isinstance(status.get(name), int)]
    if status.get("phase") not in (None, *PHASES):
        wrong.append("phase")
    listed = status.get("conditions", [])
    wrong += [c["type"] for c in listed if c["type"] not in CONDITION_TYPES]
    wrong += [c["type"] for c in listed if c["status"] not in ("True", "False")]
    if len({c["type"] for c in listed}) < len(listed):
        wrong.append("conditions")
    if wrong:
        raise ApiError(422, "Invalid", f"status is invalid: {', '.join(wrong)}")


def check_pool(obj: Object) -> None:
    """Refuse what OpenSandbox's CRD of Pools does not admit.

    Raises:
        ApiError: 422.
    """
    capacity, status = obj["spec"].get("capacitySpec", {}), obj.get("status")
    wrong = [name for name in CAPACITIES if capacity.get(name, -1) < 0]
    if status is not None:
        wrong += [name for name in ("total", "allocated", "available") if name not in status]
        wrong += [] if isinstance(status.get("revision"), str) else ["revision"]
    if wrong:
        raise ApiError(422, "Invalid", f"the Pool is invalid: {', '.join(wrong)}")


class Answer(Enum):
    """What the user of a request was told."""

    RUNNING = "running"
    FAILED = "500"
    NO_CAPACITY = "429"
    TIMEOUT = "504"
    # Somebody has deleted it while he waited.
    GONE = "gone"


@dataclass
class Request:
    """One request of a user.

    Attributes:
        uid: of its BatchSandbox.
        posted_at: virtual time.
        keeps: the server deletes it after a failure, as it does unless it is killed itself.
        answer: None while the user waits.
        answered_at: virtual time.
    """

    name: str
    uid: str
    pool: str
    posted_at: float
    keeps: bool = False
    answer: Answer | None = None
    answered_at: float = 0.0
    capacity_since: float | None = None
    capacity_seconds: float = 0.0


class OpenSandbox:
    """OpenSandbox's server; what it posts, in one namespace.

    Args:
        server: the API server.
        namespace: where it posts.
        clock: virtual time, in seconds.
        wall: seconds since the epoch.
    """

    def __init__(
        self,
        server: ApiServer,
        namespace: str,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self.requests: dict[str, Request] = {}
        # Told of each answer at its moment.
        self.on_answer: list[Callable[[Request], None]] = []
        self._tasks: dict[object, str] = {}
        self._server = server
        self._namespace = namespace
        self._clock = clock
        self._wall = wall
        server.schemas |= {"batchsandboxes": check_batch_sandbox, "pools": check_pool}
        server.listeners.append(self._see)

    def find(self, name: str) -> Object | None:
        """The BatchSandbox of this name."""
        return self._server.find("batchsandboxes", name, self._namespace)

    def post(
        self,
        name: str,
        pool: str,
        *,
        seconds: float | None = None,
        asserts: str | None = None,
        env: dict[str, str] | None = None,
        replicas: int = 1,
        keeps: bool = False,
    ) -> Request | None:
        """A user asks for a sandbox; None where the server refuses at once."""
        if self._server.find("pools", pool, self._namespace) is None:
            return None
        given = {**(env or {}), "OPENSANDBOX_ID": name}
        process: Object = {
            "command": ["/bin/sh", "-c", "exec /opt/opensandbox/bootstrap.sh tail -f /dev/null"],
            "env": [{"name": key, "value": value} for key, value in given.items()],
            # Nobody but this simulation reads it: whose task it is, whatever its name.
            "workingDir": f"/{len(self.requests)}",
        }
        extensions = {names.ANNOTATION_RUNTIME_CLASS: asserts} if asserts else {}
        spec: dict[str, Any] = {
            "replicas": replicas,
            "poolRef": pool,
            "taskTemplate": {"spec": {"process": process}},
        }
        if seconds is not None:
            spec["expireTime"] = self._time_in(seconds)
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.BATCH_SANDBOX_KIND,
            "metadata": {
                "name": name,
                "namespace": self._namespace,
                "labels": {"opensandbox.io/id": name},
                "annotations": extensions,
            },
            "spec": spec,
        }
        posted = self._server.create("batchsandboxes", body, by="opensandbox")
        request = Request(name, posted["metadata"]["uid"], pool, self._clock(), keeps)
        self.requests[request.uid] = request
        self._tasks[process["workingDir"]] = request.uid
        loop = asyncio.get_running_loop()
        loop.call_later(CREATE_SECONDS, self._look, request, None)
        return request

    def whose(self, process: Object) -> str:
        """The uid of the BatchSandbox whose task it is; empty if it is nobody's."""
        return self._tasks.get(process.get("workingDir"), "")

    def renew(self, name: str, seconds: float) -> None:
        """A user prolongs the life of a sandbox that ends some time."""
        found = self.find(name)
        if found is not None and "expireTime" in found["spec"]:
            spec = {**found["spec"], "expireTime": self._time_in(seconds)}
            self._server.update("batchsandboxes", found, "opensandbox", spec=spec)

    def set_pause(self, name: str, paused: bool) -> None:
        """A user asks for a pause, which the server admits while the sandbox runs, or ends it."""
        found = self.find(name)
        if found is not None and (found.get("status") or {}).get("phase") == "Succeed":
            spec = {**found["spec"], "pause": paused}
            self._server.update("batchsandboxes", found, "opensandbox", spec=spec)

    def kill(self, name: str) -> None:
        """A user ends his sandbox."""
        found = self.find(name)
        if found is not None:
            self._server.delete("batchsandboxes", found, by="opensandbox")

    def _time_in(self, seconds: float) -> str:
        at = datetime.datetime.fromtimestamp(self._wall() + seconds, datetime.UTC)
        return at.isoformat(timespec="microseconds")

    # --- The wait for a sandbox ------------------------------------------------------------------

    def _see(self, change: Change) -> None:
        if change.resource != "batchsandboxes":
            return
        request = self.requests.get(change.object["metadata"]["uid"])
        if request is not None:
            self._look(request, change)

    def _look(self, request: Request, change: Change | None) -> None:
        if request.answer is not None:
            return
        found = change.new if change is not None else self.find(request.name)
        if found is None or found["metadata"]["uid"] != request.uid:
            self._answer(request, Answer.GONE)
            return
        status = found.get("status") or {}
        phase = status.get("phase")
        lacks = any(c["type"] == "PoolAllocationPending" for c in status.get("conditions", []))
        now = self._clock()
        if request.capacity_since is not None:
            request.capacity_seconds += now - request.capacity_since
            request.capacity_since = None
        if status.get("taskFailed", 0) > 0 or phase == "Failed":
            self._answer(request, Answer.FAILED)
        elif phase == "Succeed" or (phase is None and endpoints_of(found)):
            self._answer(request, Answer.RUNNING)
        elif lacks:
            left = CAPACITY_SECONDS - request.capacity_seconds
            if left <= 0.0:
                self._answer(request, Answer.NO_CAPACITY)
                return
            request.capacity_since = now
            asyncio.get_running_loop().call_later(left + 0.001, self._look, request, None)
        if request.answer is None and now >= request.posted_at + CREATE_SECONDS:
            self._answer(request, Answer.TIMEOUT)

    def _answer(self, request: Request, answer: Answer) -> None:
        request.answer, request.answered_at = answer, self._clock()
        for told in self.on_answer:
            told(request)
        if answer not in (Answer.RUNNING, Answer.GONE) and not request.keeps:
            asyncio.get_running_loop().call_soon(self._give_up, request)

    def _give_up(self, request: Request) -> None:
        found = self.find(request.name)
        if found is not None and found["metadata"]["uid"] == request.uid:
            self._server.delete("batchsandboxes", found, by="opensandbox")


def endpoints_of(sandbox: Object) -> list[str]:
    """The addresses that a BatchSandbox names."""
    annotations = sandbox["metadata"].get("annotations") or {}
    listed: list[str] = json.loads(annotations.get(names.ANNOTATION_ENDPOINTS, "[]"))
    return listed


def phase_of(sandbox: Object) -> str:
    """How far a BatchSandbox is; empty if nothing was said yet."""
    return (sandbox.get("status") or {}).get("phase") or ""
