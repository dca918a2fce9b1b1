"""Waiting until a sandbox sees the configuration of its claim."""

from __future__ import annotations

from typing import Any

import pytest

from sandboxpool.client import visible
from sandboxpool.client.blocking import run
from sandboxpool.client.commands import Target
from sandboxpool.client.errors import ConfigNotVisible
from sandboxpool.client.wire.remotecommand import V5
from support.scriptedcluster import api_of, claim, pod
from support.scriptedio import Asked, ScriptedIo, Step, answer, server_frame, upgraded

SUCCESS = server_frame(b'\x03{"status":"Success"}')


class Sandbox:
    """A sandbox whose files say something else at each look; the last stays."""

    def __init__(self, *said: bytes, mount: str = "/etc/claim") -> None:
        self.said = list(said)
        self.mount = mount
        self.ran: list[list[str]] = []

    def __call__(self, asked: Asked) -> list[Step]:
        if not asked.path.endswith("/exec"):
            made: dict[str, Any] = pod()
            mounted = {"name": "sandboxpool-config", "mountPath": self.mount}
            mounts = [mounted] if self.mount else []
            made["spec"] = {"containers": [{"name": "main", "volumeMounts": mounts}]}
            return answer(made)
        self.ran.append([value for key, value in asked.query if key == "command"])
        said = self.said.pop(0) if len(self.said) > 1 else self.said[0]
        return upgraded(asked, V5, server_frame(b"\x01" + said), SUCCESS)

    def wait(self) -> ScriptedIo:
        api, io = api_of(self)
        run(visible.wait(Target(api, claim("Bound"))))
        return io


def test_it_returns_once_the_file_names_the_claim() -> None:
    sandbox = Sandbox(b"", b"", b"c-uid")
    sandbox.wait()
    assert sandbox.ran == [["cat", "/etc/claim/claim-uid"]] * 3


def test_what_does_not_come_is_an_error_after_a_while() -> None:
    sandbox = Sandbox(b"other-uid")
    with pytest.raises(ConfigNotVisible, match=r"/etc/claim/claim-uid .* within 30 s"):
        sandbox.wait()
    assert len(sandbox.ran) < 100


def test_a_sandbox_without_the_volume_is_not_waited_for() -> None:
    sandbox = Sandbox(b"c-uid", mount="")
    with pytest.raises(ConfigNotVisible, match=r"spec\.claims\.configPath"):
        sandbox.wait()
    assert sandbox.ran == []
