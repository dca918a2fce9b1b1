"""Two tests that would get in each other's way on one machine."""

from sandboxpool.client import Sandbox


def test_one_test_may_spoil_its_sandbox(sandbox: Sandbox) -> None:
    """Remove what the next test needs."""
    sandbox.run(["rm", "-rf", "/etc/passwd"]).check()
    assert sandbox.run(["test", "-e", "/etc/passwd"]).exit_code == 1


def test_the_next_one_finds_a_fresh_one(sandbox: Sandbox) -> None:
    """Find it there."""
    assert sandbox.run(["test", "-e", "/etc/passwd"]).exit_code == 0
