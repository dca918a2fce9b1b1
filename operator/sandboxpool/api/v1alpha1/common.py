"""What the kinds have in common: names, times, conditions and counts of nodes."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints, WithJsonSchema

from sandboxpool.api.markers import AT_CREATION, CEL, Column, list_map, quote
from sandboxpool.api.structs import Status, Struct

YEAR_SECONDS = 365 * 24 * 3600
DAY_SECONDS = 24 * 3600
LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
DNS_SUBDOMAIN = f"^{LABEL}(\\.{LABEL})*$"
MAX_DOMAIN = 253


def matches(pattern: str, cure: str) -> CEL:
    """Check a string against a pattern, with the value and the cure in the message."""
    return CEL(
        rule=f"self.matches({quote(pattern)})",
        message_expression=f"'\"' + self + '\" ' + {quote(cure)}",
        message=cure,
        replaces=("pattern",),
    )


def each(called: str, test: str, cure: str) -> CEL:
    """Demand something of all keys of a map or items of a list; the message names the first bad."""
    return CEL(
        rule=f"self.all({called}, {test})",
        message_expression=(f"'\"' + self.filter({called}, !({test}))[0] + '\" ' + {quote(cure)}"),
        message=f"a {called} {cure}",
    )


RuntimeClassName = Annotated[
    str,
    StringConstraints(pattern=DNS_SUBDOMAIN, max_length=253),
    matches(
        DNS_SUBDOMAIN,
        "cannot be the name of a RuntimeClass: use lower-case letters, digits, '-' and '.', with a"
        " letter or digit at both ends; `kubectl get runtimeclass` lists the names there are",
    ),
]
Count = Annotated[int, Field(ge=0)]
LifetimeSeconds = Annotated[int, Field(ge=1, le=YEAR_SECONDS)]
Timestamp = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]


def name_fits(longest: int, why: str) -> CEL:
    """Refuse names that are too long for the pods."""
    return CEL(
        rule=f"size(self.metadata.name) <= {longest}",
        # No messageExpression: the API server reckons string(number) as boundlessly long, and the
        # rule would exceed its cost budget.
        message=f"metadata.name is too long: {why}; choose a name of at most {longest} characters",
        ratchet=AT_CREATION,
    )


class Word(StrEnum):
    """A value of an enum in the API. Unknown values are kept, so that the object stays readable."""

    @classmethod
    def _missing_(cls, value: object) -> "Word | None":
        if not isinstance(value, str):
            return None
        word = str.__new__(cls, value)
        word._name_ = word._value_ = value
        return word


class ConditionStatus(Word):
    """Whether a condition holds."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A standard Kubernetes condition."""

    type: Annotated[str, Field(max_length=316)]
    """What the condition is about, in CamelCase."""
    status: ConditionStatus
    """`True`, `False` or `Unknown`."""
    reason: Annotated[str, Field(min_length=1, max_length=1024)]
    """The reason in CamelCase; events, metrics and logs use the same."""
    message: Annotated[str, Field(max_length=32768)]
    """A message for people, with what to do."""
    lastTransitionTime: Timestamp
    """When `status` last changed."""
    observedGeneration: Count | None = None
    """The `metadata.generation` that the condition was computed from."""


Conditions = Annotated[list[Condition], Field(max_length=16), list_map("type")]


class NodeCounts(Status, frozen=True, kw_only=True):
    """Nodes, by what they report about the handler; results of probes take precedence."""

    eligible: Count
    """Ready, schedulable nodes that the constraints of the class, and of the template, admit."""
    serving: Count
    """Eligible nodes whose container runtime has the handler configured."""
    notServing: Count
    """Eligible nodes whose container runtime does not have the handler."""
    unknown: Count
    """Eligible nodes that do not report their handlers (before Kubernetes 1.31 or containerd
    2.0)."""
    quarantined: Count
    """Eligible nodes that are excluded because sandboxes failed on them."""
    notIsolating: Count
    """Eligible nodes that are excluded because sandboxes share the node's kernel there."""
    unproven: Count
    """Eligible nodes that are excluded because probes have no result there, while they have one on
    others."""


class StageTiming(Status, frozen=True, kw_only=True):
    """How long a stage of the start-up takes."""

    p50Milliseconds: Count
    """Half of the samples took at most this many milliseconds."""
    p95Milliseconds: Count
    """95 % of the samples took at most this many milliseconds."""
    p99Milliseconds: Count
    """99 % of the samples took at most this many milliseconds."""
    samples: Count
    """How many sandboxes were measured. Percentiles of few samples are inaccurate."""


class PoolStartup(Status, frozen=True, kw_only=True):
    """Measured start-up times of the pool's sandboxes."""

    stages: Annotated[dict[str, StageTiming], Field(max_length=16)]
    """Times from the pod's creation to the end of each stage: `scheduled`, `sandbox`, `started`,
    `ready`."""
    windowSeconds: Count
    """How far back the samples reach, in seconds."""


def condition_path(type_: str) -> str:
    """The JSON path of a condition, for a column."""
    return f'.status.conditions[?(@.type=="{type_}")]'


READY = condition_path("Ready")
AGE = Column("Age", ".metadata.creationTimestamp", type="date")
