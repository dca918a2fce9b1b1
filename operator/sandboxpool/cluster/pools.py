"""The pools that exist: fed by kopf's events and by a list every minute, read by everything."""

import logging
from bisect import bisect_left, insort
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from pydantic import ValidationError

from sandboxpool.api.core import Pod
from sandboxpool.api.v1alpha1 import IsolationProof, SandboxPoolSpec
from sandboxpool.cluster.ownership import pool_identity_of
from sandboxpool.cluster.pool import Pool
from sandboxpool.cluster.sandbox_state import SandboxState
from sandboxpool.util.resource_version import parse_resource_version

logger = logging.getLogger(__name__)

MAX_DELETED_UIDS = 1000


@dataclass(slots=True)
class ClassPools:
    """The pools that name one class, and what they say of themselves, summed up.

    Attributes:
        pools: by uid.
        names: namespace/name, sorted.
        sandboxes: how many the pools have counted in each state.
        wanting_proof: how many of the pools want proof of isolation.
        warm_with_proof: how many sandboxes these have counted as warm.
    """

    pools: dict[str, Pool] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    sandboxes: Counter[SandboxState] = field(default_factory=Counter)
    wanting_proof: int = 0
    warm_with_proof: int = 0

    def change(self, old: Pool | None, new: Pool | None) -> None:
        """A pool of the class comes, changes or goes; the cost is that of one pool."""
        for pool, sign in ((old, -1), (new, 1)):
            if pool is None:
                continue
            counts = sandbox_counts(pool)
            for state, count in counts.items():
                self.sandboxes[state] += sign * count
            if pool.proof is not IsolationProof.NONE:
                self.wanting_proof += sign
                self.warm_with_proof += sign * counts[SandboxState.WARM]
        if old is not None and (new is None or old.uid != new.uid):
            del self.pools[old.uid]
            del self.names[bisect_left(self.names, _name_of(old))]
        if new is not None:
            if new.uid not in self.pools:
                insort(self.names, _name_of(new))
            self.pools[new.uid] = new


class PoolStore:
    """Pools by key, by uid and by class.

    A watch may lag, so that it never takes a pool back behind what is known. A list does: it shows
    what there is, even where the API server's data was restored from a backup and versions count
    from an earlier one. Only of what a watch tells while the list is under way the newer counts.

    Args:
        on_change: called with the old and the new state of a pool when either differs; one of
            them may be None.
    """

    def __init__(self, on_change: Callable[[Pool | None, Pool | None], None]) -> None:
        self._on_change = on_change
        self._pools: dict[tuple[str, str], Pool] = {}
        self._by_uid: dict[str, Pool] = {}
        self._by_class: dict[str, ClassPools] = {}
        self._deleted_uids: OrderedDict[str, None] = OrderedDict()
        # What the list under way has shown, and what watches have told since it was asked for.
        self._listed: set[tuple[str, str]] = set()
        self._watched: set[tuple[str, str]] = set()

    def __iter__(self) -> Iterator[Pool]:
        return iter(self._pools.values())

    def __len__(self) -> int:
        return len(self._pools)

    def get(self, key: tuple[str, str]) -> Pool | None:
        """The pool of this namespace and name, or None."""
        return self._pools.get(key)

    def of(self, pod: Pod) -> Pool | None:
        """The pool that a pod belongs to, if it is known, and in the pod's own namespace."""
        namespace, uid = pool_identity_of(pod)
        pool = self._by_uid.get(uid)
        return pool if pool is not None and pool.namespace == namespace else None

    def uid_of(self, pod: Pod) -> str | None:
        """The uid of the pool that a pod belongs to, known or not.

        None for a pod of no pool, and for one that names a pool of another namespace.
        """
        namespace, uid = pool_identity_of(pod)
        pool = self._by_uid.get(uid)
        other_namespace = pool is not None and pool.namespace != namespace
        return None if other_namespace or not uid else uid

    def by_uid(self, uid: str) -> Pool | None:
        """The pool with this uid, or None."""
        return self._by_uid.get(uid)

    def by_class(self, class_name: str) -> ClassPools:
        """The pools that name a class; what does not fit the API names none."""
        return self._by_class.get(class_name) or ClassPools()

    # --- Watched ---------------------------------------------------------------------------------

    def observe(self, body: Mapping[str, Any], *, deleted: bool = False) -> None:
        """Take in one object as a watch shows it; an older state than the known one is ignored."""
        metadata = _identity_of(body)
        if metadata is None:
            return
        old = self._pools.get(metadata.key)
        version = parse_resource_version(metadata.resourceVersion)
        if metadata.uid in self._deleted_uids or (old is not None and version < old.version):
            # A uid is never used again: what a list has shown to be gone stays gone, even if a
            # watch that lags behind tells of its last days.
            return
        if deleted:
            if old is not None and old.uid == metadata.uid:
                self._watched.add(metadata.key)
                self._put(metadata.key, None)
            return
        if self._has(metadata.key, metadata.uid, version):
            # A watch begins with all that there is.
            return
        self._watched.add(metadata.key)
        self._put(metadata.key, _parse(body, metadata, old))

    # --- Listed ----------------------------------------------------------------------------------

    def begin_list(self) -> None:
        """A list is about to be asked for: what is told from now on may be newer than it."""
        self._listed.clear()
        self._watched.clear()

    def is_known(self, namespace: str, name: str, uid: str, version: str) -> bool:
        """Note an object of the list; return whether it is known as it is there."""
        self._listed.add((namespace, name))
        return self._has((namespace, name), uid, parse_resource_version(version))

    def put_listed(self, body: Mapping[str, Any]) -> None:
        """Take in an object of the list."""
        metadata = _identity_of(body)
        if metadata is None:
            return
        if metadata.key in self._watched:
            self.observe(body)
            return
        # A backup may hold what was deleted after it was made.
        self._deleted_uids.pop(metadata.uid, None)
        self._put(metadata.key, _parse(body, metadata, self._pools.get(metadata.key)))

    def end_list(self, version: str) -> None:
        """The list is complete: what it lacks, and nobody has told of since, is gone."""
        missing = [key for key in self._pools if key not in self._listed]
        for key in missing:
            if key not in self._watched or self._pools[key].version <= parse_resource_version(
                version
            ):
                self._put(key, None)

    # --- Inside ----------------------------------------------------------------------------------

    def _has(self, key: tuple[str, str], uid: str, version: int) -> bool:
        known = self._pools.get(key)
        # What has no version can be told apart from nothing.
        return known is not None and known.uid == uid and known.version == version != 0

    def _put(self, key: tuple[str, str], new: Pool | None) -> None:
        old = self._pools.get(key)
        if old is not None and (new is None or new.uid != old.uid):
            del self._by_uid[old.uid]
            self._deleted_uids[old.uid] = None
            if len(self._deleted_uids) > MAX_DELETED_UIDS:
                self._deleted_uids.popitem(last=False)
        if new is not None:
            self._pools[key] = new
            self._by_uid[new.uid] = new
        else:
            self._pools.pop(key, None)
        self._sum_up(old, new)
        if old is None or new is None or old != new:
            self._on_change(old, new)

    def _sum_up(self, old: Pool | None, new: Pool | None) -> None:
        was, is_now = _class_of(old), _class_of(new)
        if was is not None and was == is_now:
            self._by_class[was].change(old, new)
            return
        if was is not None:
            self._by_class[was].change(old, None)
            if not self._by_class[was].pools:
                del self._by_class[was]
        if is_now is not None:
            self._by_class.setdefault(is_now, ClassPools()).change(None, new)


def _class_of(pool: Pool | None) -> str | None:
    spec = pool.spec if pool is not None else None
    return spec.runtime_class_name if spec is not None else None


def _name_of(pool: Pool) -> str:
    return f"{pool.namespace}/{pool.name}"


def sandbox_counts(pool: Pool) -> dict[SandboxState, int]:
    """How many sandboxes a pool has in each state, by its own count: made when its pods changed."""
    return {state: max(0, _count(pool, state.value)) for state in SandboxState}


def _count(pool: Pool, key: str) -> int:
    count = pool.status.get(key)
    return count if isinstance(count, int) else 0


class _Metadata(msgspec.Struct):
    namespace: str
    name: str
    uid: str
    resourceVersion: str = ""
    generation: Any = 0
    deletionTimestamp: str | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.namespace, self.name


class _Object(msgspec.Struct):
    metadata: _Metadata


def _identity_of(body: Mapping[str, Any]) -> _Metadata | None:
    """What every object of the API has; None, and a line in the log, if this one lacks it."""
    try:
        return msgspec.convert(body, _Object).metadata
    except (msgspec.ValidationError, RecursionError) as error:
        logger.warning("a SandboxPool without the metadata of an object is skipped: %s", error)
        return None


def parse(body: Mapping[str, Any], old: Pool | None) -> Pool:
    """Make a Pool of an object; the parsed spec is taken over while the generation stands.

    Raises:
        msgspec.ValidationError: it has not the metadata that every object has.
    """
    return _parse(body, msgspec.convert(body, _Object).metadata, old)


def _parse(body: Mapping[str, Any], metadata: _Metadata, old: Pool | None) -> Pool:
    uid, generation = metadata.uid, metadata.generation
    if not isinstance(generation, int):
        generation = 0
    problem = ""
    if old is not None and old.uid == uid and old.generation == generation:
        spec, template, problem = old.spec, old.template, old.spec_error
    else:
        raw = body.get("spec") or {}
        template = _mapping(_mapping(raw).get("template"))
        try:
            spec = SandboxPoolSpec.model_validate(raw)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            path = ".".join(str(part) for part in ("spec", *first["loc"]))
            problem = f"{path}: {first['msg']}"
            spec = None
            logger.warning(
                "SandboxPool %s/%s does not fit the API and is skipped: %s",
                metadata.namespace,
                metadata.name,
                problem,
            )
    return Pool(
        namespace=metadata.namespace,
        name=metadata.name,
        uid=uid,
        generation=generation,
        version=parse_resource_version(metadata.resourceVersion),
        deleting=metadata.deletionTimestamp is not None,
        spec=spec,
        template=template,
        status=_mapping(body.get("status")),
        spec_error=problem,
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a mapping; damage, which an older CRD may have let in, is none."""
    return value if isinstance(value, dict) else {}
