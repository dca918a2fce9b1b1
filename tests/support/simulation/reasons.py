"""Why a sandbox that was once ready may be deleted by the operator: all there are, in one list.

The operator says why it deletes each pod, in its log. A reason counts only where it is on the list
and the objects in the API bear it out at that moment.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from support.simulation.apiserver import Object
from support.simulation.machines import ENDED

# What was ready and is not any more may become so again: it stays at least for so long. The
# operator waits a little longer; times in the API have whole seconds.
UNREADY_SECONDS = 55.0


@dataclass(frozen=True, slots=True)
class Case:
    """A pod that was ready once, at the moment in which it is deleted.

    Attributes:
        pod: as it was before.
        pool: its pool, if there is one.
        claim: the claim that it belongs to, if there is one.
        claimed: it belongs to a claim, which may be gone.
        node_gone: its node does not exist, or did not a short while ago.
        unserved: its node does not list the handler, or did not a short while ago.
        class_changed: its class is not its pool's, or was not a short while ago.
        unready_for: for how many seconds it has not been ready; None if it is.
        excess: how many pods the stock has, or had as the operator asked, beyond the lowest target
            of late; None where nobody knows what it has seen.
        spare: how many ready pods the stock has, with this one, beyond those that must stay while
            others are replaced; None as for `excess`.
    """

    pod: Object
    pool: Object | None
    claim: Object | None
    claimed: bool
    node_gone: bool
    unserved: bool
    class_changed: bool
    unready_for: float | None
    excess: int | None
    spare: int | None

    @property
    def within_budget(self) -> bool:
        """It was not ready anyway, or enough are without it."""
        return self.unready_for is not None or self.spare is None or self.spare > 0

    @property
    def claim_over(self) -> bool:
        """Its claim is gone, or has ended, or has no use for it."""
        if not self.claimed:
            return False
        if self.claim is None or "deletionTimestamp" in self.claim["metadata"]:
            return True
        phase = (self.claim.get("status") or {}).get("phase")
        return phase != "Bound" or self.claim["status"].get("podUID") != self.pod["metadata"]["uid"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of the list.

    Attributes:
        text: when a sandbox may be deleted.
        said: the reasons that the operator gives; empty where any will do.
        holds: whether it is so.
    """

    text: str
    said: frozenset[str]
    holds: Callable[[Case], bool]


def _rule(text: str, holds: Callable[[Case], bool], *said: str) -> Rule:
    return Rule(text, frozenset(said), holds)


RULES = (
    _rule(
        "its program has ended, or it was evicted",
        lambda case: case.pod["status"].get("phase") in ENDED,
    ),
    _rule(
        "it has not been ready for longer than its grace",
        lambda case: case.unready_for is not None and case.unready_for >= UNREADY_SECONDS,
    ),
    _rule(
        "its claim is deleted, has failed or expired, or has another sandbox",
        lambda case: case.claim_over,
    ),
    _rule(
        "its pool is deleted, and the garbage collector has not come",
        lambda case: case.pool is None or "deletionTimestamp" in case.pool["metadata"],
    ),
    _rule(
        "the pool was scaled down",
        lambda case: case.excess is None or case.excess > 0,
        "AtTarget",
    ),
    _rule(
        "it is of an older template, or older than maxAgeSeconds, and enough others are ready",
        lambda case: case.within_budget or _recreates(case.pool),
        "Rolling",
    ),
    _rule("its node is gone", lambda case: case.node_gone, "NodeLost"),
    _rule(
        "its node is cordoned, and enough others are ready",
        lambda case: case.within_budget,
        "SandboxReplaced",
    ),
    _rule(
        "its node is quarantined or does not isolate, and enough others are ready",
        lambda case: case.within_budget,
        "NodeQuarantined",
        "IsolationNotProven",
    ),
    _rule("its node does not serve the handler", lambda case: case.unserved, "HandlerRemoved"),
    _rule(
        "its node gives no proof while others do, and enough others are ready",
        lambda case: case.within_budget and _wants_proof(case.pool),
        "EvidenceUnavailable",
    ),
    _rule(
        "the probe that it waits for finds its node full",
        lambda case: _wants_proof(case.pool),
        "EvidencePending",
    ),
    _rule(
        "it is of another RuntimeClass than the pool's",
        lambda case: case.class_changed,
        "RuntimeChanged",
    ),
)


def _recreates(pool: Object | None) -> bool:
    return pool is not None and pool["spec"].get("update", {}).get("type") == "Recreate"


def _wants_proof(pool: Object | None) -> bool:
    return pool is not None and pool["spec"].get("isolationProof") != "None"


def unexplained(case: Case, said: str) -> bool:
    """Whether no rule of the list holds for a deletion.

    Args:
        case: what is deleted.
        said: the reason that the operator has given, a word.
    """
    return not any((not r.said or said in r.said) and r.holds(case) for r in RULES)


class DeletionLog(logging.Handler):
    """Listens to the operator's log for why it deletes what."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._said: dict[str, tuple[str, str]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if not str(record.msg).startswith("deleting") or not isinstance(record.args, tuple):
            return
        if len(record.args) > 1:
            # A pool's: the pod's name, the reason, a text.
            name, word = str(record.args[0]), str(record.args[1])
        else:
            # A claim's, about the pod.
            name, word = str(getattr(record, "object", {}).get("name", "")), ""
        self._said[name] = word, record.getMessage()

    def of(self, pod: Object) -> tuple[str, str]:
        """The reason that was given for a pod last, a word, and all that was said."""
        return self._said.get(pod["metadata"]["name"], ("", "nothing was said"))
