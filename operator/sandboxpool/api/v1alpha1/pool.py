"""A SandboxPool: the desired state of a pool, and the observed one."""

import re
from enum import StrEnum
from typing import Annotated, Any, ClassVar

from pydantic import Field, PlainValidator, StringConstraints, WithJsonSchema

from sandboxpool.api import names
from sandboxpool.api.markers import (
    CEL,
    LIST_ATOMIC,
    LIST_SET,
    Column,
    Model,
    Resource,
    Scale,
    SchemaKeywords,
    must_not_set,
    quote,
)
from sandboxpool.api.structs import Status, Struct
from sandboxpool.api.v1alpha1.common import (
    AGE,
    DAY_SECONDS,
    LABEL,
    MAX_DOMAIN,
    READY,
    YEAR_SECONDS,
    Conditions,
    Count,
    LifetimeSeconds,
    NodeCounts,
    PoolStartup,
    RuntimeClassName,
    Timestamp,
    each,
    matches,
    name_fits,
)
from sandboxpool.api.v1alpha1.reserved import RESERVED_TEXT, reserved_key_cel

_DNS_LABEL = f"^{LABEL}$"
_WHOLE_DOMAIN = f"^{LABEL}(\\.{LABEL})*/$"

HandlerName = Annotated[
    str,
    StringConstraints(pattern=_DNS_LABEL, max_length=63),
    matches(
        _DNS_LABEL,
        "cannot be the name of a handler: use lower-case letters, digits and '-', with a letter or"
        " digit at both ends, as in the `handler` of the RuntimeClass; leave the field out to"
        " accept whatever handler the RuntimeClass has",
    ),
]
MetadataPrefix = Annotated[
    str,
    StringConstraints(pattern=_WHOLE_DOMAIN, max_length=MAX_DOMAIN + 1),
    # The rule stands on the list: an item of a set has no former self to compare it with.
    WithJsonSchema({"type": "string", "maxLength": MAX_DOMAIN + 1}),
]


# --- Spec ----------------------------------------------------------------------------------------


class TemplateMetadata(Model):
    """Labels and annotations of every pod of the pool."""

    labels: Annotated[
        dict[str, Annotated[str, Field(max_length=63)]],
        Field(max_length=64),
        CEL(
            rule=f"self.all(key, !key.startsWith({quote(names.GROUP + '/')}))",
            message=f"labels under {names.GROUP}/ are set by the operator: remove them from the"
            " template",
        ),
    ] = Field(default_factory=dict)
    """Labels of the pods. Keys under `sandboxpool.io/` are the operator's own."""
    annotations: Annotated[
        dict[str, str],
        Field(max_length=64),
        CEL(
            rule=f"self.all(key, !key.startsWith({quote(names.GROUP + '/')}))",
            message=f"annotations under {names.GROUP}/ are set by the operator: remove them from"
            " the template",
        ),
    ] = Field(default_factory=dict)
    """Annotations of the pods. Keys under `sandboxpool.io/` are the operator's own."""


# The pod's spec is Kubernetes' own type and is checked by a dry run of the pod that would be made.
# Only what the rules below must see is declared.
_POD_SPEC_SCHEMA = SchemaKeywords(
    {
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": True,
        "properties": {
            "containers": {
                "type": "array",
                "description": "The containers of the sandbox, at least one.",
                "minItems": 1,
                "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                "x-kubernetes-list-type": "atomic",
            },
            "runtimeClassName": {
                "type": "string",
                "description": "Not allowed here: the pool's `spec.runtimeClassName` decides.",
            },
            "overhead": {
                "type": "object",
                "x-kubernetes-preserve-unknown-fields": True,
                "description": "Not allowed here: the RuntimeClass's overhead is used.",
            },
            "nodeName": {
                "type": "string",
                "description": "Not allowed here: the scheduler chooses the node.",
            },
        },
        "required": ["containers"],
    }
)

PodSpec = Annotated[
    dict[str, Any],
    _POD_SPEC_SCHEMA,
    must_not_set(
        "runtimeClassName",
        "a template may not choose the runtime, the pool does: remove the field here and set"
        " spec.runtimeClassName of the pool",
    ),
    must_not_set(
        "overhead",
        "a template may not set the overhead, it comes from the RuntimeClass: remove the field here"
        " and set overhead.podFixed of the RuntimeClass",
    ),
    must_not_set(
        "nodeName",
        "a template may not name a node, because that bypasses the scheduler: remove the field and"
        " use nodeSelector or affinity",
    ),
]


class PodTemplate(Model):
    """The pod from which every sandbox of the pool is created."""

    metadata: TemplateMetadata = TemplateMetadata()
    """Labels and annotations of every pod of the pool."""
    spec: PodSpec
    """The pod's spec, as in a Deployment. `runtimeClassName`, `overhead` and `nodeName`
    are refused. The operator submits the finished pod as a server-side dry run, with strict field
    validation, and reports the result as the condition `TemplateAccepted`. Unless set here,
    `automountServiceAccountToken` and `enableServiceLinks` are false and `restartPolicy` is Never:
    a sandbox that was restarted has lost its state."""


class Startup(Model):
    """How sandboxes are started."""

    timeout_seconds: Annotated[int, Field(ge=1, le=DAY_SECONDS)] = 300
    """Seconds that a sandbox may take to become Ready once it is on a node, before it is reported
    and replaced. The time does not advance while the kubelet reports that it waits, for example for
    an image. The default leaves room for a large image on a new node."""
    max_starting: Annotated[int, Field(ge=1, le=1000)] = 10
    """How many sandboxes may be starting at once, those for claims with `onEmpty: Create` included.
    Concurrent cold starts slow each other down, so a higher value is rarely faster."""


class UpdateType(StrEnum):
    """What happens to warm sandboxes of an older template or runtime."""

    ROLLING_UPDATE = "RollingUpdate"
    ON_CLAIM = "OnClaim"
    RECREATE = "Recreate"


_PERCENT = "^([1-9]|[1-9][0-9]|100)%$"
MAX_UNAVAILABLE = 10_000


def _int_or_percent(value: Any) -> int | str:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_UNAVAILABLE:
        return value
    if isinstance(value, str) and re.fullmatch(_PERCENT, value):
        return value
    raise ValueError(f"{value!r} is neither a number from 1 to {MAX_UNAVAILABLE} nor 1% to 100%")


IntOrPercent = Annotated[
    int | str,
    PlainValidator(_int_or_percent),
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "minimum": 1,
            "maximum": MAX_UNAVAILABLE,
            "maxLength": 4,
        }
    ),
    CEL(
        rule=f"type(self) != string || self.matches({quote(_PERCENT)})",
        message="must be a number, such as 5, or a percentage from 1% to 100%, such as 25%",
    ),
]


class Update(Model):
    """How warm sandboxes follow a change of the template or the runtime. Claimed ones never do."""

    type: UpdateType = UpdateType.ROLLING_UPDATE
    """`RollingUpdate` replaces outdated warm sandboxes a few at a time. `OnClaim` keeps them and
    allocates them; new sandboxes are of the new revision. `Recreate` deletes all outdated warm
    sandboxes at once. Warm sandboxes of another runtime than the pool's are always replaced."""
    max_unavailable: IntOrPercent = 1
    """How many warm sandboxes may be missing from the target while they are replaced: a number, or
    a percentage of `status.target`, rounded down to a whole number and never to less than one."""


class Placement(StrEnum):
    """Which warm sandbox is allocated first."""

    SPREAD = "Spread"
    PACKED = "Packed"


class IsolationProof(StrEnum):
    """How much proof is required that the runtime isolates."""

    NONE = "None"
    PER_NODE = "PerNode"
    PER_SANDBOX = "PerSandbox"


class Disruption(StrEnum):
    """Whether claimed sandboxes may be evicted, such as by a drain."""

    ALLOW = "Allow"
    PROTECT = "Protect"


DEFAULT_CONFIG_PATH = "/run/sandbox"
_CONFIG_PATH = "^(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$"

ConfigPath = Annotated[
    str,
    StringConstraints(pattern=_CONFIG_PATH, max_length=253),
    matches(
        _CONFIG_PATH,
        "is not an absolute path of a directory: use a path such as /run/sandbox, without a slash"
        ' at its end, whose parts do not begin with a dot, or "" to mount nothing',
    ),
]


class ClaimsPolicy(Model):
    """What claims of the pool may do."""

    cel_rules: ClassVar[tuple[CEL, ...]] = (
        CEL(
            rule=(
                "!has(self.defaultTTLSeconds) || !has(self.maxTTLSeconds)"
                " || self.defaultTTLSeconds <= self.maxTTLSeconds"
            ),
            message="defaultTTLSeconds is more than maxTTLSeconds: lower the default or raise the"
            " maximum",
            field_path=".defaultTTLSeconds",
        ),
    )

    default_ttl_seconds: LifetimeSeconds | None = None
    """Seconds from binding after which a claim without `ttlSeconds` expires. Unset: such a
    claim lives until it is deleted, or for `maxTTLSeconds` if that is set. A change applies to
    claims that are bound later."""
    max_ttl_seconds: LifetimeSeconds | None = None
    """The longest lifetime of a claim, in seconds from binding; a longer one is reduced to it.
    Unset: no limit. A change applies to claims that are bound later, and to a bound one when its
    `ttlSeconds` is changed; a lower limit never shortens a lifetime that a claim already has."""
    allowed_metadata_prefixes: Annotated[
        tuple[MetadataPrefix, ...],
        Field(max_length=32),
        LIST_SET,
        each(
            "prefix",
            f"prefix.matches({quote(_WHOLE_DOMAIN)})",
            "is not a whole domain: name a DNS subdomain in lower case with a slash at its end,"
            " such as example.com/",
        ),
        CEL(
            rule=f"!self.exists(prefix, {reserved_key_cel('prefix')})",
            message_expression=(
                "'\"' + self.filter(prefix, " + reserved_key_cel("prefix") + ")[0] + '\" is"
                f" reserved ({RESERVED_TEXT}), because such keys can reconfigure the runtime: name"
                " a domain of your own, such as example.com/'"
            ),
            message=f"a prefix is reserved ({RESERVED_TEXT}): name a domain of your own, such as"
            " example.com/",
        ),
    ] = ()
    """Prefixes of the label and annotation keys that claims may put on their pods, each a whole
    domain with a slash at its end, such as `example.com/`. Empty: none. Keys that the template sets
    are not changed. Domains of Kubernetes, of runtimes and of this operator are never
    allowed."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=YEAR_SECONDS)] = 3600
    """Seconds for which a finished claim (`Failed`, `Expired`, `Lost`) is kept before the operator
    deletes it. The default leaves time to read what happened; 0 deletes at once."""
    config_path: ConfigPath = DEFAULT_CONFIG_PATH
    """The directory in which the containers of a sandbox find what its claim says: `config.json`
    (the claim's `config`, a JSON object of texts by file name), `claim-name` and `claim-uid`. The
    files are empty until the sandbox is claimed; without a `config`, `config.json` stays empty. The
    operator adds the volume `sandboxpool-config` and its mounts to the pods; the template must
    mount nothing at or below the directory. A change replaces the warm sandboxes, as one of the
    template does. `""`: nothing is mounted, and claims with a `config` fail."""
    disruption: Disruption = Disruption.ALLOW
    """Whether claimed sandboxes may be evicted, such as by `kubectl drain`. `Allow`: yes, and the
    claim is then `Lost`. `Protect`: a PodDisruptionBudget of the operator refuses evictions until
    the claim ends. A drain waits that long; `maxTTLSeconds` bounds the wait."""


class SandboxPoolSpec(Model):
    """The desired state of the pool."""

    runtime_class_name: RuntimeClassName
    """The RuntimeClass of every sandbox of the pool, one of those that `kubectl get runtimeclass`
    lists. Changing it replaces the warm sandboxes and leaves the claimed ones alone."""
    expected_handler: HandlerName | None = None
    """The handler that the RuntimeClass must resolve to. While it resolves to another, the pool
    creates nothing and reports `HandlerMismatch`. Unset: any handler."""
    replicas: Annotated[int, Field(ge=0, le=10000)] = 1
    """How many unclaimed sandboxes to keep warm; `kubectl scale` and autoscalers write it. The
    default of 1 lets a new pool show that its runtime works."""
    max_sandboxes: Annotated[int, Field(ge=1, le=100000)] | None = None
    """Ceiling on all sandboxes of the pool: warm, starting, claimed and terminating, but not those
    whose containers have ended. `replicas` beyond it is clamped and reported, not refused. Unset:
    no ceiling."""
    template: PodTemplate
    """The pod from which every sandbox of the pool is created."""
    startup: Startup = Startup()
    """How sandboxes are started."""
    update: Update = Update()
    """How warm sandboxes follow a change of the template or the runtime."""
    placement: Placement = Placement.SPREAD
    """Which warm sandbox is allocated first: `Spread` takes it from the node with the fewest
    claimed ones, `Packed` from the node with the most, so that others empty."""
    max_age_seconds: Annotated[int, Field(ge=60, le=YEAR_SECONDS)] | None = None
    """Age in seconds at which a warm sandbox is replaced, a few at a time. Unset: never."""
    isolation_proof: IsolationProof = IsolationProof.PER_NODE
    """How much proof is required that the runtime isolates. The proof: a container reads another
    boot id than its node's, because it runs on a kernel of its own. `PerNode`: a probe pod reads it
    on each node, and again after a reboot; also after a change of the node's software, for the
    sandboxes that start later. `PerSandbox`: an init container that the operator adds reads it in
    each sandbox. A sandbox without the proof is not allocated. `None`: no proof is required; use it
    for runtimes that share the node's kernel by design."""
    claims: ClaimsPolicy = ClaimsPolicy()
    """What claims of the pool may do."""
    paused: bool = False
    """While true the operator creates and deletes no sandboxes of the pool, also not for claims
    with `onEmpty: Create`; claims are still bound to warm sandboxes."""


# --- Status --------------------------------------------------------------------------------------


class PoolIssue(Struct, frozen=True, kw_only=True):
    """A cause of failures, with some of the nodes on which it was observed."""

    reason: Annotated[str, Field(max_length=128)]
    """The cause, as a reason in CamelCase."""
    count: Count
    """How many nodes or sandboxes are affected."""
    nodes: Annotated[list[str], Field(max_length=5), LIST_ATOMIC] = []
    """Examples of affected nodes."""
    since: Timestamp | None = None
    """When the failures began."""
    message: Annotated[str, Field(max_length=1024)] = ""
    """What was observed, and what to do."""


class PoolRuntime(Status, frozen=True, kw_only=True):
    """The runtime that the pool's RuntimeClass names."""

    className: str
    """The RuntimeClass that was resolved."""
    uid: str
    """Its uid: a class that was deleted and created again is another one."""
    handler: str
    """The handler that container runtimes know it by."""
    overhead: dict[str, str]
    """What the class adds to each sandbox's resources, by resource name."""
    nodes: NodeCounts
    """The pool's nodes, by what they report about the handler."""
    servingOfEligible: str
    """`serving/eligible` nodes, for the column NODES."""
    issues: Annotated[list[PoolIssue], Field(max_length=8), LIST_ATOMIC]
    """The most severe issues of the runtime and the sandboxes, most severe first."""


class UnfitPoolStatus(Status, frozen=True, kw_only=True):
    """The status of a pool whose spec does not match the API."""

    observedGeneration: Count
    """The `metadata.generation` that this status was computed from."""
    conditions: Conditions


class SandboxPoolStatus(UnfitPoolStatus, frozen=True, kw_only=True, omit_defaults=True):
    """The observed state of the pool."""

    replicas: Count
    """How many unclaimed sandboxes exist: the sum of `warm`, `starting`, `unproven`, `unready`,
    `stranded` and `failed`. Read by `/scale`."""
    selector: str
    """Label selector of the unclaimed sandboxes; read by `/scale`."""
    target: Count
    """The desired number of warm sandboxes: `spec.replicas`, clamped by `spec.maxSandboxes`."""
    warm: Count
    """Unclaimed sandboxes that can be allocated."""
    starting: Count
    """Unclaimed sandboxes that are not ready yet."""
    unproven: Count
    """Ready sandboxes without the proof of isolation that the pool requires: not allocated."""
    unready: Count
    """Unclaimed sandboxes that were ready and are not: not allocated until they are ready again."""
    stranded: Count
    """Unclaimed sandboxes that cannot be allocated on their node: it is lost, cordoned or
    quarantined, its runtime does not serve or does not isolate, or they are of another runtime than
    the pool's."""
    failed: Count
    """Unclaimed sandboxes that failed and are not yet removed."""
    outdated: Count
    """Of the unclaimed sandboxes, in any state, those of an older template or another
    runtime."""
    claimed: Count
    """Sandboxes that belong to a claim, those that are being started for one included."""
    ended: Count
    """Sandboxes of claims whose containers have ended: they are kept for their logs, and do not
    count towards `spec.maxSandboxes`."""
    stopping: Count
    """Sandboxes that are terminating."""
    runtime: PoolRuntime
    """The runtime that the pool's RuntimeClass names."""
    startup: PoolStartup | None = None
    """Measured start-up times of the pool's sandboxes."""
    conditions: Conditions
    """`RuntimeResolved`, `NodesServing`, `TemplateAccepted`, `IsolationProven` (if the pool
    requires proof), `Warm`, `UpToDate`, `PodsGuarded`, `ClaimsProtected` (with `claims.disruption:
    Protect`) and the summary `Ready`."""


# The operator validates the spec alone: the whole object is built for those who ask for its schema.
class SandboxPool(Model, defer_build=True):
    """A stock of warm sandboxes of one runtime, ready to be claimed."""

    resource: ClassVar[Resource] = Resource(
        kind=names.POOL_KIND,
        plural=names.POOLS,
        singular="sandboxpool",
        short_names=("sbp",),
        categories=(names.CATEGORY,),
        columns=(
            Column(
                "Runtime", ".spec.runtimeClassName", description="RuntimeClass of the sandboxes"
            ),
            Column("Handler", ".status.runtime.handler", description="Handler of the RuntimeClass"),
            Column(
                "Nodes",
                ".status.runtime.servingOfEligible",
                description="Nodes that serve the handler, of those that could take a sandbox",
            ),
            Column("Warm", ".status.warm", type="integer", description="Ready to be claimed"),
            Column(
                "Target", ".status.target", type="integer", description="Desired warm sandboxes"
            ),
            Column("Claimed", ".status.claimed", type="integer", description="Bound to claims"),
            Column("Ready", f"{READY}.status", description="Whether claims can be served"),
            Column("Reason", f"{READY}.reason", description="Why the pool is ready or not"),
            AGE,
        ),
        scale=Scale(
            spec_replicas=".spec.replicas",
            status_replicas=".status.replicas",
            selector=".status.selector",
        ),
    )
    cel_rules: ClassVar[tuple[CEL, ...]] = (
        name_fits(
            names.MAX_POOL_NAME,
            "the pods of a SandboxPool are named after it, and their names are hostnames",
        ),
    )

    spec: SandboxPoolSpec
    """The desired state of the pool."""
    status: SandboxPoolStatus | None = None
    """The observed state of the pool."""
