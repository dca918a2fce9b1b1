"""Objects are followed through every way in which a watch can fail."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from sandboxpool.cli.cluster import CLAIMS, NODES, POOLS, RUNTIMES, Resource
from sandboxpool.cli.dashboard import watch
from sandboxpool.cli.dashboard.watch import Currency, Watcher
from support.clusterserver import ClusterServer
from support.fleetobjects import healthy, node, pool


async def soon(attempt: Callable[[], Any], within: float = 10.0) -> None:
    async with asyncio.timeout(within):
        while not attempt():  # noqa: ASYNC110 - there is no event for what it looks at
            await asyncio.sleep(0.01)


def seen(watcher: Watcher, resource: Resource) -> set[str]:
    return {name for _, name in watcher.feeds[resource].objects}


def state(watcher: Watcher, resource: Resource) -> Currency:
    return watcher.feeds[resource].currency


async def test_changes_are_followed(cluster: ClusterServer, watcher: Watcher) -> None:
    cluster.put(*healthy())
    await soon(lambda: seen(watcher, POOLS) == {"python", "browser"})
    cluster.put(pool("new"))
    cluster.delete("SandboxPool", "browser", "team")
    await soon(lambda: seen(watcher, POOLS) == {"python", "new"})
    await soon(lambda: all(feed.currency is Currency.LIVE for feed in watcher.feeds.values()))
    # A template may hold anything, and nothing of it is shown.
    assert "template" not in watcher.feeds[POOLS].objects["team", "new"]["spec"]


async def test_what_changes_nothing_that_is_shown_is_no_change(
    cluster: ClusterServer, watcher: Watcher
) -> None:
    cluster.put(node("n", "runsc"), pool("last"))
    await soon(lambda: seen(watcher, NODES) == {"n"} and seen(watcher, POOLS) == {"last"})
    await soon(lambda: all(f.currency is Currency.LIVE for f in watcher.feeds.values()))
    version = watcher.version
    beating = node("n", "runsc")
    beating["status"]["images"] = [{"names": ["example.com/image"]}]
    beating["status"]["conditions"][0]["lastHeartbeatTime"] = "2026-01-01T12:00:00Z"
    cluster.put(beating)
    await watcher.wait_newer(version, 0.3)
    assert watcher.version == version
    cluster.put(node("n", "runsc", cordoned=True))
    await watcher.wait_newer(version, 5)
    assert watcher.version > version


async def test_pages_are_read_to_the_end(
    cluster: ClusterServer, monkeypatch: pytest.MonkeyPatch, watcher: Watcher
) -> None:
    monkeypatch.setattr(watch, "_PAGE", 2)
    cluster.put(*(pool(f"p{index}") for index in range(5)))
    cluster.drop_watches()
    await soon(lambda: len(seen(watcher, POOLS)) == 5)


async def test_what_is_gone_while_the_watch_was_broken_is_gone(
    cluster: ClusterServer, watcher: Watcher
) -> None:
    cluster.put(pool("a"), pool("b"))
    await soon(lambda: seen(watcher, POOLS) == {"a", "b"})
    cluster.drop_watches()
    cluster.delete("SandboxPool", "a", "team")
    cluster.forget_history()
    await soon(lambda: seen(watcher, POOLS) == {"b"})
    cluster.put(pool("c"))
    await soon(lambda: seen(watcher, POOLS) == {"b", "c"})


async def test_an_unreachable_server_makes_it_stale_and_keeps_what_was_seen(
    cluster: ClusterServer, watcher: Watcher
) -> None:
    cluster.put(pool("a"))
    await soon(lambda: seen(watcher, POOLS) == {"a"})
    await asyncio.to_thread(cluster.stop)
    await soon(lambda: state(watcher, POOLS) is Currency.STALE)
    assert seen(watcher, POOLS) == {"a"}
    assert "cannot be reached" in watcher.feeds[POOLS].message
    await asyncio.to_thread(cluster.start)
    cluster.put(pool("b"))
    await soon(lambda: state(watcher, POOLS) is Currency.LIVE and "b" in seen(watcher, POOLS))
    assert watcher.feeds[POOLS].message == ""


async def test_who_may_not_read_all_namespaces_reads_one(
    cluster: ClusterServer, watcher: Watcher
) -> None:
    cluster.denied |= {"sandboxpools", "sandboxclaims"}
    cluster.drop_watches()
    cluster.put(pool("mine"), pool("theirs", namespace="other"))
    await soon(lambda: watcher.feeds[POOLS].scope == "team" and seen(watcher, POOLS) == {"mine"})
    await soon(lambda: state(watcher, POOLS) is Currency.LIVE)
    assert watcher.feeds[CLAIMS].scope == "team"


async def test_a_missing_right_is_named_and_found_again(
    cluster: ClusterServer, watcher: Watcher
) -> None:
    cluster.put(*healthy())
    await soon(lambda: seen(watcher, NODES) >= {"node-a"})
    cluster.denied_everywhere |= {"nodes", "sandboxpools"}
    cluster.drop_watches()
    await soon(lambda: state(watcher, NODES) is Currency.DENIED)
    await soon(lambda: state(watcher, POOLS) is Currency.DENIED)
    message = watcher.feeds[NODES].message
    assert "nodes in the whole cluster: bind a ClusterRole" in message
    # What was seen with a right that is gone is not shown any longer.
    assert not seen(watcher, NODES)
    cluster.denied_everywhere.clear()
    await soon(lambda: seen(watcher, NODES) >= {"node-a"} and seen(watcher, POOLS) >= {"python"})
    assert watcher.feeds[POOLS].scope is None


async def test_crds_that_come_later_are_found(cluster: ClusterServer, watcher: Watcher) -> None:
    cluster.absent |= {"sandboxruntimes"}
    cluster.drop_watches()
    await soon(lambda: state(watcher, RUNTIMES) is Currency.MISSING)
    assert "install SandboxPool and its CRDs" in watcher.feeds[RUNTIMES].message
    cluster.put(*healthy())
    cluster.absent.clear()
    await soon(lambda: seen(watcher, RUNTIMES) == {"gvisor", "kata-qemu"})


async def test_what_is_beyond_the_limit_is_counted(
    cluster: ClusterServer, monkeypatch: pytest.MonkeyPatch, watcher: Watcher
) -> None:
    monkeypatch.setattr(watch, "MAX_OBJECTS", 3)
    cluster.put(*(pool(f"p{index}") for index in range(5)))
    cluster.forget_history()
    cluster.drop_watches()
    await soon(lambda: (len(seen(watcher, POOLS)), watcher.feeds[POOLS].omitted) == (3, 2))
