"""What the process knows of a claim beside the claim itself."""

from __future__ import annotations

from sandboxpool.claims.attempt import MonotonicDeadline


def test_a_deadline_does_not_move_with_the_wall_clock() -> None:
    deadline = MonotonicDeadline()
    assert deadline.left(1060.0, wall=1000.0, clock=5.0) == 60.0
    assert deadline.left(1060.0, wall=9000.0, clock=15.0) == 50.0, "the wall clock was set"
    assert deadline.left(1060.0, wall=0.0, clock=65.0) == 0.0


def test_a_deadline_that_is_changed_moves_by_the_difference() -> None:
    deadline = MonotonicDeadline()
    deadline.left(1060.0, wall=1000.0, clock=5.0)
    assert deadline.left(1090.0, wall=9000.0, clock=15.0) == 80.0
    assert deadline.left(1020.0, wall=9000.0, clock=15.0) == 10.0
