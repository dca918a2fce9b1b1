"""Gathers what a page shows and renders it, as parts that change on their own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from sandboxpool.cli import checks, findings, times
from sandboxpool.cli.checks import Snapshot
from sandboxpool.cli.cluster import CLAIMS, CLASSES, NODES, POOLS, RUNTIMES, Object, Resource
from sandboxpool.cli.dashboard import matrix, pools
from sandboxpool.cli.dashboard.watch import Currency, Feed, Watcher

# The HTML of the parts of a page, by the id of the element that each fills.
Parts = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Source:
    """How current what is known of a kind is, for people.

    Attributes:
        kind: The resource with its group.
        currency: How current it is.
        message: Why it is not live, and what to do.
        since: When it became so.
        omitted: How many objects are not shown.
    """

    kind: str
    currency: Currency
    message: str
    since: str
    omitted: int


class Pages:
    """The pages of one cluster.

    Args:
        watcher: The objects.
        cluster: What the cluster is called, for the title.
        label: The label that groups nodes; None chooses one.
    """

    def __init__(self, watcher: Watcher, cluster: str, label: str | None) -> None:
        self._watcher = watcher
        self._cluster = cluster
        self._label = label
        self._templates = Environment(
            loader=PackageLoader("sandboxpool.cli.dashboard"),
            autoescape=select_autoescape(default=True, default_for_string=True),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.globals["MEANINGS"] = matrix.MEANINGS

    def layout(self, page: str, query: str, parts: Parts) -> str:
        """Return the whole page."""
        return self._render(
            "layout.html", page=page, query=query, parts=parts, cluster=self._cluster
        )

    def overview(self) -> Parts:
        """Return the parts of the first page."""
        known = self._known
        shown = pools.summary(known(POOLS) or (), known(CLAIMS) or ())
        fleet = matrix.Fleet(
            runtimes=known(RUNTIMES),
            nodes=known(NODES),
            classes=known(CLASSES),
            label=self._label,
        )
        grid = matrix.matrix(fleet)
        found = findings.ordered(checks.check(self._snapshot(times.now())))
        sources = [_source(feed) for feed in self._watcher.feeds.values()]
        given = {"pools": shown, "grid": grid, "findings": found, "sources": sources}
        return {
            name: self._render(f"{name}.html", **given)
            for name in ("sources", "summary", "causes", "pools", "matrix")
        }

    def _render(self, template: str, **given: object) -> str:
        return self._templates.get_template(template).render(given)

    def _known(self, resource: Resource) -> Sequence[Object] | None:
        feed = self._watcher.feeds[resource]
        if feed.currency in (Currency.DENIED, Currency.MISSING, Currency.STARTING):
            return None
        return list(feed.objects.values())

    def _snapshot(self, now: datetime) -> Snapshot:
        return Snapshot(
            version=None,
            crds=None,
            deployments=None,
            leases=None,
            classes=self._known(CLASSES),
            runtimes=self._known(RUNTIMES),
            nodes=self._known(NODES),
            pools=self._known(POOLS),
            access=(),
            now=now,
        )


def _source(feed: Feed) -> Source:
    return Source(
        feed.resource.qualified,
        feed.currency,
        feed.message,
        feed.since.isoformat(timespec="seconds"),
        feed.omitted,
    )
