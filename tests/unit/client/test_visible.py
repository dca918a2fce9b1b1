"""Waiting until a sandbox sees the configuration of its claim."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from sandboxpool.client import visible
from sandboxpool.client.blocking import run
from sandboxpool.client.commands import Target
from sandboxpool.client.errors import ConfigNotVisible
from sandboxpool.client.wire.remotecommand import V5
from support.scriptedcluster import api_of, claim, pod
from support.scriptedio import Asked, ScriptedIo, Step, answer, exited, upgraded


class Sandbox:
    """A sandbox in which a command ends as given, or never."""

    def __init__(self, ending: bytes | None = exited(0), mount: str = "/etc/claim") -> None:
        self.ending = ending
        self.mount = mount
        self.ran: list[list[str]] = []

    def __call__(self, asked: Asked) -> list[Step]:
        if not asked.path.endswith("/exec"):
            made: dict[str, Any] = pod()
            mounted = {"name": "sandboxpool-config", "mountPath": self.mount}
            mounts = [mounted] if self.mount else []
            made["spec"] = {"containers": [{"name": "main", "volumeMounts": mounts}]}
            return answer(made if asked.path.endswith("/pods/pod") else claim("Bound"))
        self.ran.append([value for key, value in asked.query if key == "command"])
        return upgraded(asked, V5, *([self.ending] if self.ending else []))

    def wait(self) -> ScriptedIo:
        api, io = api_of(self)
        run(visible.wait(Target(api, claim("Bound"))))
        return io


def test_one_command_waits_for_the_file_to_name_the_claim() -> None:
    sandbox = Sandbox()
    sandbox.wait()
    (command,) = sandbox.ran
    assert command == ["sh", "-c", visible._AWAIT, "sh", "/etc/claim/claim-uid", "c-uid", "300"]


@pytest.mark.parametrize("ending", [exited(1), None])
def test_what_does_not_come_is_an_error_after_a_while(ending: bytes | None) -> None:
    sandbox = Sandbox(ending)
    with pytest.raises(ConfigNotVisible, match=r"/etc/claim/claim-uid .* within 30 s"):
        sandbox.wait()
    assert len(sandbox.ran) == 1


def test_the_script_ends_when_the_file_says_it_or_its_time_is_over(tmp_path: Path) -> None:
    def script(tenths: int) -> subprocess.Popen[bytes]:
        command = ["sh", "-c", visible._AWAIT, "sh", str(tmp_path / "file"), "uid", str(tenths)]
        return subprocess.Popen(command)

    with script(1) as short:
        assert short.wait(30) == 1
    with script(600) as waiting:
        (tmp_path / "file").write_text("another")
        (tmp_path / "new").write_text("uid")
        (tmp_path / "new").replace(tmp_path / "file")
        assert waiting.wait(30) == 0


def test_a_sandbox_without_the_volume_is_not_waited_for() -> None:
    sandbox = Sandbox(b"c-uid", mount="")
    with pytest.raises(ConfigNotVisible, match=r"spec\.claims\.configPath"):
        sandbox.wait()
    assert sandbox.ran == []
