"""What becomes of claims while others edit, refuse, delete and set clocks: the whole operator."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from sandboxpool.api import names
from sandboxpool.api.times import timestamp
from sandboxpool.kube.errors import ApiError
from support.simulation.apiserver import ApiServer, Object, Request, labels
from support.simulation.controllers import Start
from support.simulation.network import Fate
from support.simulation.process import Process
from support.simulation.world import World

DAY = 86400.0


def phase(world: World, claim: str) -> str:
    found = world.claim(claim)
    return "gone" if found is None else (found.get("status") or {}).get("phase", "Pending")


def status(world: World, claim: str) -> Object:
    found = world.claim(claim)
    assert found is not None
    told: Object = found["status"]
    return told


def reason(world: World, claim: str) -> str:
    return str(status(world, claim)["conditions"][0]["reason"])


def pool_status(world: World) -> Object:
    pool = world.pool()
    assert pool is not None
    told: Object = pool["status"]
    return told


def pods_of(world: World, claim: str) -> list[Object]:
    found = world.claim(claim)
    assert found is not None
    return [p for p in world.pods() if labels(p).get(names.LABEL_CLAIM_UID) == uid_of(found)]


def uid_of(obj: Object) -> str:
    return str(obj["metadata"]["uid"])


def change_claim(world: World, name: str, **parts: Object) -> None:
    """Somebody changes a claim: fields are added to its metadata and spec, its status replaced."""
    claim = world.claim(name)
    assert claim is not None
    new = {k: v if k == "status" else {**claim[k], **v} for k, v in parts.items()}
    world.watchdog.cause()
    world.watchdog.spoil(claim)
    world._do(lambda: world.server.update("sandboxclaims", claim, "user", **new))


class Policy:
    """An admission policy in the cluster, which refuses what a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refuses: str | None = None
        self.words: Iterator[str] = itertools.repeat("denied by policy")
        self.asked = 0
        handle = ApiServer.handle

        def judged(server: ApiServer, request: Request, **how: Any) -> Any:
            binding = request.method == "PATCH" and "/pods/" in request.path
            if self.refuses and binding and self.refuses in str(request.body):
                self.asked += 1
                raise ApiError(403, "Forbidden", next(self.words))
            return handle(server, request, **how)

        monkeypatch.setattr(ApiServer, "handle", judged)


@pytest.fixture
def policy(monkeypatch: pytest.MonkeyPatch) -> Policy:
    return Policy(monkeypatch)


class Clock:
    """The wall clock of the operator's own machine; what it is off is added to the true time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.off = 0.0

        def start(world: World) -> None:
            wall = world.wall
            process = Process(world.network, lambda: wall() + self.off, world._end)
            world.processes.append(process)

        monkeypatch.setattr(World, "_start", start)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


# --- Others edit what is handed out --------------------------------------------------------------


@pytest.mark.parametrize("on_empty", ["Wait", "Fail", "Create"])
@pytest.mark.parametrize("seed", range(3))
def test_an_edit_of_the_only_warm_sandbox_while_it_is_bound_costs_one_more_try(
    seed: int, on_empty: str
) -> None:
    with World(seed=seed) as world:
        world.make_pool("pool", 1, maxSandboxes=1)
        world.run(30 + seed)
        world.weather.next["bind"] = [Fate.RIVAL]
        world.make_claim("task", onEmpty=on_empty)
        world.run(1)
        assert phase(world, "task") == "Bound"
        binds = [r for _, r in world.network.writes if r.method == "PATCH" and "/pods/" in r.path]
        assert len(binds) == 2


def test_where_somebody_edits_a_sandbox_before_each_write_it_is_bound_once_he_stops() -> None:
    with World(seed=1) as world:
        world.make_pool("pool", 1, maxSandboxes=1)
        world.run(30)
        world.weather.next["bind"] = [Fate.RIVAL] * 20
        world.make_claim("task")
        world.run(20)
        assert phase(world, "task") == "Bound"


# --- The deadline --------------------------------------------------------------------------------


def lost_cold_start(world: World, **claim: Any) -> None:
    """A claim's cold sandbox hangs on a node that is lost, and cannot go away."""
    world.make_pool("pool", 0, startup={"timeoutSeconds": 60})
    world.run(20)
    for node in world.controllers.nodes.values():
        node.starts = Start.HANGS
    world.make_claim("task", onEmpty="Create", **claim)
    world.run(20)
    world.nature("lose_node", world.pods()[0]["spec"]["nodeName"])
    world.run(70)
    assert any("deletionTimestamp" in pod["metadata"] for pod in pods_of(world, "task"))


def test_a_claim_whose_cold_sandbox_cannot_go_away_is_given_another() -> None:
    with World(seed=1) as world:
        lost_cold_start(world)
        for node in world.controllers.nodes.values():
            node.starts = Start.FINE
        world.run(80)
        assert phase(world, "task") == "Bound"


def test_a_claim_whose_cold_sandbox_cannot_go_away_fails_in_time() -> None:
    with World(seed=1) as world:
        lost_cold_start(world, bindTimeoutSeconds=120)
        world.run(40)
        assert (phase(world, "task"), reason(world, "task")) == ("Failed", "BindTimeout")


@pytest.mark.parametrize("seed", range(3))
def test_with_sandboxes_warm_the_shortest_patience_is_enough(seed: int) -> None:
    """Creation times are cut to whole seconds."""
    with World(seed=seed) as world:
        world.make_pool("pool", 10)
        world.run(60)
        for i in range(10):
            world.run(1.37)
            world.make_claim(f"task-{i}", bindTimeoutSeconds=1)
        world.run(5)
        assert {phase(world, f"task-{i}") for i in range(10)} == {"Bound"}


def test_what_is_warm_is_handed_out_though_the_hand_over_took_longer_than_the_claim_waits() -> None:
    with World(seed=1) as world:
        world.make_pool("pool", 1, maxSandboxes=1)
        world.run(30)
        world.restart_seconds = 30
        world.crash()
        for name in ("first", "second"):
            world.make_claim(name, bindTimeoutSeconds=5)
            world.run(2)
        world.run(60)
        assert phase(world, "first") == "Bound"
        assert (phase(world, "second"), reason(world, "second")) == ("Failed", "BindTimeout")


# --- A policy refuses what a claim puts on its sandbox -------------------------------------------


def test_claims_that_a_policy_refuses_keep_no_sandbox_from_others(policy: Policy) -> None:
    policy.refuses = "bad-"
    with World(seed=1) as world:
        world.make_pool("pool", 5, maxSandboxes=5)
        world.run(60)
        for i in range(5):
            world.make_claim(f"bad-{i}", bindTimeoutSeconds=86400)
        world.run(10)
        world.make_claim("good", bindTimeoutSeconds=86400)
        world.run(2)
        assert phase(world, "good") == "Bound"
        assert reason(world, "bad-0") == "BindingRefused"
        world.run(120)
        assert len(world.pods()) == 5, "they cost no sandboxes"
        told = pool_status(world)
        assert (told["warm"], told["claimed"]) == (4, 1)


def test_a_refused_claim_is_served_soon_after_the_policy_has_changed(policy: Policy) -> None:
    policy.refuses = "bad-"
    with World(seed=1) as world:
        world.make_pool("pool", 1)
        world.run(30)
        world.make_claim("bad-0", bindTimeoutSeconds=3600)
        world.run(600)
        policy.refuses = None
        world.run(60)
        assert phase(world, "bad-0") == "Bound"


def test_words_that_differ_each_time_make_no_loop(policy: Policy) -> None:
    policy.refuses = "bad-"
    policy.words = (f"denied by policy (decision {i:08x})" for i in itertools.count())
    with World(seed=1) as world:
        world.make_pool("pool", 2)
        world.run(20)
        world.make_claim("bad-0", bindTimeoutSeconds=3600)
        world.run(600)
        told = [r for _, r in world.network.writes if "/sandboxclaims/" in r.path]
        assert policy.asked <= 16
        assert len(told) <= 11, "once a minute is enough for new words"


def test_a_sandbox_that_is_held_for_a_claim_for_long_is_replaced_and_shown_as_claimed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A webhook never answers for what one claim puts on it: nobody knows whether it arrived."""
    handle = ApiServer.handle

    def hang(server: ApiServer, request: Request, **how: Any) -> Any:
        if request.method == "PATCH" and "/pods/" in request.path and "hung" in str(request.body):
            raise ApiError(504, "Timeout", "a webhook does not answer")
        return handle(server, request, **how)

    monkeypatch.setattr(ApiServer, "handle", hang)
    with World(seed=1) as world:
        world.make_pool("pool", 2)
        world.run(60)
        world.make_claim("hung", bindTimeoutSeconds=120)
        world.watchdog.spoil(world.claim("hung") or {})
        world.run(10)
        told = pool_status(world)
        assert (told["warm"], told["claimed"]) == (2, 1)
        world.run(120)
        assert phase(world, "hung") == "Failed"
        told = pool_status(world)
        assert (told["warm"], told["claimed"]) == (2, 0)


# --- What was promised ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"defaultTTLSeconds": 300}),
        ({"maxTTLSeconds": 7000}, {"maxTTLSeconds": 300}),
    ],
)
def test_a_ttl_that_a_pool_is_given_applies_to_later_claims_only(
    before: dict[str, int], after: dict[str, int]
) -> None:
    with World(seed=1) as world:
        world.make_pool("pool", 2, claims=before)
        world.run(30)
        world.make_claim("old")
        world.run(600)
        promised = status(world, "old").get("expiresAt")
        world.change_pool("pool", claims=after)
        world.run(5)
        assert phase(world, "old") == "Bound"
        world.make_claim("new")
        world.run(310)
        assert (phase(world, "old"), phase(world, "new")) == ("Bound", "Expired")
        assert status(world, "old").get("expiresAt") == promised


def test_its_owner_may_have_a_sandbox_end_sooner_or_later_within_the_pools_limit() -> None:
    with World(seed=1) as world:
        world.make_pool("pool", 2, claims={"maxTTLSeconds": 900})
        world.run(30)
        for name in ("sooner", "later"):
            world.make_claim(name, ttlSeconds=600)
        world.run(60)
        for name, seconds in (("sooner", 120), ("later", 86400)):
            change_claim(world, name, spec={"ttlSeconds": seconds})
        world.run(70)
        assert phase(world, "sooner") == "Expired"
        world.run(750)
        assert phase(world, "later") == "Bound"
        world.run(30)
        assert phase(world, "later") == "Expired"


# --- Clocks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [DAY, -DAY])
def test_a_jump_of_the_clock_ends_nothing_before_its_time(clock: Clock, jump: float) -> None:
    with World(seed=1) as world:
        world.make_pool("pool", 3, maxSandboxes=3, claims={"ttlSecondsAfterFinished": 1000})
        world.run(30)
        world.make_claim("short", ttlSeconds=60)
        world.make_claim("bound", ttlSeconds=900)
        world.make_claim("waiting", pool="later", bindTimeoutSeconds=600)
        world.run(70)
        assert phase(world, "short") == "Expired"
        clock.off = jump
        world.touch("pods", pods_of(world, "bound")[0])
        world.run(500)
        found = [phase(world, name) for name in ("bound", "short", "waiting")]
        assert found == ["Bound", "Expired", "Pending"]
        world.run(40)
        assert phase(world, "waiting") == "Failed"
        world.run(270)
        assert phase(world, "bound") == "Bound"
        world.run(30)
        assert (phase(world, "bound"), phase(world, "short")) == ("Expired", "Expired")
        world.run(160)
        assert phase(world, "short") == "gone"


def test_a_clock_that_is_ahead_fails_no_claim_beside_warm_sandboxes(clock: Clock) -> None:
    clock.off = 20.0
    with World(seed=1) as world:
        world.make_pool("pool", 4)
        world.run(60)
        for seconds in (5, 15, 19, 25):
            world.make_claim(f"task-{seconds}", bindTimeoutSeconds=seconds)
        world.run(5)
        assert {phase(world, f"task-{s}") for s in (5, 15, 19, 25)} == {"Bound"}


# --- Views that are behind -----------------------------------------------------------------------


def blind_to_pools(world: World) -> None:
    """What becomes of pools is seen by the list of each minute only."""
    world.break_watches("sandboxpools", "stall")


def test_a_claim_is_judged_by_the_pool_as_it_is_and_not_as_it_was() -> None:
    with World(seed=1) as world:
        other = {"metadata": {"name": "gvisor-2"}, "handler": "runsc"}
        world._do(lambda: world.server.create("runtimeclasses", other, by="user"))
        world.make_pool("pool", 1)
        world.run(75)
        blind_to_pools(world)
        world.change_pool("pool", runtimeClassName="gvisor-2")
        world.make_claim("task", runtimeClassName="gvisor-2")
        world.make_claim("mistaken", runtimeClassName="kata")
        world.run(10)
        assert phase(world, "task") == "Pending"
        assert reason(world, "mistaken") == "RuntimeClassMismatch"
        assert "'gvisor-2'" in status(world, "mistaken")["conditions"][0]["message"]
        world.run(100)
        assert phase(world, "task") == "Bound"


def test_a_claim_that_will_not_wait_is_not_failed_by_a_pool_that_is_gone() -> None:
    with World(seed=1) as world:
        world.make_pool("pool", 0)
        world.run(75)
        blind_to_pools(world)
        pool = world.pool()
        assert pool is not None
        world.delete("sandboxpools", pool)
        world.make_pool("pool", 1)
        world.make_claim("task", onEmpty="Fail")
        world.run(5)
        assert phase(world, "task") == "Pending"


def test_a_claim_that_times_out_is_not_told_that_its_pool_does_not_exist() -> None:
    with World(seed=1) as world:
        world.run(75)
        blind_to_pools(world)
        world.make_pool("pool", 0)
        world.make_claim("task", bindTimeoutSeconds=5)
        world.run(10)
        told = status(world, "task")["conditions"][0]
        assert told["reason"] == "BindTimeout"
        assert "does not exist" not in told["message"]


# --- Claims that were deleted, and stay ----------------------------------------------------------


def delete_but_keep(world: World, name: str) -> None:
    """Its owner deletes a claim, and somebody's finalizer keeps it."""
    change_claim(
        world,
        name,
        metadata={"deletionTimestamp": timestamp(world.wall()), "finalizers": ["example.com/a"]},
    )


@pytest.mark.parametrize(("ttl", "ends"), [(600, 600), (None, 900), (86400, 900)])
def test_a_deleted_claim_that_a_finalizer_keeps_does_not_keep_its_sandbox_for_ever(
    ttl: int | None, ends: int
) -> None:
    with World(seed=1) as world:
        world.make_pool("pool", 1, claims={"ttlSecondsAfterFinished": 900})
        world.run(30)
        spec: dict[str, Any] = {} if ttl is None else {"ttlSeconds": ttl}
        world.make_claim("task", **spec)
        world.run(1)
        delete_but_keep(world, "task")
        world.run(ends - 10)
        assert phase(world, "task") == "Bound"
        assert len(pods_of(world, "task")) == 1, "its finalizer may need it"
        world.run(60)
        assert phase(world, "task") == "Expired"
        assert not pods_of(world, "task")


def test_a_deleted_claim_that_was_never_bound_keeps_no_sandbox() -> None:
    with World(seed=1) as world:
        world.make_pool("pool", 0)
        world.run(20)
        for node in world.controllers.nodes.values():
            node.starts = Start.HANGS
        world.make_claim("task", onEmpty="Create")
        world.run(10)
        assert len(pods_of(world, "task")) == 1
        delete_but_keep(world, "task")
        world.run(60)
        assert not pods_of(world, "task")
        world.make_claim("waiting")
        world.run(1)
        delete_but_keep(world, "waiting")
        world.change_pool("pool", replicas=1)
        for node in world.controllers.nodes.values():
            node.starts = Start.FINE
        world.make_claim("next")
        world.run(60)
        assert phase(world, "next") == "Bound"


# --- What another process has told it ------------------------------------------------------------


@pytest.mark.parametrize("told", ["Failed", "Bound"])
def test_a_claim_that_another_has_settled_takes_no_sandbox_from_the_next(told: str) -> None:
    with World(seed=1) as world:
        world.make_pool("pool", 0, maxSandboxes=1)
        world.run(20)
        for name in ("settled", "next"):
            world.make_claim(name)
            world.run(1)
        pod = {"podName": "another", "podUID": "another"} if told == "Bound" else {}
        change_claim(
            world, "settled", status={"phase": told, "finishedAt": timestamp(world.wall()), **pod}
        )
        world.run(1)
        world.change_pool("pool", replicas=1)
        world.run(20)
        assert phase(world, "next") == "Bound"


def test_a_status_that_is_wiped_before_any_watch_has_shown_it_is_written_again() -> None:
    with World(seed=1) as world:
        world.make_pool("pool", 1)
        world.run(30)
        world.make_claim("task")
        while not any("/pods/" in r.path for _, r in world.network.writes if r.method == "PATCH"):
            world.run(0.001)
        world.break_watches("sandboxclaims", "stall")
        while phase(world, "task") != "Bound":
            world.run(0.01)
        world.run(0.2)
        change_claim(world, "task", status={})
        world.break_watches("sandboxclaims", "expire")
        world.run(60)
        assert phase(world, "task") == "Bound"
