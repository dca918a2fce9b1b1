"""A fixture that gives each test a sandbox of its own, from the pool `$SANDBOX_POOL`."""

import os
from collections.abc import Iterator

import pytest

from sandboxpool.client import Sandbox, SandboxPools


@pytest.fixture(scope="session")
def sandbox_pools() -> Iterator[SandboxPools]:
    """The cluster of the kubeconfig; one for all tests, so that they share its connections."""
    with SandboxPools.from_config() as pools:
        yield pools


@pytest.fixture
def sandbox(sandbox_pools: SandboxPools, request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """A sandbox that no other test has seen, released at the end of the test."""
    pool = os.environ.get("SANDBOX_POOL", "tasks")
    # Shows which test holds a sandbox: kubectl describe sandboxclaims.sandboxpool.io
    with sandbox_pools.claim(pool, ttl=300, annotations={"test": request.node.name}) as claimed:
        yield claimed
