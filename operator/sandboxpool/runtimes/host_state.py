"""The host of a sandbox: its node, and whether the runtime works and isolates there."""

from dataclasses import dataclass, replace

from sandboxpool.runtimes.evidence import Isolation
from sandboxpool.runtimes.nodes import NodeFacts
from sandboxpool.runtimes.verdict import HandlerState, listed_handler_state


@dataclass(frozen=True, slots=True)
class HostState:
    """The state of the node and the handler of one pod.

    Attributes:
        node: the facts of the pod's node; None if it has no node, or if the node is gone.
        handler: the handler of the pod's class when the pod was created.
        quarantined: the node is quarantined for the handler.
        isolation: the evidence, where the pool requires proof; None while there is none.
        proof_wanted: the pool requires proof of isolation.
        isolation_message: the evidence in words.
    """

    node: NodeFacts | None
    handler: str
    quarantined: bool = False
    isolation: Isolation | None = None
    proof_wanted: bool = False
    isolation_message: str = ""

    @property
    def handler_served(self) -> bool:
        """The node lists the handler, or lists no handlers at all."""
        return (
            self.node is not None
            and listed_handler_state(self.node, self.handler) is not HandlerState.NOT_SERVING
        )

    @property
    def isolation_failed(self) -> bool:
        """The pool requires isolation, and the sandbox is not isolated from its node."""
        return self.proof_wanted and self.isolation is Isolation.NOT_PROVEN

    @property
    def isolation_proven(self) -> bool:
        """The sandbox has the proof that its pool requires."""
        return not self.proof_wanted or self.isolation is Isolation.PROVEN

    def ignoring_cordon(self) -> "HostState":
        """The same without a cordon or planned maintenance; a node being removed stays as it is."""
        node = self.node
        if node is None or node.schedulable or node.being_removed:
            return self
        return replace(self, node=replace(node, schedulable=True, unschedulable_reason=""))

    @property
    def allocatable(self) -> bool:
        """A ready sandbox on this host may be allocated, once its isolation is proven."""
        return (
            self.node is not None
            and self.node.usable
            and self.handler_served
            and not self.quarantined
            and not self.isolation_failed
        )
