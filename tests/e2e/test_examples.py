"""The examples on the real cluster."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from localcluster.paths import REPOSITORY
from sandboxpool.client import SandboxPools
from support import Api
from support.otherpython import environment, find_python
from support.realnodes import pool
from support.sandboxes import pool_status

EXAMPLES = REPOSITORY / "examples"


@pytest.fixture
def tasks(
    api: Api, namespace: str, kubeconfig: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """A pool, and the configuration by which the examples find it."""
    config = yaml.safe_load(kubeconfig.read_text())
    config["contexts"][0]["context"]["namespace"] = namespace
    own = tmp_path / "kubeconfig"
    own.write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(own))
    monkeypatch.setenv("SANDBOX_POOL", "tasks")
    api.create(pool("tasks", replicas=1))
    pool_status(api, name="tasks", warm=1, timeout=90)
    return "tasks"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Models and dataclasses look their module up by its name.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_the_agent_runs_what_its_model_writes_and_sees_what_came_of_it(
    api: Api, tasks: str
) -> None:
    agent = example("agent_loop")

    class Scripted:
        """Mends its code when it sees that it failed."""

        def next_step(self, task: str, observations: list[Any]) -> Any:
            assert task == "How many?"
            if not observations:
                return agent.Step(code="cat numbers")
            if len(observations) == 1:
                assert "No such file" in observations[0].output
                assert "exit code 1" in observations[0].output
                return agent.Step(code="cd /tmp; seq 1 100 > numbers; wc -l < numbers")
            if len(observations) == 2:
                # What one step wrote is there for the next.
                return agent.Step(code="tail -1 /tmp/numbers; uname -a")
            assert "gvisor" in observations[2].output
            return agent.Step(answer=observations[1].output.split()[0])

    with SandboxPools.from_config() as pools:
        assert agent.solve(pools, tasks, "How many?", Scripted()) == "100"
    assert api.list("SandboxClaim") == []


def test_the_agent_is_told_of_code_that_does_not_end(
    tasks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = example("agent_loop")
    monkeypatch.setattr(agent, "COMMAND_SECONDS", 2.0)
    with SandboxPools.from_config() as pools, pools.claim(tasks) as sandbox:
        seen = agent.observe(sandbox, "echo begun; sleep 60")
        assert seen.output.startswith("begun\n")
        assert "has not ended in time" in seen.output


def test_the_fixture_gives_each_test_a_sandbox_of_its_own(api: Api, tasks: str) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q"]
    done = subprocess.run(
        [*command, str(EXAMPLES / "pytest_fixture")],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout
    assert api.list("SandboxClaim") == []


def test_the_service_runs_each_request_in_a_sandbox(
    api: Api, tasks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastapi.testclient import TestClient

    service = example("fastapi_service")
    with TestClient(service.app) as client:
        answer = client.post("/run", json={"code": "uname -a; echo err >&2; exit 3"})
        assert answer.status_code == 200, answer.text
        assert "gvisor" in answer.json()["stdout"]
        assert answer.json()["stderr"] == "err\n"
        assert answer.json()["exit_code"] == 3
        late = client.post("/run", json={"code": "sleep 60", "seconds": 1})
        assert late.status_code == 408
        assert client.post("/run", json={"code": "true", "seconds": 1000}).status_code == 422
        # A pool of its own: one that is scaled down may still make a last sandbox Ready.
        api.create(pool("empty", replicas=0))
        pool_status(api, name="empty", warm=0, timeout=60)
        monkeypatch.setenv("SANDBOX_POOL", "empty")
        monkeypatch.setattr(service, "BIND_SECONDS", 1)
        busy = client.post("/run", json={"code": "true"})
        assert busy.status_code == 503
        assert busy.headers["Retry-After"] == "5"
    assert api.list("SandboxClaim") == []


@pytest.fixture(scope="session")
def harbor_command() -> Path:
    """Harbor, in an environment of its own: it needs a newer Python than the project does."""
    python = find_python((3, 12))
    if python is None:
        pytest.skip("Harbor needs Python 3.12 or newer, and there is none here")
    return environment(python, EXAMPLES / "harbor" / "requirements.txt") / "harbor"


def test_a_harbor_trial_runs_in_a_sandbox(
    harbor_command: Path, api: Api, tasks: str, tmp_path: Path
) -> None:
    harbor = EXAMPLES / "harbor"
    done = subprocess.run(
        [
            *(harbor_command, "run", "--path", harbor / "task"),
            *("--agent", "oracle", "--jobs-dir", str(tmp_path / "jobs"), "--job-name", "trial"),
            *("--env", "sandboxpool_environment:SandboxPoolEnvironment", "--ek", f"pool={tasks}"),
        ],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(harbor), str(REPOSITORY / "operator")]),
        },
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    (reward,) = (tmp_path / "jobs").rglob("reward.txt")
    # The verifier gives none outside of gVisor.
    assert reward.read_text().strip() == "1", done.stdout
    assert api.list("SandboxClaim") == []
