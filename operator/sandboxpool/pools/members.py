"""The pods of a pool, each put into exactly one state."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from sandboxpool.api import names
from sandboxpool.api.core import Pod
from sandboxpool.api.times import epoch
from sandboxpool.runtimes.diagnosis import Failure, diagnose
from sandboxpool.runtimes.nodes import NodeFacts
from sandboxpool.runtimes.verdict import Answer, answer_of


class State(Enum):
    """Where a pod stands in its pool; the states exclude each other."""

    STARTING = "starting"
    WARM = "warm"
    # Ready, but its node is lost, cordoned or no longer serves the handler: never handed out.
    STRANDED = "stranded"
    FAILED = "failed"
    CLAIMED = "claimed"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class Member:
    """A pod and what the decision needs to know of it.

    Attributes:
        created: seconds since the epoch.
        node: the facts of its node; None if it has none, or if the node is gone.
        failure: what keeps it from being ready, if anything is known.
        revision: the template revision that it was made from.
        class_name: the RuntimeClass that it names.
        runtime_uid: the uid of the RuntimeClass that it was made from.
        exclusion: fingerprint of the nodes it keeps away from.
    """

    name: str
    uid: str
    version: str
    state: State
    created: float
    node_name: str
    node: NodeFacts | None
    failure: Failure | None
    revision: str
    class_name: str
    runtime_uid: str
    exclusion: str

    @property
    def unclaimed(self) -> bool:
        """It belongs to the pool's own stock, and is not on its way out."""
        return self.state not in (State.CLAIMED, State.STOPPING)

    @property
    def alive(self) -> bool:
        """It is warm, or may yet become so."""
        return self.state in (State.STARTING, State.WARM)


def claim_uid_of(pod: Pod) -> str | None:
    """The uid of the claim that a pod belongs to, by its owner, else by its label."""
    owner = pod.metadata.controller
    if owner is not None and owner.kind == names.CLAIM_KIND:
        return owner.uid
    return pod.metadata.labels.get(names.LABEL_CLAIM_UID)


def pool_uid_of(pod: Pod) -> str | None:
    """The uid of the pool that a pod belongs to: by its owner, or, once claimed, by its label.

    A pod that somebody took, by making himself its owner, or set free, by taking the owner away,
    is no longer the pool's, whatever its labels say.
    """
    owner = pod.metadata.controller
    if owner is not None and owner.kind == names.POOL_KIND:
        return owner.uid
    if claim_uid_of(pod) is None or (owner is not None and owner.kind != names.CLAIM_KIND):
        return None
    return pod.metadata.labels.get(names.LABEL_POOL_UID)


def can_be_handed_out(pod: Pod, node: NodeFacts | None, handler: str) -> bool:
    """A ready pod, on a node that is well and still serves the handler (or cannot say)."""
    return (
        pod.ready
        and pod.metadata.deletionTimestamp is None
        and node is not None
        and node.usable
        and answer_of(node, handler) is not Answer.NOT_SERVING
    )


def member_of(
    pod: Pod,
    *,
    node: NodeFacts | None,
    sandbox_event: str | None,
    deleting: bool,
    claimed: bool,
) -> Member:
    """Sort one pod.

    Args:
        pod: the pod, from the cache.
        node: its node's facts.
        sandbox_event: its last FailedCreatePodSandBox message.
        deleting: we sent its DELETE and have not seen the effect yet.
        claimed: it is being handed out at this moment, though the cache does not show it.
    """
    metadata = pod.metadata
    handler = metadata.annotations.get(names.ANNOTATION_HANDLER, "")
    failure = None
    if deleting or metadata.deletionTimestamp is not None:
        state = State.STOPPING
    elif claimed or claim_uid_of(pod) is not None:
        state = State.CLAIMED
    elif pod.finished:
        state = State.FAILED
        failure = diagnose(pod, sandbox_event)
    elif pod.spec.nodeName and (
        node is None or not node.usable or answer_of(node, handler) is Answer.NOT_SERVING
    ):
        state = State.STRANDED
        failure = diagnose(pod, sandbox_event)
    elif pod.ready:
        state = State.WARM
    else:
        state = State.STARTING
        failure = diagnose(pod, sandbox_event)
    return Member(
        name=metadata.name,
        uid=metadata.uid,
        version=metadata.resourceVersion,
        state=state,
        created=epoch(metadata.creationTimestamp),
        node_name=pod.spec.nodeName,
        node=node,
        failure=failure,
        revision=metadata.labels.get(names.LABEL_REVISION, ""),
        class_name=pod.spec.runtimeClassName,
        runtime_uid=metadata.annotations.get(names.ANNOTATION_RUNTIME_UID, ""),
        exclusion=metadata.annotations.get(names.ANNOTATION_EXCLUSION, ""),
    )


def oldest_first(member: Member) -> tuple[float, str]:
    """Sort key: creation, then name, so that equal ages have a stable order."""
    return member.created, member.name


def where(predicate: Callable[[Member], bool], members: tuple[Member, ...]) -> list[Member]:
    """The members that satisfy a predicate, oldest first."""
    return sorted(filter(predicate, members), key=oldest_first)
