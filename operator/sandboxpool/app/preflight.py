"""What the operator cannot do without: asked for at the start, and named when it is missing.

An answer that says no ends the process, after it was given a few times: the controllers of a
cluster that is being set up, or upgraded, may be a moment behind. No answer ends nothing, for the
next process would have none either.
"""

import asyncio
import logging
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from sandboxpool.api import names
from sandboxpool.api.markers import Model, wire_name
from sandboxpool.api.structs import ShownAs, Struct
from sandboxpool.api.v1alpha1 import KINDS
from sandboxpool.app.permissions import PERMISSIONS, Permission
from sandboxpool.app.settings import Settings
from sandboxpool.kube import lease
from sandboxpool.kube.client import ApiClient, resource_path
from sandboxpool.kube.errors import UNREADABLE, ApiError, KubeError
from sandboxpool.util.backoff import delay_after

logger = logging.getLogger(__name__)

# Rules in CRDs and admission policies need what came with it. The chart and README say the same.
OLDEST_KUBERNETES = (1, 30)
APPLY_CRDS = (
    "run `kubectl apply --server-side --force-conflicts -f crds/` with the files of this version "
    "(Helm installs CRDs once and never updates them)"
)
ATTEMPTS = 3
PAUSE_SECONDS = 2.0
FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 30.0
MOST_NAMED = 5


class StartError(Exception):
    """The operator cannot work here; the message says what is missing, and the cure."""


async def check(client: ApiClient, settings: Settings) -> None:
    """Return when all that is needed is there.

    Args:
        client: may write before anybody leads; the only write is a dry run.
        settings: how the operator runs.

    Raises:
        StartError: something is missing, and still is when asked again.
    """
    refusals = silences = 0
    while True:
        try:
            fault = await find_problem(client, settings)
        except (KubeError, *UNREADABLE) as error:
            pause = delay_after(silences, FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS)
            silences += 1
            logger.warning(
                "the API server does not say whether all that the operator needs is there: %s; it "
                "is asked again in %.0f s",
                error,
                pause,
            )
        else:
            if fault is None:
                return
            refusals += 1
            if refusals == ATTEMPTS:
                raise StartError(fault)
            pause = PAUSE_SECONDS
        await asyncio.sleep(pause)


async def find_problem(client: ApiClient, settings: Settings) -> str | None:
    """What is missing, why that matters, and the cure; None if there is nothing.

    Raises:
        KubeError: the API server did not answer.
        UNREADABLE: something between us and it answered in its place.
    """
    return (
        await _version(client)
        or await _kinds(client)
        or await _rights(client, settings)
        or await _namespace(client, settings.namespace)
    )


async def _read_if_allowed(client: ApiClient, path: str) -> bytes | None:
    """What anybody may read by default; None where this cluster has taken that right away."""
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


async def _version(client: ApiClient) -> str | None:
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
        f"the API server is Kubernetes {version.gitVersion}, which does not know all that the "
        f"CRDs' rules and the admission policies use; upgrade the cluster to {oldest} or newer"
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


async def _kinds(client: ApiClient) -> str | None:
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
    return await _fields(client)


async def _fields(client: ApiClient) -> str | None:
    """A field that the CRD lacks is dropped by the API server without a word."""
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
    """The paths of the model's fields that a schema does not have, the outermost only."""
    properties = schema.get("properties")
    if properties is None:
        # Whatever is written there is kept.
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


# --- The rights ----------------------------------------------------------------------------------

REVIEWS_PATH = resource_path("authorization.k8s.io/v1", "selfsubjectaccessreviews")


class _ReviewStatus(msgspec.Struct):
    allowed: bool = False
    evaluationError: str = ""


class _Review(msgspec.Struct):
    status: _ReviewStatus


async def _rights(client: ApiClient, settings: Settings) -> str | None:
    wanted = [
        right
        for right in PERMISSIONS
        if not right.purpose or (getattr(settings, right.purpose) and not right.is_optional)
    ]
    answers = await asyncio.gather(*(_may(client, r, settings.namespace) for r in wanted))
    missing = [str(right) for right, allowed in zip(wanted, answers, strict=True) if not allowed]
    if not missing:
        return None
    return (
        f"the operator's service account has no right to {_listed(missing)}; install the chart's "
        "ClusterRole and Role with their bindings (Helm: rbac.create), or grant the same rights"
    )


async def _may(client: ApiClient, right: Permission, own_namespace: str) -> bool:
    resource, _, subresource = right.resource.partition("/")
    attributes = {
        "group": right.group,
        "resource": resource,
        "subresource": subresource,
        "verb": right.verb,
        "namespace": own_namespace if right.own else "",
        # Of many, one stands for all.
        "name": next(iter(right.names), ""),
    }
    try:
        answer = await client.create(REVIEWS_PATH, {"spec": {"resourceAttributes": attributes}})
    except ApiError as error:
        if error.status == 403:
            # This cluster lets nobody ask; a request that is refused will be in the log.
            return True
        raise
    status = msgspec.json.decode(answer, type=_Review).status
    if not status.allowed and status.evaluationError:
        raise KubeError(f"the right to {right}: {status.evaluationError}")
    return status.allowed


# --- The namespace -------------------------------------------------------------------------------


async def _namespace(client: ApiClient, namespace: str) -> str | None:
    """Ask with what we may do there anyway: nothing is written."""
    path = resource_path(lease.API_VERSION, "leases", namespace)
    try:
        await client.create(path, {"metadata": {"name": lease.NAME}}, {"dryRun": "All"})
    except ApiError as error:
        if error.not_found or error.namespace_terminating:
            why = "does not exist" if error.not_found else "is being deleted"
            return (
                f"the namespace {namespace!r} {why}, and the Lease of the operator and its probe "
                "pods have no place; create it, or set SANDBOXPOOL_NAMESPACE to one that is there"
            )
        if error.status >= 500 or error.status == 429:
            raise
    return None


def _listed(things: list[str]) -> str:
    more = len(things) - MOST_NAMED
    return ", ".join(things[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
