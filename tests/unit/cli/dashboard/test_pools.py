"""The table of pools."""

from __future__ import annotations

from sandboxpool.cli.dashboard import pools
from support.fleetobjects import BROKEN, claim, pool


def test_a_row_has_the_stock_the_claims_and_the_first_cause() -> None:
    made = pool("python", *BROKEN, warm=1, target=4, starting=2, failed=0, claimed=3)
    claims = [
        claim("a", bound="2026-01-01T11:59:02Z"),
        claim("b", source="Cold"),
        claim("c", "Pending"),
        claim("d", "Pending", namespace="other"),
    ]
    row = pools.summary([made], claims).rows[0]
    assert (row.warm, row.target, row.claimed, row.fill) == (1, 4, 3, 0.25)
    assert row.others == [("starting", 2)]
    assert (row.waiting, row.hit_rate, row.ready_p50) == (1, "50%", 900)
    assert row.cause is not None
    assert row.cause.reason == "NodeQuarantined"


def test_pools_that_are_not_ready_come_first() -> None:
    shown = pools.summary([pool("a"), pool("b", *BROKEN, warm=0), pool("c")], [])
    assert [row.name for row in shown.rows] == ["b", "a", "c"]
    assert (shown.total, shown.ready, shown.warm, shown.target) == (3, 2, 6, 9)


def test_a_pool_that_the_operator_has_not_seen_says_so() -> None:
    made = pool("new")
    made["status"] = {}
    row = pools.summary([made], []).rows[0]
    assert (row.ready.status, row.warm, row.target) == ("Unknown", None, None)
    assert "doctor" in row.ready.message


def test_a_target_of_zero_is_reached() -> None:
    assert pools.summary([pool("idle", warm=0, target=0)], []).rows[0].fill == 1


def test_of_very_many_pools_the_first_are_shown() -> None:
    made = [pool(f"p{index:04}") for index in range(pools.MAX_POOL_ROWS + 3)]
    made.append(pool("zz", *BROKEN))
    shown = pools.summary(made, [])
    assert (len(shown.rows), shown.omitted) == (pools.MAX_POOL_ROWS, 4)
    assert shown.rows[0].name == "zz"
    assert len(pools.summary(made, [], most=5).rows) == 5
