"""An API server in memory: objects, versions, preconditions, watches.

It is as strict as the real one where the operator relies on it: uids, resource versions that grow
with every change, 404, 409, 410, 422 and 403, writes that change nothing and make no version,
deletion with a grace period, lists in pages of one moment, watches by selector that go on from a
version or say that it is too old. It knows no schemas but those that it is given.

Objects are never changed in place, so a reader may keep what it got.
"""

from __future__ import annotations

import copy
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from sandboxpool.api.times import timestamp
from sandboxpool.kube.client import JSON_PATCH, MERGE_PATCH
from sandboxpool.kube.errors import ApiError
from support.simulation.admission import CHANGE, CHANGE_NODE, CHECK, CREATE, Admission
from support.simulation.patches import json_patched, merge_patched, selector

Object = dict[str, Any]
Key = tuple[str, str]

CLUSTER_SCOPED = frozenset({"nodes", "runtimeclasses", "sandboxruntimes"})
# Only these have a grace period; all else goes at once.
GRACEFUL = "pods"

encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Request:
    """One request, as the server reads it."""

    method: str
    path: str
    body: Any = None
    params: Mapping[str, str] = field(default_factory=dict)
    content_type: str = ""

    @property
    def write(self) -> bool:
        """It is meant to change something."""
        return self.method != "GET" and "dryRun" not in self.params

    @property
    def resource(self) -> str:
        """Such as `pods`."""
        return Place.of(self.path).resource


@dataclass(frozen=True, slots=True)
class Place:
    """What a path names."""

    resource: str
    namespace: str
    name: str
    subresource: str

    @classmethod
    def of(cls, path: str) -> Place:
        parts = path.strip("/").split("/")
        parts = parts[2:] if parts[0] == "api" else parts[3:]
        namespace = ""
        if parts[0] == "namespaces":
            namespace, parts = parts[1], parts[2:]
        return cls(parts[0], namespace, *(*parts[1:], "", "")[:2])


@dataclass(frozen=True, slots=True)
class Change:
    """One change of one object.

    Attributes:
        old: None if it is new.
        new: None if it is gone.
        by: who asked for it.
        late: who asked for it had given up, or was no more.
    """

    version: int
    resource: str
    old: Object | None
    new: Object | None
    by: str
    late: bool

    @property
    def object(self) -> Object:
        """The object as it is now, or was last."""
        found = self.new or self.old
        assert found is not None
        return found


class Watch:
    """What one client watches."""

    def __init__(self, place: Place, params: Mapping[str, str], tell: Callable[[bytes], None]):
        self.place = place
        self._selects = selector(place.namespace, params)
        self._tell = tell

    def see(self, change: Change) -> None:
        """Tell of a change what the selectors let through, as the real server does."""
        was = change.old is not None and self._selects(change.old)
        is_now = change.new is not None and self._selects(change.new)
        if not was and not is_now:
            return
        kind = "MODIFIED" if was and is_now else "ADDED" if is_now else "DELETED"
        shown = change.new if is_now else change.old
        assert shown is not None
        if not is_now:
            metadata = {**shown["metadata"], "resourceVersion": str(change.version)}
            shown = {**shown, "metadata": metadata}
        self._tell(encode({"type": kind, "object": shown}))


class ApiServer:
    """Objects, and what was done to them.

    Args:
        wall: seconds since the epoch, by its own clock.
    """

    def __init__(self, wall: Callable[[], float]) -> None:
        self.version = 1000
        self.listeners: list[Callable[[Change], None]] = []
        self.watches: list[Watch] = []
        self.admission = Admission()
        # Of kinds whose status is a subresource: raise ApiError where an object does not fit.
        self.schemas: dict[str, Callable[[Object], None]] = {}
        self.wall = wall
        self._objects: defaultdict[str, dict[Key, Object]] = defaultdict(dict)
        self._history: defaultdict[str, list[Change]] = defaultdict(list)
        self._compacted = 0
        self._uids = itertools.count(1)
        self._pages: dict[str, tuple[list[Object], int]] = {}

    # --- For everybody but the operator ----------------------------------------------------------

    def judging_seconds(self, request: Request) -> float:
        """How long the admission plugins take over a request."""
        place = Place.of(request.path)
        if place.resource != "pods" or request.method not in ("POST", "PATCH"):
            return 0.0
        if request.method == "PATCH":
            return self.admission.seconds(CHANGE, place.namespace, place.name)
        what = CHECK if "dryRun" in request.params else CREATE
        return self.admission.seconds(what, place.namespace, request.body["metadata"]["name"])

    def all(self, resource: str) -> list[Object]:
        """Every object of a kind."""
        return list(self._objects[resource].values())

    def find(self, resource: str, name: str, namespace: str = "") -> Object | None:
        """One object, or None."""
        return self._objects[resource].get((namespace, name))

    def create(self, resource: str, body: Object, *, by: str, late: bool = False) -> Object:
        """Make an object.

        Raises:
            ApiError: AlreadyExists, or admission refuses it.
        """
        metadata = body["metadata"]
        key = metadata.get("namespace", ""), metadata["name"]
        self._admissible(resource, key, body)
        if resource == "pods":
            body = self.admission.review(CREATE, body)
        return self._commit(resource, key, self._fresh(resource, body), by=by, late=late)

    def update(self, resource: str, old: Object, by: str, **parts: Any) -> Object:
        """Replace parts of an object, such as its status; the same again changes nothing."""
        return self._store(resource, old, {**old, **parts}, by=by, late=False)

    def delete(self, resource: str, old: Object, *, by: str, grace: int | None = None) -> None:
        """Delete an object; a pod on a node only begins to go."""
        self._delete(resource, old, grace, by=by, late=False)

    def remove(self, resource: str, old: Object, *, by: str) -> None:
        """Take an object away at once."""
        self._commit(resource, key_of(old), None, by=by, late=False)

    def compact(self) -> None:
        """Forget how it came to this: who watches from an older version must list."""
        self._compacted = self.version
        self._history.clear()
        self._pages.clear()

    # --- For the operator ------------------------------------------------------------------------

    def handle(self, request: Request, *, by: str = "operator", late: bool = False) -> bytes:
        """Carry out one request.

        Raises:
            ApiError: as the real server would answer.
        """
        place = Place.of(request.path)
        return encode(self._handle(place, request, by, late))

    def watch(
        self, path: str, params: Mapping[str, str], tell: Callable[[bytes], None]
    ) -> Callable[[], None]:
        """Begin a watch; return what ends it.

        Raises:
            ApiError: 410 if the version is too old.
        """
        place = Place.of(path)
        if not params["resourceVersion"].isdecimal():
            raise ApiError(400, "BadRequest", "Invalid value: resourceVersion")
        since = int(params["resourceVersion"])
        if since < self._compacted:
            raise ApiError(410, "Expired", f"too old resource version: {since}")
        watch = Watch(place, params, tell)
        for change in self._history[place.resource]:
            if change.version > since:
                watch.see(change)
        self.watches.append(watch)
        return lambda: self.watches.remove(watch)

    # --- Verbs -----------------------------------------------------------------------------------

    def _handle(self, place: Place, request: Request, by: str, late: bool) -> Object:
        if request.method == "GET":
            return self._get(place, request.params)
        if request.method == "POST":
            return self._post(place, request, by, late)
        old = self._existing(place)
        if request.method == "DELETE":
            for name, value in request.body.get("preconditions", {}).items():
                if old["metadata"][name] != value:
                    raise ApiError(409, "Conflict", f"Precondition failed: {name}")
            grace = request.body.get("gracePeriodSeconds")
            self._delete(place.resource, old, grace, by=by, late=late)
            return old
        if request.content_type == MERGE_PATCH:
            new = merge_patched(old, request.body)
        else:
            assert request.content_type == JSON_PATCH, request.content_type
            new = json_patched(old, request.body)
        if place.subresource == "status":
            new = {**old, "status": new.get("status")}
        elif place.resource in self.schemas:
            new = {name: value for name, value in new.items() if name != "status"}
            new |= {"status": old["status"]} if "status" in old else {}
        elif place.resource == "pods":
            new = self.admission.review(CHANGE, new)
        elif place.resource == "nodes":
            new = self.admission.review(CHANGE_NODE, new)
        if schema := self.schemas.get(place.resource):
            schema(new)
        return self._store(place.resource, old, new, by=by, late=late)

    def _get(self, place: Place, params: Mapping[str, str]) -> Object:
        if place.name:
            return self._existing(place)
        if "continue" in params:
            if params["continue"] not in self._pages:
                raise ApiError(410, "Expired", "The provided continue parameter is too old")
            items, version = self._pages.pop(params["continue"])
        else:
            selects = selector(place.namespace, params)
            stored = self._objects[place.resource]
            items = [stored[key] for key in sorted(stored) if selects(stored[key])]
            version = self.version
        limit = int(params.get("limit", len(items) + 1))
        metadata = {"resourceVersion": str(version)}
        if len(items) > limit:
            token = f"{version}-{len(items)}-{len(self._pages)}"
            self._pages[token] = items[limit:], version
            metadata["continue"] = token
        return {"metadata": metadata, "items": items[:limit]}

    def _post(self, place: Place, request: Request, by: str, late: bool) -> Object:
        body: Object = copy.deepcopy(request.body)
        if place.namespace:
            body["metadata"]["namespace"] = place.namespace
        if "dryRun" in request.params:
            self._admissible(place.resource, key_of(body), body)
            return self.admission.review(CHECK, body) if place.resource == "pods" else body
        if schema := self.schemas.get(place.resource):
            body.pop("status", None)
            schema(body)
        return self.create(place.resource, body, by=by, late=late)

    def _existing(self, place: Place) -> Object:
        found = self.find(place.resource, place.name, place.namespace)
        if found is None:
            raise ApiError(404, "NotFound", f'{place.resource} "{place.name}" not found')
        return found

    def _admissible(self, resource: str, key: Key, body: Object) -> None:
        if key in self._objects[resource]:
            raise ApiError(409, "AlreadyExists", f'{resource} "{key[1]}" already exists')
        if resource == "pods":
            name = body["spec"].get("runtimeClassName")
            if name and self.find("runtimeclasses", name) is None:
                text = (
                    f'pods "{key[1]}" is forbidden: pod rejected: RuntimeClass "{name}" not found'
                )
                raise ApiError(403, "Forbidden", text)

    def _fresh(self, resource: str, body: Object) -> Object:
        metadata = {
            **body["metadata"],
            "uid": f"uid-{next(self._uids)}",
            "creationTimestamp": timestamp(self.wall()),
            "generation": 1,
        }
        if resource != "pods":
            return {**body, "metadata": metadata}
        pending = {"type": "PodScheduled", "status": "False"}
        return {
            **body,
            "metadata": metadata,
            "status": {"phase": "Pending", "conditions": [pending]},
        }

    def _store(self, resource: str, old: Object, new: Object, *, by: str, late: bool) -> Object:
        if new == old:
            return old
        if new.get("spec") != old.get("spec"):
            metadata = {**new["metadata"], "generation": old["metadata"]["generation"] + 1}
            new = {**new, "metadata": metadata}
        return self._commit(resource, key_of(old), new, by=by, late=late)

    def _delete(
        self, resource: str, old: Object, grace: int | None, *, by: str, late: bool
    ) -> None:
        if resource != GRACEFUL or grace == 0 or not old["spec"].get("nodeName"):
            self._commit(resource, key_of(old), None, by=by, late=late)
        elif "deletionTimestamp" not in old["metadata"]:
            metadata = {**old["metadata"], "deletionTimestamp": timestamp(self.wall() + 30)}
            self._commit(resource, key_of(old), {**old, "metadata": metadata}, by=by, late=late)

    def _commit(
        self, resource: str, key: Key, new: Object | None, *, by: str, late: bool
    ) -> Object:
        self.version += 1
        stored = self._objects[resource]
        old = stored.get(key)
        if new is None:
            del stored[key]
        else:
            metadata = {**new["metadata"], "resourceVersion": str(self.version)}
            stored[key] = new = {**new, "metadata": metadata}
        change = Change(self.version, resource, old, new, by, late)
        self._history[resource].append(change)
        for watch in list(self.watches):
            if watch.place.resource == resource:
                watch.see(change)
        for listener in self.listeners:
            listener(change)
        return change.object


def key_of(obj: Object) -> Key:
    """Namespace and name."""
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def owners(obj: Object) -> Iterator[Object]:
    """The owner references of an object."""
    yield from obj["metadata"].get("ownerReferences") or ()


def labels(obj: Object) -> Mapping[str, str]:
    """The labels of an object."""
    found: Mapping[str, str] = obj["metadata"].get("labels") or {}
    return found
