"""What every kind of test needs."""

from __future__ import annotations

import asyncio

import pytest

pytest_plugins = ("support.fixtures",)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "integration: needs a kube-apiserver and etcd (built once)")
    config.addinivalue_line("markers", "e2e: needs a cluster with real nodes")
    # pytest-asyncio asks for the main thread's loop before each asynchronous test. Python 3.11
    # makes one for the asking, which nobody closes: a ResourceWarning in some later test.
    asyncio.set_event_loop(None)
