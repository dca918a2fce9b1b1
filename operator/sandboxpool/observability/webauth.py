"""Authorizes readers of /metrics by the API server, as Kubernetes' own components do.

A TokenReview authenticates the bearer token, and a SubjectAccessReview says whether the user may
``get`` the non-resource URL.
"""

import asyncio
import enum
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import msgspec

from sandboxpool.kube.client import resource_path
from sandboxpool.kube.errors import UNREADABLE, KubeError, UnknownOutcomeError

logger = logging.getLogger(__name__)

AUTHENTICATION = "authentication.k8s.io/v1"
AUTHORIZATION = "authorization.k8s.io/v1"

T = TypeVar("T")

CACHED_SECONDS = 60.0
MAX_CACHED = 256
# Limits of the load on the API server by made-up tokens: concurrent reviews, and the time for one.
MAX_REVIEWS = 4
REVIEW_SECONDS = 5.0


class Decision(enum.Enum):
    """The decision on a request, with the HTTP status of its response."""

    ALLOWED = 200
    UNKNOWN = 401
    FORBIDDEN = 403
    UNDECIDED = 503


class Api(Protocol):
    """The part of the API client that a reviewer needs."""

    async def create(self, path: str, body: Mapping[str, Any]) -> bytes:
        """POST an object to its collection."""


class _User(msgspec.Struct):
    username: str = ""
    uid: str = ""
    groups: list[str] = []
    extra: dict[str, list[str]] = {}


class _TokenStatus(msgspec.Struct):
    authenticated: bool = False
    user: _User = msgspec.field(default_factory=_User)
    error: str = ""


class _TokenReview(msgspec.Struct):
    status: _TokenStatus


class _AccessStatus(msgspec.Struct):
    allowed: bool = False
    denied: bool = False


class _AccessReview(msgspec.Struct):
    status: _AccessStatus


def bearer(header: str | None) -> str | None:
    """The token of an Authorization header; None if there is none."""
    scheme, _, token = (header or "").strip().partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def token_review(token: str) -> dict[str, Any]:
    """The body of a TokenReview."""
    return {"apiVersion": AUTHENTICATION, "kind": "TokenReview", "spec": {"token": token}}


def access_review(user: _User, path: str) -> dict[str, Any]:
    """The body of a SubjectAccessReview for a non-resource URL."""
    return {
        "apiVersion": AUTHORIZATION,
        "kind": "SubjectAccessReview",
        "spec": {
            "user": user.username,
            "uid": user.uid,
            "groups": user.groups,
            "extra": user.extra,
            "nonResourceAttributes": {"path": path, "verb": "get"},
        },
    }


class DecisionCache:
    """The decisions of the last minute, by a hash of the token; the token itself is not kept."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._known: OrderedDict[bytes, tuple[float, Decision]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, token: str) -> Decision | None:
        """The cached decision, unless it has expired."""
        until, decision = self._known.get(_hash(token), (float("-inf"), None))
        return decision if self._clock() < until else None

    def put(self, token: str, decision: Decision) -> None:
        """Cache a decision; beyond ``MAX_CACHED`` the oldest is dropped."""
        key = _hash(token)
        self._known.pop(key, None)
        self._known[key] = self._clock() + CACHED_SECONDS, decision
        if len(self._known) > MAX_CACHED:
            self._known.popitem(last=False)


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


class Reviewer:
    """Authorizes requests by reviews of their tokens.

    Args:
        api: the API client; a review is a POST, so the client must not require the lease.
        path: the non-resource URL.
        clock: a monotonic clock, in seconds.
    """

    def __init__(
        self, api: Api, path: str = "/metrics", *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._api = api
        self._path = path
        self._decisions = DecisionCache(clock)
        self._clock = clock
        self._semaphore = asyncio.Semaphore(MAX_REVIEWS)
        self._silent_until = float("-inf")

    async def authorize(self, header: str | None) -> Decision:
        """Decide on a request by its Authorization header."""
        token = bearer(header)
        if token is None:
            return Decision.UNKNOWN
        decision = self._decisions.get(token)
        if decision is not None:
            return decision
        try:
            async with asyncio.timeout(REVIEW_SECONDS), self._semaphore:
                # Another request with the same token may have been decided meanwhile.
                decision = self._decisions.get(token)
                if decision is None:
                    decision = await self._review(token)
                    self._decisions.put(token, decision)
        except (KubeError, TimeoutError) as error:
            if self._clock() >= self._silent_until:
                # Clients must not be able to fill the log. The token must not get into it.
                self._silent_until = self._clock() + CACHED_SECONDS
                logger.warning(
                    "the API server cannot review the token of a request for /metrics, which gets "
                    "a 503: %r",
                    error,
                )
            return Decision.UNDECIDED
        return decision

    async def _review(self, token: str) -> Decision:
        path = resource_path(AUTHENTICATION, "tokenreviews")
        answer = await self._api.create(path, token_review(token))
        identity = _decoded(answer, _TokenReview).status
        # An authenticator that fails also sets `authenticated: false`.
        if not identity.authenticated or not identity.user.username:
            return Decision.UNKNOWN
        path = resource_path(AUTHORIZATION, "subjectaccessreviews")
        answer = await self._api.create(path, access_review(identity.user, self._path))
        access = _decoded(answer, _AccessReview).status
        return Decision.ALLOWED if access.allowed and not access.denied else Decision.FORBIDDEN


def _decoded(body: bytes, type_: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=type_)
    except UNREADABLE as error:
        raise UnknownOutcomeError(f"the review cannot be decoded: {error}") from error
