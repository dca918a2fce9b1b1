"""kube-apiserver and etcd alone, for integration tests and benchmarks: no node, no controller.

    with ControlPlane() as plane:
        use(plane.url, plane.ca_file, plane.admin_token)

Both listen on free loopback ports, keep everything in a temporary directory and are killed by
the kernel when this process ends, however it ends.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from localcluster import builds, host, process, progress

READY_SECONDS = 180.0
STOP_SECONDS = 10.0
POLL_SECONDS = 0.05
# Between choosing a free port and listening on it, another process may take it.
START_ATTEMPTS = 3
ADMIN = "admin"
# Has all tests run against the API server of another version of Kubernetes.
APISERVER_VARIABLE = "SANDBOXPOOL_APISERVER"
# Services have addresses of the API server's own family; by whether that is IPv6.
SERVICES = {False: "10.96.0.0/16", True: "fd00:10:96::/112"}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class ControlPlane:
    """A fresh API server with its own etcd.

    Attributes:
        url: Base URL of the API server.
        ca_file: Certificate that the API server's certificate is verified with.
        admin_token: Bearer token of a user in the group system:masters.
        kubeconfig: File with all of this for clients that want a kubeconfig.
        directory: Temporary directory of the data and the logs.
    """

    def __init__(
        self,
        *,
        users: Mapping[str, Sequence[str]] | None = None,
        apiserver_args: Sequence[str] = (),
        etcd_args: Sequence[str] = (),
        ready_seconds: float = READY_SECONDS,
        apiserver: str | None = None,
        address: str = "127.0.0.1",
    ) -> None:
        """Prepare a control plane; nothing runs before `start`.

        Args:
            users: Further users (name -> groups) that get a token; RBAC says what they may do.
            apiserver_args: Further flags of kube-apiserver; a later flag wins.
            etcd_args: Further flags of etcd.
            ready_seconds: How long the start may take.
            apiserver: Which binary of `builds.BINARIES`; by default what the environment variable
                SANDBOXPOOL_APISERVER names, otherwise that of the local cluster's version.
            address: Loopback address of the API server; "::1" makes it one of IPv6 only.
        """
        self.url = ""
        self.admin_token = secrets.token_hex(16)
        self.directory = Path()
        self.ca_file = Path()
        self.kubeconfig = Path()
        self._users = {ADMIN: ["system:masters"], **{k: list(v) for k, v in (users or {}).items()}}
        self._tokens = {name: secrets.token_hex(16) for name in self._users}
        self._tokens[ADMIN] = self.admin_token
        self._apiserver_args = list(apiserver_args)
        self._etcd_args = list(etcd_args)
        self._ready_seconds = ready_seconds
        self._binary = apiserver or os.environ.get(APISERVER_VARIABLE) or "kube-apiserver"
        self._address = address
        self._etcd: subprocess.Popen[bytes] | None = None
        self._apiserver: subprocess.Popen[bytes] | None = None
        self._etcd_url = ""
        self._port = 0

    def __enter__(self) -> Self:
        """Start and return the control plane."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop everything and remove the directory."""
        self.stop()

    def start(self) -> None:
        """Start etcd and the API server and wait until it is ready.

        Raises:
            StepError: One of them did not start; the text ends with the tail of its log.
        """
        if self._apiserver is not None:
            raise RuntimeError("this control plane has been started already")
        host.ensure_commands({"setpriv": "util-linux", "openssl": "openssl"})
        binaries = builds.ensure(["etcd", self._binary])
        for attempt in range(1, START_ATTEMPTS + 1):
            try:
                self._prepare()
                self._start_etcd(binaries["etcd"])
                self.start_apiserver()
            except progress.StepError as error:
                self.stop()
                if "address already in use" not in str(error) or attempt == START_ATTEMPTS:
                    raise
            except BaseException:
                self.stop()
                raise
            else:
                return

    def stop(self) -> None:
        """Stop both and remove the data; harmless when nothing runs."""
        self.stop_apiserver(kill=True)
        if self._etcd is not None:
            process.terminate(self._etcd, grace=STOP_SECONDS)
            self._etcd = None
        if self.directory != Path():
            shutil.rmtree(self.directory, ignore_errors=True)

    def stop_apiserver(self, *, kill: bool = False) -> None:
        """Stop the API server and keep etcd, its port and its data.

        Args:
            kill: End it at once instead of letting it finish its requests.
        """
        if self._apiserver is None:
            return
        if kill:
            self._apiserver.kill()
        process.terminate(self._apiserver, grace=STOP_SECONDS)
        self._apiserver = None

    def restart_apiserver(self, *, kill: bool = False, downtime: float = 0.0) -> None:
        """Stop the API server and start it again on the same port with the same data."""
        self.stop_apiserver(kill=kill)
        time.sleep(downtime)
        self.start_apiserver()

    def start_apiserver(self) -> None:
        """Start the API server that `stop_apiserver` stopped, and wait until it is ready."""
        binary = builds.location(self._binary)
        log = self.directory / "kube-apiserver.log"
        key = self.directory / "service-account.key"
        self._apiserver = process.spawn(
            [
                str(binary),
                f"--etcd-servers={self._etcd_url}",
                f"--bind-address={self._address}",
                f"--advertise-address={self._address}",
                f"--secure-port={self._port}",
                f"--cert-dir={self.directory / 'certificates'}",
                f"--token-auth-file={self.directory / 'tokens.csv'}",
                "--authorization-mode=RBAC",
                f"--service-account-key-file={key}",
                f"--service-account-signing-key-file={key}",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-cluster-ip-range={SERVICES[':' in self._address]}",
                "--endpoint-reconciler-type=none",
                # Nobody creates the default service accounts that this plugin waits for.
                "--disable-admission-plugins=ServiceAccount",
                *self._apiserver_args,
            ],
            log=log,
        )
        self._await("kube-apiserver", self._apiserver, log, self._ready)

    def pause_etcd(self) -> None:
        """Freeze etcd: nothing is written or read any more, and all connections stay."""
        self._signal_etcd(signal.SIGSTOP)

    def resume_etcd(self) -> None:
        """Let a frozen etcd go on."""
        self._signal_etcd(signal.SIGCONT)

    def _signal_etcd(self, number: signal.Signals) -> None:
        if self._etcd is None:
            raise RuntimeError("this control plane does not run")
        self._etcd.send_signal(number)

    def kubeconfig_for(self, user: str) -> Path:
        """Write a kubeconfig for one of the users given at the start and return its path."""
        return self._write_kubeconfig(user, self._tokens[user])

    def kubeconfig_for_service_account(
        self, namespace: str, name: str, *, seconds: int = 86400
    ) -> Path:
        """Write a kubeconfig with a fresh token of an existing service account."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        kind = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"}
        answer = self.request("POST", path, {**kind, "spec": {"expirationSeconds": seconds}})
        return self._write_kubeconfig(f"{namespace}.{name}", str(answer["status"]["token"]))

    def request(self, method: str, path: str, body: object = None, *, user: str = "") -> Any:
        """Send one request and return the decoded answer; for set-up, not speed.

        Args:
            method: The HTTP method.
            path: The path, with its query.
            body: What to send, as JSON.
            user: In whose name, with the admin's rights; the admin's own if empty.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method)
        request.add_header("Authorization", f"Bearer {self.admin_token}")
        request.add_header("Content-Type", "application/json")
        if user:
            request.add_header("Impersonate-User", user)
            request.add_header("Impersonate-Group", "system:masters")
        context = ssl.create_default_context(cafile=str(self.ca_file))
        with urllib.request.urlopen(request, timeout=10, context=context) as response:
            text = response.read().decode()
        return json.loads(text) if text.startswith("{") else text

    def _prepare(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="localcluster-controlplane-"))
        self._port = _free_port()
        host = f"[{self._address}]" if ":" in self._address else self._address
        self.url = f"https://{host}:{self._port}"
        self.ca_file = self.directory / "certificates" / "apiserver.crt"
        lines = [
            f'{self._tokens[name]},{name},{name},"{",".join(groups)}"\n'
            for name, groups in self._users.items()
        ]
        (self.directory / "tokens.csv").write_text("".join(lines))
        key = self.directory / "service-account.key"
        process.run(["openssl", "genrsa", "-out", str(key), "2048"], timeout=60)
        self.kubeconfig = self._write_kubeconfig(ADMIN, self.admin_token)

    def _start_etcd(self, binary: Path) -> None:
        log = self.directory / "etcd.log"
        self._etcd_url, peer = (f"http://127.0.0.1:{_free_port()}" for _ in range(2))
        self._etcd = process.spawn(
            [
                str(binary),
                f"--data-dir={self.directory / 'etcd'}",
                f"--listen-client-urls={self._etcd_url}",
                f"--advertise-client-urls={self._etcd_url}",
                f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster=default={peer}",
                "--unsafe-no-fsync",
                "--log-level=warn",
                *self._etcd_args,
            ],
            log=log,
        )
        self._await("etcd", self._etcd, log, self._etcd_ready)

    def _etcd_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._etcd_url}/health", timeout=2) as response:
                return b"true" in response.read()
        except OSError:
            return False

    def _ready(self) -> bool:
        try:
            return self.ca_file.exists() and self.request("GET", "/readyz") == "ok"
        except (OSError, urllib.error.HTTPError):
            return False

    def _await(
        self, name: str, child: subprocess.Popen[bytes], log: Path, ready: Callable[[], bool]
    ) -> None:
        deadline = time.monotonic() + self._ready_seconds
        while time.monotonic() < deadline:
            if child.poll() is not None:
                raise progress.StepError(name, f"it ended with status {child.returncode}", log)
            if ready():
                return
            time.sleep(POLL_SECONDS)
        raise progress.StepError(name, f"not ready after {self._ready_seconds:.0f} s", log)

    def _write_kubeconfig(self, user: str, token: str) -> Path:
        # The path of the certificate, not its content: it exists only once the server runs.
        cluster = {"server": self.url, "certificate-authority": str(self.ca_file)}
        context = {"cluster": "local", "user": user}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "local", "cluster": cluster}],
            "users": [{"name": user, "user": {"token": token}}],
            "contexts": [{"name": "local", "context": context}],
            "current-context": "local",
        }
        path = self.directory / f"{user}.kubeconfig"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        path.chmod(0o600)
        return path


def run_in_foreground() -> None:
    """Run a control plane until SIGINT or SIGTERM; prints the path of its kubeconfig."""
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with ControlPlane() as plane:
        print(plane.kubeconfig, flush=True)
        stopped.wait()
