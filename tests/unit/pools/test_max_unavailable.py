"""What `update.maxUnavailable` stands for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxpool.api.v1alpha1 import Update
from sandboxpool.cluster.sandbox_state import SandboxState
from sandboxpool.pools.decide import decide
from sandboxpool.pools.max_unavailable import max_unavailable
from support.builders import members, pool_input


def resolved(value: int | str, target: int) -> int:
    return max_unavailable(Update(max_unavailable=value), target)


@pytest.mark.parametrize(
    ("value", "target", "expected"),
    [
        (1, 0, 1),
        (3, 100, 3),
        ("25%", 100, 25),
        # Rounded down, as in a Deployment, ...
        ("25%", 11, 2),
        ("99%", 2, 1),
        # ... but a roll can always go on.
        ("25%", 3, 1),
        ("1%", 0, 1),
        ("100%", 7, 7),
    ],
)
def test_a_share_of_the_target(value: int | str, target: int, expected: int) -> None:
    assert resolved(value, target) == expected


@given(st.integers(1, 100), st.integers(0, 10_000))
def test_a_percentage_lets_a_roll_go_on_and_misses_no_more_than_the_target(
    percent: int, target: int
) -> None:
    found = resolved(f"{percent}%", target)
    assert 1 <= found <= max(1, target)
    assert found == 1 or found * 100 <= target * percent


def test_a_percentage_is_of_what_the_ceiling_leaves() -> None:
    """Of 10 sandboxes 4 may be there: half of these, not of the 10."""
    stock = members(SandboxState.WARM, 4, revision="old")
    plan = decide(pool_input(stock, replicas=10, maxSandboxes=4, update={"maxUnavailable": "50%"}))
    assert (plan.target, len(plan.delete)) == (4, 2)
