"""What is to be done for a BatchSandbox; the objects alone say it, so it survives any crash."""

import datetime
from dataclasses import dataclass

import msgspec

from sandboxpool.api.opensandbox import LABEL_OPENSANDBOX, OptIn
from sandboxpool.api.reasons import Reason
from sandboxpool.api.v1alpha1 import ClaimPhase, SandboxClaim
from sandboxpool.opensandbox import names
from sandboxpool.opensandbox.kinds import BatchSandbox, SandboxPool
from sandboxpool.opensandbox.outlook import Outlook
from sandboxpool.opensandbox.reasons import BridgeReason

# What the server adds to each request, and the entrypoint of requests that name none.
_SERVER_ENV = frozenset({"OPENSANDBOX_ID", "EXECD_INIT"})
_DEFAULT_ENTRYPOINT = "tail -f /dev/null"
FORMER_CLAIM_SECONDS = 1.0
# The pool that a request names may have been created a moment before it.
UNKNOWN_POOL_SECONDS = 0.7
TIMER_SECONDS = 0.001


@dataclass(frozen=True, slots=True)
class Nothing:
    """Nothing is to be done until something changes, or for some seconds."""

    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class CreateClaim:
    """A sandbox of the pool is to be claimed."""

    mode: OptIn


@dataclass(frozen=True, slots=True)
class Serve:
    """The claim is bound: deliver the task, if any, and publish the sandbox."""

    claim: SandboxClaim


@dataclass(frozen=True, slots=True)
class Await:
    """There is no sandbox yet; the server is told why."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Fail:
    """The request has failed for good."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Lose:
    """The sandbox of the application is gone."""

    reason: str
    message: str
    verify: bool


@dataclass(frozen=True, slots=True)
class Delete:
    """The sandbox's time is over."""

    message: str


@dataclass(frozen=True, slots=True)
class Release:
    """The claim of a request that has failed is not needed."""

    claim: SandboxClaim


@dataclass(frozen=True, slots=True)
class AnswerPause:
    """A pause is asked for, or no longer: say that it is not supported, or remove that."""


Step = Nothing | CreateClaim | Serve | Await | Fail | Lose | Delete | Release | AnswerPause


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What is known about one BatchSandbox.

    Attributes:
        pool: the SandboxPool that it names, or None.
        mirrored: whether OpenSandbox's Pool of that name is ours.
        claim: the SandboxClaim of the BatchSandbox's name, or None.
        claim_requested: the claim was created a moment ago, and the cache does not show it yet.
        outlook: what requests to the pool can expect.
        waiting_since: when it was first seen or, if that was later, the defect of its pool.
        clock: the time on the clock of ``waiting_since``.
        now: the API server's time, in seconds since the epoch.
        exclusive: whether no other controller serves the namespace.
    """

    sandbox: BatchSandbox
    pool: SandboxPool | None
    mirrored: bool
    claim: SandboxClaim | None
    claim_requested: bool
    outlook: Outlook
    waiting_since: float
    clock: float
    now: float
    exclusive: bool

    def left_of(self, seconds: float) -> float:
        """How much of this time is left to wait; 0 if it is over, or will be in no time."""
        left = self.waiting_since + seconds - self.clock
        # Timers end early by a rounding: what is left then must not be waited for again and again.
        return left if left > TIMER_SECONDS else 0.0

    @property
    def has_claim(self) -> bool:
        """Whether the claim is the BatchSandbox's own."""
        owner = self.claim.metadata.controller if self.claim is not None else None
        return owner is not None and owner.uid == self.sandbox.uid

    @property
    def is_ours(self) -> bool:
        """Whether this bridge serves, or has served, the BatchSandbox."""
        sandbox, pool = self.sandbox, self.pool
        if names.ANNOTATION_SERVED in sandbox.metadata.annotations or self.has_claim:
            return True
        offered = pool is not None and pool.mode is not None and self.mirrored
        return offered and not sandbox.has_template


def next_step(view: View) -> Step:
    """Decide on one BatchSandbox."""
    sandbox = view.sandbox
    if sandbox.metadata.deletionTimestamp is not None:
        return Nothing()
    if not view.is_ours:
        return _of_another(view)
    expires = expiry(sandbox)
    if expires is not None and expires <= view.now:
        return Delete(f"spec.expireTime {sandbox.spec.expireTime} has passed")
    return _served(view)


def _of_another(view: View) -> Step:
    sandbox = view.sandbox
    if not view.exclusive or sandbox.settled:
        return Nothing()
    left = view.left_of(UNKNOWN_POOL_SECONDS)
    if left > 0:
        return Nothing(left)
    return Fail(
        BridgeReason.POOL_REF_REQUIRED,
        f"no SandboxPool named {sandbox.spec.poolRef!r} is open to OpenSandbox in this namespace,"
        f" and nothing else serves it: set extensions['poolRef'] to a SandboxPool with the label"
        f" {LABEL_OPENSANDBOX}",
    )


def _served(view: View) -> Step:
    sandbox, claim = view.sandbox, view.claim
    if sandbox.failed:
        needless = view.has_claim and claim is not None and not (claim.finished or claim.deleting)
        return Release(claim) if needless and claim is not None else Nothing()
    if problem := _unsupported(sandbox, view.pool):
        return problem
    if claim is None:
        return _without_claim(view)
    if not view.has_claim:
        return with_foreign_claim(sandbox, claim)
    match claim.status.phase:
        case ClaimPhase.BOUND:
            if sandbox.endpoints not in (None, endpoints_of(claim)):
                # The application may have the first address, and never gets another one.
                return Lose(Reason.POD_LOST, "its first sandbox was lost", verify=False)
            if not sandbox.published:
                return Serve(claim)
            return AnswerPause() if pause_is_unanswered(sandbox) else Nothing()
        case ClaimPhase.LOST:
            return Lose(*_cause(claim, Reason.POD_LOST), verify=False)
        case ClaimPhase.EXPIRED:
            return Delete(_cause(claim, Reason.TTL_EXPIRED)[1])
        case ClaimPhase.FAILED:
            return Fail(*_cause(claim, Reason.BIND_TIMEOUT))
    return _waiting(view)


def with_foreign_claim(sandbox: BatchSandbox, claim: SandboxClaim) -> Step:
    """Decide on a BatchSandbox whose name a claim of somebody else has."""
    owner = claim.metadata.controller
    if owner is not None and owner.name == sandbox.metadata.name:
        # That of a former BatchSandbox of this name, which is about to be deleted.
        return Nothing(FORMER_CLAIM_SECONDS)
    return Fail(
        BridgeReason.NAME_TAKEN,
        f"a SandboxClaim named {claim.metadata.name!r} exists and is not of this BatchSandbox",
    )


def _without_claim(view: View) -> Step:
    # The server may have given the address away before the status was written.
    if view.sandbox.published or view.sandbox.endpoints is not None:
        return Lose(Reason.POD_LOST, "its SandboxClaim was deleted", verify=True)
    if view.claim_requested:
        return _waiting(view)
    if view.pool is None or view.pool.mode is None or not view.mirrored:
        # It was ours, and the pool is closed to OpenSandbox since.
        return Fail(view.outlook.reason, view.outlook.message)
    return CreateClaim(view.pool.mode)


def _waiting(view: View) -> Step:
    outlook = view.outlook
    left = view.left_of(outlook.patience)
    if left > 0:
        return Nothing(left)
    if outlook.defect:
        return Fail(outlook.reason, outlook.message)
    return Await(outlook.reason, outlook.message)


def _cause(claim: SandboxClaim, otherwise: Reason) -> tuple[str, str]:
    """Why a claim has ended."""
    for type_ in ("Bound", "Ready"):
        for condition in claim.status.conditions:
            if condition.type == type_ and condition.status != "True":
                return condition.reason, condition.message
    return otherwise, f"SandboxClaim {claim.metadata.name!r} is {claim.status.phase}"


def _unsupported(sandbox: BatchSandbox, pool: SandboxPool | None) -> Fail | None:
    if sandbox.settled:
        return None
    if sandbox.spec.replicas != 1:
        return Fail(
            BridgeReason.REPLICAS_NOT_SUPPORTED,
            f"spec.replicas is {sandbox.spec.replicas}: a SandboxPool serves BatchSandboxes of one"
            " replica; create one BatchSandbox for each sandbox",
        )
    try:
        process = sandbox.process
    except msgspec.ValidationError as error:
        return Fail(
            BridgeReason.TASK_NOT_SUPPORTED, f"spec.taskTemplate.spec.process is malformed: {error}"
        )
    if process is None or pool is None or pool.mode is not OptIn.PRESTARTED:
        return None
    unknown = sorted({variable.name for variable in process.env} - _SERVER_ENV)
    if unknown:
        what = f"the environment variables {', '.join(unknown)}"
    elif not " ".join([*process.command, *process.args]).rstrip().endswith(_DEFAULT_ENTRYPOINT):
        what = "an entrypoint"
    else:
        return None
    return Fail(
        BridgeReason.TASK_NOT_SUPPORTED,
        f"the request has {what}, which SandboxPool {pool.metadata.name!r} cannot take: its"
        f" sandboxes are started before the request ({LABEL_OPENSANDBOX}: {OptIn.PRESTARTED})",
    )


def endpoints_of(claim: SandboxClaim) -> str:
    """The address of a claim's sandbox, as the server reads it: a JSON list of hosts."""
    address = claim.status.podIP or ""
    # The server appends the port.
    host = f"[{address}]" if ":" in address else address
    return msgspec.json.encode([host]).decode()


def expiry(sandbox: BatchSandbox) -> float | None:
    """When the sandbox expires, in seconds since the epoch; None if never, or if unreadable."""
    text = sandbox.spec.expireTime
    if not text:
        return None
    try:
        at = datetime.datetime.fromisoformat(text)
        return at.timestamp() if at.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


def pause_is_unanswered(sandbox: BatchSandbox) -> bool:
    """Whether the condition on the pause differs from what is asked for."""
    return bool(sandbox.spec.pause) != (sandbox.status.condition("PauseFailed") is not None)
