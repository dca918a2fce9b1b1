"""Resolves the RuntimeClass of a pool to a handler."""

from collections.abc import Mapping
from dataclasses import dataclass

from sandboxpool.api.core import RuntimeClass, Toleration
from sandboxpool.api.reasons import Reason


@dataclass(frozen=True, slots=True)
class Runtime:
    """A RuntimeClass; the uid distinguishes it from an earlier one of the same name."""

    class_name: str
    uid: str
    handler: str
    overhead: tuple[tuple[str, str], ...] = ()
    node_selector: tuple[tuple[str, str], ...] = ()
    tolerations: tuple[Toleration, ...] = ()

    def admits(self, labels: frozenset[tuple[str, str]]) -> bool:
        """Whether the node selector of the class matches a node with these labels.

        Taints are ignored: probes tolerate all of them, and templates may.
        """
        return labels.issuperset(self.node_selector)


@dataclass(frozen=True, slots=True)
class Resolution:
    """The result of resolving a pool's runtimeClassName.

    Attributes:
        runtime: the class; None if it does not exist.
        usable: whether pods may be created with it.
        reason: for the condition RuntimeResolved.
        message: one sentence, with what to do if the class is not usable.
    """

    runtime: Runtime | None
    usable: bool
    reason: Reason
    message: str


def runtime_from_class(obj: RuntimeClass) -> Runtime:
    """Extract from a RuntimeClass what verdicts need."""
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
    """Look up the class of a pool and compare its handler with ``spec.expectedHandler``."""
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
            f"spec.expectedHandler is {expected_handler!r}: no sandbox is created or allocated "
            "until the class or spec.expectedHandler is corrected",
        )
    return Resolution(
        runtime,
        usable=True,
        reason=Reason.RUNTIME_CLASS_FOUND,
        message=f"RuntimeClass {class_name!r} has handler {runtime.handler!r}",
    )
