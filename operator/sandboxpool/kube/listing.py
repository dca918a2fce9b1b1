"""Takes in whole collections, in pages, without keeping the event loop from its other work.

Of an object that is known as it is listed nothing is read but its metadata: mostly that is all.
"""

import logging
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from sandboxpool.kube.client import ApiClient
from sandboxpool.kube.errors import UNREADABLE
from sandboxpool.util.cooperative import CooperativeYield

logger = logging.getLogger(__name__)

# What is decoded at a time, a few milliseconds' work even if the objects are large.
PAGE_SIZE = 250


class ListTarget(Protocol):
    """Takes in lists, one at a time; watches may tell it of changes meanwhile."""

    def begin_list(self) -> None:
        """A list is about to be asked for."""

    def is_known(self, namespace: str, name: str, uid: str, version: str) -> bool:
        """Note an object of the list; return whether it is known as it is there."""

    def put_listed(self, body: Mapping[str, Any]) -> None:
        """Take in an object of the list."""

    def end_list(self, version: str) -> None:
        """The list is complete, and was true at this version."""


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
        KubeError: the API server did not answer, or the list expired between two pages. What was
            listed until then is taken in, and nothing is gone.
        UNREADABLE: something between us and the API server answered in its place.
    """
    store.begin_list()
    params = {"limit": str(PAGE_SIZE)}
    turns = CooperativeYield()
    while True:
        page = msgspec.json.decode(await client.get(path, params), type=_Page)
        for raw in page.items:
            _take(store, raw)
            await turns.maybe_yield()
        if not page.metadata.cont:
            break
        params["continue"] = page.metadata.cont
    store.end_list(page.metadata.resourceVersion)


def _take(store: ListTarget, raw: msgspec.Raw) -> None:
    """What cannot be read is passed over; one that at least has a name is not taken for gone."""
    try:
        head = msgspec.json.decode(raw, type=_Head).metadata
        if not store.is_known(head.namespace, head.name, head.uid, head.resourceVersion):
            store.put_listed(msgspec.json.decode(raw, type=dict[str, Any]))
    except UNREADABLE as error:
        logger.warning("an object is skipped, which cannot be read: %s", error)
