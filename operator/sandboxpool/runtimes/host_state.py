"""What a sandbox stands on: its node, and whether its runtime works and isolates there."""

from dataclasses import dataclass, replace

from sandboxpool.runtimes.evidence import Isolation
from sandboxpool.runtimes.nodes import NodeFacts
from sandboxpool.runtimes.verdict import HandlerState, listed_handler_state


@dataclass(frozen=True, slots=True)
class HostState:
    """The ground of one pod.

    Attributes:
        node: the facts of its node; None if it has none, or if the node is gone.
        handler: what its class stood for when it was made.
        quarantined: the quarantine of the node and the handler is open.
        isolation: what is known, where its pool wants proof; None while nothing is.
        proof_wanted: its pool wants proof.
        evidence: what is known of its isolation, in words.
    """

    node: NodeFacts | None
    handler: str
    quarantined: bool = False
    isolation: Isolation | None = None
    proof_wanted: bool = False
    isolation_message: str = ""

    @property
    def handler_served(self) -> bool:
        """The node lists the handler, or cannot say."""
        return (
            self.node is not None
            and listed_handler_state(self.node, self.handler) is not HandlerState.NOT_SERVING
        )

    @property
    def isolation_failed(self) -> bool:
        """The sandbox was to be isolated from its node, and is not."""
        return self.proof_wanted and self.isolation is Isolation.NOT_PROVEN

    @property
    def isolation_proven(self) -> bool:
        """It has all the proof that its pool wants."""
        return not self.proof_wanted or self.isolation is Isolation.PROVEN

    def ignoring_cordon(self) -> "HostState":
        """As if its node were neither cordoned nor to be maintained; one about to go stays out."""
        node = self.node
        if node is None or node.schedulable or node.being_removed:
            return self
        return replace(self, node=replace(node, schedulable=True, unschedulable_reason=""))

    @property
    def allocatable(self) -> bool:
        """A ready sandbox on it may be handed out, once it is proven."""
        return (
            self.node is not None
            and self.node.usable
            and self.handler_served
            and not self.quarantined
            and not self.isolation_failed
        )
