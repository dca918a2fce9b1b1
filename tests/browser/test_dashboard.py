"""The dashboard in Chromium."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from browser import npm
from support.clusterserver import ClusterServer
from support.dashboard import serving
from support.fleetobjects import broken, healthy, node
from support.fleetofmany import many

PICTURES = Path(__file__).resolve().parents[2] / "docs" / "images" / "dashboard"
Visit = Callable[..., Page]
# The first run on a machine fetches the browser.
pytestmark = pytest.mark.timeout(120, func_only=True)


def settled(page: Page) -> None:
    expect(page.locator("#connection")).to_have_text("Live.")
    expect(page.locator("#sources")).not_to_contain_text("Not read yet")


# What follows by itself.


def test_changes_come_by_themselves(cluster: ClusterServer, visit: Visit) -> None:
    cluster.put(*healthy())
    page = visit()
    settled(page)
    expect(page.get_by_text("None: nothing that the API shows is wrong.")).to_be_visible()
    cluster.put(*broken())
    cause = page.locator(".causes li").filter(has_text="PoolNotReady")
    expect(cause).to_contain_text("2 of 2 nodes are quarantined")
    expect(page.locator("[data-key='node node-a'] td").nth(1)).to_contain_text("quarantined")
    cluster.put(*healthy())
    cluster.delete("SandboxClaim", "waits", "team")
    expect(page.get_by_text("None: nothing that the API shows is wrong.")).to_be_visible()


def test_a_change_leaves_focus_selection_and_open_details(
    cluster: ClusterServer, visit: Visit
) -> None:
    cluster.put(*broken())
    page = visit()
    settled(page)
    cell = page.locator("[data-key='node node-b'] details")
    cell.locator("summary").focus()
    page.keyboard.press("Enter")
    expect(cell.locator("p")).to_be_visible()
    before = cell.element_handle()
    # A row above, and one that is removed.
    cluster.put(node("node-0", "runsc"))
    expect(page.locator("[data-key='node node-0']")).to_be_visible()
    cluster.delete("Node", "node-a")
    expect(page.locator("[data-key='node node-a']")).to_have_count(0)
    assert before is not None
    assert before.evaluate("element => element.isConnected && element.open")
    assert before.evaluate("element => document.activeElement === element.querySelector('summary')")


def test_ages_are_told_in_words(cluster: ClusterServer, visit: Visit) -> None:
    cluster.put(*broken())
    page = visit()
    settled(page)
    expect(page.locator(".causes time").first).to_have_text(
        page.evaluate(
            "`${Math.floor((Date.now() - Date.parse('2026-01-01T11:50:00Z')) / 86400000)}d ago`"
        )
    )


# Where something is missing.


def test_an_unreachable_cluster_is_said_to_be_not_current(
    cluster: ClusterServer, visit: Visit
) -> None:
    cluster.put(*healthy())
    page = visit()
    settled(page)
    cluster.stop()
    told = page.locator("#sources [role=status]")
    expect(told).to_contain_text("Not current: sandboxpools.sandboxpool.io", timeout=15_000)
    expect(told).to_contain_text("cannot be reached")
    # What was seen stays.
    expect(page.locator("#pools")).to_contain_text("team/python")


def test_an_end_of_the_command_is_said(cluster: ClusterServer, chrome: Browser) -> None:
    with chrome.new_context() as context, serving(cluster) as served:
        page = context.new_page()
        page.goto(served.url)
        settled(page)
        served.server.should_exit = True
        expect(page.locator("#connection")).to_contain_text(
            "No connection to kubectl sandboxpool dashboard"
        )


def test_a_missing_right_is_named(cluster: ClusterServer, visit: Visit) -> None:
    cluster.put(*broken())
    cluster.denied_everywhere |= {"nodes", "sandboxpools"}
    cluster.drop_watches()
    page = visit()
    told = page.locator("#sources")
    expect(told).to_contain_text("nodes in the whole cluster: bind a ClusterRole")
    expect(told).to_contain_text("sandboxpools.sandboxpool.io in namespace 'ns': bind a Role")
    expect(page.locator("#pools")).to_contain_text("SandboxPools could not be read.")
    # The counts of the SandboxRuntimes need no right to read nodes.
    expect(page.locator("#matrix")).to_contain_text("these are the counts of the SandboxRuntimes")


def test_a_cluster_without_the_crds_says_what_to_install(
    cluster: ClusterServer, visit: Visit
) -> None:
    cluster.absent |= {"sandboxpools", "sandboxclaims", "sandboxruntimes"}
    cluster.drop_watches()
    page = visit()
    expect(page.locator("#sources")).to_contain_text(
        "the cluster has no sandboxpools.sandboxpool.io: install SandboxPool and its CRDs"
    )


# The other pages.


def test_the_story_of_a_sandbox_is_two_links_away(cluster: ClusterServer, visit: Visit) -> None:
    cluster.put(*healthy())
    page = visit()
    settled(page)
    page.get_by_role("link", name="team/python", exact=True).click()
    page.get_by_role("link", name="python-first", exact=True).click()
    rows = page.locator("table.story tbody tr")
    expect(rows.first).to_contain_text("Created")
    expect(page.locator("table.story")).to_contain_text("Bound (Warm)")


def test_a_claim_is_found_by_its_name(cluster: ClusterServer, visit: Visit) -> None:
    cluster.put(*healthy())
    page = visit()
    settled(page)
    page.get_by_role("textbox", name="Claim or pod").fill("seco")
    page.keyboard.press("Enter")
    page.get_by_role("link", name="team/second").click()
    expect(page.locator("table.story")).to_contain_text("Bound (Cold)")


def test_a_large_fleet_is_grouped(cluster: ClusterServer, visit: Visit) -> None:
    cluster.put(*many(nodes=600, sandboxes=400, pools=20))
    page = visit()
    settled(page)
    matrix = page.locator("#matrix")
    expect(matrix).to_contain_text("600 nodes, grouped by karpenter.sh/nodepool")
    matrix.get_by_role("link", name="metal-", exact=False).first.click()
    expect(page.locator("#nodes table tbody tr").first).to_contain_text("node-")
    expect(page.locator("#group")).to_have_value(page.url.partition("group=")[2])


# Everybody can use it.


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
def test_nothing_stands_in_the_way(
    cluster: ClusterServer, visit: Visit, width: int, scheme: str
) -> None:
    cluster.put(*broken())
    script = npm.AXE.source()
    for path in (
        "",
        "nodes",
        "pool?namespace=team&name=browser",
        "story?namespace=team&claim=first",
        "find?text=first",
    ):
        page = visit(path, width=width, scheme=scheme)
        settled(page)
        # As a string it needs no script in the page, which the policy would refuse.
        page.evaluate(script)
        found = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
        assert not [
            (one["id"], one["help"], [at["html"][:200] for at in one["nodes"][:3]]) for one in found
        ], path
        # What is wide scrolls in itself, and never the page.
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_keyboard_reaches_everything_in_order(cluster: ClusterServer, visit: Visit) -> None:
    cluster.put(*broken())
    page = visit()
    settled(page)
    seen: list[str] = []
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.append(
            page.evaluate(
                "(e => (e.textContent || e.getAttribute('aria-label') || e.id).trim()"
                ".split('\\n')[0].slice(0, 40))(document.activeElement)"
            )
        )
    assert seen[0] == "Skip to the content"
    order = ["SandboxPool", "Overview", "Pools", "Nodes", "text", "Find", "All causes of browser"]
    places = [seen.index(one) for one in order]
    assert places == sorted(places)
    for wanted in ("team/browser", "What the states mean", "quarantined", "team/waits"):
        assert wanted in seen, seen


def test_live_regions_are_polite_and_say_only_what_changed(
    cluster: ClusterServer, visit: Visit
) -> None:
    cluster.put(*healthy())
    page = visit()
    settled(page)
    regions = page.locator("[role=status]")
    # A table that is read aloud at each change would drown everything else.
    for index in range(regions.count()):
        assert regions.nth(index).locator("table").count() == 0
    assert page.locator("[aria-live=assertive], [role=alert]").count() == 0


# References: looked at by people when they change.


def _put(cluster: ClusterServer, state: str) -> None:
    if state == "healthy":
        cluster.put(*healthy())
    elif state == "empty":
        cluster.put(node("node-a", "runc"), node("node-b", "runc"))
    elif state == "many":
        cluster.put(*many())
    else:
        cluster.put(*broken())
    if state == "forbidden":
        cluster.denied_everywhere |= {"nodes", "sandboxpools"}
        cluster.drop_watches()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("state", ["healthy", "broken", "empty", "forbidden", "stale", "many"])
def test_each_state_looks_like_its_reference(
    cluster: ClusterServer,
    visit: Visit,
    state: str,
    width: int,
    scheme: str,
    tmp_path: Path,
) -> None:
    """SANDBOXPOOL_GOLDEN=1 writes the pictures; look at them before they are committed."""
    _put(cluster, state)
    page = visit(width=width, scheme=scheme, at="2026-01-01T12:00:00Z")
    expect(page.locator("#connection")).to_have_text("Live.", timeout=60_000)
    shown = _SHOWS[state]
    if state == "forbidden":
        for kind in ("sandboxpools", "nodes"):
            expect(page.locator("#sources")).to_contain_text(f"No right: {kind}", timeout=60_000)
    if state == "stale":
        expect(page.locator("#pools")).to_contain_text("team/python")
        cluster.stop()
        # All kinds have the same fate, and are named once.
        expect(page.locator("#sources .notice")).to_have_count(1, timeout=60_000)
        for kind in ("deployments", "leases"):
            expect(page.locator("#sources")).to_contain_text(kind, timeout=60_000)
    expect(page.locator("main")).to_contain_text(shown, timeout=60_000)
    # The cluster's port, and when it was found to be gone, differ each time.
    page.evaluate(_SAME_TEXTS)
    name = f"{state}-{width}-{scheme}.png"
    picture = page.screenshot(full_page=state == "broken", path=tmp_path / name)
    if os.environ.get("SANDBOXPOOL_GOLDEN"):
        PICTURES.mkdir(parents=True, exist_ok=True)
        (PICTURES / name).write_bytes(picture)
    assert _differing(page, picture, (PICTURES / name).read_bytes()) < _TOLERANCE, tmp_path / name


# The share of pixels that may differ: fonts are drawn a little differently by each version.
_TOLERANCE = 0.02
_SAME_TEXTS = """() => {
  for (const time of document.querySelectorAll("#sources time")) time.textContent = "12s ago";
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode;
    const same = node.nodeValue.replace(/127\\.0\\.0\\.1:\\d+/, "cluster.example")
      .replace(/: \\[Errno.*\\)/, ": connection refused");
    if (same !== node.nodeValue) node.nodeValue = same;
  }
}"""
_SHOWS = {
    "healthy": "2 of 2",
    "broken": "2 of 2 nodes are quarantined",
    "empty": "There are no SandboxPools here.",
    "forbidden": "SandboxPools could not be read.",
    "stale": "Not current: sandboxpools",
    "many": "5000 nodes, grouped by",
}


def _differing(page: Page, picture: bytes, reference: bytes) -> float:
    """The share of pixels that differ; 1 for pictures of other sizes."""
    one, other = (base64.b64encode(data).decode() for data in (picture, reference))
    blank = page.context.new_page()
    share: float = blank.evaluate(
        """async ([one, other]) => {
          const read = async (data) => {
            const image = new Image();
            image.src = `data:image/png;base64,${data}`;
            await image.decode();
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [image.width, image.height];
            const context = canvas.getContext("2d");
            context.drawImage(image, 0, 0);
            return context.getImageData(0, 0, image.width, image.height);
          };
          const [a, b] = [await read(one), await read(other)];
          if (a.width !== b.width || a.height !== b.height) return 1;
          let differing = 0;
          for (let at = 0; at < a.data.length; at += 4) {
            const distance = [0, 1, 2].map((c) => Math.abs(a.data[at + c] - b.data[at + c]));
            if (Math.max(...distance) > 48) differing += 1;
          }
          return differing / (a.width * a.height);
        }""",
        [one, other],
    )
    blank.close()
    return share
