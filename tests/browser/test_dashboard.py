"""The dashboard in Chromium."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import Page, expect

from support.clusterserver import ClusterServer
from support.fleetobjects import broken, healthy


def test_changes_come_by_themselves(cluster: ClusterServer, visit: Callable[..., Page]) -> None:
    cluster.put(*healthy())
    page = visit()
    expect(page.locator("#connection")).to_have_text("Live.")
    expect(page.get_by_text("None: nothing that the API shows is wrong.")).to_be_visible()
    cluster.put(*broken())
    cause = page.locator(".causes li").filter(has_text="sandboxpool/team/browser")
    expect(cause).to_contain_text("2 of 2 nodes are quarantined")
