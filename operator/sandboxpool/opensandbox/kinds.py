"""The objects that the bridge reads and writes, as far as it reads and writes them.

Shapes of `sandbox.opensandbox.io/v1alpha1` are those of OpenSandbox's CRDs of August 2026.
"""

from enum import StrEnum

import msgspec

from sandboxpool.api import core
from sandboxpool.api.opensandbox import LABEL_OPENSANDBOX, OptIn
from sandboxpool.opensandbox import names


class Metadata(core.Metadata, frozen=True):
    """Metadata with what only these kinds need."""

    generation: int = 0
    finalizers: tuple[str, ...] = ()


class _PoolSpec(msgspec.Struct, frozen=True):
    runtimeClassName: str = ""


class _PoolStatus(msgspec.Struct, frozen=True):
    observedGeneration: int = 0
    warm: int = 0
    starting: int = 0
    claimed: int = 0
    conditions: list[core.Condition] = []


class SandboxPool(msgspec.Struct, frozen=True):
    """A SandboxPool as others than the operator see it."""

    metadata: Metadata
    spec: _PoolSpec = _PoolSpec()
    status: _PoolStatus = _PoolStatus()

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name."""
        return self.metadata.namespace, self.metadata.name

    @property
    def opt_in(self) -> str:
        """The value of the label; empty if OpenSandbox may not use the pool."""
        return self.metadata.labels.get(LABEL_OPENSANDBOX, "")

    @property
    def mode(self) -> OptIn | None:
        """What runs in the sandboxes; None if the pool is not served."""
        if self.metadata.deletionTimestamp is not None or self.opt_in not in list(OptIn):
            return None
        return OptIn(self.opt_in)

    @property
    def ready(self) -> core.Condition | None:
        """The summary of the pool's state."""
        return next((c for c in self.status.conditions if c.type == "Ready"), None)


class MirrorStatus(msgspec.Struct, frozen=True, omit_defaults=False):
    """The status of OpenSandbox's Pool; all fields are required."""

    total: int = 0
    allocated: int = 0
    available: int = 0
    revision: str = ""


class Mirror(msgspec.Struct, frozen=True):
    """OpenSandbox's Pool, whose existence its server checks."""

    metadata: Metadata
    status: MirrorStatus = MirrorStatus()


class _EnvVar(msgspec.Struct, frozen=True):
    name: str = ""


class Process(msgspec.Struct, frozen=True):
    """What of a task's process the bridge decides on; it is delivered as it was received."""

    command: list[str] = []
    args: list[str] = []
    env: list[_EnvVar] = []


_ABSENT = msgspec.Raw(b"")
_NOTHING = (b"", b"null")


class _TaskSpec(msgspec.Struct, frozen=True):
    process: msgspec.Raw = _ABSENT


class _TaskTemplate(msgspec.Struct, frozen=True):
    spec: _TaskSpec = _TaskSpec()


class _BatchSandboxSpec(msgspec.Struct, frozen=True):
    replicas: int | None = None
    poolRef: str = ""
    template: msgspec.Raw = _ABSENT
    taskTemplate: _TaskTemplate | None = None
    expireTime: str | None = None
    pause: bool | None = None


class Phase(StrEnum):
    """The phases that the bridge writes; OpenSandbox's CRD has more."""

    PENDING = "Pending"
    SUCCEED = "Succeed"
    FAILED = "Failed"


class BatchSandboxStatus(msgspec.Struct, frozen=True):
    """The status of a BatchSandbox; the CRD requires all eight counters in each write."""

    phase: str = ""
    observedGeneration: int = 0
    pauseObservedGeneration: int | None = None
    replicas: int = 0
    allocated: int = 0
    ready: int = 0
    taskFailed: int = 0
    taskPending: int = 0
    taskRunning: int = 0
    taskSucceed: int = 0
    taskUnknown: int = 0
    taskLastErrorMessage: str | None = None
    conditions: list[core.Condition] = []

    def to_wire(self) -> dict[str, object]:
        """Return the JSON object as it is sent."""
        wire: dict[str, object] = msgspec.to_builtins(self)
        return {name: value for name, value in wire.items() if value not in (None, "")}

    def condition(self, type_: str) -> core.Condition | None:
        """The condition of this type, or None."""
        return next((c for c in self.conditions if c.type == type_), None)


class BatchSandbox(msgspec.Struct, frozen=True):
    """A sandbox that OpenSandbox's server has requested."""

    metadata: Metadata
    spec: _BatchSandboxSpec = _BatchSandboxSpec()
    status: BatchSandboxStatus = BatchSandboxStatus()

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name."""
        return self.metadata.namespace, self.metadata.name

    @property
    def pool_key(self) -> tuple[str, str]:
        """Namespace and name of the pool."""
        return self.metadata.namespace, self.spec.poolRef

    @property
    def uid(self) -> str:
        """The uid."""
        return self.metadata.uid

    @property
    def failed(self) -> bool:
        """It has failed for good."""
        return self.status.phase == Phase.FAILED

    @property
    def published(self) -> bool:
        """The application has got its sandbox."""
        return self.status.phase == Phase.SUCCEED

    @property
    def endpoints(self) -> str | None:
        """The addresses that the server gives to the application; None if there never were any."""
        return self.metadata.annotations.get(names.ANNOTATION_ENDPOINTS)

    @property
    def settled(self) -> bool:
        """The application has its answer."""
        return self.failed or self.published

    @property
    def has_template(self) -> bool:
        """It describes its pods itself, so it is not for a pool."""
        return bytes(self.spec.template) not in _NOTHING

    @property
    def task(self) -> msgspec.Raw | None:
        """The process of the task, as it was received; None if there is no task."""
        template = self.spec.taskTemplate
        raw = template.spec.process if template is not None else _ABSENT
        return raw if bytes(raw) not in _NOTHING else None

    @property
    def process(self) -> Process | None:
        """The process of the task, as far as it matters; None if there is no task.

        Raises:
            msgspec.ValidationError: it is not a process.
        """
        return msgspec.json.decode(self.task, type=Process) if self.task is not None else None
