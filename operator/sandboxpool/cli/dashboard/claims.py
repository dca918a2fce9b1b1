"""How long claims wait for a sandbox, and those that wait or have failed. Pure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sandboxpool.cli import reading
from sandboxpool.cli.cluster import Object
from sandboxpool.cli.dashboard.pools import key

# The first second that no longer belongs to a bucket, with its name. The API has whole seconds.
_BUCKETS = (
    (1, "under 1 s"),
    (2, "1 s"),
    (5, "2 to 4 s"),
    (10, "5 to 9 s"),
    (30, "10 to 29 s"),
    (60, "30 to 59 s"),
)
_LONGEST = "1 min or more"
MAX_ROWS = 20
_FINISHED_BADLY = ("Failed", "Lost")


@dataclass(frozen=True, slots=True)
class Bucket:
    """Claims that waited for about as long.

    Attributes:
        warm: Those that got a warm sandbox.
        cold: Those for which one was started.
        warm_share: The share of `warm` in the fullest bucket, from 0 to 1; so with `cold_share`.
    """

    name: str
    warm: int
    cold: int
    warm_share: float
    cold_share: float


@dataclass(frozen=True, slots=True)
class ClaimRow:
    """A claim that waits, has failed, or was found.

    Attributes:
        at: When it was made if it waits, else when it ended or was bound.
    """

    namespace: str
    name: str
    pool: str
    phase: str
    pod: str
    node: str
    reason: str
    message: str
    at: str


@dataclass(frozen=True, slots=True)
class Claims:
    """The claims.

    Attributes:
        buckets: By how long they waited.
        bound: How many were bound.
        rows: Those that wait, the oldest first, then those that failed, the latest first.
        omitted: How many of these are not shown.
    """

    buckets: Sequence[Bucket]
    bound: int
    rows: Sequence[ClaimRow]
    omitted: int


def summary(claims: Sequence[Object]) -> Claims:
    """Return the distribution of waiting times, and the claims to look at."""
    counts: dict[str, Counter[str]] = {"Warm": Counter(), "Cold": Counter()}
    for claim in claims:
        source = reading.text(claim, "status", "source")
        seconds = _waited(claim)
        if source in counts and seconds is not None:
            counts[source][_bucket(seconds)] += 1
    warm, cold = counts["Warm"], counts["Cold"]
    most = max([*warm.values(), *cold.values()], default=1)
    waiting = sorted((row(one) for one in claims if _is(one, "Pending")), key=lambda one: one.at)
    failed = sorted(
        (row(one) for one in claims if _is(one, *_FINISHED_BADLY)),
        key=lambda one: one.at,
        reverse=True,
    )
    rows = [*waiting, *failed]
    return Claims(
        [
            Bucket(name, warm[name], cold[name], warm[name] / most, cold[name] / most)
            for name in (*(name for _, name in _BUCKETS), _LONGEST)
        ],
        warm.total() + cold.total(),
        rows[:MAX_ROWS],
        max(0, len(rows) - MAX_ROWS),
    )


def find(claims: Sequence[Object], text: str) -> list[ClaimRow]:
    """Return the claims whose name, or whose pod's name, has a text in it."""
    if not text:
        return []
    found = (row(claim) for claim in claims)
    matching = [one for one in found if text in one.name or text in one.pod]
    return sorted(matching, key=lambda one: (one.name != text, one.pod != text, one.name))


def row(claim: Object) -> ClaimRow:
    """Return what is shown of one claim."""
    phase = reading.text(claim, "status", "phase") or "Pending"
    cause = next((one for one in reading.conditions(claim) if one.status == "False"), None)
    if phase == "Pending":
        at = reading.text(claim, "metadata", "creationTimestamp")
    else:
        at = reading.text(claim, "status", "finishedAt") or reading.text(claim, "status", "boundAt")
    return ClaimRow(
        *key(claim),
        reading.text(claim, "spec", "poolName"),
        phase,
        reading.text(claim, "status", "podName"),
        reading.text(claim, "status", "nodeName"),
        cause.reason if cause else "",
        cause.message if cause else "",
        at,
    )


def _is(claim: Object, *phases: str) -> bool:
    return (reading.text(claim, "status", "phase") or "Pending") in phases


def _waited(claim: Object) -> float | None:
    bound = reading.moment(claim, "status", "boundAt")
    created = reading.moment(claim, "metadata", "creationTimestamp")
    if bound is None or created is None:
        return None
    return (bound - created).total_seconds()


def _bucket(seconds: float) -> str:
    return next((name for below, name in _BUCKETS if seconds < below), _LONGEST)
