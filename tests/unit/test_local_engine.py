"""Which Docker engine the local cluster uses, and what becomes of one that was there before.

The Docker client is a script that notes how it is called. No engine runs.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from localcluster import engine as engines
from localcluster.engine import Engine

IMAGE = "kindest/node:v1"
OWN = Engine("unix:///nowhere/docker.sock", owned=True)
CLIENT = """\
#!/bin/sh
echo "$*" >> "{folder}/calls"
case "$1 $2" in
  "version "*) test -e "{folder}/answers" ;;
  "images -q") cat "{folder}/has" ;;
  "pull "*) test -e "{folder}/pulls" ;;
  "network ls") case "$*" in *label*) cat "{folder}/labelled" ;; *) cat "{folder}/named" ;; esac ;;
esac
"""


@dataclass(frozen=True)
class Client:
    """The Docker client, in a folder of its own."""

    folder: Path

    def says(self, name: str, text: str = "") -> None:
        (self.folder / name).write_text(text)

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    """A client of an engine that answers and has nothing."""
    folder = tmp_path / "client"
    folder.mkdir()
    script = folder / "docker"
    script.write_text(CLIENT.format(folder=folder))
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SANDBOXPOOL_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(engines, "_start", lambda: OWN)
    client = Client(folder)
    for name in ("answers", "has", "labelled", "named"):
        client.says(name)
    return client


@pytest.mark.parametrize(("name", "text"), [("pulls", ""), ("has", "0123456789ab\n")])
def test_an_engine_that_has_or_can_pull_the_node_image_is_used(
    client: Client, name: str, text: str
) -> None:
    client.says(name, text)
    assert engines.acquire(IMAGE) == Engine("", owned=False)
    assert engines.current() == Engine("", owned=False)
    assert (f"pull {IMAGE}" in client.calls()) == (name == "pulls")


def test_an_engine_that_cannot_pull_is_left_alone(client: Client) -> None:
    assert engines.acquire(IMAGE) == OWN
    assert {call.split()[0] for call in client.calls()} == {"version", "images", "pull"}


def test_without_an_engine_one_is_started(client: Client) -> None:
    (client.folder / "answers").unlink()
    assert engines.acquire(IMAGE) == OWN


def test_only_the_network_that_was_created_is_removed_from_anothers_engine(client: Client) -> None:
    client.says("pulls")
    engine = engines.acquire(IMAGE)
    engines.ensure_network(engine)
    (created,) = (call for call in client.calls() if call.startswith("network create"))
    assert f"--label {engines.CREATED} " in created
    client.says("labelled", "ours\n")
    client.says("named", "ours\ntheirs\n")
    before = len(client.calls())
    engines.release()
    changes = [c for c in client.calls()[before:] if not c.startswith(("version", "network ls"))]
    assert changes == ["network rm ours"]
    assert engines.current() is None


def test_a_network_that_was_there_before_is_used_and_stays(client: Client) -> None:
    client.says("pulls")
    client.says("named", "theirs\n")
    engines.ensure_network(engines.acquire(IMAGE))
    engines.release()
    assert not any(c.startswith(("network create", "network rm")) for c in client.calls())
