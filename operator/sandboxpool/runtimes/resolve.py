"""From a pool's class name to the handler that the class stands for now."""

from collections.abc import Mapping
from dataclasses import dataclass

from sandboxpool.api.core import RuntimeClass, Toleration
from sandboxpool.api.reasons import Reason


@dataclass(frozen=True, slots=True)
class Runtime:
    """A RuntimeClass as it is now; the uid tells it from one of the same name before it."""

    class_name: str
    uid: str
    handler: str
    overhead: tuple[tuple[str, str], ...] = ()
    node_selector: tuple[tuple[str, str], ...] = ()
    tolerations: tuple[Toleration, ...] = ()

    def admits(self, labels: frozenset[tuple[str, str]]) -> bool:
        """Whether the class's own selector lets its pods go to a node with these labels.

        Taints are left out: probes tolerate all of them, and templates may.
        """
        return labels.issuperset(self.node_selector)


@dataclass(frozen=True, slots=True)
class Resolution:
    """What became of a pool's runtimeClassName.

    Attributes:
        runtime: the class; None if it does not exist.
        usable: whether pods may be made of it.
        reason: for the condition RuntimeResolved.
        message: one sentence, with what to do if it is not usable.
    """

    runtime: Runtime | None
    usable: bool
    reason: Reason
    message: str


def runtime_from_class(obj: RuntimeClass) -> Runtime:
    """Take from a RuntimeClass what the verdict needs."""
    scheduling = obj.scheduling
    return Runtime(
        class_name=obj.metadata.name,
        uid=obj.metadata.uid,
        handler=obj.handler,
        overhead=tuple(sorted(obj.overhead.podFixed.items())) if obj.overhead else (),
        node_selector=tuple(sorted(scheduling.nodeSelector.items())) if scheduling else (),
        tolerations=tuple(scheduling.tolerations) if scheduling else (),
    )


def resolve(
    class_name: str, expected_handler: str | None, classes: Mapping[str, Runtime]
) -> Resolution:
    """Look a pool's class up, and hold its handler against the pool's pin."""
    runtime = classes.get(class_name)
    if runtime is None:
        return Resolution(
            None,
            usable=False,
            reason=Reason.RUNTIME_CLASS_NOT_FOUND,
            message=f"RuntimeClass {class_name!r} does not exist: create it, "
            "or set spec.runtimeClassName to one that does (kubectl get runtimeclasses)",
        )
    if expected_handler is not None and runtime.handler != expected_handler:
        return Resolution(
            runtime,
            usable=False,
            reason=Reason.HANDLER_MISMATCH,
            message=f"RuntimeClass {class_name!r} has handler {runtime.handler!r}, but "
            f"spec.expectedHandler is {expected_handler!r}: no sandbox is created or handed out "
            "until the class or the pin is corrected",
        )
    return Resolution(
        runtime,
        usable=True,
        reason=Reason.RUNTIME_CLASS_FOUND,
        message=f"RuntimeClass {class_name!r} has handler {runtime.handler!r}",
    )
