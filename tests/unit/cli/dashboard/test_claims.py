"""How long claims waited, and those to look at."""

from __future__ import annotations

import pytest

from sandboxpool.cli.dashboard import claims
from support.fleetobjects import claim, condition


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [
        (0, "under 1 s"),
        (1, "1 s"),
        (2, "2 to 4 s"),
        (4, "2 to 4 s"),
        (5, "5 to 9 s"),
        (29, "10 to 29 s"),
        (30, "30 to 59 s"),
        (59, "30 to 59 s"),
    ],
)
def test_a_claim_is_in_the_bucket_of_its_seconds(seconds: int, bucket: str) -> None:
    made = claim("c", created="2026-01-01T11:59:00Z", bound=f"2026-01-01T11:59:{seconds:02}Z")
    found = {one.name: one.warm for one in claims.summary([made]).buckets if one.warm}
    assert found == {bucket: 1}


def test_clocks_that_differ_do_not_lose_a_claim() -> None:
    early = claim("c", created="2026-01-01T11:59:05Z", bound="2026-01-01T11:59:03Z")
    late = claim("d", created="2026-01-01T11:59:00Z", bound="2026-01-01T13:59:03Z")
    shown = claims.summary([early, late])
    assert (shown.bound, shown.buckets[0].warm, shown.buckets[-1].warm) == (2, 1, 1)


def test_shares_are_of_the_fullest_bucket() -> None:
    made = [*(claim(f"w{index}") for index in range(4)), claim("c", source="Cold")]
    first = claims.summary(made).buckets[0]
    assert (first.warm, first.cold, first.warm_share, first.cold_share) == (4, 1, 1, 0.25)


def test_claims_that_wait_come_before_those_that_failed() -> None:
    why = [condition("Bound", "False", "NoWarmSandbox", "no sandbox is warm")]
    made = [
        claim("lost", "Lost", finishedAt="2026-01-01T10:00:00Z"),
        claim("failed", "Failed", finishedAt="2026-01-01T11:00:00Z"),
        claim("young", "Pending", created="2026-01-01T11:58:00Z"),
        claim("old", "Pending", created="2026-01-01T11:50:00Z", conditions=why),
        claim("fine"),
        claim("expired", "Expired", finishedAt="2026-01-01T11:30:00Z"),
    ]
    rows = claims.summary(made).rows
    assert [one.name for one in rows] == ["old", "young", "failed", "lost"]
    assert (rows[0].reason, rows[0].message) == ("NoWarmSandbox", "no sandbox is warm")


def test_of_many_that_wait_the_oldest_are_shown() -> None:
    made = [claim(f"c{index}", "Pending") for index in range(claims.MAX_ROWS + 5)]
    shown = claims.summary(made)
    assert (len(shown.rows), shown.omitted) == (claims.MAX_ROWS, 5)


def test_a_claim_is_found_by_its_name_or_its_pods() -> None:
    made = [claim("one"), claim("another"), claim("third", pool="browser")]
    assert [one.name for one in claims.find(made, "one")] == ["one"]
    assert [one.name for one in claims.find(made, "python-")] == ["another", "one"]
    assert [one.name for one in claims.find(made, "browser-third")] == ["third"]
    assert claims.find(made, "") == []
