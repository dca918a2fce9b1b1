"""Lists whole collections into a store, in pages, without blocking the event loop.

Only the metadata of an object is decoded if the store knows this version, as it mostly does.
"""

import logging
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from sandboxpool.kube.client import ApiClient
from sandboxpool.kube.errors import UNREADABLE, ApiError
from sandboxpool.util.cooperative import CooperativeYield

logger = logging.getLogger(__name__)

# Decoding a page takes a few milliseconds even if the objects are large.
PAGE_SIZE = 250


class ListTarget(Protocol):
    """Receives lists, one at a time; a watch may change it meanwhile."""

    def begin_list(self) -> None:
        """A list is about to be requested."""

    def is_known(self, namespace: str, name: str, uid: str, version: str) -> bool:
        """Mark an object as listed; return whether this version of it is known."""

    def put_listed(self, body: Mapping[str, Any]) -> None:
        """Store an object of the list."""

    def end_list(self, version: str) -> None:
        """The list is complete, as of this resourceVersion."""


class NamespacedListTarget(ListTarget, Protocol):
    """Receives the lists of several namespaces as one."""

    def keep_namespace(self, namespace: str) -> None:
        """Mark all known objects of a namespace as listed."""


class _PageMetadata(msgspec.Struct):
    resourceVersion: str
    # "continue" is a Python keyword, so the wire's name is mapped.
    cont: str = msgspec.field(default="", name="continue")


class _Page(msgspec.Struct):
    metadata: _PageMetadata
    items: list[msgspec.Raw]


class _Metadata(msgspec.Struct):
    name: str
    namespace: str = ""
    uid: str = ""
    resourceVersion: str = ""


class _Head(msgspec.Struct):
    metadata: _Metadata


async def list_into(client: ApiClient, path: str, store: ListTarget) -> None:
    """List a collection into a store.

    Raises:
        KubeError: the API server did not respond, or the list expired between two pages. What was
            listed until then is stored, and nothing is removed.
        UNREADABLE: the response is not a list; a proxy may have sent it.
    """
    store.begin_list()
    store.end_list(await _list_pages(client, path, store))


async def list_namespaces_into(
    client: ApiClient, paths: Mapping[str, str], store: NamespacedListTarget
) -> None:
    """List a kind in several namespaces into a store, and remove what none of the lists contains.

    A namespace that the API server refuses to list keeps what the store has of it.

    Args:
        client: the API client.
        paths: by namespace.
        store: all its objects are in these namespaces.

    Raises:
        KubeError: as of ``list_into``.
        UNREADABLE: as of ``list_into``.
    """
    store.begin_list()
    versions = []
    for namespace, path in paths.items():
        try:
            versions.append(await _list_pages(client, path, store))
        except ApiError as error:
            if error.status != 403:
                raise
            logger.info("%s", error)
            store.keep_namespace(namespace)
    # The first list is the oldest.
    store.end_list(versions[0] if versions else "")


async def _list_pages(client: ApiClient, path: str, store: ListTarget) -> str:
    """Store the objects of all pages; return the list's resourceVersion."""
    params = {"limit": str(PAGE_SIZE)}
    turns = CooperativeYield()
    while True:
        page = msgspec.json.decode(await client.get(path, params), type=_Page)
        for raw in page.items:
            _take(store, raw)
            await turns.maybe_yield()
        if not page.metadata.cont:
            return page.metadata.resourceVersion
        params["continue"] = page.metadata.cont


def _take(store: ListTarget, raw: msgspec.Raw) -> None:
    """Store one object; one that cannot be decoded is skipped, but not removed if it has a name."""
    try:
        head = msgspec.json.decode(raw, type=_Head).metadata
        if not store.is_known(head.namespace, head.name, head.uid, head.resourceVersion):
            store.put_listed(msgspec.json.decode(raw, type=dict[str, Any]))
    except UNREADABLE as error:
        logger.warning("a listed object cannot be decoded and is skipped: %s", error)
