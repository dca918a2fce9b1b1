"""`kubectl sandboxpool doctor`: what is wrong with the installation, the fleet and the pools."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sandboxpool.api import names
from sandboxpool.cli import checks, findings, manifest, reading, report, times
from sandboxpool.cli.checks import Access, Snapshot
from sandboxpool.cli.cluster import (
    ACCESS_REVIEWS,
    CLAIMS,
    CLASSES,
    CRDS,
    DEPLOYMENTS,
    LEASES,
    NODES,
    PODS,
    POOLS,
    RUNTIMES,
    Cluster,
    Object,
    Resource,
)
from sandboxpool.cli.command import Invocation, command
from sandboxpool.cli.errors import CommandFailure, ExitCode
from sandboxpool.cli.findings import Finding
from sandboxpool.cli.output import Column, Format, Table
from sandboxpool.cli.releases import lease_name
from sandboxpool.cli.report import Section
from sandboxpool.client.blocking import run as run_blocking
from sandboxpool.client.errors import AccessDenied, ApiError
from sandboxpool.client.requests import Request

_OPERATOR = "app.kubernetes.io/name=sandboxpool"
_BRIDGE = "app.kubernetes.io/name=sandboxpool-opensandbox"
_NOT_FOUND = 404

# What an application needs that claims a sandbox and uses it: verb, resource, subresource.
_CLIENT_RIGHTS = (
    ("create", CLAIMS, ""),
    ("watch", CLAIMS, ""),
    ("delete", CLAIMS, ""),
    ("get", PODS, ""),
    ("create", PODS, "exec"),
    ("create", PODS, "portforward"),
)


@command(
    "doctor",
    examples="""
        # The installation, the fleet and the pools of all namespaces
        kubectl sandboxpool doctor

        # Would this pool work here? Nothing is created.
        kubectl sandboxpool doctor --pool pool.yaml

        # In CI: fail on errors, not on warnings
        kubectl sandboxpool doctor -o json || [ $? -eq 3 ]
    """,
    output=True,
)
def doctor(
    run: Invocation,
    pool: Annotated[
        Path | None,
        typer.Option("--pool", metavar="FILE", help="Check this SandboxPool's manifest instead."),
    ] = None,
) -> None:
    """Look for what is wrong, and say what to do about it.

    Pools are looked at in all namespaces where that is allowed; rights are those of the caller in
    the namespace of -n. What cannot be read is a finding too.

    Exit code: 0 no findings, or of severity Info only; 3 warnings; 4 errors; 1 the cluster cannot
    be reached; 2 wrong usage.
    """
    if run.out.format is Format.NAME:
        raise CommandFailure("doctor has no -o name: use json or yaml", ExitCode.USAGE)
    if pool is not None:
        made, found = [], _manifest_findings(run, _load(pool))
    else:
        seen = _snapshot(run.cluster, run.namespace)
        made, found = checks.facts(seen), checks.check(seen)
    found = findings.ordered(found)
    if run.out.format in (Format.JSON, Format.YAML):
        run.out.document(findings.document(made, found))
    else:
        report.show(run.out, sections(made, found))
    if code := findings.outcome(found):
        raise typer.Exit(int(code))


def sections(facts: Sequence[tuple[str, str]], found: Sequence[Finding]) -> list[Section]:
    """Return what `doctor` prints."""
    made = []
    if facts:
        table = Table([Column("FACT"), Column("VALUE", fold=True)])
        for what, value in facts:
            table.add(what, value)
        made.append(Section("", table))
    if not found:
        return [*made, Section("", ["No findings."])]
    made.append(Section("FINDINGS", findings.described(found)))
    return [*made, Section("", [checks.counts_by_severity(found)])]


class _Reader:
    """Reads what is allowed, and remembers what is not."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.denied: list[Access] = []

    def attempt(self, read: Callable[[], Any]) -> Any:
        """Return what is read; None where it is not allowed or not served."""
        try:
            return read()
        except AccessDenied as error:
            self.denied.append(
                Access(
                    verb=error.verb,
                    resource=error.resource,
                    namespace=error.namespace,
                    allowed=False,
                )
            )
        except ApiError as error:
            if error.status != _NOT_FOUND:
                raise
        return None

    def everywhere(self, resource: Resource, **selectors: str) -> list[Object] | None:
        found: list[Object] | None = self.attempt(
            lambda: self.cluster.list(resource, None, **selectors)
        )
        return found

    def wherever(self, resource: Resource, namespace: str) -> list[Object] | None:
        """Return what there is in all namespaces or, where that is not allowed, in one."""
        found = self.everywhere(resource)
        if found is None:
            found = self.attempt(lambda: self.cluster.list(resource, namespace))
        return found


def _snapshot(cluster: Cluster, namespace: str) -> Snapshot:
    reader = _Reader(cluster)
    pools, claims = (reader.wherever(kind, namespace) for kind in (POOLS, CLAIMS))
    crds = reader.attempt(
        lambda: [
            crd
            for crd in cluster.list(CRDS, None)
            if reading.text(crd, "spec", "group") == names.GROUP
        ]
    )
    deployments = reader.everywhere(DEPLOYMENTS, labels=_OPERATOR)
    version = Request("GET", "/version", "get", "/version", "")
    return Snapshot(
        version=reader.attempt(lambda: run_blocking(cluster.api.call(version))),
        crds=crds,
        deployments=deployments,
        bridges=reader.everywhere(DEPLOYMENTS, labels=_BRIDGE),
        leases=_leases(reader, deployments or ()),
        classes=reader.everywhere(CLASSES),
        runtimes=reader.everywhere(RUNTIMES),
        nodes=reader.everywhere(NODES),
        pools=pools,
        claims=claims,
        access=[
            *reader.denied,
            *(_review(cluster, namespace, *right) for right in _CLIENT_RIGHTS),
        ],
        now=times.now(),
    )


def _leases(reader: _Reader, deployments: Sequence[Object]) -> list[Object] | None:
    """The Leases of all releases; None if they may not be read."""
    found: list[Object] = []
    for name in sorted({names.DEFAULT_RELEASE, *map(lease_name, deployments)}):
        named = reader.everywhere(LEASES, fields=f"metadata.name={name}")
        if named is None:
            return None
        found += named
    return found


def _review(
    cluster: Cluster, namespace: str, verb: str, resource: Resource, subresource: str
) -> Access:
    attributes = {
        "namespace": namespace,
        "verb": verb,
        "group": resource.group,
        "resource": resource.plural,
        "subresource": subresource,
    }
    review = {
        "apiVersion": ACCESS_REVIEWS.api_version,
        "kind": ACCESS_REVIEWS.kind,
        "spec": {"resourceAttributes": attributes},
    }
    answer = cluster.create(ACCESS_REVIEWS, review)
    return Access(
        verb=verb,
        resource=resource.qualified + (f"/{subresource}" if subresource else ""),
        namespace=namespace,
        allowed=reading.mapping(answer, "status").get("allowed") is True,
    )


def _load(path: Path) -> Object:
    import yaml

    try:
        documents = [one for one in yaml.safe_load_all(path.read_bytes()) if one is not None]
    except yaml.YAMLError as error:
        raise CommandFailure(f"{path} is no YAML: {error}", ExitCode.USAGE) from None
    if problem := manifest.problem_of(documents):
        raise CommandFailure(f"{path}: {problem}", ExitCode.USAGE)
    loaded: Object = documents[0]
    return loaded


def _manifest_findings(run: Invocation, pool: Object) -> list[Finding]:
    cluster, reader = run.cluster, _Reader(run.cluster)
    namespace = reading.text(pool, "metadata", "namespace") or run.namespace
    found = manifest.check_runtime(pool, reader.everywhere(CLASSES), reader.everywhere(NODES))
    tried = (
        ("PoolRefused", POOLS, pool, f"sandboxpool/{namespace}/{reading.name(pool)}"),
        ("TemplateRefused", PODS, manifest.pod_of(pool), "spec.template"),
    )
    for what, resource, body, where in tried:
        try:
            cluster.create(resource, body, namespace, dry_run=True)
        except AccessDenied as error:
            reader.denied.append(
                Access(verb=error.verb, resource=error.resource, namespace=namespace, allowed=False)
            )
        except ApiError as error:
            if "already exists" not in error.message:
                found.append(manifest.refused(what, where, error.message))
    return [*found, *checks.missing_rights(reader.denied)]
