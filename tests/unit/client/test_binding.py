"""From a claim to a sandbox and back, in virtual time."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from sandboxpool.client import binding, claims
from sandboxpool.client.blocking import run
from sandboxpool.client.errors import (
    ApiError,
    BindTimeout,
    ClaimConflict,
    ClaimError,
    ClaimRefused,
    ConnectionLost,
    NotInstalled,
    NoWarmSandbox,
    PoolNotFound,
    RuntimeMismatch,
    SandboxExpired,
    SandboxLost,
)
from support.scriptedcluster import CLAIMS, DELETED, Object, api_of, claim, script
from support.scriptedio import Asked, Step, answer, event, failure, stream

MANIFEST = claims.manifest("p", ttl=60)
NAMED = claims.manifest("p", name="c", ttl=60)
RESET = ConnectionResetError("reset")


def test_a_claim_takes_one_post_and_one_watch_from_there() -> None:
    api, io = api_of(
        script(
            answer(claim(version=7), 201),
            stream(event("MODIFIED", claim(version=8)), event("MODIFIED", claim("Bound", 9))),
        )
    )
    bound = run(binding.bind(api, "ns", MANIFEST))
    assert claims.info(bound).pod == "pod"
    post, watch = io.asked
    assert (post.method, post.path) == ("POST", CLAIMS)
    assert post.body["metadata"]["generateName"] == "p-"
    assert watch.parameters["resourceVersion"] == "7"
    assert watch.parameters["watch"] == "true"
    assert io.channels[1].closed


def test_a_watch_that_ends_goes_on_where_it_was() -> None:
    api, io = api_of(
        script(
            answer(claim(version=7)),
            stream(event("MODIFIED", claim(version=8))),
            stream(event("BOOKMARK", {"metadata": {"resourceVersion": "20"}})),
            stream(event("MODIFIED", claim("Bound", 21))),
        )
    )
    run(binding.bind(api, "ns", MANIFEST))
    assert [asked.parameters.get("resourceVersion") for asked in io.asked[1:]] == ["7", "8", "20"]


@pytest.mark.parametrize(
    "broken",
    [
        stream(RESET),
        stream(event("ERROR", {"code": 410, "message": "too old"})),
        failure(410, "too old", "Expired"),
        failure(503, "restarting"),
    ],
)
def test_a_watch_that_breaks_begins_with_another_look(broken: list[Step]) -> None:
    api, io = api_of(
        script(
            answer(claim(version=7)),
            broken,
            answer(claim(version=30)),
            stream(event("MODIFIED", claim("Bound", 31))),
        )
    )
    run(binding.bind(api, "ns", MANIFEST))
    assert [asked.method for asked in io.asked] == ["POST", "GET", "GET", "GET"]
    assert io.asked[2].path == f"{CLAIMS}/c"
    assert io.asked[3].parameters["resourceVersion"] == "30"


def test_what_happened_while_nobody_watched_is_seen() -> None:
    api, _ = api_of(script(answer(claim()), stream(RESET), answer(claim("Bound", 9))))
    assert run(binding.bind(api, "ns", MANIFEST))["status"]["phase"] == "Bound"
    api, _io = api_of(script(answer(claim()), stream(RESET), failure(404, "", name="c"), DELETED))
    with pytest.raises(ClaimError, match="was deleted before"):
        run(binding.bind(api, "ns", MANIFEST))


def test_an_api_server_that_stays_away_is_not_waited_for_longer_than_for_a_sandbox() -> None:
    made = answer(claim(bindTimeoutSeconds=20), Connection="close")
    api, io = api_of(script(made, stream(RESET)))
    answers = io.server

    def away_from_the_watch_on(asked: Asked) -> Sequence[Step]:
        io.refusing = 10_000 if asked.method == "GET" else 0
        return answers(asked)

    io.server = away_from_the_watch_on
    with pytest.raises(ConnectionLost):
        run(binding.bind(api, "ns", MANIFEST, keep=True))
    assert 1030 < io.now <= 1035


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        ("PoolNotFound", PoolNotFound),
        ("NoWarmSandbox", NoWarmSandbox),
        ("MaxSandboxesReached", NoWarmSandbox),
        ("BindTimeout", BindTimeout),
        ("RuntimeClassMismatch", RuntimeMismatch),
        ("IsolationProofMismatch", RuntimeMismatch),
        ("MetadataNotAllowed", ClaimRefused),
        ("ConfigNotMounted", ClaimRefused),
        ("InvalidObject", ClaimError),
    ],
)
def test_a_claim_that_fails_is_an_error_of_its_class_and_is_deleted(
    reason: str, error: type[ClaimError]
) -> None:
    failed = claim("Failed", 8, reason=reason, message="what the pool says")
    api, io = api_of(script(answer(claim()), stream(event("MODIFIED", failed)), DELETED))
    with pytest.raises(error, match="what the pool says") as raised:
        run(binding.bind(api, "ns", MANIFEST))
    assert type(raised.value) is error
    assert (raised.value.reason, raised.value.claim) == (reason, "c")
    assert io.asked[-1].method == "DELETE"
    assert io.asked[-1].body == {"preconditions": {"uid": "c-uid"}}


def test_ctrl_c_deletes_the_claim() -> None:
    api, io = api_of(script(answer(claim()), stream(KeyboardInterrupt()), DELETED))
    with pytest.raises(KeyboardInterrupt):
        run(binding.bind(api, "ns", MANIFEST))
    assert io.asked[-1].method == "DELETE"


@pytest.mark.parametrize("broken", [KeyboardInterrupt(), RESET])
def test_a_claim_whose_name_nobody_has_heard_is_deleted_too(broken: BaseException) -> None:
    listed = {"items": [claim()], "metadata": {"resourceVersion": "9"}}
    api, io = api_of(script([broken], answer(listed), DELETED))
    with pytest.raises((KeyboardInterrupt, ConnectionLost)):
        run(binding.bind(api, "ns", MANIFEST))
    post, lists, deletes = io.asked
    label = post.body["metadata"]["labels"]["client.sandboxpool.io/request"]
    assert lists.parameters == {"labelSelector": f"client.sandboxpool.io/request={label}"}
    assert (deletes.method, deletes.path) == ("DELETE", f"{CLAIMS}/c")


def test_a_claim_that_is_refused_leaves_nothing_to_look_for() -> None:
    api, io = api_of(script(failure(422, "spec.ttlSeconds is too small", "Invalid", name="x")))
    with pytest.raises(ApiError, match="ttlSeconds"):
        run(binding.bind(api, "ns", MANIFEST))
    assert len(io.asked) == 1


def test_what_is_to_be_kept_is_left_to_another_try() -> None:
    api, io = api_of(script(answer(claim()), stream(KeyboardInterrupt())))
    with pytest.raises(KeyboardInterrupt):
        run(binding.bind(api, "ns", NAMED, keep=True))
    assert len(io.asked) == 2


def test_an_operator_that_reports_nothing_is_given_time() -> None:
    pending: list[Step] = stream()[:-1]
    api, io = api_of(script(answer(claim(bindTimeoutSeconds=20)), pending, DELETED))
    with pytest.raises(BindTimeout, match="operator has said nothing"):
        run(binding.bind(api, "ns", MANIFEST))
    assert io.now == 1035


def test_a_pool_that_is_not_there_is_waited_for_but_not_long() -> None:
    lacking = claim(version=8, reason="PoolNotFound", message="SandboxPool 'p' does not exist")
    api, io = api_of(script(answer(claim()), stream(event("MODIFIED", lacking))[:-1], DELETED))
    with pytest.raises(PoolNotFound, match="does not exist"):
        run(binding.bind(api, "ns", MANIFEST))
    assert io.now == 1003
    steps = stream(event("MODIFIED", lacking), 2.0, event("MODIFIED", claim(version=9)), 9.0)
    bound = stream(event("MODIFIED", claim("Bound", 10)))
    api, io = api_of(script(answer(claim()), [*steps[:-1], *bound[1:]]))
    run(binding.bind(api, "ns", MANIFEST))
    assert io.now == 1011


def test_a_name_that_is_taken_is_the_same_claim_or_a_conflict() -> None:
    taken = failure(409, "exists", "AlreadyExists")
    there = claim("Bound", 5, ttlSeconds=99)
    api, io = api_of(script(taken, answer(there)))
    assert run(binding.bind(api, "ns", NAMED)) == there
    other = claims.manifest("other", name="c")
    api, io = api_of(script(taken, answer(there)))
    with pytest.raises(ClaimConflict, match=r"spec\.poolName 'p' instead of 'other'"):
        run(binding.bind(api, "ns", other))
    assert [asked.method for asked in io.asked] == ["POST", "GET"]


def test_crds_that_are_too_old_for_a_configuration_are_told_of() -> None:
    manifest = claims.manifest("p", config={"task.json": "{}"})
    api, io = api_of(script(answer(claim()), DELETED))
    with pytest.raises(NotInstalled, match=r"spec\.config"):
        run(binding.bind(api, "ns", manifest))
    assert io.asked[-1].method == "DELETE"


@pytest.mark.parametrize("status", [404, 409])
def test_releasing_what_is_gone_is_fine(status: int) -> None:
    api, _ = api_of(script(failure(status, "gone", name="c")))
    run(binding.release(api, claim()))


def test_a_release_outlasts_a_short_absence_of_the_api_server() -> None:
    api, io = api_of(script(DELETED))
    io.refusing = 5
    run(binding.release(api, claim()))
    assert len(io.asked) == 1
    io.refusing = 1000
    began = io.now
    api.close()
    with pytest.raises(ConnectionLost):
        run(binding.release(api, claim()))
    assert 10 < io.now - began <= 15


class Batch:
    """A server that makes the claims c0, c1, ... and shows them to one watch."""

    def __init__(self, phases: list[str], refused: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        self.made: list[Object] = []
        self.deleted: list[str] = []
        self._phases = phases
        self._refused = refused
        self._posts = 0

    def __call__(self, asked: Asked) -> list[Step]:
        if asked.method == "POST":
            self._posts += 1
            if self._posts - 1 in self._refused:
                return failure(403, "exceeded quota", "Forbidden")
            made = claim(name=f"c{len(self.made)}", version=len(self.made) + 1)
            self.made.append(made)
            return answer(made)
        if asked.method == "DELETE":
            self.deleted.append(asked.path.rpartition("/")[2])
            return DELETED
        if "watch" in asked.parameters:
            assert asked.parameters["resourceVersion"] == "1"
            assert asked.parameters["labelSelector"].startswith("client.sandboxpool.io/request=")
            events = [
                event("MODIFIED", claim(phase, 50 + at, name=f"c{at}", reason="NoWarmSandbox"))
                for at, phase in enumerate(self._phases)
            ]
            return stream(*events)[:-1]
        return answer({"items": self.made, "metadata": {"resourceVersion": "60"}})


def test_many_claims_share_one_watch() -> None:
    server = Batch(["Bound"] * 20)
    api, io = api_of(server)
    bound = run(binding.bind_many(api, "ns", 20, MANIFEST, within=60.5))
    assert [one["metadata"]["name"] for one in bound] == [f"c{at}" for at in range(20)]
    assert [asked.method for asked in io.asked] == ["POST"] * 20 + ["GET"]
    assert io.asked[0].body["spec"]["bindTimeoutSeconds"] == 61
    assert not server.deleted


@pytest.mark.parametrize(
    ("server", "error", "left"),
    [
        (Batch(["Bound", "Failed", "Bound"]), NoWarmSandbox, 3),
        (Batch(["Bound", "Bound"]), BindTimeout, 3),
        (Batch(["Bound"] * 3, refused={2}), ApiError, 2),
    ],
)
def test_of_many_claims_all_are_bound_or_none_is_left(
    server: Batch, error: type[Exception], left: int
) -> None:
    api, io = api_of(server)
    with pytest.raises(error):
        run(binding.bind_many(api, "ns", 3, MANIFEST, within=60))
    assert len(server.made) == left
    assert sorted(server.deleted) == sorted(made["metadata"]["name"] for made in server.made)
    assert io.now <= 1060


def test_the_first_of_many_that_is_refused_is_the_last() -> None:
    server = Batch([], refused={0})
    api, io = api_of(server)
    with pytest.raises(ApiError, match="exceeded quota"):
        run(binding.bind_many(api, "ns", 3, MANIFEST, within=60))
    assert [asked.method for asked in io.asked] == ["POST", "GET"]


def test_an_extension_is_based_on_what_was_read_and_waits_for_the_operator() -> None:
    api, io = api_of(
        script(
            answer(claim("Bound", 5)),
            failure(409, "conflict", "Conflict"),
            answer(claim("Bound", 6)),
            answer(claim("Bound", 7, generation=2)),
            stream(event("MODIFIED", claim("Bound", 8, generation=2, observed=2))),
        )
    )
    extended = run(binding.extend(api, "ns", "c", "c-uid", 600))
    assert extended["metadata"]["resourceVersion"] == "8"
    patches = [asked for asked in io.asked if asked.method == "PATCH"]
    assert [patch.body["metadata"]["resourceVersion"] for patch in patches] == ["5", "6"]
    assert patches[0].body["spec"] == {"ttlSeconds": 4200}


@pytest.mark.parametrize(("phase", "error"), [("Expired", SandboxExpired), ("Lost", SandboxLost)])
def test_what_is_over_cannot_be_extended(phase: str, error: type[SandboxLost]) -> None:
    over = claim(phase, 5, reason="OOMKilled", message="memory")
    api, io = api_of(script(answer(over)))
    with pytest.raises(error, match="memory") as raised:
        run(binding.extend(api, "ns", "c", "c-uid", 600))
    assert raised.value.reason == "OOMKilled"
    assert len(io.asked) == 1
