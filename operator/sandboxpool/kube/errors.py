"""What can go wrong between us and the API server, told apart by what a caller may do next."""

from dataclasses import dataclass
from typing import Final

import msgspec

# What is raised where bytes are no JSON or no UTF-8, nested too deeply, or of another shape.
UNREADABLE: Final = (msgspec.DecodeError, UnicodeError, RecursionError)


class KubeError(Exception):
    """Any failure of a request to the API server."""


class UnknownOutcomeError(KubeError):
    """The request was sent, and nobody can say whether the server carried it out.

    A caller must never repeat a conditional write after this; it reads the object first.
    """


class NotLeaderError(KubeError):
    """The lease is not ours, or its time is over: nothing was sent, and nothing may be."""


@dataclass
class ApiError(KubeError):
    """The API server answered, and the answer was no.

    Attributes:
        status: the HTTP status code.
        reason: the machine-readable reason of the Status object, such as ``AlreadyExists``.
        message: the server's own sentence.
        retry_after: seconds that the server asks us to wait; None if it does not say.
    """

    status: int
    reason: str
    message: str
    retry_after: float | None = None

    def __str__(self) -> str:
        return f"{self.status} {self.reason}: {self.message}"

    @property
    def not_found(self) -> bool:
        """The object, or the kind, does not exist."""
        return self.status == 404

    @property
    def conflict(self) -> bool:
        """A precondition failed: the object is newer than we thought, or another one."""
        return self.status == 409 and self.reason == "Conflict"

    @property
    def already_exists(self) -> bool:
        """A create met an object of the same name."""
        return self.status == 409 and self.reason == "AlreadyExists"

    @property
    def gone(self) -> bool:
        """The resource version is too old to go on from (watch or paged list)."""
        return self.status == 410

    @property
    def refused(self) -> bool:
        """The request as such is not accepted, by a policy or for what is in it."""
        return self.status in (400, 403, 409, 422) and not self.conflict

    @property
    def namespace_terminating(self) -> bool:
        """The namespace is being deleted and takes no new objects."""
        return self.status == 403 and "because it is being terminated" in self.message

    @property
    def outcome_unknown(self) -> bool:
        """Somebody gave up waiting, etcd's client or a balancer: a write may be carried out yet."""
        return self.status == 504 or (self.status >= 500 and not self.reason)
