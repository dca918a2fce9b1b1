"""What the fake container runtimes do when they are asked to start something.

Rules are kept in the order in which they were made and the last one that matches holds, so
`fail("runsc")` followed by `heal("runsc", nodes=["node-1"])` breaks gVisor everywhere else.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from fakekubelet.model import Container, Pod

Seconds = float | tuple[float, float]
V = TypeVar("V")

# Handlers whose containers run on the node's own kernel.
SHARING_THE_KERNEL = frozenset({"", "runc", "crun", "test-handler"})
_SEED = 0


@dataclass(frozen=True, slots=True)
class Exit:
    """How a container ends.

    Attributes:
        code: Its exit code.
        message: What it wrote to its termination log.
        after: For how many seconds it runs first.
        reason: The reason in the container's status; by default Completed or Error.
    """

    code: int = 0
    message: str = ""
    after: float = 0.0
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class ContainerRun:
    """One start of a container, as a program sees it.

    Attributes:
        pod: The pod.
        container: The container, with its environment.
        node: The node's name.
        handler: The runtime handler of the sandbox.
        boot_id: What `/proc/sys/kernel/random/boot_id` reads inside: the node's own where the
            handler shares the node's kernel, another one elsewhere.
        kernel: What `/proc/version` reads inside.
    """

    pod: Pod
    container: Container
    node: str
    handler: str
    boot_id: str
    kernel: str

    @property
    def env(self) -> dict[str, str]:
        """The literal values of the container's environment."""
        return {item["name"]: item.get("value", "") for item in self.container.env}


Program = Callable[[ContainerRun], Exit | None]


@dataclass(frozen=True, slots=True)
class _Rule(Generic[V]):
    handler: str | None
    nodes: frozenset[str] | None
    value: V
    image: str | None = None

    def matches(self, node: str, handler: str, images: Collection[str] = ()) -> bool:
        return (
            (self.handler is None or self.handler == handler)
            and (self.nodes is None or node in self.nodes)
            and (self.image is None or self.image in images)
        )


@dataclass
class Behaviour:
    """The table of rules. Its methods may be called from any thread."""

    random: random.Random = field(init=False)
    _failures: list[_Rule[str | None]] = field(default_factory=list, init=False)
    _hangs: list[_Rule[bool]] = field(default_factory=list, init=False)
    _delays: list[_Rule[Seconds]] = field(default_factory=list, init=False)
    _stop_delays: list[_Rule[Seconds]] = field(default_factory=list, init=False)
    _isolation: list[_Rule[bool]] = field(default_factory=list, init=False)
    _messages: list[_Rule[bool]] = field(default_factory=list, init=False)
    _missing_images: set[str] = field(default_factory=set, init=False)
    _programs: dict[str, Program] = field(default_factory=dict, init=False)
    _network: str | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.random = random.Random(_SEED)  # noqa: S311  # not a secret: it must be repeatable

    def fail(
        self,
        handler: str | None,
        text: str,
        nodes: Iterable[str] | None = None,
        *,
        image: str | None = None,
    ) -> None:
        """Makes sandboxes of a handler fail with a text of the container runtime.

        Args:
            handler: The handler; None means all of them.
            text: What `FailedCreatePodSandBox` says, see `fakekubelet.texts`.
            nodes: The nodes concerned; None means all of them.
            image: Only pods with a container of this image fail; None means all of them.
        """
        self._failures.append(_Rule(handler, _frozen(nodes), text, image))

    def hang(self, handler: str | None, nodes: Iterable[str] | None = None) -> None:
        """Makes sandboxes of a handler neither start nor fail: no status, no event."""
        self._hangs.append(_Rule(handler, _frozen(nodes), value=True))

    def heal(self, handler: str | None = None, nodes: Iterable[str] | None = None) -> None:
        """Ends failures and hangs. What waits starts at its next try."""
        self._failures.append(_Rule(handler, _frozen(nodes), None))
        self._hangs.append(_Rule(handler, _frozen(nodes), value=False))

    def delay(
        self, handler: str | None, seconds: Seconds, nodes: Iterable[str] | None = None
    ) -> None:
        """Sets how long a sandbox of a handler takes to start: a time or a range to draw from."""
        self._delays.append(_Rule(handler, _frozen(nodes), seconds))

    def delay_stop(
        self, handler: str | None, seconds: Seconds, nodes: Iterable[str] | None = None
    ) -> None:
        """Sets how long a deleted pod of a handler takes to go."""
        self._stop_delays.append(_Rule(handler, _frozen(nodes), seconds))

    def isolate(self, handler: str, isolates: bool, nodes: Iterable[str] | None = None) -> None:
        """Says whether a handler's sandboxes have a kernel of their own, against its name."""
        self._isolation.append(_Rule(handler, _frozen(nodes), isolates))

    def swallow_messages(
        self, handler: str | None, nodes: Iterable[str] | None = None, *, on: bool = True
    ) -> None:
        """Keeps termination messages in the sandbox, as Kata without a shared file system does."""
        self._messages.append(_Rule(handler, _frozen(nodes), not on))

    def lack_image(self, image: str, *, missing: bool = True) -> None:
        """Makes an image one that cannot be pulled, or that can be again."""
        if missing:
            self._missing_images.add(image)
        else:
            self._missing_images.discard(image)

    def program(self, image: str, program: Program) -> None:
        """Says what containers of an image do.

        Without a program the operator's probes do what their script would do, see
        `fakekubelet.probes`; any other init container ends at once with exit code 0, and any other
        container runs for ever.

        Args:
            image: The image, exactly as the container names it.
            program: Called at each start; its answer is how the container ends, None if it does
                not.
        """
        self._programs[image] = program

    def addresses_from(self, network: str) -> None:
        """Gives pods the addresses `NETWORK.1` to `NETWORK.250`, where a test may listen.

        Args:
            network: The first three numbers of an address.
        """
        self._network = network

    def reset(self) -> None:
        """Forgets every rule."""
        for rules in (
            self._failures,
            self._hangs,
            self._delays,
            self._stop_delays,
            self._isolation,
            self._messages,
        ):
            rules.clear()
        self._missing_images.clear()
        self._programs.clear()
        self._network = None
        self.random.seed(_SEED)

    def failure(self, node: str, handler: str, images: Collection[str] = ()) -> str | None:
        """The text with which the sandbox of a pod with such images fails now, if it does."""
        return _last(self._failures, node, handler, None, images)

    def hangs(self, node: str, handler: str) -> bool:
        """Whether a sandbox would hang now."""
        return _last(self._hangs, node, handler, default=False)

    def start_seconds(self, node: str, handler: str) -> float:
        """How long this start takes."""
        return self._draw(_last(self._delays, node, handler, 0.0))

    def stop_seconds(self, node: str, handler: str) -> float:
        """How long this stop takes."""
        return self._draw(_last(self._stop_delays, node, handler, 0.0))

    def isolates(self, node: str, handler: str) -> bool:
        """Whether a sandbox has a kernel of its own."""
        return _last(self._isolation, node, handler, handler not in SHARING_THE_KERNEL)

    def messages_arrive(self, node: str, handler: str) -> bool:
        """Whether the kubelet can read what containers leave as their last message."""
        return _last(self._messages, node, handler, default=True)

    def missing_image(self, images: Iterable[str]) -> str | None:
        """The first of some images that cannot be pulled."""
        return next((image for image in images if image in self._missing_images), None)

    def address(self, count: int) -> str:
        """The address of the pod that is the `count`th to start, from 1."""
        if self._network is not None:
            return f"{self._network}.{(count - 1) % 250 + 1}"
        return f"10.{100 + (count >> 16) % 100}.{(count >> 8) & 255}.{count & 255}"

    def run(self, run: ContainerRun, *, default: Exit | None) -> Exit | None:
        """How one start of a container ends."""
        program = self._programs.get(run.container.image)
        return default if program is None else program(run)

    def _draw(self, seconds: Seconds) -> float:
        if isinstance(seconds, tuple):
            return self.random.uniform(*seconds)
        return seconds


def _frozen(nodes: Iterable[str] | None) -> frozenset[str] | None:
    if isinstance(nodes, str):
        raise TypeError("nodes is a list of names, not a name")
    return None if nodes is None else frozenset(nodes)


def _last(
    rules: list[_Rule[V]], node: str, handler: str, default: V, images: Collection[str] = ()
) -> V:
    for rule in reversed(rules):
        if rule.matches(node, handler, images):
            return rule.value
    return default
