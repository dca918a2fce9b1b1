"""What is judged at the end of every integration test; the fixtures are in `support.fixtures`."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from support import invariants

HERE = Path(__file__).resolve().parent

_TEST_SECONDS = 120


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.integration)
            if item.get_closest_marker("timeout") is None:
                # Fixtures are exempt: the first on a machine builds the binaries.
                item.add_marker(pytest.mark.timeout(_TEST_SECONDS, func_only=True))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """At the end of every test with an operator no claim has a pod of another class."""
    yield
    fixtures = getattr(item, "funcargs", {})
    if "start_operator" in fixtures and "api" in fixtures:
        wrong = invariants.other_runtimes(
            invariants.snapshot(fixtures["api"], fixtures["namespace"])
        )
        assert not wrong, "\n".join(wrong)
