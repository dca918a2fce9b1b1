"""The RuntimeClasses that exist: fed by kopf's events and by a list every minute."""

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import msgspec

from sandboxpool.api.core import RuntimeClass
from sandboxpool.runtimes.resolve import Runtime, runtime_of
from sandboxpool.versions import number_of

logger = logging.getLogger(__name__)


class _Named(msgspec.Struct):
    name: str


class _Bare(msgspec.Struct):
    metadata: _Named


class RuntimeStore:
    """Fills a dict of classes, and says which names have changed.

    Args:
        classes: by name; read by everything else.
        on_change: called with the name of a class that appeared, changed or vanished.
    """

    def __init__(self, classes: dict[str, Runtime], on_change: Callable[[str], None]) -> None:
        self._classes = classes
        self._on_change = on_change
        self._versions: dict[str, int] = {}

    def observe(self, body: Mapping[str, Any], *, deleted: bool = False) -> None:
        """Take in one object; an older state than the known one is ignored."""
        try:
            obj = msgspec.convert(body, RuntimeClass)
        except (msgspec.ValidationError, RecursionError) as error:
            logger.warning("a RuntimeClass does not fit and is skipped: %s", error)
            return
        name, version = obj.metadata.name, number_of(obj.metadata.resourceVersion)
        if version < self._versions.get(name, 0):
            return
        self._versions[name] = version
        if deleted:
            known = self._classes.get(name)
            if known is not None and known.uid == obj.metadata.uid:
                del self._classes[name]
                self._on_change(name)
            return
        runtime = runtime_of(obj)
        if self._classes.get(name) != runtime:
            self._classes[name] = runtime
            self._on_change(name)

    def replace(self, bodies: Iterable[Mapping[str, Any]], version: str) -> None:
        """Take in a whole list: what it lacks and is not newer than it is gone."""
        listed = set()
        for body in bodies:
            with suppress(msgspec.ValidationError):
                # One that does not fit is not gone.
                listed.add(msgspec.convert(body, _Bare).metadata.name)
            self.observe(body)
        for name in [name for name in self._classes if name not in listed]:
            if self._versions.get(name, 0) <= number_of(version):
                # A watch that lags behind may still tell of its last days.
                self._versions[name] = number_of(version) + 1
                del self._classes[name]
                self._on_change(name)
