"""Which namespaces are open, and how their pools are listed."""

import asyncio
import logging
from typing import Any, cast

import msgspec
import pytest

from sandboxpool.api.core import Pod
from sandboxpool.app.namespaces import WatchedNamespaces
from sandboxpool.cluster.pool import Pool
from sandboxpool.cluster.pools import PoolStore
from sandboxpool.kube.client import ApiClient
from sandboxpool.kube.errors import ApiError
from sandboxpool.kube.informer import Informer
from sandboxpool.kube.listing import list_namespaces_into
from support.builders import pool_body

pytestmark = pytest.mark.looptime


class FakeInformer:
    """Only as available as a test says."""

    def __init__(self) -> None:
        self.available: bool | None = None


class World:
    """Two namespaces with two informers each."""

    def __init__(self) -> None:
        self.closed: list[str] = []
        self.namespaces = WatchedNamespaces(("one", "two"), self.closed.append)
        self.informers = {name: (FakeInformer(), FakeInformer()) for name in ("one", "two")}
        for name, informers in self.informers.items():
            for informer in informers:
                self.namespaces.add(name, cast(Informer[Pod], informer))

    def say(self, namespace: str, *available: bool | None) -> list[str]:
        for informer, state in zip(self.informers[namespace], available, strict=True):
            informer.available = state
            self.namespaces.update(namespace)
        return self.namespaces.open()


async def test_a_namespace_is_open_once_all_its_informers_are_available() -> None:
    world = World()
    assert world.say("one", True, None) == []
    assert world.say("two", True, True) == ["two"]
    assert not world.namespaces.is_open("one")
    assert world.say("one", True, True) == ["one", "two"]
    assert world.namespaces.is_open("one")
    assert not world.namespaces.is_open("another")
    assert world.say("one", True, False) == ["two"]
    assert world.closed == ["one"]


async def test_without_names_all_namespaces_are_open() -> None:
    assert WatchedNamespaces((), lambda name: None).is_open("any")


async def test_what_is_not_watched_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    with caplog.at_level(logging.INFO):
        world.say("two", True, True)
        for _ in range(3):
            world.say("one", False, False)
        world.say("one", True, True)
        world.say("one", False, False)
    said = [(r.levelname, r.args) for r in caplog.records]
    two, one = (("two",), ("one",))
    assert said == [("INFO", two), ("WARNING", one), ("INFO", one), ("WARNING", one)]


async def test_who_waits_for_a_namespace_is_woken_once() -> None:
    world = World()
    loop = asyncio.get_running_loop()
    loop.call_later(5, world.say, "one", True, True)
    await world.namespaces.wait_until_opened(60)
    assert loop.time() == 5
    await world.namespaces.wait_until_opened(60)
    assert loop.time() == 65


class Server(ApiClient):
    """Has lists of pools by namespace; an error in the place of one is raised."""

    def __init__(self, **lists: Any) -> None:
        self.lists = lists

    async def get(self, path: str, params: Any = None) -> bytes:
        assert params["limit"]
        found = self.lists[path]
        if isinstance(found, Exception):
            raise found
        version, *pools = found
        return msgspec.json.encode({"metadata": {"resourceVersion": str(version)}, "items": pools})


def pool(namespace: str, name: str, version: int = 5) -> dict[str, Any]:
    body = pool_body(name, uid=f"{namespace}-{name}")
    body["metadata"] |= {"namespace": namespace, "resourceVersion": str(version)}
    return body


class Stored:
    """A store of pools, and what it told."""

    def __init__(self) -> None:
        self.gone: list[tuple[str, str]] = []
        self.store = PoolStore(self._told)

    def _told(self, old: Pool | None, new: Pool | None) -> None:
        if old is not None and new is None:
            self.gone.append(old.key)

    async def list(self, **lists: Any) -> list[tuple[str, str]]:
        await list_namespaces_into(Server(**lists), {name: name for name in lists}, self.store)
        return sorted(found.key for found in self.store)


async def test_the_lists_of_several_namespaces_replace_all_pools() -> None:
    stored = Stored()
    found = await stored.list(
        one=(7, pool("one", "a"), pool("one", "b")), two=(8, pool("two", "a"))
    )
    assert found == [("one", "a"), ("one", "b"), ("two", "a")]
    assert await stored.list(one=(9, pool("one", "b")), two=(9,)) == [("one", "b")]
    assert sorted(stored.gone) == [("one", "a"), ("two", "a")]


async def test_a_refused_list_keeps_what_is_known_of_its_namespace_and_stops_no_other() -> None:
    stored = Stored()
    await stored.list(one=(7, pool("one", "a")), two=(7, pool("two", "a")))
    refusal = ApiError(403, "Forbidden", "no")
    found = await stored.list(one=refusal, two=(9, pool("two", "b")))
    assert found == [("one", "a"), ("two", "b")]
    assert await stored.list(one=refusal) == [("one", "a")]


async def test_a_namespace_that_is_not_listed_any_more_has_no_pools() -> None:
    stored = Stored()
    await stored.list(one=(7, pool("one", "a")), two=(7, pool("two", "a")))
    assert await stored.list(two=(9, pool("two", "a"))) == [("two", "a")]
    assert await stored.list() == []


async def test_another_failure_removes_nothing() -> None:
    stored = Stored()
    await stored.list(one=(7, pool("one", "a")), two=(7, pool("two", "a")))
    with pytest.raises(ApiError):
        await stored.list(one=(8,), two=ApiError(500, "InternalError", "no"))
    assert len(stored.store) == 2


async def test_what_is_created_between_two_lists_is_kept() -> None:
    """The list of the last namespace is newer than that of the first, which lacks the new pool."""
    stored = Stored()

    class Late(Server):
        async def get(self, path: str, params: Any = None) -> bytes:
            answer = await super().get(path, params)
            if path == "one":
                stored.store.observe(pool("one", "new", 8))
            return answer

    lists: dict[str, Any] = {"one": (7,), "two": (9,)}
    await list_namespaces_into(Late(**lists), {"one": "one", "two": "two"}, stored.store)
    assert [found.key for found in stored.store] == [("one", "new")]


async def test_pools_of_a_closed_namespace_come_back_by_a_list() -> None:
    stored = Stored()
    await stored.list(one=(7, pool("one", "a")), two=(7, pool("two", "a")))
    stored.store.forget_namespace("one")
    assert stored.gone == [("one", "a")]
    stored.store.observe(pool("one", "a"))
    assert [found.key for found in stored.store] == [("two", "a")], "a late event of a watch"
    found = await stored.list(one=(9, pool("one", "a")), two=(9, pool("two", "a")))
    assert found == [("one", "a"), ("two", "a")]
