"""The pools that exist: fed by kopf's events and by a list every minute, read by everything."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec
from pydantic import ValidationError

from sandboxpool.api.core import Pod
from sandboxpool.api.v1alpha1 import SandboxPoolSpec
from sandboxpool.pools.members import identity_of
from sandboxpool.pools.pool import Pool
from sandboxpool.versions import number_of

logger = logging.getLogger(__name__)

MAX_DEAD = 1000


class PoolStore:
    """Pools by key and by uid.

    Args:
        on_change: called with the old and the new state of a pool when either differs; one of
            them may be None.
    """

    def __init__(self, on_change: Callable[[Pool | None, Pool | None], None]) -> None:
        self._on_change = on_change
        self._pools: dict[tuple[str, str], Pool] = {}
        self._by_uid: dict[str, Pool] = {}
        self._dead: OrderedDict[str, None] = OrderedDict()

    def __iter__(self) -> Iterator[Pool]:
        return iter(self._pools.values())

    def __len__(self) -> int:
        return len(self._pools)

    def get(self, key: tuple[str, str]) -> Pool | None:
        """The pool of this namespace and name, or None."""
        return self._pools.get(key)

    def of(self, pod: Pod) -> Pool | None:
        """The pool that a pod belongs to, if it is known, and in the pod's own namespace."""
        namespace, uid = identity_of(pod)
        pool = self._by_uid.get(uid)
        return pool if pool is not None and pool.namespace == namespace else None

    def uid_of(self, pod: Pod) -> str | None:
        """The uid of the pool that a pod belongs to, known or not.

        None for a pod of no pool, and for one that names a pool of another namespace.
        """
        namespace, uid = identity_of(pod)
        pool = self._by_uid.get(uid)
        foreign = pool is not None and pool.namespace != namespace
        return None if foreign or not uid else uid

    def by_uid(self, uid: str) -> Pool | None:
        """The pool with this uid, or None."""
        return self._by_uid.get(uid)

    def observe(self, body: Mapping[str, Any], *, deleted: bool = False) -> None:
        """Take in one object as a watch shows it; an older state than the known one is ignored."""
        metadata = _identity_of(body)
        if metadata is None:
            return
        old = self._pools.get(metadata.key)
        version = number_of(metadata.resourceVersion)
        if metadata.uid in self._dead or (old is not None and version < old.version):
            # A uid is never used again: what a list has shown to be gone stays gone, even if a
            # watch that lags behind tells of its last days.
            return
        if deleted:
            if old is not None and old.uid == metadata.uid:
                self._put(metadata.key, None)
            return
        self._put(metadata.key, parse(body, old))

    def replace(self, bodies: Iterable[Mapping[str, Any]], version: str) -> None:
        """Take in a whole list: what it lacks and is not newer than it is gone."""
        listed = set()
        for body in bodies:
            metadata = _identity_of(body)
            if metadata is not None:
                listed.add(metadata.key)
                self.observe(body)
        for key, pool in list(self._pools.items()):
            if key not in listed and pool.version <= number_of(version):
                self._put(key, None)

    def _put(self, key: tuple[str, str], new: Pool | None) -> None:
        old = self._pools.pop(key, None)
        if old is not None:
            self._by_uid.pop(old.uid, None)
            if new is None or new.uid != old.uid:
                self._dead[old.uid] = None
                if len(self._dead) > MAX_DEAD:
                    self._dead.popitem(last=False)
        if new is not None:
            self._pools[key] = new
            self._by_uid[new.uid] = new
        if old is None or new is None or old != new:
            self._on_change(old, new)


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
    metadata = msgspec.convert(body, _Object).metadata
    uid, generation = metadata.uid, metadata.generation
    if not isinstance(generation, int):
        generation = 0
    problem = ""
    if old is not None and old.uid == uid and old.generation == generation:
        spec, template, problem = old.spec, old.template, old.problem
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
        version=number_of(metadata.resourceVersion),
        deleting=metadata.deletionTimestamp is not None,
        spec=spec,
        template=template,
        status=_mapping(body.get("status")),
        problem=problem,
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a mapping; damage, which an older CRD may have let in, is none."""
    return value if isinstance(value, dict) else {}
