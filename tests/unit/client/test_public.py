"""What the package is to whoever imports it."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

from sandboxpool import client
from sandboxpool.client import core

# What the client shares with the operator: names and reasons, which import nothing.
SHARED = {
    "sandboxpool",
    "sandboxpool.api",
    "sandboxpool.api.config_files",
    "sandboxpool.api.names",
    "sandboxpool.api.reasons",
}


def loaded_by(statement: str) -> set[str]:
    """The modules that a fresh interpreter has after a statement."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    return set(done.stdout.split())


def test_importing_it_imports_nothing_of_the_operator_and_no_client() -> None:
    loaded = loaded_by("import sandboxpool.client")
    own = {name for name in loaded if name.partition(".")[0] == "sandboxpool"}
    others = {name for name in own if not name.startswith("sandboxpool.client")}
    assert others <= SHARED
    # Not even the official client, which takes its time, until it is asked for the configuration.
    for heavy in ("kubernetes", "kopf", "aiohttp", "msgspec", "pydantic", "urllib3", "requests"):
        assert heavy not in loaded


PAIRS = [
    (client.SandboxPools, client.AsyncSandboxPools),
    (client.Sandbox, client.AsyncSandbox),
    (client.Sandboxes, client.AsyncSandboxes),
    (client.Command, client.AsyncCommand),
    (client.Forward, client.AsyncForward),
]


@pytest.mark.parametrize(("blocking", "over_asyncio"), PAIRS)
def test_both_clients_have_the_same_methods(blocking: type, over_asyncio: type) -> None:
    def public(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(value).parameters) if callable(value) else []
            for name, value in inspect.getmembers(kind)
            if not name.startswith("_") and name not in dir(list)
        }

    assert public(blocking) == public(over_asyncio)


def test_every_error_is_one_of_the_package() -> None:
    errors = [value for value in vars(client).values() if inspect.isclass(value)]
    ours = [value for value in errors if issubclass(value, Exception)]
    assert len(ours) > 20
    assert all(issubclass(error, client.SandboxPoolError) for error in ours)


def test_an_option_that_there_is_not_is_refused() -> None:
    with pytest.raises(TypeError, match=r"no option 'tll'.*ttl"):
        core._checked({"tll": 5})  # type: ignore[typeddict-unknown-key]
