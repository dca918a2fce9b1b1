"""Storms: the operator stands them, and without any one of its guards it does not."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest

from sandboxpool.api import core
from sandboxpool.api.reasons import Reason
from sandboxpool.api.v1alpha1 import SandboxClaim
from sandboxpool.claims.pending import PendingReconciler
from sandboxpool.claims.requests import ClaimRequests
from sandboxpool.cluster.pool import Pool
from sandboxpool.kube.client import ApiClient
from sandboxpool.pools.expectations import Expectations
from sandboxpool.runtimes.termination import TerminationCause
from sandboxpool.sandboxes.template import pod_name
from support.simulation.effort import SIMULATIONS
from support.simulation.storm import (
    adversity,
    hand_over,
    last_words,
    lost_answer,
    mixed_news,
    storm,
)

# So many at most until one shows that a guard is missing.
ENOUGH = 60


@pytest.mark.parametrize("seed", range(SIMULATIONS))
def test_the_operator_stands_a_storm(seed: int) -> None:
    storm(seed)


@pytest.mark.parametrize("seed", range(SIMULATIONS))
def test_the_last_request_of_a_dead_leader_does_no_harm(seed: int) -> None:
    hand_over(seed)


@pytest.mark.parametrize("seed", range(SIMULATIONS))
def test_an_answer_that_is_lost_does_no_harm(seed: int) -> None:
    lost_answer(seed)


@pytest.mark.parametrize("seed", range(math.ceil(SIMULATIONS / 4)))
def test_the_operator_stands_what_goes_wrong_around_it(seed: int) -> None:
    adversity(seed)


@pytest.mark.parametrize("seed", range(SIMULATIONS))
def test_news_that_come_in_any_order_end_nothing_wrongly(seed: int) -> None:
    mixed_news(seed)


def without_the_version_of_write_1(patch: pytest.MonkeyPatch) -> None:
    sent = ApiClient.merge_patch

    async def unconditional(self: ApiClient, path: str, body: dict[str, Any]) -> bytes:
        metadata = {k: v for k, v in body["metadata"].items() if k != "resourceVersion"}
        return await sent(self, path, {**body, "metadata": metadata} if "/pods/" in path else body)

    patch.setattr(ApiClient, "merge_patch", unconditional)


def without_reading_back(patch: pytest.MonkeyPatch) -> None:
    async def take_it_for_refused(*_: Any) -> None:
        return None

    patch.setattr(ClaimRequests, "read_back", take_it_for_refused)


def without_the_preconditions_of_deletes(patch: pytest.MonkeyPatch) -> None:
    async def delete(self: ApiClient, path: str, **_: Any) -> bytes:
        return await self._request("DELETE", path, body={})

    patch.setattr(ApiClient, "delete", delete)


def without_the_uid_of_write_2(patch: pytest.MonkeyPatch) -> None:
    async def replace(self: ApiClient, path: str, uid: str, status: Any, **_: Any) -> bytes:
        steps = [{"op": "add", "path": "/status", "value": status}]
        return await self.json_patch(path + "/status", steps)

    patch.setattr(ApiClient, "replace_status", replace)


def without_expectations(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Expectations, "expect_creation", lambda self, name, cold=False: None)


def without_reading_the_pool(patch: pytest.MonkeyPatch) -> None:
    async def cached(self: PendingReconciler, claim: SandboxClaim) -> Pool | None:
        return self._pools.get((claim.metadata.namespace, claim.spec.poolName))

    patch.setattr(PendingReconciler, "live_pool", cached)


def without_the_last_words_of_pods(patch: pytest.MonkeyPatch) -> None:
    """Whatever has ended a pod is taken for its program's own doing."""

    def exited(pod: core.Pod) -> TerminationCause | None:
        return TerminationCause(Reason.CONTAINERS_EXITED, "exit code 143") if pod.finished else None

    patch.setattr("sandboxpool.claims.reconcile.termination_cause", exited)


def without_the_names_of_cold_pods(patch: pytest.MonkeyPatch) -> None:
    numbers = itertools.count()
    patch.setattr(
        "sandboxpool.pools.cold_starter.pod_name",
        lambda pool, seed: pod_name(pool, f"{seed}{next(numbers)}"),
    )


@pytest.mark.parametrize("seed", range(4))
def test_what_a_leader_has_asked_for_a_claim_is_made_once(seed: int) -> None:
    last_words(seed)


@pytest.mark.parametrize(
    ("take_out", "play"),
    [
        (without_the_version_of_write_1, hand_over),
        (without_reading_back, lost_answer),
        (without_the_preconditions_of_deletes, hand_over),
        (without_the_uid_of_write_2, storm),
        (without_expectations, storm),
        (without_the_names_of_cold_pods, last_words),
        (without_reading_the_pool, mixed_news),
        (without_the_last_words_of_pods, mixed_news),
    ],
)
def test_a_missing_guard_is_missed(
    take_out: Callable[[pytest.MonkeyPatch], None],
    play: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    take_out(monkeypatch)
    for seed in range(ENOUGH):
        try:
            play(seed)
        except AssertionError:
            return
    pytest.fail("nothing went wrong without it")
