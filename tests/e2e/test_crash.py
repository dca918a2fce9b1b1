"""The operator dies in the middle of its work."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sandboxpool.api import names
from support import Api, eventually, invariants, objects
from support.deployed import DeployedOperator
from support.history import PodHistory
from support.realnodes import RUNC, pool
from support.sandboxes import pool_status

Object = dict[str, Any]

CLAIMS = 30
# Killed when so many of them are there.
KILLED_AT = 10
SIGKILLED = 128 + 9


def bound(claims: list[Object]) -> list[Object]:
    return [claim for claim in claims if claim.get("status", {}).get("phase") == "Bound"]


def test_a_crash_in_a_burst_of_claims_gives_each_one_pod(
    api: Api, namespace: str, deployed: DeployedOperator, history: PodHistory
) -> None:
    api.create(pool(runtime_class=RUNC, replicas=8))
    pool_status(api, warm=8, timeout=90)
    victim = deployed.process()

    def burst() -> None:
        for number in range(CLAIMS):
            api.create(objects.claim(f"claim-{number}"))

    with ThreadPoolExecutor(max_workers=1) as workers:
        creating = workers.submit(burst)
        eventually(
            lambda: len(api.list("SandboxClaim")) >= KILLED_AT, message="the burst has begun"
        )
        victim.kill()
        creating.result(timeout=30)
    assert len(bound(api.list("SandboxClaim"))) < CLAIMS, "it was killed too late"
    eventually(
        lambda: deployed.restarts(victim) > victim.restarts,
        message="the kubelet has started it again",
        timeout=60,
    )
    assert deployed.exit_code(victim) == SIGKILLED

    def all_bound() -> bool:
        # Not only in the end: at no moment may a claim have two pods, or a pod two claims.
        seen = invariants.snapshot(api, namespace)
        assert invariants.violations(seen) == []
        return len(bound(list(map(dict, seen.claims)))) == CLAIMS

    eventually(all_bound, message="all claims are bound", timeout=150)
    pods = {claim["status"]["podUID"] for claim in api.list("SandboxClaim")}
    assert len(pods) == CLAIMS
    assert holders_of_each(history) == {1}


def holders_of_each(history: PodHistory) -> set[int]:
    """How many claims a pod that was claimed has ever had; and pods a claim."""
    claims: dict[str, set[str]] = {}
    pods: dict[str, set[str]] = {}
    for state in history.states():
        uid, holder = state["metadata"]["uid"], state["metadata"]["labels"]
        if claim := holder.get(names.LABEL_CLAIM_UID):
            claims.setdefault(uid, set()).add(claim)
            pods.setdefault(claim, set()).add(uid)
    return {len(found) for found in [*claims.values(), *pods.values()]}
