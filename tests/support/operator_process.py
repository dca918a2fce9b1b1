"""The operator as a child process, the way it runs in a cluster but for the container."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from prometheus_client.parser import text_string_to_metric_families

from localcluster import process
from support.faultproxy import FaultProxy

# Ends hangs; on a crowded machine a start takes as long as it takes.
_READY_SECONDS = 90.0
_STOP_SECONDS = 15.0
_POLL_SECONDS = 0.05
# A scrape shows what another has shown less than a second before.
_FRESH_SECONDS = 1.1
_ROOT = Path(__file__).resolve().parents[2]
_SOURCES = _ROOT / "operator"
# Where the changes to its code are found.
_TEST_SOURCES = (_ROOT / "tests", _ROOT / "hack")


@dataclass
class Operator:
    """One replica of the operator.

    Attributes:
        kubeconfig: How it reaches the API server; that of a `FaultProxy` for faults.
        folder: Where its log goes.
        namespace: The operator's own namespace.
        env: Further settings, over the defaults.
        name: Tells replicas apart.
        changes: Names of changes to its code, see `support.sabotage`; none for the real one.
        module: What runs: the operator, or another process of the product.
    """

    kubeconfig: Path
    folder: Path
    namespace: str = "sandboxpool-system"
    env: dict[str, str] = field(default_factory=dict)
    name: str = "operator"
    changes: Sequence[str] = ()
    module: str = "sandboxpool"

    def __post_init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._scraped = float("-inf")
        self._listen = f"127.0.0.1:{_free_port()}"
        self._health_listen = f"127.0.0.1:{_free_port()}"

    @property
    def url(self) -> str:
        """Where /metrics is."""
        return f"http://{self._listen}"

    @property
    def health_url(self) -> str:
        """Where /healthz and /readyz are."""
        return f"http://{self._health_listen}"

    @property
    def log(self) -> Path:
        """Its log, of all its starts."""
        return self.folder / f"{self.name}.log"

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self._child.pid if self.running and self._child else None

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._child is not None and self._child.poll() is None

    def start(self, *, ready: bool = True) -> None:
        """Starts it and, unless told otherwise, waits until it is ready."""
        if self.running:
            raise RuntimeError(f"{self.name} runs already")
        sources, module = [_SOURCES], [self.module]
        if self.changes:
            sources, module = [_SOURCES, *_TEST_SOURCES], ["support.sabotage", *self.changes]
        settings = {
            "KUBECONFIG": str(self.kubeconfig),
            "SANDBOXPOOL_LISTEN": self._listen,
            "SANDBOXPOOL_HEALTH_LISTEN": self._health_listen,
            "SANDBOXPOOL_NAMESPACE": self.namespace,
            "SANDBOXPOOL_LOG_LEVEL": "debug",
            "PYTHONPATH": os.pathsep.join(map(str, sources)),
            "PYTHONUNBUFFERED": "1",
            **self.env,
        }
        # env(1) sets them: the operator sees these and what it would find in any shell.
        self._scraped = float("-inf")
        self._child = process.spawn(
            [
                "env",
                *(f"{name}={value}" for name, value in settings.items()),
                sys.executable,
                "-m",
                *module,
            ],
            log=self.log,
        )
        if ready:
            self.wait_ready()

    def wait_ready(self, timeout: float = _READY_SECONDS) -> None:
        """Waits until /readyz answers 200.

        Raises:
            AssertionError: If it ended or is not ready in time; the text ends with its log's tail.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if not self.running:
                code = self._child.returncode if self._child else None
                raise AssertionError(f"{self.name} ended with {code}:\n{self.tail()}")
            if self.ready():
                return
            time.sleep(_POLL_SECONDS)
        raise AssertionError(f"{self.name} is not ready after {timeout} s:\n{self.tail()}")

    def ready(self) -> bool:
        """Whether /readyz answers 200 now."""
        try:
            return self._get(self.health_url, "/readyz")[0] == 200
        except OSError:
            return False

    def readiness(self) -> str:
        """What /readyz says now; empty if nobody answers."""
        try:
            return self._get(self.health_url, "/readyz")[1]
        except OSError:
            return ""

    def healthy(self) -> bool:
        """Whether /healthz answers 200 now."""
        try:
            return self._get(self.health_url, "/healthz")[0] == 200
        except OSError:
            return False

    def metrics(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """Every sample of this moment: (name, labels as a set of pairs) -> value."""
        time.sleep(max(0.0, self._scraped + _FRESH_SECONDS - time.monotonic()))
        _, text = self._get(self.url, "/metrics")
        self._scraped = time.monotonic()
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def metric(self, name: str, /, **labels: str) -> float:
        """The sum of the samples of a name that have these labels."""
        wanted = set(labels.items())
        return sum(
            value
            for (found, has), value in self.metrics().items()
            if found == name and wanted <= has
        )

    def kill(self) -> None:
        """Ends it at once (SIGKILL), with no chance to release or finish anything."""
        if self._child is not None:
            if self._child.poll() is None:
                self._child.kill()
            self._child.wait(_STOP_SECONDS)

    def pause(self) -> None:
        """Freezes it (SIGSTOP): it holds its connections and its belief to be the leader."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets a frozen one go on."""
        self._signal(signal.SIGCONT)

    def terminate(self, timeout: float = _STOP_SECONDS) -> int:
        """Ends it as a kubelet does (SIGTERM) and returns its exit code.

        Raises:
            AssertionError: If it does not end in time; it is killed then.
        """
        if self._child is None:
            raise RuntimeError(f"{self.name} was not started")
        if self._child.poll() is None:
            self._child.terminate()
            try:
                self._child.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise AssertionError(
                    f"{self.name} ignored SIGTERM for {timeout} s:\n{self.tail()}"
                ) from None
        return self._child.returncode

    def restart(self, *, kill: bool = False, ready: bool = True) -> None:
        """Ends it and starts it again."""
        if kill:
            self.kill()
        else:
            self.terminate()
        self.start(ready=ready)

    def tail(self, lines: int = 60) -> str:
        """The end of its log."""
        return process.tail(self.log, lines)

    def _signal(self, number: signal.Signals) -> None:
        if self._child is None or self._child.poll() is not None:
            raise RuntimeError(f"{self.name} does not run")
        os.kill(self._child.pid, number)

    def _get(self, url: str, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(url + path, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


class StartOperator(Protocol):
    """Starts a replica of the operator, which ends with the test."""

    def __call__(
        self,
        *,
        through: FaultProxy | None = None,
        name: str = "operator",
        env: dict[str, str] | None = None,
        ready: bool = True,
        changes: Sequence[str] = (),
    ) -> Operator: ...


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
