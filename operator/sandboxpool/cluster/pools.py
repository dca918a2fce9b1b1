"""The cache of SandboxPools: updated by kopf's watch events and by a list every minute."""

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
    """The pools of one class, and the sums of their status counts.

    Attributes:
        pools: by uid.
        names: namespace/name, sorted.
        sandboxes: the number of sandboxes in each state, by the statuses of the pools.
        wanting_proof: how many of the pools require proof of isolation.
        warm_with_proof: the number of warm sandboxes of these.
    """

    pools: dict[str, Pool] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    sandboxes: Counter[SandboxState] = field(default_factory=Counter)
    wanting_proof: int = 0
    warm_with_proof: int = 0

    def change(self, old: Pool | None, new: Pool | None) -> None:
        """Add, replace or remove one pool, at constant cost."""
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

    A watch may lag, so a watch event never replaces a newer state. A list does: it is complete and
    current, even after a restore of etcd from a backup has reset the resource versions. For objects
    with a watch event during the list, the newer state counts.

    Args:
        on_change: called with the old and the new state of a changed pool; None for the old state
            of a new pool, and for the new state of a deleted one.
    """

    def __init__(self, on_change: Callable[[Pool | None, Pool | None], None]) -> None:
        self._on_change = on_change
        self._pools: dict[tuple[str, str], Pool] = {}
        self._by_uid: dict[str, Pool] = {}
        self._by_class: dict[str, ClassPools] = {}
        self._deleted_uids: OrderedDict[str, None] = OrderedDict()
        # The keys in the list in progress, and those of watch events since it was requested.
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
        """The pool of a pod, if it is known and in the pod's own namespace."""
        namespace, uid = pool_identity_of(pod)
        pool = self._by_uid.get(uid)
        return pool if pool is not None and pool.namespace == namespace else None

    def uid_of(self, pod: Pod) -> str | None:
        """The uid of the pod's pool, known or not.

        None if the pod belongs to no pool, or refers to a pool of another namespace.
        """
        namespace, uid = pool_identity_of(pod)
        pool = self._by_uid.get(uid)
        other_namespace = pool is not None and pool.namespace != namespace
        return None if other_namespace or not uid else uid

    def by_uid(self, uid: str) -> Pool | None:
        """The pool with this uid, or None."""
        return self._by_uid.get(uid)

    def by_class(self, class_name: str) -> ClassPools:
        """The pools of a class; pools with an invalid spec have none."""
        return self._by_class.get(class_name) or ClassPools()

    # --- Watched ---------------------------------------------------------------------------------

    def observe(self, body: Mapping[str, Any], *, deleted: bool = False) -> None:
        """Apply a watch event; a state that is older than the known one is ignored."""
        metadata = _identity_of(body)
        if metadata is None:
            return
        old = self._pools.get(metadata.key)
        version = parse_resource_version(metadata.resourceVersion)
        if metadata.uid in self._deleted_uids or (old is not None and version < old.version):
            # Uids are never reused: a pool that a list has shown to be deleted stays deleted, even
            # if a delayed watch still delivers its last states.
            return
        if deleted:
            if old is not None and old.uid == metadata.uid:
                self._watched.add(metadata.key)
                self._put(metadata.key, None)
            return
        if self._has(metadata.key, metadata.uid, version):
            # A watch begins with all existing objects.
            return
        self._watched.add(metadata.key)
        self._put(metadata.key, _parse(body, metadata, old))

    # --- Listed ----------------------------------------------------------------------------------

    def begin_list(self) -> None:
        """Begin a list: watch events from now on may be newer than its objects."""
        self._listed.clear()
        self._watched.clear()

    def is_known(self, namespace: str, name: str, uid: str, version: str) -> bool:
        """Record that an object is in the list; return whether this version of it is known."""
        self._listed.add((namespace, name))
        return self._has((namespace, name), uid, parse_resource_version(version))

    def put_listed(self, body: Mapping[str, Any]) -> None:
        """Apply an object of the list."""
        metadata = _identity_of(body)
        if metadata is None:
            return
        if metadata.key in self._watched:
            self.observe(body)
            return
        # A restored backup may contain a pool that was deleted later.
        self._deleted_uids.pop(metadata.uid, None)
        self._put(metadata.key, _parse(body, metadata, self._pools.get(metadata.key)))

    def end_list(self, version: str) -> None:
        """Remove what the complete list lacks, unless a watch event has shown it since."""
        missing = [key for key in self._pools if key not in self._listed]
        for key in missing:
            if key not in self._watched or self._pools[key].version <= parse_resource_version(
                version
            ):
                self._put(key, None)

    # --- Namespaces ------------------------------------------------------------------------------

    def keep_namespace(self, namespace: str) -> None:
        """Mark all pools of a namespace as listed, because their list cannot be read now."""
        self._listed.update(key for key in self._pools if key[0] == namespace)

    def forget_namespace(self, namespace: str) -> None:
        """Remove all pools of a namespace, until they are listed again."""
        for key in [key for key in self._pools if key[0] == namespace]:
            self._put(key, None)

    # --- Internals -------------------------------------------------------------------------------

    def _has(self, key: tuple[str, str], uid: str, version: int) -> bool:
        known = self._pools.get(key)
        # Without a version an unchanged object cannot be recognized.
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
        self._update_sums(old, new)
        if old is None or new is None or old != new:
            self._on_change(old, new)

    def _update_sums(self, old: Pool | None, new: Pool | None) -> None:
        before, after = _class_of(old), _class_of(new)
        if before is not None and before == after:
            self._by_class[before].change(old, new)
            return
        if before is not None:
            self._by_class[before].change(old, None)
            if not self._by_class[before].pools:
                del self._by_class[before]
        if after is not None:
            self._by_class.setdefault(after, ClassPools()).change(None, new)


def _class_of(pool: Pool | None) -> str | None:
    spec = pool.spec if pool is not None else None
    return spec.runtime_class_name if spec is not None else None


def _name_of(pool: Pool) -> str:
    return f"{pool.namespace}/{pool.name}"


def sandbox_counts(pool: Pool) -> dict[SandboxState, int]:
    """The number of a pool's sandboxes in each state, by its status."""
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
    """Decode the metadata of an object; None, with a log line, if it is malformed."""
    try:
        return msgspec.convert(body, _Object).metadata
    except (msgspec.ValidationError, RecursionError) as error:
        logger.warning("a SandboxPool with malformed metadata is ignored: %s", error)
        return None


def parse(body: Mapping[str, Any], old: Pool | None) -> Pool:
    """Parse an object into a Pool; the parsed spec is reused while the generation is the same.

    Raises:
        msgspec.ValidationError: the metadata is malformed.
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
                "SandboxPool %s/%s is invalid and not reconciled until it is corrected: %s",
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
    """The value if it is a mapping; an older CRD may have admitted other values."""
    return value if isinstance(value, dict) else {}
