"""The operator's rights and its endpoints, judged last: all other tests have made it work."""

from __future__ import annotations

from support import Api
from support.deployed import DeployedOperator


def test_nothing_that_it_did_was_forbidden(deployed: DeployedOperator) -> None:
    log = deployed.whole_log()
    assert "caches synced" in log
    # Admission says `forbidden` too, of templates; of a right that is missing it is the user who
    # cannot do something.
    wrong = [line for line in log.splitlines() if " cannot " in line and "forbidden" in line]
    assert wrong == []


def test_nothing_that_it_did_was_an_error(deployed: DeployedOperator) -> None:
    wrong = [line for line in deployed.whole_log().splitlines() if '"level": "ERROR"' in line]
    assert wrong == []


def test_it_answers_the_questions_of_kubelets_and_prometheus(
    admin: Api, deployed: DeployedOperator
) -> None:
    assert deployed.ready()
    deployed.probe("/healthz")
    deployed.probe("/readyz")
    metrics = deployed.get("/metrics")
    assert "sandboxpool_" in metrics
    assert "workqueue_depth" in metrics
