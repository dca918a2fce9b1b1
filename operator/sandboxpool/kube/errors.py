"""Errors of requests to the API server, by what a caller may do next."""

from dataclasses import dataclass
from typing import Final

import msgspec

# Raised for bytes that are not JSON or UTF-8, are nested too deeply, or do not fit the type.
UNREADABLE: Final = (msgspec.DecodeError, UnicodeError, RecursionError)


class KubeError(Exception):
    """Any failure of a request to the API server."""


class UnknownOutcomeError(KubeError):
    """The request was sent, and it is unknown whether the server carried it out.

    A caller must read the object before it repeats a conditional write.
    """


class NotLeaderError(KubeError):
    """This process does not hold the lease, or it expired: nothing was sent."""


@dataclass
class ApiError(KubeError):
    """The API server responded with an error.

    Attributes:
        status: the HTTP status code.
        reason: the machine-readable reason of the Status object, such as ``AlreadyExists``.
        message: the server's message.
        retry_after: seconds to wait that the server asks for; None if it does not.
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
        """A precondition failed: the object has another resourceVersion or uid."""
        return self.status == 409 and self.reason == "Conflict"

    @property
    def already_exists(self) -> bool:
        """An object of this name exists already."""
        return self.status == 409 and self.reason == "AlreadyExists"

    @property
    def gone(self) -> bool:
        """The resourceVersion is too old to continue a watch or a paged list from."""
        return self.status == 410

    @property
    def refused(self) -> bool:
        """The request is rejected for its content, or by a policy."""
        return self.status in (400, 403, 409, 422) and not self.conflict

    @property
    def namespace_terminating(self) -> bool:
        """The namespace is being deleted and accepts no new objects."""
        return self.status == 403 and "because it is being terminated" in self.message

    @property
    def outcome_unknown(self) -> bool:
        """A timeout of etcd's client or of a load balancer: a write may still be carried out."""
        return self.status == 504 or (self.status >= 500 and not self.reason)
