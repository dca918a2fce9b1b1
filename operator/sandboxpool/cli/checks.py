"""The checks of `doctor`: from the objects of a cluster to findings."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from sandboxpool.api import names
from sandboxpool.api.reasons import Reason
from sandboxpool.cli import bridge, fleet, reading, releases, times
from sandboxpool.cli.cluster import Object
from sandboxpool.cli.findings import Finding, Severity
from sandboxpool.cli.runtimes import handlers_of
from sandboxpool.cli.status import causes

OLDEST_KUBERNETES = (1, 30)
APPLY_CRDS = (
    "upgrade the chart's release that installs the CRDs, or, with crds.install=false, run kubectl"
    " apply --server-side --force-conflicts -f crds/ with the files of the operator's version"
)
# The clocks of two machines differ.
_CLOCK_SECONDS = 60
# A claim that waits this long waits for more than the start of a sandbox in its turn.
_LONG_WAIT_SECONDS = 30
_AT_RISK = ("Warm", "NodesServing", "IsolationProven")


@dataclass(frozen=True, kw_only=True)
class Access:
    """A right that was asked about."""

    verb: str
    resource: str
    namespace: str
    allowed: bool


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What was read of a cluster; None for what could not be read."""

    version: Object | None
    crds: Sequence[Object] | None
    deployments: Sequence[Object] | None
    leases: Sequence[Object] | None
    classes: Sequence[Object] | None
    runtimes: Sequence[Object] | None
    nodes: Sequence[Object] | None
    pools: Sequence[Object] | None
    access: Sequence[Access]
    now: datetime
    bridges: Sequence[Object] | None = None
    claims: Sequence[Object] | None = None


def facts(seen: Snapshot) -> list[tuple[str, str]]:
    """Return the versions, the leader and the handlers by node."""
    made = [("Kubernetes", reading.text(seen.version, "gitVersion"))]
    made += [
        (f"Operator {reading.namespaced_name(one)}", operator_version(one))
        for one in seen.deployments or ()
    ]
    for lease in _held(seen.leases or ()):
        holder, age = reading.text(lease, "spec", "holderIdentity"), _lease_age(lease, seen.now)
        renewed = "" if age is None else f", renewed {times.span(age)} ago"
        made.append((f"Leader {reading.namespaced_name(lease)}", f"{holder}{renewed}"))
    for node in sorted(seen.nodes or (), key=reading.name):
        listed = handlers_of(node)
        known = "not reported" if listed is None else ", ".join(sorted(listed - {""})) or "<none>"
        made.append((f"Handlers of node {reading.name(node)}", known))
    return made


def check(seen: Snapshot) -> list[Finding]:
    """Return all findings."""
    return [
        *_server(seen),
        *_crds(seen),
        *_operators(seen),
        *fleet.check(seen.classes, seen.runtimes or (), seen.nodes or ()),
        *_pools(seen),
        *_waiting_claims(seen),
        *_bridges(seen),
        *missing_rights(seen.access),
    ]


def missing_rights(access: Sequence[Access]) -> Iterator[Finding]:
    """Yield a finding for each right that the caller lacks."""
    for one in access:
        if not one.allowed:
            where = f"namespace/{one.namespace}" if one.namespace else "cluster"
            yield Finding(
                Severity.WARNING,
                "MissingRight",
                where,
                f"you may not {one.verb} {one.resource}",
                f"ask an administrator for a role with {one.verb} on {one.resource}",
            )


def operator_version(deployment: Object) -> str:
    """Return the version that a Deployment of the chart says it has; empty where it says none."""
    labels = reading.mapping(deployment, "metadata", "labels")
    return reading.text(labels, "app.kubernetes.io/version")


def _server(seen: Snapshot) -> Iterator[Finding]:
    version = reading.text(seen.version, "gitVersion")
    digits = [
        "".join(filter(str.isdecimal, reading.text(seen.version, key)))
        for key in ("major", "minor")
    ]
    if all(digits) and tuple(map(int, digits)) < OLDEST_KUBERNETES:
        oldest = ".".join(map(str, OLDEST_KUBERNETES))
        yield Finding(
            Severity.ERROR,
            "KubernetesTooOld",
            "cluster",
            f"the API server is {version}, the operator needs {oldest} or newer",
            f"update Kubernetes to {oldest} or newer",
        )


def _crds(seen: Snapshot) -> Iterator[Finding]:
    if seen.crds is None:
        return
    found = {reading.name(crd): crd for crd in seen.crds}
    wanted = {operator_version(one) for one in seen.deployments or ()} - {""}
    for plural in (names.POOLS, names.CLAIMS, names.RUNTIMES):
        name = f"{plural}.{names.GROUP}"
        where = f"customresourcedefinition/{name}"
        if name not in found:
            yield Finding(
                Severity.ERROR, "CRDMissing", where, "the CRD is not installed", APPLY_CRDS
            )
            continue
        served = [
            reading.text(version, "name")
            for version in reading.objects(found[name], "spec", "versions")
            if version.get("served") is True
        ]
        if names.VERSION not in served:
            yield Finding(
                Severity.ERROR,
                "CRDVersionNotServed",
                where,
                f"the CRD serves {', '.join(served) or 'nothing'}, not {names.VERSION}",
                APPLY_CRDS,
            )
        established = reading.condition(found[name], "Established")
        if established is not None and established.status == "False":
            yield Finding(
                Severity.ERROR,
                "CRDNotEstablished",
                where,
                established.message,
                "kubectl describe crd shows the conflict",
            )
        annotations = reading.mapping(found[name], "metadata", "annotations")
        version = reading.text(annotations, names.ANNOTATION_VERSION)
        if len(wanted) == 1 and version not in wanted:
            yield Finding(
                Severity.WARNING,
                "CRDVersionDiffers",
                where,
                f"the CRD is of version {version or 'unknown'}, the operator of {min(wanted)}",
                APPLY_CRDS,
            )


def _operators(seen: Snapshot) -> Iterator[Finding]:
    deployments = seen.deployments or ()
    if rivals := releases.meeting(deployments):
        yield Finding(
            Severity.ERROR,
            "SeveralOperators",
            "cluster",
            "these Deployments process the same namespaces: "
            + ", ".join(map(reading.namespaced_name, rivals)),
            "uninstall all but one, or give each namespaces of its own by the chart's value"
            " watchNamespaces: helm list -A shows the releases",
        )
    for one in deployments:
        wanted = reading.number(one, "spec", "replicas")
        ready = reading.number(one, "status", "readyReplicas") or 0
        if wanted is not None and ready < wanted:
            yield Finding(
                Severity.WARNING if ready else Severity.ERROR,
                "OperatorNotReady",
                f"deployment/{reading.namespaced_name(one)}",
                f"{ready} of {wanted} replicas are ready",
                f"kubectl -n {reading.text(one, 'metadata', 'namespace')} logs"
                f" deployment/{reading.name(one)} shows why",
            )
    if seen.leases is not None:
        yield from _leaders(_held(seen.leases), deployments, seen.now)


def _leaders(
    held: Sequence[Object], deployments: Sequence[Object], now: datetime
) -> Iterator[Finding]:
    """Operators that are limited to namespaces have a leader each, all others have one together."""
    by_name = {reading.namespaced_name(lease): lease for lease in held}
    limited = [one for one in deployments if releases.watched_namespaces(one)]
    for one in limited:
        namespace = reading.text(one, "metadata", "namespace")
        lease = by_name.pop(f"{namespace}/{releases.lease_name(one)}", None)
        if lease is None or not _is_alive(lease, now):
            yield Finding(
                Severity.ERROR,
                "NoLeader",
                f"deployment/{reading.namespaced_name(one)}",
                _last_renewal([lease] if lease else [], now),
                f"look at its pods: kubectl -n {namespace} logs deployment/{reading.name(one)}",
            )
    if limited and len(limited) == len(deployments):
        return
    held = list(by_name.values())
    alive = [lease for lease in held if _is_alive(lease, now)]
    if len(alive) > 1:
        yield Finding(
            Severity.ERROR,
            "SeveralLeaders",
            "cluster",
            f"these Leases are held: {', '.join(map(reading.namespaced_name, alive))}",
            "uninstall all operators but one: helm list -A shows the releases",
        )
    if not alive:
        yield Finding(
            Severity.ERROR,
            "NoLeader",
            "cluster",
            _last_renewal(held, now),
            "install the operator, or look at its pods:"
            " kubectl get pods -A -l app.kubernetes.io/name=sandboxpool",
        )


def _pools(seen: Snapshot) -> Iterator[Finding]:
    for pool in seen.pools or ():
        name = reading.name(pool)
        where = f"sandboxpool/{reading.namespaced_name(pool)}"
        cure = (
            f"kubectl sandboxpool status {name} -n {reading.text(pool, 'metadata', 'namespace')}"
            " shows all causes"
        )
        ready = reading.condition(pool, "Ready")
        if ready is None:
            yield Finding(
                Severity.WARNING,
                "PoolNotSeen",
                where,
                "its status has no condition Ready",
                "start the operator; it answers a new pool within seconds",
            )
        elif ready.status != "True" and ready.reason != Reason.SCALED_TO_ZERO:
            first = next(iter(causes(pool)), ready)
            yield Finding(
                Severity.ERROR if ready.status == "False" else Severity.WARNING,
                "PoolNotReady",
                where,
                f"{first.type}={first.status}, {first.reason}: {first.message}",
                cure,
                first.since,
            )
        elif risks := [
            one
            for one in causes(pool)
            # A pool that fills does its ordinary work.
            if one.type in _AT_RISK and one.reason != Reason.FILLING
        ]:
            yield Finding(
                Severity.WARNING,
                "PoolAtRisk",
                where,
                "; ".join(f"{one.reason}: {one.message}" for one in risks),
                cure,
                min(one.since for one in risks),
            )


def _waiting_claims(seen: Snapshot) -> Iterator[Finding]:
    """Claims that wait for long, by pool: the oldest says why."""
    waiting: dict[tuple[str, str], list[Object]] = {}
    for claim in seen.claims or ():
        phase = reading.text(claim, "status", "phase") or "Pending"
        created = reading.moment(claim, "metadata", "creationTimestamp")
        if phase != "Pending" or created is None:
            continue
        if (seen.now - created).total_seconds() >= _LONG_WAIT_SECONDS:
            namespace = reading.text(claim, "metadata", "namespace")
            waiting.setdefault((namespace, reading.text(claim, "spec", "poolName")), []).append(
                claim
            )
    for (namespace, pool), claims in waiting.items():
        oldest = min(claims, key=lambda one: reading.text(one, "metadata", "creationTimestamp"))
        bound = reading.condition(oldest, "Bound")
        why = f": {bound.reason}: {bound.message}" if bound else ", and no operator has seen it"
        yield Finding(
            Severity.WARNING,
            "ClaimsWaiting",
            f"sandboxpool/{namespace}/{pool}",
            f"{len(claims)} waiting for a sandbox; the oldest is {reading.name(oldest)}{why}",
            "create the pool, or correct spec.poolName of the claims"
            if bound and bound.reason == Reason.POOL_NOT_FOUND
            else f"kubectl sandboxpool status {pool} -n {namespace} shows what keeps the pool from"
            " filling; if nothing does, raise its spec.replicas",
            reading.text(oldest, "metadata", "creationTimestamp"),
        )


def _bridges(seen: Snapshot) -> Iterator[Finding]:
    # What may not be read proves nothing.
    if seen.bridges is not None:
        yield from bridge.check(seen.bridges, seen.pools or ())


def _held(leases: Sequence[Object]) -> list[Object]:
    return [lease for lease in leases if reading.text(lease, "spec", "holderIdentity")]


def _is_alive(lease: Object, now: datetime) -> bool:
    age, duration = _lease_age(lease, now), reading.number(lease, "spec", "leaseDurationSeconds")
    return age is None or duration is None or age <= duration + _CLOCK_SECONDS


def _last_renewal(held: Sequence[Object], now: datetime) -> str:
    renewed = (
        f"lease/{reading.namespaced_name(lease)} was renewed {times.span(age)} ago"
        for lease in held
        if (age := _lease_age(lease, now)) is not None
    )
    return ", ".join(renewed) or "no Lease of the operator has a holder"


def _lease_age(lease: Object, now: datetime) -> float | None:
    renewed = reading.moment(lease, "spec", "renewTime")
    return None if renewed is None else (now - renewed).total_seconds()


def counts_by_severity(found: Sequence[Finding]) -> str:
    """Return a line that sums findings up."""
    counts = Counter(one.severity for one in found)
    return ", ".join(_counted(counts[one], one) for one in Severity if counts[one])


def _counted(count: int, severity: Severity) -> str:
    # One cannot count infos.
    plural = "s" if count != 1 and severity is not Severity.INFO else ""
    return f"{count} {severity.value.lower()}{plural}"
