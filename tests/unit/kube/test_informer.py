"""An informer against an API server that says whatever it likes."""

import asyncio
import json
import logging
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from sandboxpool.kube.client import ApiClient
from sandboxpool.kube.errors import ApiError, KubeError, UnknownOutcomeError
from sandboxpool.kube.informer import MAX_STALENESS_SECONDS, Informer
from sandboxpool.kube.informers import InformerGroup

pytestmark = pytest.mark.looptime


class Meta(msgspec.Struct):
    name: str
    uid: str
    resourceVersion: str
    namespace: str = ""
    creationTimestamp: str = ""


class Thing(msgspec.Struct):
    metadata: Meta
    size: int = 0


def thing(name: str, version: int = 1, *, uid: str = "", **more: Any) -> dict[str, Any]:
    meta = {"name": name, "uid": uid or f"{name}-uid", "resourceVersion": str(version)}
    return {"metadata": meta, **more}


def event(type_: str, body: Any) -> bytes:
    return json.dumps({"type": type_, "object": body}).encode()


def listed(*items: Any, version: int = 10, cont: str = "") -> bytes:
    meta = {"resourceVersion": str(version), "continue": cont}
    return json.dumps({"metadata": meta, "items": list(items)}).encode()


GONE_EVENT = event("ERROR", {"code": 410, "reason": "Expired", "message": "too old"})
GONE = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}


class Server(ApiClient):
    """Gives the next list and the next watch; a watch without a next one stays silent."""

    def __init__(self, lists: list[Any], watches: list[Any]) -> None:
        self.lists = lists
        self.watches = watches
        self.asked: list[tuple[str, dict[str, str]]] = []

    async def get(self, path: str, params: Mapping[str, str] | None = None) -> bytes:
        assert path == "/things"
        self.asked.append(("list", dict(params or {})))
        answer = self.lists.pop(0)
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, bytes)
        return answer

    @asynccontextmanager
    async def watch(
        self, path: str, params: Mapping[str, str]
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        assert path == "/things"
        self.asked.append(("watch", dict(params)))
        script = self.watches.pop(0) if self.watches else [asyncio.Event()]
        yield self._lines(script)

    async def _lines(self, script: list[Any]) -> AsyncIterator[bytes]:
        for step in script:
            if isinstance(step, Exception):
                raise step
            if isinstance(step, asyncio.Event):
                await step.wait()
            elif isinstance(step, float):
                await asyncio.sleep(step)
            else:
                yield step

    def versions(self) -> list[str]:
        return [p.get("resourceVersion", "") for kind, p in self.asked if kind == "watch"]


class Run:
    """An informer at work, and what it told."""

    def __init__(self, lists: list[Any], watches: list[Any] | None = None, **given: Any) -> None:
        self.server = Server(lists, watches or [])
        self.told: list[tuple[str | None, str | None]] = []
        self.causes: list[str] = []
        self.informer = Informer(
            self.server, "/things", Thing, self._tell, on_restart=self.causes.append, **given
        )

    def _tell(self, old: Thing | None, new: Thing | None) -> None:
        def short(state: Thing | None) -> str | None:
            return (
                state
                if state is None
                else f"{state.metadata.name}@{state.metadata.resourceVersion}"
            )

        self.told.append((short(old), short(new)))

    async def go(self, seconds: float = 100) -> "Run":
        """Run for so long."""
        async with self.running():
            await asyncio.sleep(seconds)
        return self

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.informer.run())
        yield
        assert not task.done(), task.exception()
        task.cancel()
        await asyncio.wait([task])

    @property
    def names(self) -> list[str]:
        return sorted(state.metadata.name for state in self.informer)


async def test_a_list_and_the_changes_after_it() -> None:
    watch = [
        event("MODIFIED", thing("a", 11)),
        event("ADDED", thing("b", 12)),
        event("DELETED", thing("a", 13)),
        asyncio.Event(),
    ]
    run = await Run([listed(thing("a"))], [watch], label_selector="x=y").go()
    assert run.told == [(None, "a@1"), ("a@1", "a@11"), (None, "b@12"), ("a@11", None)]
    assert run.names == ["b"]
    assert run.informer.synced.is_set()
    assert [kind for kind, _ in run.server.asked] == ["list", "watch"]
    assert all(params["labelSelector"] == "x=y" for _, params in run.server.asked)
    assert "resourceVersion" not in run.server.asked[0][1]


async def test_a_list_comes_in_pages_and_none_is_told_before_the_last() -> None:
    run = await Run([listed(thing("a"), cont="next"), listed(thing("b"), version=12)]).go()
    assert run.names == ["a", "b"]
    assert run.server.asked[1][1]["continue"] == "next"
    assert run.server.versions() == ["12"]


@pytest.mark.parametrize("gone", ["http", "event"])
async def test_a_relist_replaces(gone: str) -> None:
    end = ApiError(410, "Expired", "too old") if gone == "http" else event("ERROR", GONE)
    lists = [
        listed(thing("gone"), thing("kept"), thing("changed")),
        listed(thing("kept"), thing("changed", 22), thing("new", 23), version=30),
    ]
    run = await Run(lists, [[end]]).go()
    assert run.told[3:] == [("gone@1", None), ("changed@1", "changed@22"), (None, "new@23")]
    assert run.server.versions() == ["10", "30"]
    assert run.causes[0] == "gone"


async def test_after_a_cut_the_watch_goes_on_from_the_last_version_without_a_list() -> None:
    watches = [
        [event("ADDED", thing("a", 15)), UnknownOutcomeError("cut")],
        [event("BOOKMARK", {"metadata": {"resourceVersion": "40"}})],
        [event("ERROR", {"code": 500, "message": "etcd"})],
    ]
    run = await Run([listed()], watches).go()
    assert run.server.versions() == ["10", "15", "40", "40"]
    assert [kind for kind, _ in run.server.asked].count("list") == 1
    assert run.causes == ["connection", "ended", "500"]


async def test_another_uid_under_the_same_name_is_an_end_and_a_beginning() -> None:
    watch = [event("MODIFIED", thing("a", 11, uid="other")), asyncio.Event()]
    run = await Run([listed(thing("a"))], [watch]).go()
    assert run.told == [(None, "a@1"), ("a@1", None), (None, "a@11")]


async def test_the_same_version_again_is_no_change() -> None:
    run = await Run([listed(thing("a"))], [[event("ADDED", thing("a")), asyncio.Event()]]).go()
    assert run.told == [(None, "a@1")]


async def test_an_unreadable_object_is_skipped_by_name_and_what_was_known_of_it_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bad = thing("bad", 11, size="big")
    lists = [listed(thing("bad"), thing("a")), listed(bad, thing("a", 12), version=30)]
    watch = [event("MODIFIED", bad), b"nonsense", event("ADDED", thing("b", 13))]
    with caplog.at_level(logging.WARNING):
        run = await Run(lists, [[*watch, event("ERROR", GONE)]]).go()
    assert ("bad@1", None) not in run.told
    assert "bad" in run.names
    assert ("a@1", "a@12") in run.told
    assert "'bad'" in caplog.text


@pytest.mark.parametrize(
    "damage", [b"\xff", b"\\ud800", b'", "deep": ' + b"[" * 100_000 + b"]" * 100_000 + b', "": "']
)
async def test_what_is_no_json_and_what_is_too_deep_is_skipped_in_a_watch(damage: bytes) -> None:
    bad = event("MODIFIED", thing("bad", 11)).replace(b"bad", b"bad" + damage)
    run = await Run([listed(thing("a"))], [[bad, event("ADDED", thing("b", 12))]]).go()
    assert run.names == ["a", "b"]


async def test_what_is_no_text_is_skipped_in_a_list() -> None:
    bad = listed(thing("bad"), thing("a")).replace(b"bad", b"\xff")
    assert (await Run([bad]).go()).names == ["a"]


async def test_a_version_that_the_server_does_not_know_leads_to_a_list() -> None:
    nonsense = thing("x")
    nonsense["metadata"]["resourceVersion"] = "nonsense"
    refused = ApiError(400, "BadRequest", "invalid resourceVersion")
    watches = [[event("BOOKMARK", nonsense)], [refused]]
    run = await Run([listed(thing("a")), listed(thing("b"), version=30)], watches).go()
    assert run.names == ["b"]


async def test_the_end_of_an_unreadable_object_is_its_end() -> None:
    watch = [event("DELETED", thing("bad", 11, size="big")), asyncio.Event()]
    run = await Run([listed(thing("bad"))], [watch]).go()
    assert run.names == []


@pytest.mark.parametrize(
    "answer",
    [
        ApiError(500, "InternalError", "etcd"),
        ApiError(410, "Expired", "the list's continue token is too old"),
        UnknownOutcomeError("cut"),
        b"<html>a proxy in the way</html>",
        b"",
    ],
)
async def test_whatever_the_server_answers_the_informer_goes_on(answer: Any) -> None:
    run = await Run([answer, answer, listed(thing("a"))]).go()
    assert run.names == ["a"]


async def test_failures_wait_longer_and_longer_but_never_for_ever() -> None:
    outage: list[KubeError] = [UnknownOutcomeError("refused") for _ in range(40)]
    run = await Run([*outage, listed(thing("a"))]).go(2000)
    assert run.names == ["a"]


async def test_a_server_that_asks_for_patience_gets_it() -> None:
    run = await Run([ApiError(429, "TooManyRequests", "", 20.0), listed(thing("a"))]).go(5)
    assert run.names == []


async def test_watches_that_end_at_once_are_no_tight_loop() -> None:
    run = await Run([listed()], [[] for _ in range(1000)]).go(60)
    assert len(run.server.versions()) < 30


async def test_a_quiet_watch_that_ends_after_its_time_is_followed_by_the_next_at_once() -> None:
    run = await Run([listed()], [[50.0] for _ in range(100)]).go(3610)
    # Were there a pause after each, there would be fewer.
    assert len(run.server.versions()) == 73
    assert set(run.causes) == {"ended"}


async def test_a_failure_after_many_quiet_watches_is_the_first_one() -> None:
    quiet, cut = [50.0], [50.0, UnknownOutcomeError("cut")]
    run = await Run([listed()], [*[quiet] * 20, cut, cut, quiet]).go(1000 + 2 * 50 + 2)
    assert len(run.server.versions()) == 23


async def test_the_age_tells_for_how_long_nothing_was_heard() -> None:
    outage = [UnknownOutcomeError("refused") for _ in range(100)]
    run = Run(
        [listed()],
        [[50.0], [10.0, event("ADDED", thing("a", 11)), 50.0], [asyncio.Event()]],
    )
    assert run.informer.staleness() == math.inf
    async with run.running():
        await asyncio.sleep(40)
        assert run.informer.staleness() == pytest.approx(40)
        await asyncio.sleep(20.5)
        assert run.informer.staleness() == pytest.approx(0.5)
        # The end of a quiet watch is a sign of life; then comes one that never ends.
        await asyncio.sleep(50)
        assert run.informer.staleness() == pytest.approx(0.5)
        await asyncio.sleep(300)
        assert run.informer.staleness() == pytest.approx(300.5)
    run = await Run([listed(), *outage], [[GONE_EVENT]]).go(200)
    assert 190 < run.informer.staleness() <= 200


async def test_a_long_list_shows_signs_of_life_with_each_page() -> None:
    run = Run([listed(thing("a"), cont="more"), UnknownOutcomeError("cut")])
    async with run.running():
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert run.informer.staleness() < 1
        assert run.names == []


async def test_after_a_failure_a_watch_shows_soon_that_all_is_well_again() -> None:
    run = await Run([listed()], [[1.0, UnknownOutcomeError("cut")], [10.0]]).go(60)
    lifetimes = [int(p["timeoutSeconds"]) for kind, p in run.server.asked if kind == "watch"]
    assert [limit <= 15 for limit in lifetimes] == [False, True, False]


async def test_a_change_that_cannot_be_taken_in_keeps_no_other_from_us(
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = Run([listed(thing("a"), thing("odd"), thing("b"))], [[event("ADDED", thing("c", 11))]])
    told = run._tell

    def tell(old: Thing | None, new: Thing | None) -> None:
        if new is not None and new.metadata.name == "odd":
            raise LookupError("odd")
        told(old, new)

    run.informer._on_change = tell
    await run.go()
    assert [new for _, new in run.told] == ["a@1", "b@1", "c@11"]
    assert "the callback failed for a change of object /odd" in caplog.text


# --- Warm, and silent ----------------------------------------------------------------------------


def aged(name: str, version: int, second: int) -> dict[str, Any]:
    body = thing(name, version)
    body["metadata"]["creationTimestamp"] = f"2026-01-01T00:00:{second:02}Z"
    return body


async def test_an_informer_with_held_notifications_keeps_its_cache_and_notifies_nobody() -> None:
    watch = [event("MODIFIED", thing("a", 11)), event("DELETED", thing("b", 12)), asyncio.Event()]
    run = Run([listed(thing("a"), thing("b"))], [watch])
    run.informer.hold_notifications()
    await run.go()
    assert run.informer.synced.is_set()
    assert (run.told, run.names) == ([], ["a"])


async def test_what_was_kept_is_told_the_oldest_first_whatever_comes_meanwhile() -> None:
    many = [aged(f"n{i}", 1000 - i, second=i // 10) for i in range(200)]
    later, more = asyncio.Event(), asyncio.Event()
    changes = [event("MODIFIED", aged("n199", 2000, 19)), event("DELETED", thing("n198", 2001))]
    run = Run([listed(*many)], [[later, *changes, more]])
    run.informer.hold_notifications()
    async with run.running():
        await asyncio.sleep(1)
        telling = asyncio.create_task(run.informer.release_notifications())
        await asyncio.sleep(0)
        later.set()
        await telling
        await asyncio.sleep(1)
    assert [new for old, new in run.told if new is None or old is not None] == []
    # Of one second the lower version, which is the older, comes first.
    first = [new for _, new in run.told if new not in ("n199@2000",)]
    in_order = sorted(range(198), key=lambda i: (i // 10, 1000 - i))
    assert first == [f"n{i}@{1000 - i}" for i in in_order]
    assert [new for _, new in run.told].count("n199@2000") == 1
    assert "n198" not in run.names


async def test_a_list_on_request_is_newer_than_the_request() -> None:
    lists = [listed(thing("a"), thing("b")), listed(thing("a", 22), version=30)]
    run = Run(lists, [[event("ADDED", thing("c", 12)), asyncio.Event()]])
    run.informer.hold_notifications()
    async with run.running():
        await asyncio.sleep(1)
        assert run.names == ["a", "b", "c"]
        async with asyncio.timeout(10):
            await run.informer.relist()
        assert run.names == ["a"]
        await run.informer.release_notifications()
    assert run.told == [(None, "a@22")]
    assert run.server.versions() == ["10", "30"]


async def test_what_a_list_brings_again_is_kept_once() -> None:
    """A new leader lists everything that it knows: two copies would be twice the memory."""
    run = Run([listed(thing("a"), thing("b")), listed(thing("a"), thing("b", 22), version=30)])
    run.informer.hold_notifications()
    async with run.running():
        await asyncio.sleep(1)
        a, b = run.informer.get("", "a"), run.informer.get("", "b")
        await run.informer.relist()
        assert run.informer.get("", "a") is a
        assert run.informer.get("", "b") is not b


async def test_a_list_on_request_does_not_wait_for_the_end_of_a_pause() -> None:
    outage: list[Any] = [UnknownOutcomeError("refused") for _ in range(7)]
    run = Run([*outage, listed(thing("a"))])
    async with run.running():
        while len(run.server.asked) < len(outage):  # noqa: ASYNC110  # time is virtual
            await asyncio.sleep(0.1)
        assert not run.informer.synced.is_set()
        began = asyncio.get_running_loop().time()
        async with asyncio.timeout(10):
            await run.informer.relist()
        assert asyncio.get_running_loop().time() - began < 1
    assert run.names == ["a"]


# --- Collections that may be refused -------------------------------------------------------------


def refusals(count: int) -> list[Any]:
    return [ApiError(403, "Forbidden", "no") for _ in range(count)]


class Refusable(Run):
    """An informer of a collection that may be refused, and what it said of that."""

    def __init__(self, lists: list[Any], watches: list[Any] | None = None) -> None:
        self.said: list[bool | None] = []
        super().__init__(
            lists, watches, on_availability=lambda: self.said.append(self.informer.available)
        )


async def test_a_refused_collection_is_empty_and_nobody_waits_for_it() -> None:
    run = Refusable(refusals(1000))
    async with run.running():
        async with asyncio.timeout(1):
            await run.informer.synced.wait()
            await run.informer.relist()
        await asyncio.sleep(600)
        assert run.informer.staleness() == 0, "what is not there cannot be stale"
    assert (run.said, run.names, run.told) == ([False], [], [])
    assert len(run.server.asked) < 130, "it is asked again now and then"


async def test_a_refused_collection_is_read_soon_after_it_is_allowed() -> None:
    run = Refusable([*refusals(20), listed(thing("a"))])
    async with run.running():
        while run.informer.available is not True:
            waited = asyncio.get_running_loop().time()
            await asyncio.sleep(0.1)
        assert run.told == [(None, "a@1")]
        assert run.said == [False, True]
    assert waited < 200


async def test_a_refusal_of_a_moment_changes_nothing() -> None:
    run = Refusable(
        [listed(thing("a"))], [refusals(1), refusals(1), [event("ADDED", thing("b", 11))]]
    )
    await run.go(30)
    assert run.said == [True]
    assert run.told == [(None, "a@1"), (None, "b@11")]
    assert [kind for kind, _ in run.server.asked].count("list") == 1


async def test_a_collection_that_stays_refused_is_forgotten_and_comes_back_whole() -> None:
    watches: list[Any] = [refusals(1) for _ in range(100)]
    run = Refusable([listed(thing("a"), thing("b")), *refusals(5), listed(thing("a"))], watches)
    left: list[bool | None] = []
    async with run.running():
        while run.informer.available is not False:
            await asyncio.sleep(1)
            left.append(run.informer.available)
            assert run.informer.staleness() < MAX_STALENESS_SECONDS
        run.server.watches.clear()
        await asyncio.sleep(100)
    assert len(left) > 55, "not before a minute has passed"
    assert run.said == [True, False, True]
    assert run.told[2:] == [("a@1", None), ("b@1", None), (None, "a@1")]


async def test_it_is_said_to_be_unavailable_before_its_objects_are_reported_deleted() -> None:
    run = Refusable([listed(thing("a")), *refusals(9)], [refusals(1) for _ in range(100)])
    known: list[list[str]] = []
    run.informer._on_availability = lambda: known.append(run.names)
    await run.go(100)
    assert known == [["a"], ["a"]]
    assert run.names == []


async def test_a_standby_that_is_refused_does_not_keep_the_next_leader_waiting() -> None:
    run = Refusable([listed(thing("a")), *refusals(9)])
    run.informer.hold_notifications()
    async with run.running():
        await asyncio.sleep(1)
        async with asyncio.timeout(5):
            await run.informer.relist()
        await run.informer.release_notifications()
    assert (run.said, run.told, run.names) == ([True, False], [], [])


async def test_a_collection_that_must_be_there_is_waited_for() -> None:
    run = Run([*refusals(3), listed(thing("a"))])
    async with run.running():
        await asyncio.sleep(0.1)
        assert not run.informer.synced.is_set()
        await asyncio.sleep(100)
        assert run.names == ["a"]


# --- Several namespaces --------------------------------------------------------------------------


async def test_a_relist_of_one_namespace_leaves_the_others_alone() -> None:
    def of(namespace: str, *names: str) -> bytes:
        things = [thing(name) for name in names]
        for one in things:
            one["metadata"]["namespace"] = namespace
        return listed(*things)

    one = Run([of("one", "a", "b"), of("one", "b")], [[GONE_EVENT]])
    two = Run([of("two", "a")])
    group = InformerGroup({"one": one.informer, "two": two.informer})
    assert group.staleness() == math.inf
    async with one.running(), two.running():
        await asyncio.sleep(10)
        assert [(x.metadata.namespace, x.metadata.name) for x in group] == [
            ("one", "b"),
            ("two", "a"),
        ]
        assert len(group) == 2
        assert group.get("one", "a") is None
        assert group.get("two", "a") is two.informer.get("two", "a") is not None
        assert group.get("three", "a") is None
        assert group.staleness() == 10
    assert two.told == [(None, "a@1")]


async def test_a_list_on_request_covers_all_namespaces() -> None:
    runs = {name: Run([listed(), listed(thing(name), version=30)]) for name in ("one", "two")}
    group = InformerGroup({name: run.informer for name, run in runs.items()})
    async with runs["one"].running(), runs["two"].running():
        await asyncio.sleep(1)
        await group.relist()
        assert sorted(one.metadata.name for one in group) == ["one", "two"]
