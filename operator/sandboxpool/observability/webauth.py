"""Who may read /metrics: whoever the API server knows by the token and lets read that path.

As Kubernetes' own components do: a TokenReview says who it is, a SubjectAccessReview whether the
user may ``get`` the non-resource URL.
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

REMEMBERED_SECONDS = 60.0
MAX_REMEMBERED = 256
# Who sends made-up tokens makes no more requests to the API server at a time than these, and nobody
# waits longer for an answer.
MAX_REVIEWS = 4
REVIEW_SECONDS = 5.0


class Decision(enum.Enum):
    """What becomes of a request."""

    ALLOWED = 200
    UNKNOWN = 401
    FORBIDDEN = 403
    UNDECIDED = 503


class Api(Protocol):
    """The part of the API client that is needed."""

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
    """Ask who somebody is."""
    return {"apiVersion": AUTHENTICATION, "kind": "TokenReview", "spec": {"token": token}}


def access_review(user: _User, path: str) -> dict[str, Any]:
    """Ask whether a user may read a non-resource URL."""
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
    """The API server's answers of the last minute, by a hash of the token: it is kept nowhere."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._known: OrderedDict[bytes, tuple[float, Decision]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, token: str) -> Decision | None:
        """What was answered, if that still counts."""
        until, answer = self._known.get(_hash(token), (float("-inf"), None))
        return answer if self._clock() < until else None

    def put(self, token: str, answer: Decision) -> None:
        """Remember an answer; the oldest goes when there are too many."""
        key = _hash(token)
        self._known.pop(key, None)
        self._known[key] = self._clock() + REMEMBERED_SECONDS, answer
        if len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


class Reviewer:
    """Asks the API server about tokens.

    Args:
        api: speaks to the API server; it must let a replica write that does not lead, for a
            review is a POST.
        path: the URL that is asked about.
        clock: a monotonic clock, in seconds.
    """

    def __init__(
        self, api: Api, path: str = "/metrics", *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._api = api
        self._path = path
        self._answers = DecisionCache(clock)
        self._clock = clock
        self._turn = asyncio.Semaphore(MAX_REVIEWS)
        self._silent_until = float("-inf")

    async def authorize(self, header: str | None) -> Decision:
        """Judge a request by its Authorization header."""
        token = bearer(header)
        if token is None:
            return Decision.UNKNOWN
        known = self._answers.get(token)
        if known is not None:
            return known
        try:
            async with asyncio.timeout(REVIEW_SECONDS), self._turn:
                # Another request with the same token may have asked meanwhile.
                answer = self._answers.get(token)
                if answer is None:
                    answer = await self._ask(token)
                    self._answers.put(token, answer)
        except (KubeError, TimeoutError) as error:
            if self._clock() >= self._silent_until:
                # Whoever knocks writes no more lines than this. The token is no part of them.
                self._silent_until = self._clock() + REMEMBERED_SECONDS
                logger.warning("who asks for metrics cannot be found out: %r", error)
            return Decision.UNDECIDED
        return answer

    async def _ask(self, token: str) -> Decision:
        path = resource_path(AUTHENTICATION, "tokenreviews")
        answer = await self._api.create(path, token_review(token))
        who = _decoded(answer, _TokenReview).status
        # An authenticator that fails says so beside `authenticated: false`.
        if not who.authenticated or not who.user.username:
            return Decision.UNKNOWN
        path = resource_path(AUTHORIZATION, "subjectaccessreviews")
        answer = await self._api.create(path, access_review(who.user, self._path))
        may = _decoded(answer, _AccessReview).status
        return Decision.ALLOWED if may.allowed and not may.denied else Decision.FORBIDDEN


def _decoded(body: bytes, type_: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=type_)
    except UNREADABLE as error:
        raise UnknownOutcomeError(f"what should be a review is none: {error}") from error
