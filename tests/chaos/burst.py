"""A burst of claims with all that people do meanwhile; the same seed does the same."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from chaos.stage import Object, Stage
from support import objects
from support.sandboxes import pool_status

WARM, COLD = "warm", "cold"
_SENDERS = 4
# How often something else happens to a claim, or to a pool, for each claim that is made.
_DELETED, _EXPIRING, _COLD, _SCALED = 0.15, 0.15, 0.2, 0.1
# Nobody may fail for want of time, whatever the clock does.
_PATIENT = {"bindTimeoutSeconds": 3600}
# A claim that is not among these in the end has not been given what it is due.
_SERVED = ("Bound", "Expired")


def two_pools(stage: Stage, claims: int) -> None:
    """One pool with some warm sandboxes, and one that makes them when they are asked for."""
    stage.api.create(objects.runtime_class())
    stage.api.create(objects.pool(WARM, replicas=6, maxSandboxes=claims + 8))
    stage.api.create(objects.pool(COLD, replicas=0, maxSandboxes=claims))
    pool_status(stage.api, name=WARM, warm=6)


def burst(stage: Stage, claims: int, prefix: str = "claim") -> None:
    """Makes claims as fast as a few senders can, deletes some, scales the pool to and fro."""
    draws = [random.Random(stage.random.random()) for _ in range(_SENDERS)]

    def send(number: int) -> None:
        draw = draws[number]
        for count in range(number, claims, _SENDERS):
            _one(stage, draw, f"{prefix}-{count}")

    with ThreadPoolExecutor(_SENDERS) as senders:
        list(senders.map(send, range(_SENDERS)))


def _one(stage: Stage, draw: random.Random, name: str) -> None:
    spec: dict[str, Any] = dict(_PATIENT)
    pool = WARM
    if draw.random() < _COLD:
        pool, spec["onEmpty"] = COLD, "Create"
    if draw.random() < _EXPIRING:
        spec["ttlSeconds"] = draw.randint(1, 3)
    stage.retry_until_answered(lambda: stage.api.create(objects.claim(name, pool, **spec)))
    if draw.random() < _DELETED:
        time.sleep(draw.uniform(0.0, 0.3))
        stage.retry_until_answered(lambda: stage.api.delete("SandboxClaim", name))
    if draw.random() < _SCALED:
        stage.retry_until_answered(lambda: stage.api.scale("SandboxPool", WARM, draw.randint(3, 8)))


def outcome(stage: Stage, *, also: tuple[str, ...] = ()) -> list[str]:
    """What was or is wrong once all claims have ended or are served; no fault may be left.

    A cold start that failed is tried again only after a while, in which all looks quiet. `also`
    names phases of claims that are fine here.
    """
    stage.soon(lambda: not _unserved(stage, also), stage.patience)
    return [*stage.verdict(), *_unserved(stage, also)]


def _unserved(stage: Stage, also: tuple[str, ...]) -> list[str]:
    """The claims that did not get what they are due."""
    return [
        f"claim {claim['metadata']['name']} is {_phase(claim)}"
        for claim in stage.api.list("SandboxClaim")
        if _phase(claim) not in (*_SERVED, *also)
    ]


def _phase(claim: Object) -> str:
    return str((claim.get("status") or {}).get("phase", "Pending"))
