"""The RuntimeClasses that exist: fed by kopf's events and by a list every minute."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from sandboxpool.api.core import RuntimeClass
from sandboxpool.runtimes.resolve import Runtime, runtime_from_class
from sandboxpool.util.resource_version import parse_resource_version

logger = logging.getLogger(__name__)


class RuntimeClassStore:
    """Fills a dict of classes, and says which names have changed.

    A watch never takes a class back behind what is known; a list does, as with pools.

    Args:
        classes: by name; read by everything else.
        on_change: called with the name of a class that appeared, changed or vanished.
    """

    def __init__(self, classes: dict[str, Runtime], on_change: Callable[[str], None]) -> None:
        self._classes = classes
        self._on_change = on_change
        self._versions: dict[str, int] = {}
        # What the list under way has shown, and what watches have told since it was asked for.
        self._listed: set[str] = set()
        self._watched: set[str] = set()

    def observe(self, body: Mapping[str, Any], *, deleted: bool = False) -> None:
        """Take in one object as a watch shows it; an older state than the known one is ignored."""
        obj = _read(body)
        if obj is None:
            return
        name, version = obj.metadata.name, parse_resource_version(obj.metadata.resourceVersion)
        if version < self._versions.get(name, 0):
            return
        self._versions[name] = version
        self._watched.add(name)
        if not deleted:
            self._put(name, runtime_from_class(obj))
        elif name in self._classes and self._classes[name].uid == obj.metadata.uid:
            self._put(name, None)

    def begin_list(self) -> None:
        """A list is about to be asked for: what is told from now on may be newer than it."""
        self._listed.clear()
        self._watched.clear()

    def is_known(self, namespace: str, name: str, uid: str, version: str) -> bool:
        """Note an object of the list; return whether it is known as it is there."""
        del namespace
        # One that does not fit is not gone.
        self._listed.add(name)
        known = self._classes.get(name)
        same = self._versions.get(name) == parse_resource_version(version) != 0
        return known is not None and known.uid == uid and same

    def put_listed(self, body: Mapping[str, Any]) -> None:
        """Take in an object of the list."""
        obj = _read(body)
        if obj is None:
            return
        name = obj.metadata.name
        if name in self._watched:
            self.observe(body)
            return
        self._versions[name] = parse_resource_version(obj.metadata.resourceVersion)
        self._put(name, runtime_from_class(obj))

    def end_list(self, version: str) -> None:
        """The list is complete: what it lacks, and nobody has told of since, is gone."""
        for name in [name for name in self._classes if name not in self._listed]:
            if name not in self._watched or self._versions.get(name, 0) <= parse_resource_version(
                version
            ):
                # A watch that lags behind may still tell of its last days.
                self._versions[name] = parse_resource_version(version) + 1
                self._put(name, None)

    def _put(self, name: str, new: Runtime | None) -> None:
        if self._classes.get(name) == new:
            return
        if new is not None:
            self._classes[name] = new
        else:
            del self._classes[name]
        self._on_change(name)


def _read(body: Mapping[str, Any]) -> RuntimeClass | None:
    try:
        return msgspec.convert(body, RuntimeClass)
    except (msgspec.ValidationError, RecursionError) as error:
        logger.warning("a RuntimeClass does not fit and is skipped: %s", error)
        return None
