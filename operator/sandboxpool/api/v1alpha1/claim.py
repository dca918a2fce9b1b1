"""A SandboxClaim: a request for a sandbox, and its result."""

from typing import Annotated, ClassVar

from pydantic import Field, StringConstraints

from sandboxpool.api import names
from sandboxpool.api.core import Metadata
from sandboxpool.api.markers import CEL, LIST_ATOMIC, Column, Resource, immutable, quote
from sandboxpool.api.structs import ShownAs, Struct
from sandboxpool.api.v1alpha1.common import (
    AGE,
    DAY_SECONDS,
    DNS_SUBDOMAIN,
    LABEL,
    MAX_DOMAIN,
    Conditions,
    Count,
    LifetimeSeconds,
    RuntimeClassName,
    Timestamp,
    Word,
    each,
    matches,
    name_fits,
)
from sandboxpool.api.v1alpha1.reserved import RESERVED_TEXT, reserved_key_cel

_METADATA_KEY = f"^({LABEL}(\\.{LABEL})*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?$"
_LABEL_VALUE = "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"

PoolName = Annotated[
    str,
    StringConstraints(pattern=DNS_SUBDOMAIN, max_length=names.MAX_POOL_NAME),
    matches(
        DNS_SUBDOMAIN,
        "cannot be the name of a SandboxPool: use lower-case letters, digits, '-' and '.', with a"
        " letter or digit at both ends; `kubectl get sbp` lists those of this namespace",
    ),
]


class AssertedProof(Word):
    """How much proof of isolation a claim insists on, at least."""

    PER_NODE = "PerNode"
    PER_SANDBOX = "PerSandbox"


class OnEmpty(Word):
    """What a claim does when no sandbox is warm."""

    WAIT = "Wait"
    CREATE = "Create"
    FAIL = "Fail"


_CLAIM_KEYS = (
    each(
        "key",
        f"key.indexOf('/') <= {MAX_DOMAIN} && key.matches({quote(_METADATA_KEY)})",
        "cannot be the key of a label or annotation: use a name of at most 63 letters, digits, '-',"
        " '_' and '.', after a domain in lower case and a slash, such as example.com/job",
    ),
    each(
        "key",
        f"!({reserved_key_cel('key')})",
        f"is never taken from a claim, for {RESERVED_TEXT} can reconfigure the runtime: remove it,"
        " or ask the pool's owner to set it in the pool's template",
    ),
)


# All annotations of a pod may have 256 KiB. As JSON in UTF-8, a character takes at most 6 bytes.
MAX_CONFIG_FILES = 16
MAX_CONFIG_CHARACTERS = 32768
_FILE_NAME = "^[A-Za-z0-9._-]+$"

ClaimConfig = Annotated[
    dict[str, Annotated[str, Field(max_length=MAX_CONFIG_CHARACTERS)]],
    Field(max_length=MAX_CONFIG_FILES),
    each(
        "key",
        f"size(key) <= 63 && key.matches({quote(_FILE_NAME)}) && key != '.' && !key.contains('..')",
        "cannot be a file name of the configuration: use at most 63 letters, digits, '-', '_' and"
        " '.', without '..'",
    ),
    CEL(
        rule=f"self.map(key, size(key) + size(self[key])).sum() <= {MAX_CONFIG_CHARACTERS}",
        message=f"has more than {MAX_CONFIG_CHARACTERS} characters in all names and texts together:"
        " put large data into the sandbox after the binding, or let the sandbox fetch it",
    ),
]


class ClaimMetadata(Struct, frozen=True, kw_only=True):
    """Labels and annotations that the claim puts on its pod."""

    labels: Annotated[
        dict[str, Annotated[str, Field(max_length=63)]],
        Field(max_length=32),
        *_CLAIM_KEYS,
        each(
            "key",
            f"self[key].matches({quote(_LABEL_VALUE)})",
            "has a value that a label cannot have: use letters, digits, '-', '_' and '.', with a"
            " letter or digit at both ends, or put the text into annotations",
        ),
    ] = {}
    """Labels for the pod; their keys must begin with one of the pool's
    `allowedMetadataPrefixes`, and the pool's template must not set them."""
    annotations: Annotated[
        dict[str, Annotated[str, Field(max_length=4096)]],
        Field(max_length=32),
        *_CLAIM_KEYS,
    ] = {}
    """Annotations for the pod; their keys must begin with one of the pool's
    `allowedMetadataPrefixes`, and the pool's template must not set them."""


_NEW_CLAIM = (
    " of a claim cannot be added, changed or removed, only spec.ttlSeconds can: delete this claim"
    " and create another"
)


class SandboxClaimSpec(Struct, frozen=True, kw_only=True):
    """The requested sandbox. Only `ttlSeconds` can be changed after creation."""

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
                "config",
            )
        ),
    )

    poolName: PoolName
    """The SandboxPool to take a sandbox from, in the claim's own namespace; `kubectl get sbp` lists
    them."""
    runtimeClassName: RuntimeClassName | None = None
    """An assertion, not a choice: if the pool has another RuntimeClass, the claim fails and is not
    bound. Unset: any RuntimeClass."""
    isolationProof: AssertedProof | None = None
    """An assertion, not a choice: if the pool's `isolationProof` is less than this, the claim fails
    and is not bound. `PerSandbox` is more than `PerNode`, which is more than `None`. Unset: any
    value."""
    ttlSeconds: LifetimeSeconds | None = None
    """Seconds from binding after which the sandbox is deleted. It can be changed at any time; the
    new value also counts from binding, within the pool's current `maxTTLSeconds`. Unset: the pool's
    `defaultTTLSeconds`."""
    bindTimeoutSeconds: Annotated[int, Field(ge=1, le=DAY_SECONDS)] = 300
    """Seconds from creation after which a claim that is not bound fails, unless a sandbox is warm
    at that time. The default equals that of the pool's `startup.timeoutSeconds`, which leaves time
    for one cold start."""
    onEmpty: OnEmpty = OnEmpty.WAIT
    """When no sandbox is warm: `Wait` for one, `Create` one for this claim, or `Fail` at once."""
    metadata: ClaimMetadata = ClaimMetadata()
    """Labels and annotations for the pod, within the pool's `allowedMetadataPrefixes`. They never
    replace what the pod has already."""
    config: ClaimConfig = {}
    """The sandbox's configuration: texts by file name. The sandbox finds them as one JSON object in
    the file `config.json` of the pool's `claims.configPath`. Not for secrets: it is an annotation
    of the pod, which whoever may get pods can read."""


class ClaimPhase(Word):
    """The phase of a claim."""

    PENDING = "Pending"
    BOUND = "Bound"
    FAILED = "Failed"
    EXPIRED = "Expired"
    LOST = "Lost"


_FINISHED = frozenset({ClaimPhase.FAILED, ClaimPhase.EXPIRED, ClaimPhase.LOST})


class ClaimSource(Word):
    """Whether the sandbox was warm or was created for the claim."""

    WARM = "Warm"
    COLD = "Cold"


class ClaimRuntime(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The runtime with which the sandbox was created."""

    className: str
    """The RuntimeClass of the pod."""
    handler: str
    """The handler of the class when the pod was created."""
    evidence: Annotated[str, Field(max_length=1024)] | None = None
    """The proof that the sandbox does not share the node's kernel, if the pool requires proof."""


class SandboxClaimStatus(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The observed state of the claim."""

    observedGeneration: Count = 0
    """The `metadata.generation` that this status was computed from."""
    phase: ClaimPhase | None = None
    """`Pending`, `Bound`, or finished: `Failed`, `Expired`, `Lost`."""
    podName: str | None = None
    """The pod that is the sandbox."""
    podUID: str | None = None
    """Its uid: a pod of the same name that is created later is not the sandbox."""
    podIP: str | None = None
    """The pod's primary address."""
    podIPs: Annotated[list[str], Field(max_length=8), LIST_ATOMIC] = []
    """All addresses of the pod."""
    nodeName: str | None = None
    """The node that the sandbox runs on."""
    runtime: ClaimRuntime | None = None
    """The runtime with which the sandbox was created."""
    source: ClaimSource | None = None
    """`Warm` if the sandbox was warm, `Cold` if it was created for the claim."""
    boundAt: Timestamp | None = None
    """When the claim was bound."""
    expiresAt: Timestamp | None = None
    """When the sandbox will be deleted; unset for one that lives until its claim is deleted. It is
    set when the claim is bound, and only a change of the claim's `ttlSeconds` changes it."""
    finishedAt: Timestamp | None = None
    """When the claim failed, expired or lost its sandbox."""
    conditions: Conditions = []
    """`Bound` and `Ready`, with reasons."""


class _Metadata(Metadata, frozen=True):
    generation: int = 0


class SandboxClaim(Struct, frozen=True, kw_only=True):
    """A request for one sandbox of a pool, and its result."""

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
            AGE,
        ),
        # Set by the API server, so that a waiting claim costs the operator no write.
        first_status={"phase": "Pending"},
    )
    cel_rules: ClassVar[tuple[CEL, ...]] = (
        name_fits(names.MAX_LABEL_VALUE, "the name of a SandboxClaim becomes a label of its pod"),
    )

    metadata: Annotated[_Metadata, ShownAs(dict)]
    spec: SandboxClaimSpec
    """The requested sandbox."""
    status: SandboxClaimStatus = SandboxClaimStatus()
    """The observed state of the claim."""

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name."""
        return self.metadata.namespace, self.metadata.name

    @property
    def identity(self) -> tuple[str, str]:
        """Namespace and uid."""
        return self.metadata.namespace, self.metadata.uid

    @property
    def uid(self) -> str:
        """The claim's uid: a claim made again under the same name is another one."""
        return self.metadata.uid

    @property
    def deleting(self) -> bool:
        """The claim is being deleted."""
        return self.metadata.deletionTimestamp is not None

    @property
    def finished(self) -> bool:
        """The claim has ended: it is never bound again."""
        return self.status.phase in _FINISHED

    @property
    def bound(self) -> bool:
        """The claim's status names its pod."""
        return self.status.phase is ClaimPhase.BOUND and self.status.podUID is not None
