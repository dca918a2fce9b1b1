"""What every kind of test needs."""

from __future__ import annotations

import asyncio

import hypothesis
import pytest

pytest_plugins = ("support.fixtures",)


# Before tests are imported, because their own settings begin with these. An example that takes
# long says that the machine is shared, and nothing of the code. The rest is Hypothesis' default,
# which in CI is the same examples each time.
hypothesis.settings.register_profile(
    "shared-machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("shared-machine")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "integration: needs a kube-apiserver and etcd (built once)")
    config.addinivalue_line("markers", "e2e: needs a cluster with real nodes")
    # pytest-asyncio asks for the main thread's loop before each asynchronous test. Python 3.11
    # makes one for the asking, which nobody closes: a ResourceWarning in some later test.
    asyncio.set_event_loop(None)
