"""What is decided for a BatchSandbox, from the objects alone."""

import json
from dataclasses import replace
from typing import Any, TypeVar

import msgspec
import pytest

from sandboxpool.api.opensandbox import LABEL_OPENSANDBOX, OptIn
from sandboxpool.api.v1alpha1 import SandboxClaim
from sandboxpool.opensandbox import decide, names
from sandboxpool.opensandbox.decide import View, next_step
from sandboxpool.opensandbox.kinds import BatchSandbox, SandboxPool
from sandboxpool.opensandbox.outlook import (
    DEFECT_SECONDS,
    DEFECTS,
    NOT_READY_SECONDS,
    READY_SECONDS,
    outlook_of,
)

NOW = 1_800_000_000.0
PAST, FUTURE = "2027-01-15T07:59:59.433726+00:00", "2027-01-15T08:00:01.5+00:00"
T = TypeVar("T")
SANDBOX_UID = "uid-of-sandbox"
ENTRYPOINT = ["/bin/sh", "-c", "exec /opt/opensandbox/bootstrap.sh tail -f /dev/null"]


def read(type_: type[T], body: dict[str, Any]) -> T:
    return msgspec.json.decode(json.dumps(body).encode(), type=type_)


def pool(mode: str = "Executor", **ready: str) -> SandboxPool:
    condition = {"type": "Ready", "status": "True", "reason": "SandboxWarm", "message": "", **ready}
    return read(
        SandboxPool,
        {
            "metadata": {
                "name": "gvisor",
                "namespace": "n",
                "uid": "uid-of-pool",
                "resourceVersion": "1",
                "labels": {LABEL_OPENSANDBOX: mode},
            },
            "status": {"conditions": [condition]},
        },
    )


def task(*env: str, command: list[str] = ENTRYPOINT) -> dict[str, Any]:
    listed = [{"name": name, "value": "x"} for name in ("OPENSANDBOX_ID", *env)]
    return {"spec": {"process": {"command": command, "env": listed}}}


def sandbox(
    *, metadata: dict[str, Any] | None = None, status: dict[str, Any] | None = None, **spec: Any
) -> BatchSandbox:
    about = {"name": "s", "namespace": "n", "uid": SANDBOX_UID, "resourceVersion": "7"}
    given = {"replicas": 1, "poolRef": "gvisor", "taskTemplate": task(), **spec}
    return read(
        BatchSandbox,
        {"metadata": about | (metadata or {}), "spec": given, "status": status or {}},
    )


def claim(phase: str, owner: str = SANDBOX_UID, name: str = "s", **status: Any) -> SandboxClaim:
    reference = {"apiVersion": names.API_VERSION, "kind": "BatchSandbox", "name": name}
    return read(
        SandboxClaim,
        {
            "metadata": {
                "name": "s",
                "namespace": "n",
                "uid": "uid-of-claim",
                "resourceVersion": "3",
                "ownerReferences": [reference | {"uid": owner, "controller": True}],
            },
            "spec": {"poolName": "gvisor"},
            "status": {"phase": phase, "podUID": "p", **status},
        },
    )


def refused(reason: str, message: str = "because") -> list[dict[str, str]]:
    return [
        {
            "type": "Bound",
            "status": "False",
            "reason": reason,
            "message": message,
            "lastTransitionTime": "2027-01-15T07:00:00Z",
        }
    ]


def view(given: BatchSandbox, of: SandboxPool | None, has: SandboxClaim | None = None) -> View:
    return View(
        sandbox=given,
        pool=of,
        mirrored=of is not None,
        claim=has,
        claim_requested=False,
        outlook=outlook_of("gvisor", of),
        waiting_since=0.0,
        clock=60.0,
        now=NOW,
        exclusive=False,
    )


PUBLISHED = {"phase": "Succeed"}
FAILED = {"phase": "Failed"}


def test_a_request_for_an_open_pool_gets_a_claim_that_says_what_runs_there() -> None:
    assert next_step(view(sandbox(), pool())) == decide.CreateClaim(OptIn.EXECUTOR)
    assert next_step(view(sandbox(), pool("Prestarted"))) == decide.CreateClaim(OptIn.PRESTARTED)


@pytest.mark.parametrize("label", ["", "executor", "Off"])
def test_a_pool_without_a_valid_label_is_not_open(label: str) -> None:
    assert next_step(view(sandbox(), pool(label))) == decide.Nothing()


def test_a_pool_whose_name_is_taken_is_not_open() -> None:
    assert next_step(replace(view(sandbox(), pool()), mirrored=False)) == decide.Nothing()


def test_a_request_with_a_template_is_of_another_controller() -> None:
    assert next_step(view(sandbox(template={"spec": {}}), pool())) == decide.Nothing()


@pytest.mark.parametrize(
    "given", [sandbox(poolRef="other"), sandbox(poolRef="", template={"spec": {}})]
)
def test_an_exclusive_bridge_answers_what_nothing_else_would(given: BatchSandbox) -> None:
    seen = replace(view(given, None), exclusive=True)
    step = next_step(replace(seen, clock=0.2))
    assert isinstance(step, decide.Nothing)
    assert step.seconds == pytest.approx(0.5)
    step = next_step(seen)
    assert isinstance(step, decide.Fail)
    assert step.reason == "PoolRefRequired"
    assert LABEL_OPENSANDBOX in step.message


def test_a_claim_that_is_not_seen_yet_is_not_created_twice() -> None:
    waiting = replace(view(sandbox(), pool()), claim_requested=True, clock=1.0)
    assert next_step(waiting) == decide.Nothing(READY_SECONDS - 1.0)


def test_a_bound_claim_is_served_once() -> None:
    bound = claim("Bound")
    assert next_step(view(sandbox(), pool(), bound)) == decide.Serve(bound)
    assert next_step(view(sandbox(status=PUBLISHED), pool(), bound)) == decide.Nothing()


def test_a_sandbox_stays_when_its_pool_is_closed_or_gone() -> None:
    for closed in (None, pool("")):
        served = view(sandbox(status=PUBLISHED), closed, claim("Bound"))
        assert next_step(replace(served, mirrored=False)) == decide.Nothing()


# --- Waiting and failing -------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["Filling", "ClampedByMaxSandboxes", "QuotaExceeded", "Paused"])
def test_a_lack_of_capacity_is_reported_after_the_grace(reason: str) -> None:
    waiting = view(sandbox(), pool(status="False", reason=reason, message="m"), claim("Pending"))
    left = next_step(replace(waiting, clock=0.5))
    assert left == decide.Nothing(NOT_READY_SECONDS - 0.5)
    step = next_step(waiting)
    assert isinstance(step, decide.Await)
    assert step.reason == reason
    assert step.message.endswith(f"{reason}: m")


def test_a_timer_that_ends_a_rounding_early_is_not_set_again() -> None:
    # Else the bridge spins until the clock goes on.
    waiting = view(sandbox(), pool(), claim("Pending"))
    early = next_step(replace(waiting, clock=READY_SECONDS - 1e-9))
    assert isinstance(early, decide.Await)


@pytest.mark.parametrize("reason", sorted(DEFECTS))
def test_a_defect_of_the_pool_fails_the_request_with_its_cause(reason: str) -> None:
    of = pool(status="False", reason=reason, message="do this")
    failing = view(sandbox(), of, claim("Pending"))
    early = next_step(replace(failing, clock=0.0))
    assert early == decide.Nothing(DEFECT_SECONDS)
    step = next_step(replace(failing, clock=DEFECT_SECONDS))
    assert step == decide.Fail(reason, f"SandboxPool 'gvisor' cannot serve: {reason}: do this")


def test_an_unknown_state_is_no_defect() -> None:
    of = pool(status="Unknown", reason="RuntimeClassNotFound")
    assert isinstance(next_step(view(sandbox(), of, claim("Pending"))), decide.Await)


def test_a_pool_with_warm_sandboxes_is_not_said_to_lack_them_before_it_had_its_time() -> None:
    waiting = view(sandbox(), pool(), claim("Pending"))
    assert READY_SECONDS > NOT_READY_SECONDS
    early = next_step(replace(waiting, clock=NOT_READY_SECONDS))
    assert early == decide.Nothing(READY_SECONDS - NOT_READY_SECONDS)
    assert isinstance(next_step(replace(waiting, clock=READY_SECONDS)), decide.Await)


def test_a_request_fails_when_its_pool_is_deleted_before_it_is_served() -> None:
    step = next_step(view(sandbox(), None, claim("Pending")))
    assert isinstance(step, decide.Fail)
    assert step.reason == "PoolNotFound"


def test_the_cause_of_a_failed_claim_is_passed_on() -> None:
    ended = claim("Failed", conditions=refused("RuntimeClassMismatch", "the pool has gvisor"))
    step = next_step(view(sandbox(), pool(), ended))
    assert step == decide.Fail("RuntimeClassMismatch", "the pool has gvisor")


def test_a_failed_request_gives_its_claim_back() -> None:
    for phase in ("Pending", "Bound"):
        kept = claim(phase)
        assert next_step(view(sandbox(status=FAILED), pool(), kept)) == decide.Release(kept)
    for phase in ("Failed", "Lost", "Expired"):
        assert next_step(view(sandbox(status=FAILED), pool(), claim(phase))) == decide.Nothing()
    assert next_step(view(sandbox(status=FAILED), pool())) == decide.Nothing()


def test_a_claim_of_somebody_else_is_left_alone() -> None:
    foreign = claim("Bound", owner="another", name="another")
    step = next_step(view(sandbox(), pool(), foreign))
    assert isinstance(step, decide.Fail)
    assert step.reason == "NameTaken"


def test_a_claim_of_a_former_request_of_this_name_is_waited_out() -> None:
    step = next_step(view(sandbox(), pool(), claim("Bound", owner="former")))
    assert step == decide.Nothing(decide.FORMER_CLAIM_SECONDS)


@pytest.mark.parametrize("replicas", [0, 2, None])
def test_other_numbers_than_one_are_not_supported(replicas: int | None) -> None:
    step = next_step(view(sandbox(replicas=replicas), pool()))
    assert isinstance(step, decide.Fail)
    assert step.reason == "ReplicasNotSupported"


# --- Tasks of pools that are started before ------------------------------------------------------


def test_a_prestarted_pool_takes_the_default_request_and_one_without_a_task() -> None:
    for given in (sandbox(), sandbox(taskTemplate=None), sandbox(taskTemplate=task("EXECD_INIT"))):
        assert isinstance(next_step(view(given, pool("Prestarted"))), decide.CreateClaim)


@pytest.mark.parametrize(
    ("given", "named"),
    [(task("TOKEN", "A"), "A, TOKEN"), (task(command=["/bin/sh", "-c", "serve"]), "an entrypoint")],
)
def test_a_prestarted_pool_refuses_what_it_would_drop(given: dict[str, Any], named: str) -> None:
    step = next_step(view(sandbox(taskTemplate=given), pool("Prestarted")))
    assert isinstance(step, decide.Fail)
    assert step.reason == "TaskNotSupported"
    assert named in step.message
    assert isinstance(next_step(view(sandbox(taskTemplate=given), pool())), decide.CreateClaim)


def test_a_malformed_task_is_refused() -> None:
    given = {"spec": {"process": {"command": "not a list"}}}
    step = next_step(view(sandbox(taskTemplate=given), pool()))
    assert isinstance(step, decide.Fail)
    assert step.reason == "TaskNotSupported"


# --- The end -------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [{}, PUBLISHED, FAILED])
def test_an_expired_sandbox_is_deleted(status: dict[str, Any]) -> None:
    given = sandbox(expireTime=PAST, status=status)
    assert isinstance(next_step(view(given, pool(), claim("Bound"))), decide.Delete)


def test_a_sandbox_expires_also_when_its_pool_and_claim_are_gone() -> None:
    marked = {"annotations": {names.ANNOTATION_SERVED: "served"}}
    given = sandbox(expireTime=PAST, status=FAILED, metadata=marked)
    assert isinstance(next_step(view(given, None)), decide.Delete)


def test_what_others_serve_is_never_deleted() -> None:
    assert next_step(view(sandbox(expireTime=PAST, template={"spec": {}}), pool())) == (
        decide.Nothing()
    )


@pytest.mark.parametrize(
    "text", [None, "", "soon", "2026-11-25T17:41:41", "99999999-01-01T00:00:00Z", FUTURE]
)
def test_only_a_readable_time_in_the_past_deletes(text: str | None) -> None:
    step = next_step(view(sandbox(expireTime=text, status=PUBLISHED), pool(), claim("Bound")))
    assert step == decide.Nothing()


def test_the_claims_own_end_deletes_the_sandbox() -> None:
    step = next_step(view(sandbox(status=PUBLISHED), pool(), claim("Expired")))
    assert isinstance(step, decide.Delete)


def test_a_lost_sandbox_is_reported_with_its_cause() -> None:
    lost = claim("Lost", conditions=refused("Evicted", "the node was out of memory"))
    step = next_step(view(sandbox(status=PUBLISHED), pool(), lost))
    assert step == decide.Lose("Evicted", "the node was out of memory", verify=False)


def test_a_claim_that_is_not_in_the_cache_is_verified_before_the_sandbox_is_lost() -> None:
    step = next_step(view(sandbox(status=PUBLISHED), pool()))
    assert isinstance(step, decide.Lose)
    assert step.verify


def test_a_deleted_request_is_left_to_the_garbage_collector() -> None:
    gone = {"deletionTimestamp": "2027-01-15T07:00:00Z"}
    given = sandbox(metadata=gone, expireTime=PAST)
    assert next_step(view(given, pool(), claim("Bound"))) == decide.Nothing()


def test_a_pause_is_answered_once_and_the_answer_withdrawn() -> None:
    condition = {"type": "PauseFailed", "status": "True"}
    answered = PUBLISHED | {"conditions": [condition]}
    cases = [
        (sandbox(pause=True, status=PUBLISHED), decide.AnswerPause()),
        (sandbox(pause=True, status=answered), decide.Nothing()),
        (sandbox(pause=False, status=answered), decide.AnswerPause()),
        (sandbox(pause=False, status=PUBLISHED), decide.Nothing()),
    ]
    for given, wanted in cases:
        assert next_step(view(given, pool(), claim("Bound"))) == wanted
