"""The namespaces whose pools the operator processes."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from sandboxpool.kube.informer import Informer

logger = logging.getLogger(__name__)


class WatchedNamespaces:
    """All namespaces, or those that the operator is limited to.

    A namespace that it is limited to is *open* while all its informers are available. Pools of
    other namespaces are not processed: without its pods in the cache, a pool would look empty.

    Args:
        names: the namespaces that the operator is limited to; empty for all.
        on_close: called with the name of a namespace that is open no more, before its informers
            report what they had cached as deleted.
    """

    def __init__(self, names: Sequence[str], on_close: Callable[[str], None]) -> None:
        self.names = tuple(names)
        self._on_close = on_close
        self._informers: defaultdict[str, list[Informer[Any]]] = defaultdict(list)
        self._open: set[str] = set()
        self._refused: set[str] = set()
        self._opened = asyncio.Event()

    def add(self, namespace: str, informer: Informer[Any]) -> None:
        """Add an informer, which must call ``update`` when its availability changes."""
        self._informers[namespace].append(informer)

    def update(self, namespace: str) -> None:
        """The availability of one of the namespace's informers has changed."""
        informers = self._informers[namespace]
        if all(informer.available for informer in informers):
            if namespace not in self._open:
                logger.info("namespace %s is watched", namespace)
                self._open.add(namespace)
                self._refused.discard(namespace)
                self._opened.set()
            return
        if namespace in self._open:
            self._open.remove(namespace)
            self._on_close(namespace)
        if namespace not in self._refused and any(i.available is False for i in informers):
            self._refused.add(namespace)
            logger.warning(
                "namespace %s is not watched, and its pools are not processed: it does not exist, "
                "or the operator's service account has no permissions in it; create the namespace "
                "and the chart's Role and RoleBinding (Helm: watchNamespaces)",
                namespace,
            )

    def is_open(self, namespace: str) -> bool:
        """Whether pools of the namespace are processed now."""
        return not self.names or namespace in self._open

    def open(self) -> list[str]:
        """The open ones of the namespaces that the operator is limited to."""
        return [name for name in self.names if name in self._open]

    async def wait_until_opened(self, seconds: float) -> None:
        """Wait until a namespace is opened that was not open at the last call, or for a time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._opened.wait()
        self._opened.clear()
