"""An API server in memory, behind the operator's own client, that fails where a test says so.

Only the wire is replaced: paths, bodies, preconditions and the client's own retries are the real
ones. It keeps uids and resource versions, honours preconditions, and knows nothing of admission.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sandboxpool.api.times import timestamp
from sandboxpool.kube.client import MERGE_PATCH, ApiClient
from sandboxpool.kube.errors import ApiError, KubeError, UnknownOutcomeError

Object = dict[str, Any]


@dataclass(frozen=True)
class Call:
    """One request as it was sent."""

    method: str
    path: str
    body: Any
    dry_run: bool = False

    @property
    def write(self) -> bool:
        """It changes something."""
        return self.method != "GET" and not self.dry_run


@dataclass
class _Failure:
    matches: Callable[[Call], bool]
    error: KubeError
    applied: bool
    times: int


class ScriptedApi(ApiClient):
    """Objects by path, and what was asked for them.

    Args:
        clock: seconds since the epoch, for creation times.
        on_change: told the path, the old and the new state of each object that changes.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        on_change: Callable[[str, Object | None, Object | None], None] = lambda *_: None,
    ) -> None:
        self.objects: dict[str, Object] = {}
        self.calls: list[Call] = []
        self.on_change = on_change
        self.before: Callable[[Call], None] = lambda call: None
        self._clock = clock
        self._version = 1000
        self._failures: list[_Failure] = []

    @property
    def writes(self) -> list[Call]:
        """The writes that were sent, in order, whatever became of them."""
        return [call for call in self.calls if call.write]

    def sent(self, method: str, part: str = "") -> list[Call]:
        """The writes and reads of this method whose path holds this part."""
        return [c for c in self.calls if c.method == method and part in c.path and not c.dry_run]

    def fail(
        self,
        method: str,
        part: str,
        error: KubeError,
        *,
        applied: bool = False,
        times: int = 1,
        dry_run: bool = False,
    ) -> None:
        """Fail the next so many requests of this method and path; `applied`: after the effect."""
        self._failures.append(
            _Failure(
                lambda c: c.method == method and part in c.path and c.dry_run == dry_run,
                error,
                applied,
                times,
            )
        )

    def put(self, path: str, body: Object) -> Object:
        """Put an object there as if somebody else had, and tell."""
        old = self.objects.get(path)
        new = copy.deepcopy(body)
        self.objects[path] = new
        self.on_change(path, old, new)
        return new

    def remove(self, path: str) -> None:
        """Remove an object as if somebody else had, and tell."""
        old = self.objects.pop(path)
        self.on_change(path, old, None)

    def touch(self, path: str, **metadata: Any) -> None:
        """Give an object a newer version, and tell nobody: the caches are behind then."""
        self.objects[path] = copy.deepcopy(self.objects[path])
        self.objects[path]["metadata"].update(metadata)
        self.objects[path]["metadata"]["resourceVersion"] = self._next()

    def _next(self) -> str:
        self._version += 1
        return str(self._version)

    async def _send(
        self,
        method: str,
        path: str,
        data: bytes | None,
        params: Mapping[str, str] | None,
        content_type: str,
    ) -> bytes:
        body = None if data is None else json.loads(data)
        call = Call(method, path, body, dry_run=bool((params or {}).get("dryRun")))
        self.calls.append(call)
        self.before(call)
        failure = next((f for f in self._failures if f.times and f.matches(call)), None)
        if failure is not None:
            failure.times -= 1
            if not failure.applied:
                raise failure.error
        answer = self._carry_out(call, content_type)
        if failure is not None:
            raise failure.error
        return json.dumps(answer).encode()

    def _carry_out(self, call: Call, content_type: str) -> Object:
        match call.method:
            case "GET":
                return self._list(call.path) or self._existing(call.path)
            case "POST":
                return self._create(call)
            case "DELETE":
                return self._delete(call)
        if content_type == MERGE_PATCH:
            return self._merge(call)
        return self._status(call)

    def _list(self, path: str) -> Object | None:
        """A whole collection, whatever is selected; None if the path is that of an object."""
        if not path.endswith("/pods"):
            return None
        return {"items": [obj for at, obj in self.objects.items() if at.startswith(f"{path}/")]}

    def _existing(self, path: str) -> Object:
        if path not in self.objects:
            raise ApiError(404, "NotFound", f"{path} not found")
        return self.objects[path]

    def _create(self, call: Call) -> Object:
        path = f"{call.path}/{call.body['metadata']['name']}"
        if path in self.objects:
            raise ApiError(409, "AlreadyExists", f"{path} already exists")
        new: Object = copy.deepcopy(call.body)
        new["metadata"] |= {
            "uid": f"{new['metadata']['name']}-uid",
            "resourceVersion": self._next(),
            "creationTimestamp": timestamp(self._clock()),
        }
        return new if call.dry_run else self.put(path, new)

    def _merge(self, call: Call) -> Object:
        old = self._existing(call.path)
        wanted = call.body["metadata"].get("resourceVersion")
        if wanted not in (None, old["metadata"]["resourceVersion"]):
            raise ApiError(409, "Conflict", f"{call.path}: the object has been modified")
        new = _merged(old, call.body)
        new["metadata"]["resourceVersion"] = self._next()
        return self.put(call.path, new)

    def _status(self, call: Call) -> Object:
        path = call.path.removesuffix("/status")
        old = self._existing(path)
        new = copy.deepcopy(old)
        for step in call.body:
            if step["op"] == "test":
                if old["metadata"][step["path"].removeprefix("/metadata/")] != step["value"]:
                    raise ApiError(422, "Invalid", "the server rejected our request")
            else:
                assert step["path"] == "/status"
                new["status"] = copy.deepcopy(step["value"])
        if new == old:
            return old
        new["metadata"]["resourceVersion"] = self._next()
        return self.put(path, new)

    def _delete(self, call: Call) -> Object:
        old = self._existing(call.path)
        for key, value in call.body["preconditions"].items():
            if old["metadata"][key] != value:
                raise ApiError(409, "Conflict", f"{call.path}: precondition failed: {key}")
        self.remove(call.path)
        return old


def _merged(old: Any, patch: Any) -> Any:
    if not isinstance(patch, dict) or not isinstance(old, dict):
        return copy.deepcopy(patch)
    result = copy.deepcopy(old)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merged(result.get(key), value)
    return result


UNKNOWN = UnknownOutcomeError("connection cut")
CONFLICT = ApiError(409, "Conflict", "the object has been modified")
BROKEN = ApiError(500, "InternalError", "a webhook is away")
UNDECIDED = ApiError(500, "", "etcdserver: request timed out")
QUOTA = ApiError(403, "Forbidden", 'pods "x" is forbidden: exceeded quota: pods, used: 2')
REFUSED = ApiError(403, "Forbidden", 'pods "x" is forbidden: denied by policy')
