"""The pages beside the first, and what they say where something may not be read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from sandboxpool.cli.cluster import CLAIMS, NODES, POOLS, RUNTIMES
from sandboxpool.cli.dashboard import pages
from sandboxpool.cli.dashboard.lookups import Lookups
from sandboxpool.cli.dashboard.pages import Pages
from sandboxpool.cli.dashboard.watch import Currency, Watcher
from sandboxpool.client.api import Api
from sandboxpool.client.nonblocking import AsyncIo
from support.clusterserver import ClusterServer
from support.fleetobjects import (
    SHIM,
    broken,
    claim,
    healthy,
    issue,
    node,
    operator,
    pod,
    pool,
    runtime,
)
from support.scriptedcluster import settings


@pytest.fixture
async def site(cluster: ClusterServer, watcher: Watcher) -> AsyncIterator[Pages]:
    cluster.put(*broken())
    while any(watcher.feeds[one].currency is Currency.STARTING for one in (POOLS, CLAIMS, NODES)):
        await watcher.wait_newer(watcher.version, 5)
    while len(watcher.feeds[CLAIMS].objects) < 4 or not watcher.feeds[NODES].objects:
        await watcher.wait_newer(watcher.version, 5)
    api = Api(AsyncIo(), settings(host=cluster.url))
    yield Pages(watcher, Lookups(api), "cluster", None)
    api.close()


async def read(site: Pages, page: str, **parameters: str) -> str:
    return " ".join((await site.all[page](parameters)).values())


async def test_a_pool_has_its_causes_and_its_sandboxes(site: Pages) -> None:
    page = await read(site, "pool", namespace="team", name="browser")
    assert "NodesServing is False: NodeQuarantined" in page
    assert "ShimMissing on node-a, node-b, 2 affected" in page
    page = await read(site, "pool", namespace="team", name="python")
    assert 'href="story?namespace=team&amp;pod=python-first"' in page
    assert "python-a1b2c3d4e5" in page


@pytest.mark.parametrize("name", [{"pod": "python-first"}, {"claim": "first"}])
async def test_a_story_is_found_by_pod_and_by_claim(site: Pages, name: dict[str, str]) -> None:
    page = await read(site, "story", namespace="team", **name)
    for what in ("Created", "Scheduled", "Bound (Warm)", "Started container main"):
        assert what in page


async def test_a_pod_of_the_same_name_is_not_the_sandbox(
    site: Pages, cluster: ClusterServer
) -> None:
    other = pod(claim="")
    other["metadata"]["uid"] = "another"
    cluster.put(other)
    page = await read(site, "story", namespace="team", claim="first")
    assert "is another one of the same name" in page
    assert "Scheduled" not in page


async def test_a_story_of_nothing_says_so(site: Pages) -> None:
    page = await read(site, "story", namespace="team", pod="never-was")
    assert "The Pod team/never-was does not exist any more." in page
    assert "The API knows nothing of it any more." in page
    assert "There is no such sandbox here" in await read(site, "story", namespace="team")


async def test_a_missing_right_to_read_pods_is_named(site: Pages, cluster: ClusterServer) -> None:
    cluster.denied_everywhere |= {"pods", "events"}
    page = await read(site, "story", namespace="team", claim="first")
    assert "no right to get pods in namespace &#39;team&#39;" in page
    assert "no right to list events in namespace &#39;team&#39;" in page
    # What the claim says is shown all the same.
    assert "Bound (Warm)" in page
    assert "no right to list pods" in await read(site, "pool", namespace="team", name="python")


async def test_nodes_are_filtered_and_in_pages(
    site: Pages, cluster: ClusterServer, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "_NODES_A_PAGE", 2)
    page = await read(site, "nodes")
    assert "1 to 2 of 3" in page
    assert 'href="nodes?start=2"' in page
    page = await read(site, "nodes", only="problems", start="0")
    assert "1 to 2 of 2" in page
    assert "node-c" not in page
    page = await read(site, "nodes", only="state:missing")
    assert "1 to 1 of 1" in page
    assert "No node is like this." in await read(site, "nodes", only="state:suspected")
    labels = {"karpenter.sh/nodepool": "spot"}
    cluster.put(node("node-d", "runsc", labels=labels))
    while len(watcher.feeds[NODES].objects) < 4:
        await watcher.wait_newer(watcher.version, 5)
    page = await read(site, "nodes", group="spot")
    assert "1 to 1 of 1" in page
    assert 'value="spot" selected' in page


async def test_what_is_searched_for_is_found(site: Pages) -> None:
    assert "team/first" in await read(site, "find", text="firs")
    page = await read(site, "find", text="team/some-pod")
    assert 'href="story?namespace=team&amp;pod=some-pod"' in page
    assert "No claim has it" in await read(site, "find", text='"><script>alert(1)</script>')
    assert "<script>" not in await read(site, "find", text="<script>alert(1)</script>")


@pytest.mark.parametrize(
    ("wrong", "what", "said"),
    [
        (node("node-c", "runsc", ready=False), "NodesNotReady", "node/node-c"),
        (
            runtime("gvisor", "runsc", issues=[issue("ShimMissing", "node-c", message=SHIM)]),
            "NodesSuspected",
            "ShimMissing on node-c",
        ),
        (
            claim("long", "Pending", created="2026-01-01T11:00:00Z"),
            "ClaimsWaiting",
            "the oldest is long",
        ),
    ],
)
async def test_whatever_is_wrong_by_itself_is_a_cause(
    cluster: ClusterServer, watcher: Watcher, wrong: dict[str, Any], what: str, said: str
) -> None:
    cluster.put(*healthy())
    api = Api(AsyncIo(), settings(host=cluster.url))
    site = Pages(watcher, Lookups(api), "cluster", None)
    nothing = "nothing that the API shows is wrong"
    while nothing not in (await site.all[""]({}))["causes"]:
        await watcher.wait_newer(watcher.version, 5)
    cluster.put(wrong)
    causes = ""
    while what not in causes:
        await watcher.wait_newer(watcher.version, 5)
        causes = (await site.all[""]({}))["causes"]
    assert said in causes
    assert "What to do:" in causes
    assert nothing not in causes
    api.close()


async def test_a_release_that_is_limited_to_namespaces_has_a_leader_of_its_own(
    cluster: ClusterServer, watcher: Watcher
) -> None:
    deployment, lease = operator()
    variables = {"RELEASE": "one", "WATCH_NAMESPACES": "team"}
    env = [{"name": f"SANDBOXPOOL_{key}", "value": value} for key, value in variables.items()]
    deployment["spec"]["template"] = {"spec": {"containers": [{"env": env}]}}
    lease["metadata"]["name"] = "one"
    cluster.put(deployment, lease)
    api = Api(AsyncIo(), settings(host=cluster.url))
    site = Pages(watcher, Lookups(api), "cluster", None)
    while "nothing that the API shows is wrong" not in (await site.all[""]({}))["causes"]:
        await watcher.wait_newer(watcher.version, 5)
    cluster.delete("Lease", "one", "sandboxpool-system")
    while "NoLeader" not in (await site.all[""]({}))["causes"]:
        await watcher.wait_newer(watcher.version, 5)
    api.close()


async def test_without_the_operator_the_page_says_so(
    site: Pages, cluster: ClusterServer, watcher: Watcher
) -> None:
    assert "NoLeader" not in await read(site, "")
    cluster.delete("Lease", "sandboxpool", "sandboxpool-system")
    cluster.delete("Deployment", "sandboxpool", "sandboxpool-system")
    page = ""
    while "NoLeader" not in page:
        await watcher.wait_newer(watcher.version, 5)
        page = await read(site, "")


async def test_pools_of_no_right_are_named(
    site: Pages, cluster: ClusterServer, watcher: Watcher
) -> None:
    cluster.delete("SandboxClaim", "waits", "team")
    cluster.denied_everywhere |= {"sandboxpools", "nodes", "sandboxruntimes"}
    cluster.drop_watches()
    kinds = (POOLS, NODES, RUNTIMES)
    while any(watcher.feeds[one].currency is not Currency.DENIED for one in kinds):
        await watcher.wait_newer(watcher.version, 5)
    page = await read(site, "")
    assert "No right: sandboxpools.sandboxpool.io" in page
    assert "nodes in the whole cluster: bind a ClusterRole" in page
    # What is not known is not called good, and nothing is called absent.
    assert "None in what is known; not everything could be read." in page
    assert "SandboxPools could not be read." in page
    assert "There are no" not in page


async def test_the_first_page_shows_some_pools_and_another_all(
    site: Pages, cluster: ClusterServer, watcher: Watcher
) -> None:
    cluster.put(*(pool(f"p{index:03}") for index in range(40)))
    while len(watcher.feeds[POOLS].objects) < 42:
        await watcher.wait_newer(watcher.version, 5)
    page = await read(site, "")
    assert "17 more pools are not shown" in page
    # The one that is not ready is first.
    assert page.index("team/browser") < page.index("team/p000")
    assert "team/p039" in await read(site, "pools")
