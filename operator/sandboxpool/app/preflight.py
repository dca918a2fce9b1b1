"""Checks the prerequisites of the operator at its start.

A missing prerequisite ends the process after a few checks: controllers of a cluster that is being
installed or upgraded may lag. A failed request does not, as it would fail in the next process, too.
"""

import asyncio
import logging
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from sandboxpool.api import names
from sandboxpool.api.markers import Model, wire_name
from sandboxpool.api.structs import ShownAs, Struct
from sandboxpool.api.v1alpha1 import KINDS
from sandboxpool.app.permissions import Permission, permissions_in, required_permissions
from sandboxpool.app.settings import Settings
from sandboxpool.kube import lease
from sandboxpool.kube.client import ApiClient, resource_path
from sandboxpool.kube.errors import UNREADABLE, ApiError, KubeError
from sandboxpool.util.backoff import delay_after

logger = logging.getLogger(__name__)

# The validation rules of CRDs and admission policies need it. The chart and README say the same.
OLDEST_KUBERNETES = (1, 30)
APPLY_CRDS = (
    "upgrade the chart's release that installs the CRDs to this version, or, with "
    "`crds.install: false`, run `kubectl apply --server-side --force-conflicts -f crds/` with the "
    "files of this version"
)
ATTEMPTS = 3
PAUSE_SECONDS = 2.0
FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 30.0
MAX_LISTED = 5


class StartError(Exception):
    """A prerequisite is missing; the message names it, its consequence and the remedy."""


async def check(client: ApiClient, settings: Settings) -> None:
    """Return when all prerequisites are met.

    Args:
        client: needs no lease for its writes; the only write is a dry run.
        settings: the operator's settings.

    Raises:
        StartError: a prerequisite is missing, at several checks in a row.
    """
    failed_checks = failed_requests = 0
    while True:
        try:
            problem = await find_problem(client, settings)
        except (KubeError, *UNREADABLE) as error:
            pause = delay_after(failed_requests, FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS)
            failed_requests += 1
            logger.warning(
                "the operator's prerequisites cannot be checked: %s; retried in %.0f s",
                error,
                pause,
            )
        else:
            if problem is None:
                await _warn_of_namespaces(client, settings)
                return
            failed_checks += 1
            if failed_checks == ATTEMPTS:
                raise StartError(problem)
            pause = PAUSE_SECONDS
        await asyncio.sleep(pause)


async def find_problem(client: ApiClient, settings: Settings) -> str | None:
    """The first missing prerequisite, its consequence and the remedy; None if all are met.

    Raises:
        KubeError: a request failed.
        UNREADABLE: a response cannot be decoded, such as that of a proxy.
    """
    return (
        await _check_version(client)
        or await _check_kinds(client)
        or await _check_permissions(client, settings)
        or await _check_namespace(client, settings)
    )


async def _read_if_allowed(client: ApiClient, path: str) -> bytes | None:
    """Read what every user may read by default; None if this cluster forbids it."""
    try:
        return await client.get(path)
    except ApiError as error:
        if error.status == 403:
            return None
        raise


# --- The API server ------------------------------------------------------------------------------


class _Version(msgspec.Struct):
    major: str = ""
    minor: str = ""
    gitVersion: str = ""


async def _check_version(client: ApiClient) -> str | None:
    answer = await _read_if_allowed(client, "/version")
    if answer is None:
        return None
    version = msgspec.json.decode(answer, type=_Version)
    # Some distributions write "30+".
    numbers = [re.match(r"[0-9]+", text) for text in (version.major, version.minor)]
    found = tuple(int(number[0]) for number in numbers if number is not None)
    if len(found) != len(numbers) or found >= OLDEST_KUBERNETES:
        return None
    oldest = ".".join(map(str, OLDEST_KUBERNETES))
    return (
        f"the API server is Kubernetes {version.gitVersion}, which does not support the validation "
        f"rules of the CRDs and admission policies; upgrade the cluster to {oldest} or newer"
    )


# --- The kinds -----------------------------------------------------------------------------------


class _Served(msgspec.Struct):
    name: str = ""


class _Group(msgspec.Struct):
    resources: list[_Served] = []


class _Components(msgspec.Struct):
    schemas: dict[str, dict[str, Any]] = {}


class _OpenApi(msgspec.Struct):
    components: _Components = msgspec.field(default_factory=_Components)


async def _check_kinds(client: ApiClient) -> str | None:
    try:
        answer = await _read_if_allowed(client, f"/apis/{names.API_VERSION}")
    except ApiError as error:
        if not error.not_found:
            raise
        answer = b"{}"
    if answer is None:
        return None
    served = {resource.name for resource in msgspec.json.decode(answer, type=_Group).resources}
    for plural in (kind.resource.plural for kind in KINDS):
        if not {plural, f"{plural}/status"} <= served:
            return (
                f"the API server does not serve {plural} of {names.API_VERSION} with their "
                f"status: the CRD is missing or of another version; {APPLY_CRDS}"
            )
    return await _check_fields(client)


async def _check_fields(client: ApiClient) -> str | None:
    """Check for fields that the CRDs lack: the API server drops them silently."""
    try:
        answer = await _read_if_allowed(client, f"/openapi/v3/apis/{names.API_VERSION}")
    except ApiError as error:
        if not error.not_found:
            raise
        answer = None
    if answer is None:
        return None
    schemas = msgspec.json.decode(answer, type=_OpenApi).components.schemas
    for kind in KINDS:
        schema = next((s for n, s in schemas.items() if n.endswith(f".{kind.__name__}")), None)
        missing = list(missing_fields(kind, schema)) if schema is not None else []
        if missing:
            return (
                f"the CRD {kind.resource.plural}.{names.GROUP} is older than the operator: "
                f"it has no {_listed(missing)}; {APPLY_CRDS}"
            )
    return None


def missing_fields(
    model: type[Model] | type[Struct], schema: Mapping[str, Any], path: str = ""
) -> Iterator[str]:
    """The paths of the model's fields that a schema lacks; of nested ones only the outermost."""
    properties = schema.get("properties")
    if properties is None:
        # Without a schema, all fields are preserved.
        return
    hints = typing.get_type_hints(model, include_extras=True)
    for name in model.model_fields if issubclass(model, Model) else model.__struct_fields__:
        wire = wire_name(name)
        if not path and wire == "metadata":
            continue
        here = f"{path}.{wire}" if path else wire
        if wire not in properties:
            yield here
        elif (inner := _model_in(hints[name])) is not None:
            known = properties[wire]
            yield from missing_fields(
                inner, known.get("items") or known.get("additionalProperties") or known, here
            )


def _model_in(annotation: Any) -> type[Model] | type[Struct] | None:
    if isinstance(annotation, ShownAs):
        annotation = annotation.type
    if isinstance(annotation, type):
        if issubclass(annotation, Model):
            return annotation
        if issubclass(annotation, Struct):
            return annotation
    inner: Iterator[type[Model] | type[Struct] | None]
    inner = map(_model_in, typing.get_args(annotation))
    return next((model for model in inner if model is not None), None)


# --- The permissions -----------------------------------------------------------------------------

REVIEWS_PATH = resource_path("authorization.k8s.io/v1", "selfsubjectaccessreviews")


class _ReviewStatus(msgspec.Struct):
    allowed: bool = False
    evaluationError: str = ""


class _Review(msgspec.Struct):
    status: _ReviewStatus


async def _check_permissions(client: ApiClient, settings: Settings) -> str | None:
    elsewhere = {*settings.watch_namespaces} - {settings.namespace}
    missing = await _missing(
        client,
        [
            right
            for right in required_permissions(settings)
            if not right.is_optional and right.namespace not in elsewhere
        ],
    )
    if not missing:
        return None
    return (
        f"the operator's service account has no permission to {_listed(missing)}; install the "
        "chart's ClusterRole and Role with their bindings (Helm: rbac.create), or grant the same "
        "permissions"
    )


async def _warn_of_namespaces(client: ApiClient, settings: Settings) -> None:
    """Log what the operator may not do in each watched namespace; the others are not concerned."""
    for namespace in settings.watch_namespaces:
        try:
            missing = await _missing(client, permissions_in(namespace))
        except (KubeError, *UNREADABLE) as error:
            logger.warning("the permissions in %s cannot be checked: %s", namespace, error)
            continue
        if missing:
            logger.warning(
                "the operator's service account has no permission to %s; install the chart's Role "
                "and RoleBinding there (Helm: watchNamespaces)",
                _listed(missing),
            )


async def _missing(client: ApiClient, required: Sequence[Permission]) -> list[str]:
    answers = await asyncio.gather(*(_is_allowed(client, right) for right in required))
    return [str(right) for right, allowed in zip(required, answers, strict=True) if not allowed]


async def _is_allowed(client: ApiClient, permission: Permission) -> bool:
    resource, _, subresource = permission.resource.partition("/")
    attributes = {
        "group": permission.group,
        "resource": resource,
        "subresource": subresource,
        "verb": permission.verb,
        "namespace": permission.namespace,
        # One of the names is enough: they are granted together.
        "name": next(iter(permission.names), ""),
    }
    try:
        answer = await client.create(REVIEWS_PATH, {"spec": {"resourceAttributes": attributes}})
    except ApiError as error:
        if error.status == 403:
            # This cluster forbids the review. A request that is refused later will be logged.
            return True
        raise
    status = msgspec.json.decode(answer, type=_Review).status
    if not status.allowed and status.evaluationError:
        raise KubeError(f"the permission to {permission}: {status.evaluationError}")
    return status.allowed


# --- The namespace -------------------------------------------------------------------------------


async def _check_namespace(client: ApiClient, settings: Settings) -> str | None:
    """Check the namespace by a dry run of the Lease's creation, which needs no other permission."""
    namespace = settings.namespace
    path = resource_path(lease.API_VERSION, "leases", namespace)
    try:
        await client.create(path, {"metadata": {"name": settings.release}}, {"dryRun": "All"})
    except ApiError as error:
        if error.not_found or error.namespace_terminating:
            why = "does not exist" if error.not_found else "is being deleted"
            return (
                f"the namespace {namespace!r} {why}, so the operator cannot create its Lease and "
                "its probe pods; create it, or set SANDBOXPOOL_NAMESPACE to one that exists"
            )
        if error.status >= 500 or error.status == 429:
            raise
    return None


def _listed(things: list[str]) -> str:
    more = len(things) - MAX_LISTED
    return ", ".join(things[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")
