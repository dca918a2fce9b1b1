"""`kubectl sandboxpool events`: what was reported of pools, claims and their sandboxes."""

import re
from collections.abc import Callable
from typing import Annotated

import typer

from sandboxpool.api import names
from sandboxpool.cli import times
from sandboxpool.cli.cluster import CLAIMS, EVENTS, POOLS, Cluster, Object
from sandboxpool.cli.command import Invocation, command
from sandboxpool.cli.errors import CommandFailure
from sandboxpool.cli.output import Cell, Column, Table, Tone

# A pod is named after its pool.
_POD_SUFFIX = re.compile(rf"-[0-9a-f]{{{names.POD_SUFFIX_LENGTH}}}$")
_TYPES = {
    **dict.fromkeys(("pool", "sbp", "sandboxpool", "sandboxpools"), POOLS),
    **dict.fromkeys(("claim", "sbc", "sandboxclaim", "sandboxclaims"), CLAIMS),
}
_KINDS = (names.POOL_KIND, names.CLAIM_KIND, names.RUNTIME_KIND)


@command(
    "events",
    examples="""
        # Events of all pools, claims and sandboxes of the namespace
        kubectl sandboxpool events

        # Those of one pool and its sandboxes
        kubectl sandboxpool events python

        # Those of a claim and its sandbox, where a pool has the same name
        kubectl sandboxpool events claim/python
    """,
    output=True,
    all_namespaces=True,
)
def events(
    run: Invocation,
    subject: Annotated[
        str | None,
        typer.Argument(
            metavar="POOL|CLAIM", help="A name, or pool/NAME or claim/NAME; all if unset."
        ),
    ] = None,
) -> None:
    """List events of pools, claims and their sandboxes, the latest last."""
    cluster = run.cluster
    wanted = _of_all(cluster, run.scope) if subject is None else _of(cluster, run.scope, subject)
    found = [event for event in cluster.list(EVENTS, run.scope) if wanted(event)]
    found.sort(key=_last_seen)
    run.out.objects(found, lambda: _table(found, run.all_namespaces), nothing="No events found.")


def _of_all(cluster: Cluster, scope: str | None) -> Callable[[Object], bool]:
    pools = {_key(pool) for pool in cluster.list(POOLS, scope)}

    def wanted(event: Object) -> bool:
        kind, namespace, name = _regarding(event)
        return kind in _KINDS or (
            kind == "Pod" and (namespace, _POD_SUFFIX.sub("", name)) in pools and _is_pod(name)
        )

    return wanted


def _of(cluster: Cluster, scope: str | None, subject: str) -> Callable[[Object], bool]:
    kind, slash, name = subject.rpartition("/")
    if slash and kind not in _TYPES:
        raise CommandFailure(f"{subject!r}: write pool/NAME or claim/NAME")
    pools = (
        []
        if _TYPES.get(kind) is CLAIMS
        else cluster.list(POOLS, scope, fields=f"metadata.name={name}")
    )
    claims = (
        []
        if _TYPES.get(kind) is POOLS
        else cluster.list(CLAIMS, scope, fields=f"metadata.name={name}")
    )
    if not pools and not claims:
        where = f"namespace {scope!r}" if scope else "any namespace"
        what = f"{_TYPES[kind].kind} {name!r}" if slash else f"pool and no claim {name!r}"
        raise CommandFailure(
            f"there is no {what} in {where}: `kubectl get sbp,sbc -A` lists what there is"
        )
    uids = {item["metadata"]["uid"] for item in [*pools, *claims]}
    pods = {
        (claim["metadata"]["namespace"], (claim.get("status") or {}).get("podName"))
        for claim in claims
    }
    prefixes = {_key(pool) for pool in pools}

    def wanted(event: Object) -> bool:
        kind, namespace, at = _regarding(event)
        if kind != "Pod":
            return kind in _KINDS and event["involvedObject"].get("uid") in uids
        return (namespace, at) in pods or (
            _is_pod(at) and (namespace, _POD_SUFFIX.sub("", at)) in prefixes
        )

    return wanted


def _regarding(event: Object) -> tuple[str, str, str]:
    regarding = event["involvedObject"]
    return regarding.get("kind", ""), regarding.get("namespace", ""), regarding.get("name", "")


def _key(obj: Object) -> tuple[str, str]:
    return obj["metadata"]["namespace"], obj["metadata"]["name"]


def _is_pod(name: str) -> bool:
    return _POD_SUFFIX.search(name) is not None


def _last_seen(event: Object) -> str:
    series = event.get("series") or {}
    return str(
        series.get("lastObservedTime")
        or event.get("lastTimestamp")
        or event.get("eventTime")
        or event["metadata"].get("creationTimestamp")
        or ""
    )


def _table(found: list[Object], namespaces: bool) -> Table:
    columns = [
        Column("LAST SEEN"),
        Column("TYPE"),
        Column("REASON"),
        Column("OBJECT"),
        Column("FROM", wide=True),
        Column("MESSAGE", fold=True),
    ]
    table = Table([Column("NAMESPACE"), *columns] if namespaces else columns)
    for event in found:
        kind, _, name = _regarding(event)
        warning = event.get("type") == "Warning"
        source = event.get("reportingComponent") or (event.get("source") or {}).get("component")
        cells: list[str | Cell] = [
            times.age(_last_seen(event)),
            Cell(str(event.get("type") or ""), Tone.WARNING if warning else Tone.PLAIN),
            str(event.get("reason") or ""),
            f"{kind.lower()}/{name}",
            str(source or ""),
            str(event.get("message") or ""),
        ]
        table.add(*([event["metadata"]["namespace"], *cells] if namespaces else cells))
    return table
