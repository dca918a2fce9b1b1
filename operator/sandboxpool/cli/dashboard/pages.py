"""Gathers what a page shows and renders it, as parts that change on their own."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from sandboxpool.cli import checks, findings, reading, times
from sandboxpool.cli.checks import Snapshot
from sandboxpool.cli.cluster import (
    CLAIMS,
    CLASSES,
    DEPLOYMENTS,
    LEASES,
    NODES,
    POOLS,
    RUNTIMES,
    Object,
    Resource,
)
from sandboxpool.cli.dashboard import claims, matrix, pools, startup, story
from sandboxpool.cli.dashboard.lookups import MAX_PODS, Lookups
from sandboxpool.cli.dashboard.watch import Currency, Feed, Watcher
from sandboxpool.cli.findings import Finding
from sandboxpool.cli.status import causes, sandbox_state

# The HTML of the parts of a page, by the id of the element that each fills.
Parts = Mapping[str, str]
Parameters = Mapping[str, str]

_NODES_A_PAGE = 100
_MAX_FOUND = 50


@dataclass(frozen=True, slots=True)
class Source:
    """How current what is known of some kinds is, for people.

    Attributes:
        kinds: The resources with their groups, for which the rest is the same.
        currency: How current they are.
        message: Why they are not live, and what to do.
        scope: The one namespace that is read; empty for all.
        omitted: How many objects are not shown.
        since: When the first of them became so.
    """

    kinds: Sequence[str]
    currency: Currency
    message: str
    scope: str
    omitted: int
    since: str


class Pages:
    """The pages of one cluster.

    Args:
        watcher: The objects.
        lookups: Reads what the watcher does not keep.
        cluster: What the cluster is called, for the title.
        label: The label that groups nodes; None chooses one.
    """

    def __init__(self, watcher: Watcher, lookups: Lookups, cluster: str, label: str | None) -> None:
        self._watcher = watcher
        self._lookups = lookups
        self._cluster = cluster
        self._label = label
        self._templates = Environment(
            loader=PackageLoader("sandboxpool.cli.dashboard"),
            autoescape=select_autoescape(default=True, default_for_string=True),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.globals |= {
            "MEANINGS": matrix.MEANINGS,
            "STAGES": startup.STAGES,
            "milliseconds": startup.shown,
            "link": lambda page, **query: f"{page}?{urlencode(query)}",
        }
        self.all: Mapping[str, Callable[[Parameters], Awaitable[Parts]]] = {
            "": self._overview,
            "nodes": self._nodes,
            "pools": self._pools,
            "pool": self._pool,
            "story": self._story,
            "find": self._find,
        }

    def layout(self, page: str, parameters: Parameters, parts: Parts) -> str:
        """Return the whole page around its parts."""
        query = urlencode({**parameters, "page": page})
        given = {"query": query, "parts": parts, "cluster": self._cluster, "page": page}
        return self._render("layout.html", **given)

    async def _overview(self, _: Parameters) -> Parts:
        found = findings.ordered(checks.check(self._snapshot(times.now())))
        made = self._known(CLAIMS) or ()
        given = {
            "pools": pools.summary(self._known(POOLS) or (), made, pools.FIRST_ROWS),
            "claims": claims.summary(made),
            "startup": startup.startup(self._known(RUNTIMES) or ()),
            "grid": matrix.matrix(self._fleet()),
            "findings": found,
            "pool_of": _pool_of,
            "unread": self._unread(),
            "current": all(feed.currency is Currency.LIVE for feed in self._watcher.feeds.values()),
        }
        names = ("summary", "causes", "pools", "matrix", "startup", "claims")
        return self._with_sources({name: self._render(f"{name}.html", **given) for name in names})

    async def _pools(self, _: Parameters) -> Parts:
        shown = pools.summary(self._known(POOLS) or (), self._known(CLAIMS) or ())
        page = self._render("pools.html", pools=shown, unread=self._unread())
        return self._with_sources({"pools": page})

    async def _nodes(self, parameters: Parameters) -> Parts:
        fleet = self._fleet()
        rows = matrix.node_rows(fleet)
        groups = sorted({row.group for row in rows})
        group, only = parameters.get("group"), parameters.get("only", "")
        shown = [
            row
            for row in rows
            if (group is None or row.group == group)
            and (only != "problems" or row.has_problem)
            and (not only.startswith("state:") or _has_state(row, only))
        ]
        start = _number(parameters.get("start"))
        listed = self._render(
            "nodes.html",
            columns=matrix.matrix(fleet).columns,
            rows=shown[start : start + _NODES_A_PAGE],
            total=len(shown),
            start=start,
            step=_NODES_A_PAGE,
            parameters={key: value for key, value in parameters.items() if key != "start"},
            known=fleet.nodes is not None,
        )
        form = self._render(
            "filter.html", groups=groups, group=group, only=only, states=list(matrix.CellState)
        )
        return self._with_sources({"filter": form, "nodes": listed})

    async def _pool(self, parameters: Parameters) -> Parts:
        wanted = parameters.get("namespace", ""), parameters.get("name", "")
        pool = self._watcher.feeds[POOLS].objects.get(wanted)
        if pool is None:
            return self._with_sources({"absent": self._render("absent.html", what="pool")})
        own = pools.claims_by_pool(self._known(CLAIMS) or ()).get(wanted, [])
        problems: list[str] = []
        uid = reading.text(pool, "metadata", "uid")
        pods = await self._lookups.pods(wanted[0], uid, problems)
        given = {
            "pool": pools.row(pool, own),
            "causes": causes(pool),
            "issues": reading.objects(pool, "status", "runtime", "issues"),
            "startup": startup.startup([pool]),
            "claims": claims.summary(own),
            "unread": set(),
            "pods": [(pod, sandbox_state(pod)) for pod in pods],
            "most": MAX_PODS,
            "problems": problems,
        }
        names = ("poolcauses", "startup", "sandboxes", "claims")
        return self._with_sources({name: self._render(f"{name}.html", **given) for name in names})

    async def _story(self, parameters: Parameters) -> Parts:
        namespace, claim, pod = (parameters.get(key, "") for key in ("namespace", "claim", "pod"))
        if not namespace or not (claim or pod):
            return self._with_sources({"absent": self._render("absent.html", what="sandbox")})
        read = await self._lookups.sandbox(namespace, claim, pod)
        told = story.story(read.claim, read.pod, read.events, times.now())
        title = f"{namespace}/{claim or pod}"
        given = {"story": told, "problems": read.problems, "title": title}
        return self._with_sources({"story": self._render("story.html", **given)})

    async def _find(self, parameters: Parameters) -> Parts:
        text = parameters.get("text", "").strip()
        found = claims.find(self._known(CLAIMS) or (), text.rpartition("/")[2])
        namespace, _, name = text.partition("/")
        given = {
            "text": text,
            "rows": found[:_MAX_FOUND],
            "omitted": max(0, len(found) - _MAX_FOUND),
            "pod": (namespace, name) if name else None,
        }
        return self._with_sources({"found": self._render("found.html", **given)})

    def _render(self, template: str, **given: object) -> str:
        return self._templates.get_template(template).render(given)

    def _with_sources(self, parts: Parts) -> Parts:
        sources = _sources(self._watcher.feeds.values())
        return {"sources": self._render("sources.html", sources=sources), **parts}

    def _known(self, resource: Resource) -> Sequence[Object] | None:
        feed = self._watcher.feeds[resource]
        if feed.currency in (Currency.DENIED, Currency.MISSING, Currency.STARTING):
            return None
        return list(feed.objects.values())

    def _unread(self) -> set[str]:
        return {one.plural for one in self._watcher.feeds if self._known(one) is None}

    def _fleet(self) -> matrix.Fleet:
        return matrix.Fleet(
            runtimes=self._known(RUNTIMES),
            nodes=self._known(NODES),
            classes=self._known(CLASSES),
            label=self._label,
        )

    def _snapshot(self, now: datetime) -> Snapshot:
        return Snapshot(
            version=None,
            crds=None,
            deployments=self._known(DEPLOYMENTS),
            leases=self._known(LEASES),
            classes=self._known(CLASSES),
            runtimes=self._known(RUNTIMES),
            nodes=self._known(NODES),
            pools=self._known(POOLS),
            claims=self._known(CLAIMS),
            access=(),
            now=now,
        )


def _sources(feeds: Iterable[Feed]) -> list[Source]:
    """Return what is to be said of the kinds; what is the same of several is said once."""
    alike: dict[tuple[Currency, str, str, int], list[Feed]] = {}
    for feed in feeds:
        key = (feed.currency, feed.message, feed.scope or "", feed.omitted)
        alike.setdefault(key, []).append(feed)
    return [
        Source(
            [feed.resource.qualified for feed in group],
            *key,
            min(feed.since for feed in group).isoformat(timespec="seconds"),
        )
        for key, group in alike.items()
    ]


def _pool_of(finding: Finding) -> tuple[str, str] | None:
    """Return namespace and name of the pool that a finding is about."""
    kind, _, where = finding.where.partition("/")
    namespace, _, name = where.partition("/")
    return (namespace, name) if kind == "sandboxpool" else None


def _has_state(row: matrix.NodeRow, only: str) -> bool:
    return any(f"state:{cell.state}" == only for cell in row.cells)


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isascii() and text.isdecimal() else 0
