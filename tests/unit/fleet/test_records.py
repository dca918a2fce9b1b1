"""What is kept of the nodes: nothing is lost, little is written, and the objects stay small."""

import asyncio
import contextlib
import dataclasses
import itertools
import json
import zlib
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import looptime
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxpool.api.reasons import Reason
from sandboxpool.fleet import records as records_module
from sandboxpool.fleet.records import LONGEST_RETRY_SECONDS, SHARDS, WRITE_SECONDS, NodeRecords
from sandboxpool.kube.errors import ApiError, KubeError
from sandboxpool.runtimes.evidence import Evidence, Isolation, software_of
from sandboxpool.runtimes.evidence_store import EvidenceStore
from sandboxpool.runtimes.quarantine import Quarantines
from support.builders import NOW, facts
from support.scriptedapi import BROKEN, UNKNOWN, Call, ScriptedApi

PATH = "/api/v1/namespaces/system/configmaps"


def clock() -> float:
    return asyncio.get_running_loop().time()


def api() -> ScriptedApi:
    return ScriptedApi(clock)


def records_of(api: ScriptedApi) -> NodeRecords:
    return NodeRecords(api, "system", clock)


@asynccontextmanager
async def running(records: NodeRecords) -> AsyncIterator[None]:
    task = asyncio.create_task(records.run())
    yield
    assert not task.done(), task
    task.cancel()
    await asyncio.wait([task])


def stored(api: ScriptedApi) -> dict[str, Any]:
    """The records as the objects hold them, by node."""
    return {
        node: json.loads(value)
        for path, body in api.objects.items()
        if path.startswith(f"{PATH}/sandboxpool-nodes-")
        for node, value in body.get("data", {}).items()
    }


def path_of(api: ScriptedApi, node: str) -> str:
    return next(path for path, body in api.objects.items() if node in body["data"])


def neighbours(count: int) -> list[str]:
    """Names of nodes that share an object with each other."""
    shard = zlib.crc32(b"node-0") % SHARDS
    names = (f"node-{i}" for i in itertools.count())
    same = (n for n in names if zlib.crc32(n.encode()) % SHARDS == shard)
    return list(itertools.islice(same, count))


@pytest.mark.looptime
async def test_what_is_put_is_written_at_once_and_read_by_the_next() -> None:
    server = api()
    records = records_of(server)
    async with running(records):
        records.put("node-1", {"quarantines": {"runsc": {"tries": 1}}})
        await asyncio.sleep(0.1)
        assert stored(server) == {"node-1": {"quarantines": {"runsc": {"tries": 1}}}}
    (body,) = server.objects.values()
    assert body["kind"] == "ConfigMap"
    assert body["metadata"]["namespace"] == "system"
    assert body["metadata"]["labels"] == {"app.kubernetes.io/managed-by": "sandboxpool"}
    assert await records_of(server).load() == stored(server)


@pytest.mark.looptime
async def test_only_what_changed_is_written() -> None:
    server = api()
    records = records_of(server)
    first, second = neighbours(2)
    async with running(records):
        records.put(first, {"a": 1})
        records.put(second, {"a": 2})
        await asyncio.sleep(1)
        records.put(first, {"a": 3})
        await asyncio.sleep(2)
        assert server.writes[-1].method == "PATCH"
        assert server.writes[-1].body["data"] == {first: '{"a":3}'}
        sent = len(server.writes)
        records.put(first, {"a": 3})
        records.put("node-nobody-knows", None)
        await asyncio.sleep(60)
        assert len(server.writes) == sent
        records.put(second, None)
        await asyncio.sleep(2)
        assert server.writes[-1].body["data"] == {second: None}
    assert stored(server) == {first: {"a": 3}}


@pytest.mark.looptime
async def test_nothing_is_made_to_remove_what_never_was() -> None:
    server = api()
    records = records_of(server)
    records.put("node-1", {})
    records.put("node-1", None)
    async with running(records):
        await asyncio.sleep(5)
    assert server.objects == {}


@pytest.mark.looptime
async def test_however_much_changes_one_object_is_written_a_second() -> None:
    server = api()
    records = records_of(server)
    times: list[float] = []
    server.before = lambda call: times.append(clock()) if call.method != "GET" else None
    for i in range(300):
        records.put(f"node-{i}", {"n": -1})
    async with running(records):
        await asyncio.sleep(SHARDS + 1)
        assert len(stored(server)) == 300
        times.clear()
        for n in range(200):
            for i in range(0, 300, 7):
                records.put(f"node-{i}", {"n": n})
            await asyncio.sleep(0.05)
        assert len(times) <= 11
        assert all(b - a >= WRITE_SECONDS for a, b in itertools.pairwise(times))
        await asyncio.sleep(SHARDS + 1)
    assert {stored(server)[f"node-{i}"]["n"] for i in range(0, 300, 7)} == {199}


@pytest.mark.looptime
async def test_no_object_waits_for_ever_behind_a_busy_one() -> None:
    server = api()
    records = records_of(server)
    (first,) = neighbours(1)
    async with running(records):
        for n in range(40):
            records.put(first, {"n": n})
            if n == 10:
                records.put("node-1", {})
            await asyncio.sleep(0.5)
            if n == 20:
                assert "node-1" in stored(server)


@pytest.mark.looptime
@pytest.mark.parametrize("error", [BROKEN, UNKNOWN])
@pytest.mark.parametrize("applied", [False, True])
@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_a_write_that_fails_is_tried_again_with_the_newest(
    error: KubeError, applied: bool, method: str
) -> None:
    server = api()
    records = records_of(server)
    async with running(records):
        if method == "PATCH":
            records.put("node-1", {"n": 0})
            await asyncio.sleep(2)
        server.fail(method, "/configmaps", error, applied=applied, times=3)
        records.put("node-1", {"n": 1})
        await asyncio.sleep(0.1)
        records.put("node-1", {"n": 2})
        await asyncio.sleep(20)
    assert stored(server) == {"node-1": {"n": 2}}


@pytest.mark.looptime
async def test_retries_slow_down_and_are_never_given_up() -> None:
    server = api()
    records = records_of(server)
    server.fail("POST", "/configmaps", BROKEN, times=20)
    times: list[float] = []
    server.before = lambda call: times.append(clock())
    async with running(records):
        records.put("node-1", {})
        await asyncio.sleep(3600)
    gaps = [b - a for a, b in itertools.pairwise(times)][:19]
    assert gaps[:6] == pytest.approx([1, 2, 4, 8, 16, 32])
    assert gaps[6:] == pytest.approx([LONGEST_RETRY_SECONDS] * 13)
    assert stored(server) == {"node-1": {}}


@pytest.mark.looptime
async def test_what_changes_meanwhile_hastens_no_retry() -> None:
    server = api()
    records = records_of(server)
    server.fail("POST", "/configmaps", BROKEN, times=100)
    async with running(records):
        for n in range(60):
            records.put("node-1", {"n": n})
            await asyncio.sleep(0.5)
    assert len(server.calls) == 5


@pytest.mark.looptime
async def test_what_changes_while_it_is_written_is_written_again() -> None:
    server = api()
    records = records_of(server)
    first, second = neighbours(2)

    def change(call: Call) -> None:
        if len(server.calls) <= 2:
            records.put(first, {"n": len(server.calls)})
            records.put(second, {})

    server.before = change
    async with running(records):
        records.put(first, {"n": 0})
        await asyncio.sleep(5)
    assert stored(server) == {first: {"n": 2}, second: {}}


@pytest.mark.looptime
async def test_the_first_failure_after_a_success_is_the_first() -> None:
    server = api()
    records = records_of(server)
    async with running(records):
        for n in range(2):
            server.fail("PATCH" if n else "POST", "/configmaps", BROKEN, times=5)
            records.put("node-1", {"n": n})
            await asyncio.sleep(1 + 2 + 4 + 8 + 16 + 1)
            assert stored(server) == {"node-1": {"n": n}}


@pytest.mark.looptime
async def test_an_object_that_is_refused_is_in_no_others_way() -> None:
    server = api()
    records = records_of(server)
    first, second = neighbours(1)[0], "node-1"
    records.put(first, {})
    await records.flush(5)
    server.fail("PATCH", path_of(server, first), BROKEN, times=100)
    async with running(records):
        records.put(first, {"n": 1})
        await asyncio.sleep(300)
        records.put(second, {"n": 2})
        await asyncio.sleep(2)
        assert stored(server)[second] == {"n": 2}


@pytest.mark.looptime
async def test_an_object_that_somebody_deletes_comes_back_whole() -> None:
    server = api()
    names = neighbours(4)
    before = records_of(server)
    for name in names[:2]:
        before.put(name, {"n": name})
    await before.flush(5)
    records = records_of(server)
    await records.load()
    async with running(records):
        records.put(names[2], {"n": names[2]})
        await asyncio.sleep(2)
        server.remove(path_of(server, names[0]))
        records.put(names[1], None)
        records.put(names[3], {"n": names[3]})
        await asyncio.sleep(2)
    assert stored(server) == {name: {"n": name} for name in (names[0], *names[2:])}


@pytest.mark.looptime
async def test_an_object_made_by_somebody_else_meanwhile_is_filled_whole() -> None:
    server = api()
    names = neighbours(3)
    records = records_of(server)
    async with running(records):
        for name in names[:2]:
            records.put(name, {"n": name})
        await asyncio.sleep(2)
        path = path_of(server, names[0])
        body = {**server.objects[path], "data": {}}
        server.remove(path)

        def make_it(call: Call) -> None:
            if call.method == "POST":
                server.objects.setdefault(path, body)

        server.before = make_it
        records.put(names[2], {"n": names[2]})
        await asyncio.sleep(5)
    assert stored(server) == {name: {"n": name} for name in names}


@pytest.mark.looptime
async def test_what_a_former_leader_sends_late_changes_nothing_that_is_newer() -> None:
    server = api()
    first, second = neighbours(2)
    former = records_of(server)
    former.put(first, {"n": 1})
    await former.flush(5)
    records = records_of(server)
    await records.load()
    records.put(first, {"n": 2})
    await records.flush(5)

    # It is gone, so that its last write is all that comes of it.
    server.fail("GET", "/configmaps", UNKNOWN, times=10)
    former.put(first, {"n": 3})
    former.put(second, {"n": 3})
    await former.flush(0.5)
    assert stored(server) == {first: {"n": 2}}


@pytest.mark.looptime
async def test_what_somebody_else_has_written_is_put_right_with_the_next_write() -> None:
    server = api()
    first, second, third = neighbours(3)
    records = records_of(server)
    records.put(first, {"n": 1})
    await records.flush(5)
    path = path_of(server, first)
    server.touch(path)
    server.objects[path]["data"] = {first: "{}", third: "{}"}
    records.put(second, {"n": 2})
    await records.flush(5)
    assert stored(server) == {first: {"n": 1}, second: {"n": 2}}


@pytest.mark.looptime
async def test_an_answer_that_is_no_configmap_is_an_error_like_another() -> None:
    server = api()
    records = records_of(server)

    def nonsense(path: str, old: Any, new: Any) -> None:
        server.on_change = lambda *_: None
        raise msgspec.ValidationError("<html>")

    server.on_change = nonsense
    records.put("node-1", {"n": 1})
    await records.flush(5)
    assert stored(server) == {"node-1": {"n": 1}}


@pytest.mark.looptime
async def test_what_is_damaged_is_skipped_and_removed(caplog: pytest.LogCaptureFixture) -> None:
    server = api()
    names = neighbours(6)
    before = records_of(server)
    for name in names:
        before.put(name, {"n": name})
    await before.flush(5)
    damaged = server.objects[path_of(server, names[0])]["data"]
    damaged |= dict(zip(names[1:5], ["{", "[]", '"text"', ""], strict=True))
    records = records_of(server)
    good = {name: {"n": name} for name in (names[0], names[5])}
    assert await records.load() == good
    assert all(name in caplog.text for name in names[1:5])
    await records.flush(5)
    assert stored(server) == good


@pytest.mark.looptime
async def test_an_object_without_data_holds_nothing() -> None:
    server = api()
    metadata = {"name": "sandboxpool-nodes-3", "resourceVersion": "7"}
    server.put(f"{PATH}/sandboxpool-nodes-3", {"metadata": metadata})
    assert await records_of(server).load() == {}


@pytest.mark.looptime
async def test_what_was_put_before_is_newer_than_what_is_read() -> None:
    server = api()
    before = records_of(server)
    before.put("node-1", {"n": 1})
    await before.flush(5)
    records = records_of(server)
    records.put("node-1", {"n": 2})
    assert await records.load() == {}
    await records.flush(5)
    assert stored(server) == {"node-1": {"n": 2}}


@pytest.mark.looptime
async def test_what_cannot_be_read_is_an_error() -> None:
    server = api()
    server.fail("GET", "/configmaps", BROKEN)
    with pytest.raises(ApiError):
        await records_of(server).load()


# --- The end -------------------------------------------------------------------------------------


@pytest.mark.looptime
async def test_at_the_end_everything_is_written_at_once() -> None:
    server = api()
    records = records_of(server)
    for i in range(200):
        records.put(f"node-{i}", {})
    began = clock()
    await records.flush(5)
    assert clock() == began
    assert len(stored(server)) == 200


@pytest.mark.looptime
async def test_a_write_that_the_end_interrupts_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    server = api()
    records = records_of(server)
    release = asyncio.Event()
    send = server._send

    async def slow(*args: Any) -> bytes:
        await release.wait()
        return await send(*args)

    monkeypatch.setattr(server, "_send", slow)
    async with running(records):
        records.put("node-1", {"n": 1})
        await asyncio.sleep(1)
    release.set()
    await records.flush(5)
    assert stored(server) == {"node-1": {"n": 1}}


@pytest.mark.looptime
@pytest.mark.parametrize(("failures", "kept"), [(2, True), (100, False)])
async def test_the_end_is_tried_again_until_its_deadline(
    failures: int, kept: bool, caplog: pytest.LogCaptureFixture
) -> None:
    server = api()
    records = records_of(server)
    server.fail("POST", "/configmaps", BROKEN, times=failures)
    records.put("node-1", {})
    began = clock()
    await records.flush(5)
    assert clock() - began == pytest.approx(2 if kept else 5)
    assert bool(stored(server)) == kept
    assert ("1 nodes were not written in time" in caplog.text) != kept


# --- Whatever happens ----------------------------------------------------------------------------

steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 5), st.none() | st.integers(0, 3)),
        st.tuples(st.just("wait"), st.sampled_from([0.0, 0.4, 1.0, 3.0])),
        st.tuples(
            st.just("fail"),
            st.sampled_from(["POST", "PATCH"]),
            st.sampled_from([BROKEN, UNKNOWN]),
            st.booleans(),
        ),
        st.tuples(st.just("delete"), st.integers(0, 5)),
        st.tuples(st.just("restart")),
    ),
    max_size=25,
)


@settings(max_examples=40)
@given(steps)
def test_in_the_end_the_objects_hold_what_was_put_last(told: list[tuple[Any, ...]]) -> None:
    loop = looptime.new_event_loop()
    try:
        loop.run_until_complete(hold_what_was_put_last(told))
    finally:
        loop.close()


async def hold_what_was_put_last(told: list[tuple[Any, ...]]) -> None:
    server = api()
    names = [*neighbours(4), "node-1", "node-3"]
    wanted: dict[str, Any] = {}
    new = itertools.count(1000)
    async with contextlib.AsyncExitStack() as stack:

        async def start() -> NodeRecords:
            records = records_of(server)
            assert await records.load() == wanted
            await stack.enter_async_context(running(records))
            return records

        records = await start()
        for step, *args in told:
            match step:
                case "put":
                    name, value = names[args[0]], args[1]
                    wanted.pop(name, None)
                    if value is not None:
                        wanted[name] = {"n": value}
                    records.put(name, wanted.get(name))
                case "wait":
                    await asyncio.sleep(args[0])
                case "fail":
                    server.fail(args[0], "/configmaps", args[1], applied=args[2])
                case "delete":
                    await asyncio.sleep(120)
                    found = [
                        p for p, body in server.objects.items() if names[args[0]] in body["data"]
                    ]
                    for path in found:
                        server.remove(path)
                    # Whatever is put next into the object brings back all of it.
                    wanted[names[args[0]]] = {"n": next(new)}
                    records.put(names[args[0]], wanted[names[args[0]]])
                case "restart":
                    await stack.aclose()
                    await records.flush(60)
                    records = await start()
        await asyncio.sleep(300)
        assert stored(server) == wanted


# --- Size ----------------------------------------------------------------------------------------


UID = "3f2b9d1c-7c57-4b8e-9c0e-0123456789ab"
KERNEL = "Linux version 6.12.42 (@4bcec8f4443d) (gcc (Ubuntu 11.4.0-1) 11.4.0, GNU ld) #1 SMP 2026"
SAID = (
    'rpc error: code = Unknown desc = failed to start sandbox "0123456789abcdef": failed to create '
    "containerd task: failed to start shim: failed to resolve runtime path: invalid custom binary "
    "path: stat /opt/kata/bin/containerd-shim-kata-v2: no such file or directory"
)


def worst_record() -> dict[str, Any]:
    """All four handlers of a node are quarantined, with all evidence that there can be."""
    kata = [f"kata-qemu-variant-{i}" for i in range(15)]
    node = dataclasses.replace(
        facts("node", handlers=["", "runc", *kata]),
        uid=UID,
        boot_id=UID,
        container_runtime="containerd://2.1.4",
        kubelet="v1.36.2",
    )
    quarantines, evidence = Quarantines(lambda: 0.5), EvidenceStore()
    for handler in kata[:4]:
        now = NOW + 0.123456
        assert quarantines.record_failure(
            node, handler, Reason.USER_NAMESPACES_UNSUPPORTED, SAID, now=now
        )
        learned = Evidence(
            Isolation.NOT_PROVEN, NOW + 0.123456, software_of(node), UID, KERNEL, KERNEL * 2
        )
        assert evidence.put("node", handler, learned)
    return {"quarantines": quarantines.dump("node"), "evidence": evidence.dump("node")}


@pytest.mark.looptime
async def test_a_large_fleet_that_is_all_broken_fits_easily() -> None:
    server = api()
    records = records_of(server)
    record = worst_record()
    shards = defaultdict(list)
    for i in range(5000):
        name = f"ip-10-0-{i // 256}-{i % 256}.eu-central-1.compute.internal"
        shards[zlib.crc32(name.encode()) % SHARDS].append(name)
    fullest = max(shards.values(), key=len)
    for name in fullest:
        records.put(name, record)
    await records.flush(60)
    (body,) = server.objects.values()
    assert list(body["data"]) == sorted(fullest)
    size = sum(len(value.encode()) for value in body["data"].values())
    assert size < 2**20 * 0.6, size


@pytest.mark.looptime
async def test_what_has_no_room_is_left_out_and_the_rest_is_written(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(records_module, "MAX_SHARD_BYTES", 100)
    server = api()
    records = records_of(server)
    names = neighbours(5)
    for i in range(10):
        records.put(names[0], {"text": "y" * i})
    for name in names:
        records.put(name, {"text": "x" * 20})
    await records.flush(5)
    assert list(stored(server)) == sorted(names[:3])
    assert caplog.text.count("is full") == 1
    records.put(names[0], {"text": "x" * 60})
    records.put(names[1], None)
    records.put(names[4], {})
    await records.flush(5)
    assert stored(server) == {names[2]: {"text": "x" * 20}, names[4]: {}}


@pytest.mark.looptime
async def test_releases_in_one_namespace_do_not_read_each_others_records() -> None:
    server = api()
    loop = asyncio.get_running_loop()
    ours = NodeRecords(server, "system", loop.time, "team-a")
    async with running(ours):
        ours.put("node-1", {"a": 1})
        await asyncio.sleep(0.1)
    assert await NodeRecords(server, "system", loop.time, "team-a").load() == {"node-1": {"a": 1}}
    assert await NodeRecords(server, "system", loop.time, "team-b").load() == {}
    assert await records_of(server).load() == {}
