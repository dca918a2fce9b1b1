"""Two tests that would get in each other's way on one machine."""

from sandboxpool.client import Sandbox


def test_one_test_leaves_a_file_behind(sandbox: Sandbox) -> None:
    """Write it."""
    sandbox.write("/left-behind", b"by the other test")
    assert sandbox.read("/left-behind") == b"by the other test"


def test_the_next_one_finds_none(sandbox: Sandbox) -> None:
    """Look for it."""
    assert sandbox.run(["test", "-e", "/left-behind"]).exit_code == 1
