"""A claim's configuration, in a warm sandbox of gVisor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sandboxpool.client import ClaimRefused, SandboxPools
from support import Api
from support.realnodes import pool, run_in
from support.sandboxes import pool_status

FILES = ("config.json", "claim-name", "claim-uid")


def warm(api: Api, **spec: Any) -> dict[str, Any]:
    """Makes a pool of one warm sandbox; returns the pod."""
    api.create(pool(**spec))
    pool_status(api, warm=1, timeout=90)
    (pod,) = api.list("Pod")
    return pod


def test_a_warm_sandbox_sees_the_configuration_once_it_is_claimed(
    api: Api, kubeconfig: Path, namespace: str
) -> None:
    pod = warm(api)
    for name in FILES:
        read = run_in(pod, "cat", f"/run/sandbox/{name}")
        assert read == "", f"{name} is there and empty until the claim"
    config = {"task.json": '{"n": 7}', "greeting": 'ä "quoted"\n'}
    with (
        SandboxPools.from_config(kubeconfig=kubeconfig, namespace=namespace) as pools,
        pools.claim("pool", ttl=600, config=config, wait_for_config=True) as sandbox,
    ):
        assert (sandbox.info.pod, sandbox.info.source) == (pod["metadata"]["name"], "Warm")
        seen = [sandbox.run(["cat", f"/run/sandbox/{name}"]).text for name in FILES]
        assert json.loads(seen[0]) == config
        assert seen[1:] == [sandbox.info.claim, sandbox.info.claim_uid]
        refused = sandbox.run(["sh", "-c", "echo x > /run/sandbox/config.json"])
        assert refused.exit_code != 0, "the sandbox cannot change it"


def test_a_pool_without_a_place_for_it_refuses_a_configuration(
    api: Api, kubeconfig: Path, namespace: str
) -> None:
    warm(api, claims={"configPath": ""})
    with (
        SandboxPools.from_config(kubeconfig=kubeconfig, namespace=namespace) as pools,
        pytest.raises(ClaimRefused, match=r"spec\.claims\.configPath") as caught,
    ):
        pools.claim("pool", config={"a": "b"})
    assert caught.value.reason == "ConfigNotMounted"
