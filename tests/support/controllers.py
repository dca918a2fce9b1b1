"""The real kube-scheduler and a kube-controller-manager with just the controllers tests need."""

from __future__ import annotations

import signal
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Self

import yaml

from fakekubelet import ApiError
from localcluster import builds, process
from support.api import Api

CONTROLLERS = ("garbage-collector-controller", "namespace-controller", "resourcequota-controller")

_READY_SECONDS = 60.0
_STOP_SECONDS = 5.0
_POLL_SECONDS = 0.05
# Their places in the order of the start.
_MANAGER = 1


@dataclass
class Controllers:
    """Both programs, as children that the kernel kills when this process ends.

    Start it after the CRDs are applied: the garbage collector looks for new kinds only every 30
    seconds, and until then does not know that a pod's owner is gone.

    Attributes:
        kubeconfig: How they reach the API server.
        controllers: Which controllers run.
    """

    kubeconfig: Path
    controllers: tuple[str, ...] = CONTROLLERS
    _children: list[subprocess.Popen[bytes]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="controllers-")

    def __enter__(self) -> Self:
        """Starts both and waits until they are ready."""
        binaries = builds.ensure(["kube-scheduler", "kube-controller-manager"])
        try:
            scheduler = self._start("kube-scheduler", [
                str(binaries["kube-scheduler"]),
                f"--config={self._scheduler_configuration()}",
                *self._scheduler_flags(),
            ])  # fmt: skip
            manager = self._start("kube-controller-manager", [
                str(binaries["kube-controller-manager"]),
                f"--kubeconfig={self.kubeconfig}",
                f"--controllers={','.join(self.controllers)}",
                "--leader-elect=false",
                "--concurrent-gc-syncs=20",
                "--concurrent-namespace-syncs=10",
                "--concurrent-resource-quota-syncs=2",
                "--namespace-sync-period=30s",
                "--kube-api-qps=500",
                "--kube-api-burst=1000",
            ])  # fmt: skip
            self._await_ready("kube-scheduler", *scheduler, "/readyz")
            self._await_ready("kube-controller-manager", *manager, "/healthz")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stops both."""
        for child in self._children:
            process.terminate(child, grace=_STOP_SECONDS)
        self._children.clear()
        self._folder.cleanup()

    def pause_manager(self) -> None:
        """Freeze the controller manager, and with it the garbage collector."""
        self._children[_MANAGER].send_signal(signal.SIGSTOP)

    def resume_manager(self) -> None:
        """Let a frozen controller manager go on."""
        self._children[_MANAGER].send_signal(signal.SIGCONT)

    def log(self, name: str) -> Path:
        """The log file of one of the programs."""
        return Path(self._folder.name, f"{name}.log")

    def _scheduler_flags(self) -> list[str]:
        """What a scheduler needs to get on with an older API server than its own.

        Its cache waits for resource claims, which API servers before 1.34 do not serve in its
        version. It can be told to be of a version that does not ask for them.
        """
        with Api(self.kubeconfig) as api:
            try:
                api.raw("GET", "/apis/resource.k8s.io/v1")
            except ApiError as error:
                if error.status != HTTPStatus.NOT_FOUND:
                    raise
                return ["--emulated-version=1.33"]
        return []

    def _scheduler_configuration(self) -> Path:
        path = Path(self._folder.name, "scheduler.yaml")
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "kubescheduler.config.k8s.io/v1",
                    "kind": "KubeSchedulerConfiguration",
                    "leaderElection": {"leaderElect": False},
                    "clientConnection": {
                        "kubeconfig": str(self.kubeconfig),
                        "qps": 1000,
                        "burst": 2000,
                    },
                    # A pod that fits nowhere is tried again soon after the cause has gone.
                    "podInitialBackoffSeconds": 1,
                    "podMaxBackoffSeconds": 1,
                }
            )
        )
        return path

    def _start(self, name: str, command: list[str]) -> tuple[subprocess.Popen[bytes], int]:
        port = _free_port()
        child = process.spawn(
            [
                *command,
                "--bind-address=127.0.0.1",
                f"--secure-port={port}",
                f"--cert-dir={self._folder.name}/{name}",
                # Health is all that is served; nobody is asked who may see it.
                "--authorization-always-allow-paths=/healthz,/readyz,/livez",
            ],
            log=self.log(name),
        )
        self._children.append(child)
        return child, port

    def _await_ready(self, name: str, child: subprocess.Popen[bytes], port: int, path: str) -> None:
        # Its certificate is its own, made at this start, on loopback.
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        url = f"https://127.0.0.1:{port}{path}"
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline and child.poll() is None:
            try:
                with urllib.request.urlopen(url, timeout=5, context=context) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                pass
            time.sleep(_POLL_SECONDS)
        raise RuntimeError(f"{name} did not get ready:\n{process.tail(self.log(name))}")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
