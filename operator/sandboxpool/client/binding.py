"""From a claim to a sandbox, and back."""

import contextlib
import math
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from sandboxpool.api.reasons import Reason
from sandboxpool.client import claims, requests
from sandboxpool.client.api import Api, Object
from sandboxpool.client.errors import (
    ApiError,
    ClaimConflict,
    ClaimError,
    ConnectionLost,
    NotInstalled,
    SandboxPoolError,
)
from sandboxpool.client.io import Io

# What the operator has for saying that a claim has failed.
_GRACE_SECONDS = 15.0
_RELEASE_SECONDS = 15.0
_POOL_SECONDS = 3.0
_AT_ONCE = 16
# What the API server says while it restarts or is too busy, or of a version that it has forgotten.
_PASSING = (410, 429, 500, 502, 503, 504)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
DEFAULT_BIND_SECONDS = 300


async def bind(
    api: Api,
    namespace: str,
    manifest: Object,
    *,
    keep: bool = False,
    on_change: Callable[[Object], None] | None = None,
) -> Object:
    """Create a claim and wait until it has its sandbox.

    Whatever goes wrong, nothing is left behind, unless it is to be kept. `on_change` is called with
    each state of the claim that is seen meanwhile.

    Returns:
        The bound claim.
    """
    manifest, selector = _marked(manifest)
    claim: Object | None = None
    try:
        claim = await _create(api, namespace, manifest)
        _check_config(claim, manifest)
        name = claim["metadata"]["name"]
        return (await _wait(api, namespace, [claim], name=name, on_change=on_change))[0]
    except BaseException as error:
        if keep:
            raise
        if claim is not None:
            await abandon(api, claim)
        elif not isinstance(error, SandboxPoolError) or isinstance(error, ConnectionLost):
            # Interrupted before the answer came: there may be a claim whose name nobody knows.
            await _abandon_all(api, namespace, selector, [])
        raise


async def bind_many(
    api: Api, namespace: str, count: int, manifest: Object, *, within: float
) -> list[Object]:
    """Create many claims and wait until all have their sandboxes, or have none.

    Raises:
        ClaimError: Not all got one in time; those that did are released.
    """
    deadline = api.io.monotonic() + within
    manifest, selector = _marked(manifest)
    manifest["spec"] = {**manifest["spec"], "bindTimeoutSeconds": max(1, math.ceil(within))}
    request = requests.create_claim(namespace, manifest)
    made: list[Object] = []
    try:
        # The first alone: where it is refused, so are all. Its version is where the watch begins.
        made.append(await api.call(request))
        _check_config(made[0], manifest)
        rest = await api.io.gather([partial(api.call, request)] * (count - 1), _AT_ONCE)
        made += [answer for answer in rest if not isinstance(answer, Exception)]
        _raise_first(rest)
        return await _wait(api, namespace, made, selector=selector, deadline=deadline)
    except BaseException as error:
        made = await _abandon_all(api, namespace, selector, made)
        if isinstance(error, ClaimError):
            bound = sum(1 for claim in made if (claim.get("status") or {}).get("podName"))
            error.add_note(f"{bound} of {count} claims had a sandbox; all are released")
        raise


def _marked(manifest: Object) -> tuple[Object, str]:
    """Return a claim with a label that no other has, and the selector for it."""
    mark = uuid.uuid4().hex
    metadata = dict(manifest["metadata"])
    metadata["labels"] = {**metadata.get("labels", {}), claims.REQUEST_LABEL: mark}
    return {**manifest, "metadata": metadata}, f"{claims.REQUEST_LABEL}={mark}"


async def _abandon_all(
    api: Api, namespace: str, selector: str, known: list[Object]
) -> list[Object]:
    """Release all claims of a request, also those of which no answer came, and return them."""
    with contextlib.suppress(SandboxPoolError):
        listed = await api.call(requests.list_claims(namespace, selector))
        known = listed.get("items") or known
    await api.io.gather([partial(abandon, api, claim) for claim in known], _AT_ONCE)
    return known


async def attach(api: Api, namespace: str, name: str) -> Object:
    """Return a claim that is there already, once it has its sandbox."""
    claim = await api.call(requests.get_claim(namespace, name))
    return (await _wait(api, namespace, [claim], name=name))[0]


async def release(api: Api, claim: Object) -> None:
    """Delete a claim and with it the sandbox; one that is gone is fine."""
    metadata = claim["metadata"]
    request = requests.delete_claim(metadata["namespace"], metadata["name"], metadata["uid"])
    deadline, pause = api.io.monotonic() + _RELEASE_SECONDS, _FIRST_PAUSE
    while True:
        try:
            await api.call(request)
        except ApiError as error:
            if error.status not in (404, 409):
                raise
        except ConnectionLost:
            if api.io.monotonic() + pause > deadline:
                raise
            await api.io.sleep(pause)
            pause = min(_LONGEST_PAUSE, 2 * pause)
            continue
        return


async def extend(api: Api, namespace: str, name: str, uid: str, seconds: int) -> Object:
    """Move a sandbox's expiry by so many seconds and return the claim that says so.

    The operator sees to the pool's `maxTTLSeconds`; the claim tells what became of it.
    """
    while True:
        claim = await api.call(requests.get_claim(namespace, name))
        if claim["metadata"]["uid"] != uid:
            raise ClaimConflict(f"claim {name!r} was deleted and made anew", "", name)
        claims.is_bound(claim)
        was = claims.info(claim)
        if was.expires_at is None or was.bound_at is None:
            return claim
        life = math.ceil((was.expires_at - was.bound_at).total_seconds()) + seconds
        version = claim["metadata"]["resourceVersion"]
        patch: Mapping[str, Any] = {
            "metadata": {"resourceVersion": version, "uid": uid},
            "spec": {"ttlSeconds": life},
        }
        try:
            changed = await api.call(requests.patch_claim(namespace, name, patch))
        except ApiError as error:
            if error.status == 409:
                continue
            raise
        return await _wait_observed(api, namespace, changed)


async def _create(api: Api, namespace: str, manifest: Object) -> Object:
    try:
        claim = await api.call(requests.create_claim(namespace, manifest))
    except ApiError as error:
        name = manifest["metadata"].get("name")
        if error.status != 409 or not name or error.reason != "AlreadyExists":
            raise
        claim = await api.call(requests.get_claim(namespace, name))
        claims.check_same(claim, manifest)
    return claim


def _raise_first(answers: list[Object | Exception]) -> None:
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer


def _check_config(claim: Object, manifest: Object) -> None:
    if "config" in manifest["spec"] and "config" not in claim["spec"]:
        raise NotInstalled(
            "the cluster's SandboxClaims know no spec.config: its CRDs are older than this client;"
            " upgrade SandboxPool",
            "",
            404,
        )


async def _wait(
    api: Api,
    namespace: str,
    made: list[Object],
    *,
    name: str = "",
    selector: str = "",
    deadline: float | None = None,
    on_change: Callable[[Object], None] | None = None,
) -> list[Object]:
    """Wait until all claims are bound.

    One watch, from the version of the first; only where it breaks are the claims read again.
    """
    waiting = _Waiting(api.io, made, deadline, on_change)
    version = str(made[0]["metadata"]["resourceVersion"])
    pause = _FIRST_PAUSE
    while waiting:
        left = waiting.seconds_left()
        if left <= 0:
            raise waiting.timed_out()
        request = requests.watch_claims(
            namespace, version, name=name, selector=selector, seconds=math.ceil(left)
        )
        try:
            watch = await api.watch(request)
            try:
                while waiting:
                    event = await watch.next_event(max(0.0, waiting.seconds_left()))
                    if event is None:
                        break
                    version = waiting.learn(*event)
            finally:
                watch.close()
        except (ConnectionLost, ApiError) as error:
            if isinstance(error, ApiError) and error.status not in _PASSING:
                raise
            if pause > waiting.seconds_left():
                raise
            await api.io.sleep(pause)
            pause = min(_LONGEST_PAUSE, 2 * pause)
            version = await _look_again(api, namespace, waiting, name, selector) or version
    return waiting.claims


async def _look_again(
    api: Api, namespace: str, waiting: "_Waiting", name: str, selector: str
) -> str:
    """Read the claims again and return the version to watch from; empty where nothing is heard."""
    try:
        if name:
            found = [await api.call(requests.get_claim(namespace, name))]
            version = found[0]["metadata"]["resourceVersion"]
        else:
            listed = await api.call(requests.list_claims(namespace, selector))
            found, version = listed["items"], listed["metadata"]["resourceVersion"]
    except ConnectionLost:
        return ""
    except ApiError as error:
        if error.status in _PASSING:
            return ""
        if error.status != 404:
            raise
        found, version = [], ""
    waiting.replace(found)
    return str(version)


class _Waiting:
    """Claims that wait to be bound; false when all are."""

    def __init__(
        self,
        io: Io,
        made: list[Object],
        deadline: float | None,
        on_change: Callable[[Object], None] | None = None,
    ) -> None:
        self._io = io
        self._on_change = on_change
        self._now = {claim["metadata"]["uid"]: claim for claim in made}
        self._waiting = {uid for uid, claim in self._now.items() if not claims.is_bound(claim)}
        self._seconds = float(made[0]["spec"].get("bindTimeoutSeconds") or DEFAULT_BIND_SECONDS)
        self._deadline = deadline or io.monotonic() + self._seconds + _GRACE_SECONDS
        self._lacking_since: float | None = None

    def __bool__(self) -> bool:
        return bool(self._waiting)

    @property
    def claims(self) -> list[Object]:
        """The claims as they were seen last, in order."""
        return list(self._now.values())

    def seconds_left(self) -> float:
        """Seconds until it is no use any more to wait.

        A pool may be made at the same time as its claims, but whoever misspells it should not wait
        for as long as for a sandbox.
        """
        now = self._io.monotonic()
        if not any(claims.lacks_pool(self._now[uid]) for uid in self._waiting):
            self._lacking_since = None
            return self._deadline - now
        if self._lacking_since is None:
            self._lacking_since = now
        return min(self._deadline, self._lacking_since + _POOL_SECONDS) - now

    def timed_out(self) -> ClaimError:
        """Return the error of those that have waited too long."""
        # One that has been told why says more than the others.
        last = max(
            (self._now[uid] for uid in self._waiting), key=lambda claim: claims.condition(claim)
        )
        return claims.timed_out(last, self._seconds)

    def learn(self, kind: str, claim: Object) -> str:
        """Take note of an event and return its version.

        Raises:
            ClaimError: The claim will get no sandbox.
            ConnectionLost: The watch has come to an end, mostly as its version is too old.
        """
        if kind == "ERROR":
            raise ConnectionLost(str(claim.get("message")))
        metadata = claim["metadata"]
        uid = metadata.get("uid")
        if uid in self._waiting and kind != "BOOKMARK":
            if kind == "DELETED":
                raise _deleted(claim)
            self._now[uid] = claim
            if self._on_change is not None:
                self._on_change(claim)
            if claims.is_bound(claim):
                self._waiting.discard(uid)
        return str(metadata["resourceVersion"])

    def replace(self, found: list[Object]) -> None:
        """Take note of all claims that there are."""
        there = {claim["metadata"]["uid"] for claim in found}
        for uid in self._waiting - there:
            raise _deleted(self._now[uid])
        for claim in found:
            self.learn("MODIFIED", claim)


def _deleted(claim: Object) -> ClaimError:
    name = claim["metadata"]["name"]
    return ClaimError(f"claim {name!r} was deleted before it had a sandbox", "", name)


async def _wait_observed(api: Api, namespace: str, claim: Object) -> Object:
    """Wait until the operator has taken note of a change, but not for an operator that is away."""
    metadata = claim["metadata"]
    deadline = api.io.monotonic() + _GRACE_SECONDS

    def observed() -> bool:
        seen = (claim.get("status") or {}).get("observedGeneration") or 0
        return claims.is_bound(claim) and int(seen) >= metadata["generation"]

    if observed():
        return claim
    request = requests.watch_claims(
        namespace,
        metadata["resourceVersion"],
        name=metadata["name"],
        seconds=math.ceil(_GRACE_SECONDS),
    )
    watch = await api.watch(request)
    try:
        while not observed():
            event = await watch.next_event(max(0.0, deadline - api.io.monotonic()))
            if event is None or event[0] not in ("ADDED", "MODIFIED"):
                break
            claim = event[1]
    finally:
        watch.close()
    if not observed():
        raise SandboxPoolError(
            f"claim {metadata['name']!r} is changed, but the operator has not taken note of it for"
            f" {_GRACE_SECONDS:g} s: see that it runs",
            Reason.CACHE_STALE,
        )
    return claim


async def abandon(api: Api, claim: Object) -> None:
    """Release a claim while an error is on its way, which says more than one of tidying up."""
    # The claim expires anyway.
    with contextlib.suppress(SandboxPoolError):
        await release(api, claim)
