"""The kinds of `sandboxpool.io/v1alpha1`: what people write and what the operator answers.

These models are the one source of the CRDs: types, bounds, defaults and descriptions come from
the fields and their docstrings, the rules that the API server evaluates from the CEL markers.
Bounds are checked twice, by the API server and on parsing, so an object that slipped in under an
older CRD raises one `ValidationError` that names the field; the caller reports it and goes on.

Everything that a CEL rule reads is bounded: the API server refuses a CRD whose rules could cost too
much, and it reckons with the largest object that the schema allows.

A rule that is added or tightened must not block what exists. CEL rules pass over what an update
does not change, and those on a whole object judge it at creation only. The API server does the same
for the schema's own keywords, but not for a type or a `required`, and for none in a status.
"""

import re
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AwareDatetime,
    Field,
    PlainSerializer,
    PlainValidator,
    StringConstraints,
    WithJsonSchema,
)

from sandboxpool.api import names
from sandboxpool.api.markers import (
    AT_CREATION,
    CEL,
    LIST_ATOMIC,
    LIST_SET,
    Column,
    Model,
    Resource,
    Scale,
    SchemaKeywords,
    immutable,
    list_map,
    must_not_set,
    quote,
)

YEAR_SECONDS = 365 * 24 * 3600
DAY_SECONDS = 24 * 3600

# Metadata that reconfigures a runtime, the kubelet or this operator. A claim's author is not
# trusted with it, whatever a pool allows: a cold or restarted sandbox would be made with it.
#
# Domains whose keys, and those of all their subdomains, are reserved.
RESERVED_DOMAINS = (
    "kubernetes.io",
    "k8s.io",
    names.GROUP,
    "katacontainers.io",
    "gvisor.dev",
    "containerd.io",
    "crio.io",
    "cri-o.io",
)
# The same for domains that are written backwards. Most of these keys have no slash, as many of
# other domains that reconfigure a runtime, and could not come from a claim anyway: what a pool
# allows is a whole domain with its slash. They are named for the few that have one (CRI-O's for a
# single container, wasm's), and so that the API server itself refuses the best-known ones.
RESERVED_REVERSED_DOMAINS = (
    "io.katacontainers",
    "dev.gvisor",
    "io.kubernetes",
    "io.containerd",
    "run.oci",
    "module.wasm.image",
)
_RESERVED_BEGINNINGS = tuple(f"{name}{end}" for name in RESERVED_REVERSED_DOMAINS for end in "./")


def is_reserved_metadata_key(key: str) -> bool:
    """Tell whether a label or annotation may never come from a claim."""
    # Kubernetes takes annotations in upper case too, and a runtime may compare as it likes.
    key = key.lower()
    domain, slash, _ = key.partition("/")
    return key.startswith(_RESERVED_BEGINNINGS) or (
        bool(slash)
        and any(
            domain == reserved or domain.endswith(f".{reserved}") for reserved in RESERVED_DOMAINS
        )
    )


def _reserved_key_cel(variable: str) -> str:
    """Write `is_reserved_metadata_key` as a CEL expression.

    Upper case is left to the rules beside it, which refuse it in domains.
    """
    tests = [f"{variable}.startsWith({quote(beginning)})" for beginning in _RESERVED_BEGINNINGS]
    for domain in RESERVED_DOMAINS:
        tests.append(f"{variable}.startsWith({quote(domain + '/')})")
        tests.append(f"{variable}.contains({quote('.' + domain + '/')})")
    return " || ".join(tests)


_RESERVED_TEXT = ", ".join(
    [
        *(f"{name}.*" for name in RESERVED_REVERSED_DOMAINS),
        *(f"{domain}/*" for domain in RESERVED_DOMAINS),
    ]
)

_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_DNS_LABEL = f"^{_LABEL}$"
_METADATA_KEY = f"^({_LABEL}(\\.{_LABEL})*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?$"
_MAX_DOMAIN = 253
_LABEL_VALUE = "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"
_DNS_SUBDOMAIN = f"^{_LABEL}(\\.{_LABEL})*$"
_WHOLE_DOMAIN = f"^{_LABEL}(\\.{_LABEL})*/$"


def _matches(pattern: str, cure: str) -> CEL:
    """Check a string against a pattern, with the value and the cure in the message."""
    return CEL(
        rule=f"self.matches({quote(pattern)})",
        message_expression=f"'\"' + self + '\" ' + {quote(cure)}",
        message=cure,
        replaces=("pattern",),
    )


def _each(called: str, test: str, cure: str) -> CEL:
    """Demand something of all keys of a map or items of a list; the message names the first bad."""
    return CEL(
        rule=f"self.all({called}, {test})",
        message_expression=(f"'\"' + self.filter({called}, !({test}))[0] + '\" ' + {quote(cure)}"),
        message=f"a {called} {cure}",
    )


RuntimeClassName = Annotated[
    str,
    StringConstraints(pattern=_DNS_SUBDOMAIN, max_length=253),
    _matches(
        _DNS_SUBDOMAIN,
        "cannot be the name of a RuntimeClass: use lower-case letters, digits, '-' and '.', with a"
        " letter or digit at both ends; `kubectl get runtimeclass` lists the names there are",
    ),
]
HandlerName = Annotated[
    str,
    StringConstraints(pattern=_DNS_LABEL, max_length=63),
    _matches(
        _DNS_LABEL,
        "cannot be the name of a handler: use lower-case letters, digits and '-', with a letter or"
        " digit at both ends, as in the `handler` of the RuntimeClass; leave the field out to"
        " accept whatever handler the RuntimeClass has",
    ),
]
PoolName = Annotated[
    str,
    StringConstraints(pattern=_DNS_SUBDOMAIN, max_length=names.MAX_POOL_NAME),
    _matches(
        _DNS_SUBDOMAIN,
        "cannot be the name of a SandboxPool: use lower-case letters, digits, '-' and '.', with a"
        " letter or digit at both ends; `kubectl get sbp` lists those of this namespace",
    ),
]
MetadataPrefix = Annotated[
    str,
    StringConstraints(pattern=_WHOLE_DOMAIN, max_length=_MAX_DOMAIN + 1),
    # The rule stands on the list: an item of a set has no former self to compare it with.
    WithJsonSchema({"type": "string", "maxLength": _MAX_DOMAIN + 1}),
]

Count = Annotated[int, Field(ge=0)]
LifetimeSeconds = Annotated[int, Field(ge=1, le=YEAR_SECONDS)]


def _rfc3339(moment: datetime) -> str:
    text = moment.astimezone(UTC).isoformat(
        timespec="microseconds" if moment.microsecond else "seconds"
    )
    return text.removesuffix("+00:00") + "Z"


Timestamp = Annotated[
    AwareDatetime,
    PlainSerializer(_rfc3339, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]


def _name_fits(longest: int, why: str) -> CEL:
    """Refuse names that the pods could not carry."""
    return CEL(
        rule=f"size(self.metadata.name) <= {longest}",
        # No messageExpression: the API server reckons string(number) as boundlessly long, and the
        # rule would exceed its cost budget.
        message=f"metadata.name is too long: {why}; choose a name of at most {longest} characters",
        ratchet=AT_CREATION,
    )


class ObjectMeta(Model):
    """The part of an object's metadata that the operator reads."""

    name: str
    namespace: str = ""
    uid: str
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: Timestamp | None = None
    deletion_timestamp: Timestamp | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class ConditionStatus(StrEnum):
    """Whether a condition holds."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(Model):
    """A standard Kubernetes condition."""

    type: Annotated[str, Field(max_length=316)]
    """What the condition is about, in CamelCase."""
    status: ConditionStatus
    """`True`, `False` or `Unknown`."""
    reason: Annotated[str, Field(min_length=1, max_length=1024)]
    """Why, as one word from the operator's vocabulary; events, metrics and logs use the same."""
    message: Annotated[str, Field(max_length=32768)]
    """Why, as a sentence for people, with what to do."""
    last_transition_time: Timestamp
    """When `status` last changed."""
    observed_generation: Count | None = None
    """The `metadata.generation` that the condition was computed from."""


Conditions = Annotated[tuple[Condition, ...], Field(max_length=16), list_map("type")]


# --- SandboxPool: spec ---------------------------------------------------------------------------


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
        "a template may not name a node, for that bypasses the scheduler: remove the field and use"
        " nodeSelector or affinity",
    ),
]


class PodTemplate(Model):
    """The pod that every sandbox of the pool is made from."""

    metadata: TemplateMetadata = TemplateMetadata()
    """Labels and annotations of every pod of the pool."""
    spec: PodSpec
    """The pod's spec, as in a Deployment. `runtimeClassName`, `overhead` and `nodeName`
    are refused. The operator submits the finished pod as a server-side dry run, with strict field
    validation, and reports the verdict as the condition `TemplateAccepted`. Unless set here,
    `automountServiceAccountToken` and `enableServiceLinks` are false and `restartPolicy` is Never:
    a sandbox that was restarted has lost its state."""


class Startup(Model):
    """How sandboxes are started."""

    timeout_seconds: Annotated[int, Field(ge=1, le=DAY_SECONDS)] = 300
    """Seconds that a sandbox may take to become Ready once it is on a node, before it is reported
    and replaced. While the kubelet says that it waits, such as for an image, the time stands still.
    The default leaves room for a large image on a new node."""
    max_starting: Annotated[int, Field(ge=1, le=1000)] = 10
    """How many sandboxes may be starting at once, those for claims with `onEmpty: Create` included.
    Cold starts slow each other down many times over, so more is rarely faster."""


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
    hands them out; new sandboxes are of the new revision. `Recreate` deletes all outdated warm
    sandboxes at once. Warm sandboxes of another runtime than the pool's are always replaced."""
    max_unavailable: IntOrPercent = 1
    """How many warm sandboxes may be missing from the target while they are replaced: a number, or
    a percentage of `status.target`, rounded down to a whole number and never to less than one."""


class Placement(StrEnum):
    """Which warm sandbox is handed out first."""

    SPREAD = "Spread"
    PACKED = "Packed"


class IsolationProof(StrEnum):
    """How much proof is wanted that the runtime isolates."""

    NONE = "None"
    PER_NODE = "PerNode"
    PER_SANDBOX = "PerSandbox"


class Disruption(StrEnum):
    """Whether claimed sandboxes may be evicted, such as by a drain."""

    ALLOW = "Allow"
    PROTECT = "Protect"


class ClaimsPolicy(Model):
    """What the pool grants to claims."""

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
    """Seconds from binding after which a claim that asks for no `ttlSeconds` expires. Unset: such a
    claim lives until it is deleted, or for `maxTTLSeconds` where that is set. A change applies to
    claims that are bound later."""
    max_ttl_seconds: LifetimeSeconds | None = None
    """The longest lifetime of a claim, in seconds from binding; a claim that asks for more is held
    to it. Unset: no limit. A change applies to claims that are bound later, and to a bound one when
    its `ttlSeconds` is changed; a lower limit never takes back what a claim was promised."""
    allowed_metadata_prefixes: Annotated[
        tuple[MetadataPrefix, ...],
        Field(max_length=32),
        LIST_SET,
        _each(
            "prefix",
            f"prefix.matches({quote(_WHOLE_DOMAIN)})",
            "is not a whole domain: name a DNS subdomain in lower case with a slash at its end,"
            " such as example.com/",
        ),
        CEL(
            rule=f"!self.exists(prefix, {_reserved_key_cel('prefix')})",
            message_expression=(
                "'\"' + self.filter(prefix, " + _reserved_key_cel("prefix") + ")[0] + '\" is"
                f" reserved ({_RESERVED_TEXT}), for such keys can reconfigure the runtime: name a"
                " domain of your own, such as example.com/'"
            ),
            message=f"a prefix is reserved ({_RESERVED_TEXT}): name a domain of your own, such as"
            " example.com/",
        ),
    ] = ()
    """Prefixes of the label and annotation keys that claims may put on their pods, each a whole
    domain with a slash at its end, such as `example.com/`. Empty: none. Keys that the template sets
    stay as they are there. Domains of Kubernetes, of runtimes and of this operator are never
    allowed."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=YEAR_SECONDS)] = 3600
    """Seconds for which a finished claim (`Failed`, `Expired`, `Lost`) is kept before the operator
    deletes it. The default leaves time to read what happened; 0 deletes at once."""
    disruption: Disruption = Disruption.ALLOW
    """Whether claimed sandboxes may be evicted, such as by `kubectl drain`. `Allow`: yes, and the
    claim is `Lost` then. `Protect`: evictions are refused until the claim ends, by a
    PodDisruptionBudget that the operator keeps over them. A drain waits for so long, which
    `maxTTLSeconds` bounds."""


class SandboxPoolSpec(Model):
    """What the pool's owner wants."""

    runtime_class_name: RuntimeClassName
    """The RuntimeClass of every sandbox of the pool, one of those that `kubectl get runtimeclass`
    lists. Changing it replaces the warm sandboxes and leaves the claimed ones alone."""
    expected_handler: HandlerName | None = None
    """The handler that the RuntimeClass must resolve to. While it resolves to another, the pool
    creates nothing and says `HandlerMismatch`. Unset: any handler."""
    replicas: Annotated[int, Field(ge=0, le=10000)] = 1
    """How many unclaimed sandboxes to keep warm; `kubectl scale` and autoscalers write it. The
    default of 1 lets a new pool show that its runtime works."""
    max_sandboxes: Annotated[int, Field(ge=1, le=100000)] | None = None
    """Ceiling on all sandboxes of the pool: warm, starting, claimed and terminating, but not those
    whose containers have ended. `replicas` beyond it is clamped and reported, not refused. Unset:
    no ceiling."""
    template: PodTemplate
    """The pod that every sandbox of the pool is made from."""
    startup: Startup = Startup()
    """How sandboxes are started."""
    update: Update = Update()
    """How warm sandboxes follow a change of the template or the runtime."""
    placement: Placement = Placement.SPREAD
    """Which warm sandbox is handed out first: `Spread` takes it from the node with the fewest
    claimed ones, `Packed` from the node with the most, so that others empty."""
    max_age_seconds: Annotated[int, Field(ge=60, le=YEAR_SECONDS)] | None = None
    """Age in seconds at which a warm sandbox is replaced, a few at a time. Unset: never."""
    isolation_proof: IsolationProof = IsolationProof.PER_NODE
    """How much proof is wanted that the runtime isolates. Proof is that a container reads another
    boot id than its node's, for it runs on a kernel of its own. `PerNode`: a probe pod reads it on
    each node, and again after a reboot; after a change of the node's software too, for the
    sandboxes that are started later. `PerSandbox`: an init
    container that the operator adds reads it in each sandbox. Without the proof a sandbox is not
    handed out. `None`: nothing is proven, which is for runtimes that share the node's kernel on
    purpose."""
    claims: ClaimsPolicy = ClaimsPolicy()
    """What the pool grants to claims."""
    paused: bool = False
    """While true the operator creates and deletes no sandboxes of the pool, for claims with
    `onEmpty: Create` neither; claims are still served from what is warm."""


# --- SandboxPool: status -------------------------------------------------------------------------


class NodeCounts(Model):
    """Nodes, by what they say of the handler; what is known better counts instead."""

    eligible: Count = 0
    """Ready, schedulable nodes that the constraints of the class, and of the template, admit."""
    serving: Count = 0
    """Eligible nodes whose container runtime has the handler configured."""
    not_serving: Count = 0
    """Eligible nodes whose container runtime does not have the handler."""
    unknown: Count = 0
    """Eligible nodes that do not report their handlers (before Kubernetes 1.31 or containerd
    2.0)."""
    quarantined: Count = 0
    """Eligible nodes that are kept out because sandboxes failed on them."""
    not_isolating: Count = 0
    """Eligible nodes that are kept out because sandboxes were seen to share the node's kernel."""
    unproven: Count = 0
    """Eligible nodes that are kept out because probes get no answer there, while they do on
    others."""


class PoolIssue(Model):
    """A cause of trouble, with some of the nodes it was seen on."""

    reason: Annotated[str, Field(max_length=128)]
    """The cause, as one word from the operator's vocabulary."""
    count: Count
    """How many nodes or sandboxes are affected."""
    nodes: Annotated[tuple[str, ...], Field(max_length=5), LIST_ATOMIC] = ()
    """Examples of affected nodes."""
    since: Timestamp | None = None
    """When the trouble began."""
    message: Annotated[str, Field(max_length=1024)] = ""
    """What was seen, and what to do."""


class PoolRuntime(Model):
    """The runtime that the pool's RuntimeClass stands for."""

    class_name: str = ""
    """The RuntimeClass that was resolved."""
    uid: str = ""
    """Its uid: a class that was deleted and made again is another one."""
    handler: str = ""
    """The handler that container runtimes know it by."""
    overhead: dict[str, str] = Field(default_factory=dict)
    """What the class adds to each sandbox's resources, by resource name."""
    nodes: NodeCounts = NodeCounts()
    """The pool's nodes, by what they say of the handler."""
    serving_of_eligible: str = ""
    """`serving/eligible` nodes, for the column NODES."""
    issues: Annotated[tuple[PoolIssue, ...], Field(max_length=8), LIST_ATOMIC] = ()
    """The worst troubles of the runtime and the sandboxes, worst first."""


class StageTiming(Model):
    """How long a stage of the start-up takes."""

    # Nothing is required: a status of an earlier version, under other names, could not be written.

    p50_milliseconds: Count = 0
    """Half of the samples took at most so many milliseconds."""
    p95_milliseconds: Count = 0
    """95 % of the samples took at most so many milliseconds."""
    p99_milliseconds: Count = 0
    """99 % of the samples took at most so many milliseconds."""
    samples: Count = 0
    """How many sandboxes were measured. Percentiles of few samples say little."""


class PoolStartup(Model):
    """Measured start-up times of the pool's sandboxes."""

    stages: Annotated[dict[str, StageTiming], Field(max_length=16)] = Field(default_factory=dict)
    """Times from the pod's creation to the end of each stage: `scheduled`, `sandbox`, `started`,
    `ready`."""
    window_seconds: Count = 0
    """How far back the samples reach, in seconds."""


class SandboxPoolStatus(Model):
    """What the operator found and did."""

    observed_generation: Count = 0
    """The `metadata.generation` that this status was computed from."""
    replicas: Count = 0
    """How many unclaimed sandboxes exist: the sum of `warm`, `starting`, `unproven`, `unready`,
    `stranded` and `failed`. Read by `/scale`."""
    selector: str = ""
    """Label selector of the unclaimed sandboxes; read by `/scale`."""
    target: Count = 0
    """How many warm sandboxes are aimed at: `spec.replicas`, clamped by `spec.maxSandboxes`."""
    warm: Count = 0
    """Unclaimed sandboxes that can be handed out."""
    starting: Count = 0
    """Unclaimed sandboxes that are not ready yet."""
    unproven: Count = 0
    """Ready sandboxes that lack the proof of isolation that the pool wants: not handed out."""
    unready: Count = 0
    """Unclaimed sandboxes that were ready and are not now: not handed out before they are again."""
    stranded: Count = 0
    """Unclaimed sandboxes that cannot be handed out where they are: their node is lost, cordoned or
    quarantined, its runtime does not serve or does not isolate, or they are of another runtime than
    the pool's."""
    failed: Count = 0
    """Unclaimed sandboxes that failed and are not yet removed."""
    outdated: Count = 0
    """Of the unclaimed sandboxes, in whatever state, those of an older template or another
    runtime."""
    claimed: Count = 0
    """Sandboxes that belong to a claim, those that are being started for one included."""
    ended: Count = 0
    """Sandboxes of claims whose containers have ended: they are kept for their logs, and take no
    room under `spec.maxSandboxes`."""
    stopping: Count = 0
    """Sandboxes that are terminating."""
    runtime: PoolRuntime | None = None
    """The runtime that the pool's RuntimeClass stands for."""
    startup: PoolStartup | None = None
    """Measured start-up times of the pool's sandboxes."""
    conditions: Conditions = ()
    """`RuntimeResolved`, `NodesServing`, `TemplateAccepted`, `IsolationProven` (where proof is
    wanted), `Warm`, `UpToDate` and their summary `Ready`."""


# --- SandboxClaim --------------------------------------------------------------------------------


class AssertedProof(StrEnum):
    """How much proof of isolation a claim insists on, at least."""

    PER_NODE = "PerNode"
    PER_SANDBOX = "PerSandbox"


class OnEmpty(StrEnum):
    """What a claim does when no sandbox is warm."""

    WAIT = "Wait"
    CREATE = "Create"
    FAIL = "Fail"


_CLAIM_KEYS = (
    _each(
        "key",
        f"key.indexOf('/') <= {_MAX_DOMAIN} && key.matches({quote(_METADATA_KEY)})",
        "cannot be the key of a label or annotation: use a name of at most 63 letters, digits, '-',"
        " '_' and '.', after a domain in lower case and a slash, such as example.com/job",
    ),
    _each(
        "key",
        f"!({_reserved_key_cel('key')})",
        f"is never taken from a claim, for {_RESERVED_TEXT} can reconfigure the runtime: remove it,"
        " or ask the pool's owner to set it in the pool's template",
    ),
)


class ClaimMetadata(Model):
    """Labels and annotations that the claim puts on its pod."""

    labels: Annotated[
        dict[str, Annotated[str, Field(max_length=63)]],
        Field(max_length=32),
        *_CLAIM_KEYS,
        _each(
            "key",
            f"self[key].matches({quote(_LABEL_VALUE)})",
            "has a value that a label cannot have: use letters, digits, '-', '_' and '.', with a"
            " letter or digit at both ends, or put the text into annotations",
        ),
    ] = Field(default_factory=dict)
    """Labels for the pod; their keys must begin with one of the pool's
    `allowedMetadataPrefixes`, and the pool's template must not set them."""
    annotations: Annotated[
        dict[str, Annotated[str, Field(max_length=4096)]],
        Field(max_length=32),
        *_CLAIM_KEYS,
    ] = Field(default_factory=dict)
    """Annotations for the pod; their keys must begin with one of the pool's
    `allowedMetadataPrefixes`, and the pool's template must not set them."""


_NEW_CLAIM = (
    " of a claim cannot be added, changed or removed, only spec.ttlSeconds can: delete this claim"
    " and create another"
)


class SandboxClaimSpec(Model):
    """Which sandbox an application wants. Only `ttlSeconds` can be changed after creation."""

    cel_rules: ClassVar[tuple[CEL, ...]] = (
        *(
            immutable(name, f"spec.{name}{_NEW_CLAIM}")
            for name in (
                "poolName",
                "runtimeClassName",
                "isolationProof",
                "bindTimeoutSeconds",
                "onEmpty",
                "metadata",
            )
        ),
    )

    pool_name: PoolName
    """The SandboxPool to take a sandbox from, in the claim's own namespace; `kubectl get sbp` lists
    them."""
    runtime_class_name: RuntimeClassName | None = None
    """An assertion, not a choice: when the pool's RuntimeClass is another, the claim fails rather
    than be given another runtime. Unset: whatever the pool has."""
    isolation_proof: AssertedProof | None = None
    """An assertion, not a choice: when the pool's `isolationProof` is less than this, the claim
    fails rather than be given a sandbox with less proof. `PerSandbox` is more than `PerNode`, which
    is more than `None`. Unset: whatever the pool has."""
    ttl_seconds: LifetimeSeconds | None = None
    """Seconds from binding after which the sandbox is deleted. May be changed at any time, which
    counts from binding too, within the pool's `maxTTLSeconds` of that time. Unset: the pool's
    `defaultTTLSeconds`."""
    bind_timeout_seconds: Annotated[int, Field(ge=1, le=DAY_SECONDS)] = 300
    """Seconds from creation after which a claim that is not bound fails, unless a sandbox is warm
    for it even then. The default equals that of the pool's `startup.timeoutSeconds`: one cold start
    fits."""
    on_empty: OnEmpty = OnEmpty.WAIT
    """When no sandbox is warm: `Wait` for one, `Create` one for this claim, or `Fail` at once."""
    metadata: ClaimMetadata = ClaimMetadata()
    """Labels and annotations for the pod, within the pool's `allowedMetadataPrefixes`. They never
    replace what the pod has already."""


class ClaimPhase(StrEnum):
    """Where a claim stands."""

    PENDING = "Pending"
    BOUND = "Bound"
    FAILED = "Failed"
    EXPIRED = "Expired"
    LOST = "Lost"

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen to the claim."""
        return self in (ClaimPhase.FAILED, ClaimPhase.EXPIRED, ClaimPhase.LOST)


class ClaimSource(StrEnum):
    """Whether the sandbox was waiting or was made for the claim."""

    WARM = "Warm"
    COLD = "Cold"


class ClaimRuntime(Model):
    """The runtime that the sandbox was made with."""

    class_name: str
    """The RuntimeClass of the pod."""
    handler: str
    """The handler that the class stood for when the pod was made."""
    evidence: Annotated[str, Field(max_length=1024)] | None = None
    """What proves that the sandbox does not share the node's kernel, where proof was wanted."""


class SandboxClaimStatus(Model):
    """What the claim got."""

    observed_generation: Count = 0
    """The `metadata.generation` that this status was computed from."""
    phase: ClaimPhase = ClaimPhase.PENDING
    """`Pending`, `Bound`, or finished: `Failed`, `Expired`, `Lost`."""
    pod_name: str | None = None
    """The pod that is the sandbox."""
    pod_uid: str | None = None
    """Its uid: a pod of the same name made later is not the sandbox."""
    pod_ip: str | None = None
    """The pod's primary address."""
    pod_ips: Annotated[tuple[str, ...], Field(max_length=8), LIST_ATOMIC] = ()
    """All addresses of the pod."""
    node_name: str | None = None
    """The node that the sandbox runs on."""
    runtime: ClaimRuntime | None = None
    """The runtime that the sandbox was made with."""
    source: ClaimSource | None = None
    """`Warm` when the sandbox was waiting, `Cold` when it was made for the claim."""
    bound_at: Timestamp | None = None
    """When the claim got its sandbox."""
    expires_at: Timestamp | None = None
    """When the sandbox will be deleted; unset for one that lives until its claim is deleted. It is
    set at the binding, and only a change of the claim's `ttlSeconds` changes it."""
    finished_at: Timestamp | None = None
    """When the claim failed, expired or lost its sandbox."""
    conditions: Conditions = ()
    """`Bound` and `Ready`, with reasons."""


# --- SandboxRuntime ------------------------------------------------------------------------------


class RuntimeIssue(Model):
    """A cause of trouble of the runtime, with some of the nodes it was seen on."""

    reason: Annotated[str, Field(max_length=128)]
    """The cause, as one word from the operator's vocabulary."""
    handler: Annotated[str, Field(max_length=63)]
    """The handler that failed."""
    count: Count
    """How many nodes are affected."""
    nodes: Annotated[tuple[str, ...], Field(max_length=5), LIST_ATOMIC] = ()
    """Examples of affected nodes."""
    first_seen: Timestamp
    """Since when the trouble has stood."""
    last_seen: Timestamp
    """When it showed last. It is forgotten an hour later, or once a sandbox works there again."""
    message: Annotated[str, Field(max_length=512)] = ""
    """What Kubernetes said last, in its own words, cut."""


class SandboxCounts(Model):
    """The sandboxes of all pools of the class, by state."""

    warm: Count = 0
    """Unclaimed sandboxes that can be handed out."""
    starting: Count = 0
    """Unclaimed sandboxes that are not ready yet."""
    unproven: Count = 0
    """Ready sandboxes that lack the proof of isolation that their pool wants."""
    unready: Count = 0
    """Unclaimed sandboxes that were ready and are not now."""
    stranded: Count = 0
    """Unclaimed sandboxes that cannot be handed out where they are: their node is lost, cordoned or
    quarantined, its runtime does not serve or does not isolate, or they are of another runtime than
    their pool's."""
    failed: Count = 0
    """Unclaimed sandboxes that failed and are not yet removed."""
    claimed: Count = 0
    """Sandboxes that belong to a claim."""
    ended: Count = 0
    """Sandboxes of claims whose containers have ended, which are kept for their logs."""
    stopping: Count = 0
    """Sandboxes that are terminating."""


class IsolationEvidence(Model):
    """What was seen on nodes that are alike."""

    container_runtime: Annotated[str, Field(max_length=256)] = ""
    """Name and version of the nodes' container runtime."""
    kubelet: Annotated[str, Field(max_length=256)] = ""
    """Version of the nodes' kubelet."""
    isolation: Literal["Proven", "NotProven", "Unavailable"]
    """`Proven`: a sandbox has another kernel than its node. `NotProven`: it has the node's own.
    `Unavailable`: there is no answer."""
    kernel: Annotated[str, Field(max_length=256)] = ""
    """The kernel that the sandbox sees, where it could say."""
    nodes: Count
    """How many nodes showed it."""
    example_node: Annotated[str, Field(max_length=253)] = ""
    """One of them."""
    last_probed: Timestamp
    """When it was seen last."""
    message: Annotated[str, Field(max_length=256)] = ""
    """What was seen on the example, or why there is no answer."""


class RuntimeAdvice(Model):
    """What to change in the RuntimeClass."""

    node_selector: Annotated[dict[str, str], Field(max_length=1)]
    """A label that every serving node has and none of the others: as `scheduling.nodeSelector` of
    the RuntimeClass it keeps sandboxes away from nodes that do not serve the handler."""


class SandboxRuntimeStatus(Model):
    """What the fleet showed of the runtime."""

    exists: bool = False
    """Whether the RuntimeClass exists. False: it is missing, and pools name it."""
    class_uid: str = ""
    """The uid of the RuntimeClass, or of the last there was: one that was deleted and made again is
    another one."""
    handler: str = ""
    """The handler that container runtimes know it by."""
    overhead: dict[str, str] = Field(default_factory=dict)
    """What the class adds to each sandbox's resources, by resource name."""
    nodes: NodeCounts = NodeCounts()
    """The nodes that the constraints of the class admit, by what they say of the handler."""
    serving_of_eligible: str = ""
    """`serving/eligible` nodes, for the column NODES."""
    issues: Annotated[tuple[RuntimeIssue, ...], Field(max_length=16), LIST_ATOMIC] = ()
    """What goes wrong with the runtime, by cause, the worst first."""
    pools: Annotated[tuple[str, ...], Field(max_length=20), LIST_ATOMIC] = ()
    """Pools that use the class, as namespace/name, the first by name."""
    pool_count: Count = 0
    """How many pools use the class."""
    sandboxes: SandboxCounts = SandboxCounts()
    """The sandboxes of all pools of the class, by state."""
    startup: PoolStartup | None = None
    """Measured start-up times of the sandboxes of all pools of the class."""
    evidence: Annotated[tuple[IsolationEvidence, ...], Field(max_length=8), LIST_ATOMIC] = ()
    """What sandboxes showed of their isolation, by kind of node, the worst first."""
    advice: RuntimeAdvice | None = None
    """What to change in the RuntimeClass, if a label separates the nodes that serve it."""
    conditions: Conditions = ()
    """`Ready`: some node can take a sandbox that may be handed out, with the proof that pools of
    the class want. `Healthy`: and nothing speaks against the runtime anywhere. `IsolationProven`:
    sandboxes were seen to have kernels of their own."""


# --- The kinds -----------------------------------------------------------------------------------


def _condition(type_: str) -> str:
    return f'.status.conditions[?(@.type=="{type_}")]'


_READY = _condition("Ready")
_AGE = Column("Age", ".metadata.creationTimestamp", type="date")


class SandboxPool(Model):
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
            Column("Handler", ".status.runtime.handler", description="What the class resolves to"),
            Column(
                "Nodes",
                ".status.runtime.servingOfEligible",
                description="Nodes that serve the handler, of those that could take a sandbox",
            ),
            Column("Warm", ".status.warm", type="integer", description="Ready to be claimed"),
            Column("Target", ".status.target", type="integer", description="Warm ones aimed at"),
            Column("Claimed", ".status.claimed", type="integer", description="Handed out"),
            Column("Ready", f"{_READY}.status", description="Whether claims can be served"),
            Column("Reason", f"{_READY}.reason", description="Why the pool is ready or not"),
            _AGE,
        ),
        scale=Scale(
            spec_replicas=".spec.replicas",
            status_replicas=".status.replicas",
            selector=".status.selector",
        ),
    )
    cel_rules: ClassVar[tuple[CEL, ...]] = (
        _name_fits(
            names.MAX_POOL_NAME,
            "the pods of a SandboxPool are named after it, and their names are hostnames",
        ),
    )

    api_version: Literal["sandboxpool.io/v1alpha1"] = "sandboxpool.io/v1alpha1"
    kind: Literal["SandboxPool"] = "SandboxPool"
    metadata: ObjectMeta
    spec: SandboxPoolSpec
    """What the pool's owner wants."""
    status: SandboxPoolStatus = SandboxPoolStatus()
    """What the operator found and did."""


class SandboxClaim(Model):
    """A request for one sandbox of a pool, and the answer."""

    resource: ClassVar[Resource] = Resource(
        kind=names.CLAIM_KIND,
        plural=names.CLAIMS,
        singular="sandboxclaim",
        short_names=("sbc",),
        categories=(names.CATEGORY,),
        columns=(
            Column("Pool", ".spec.poolName", description="Where the sandbox comes from"),
            Column("Phase", ".status.phase", description="Where the claim stands"),
            Column("Pod", ".status.podName", description="The sandbox"),
            Column("IP", ".status.podIP", description="Address of the sandbox"),
            Column("Runtime", ".status.runtime.className", description="RuntimeClass it runs with"),
            Column("Source", ".status.source", description="Warm, or made cold for the claim"),
            _AGE,
        ),
        # Set by the API server, so that a waiting claim costs the operator no write.
        first_status={"phase": "Pending"},
    )
    cel_rules: ClassVar[tuple[CEL, ...]] = (
        _name_fits(names.MAX_LABEL_VALUE, "the name of a SandboxClaim becomes a label of its pod"),
    )

    api_version: Literal["sandboxpool.io/v1alpha1"] = "sandboxpool.io/v1alpha1"
    kind: Literal["SandboxClaim"] = "SandboxClaim"
    metadata: ObjectMeta
    spec: SandboxClaimSpec
    """Which sandbox the application wants."""
    status: SandboxClaimStatus = SandboxClaimStatus()
    """What the claim got."""


class SandboxRuntime(Model):
    """What the fleet shows of the RuntimeClass of the same name; written by the operator alone."""

    resource: ClassVar[Resource] = Resource(
        kind=names.RUNTIME_KIND,
        plural=names.RUNTIMES,
        singular="sandboxruntime",
        short_names=("sbr",),
        categories=(names.CATEGORY,),
        scope="Cluster",
        columns=(
            Column("Handler", ".status.handler", description="What the class resolves to"),
            Column(
                "Nodes",
                ".status.servingOfEligible",
                description="Nodes that serve the handler, of those that could take a sandbox",
            ),
            Column(
                "Quarantined",
                ".status.nodes.quarantined",
                type="integer",
                description="Nodes that are kept out because sandboxes failed on them",
            ),
            Column(
                "Pools", ".status.poolCount", type="integer", description="Pools that use the class"
            ),
            Column(
                "Warm", ".status.sandboxes.warm", type="integer", description="Ready to be claimed"
            ),
            Column(
                "P50 Ready (ms)",
                ".status.startup.stages.ready.p50Milliseconds",
                type="integer",
                description="Milliseconds within which half of the sandboxes are ready",
            ),
            Column(
                "Ready",
                f"{_READY}.status",
                description="Whether some node can take a sandbox that may be handed out",
            ),
            Column("Reason", f"{_READY}.reason", description="Why the runtime is ready or not"),
            Column(
                "Healthy",
                f"{_condition('Healthy')}.status",
                description="Whether nothing speaks against the runtime on any node",
            ),
            Column(
                "Evidence",
                f"{_condition('IsolationProven')}.reason",
                description="Whether sandboxes were seen to have kernels of their own",
            ),
            _AGE,
        ),
    )

    api_version: Literal["sandboxpool.io/v1alpha1"] = "sandboxpool.io/v1alpha1"
    kind: Literal["SandboxRuntime"] = "SandboxRuntime"
    metadata: ObjectMeta
    status: SandboxRuntimeStatus = SandboxRuntimeStatus()
    """What the fleet showed of the runtime."""


Kind = type[SandboxPool] | type[SandboxClaim] | type[SandboxRuntime]
KINDS: tuple[Kind, ...] = (SandboxPool, SandboxClaim, SandboxRuntime)
