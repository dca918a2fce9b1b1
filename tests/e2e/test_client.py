"""The Python client against real kubelets, gVisor and the operator."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from localcluster import nodes
from sandboxpool.client import (
    AccessDenied,
    ApiError,
    AsyncSandboxPools,
    BindTimeout,
    ClaimConflict,
    ClaimRefused,
    CommandNotStarted,
    CommandTimeout,
    ConnectionLost,
    FileError,
    FilesUnsupported,
    NoWarmSandbox,
    OutputLimitExceeded,
    PoolNotFound,
    RuntimeMismatch,
    Sandbox,
    SandboxExpired,
    SandboxLost,
    SandboxPoolError,
    SandboxPools,
    SecretsUnsupported,
)
from support import Api, eventually
from support.deployed import DeployedOperator
from support.realnodes import GVISOR, RUNC, pool, template
from support.sandboxes import pool_status

Object = dict[str, Any]

BINARY = bytes(range(256)) * 4096
RBAC = "rbac.authorization.k8s.io"
CONTROL_PLANE = "sandboxpool-control-plane"
WEB = "mkdir -p /data/www; echo hello > /data/www/index.html; httpd -f -p 8080 -h /data/www"


def with_volumes(**container: Any) -> Object:
    """A template with a memory volume for secrets and one for data."""
    made = template(
        volumes=[
            {"name": "secrets", "emptyDir": {"medium": "Memory"}},
            {"name": "data", "emptyDir": {}},
        ]
    )
    made["spec"]["containers"][0] |= {
        "volumeMounts": [
            {"name": "secrets", "mountPath": "/secrets"},
            {"name": "data", "mountPath": "/data"},
        ],
        **container,
    }
    return made


def warm(api: Api, name: str = "python", replicas: int = 1, **spec: Any) -> None:
    api.create(pool(name, replicas=replicas, **{"pod": with_volumes(), **spec}))
    pool_status(api, name=name, warm=replicas, timeout=90)


@pytest.fixture
def pools(kubeconfig: Path, namespace: str) -> Iterator[SandboxPools]:
    with SandboxPools.from_config(kubeconfig=kubeconfig, namespace=namespace) as made:
        yield made


@pytest.fixture
def python(api: Api, pools: SandboxPools) -> Iterator[Sandbox]:
    """A sandbox of a pool of gVisor."""
    warm(api)
    with pools.claim("python", ttl=600) as sandbox:
        yield sandbox


def gone(api: Api, kind: str, name: str) -> None:
    eventually(lambda: api.find(kind, name) is None, message=f"{kind} {name} is gone", timeout=60)


@contextlib.contextmanager
def serving(sandbox: Sandbox) -> Iterator[None]:
    """A web server on port 8080 of the sandbox."""
    with sandbox.stream(["sh", "-c", WEB]):
        eventually(
            lambda: sandbox.run(["sh", "-c", "nc 127.0.0.1 8080 </dev/null"]).exit_code == 0,
            message="the web server listens",
            timeout=30,
        )
        yield


def fetch(address: tuple[str, int]) -> bytes:
    with urllib.request.urlopen(f"http://{address[0]}:{address[1]}/", timeout=20) as answer:
        return bytes(answer.read())


# Claims.


def test_a_claimed_sandbox_runs_commands_and_is_gone_afterwards(
    api: Api, pools: SandboxPools
) -> None:
    warm(api)
    with pools.claim("python", ttl=600, secrets={"token": "s3cret"}) as sandbox:
        info = sandbox.info
        assert (info.runtime_class, info.handler, info.source) == (GVISOR, "runsc", "Warm")
        assert "kernel of its own" in info.evidence
        assert info.ips
        assert info.node
        assert info.expires_at is not None
        assert info.bound_at is not None
        assert (info.expires_at - info.bound_at).total_seconds() == 600
        assert "gvisor" in sandbox.run(["uname", "-a"]).text
        result = sandbox.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
        assert (result.stdout, result.stderr, result.exit_code) == (b"out\n", b"err\n", 3)
        assert sandbox.run(["sh", "-c", "kill -9 $$"]).exit_code == 137
        assert sandbox.run(["cat"], stdin=BINARY).stdout == BINARY
        secret = sandbox.run(["sh", "-c", "cat /secrets/token; stat -c %a /secrets/token"])
        assert secret.text == "s3cret600\n"
        before = info.expires_at
        after = sandbox.extend(300).expires_at
        assert after is not None
        assert (after - before).total_seconds() == 300
        commands = [["sh", "-c", f"sleep 1; echo {number}; exit {number}"] for number in range(8)]
        with ThreadPoolExecutor(len(commands)) as threads:
            results = list(threads.map(sandbox.run, commands))
        assert [result.exit_code for result in results] == list(range(8))
        assert [result.text for result in results] == [f"{number}\n" for number in range(8)]
    assert api.find("SandboxClaim", info.claim) is None
    gone(api, "Pod", info.pod)
    with pytest.raises(SandboxLost, match="was deleted"):
        sandbox.run(["true"])


async def test_the_same_over_asyncio(api: Api, kubeconfig: Path, namespace: str) -> None:
    warm(api, replicas=2)
    async with AsyncSandboxPools.from_config(kubeconfig=kubeconfig, namespace=namespace) as pools:
        async with pools.claim("python", secrets={"token": b"s3cret"}) as sandbox:
            assert "gvisor" in (await sandbox.run(["uname", "-a"])).text
            assert (await sandbox.run(["cat"], stdin=BINARY)).stdout == BINARY
            assert (await sandbox.run(["cat", "/secrets/token"])).stdout == b"s3cret"
            commands = [["sh", "-c", f"sleep 1; exit {number}"] for number in range(8)]
            results = await asyncio.gather(*map(sandbox.run, commands))
            assert [result.exit_code for result in results] == list(range(8))
            await sandbox.write("/data/a b/ü.bin", BINARY)
            assert await sandbox.read("/data/a b/ü.bin") == BINARY
            command = sandbox.stream(["cat"], stdin=True)
            async with command:
                chunks = aiter(command)
                await command.send(b"one")
                assert (await anext(chunks)).data == b"one"
                await command.end_input()
                assert [chunk async for chunk in chunks] == []
            assert command.exit_code == 0
            with pytest.raises(CommandTimeout):
                await sandbox.run(["sleep", "60"], timeout=1)
            with pytest.raises(CommandNotStarted, match="no-such-program"):
                await sandbox.run(["no-such-program"])
            async with sandbox.stream(["sh", "-c", WEB]), sandbox.forward(8080) as address:
                for _ in range(50):
                    with contextlib.suppress(OSError):
                        if await asyncio.to_thread(fetch, address) == b"hello\n":
                            break
                    await asyncio.sleep(0.2)
                assert await asyncio.to_thread(fetch, address) == b"hello\n"
            assert (await sandbox.extend(60)).expires_at is not None
        async with pools.claim_many("python", 2, timeout=90) as two:
            assert len({sandbox.info.pod for sandbox in two}) == 2
        waiting = asyncio.ensure_future(sandbox.run(["true"]))
        with pytest.raises(SandboxLost):
            await waiting
        task = asyncio.ensure_future(_hold(pools))
        eventually_bound = time.monotonic() + 60
        while not await asyncio.to_thread(api.list, "SandboxClaim"):
            assert time.monotonic() < eventually_bound
            await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert api.list("SandboxClaim") == []


async def _hold(pools: AsyncSandboxPools) -> None:
    async with pools.claim("python") as sandbox:
        await sandbox.run(["sleep", "600"])


def test_a_given_name_is_the_same_claim(api: Api, pools: SandboxPools) -> None:
    warm(api)
    first = pools.claim("python", "mine", keep=True)
    with first:
        first.write("/data/note", b"kept")
    assert api.find("SandboxClaim", "mine") is not None
    with pytest.raises(ClaimConflict, match=r"exists with spec\.poolName 'python'"):
        pools.claim("another", "mine")
    assert api.find("SandboxClaim", "mine") is not None
    with pools.attach("mine") as attached:
        assert attached.read("/data/note") == b"kept"
    with pools.claim("python", "mine") as again:
        assert again.info.pod_uid == first.info.pod_uid
    assert api.find("SandboxClaim", "mine") is None


def test_many_claims_are_all_bound_or_none(api: Api, pools: SandboxPools) -> None:
    warm(api, replicas=2, maxSandboxes=3)
    with pools.claim_many("python", 2, timeout=60) as sandboxes:
        assert [sandbox.run(["true"]).exit_code for sandbox in sandboxes] == [0, 0]
    assert api.list("SandboxClaim") == []
    with pytest.raises(BindTimeout) as error:
        pools.claim_many("python", 4, timeout=8)
    assert "of 4 claims had a sandbox" in error.value.__notes__[0]
    assert api.list("SandboxClaim") == []


def test_a_claim_that_fails_reports_the_cause_and_leaves_nothing(
    api: Api, admin: Api, pools: SandboxPools
) -> None:
    api.create(pool("empty", replicas=0))
    warm(api)
    with pytest.raises(PoolNotFound, match="'nowhere' does not exist") as unknown:
        pools.claim("nowhere")
    assert unknown.value.reason == "PoolNotFound"
    with pytest.raises(PoolNotFound, match="namespace="):
        # The pool is there, but in another namespace.
        pools.claim("python", namespace="default")
    with pytest.raises(NoWarmSandbox, match="replicas") as none:
        pools.claim("empty", on_empty="Fail")
    assert none.value.reason == "NoWarmSandbox"
    with pytest.raises(BindTimeout, match="not bound within") as late:
        pools.claim("empty", bind_timeout=1)
    assert late.value.reason == "BindTimeout"
    with pytest.raises(RuntimeMismatch, match="'kata'") as other:
        pools.claim("python", runtime_class="kata")
    assert other.value.reason == "RuntimeClassMismatch"
    with pytest.raises(ClaimRefused, match="not allowed"):
        pools.claim("python", pod_labels={"example.com/team": "a"})
    with pytest.raises(ApiError, match="ttlSeconds"):
        pools.claim("python", ttl=0)
    with pools.claim("empty", on_empty="Create", bind_timeout=90) as cold:
        assert cold.info.source == "Cold"
        with pytest.raises(SecretsUnsupported, match="emptyDir"):
            pools.claim("empty", on_empty="Create", bind_timeout=90, secrets={"token": b"x"})
    assert api.list("SandboxClaim") == []
    assert admin.list("SandboxClaim", "default") == []


def test_rights_that_are_missing_are_named(
    api: Api, admin: Api, kubeconfig: Path, namespace: str, tmp_path: Path
) -> None:
    warm(api, replicas=1)
    api.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "app"}})
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/app/token"
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    token = admin.raw("POST", path, request)["status"]["token"]
    config = yaml.safe_load(kubeconfig.read_text())
    config["users"][0]["user"] = {"token": token}
    file = tmp_path / "kubeconfig"
    file.write_text(yaml.safe_dump(config))
    with SandboxPools.from_config(kubeconfig=file, namespace=namespace) as pools:
        with pytest.raises(AccessDenied) as none:
            pools.claim("python")
        denied = none.value
        assert (denied.verb, denied.resource) == ("create", "sandboxclaims.sandboxpool.io")
        assert namespace in denied.message
        rules = [
            {
                "apiGroups": ["sandboxpool.io"],
                "resources": ["sandboxclaims"],
                "verbs": ["create", "get", "list", "watch", "patch", "delete"],
            }
        ]
        grant(api, rules)
        sandbox = eventually(
            lambda: attempt(lambda: pools.claim("python", keep=True)),
            until=lambda made: made is not None,
            message="the role takes effect",
            timeout=20,
        )
        assert sandbox is not None
        with sandbox, pytest.raises(AccessDenied) as some:
            sandbox.run(["true"])
        assert some.value.resource == "pods/exec"
        sandbox.release()
        bind(api, "ClusterRole", CLIENT_ROLE)
        eventually(
            lambda: admin.raw("POST", REVIEWS, review(namespace))["status"]["allowed"],
            message="the chart's role takes effect",
            timeout=20,
        )
        pool_status(api, name="python", warm=1, timeout=90)
        with pools.claim("python", secrets={"token": b"x"}) as whole:
            whole.write("/data/file", BINARY)
            assert whole.read("/data/file") == BINARY
            assert whole.extend(60).expires_at is not None
            with serving(whole), whole.forward(8080) as address:
                assert fetch(address) == b"hello\n"


CLIENT_ROLE = "sandboxpool-client"
REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"


def review(namespace: str) -> Object:
    """Asks whether the service account may do the last thing that the role allows."""
    asked = {"verb": "create", "resource": "pods", "subresource": "portforward"}
    return {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": f"system:serviceaccount:{namespace}:app",
            "resourceAttributes": {"namespace": namespace, **asked},
        },
    }


def grant(api: Api, rules: list[Object]) -> None:
    api.create(
        {"apiVersion": f"{RBAC}/v1", "kind": "Role", "metadata": {"name": "app"}, "rules": rules}
    )
    bind(api, "Role", "app")


def bind(api: Api, kind: str, name: str) -> None:
    api.create(
        {
            "apiVersion": f"{RBAC}/v1",
            "kind": "RoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": RBAC, "kind": kind, "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": "app"}],
        }
    )


def attempt(work: Callable[[], Sandbox]) -> Sandbox | None:
    try:
        return work()
    except AccessDenied:
        return None


# Whoever starts the tests in the background of a shell has them ignore SIGINT, which processes
# inherit: Python then raises no KeyboardInterrupt.
APPLICATION = """\
import signal, sys
from sandboxpool.client import SandboxPools
signal.signal(signal.SIGINT, signal.default_int_handler)
pools = SandboxPools.from_config(kubeconfig=sys.argv[1], namespace=sys.argv[2])
print("begins", flush=True)
with pools.claim("python") as sandbox:
    print("claimed", flush=True)
    sandbox.run(["sleep", "600"])
"""


@contextlib.contextmanager
def application(kubeconfig: Path, namespace: str) -> Iterator[subprocess.Popen[bytes]]:
    """An application that claims a sandbox and works in it until it is interrupted."""
    command = [sys.executable, "-c", APPLICATION, str(kubeconfig), namespace]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as app:
        try:
            yield app
        finally:
            # The end of the block waits for it, for as long as it takes.
            app.kill()


def expect_line(app: subprocess.Popen[bytes], line: bytes) -> None:
    assert app.stdout is not None
    ready, _, _ = select.select([app.stdout], [], [], 60)
    assert ready, f"{line!r} has not come"
    assert app.stdout.readline() == line


def interrupt(app: subprocess.Popen[bytes]) -> None:
    app.send_signal(signal.SIGINT)
    _, said = app.communicate(timeout=30)
    assert b"KeyboardInterrupt" in said


def test_ctrl_c_releases_the_sandbox(api: Api, kubeconfig: Path, namespace: str) -> None:
    warm(api)
    with application(kubeconfig, namespace) as app:
        expect_line(app, b"begins\n")
        expect_line(app, b"claimed\n")
        assert len(api.list("SandboxClaim")) == 1
        interrupt(app)
    assert api.list("SandboxClaim") == []


def test_ctrl_c_takes_back_a_claim_that_waits(api: Api, kubeconfig: Path, namespace: str) -> None:
    api.create(pool("python", replicas=0))
    with application(kubeconfig, namespace) as app:
        expect_line(app, b"begins\n")
        eventually(lambda: api.list("SandboxClaim"), message="a claim", timeout=30)
        interrupt(app)
    assert api.list("SandboxClaim") == []


# Commands.


def test_output_comes_while_the_command_runs_and_input_can_end(python: Sandbox) -> None:
    with python.stream(
        ["sh", "-c", "echo first; read line; echo got $line; cat"], stdin=True
    ) as run:
        chunks = iter(run)
        assert next(chunks).data == b"first\n"
        before = run.exit_code
        assert before is None
        run.send("schön\n".encode())
        assert next(chunks).data == "got schön\n".encode()
        run.send(b"rest")
        assert next(chunks).data == b"rest"
        run.end_input()
        assert list(chunks) == []
    assert run.exit_code == 0
    with python.stream(["sh", "-c", "test -t 1 && stty size"], stdin=True, tty=True) as terminal:
        assert b"".join(chunk.data for chunk in terminal)


def test_commands_that_go_wrong_say_how(python: Sandbox) -> None:
    with pytest.raises(CommandNotStarted, match="no-such-program"):
        python.run(["no-such-program"])
    with pytest.raises(CommandTimeout) as late:
        python.run(["sh", "-c", "echo begun; exec sleep 60"], timeout=2)
    assert late.value.stdout == b"begun\n"
    with pytest.raises(OutputLimitExceeded, match="more than 100000 bytes") as much:
        python.run(["cat", "/dev/zero"], limit=100_000)
    assert len(much.value.stdout) > 100_000
    with pytest.raises(TypeError, match="list of arguments"):
        python.run("ls /")


def test_input_that_is_not_read_holds_nothing_up(python: Sandbox) -> None:
    assert python.run(["true"], stdin=bytes(32 << 10)).exit_code == 0
    # Where it is too much for a pipe, containerd may wait for ever, and the time limit ends it, or
    # a server on the way drops the connection, and how the command ended is unknown.
    with contextlib.suppress(CommandTimeout, ConnectionLost):
        assert python.run(["true"], stdin=bytes(8 << 20), timeout=5).exit_code == 0
    for _ in range(8):
        with pytest.raises(FileError, match="/proc/absent"):
            python.write("/proc/absent/file", bytes(8 << 20))


def test_a_terminating_sandbox_ends_the_command_with_the_cause(
    api: Api, pools: SandboxPools
) -> None:
    warm(api)
    with pools.claim("python") as sandbox:
        with sandbox.stream(["sh", "-c", "echo begun; exec sleep 600"]) as command:
            chunks = iter(command)
            assert next(chunks).data == b"begun\n"
            api.delete("Pod", sandbox.info.pod)
            with pytest.raises(SandboxLost, match="claim another") as lost:
                list(chunks)
        assert lost.value.reason == "PodDeleted"


def test_an_expired_sandbox_is_reported_as_expired(api: Api, pools: SandboxPools) -> None:
    warm(api)
    with pools.claim("python", ttl=3) as sandbox:
        with pytest.raises(SandboxExpired, match="extend") as expired:
            sandbox.run(["sleep", "600"])
        assert expired.value.reason == "TTLExpired"
        with pytest.raises(SandboxExpired):
            sandbox.extend(60)


# Files.


def test_files_and_folders_arrive_as_they_are(python: Sandbox, tmp_path: Path) -> None:
    odd = "/data/with space/ünï\tcode.bin"
    python.write(odd, BINARY, mode=0o600)
    assert python.read(odd) == BINARY
    python.write(odd, b"")
    assert python.read(odd) == b""
    large = os.urandom(64 << 20)
    python.write("/data/large", io.BytesIO(large))
    back = io.BytesIO()
    python.read("/data/large", back)
    assert back.getvalue() == large
    python.run(["rm", "/data/large"]).check()

    folder = tmp_path / "folder"
    (folder / "a b" / ("n" * 120)).mkdir(parents=True)
    (folder / "a b" / ("n" * 120) / "ü").write_bytes(BINARY)
    (folder / "empty").mkdir()
    (folder / "run.sh").write_text("#!/bin/sh\necho it runs\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "link").symlink_to("run.sh")
    python.write("/data/some folder", folder)
    assert python.run(["/data/some folder/link"]).text == "it runs\n"
    copy = tmp_path / "copy"
    python.read("/data/some folder", copy)
    assert tree(copy) == tree(folder)
    python.read("/data/some folder/run.sh", tmp_path / "one")
    assert (tmp_path / "one").read_text() == (folder / "run.sh").read_text()

    with pytest.raises(FileError, match="No such file"):
        python.read("/data/absent")
    with pytest.raises(FileError, match="directory"):
        python.write("/data", b"x")
    with pytest.raises(FileError, match="larger than 1000 bytes"):
        python.read("/dev/zero", limit=1000)


def tree(folder: Path) -> dict[str, bytes | str | None]:
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else None
        if path.is_dir()
        else path.read_bytes()
        for path in folder.rglob("*")
    }


def test_files_work_without_tar_and_say_so_without_a_shell(
    api: Api, pools: SandboxPools, tmp_path: Path
) -> None:
    def busybox(script: str) -> Object:
        # Where the root file system can be written to, an image is what is left in it.
        script = f"{script}; exec /bin/busybox sleep infinity"
        return with_volumes(command=["/bin/busybox", "sh", "-c", script])

    api.create(pool("no-tar", pod=busybox("rm /bin/tar")))
    api.create(pool("no-shell", pod=busybox("rm /bin/tar /bin/sh /bin/ash /bin/cat")))
    pool_status(api, name="no-tar", warm=1, timeout=90)
    pool_status(api, name="no-shell", warm=1, timeout=90)
    folder = tmp_path / "folder"
    (folder / "a b").mkdir(parents=True)
    (folder / "a b" / "ü").write_bytes(BINARY)
    (folder / "empty").mkdir()
    with pools.claim("no-tar") as sandbox:
        with pytest.raises(CommandNotStarted):
            sandbox.run(["tar", "--help"])
        sandbox.write("/data/x y/ü.bin", io.BytesIO(BINARY), mode=0o640)
        assert sandbox.read("/data/x y/ü.bin") == BINARY
        assert sandbox.run(["stat", "-c", "%a", "/data/x y/ü.bin"]).text == "640\n"
        sandbox.write("/data/folder", folder)
        sandbox.read("/data/folder", tmp_path / "copy")
        assert tree(tmp_path / "copy") == tree(folder)
        with pytest.raises(FileError, match="directory"):
            sandbox.write("/data", b"x")
        with pytest.raises(FileError, match="No such file"):
            sandbox.read("/data/absent", tmp_path / "absent")
    with pools.claim("no-shell") as sandbox:
        assert sandbox.run(["echo", "alive"]).text == "alive\n"
        with pytest.raises(FilesUnsupported, match="neither tar nor a shell"):
            sandbox.write("/data/file", b"x")
        with pytest.raises(FilesUnsupported, match="cat"):
            sandbox.read("/etc/passwd")
        with pytest.raises(FilesUnsupported, match="neither tar nor a shell"):
            sandbox.read("/data", tmp_path / "none")


# Ports.


@pytest.mark.parametrize("runtime_class", [GVISOR, RUNC])
def test_a_port_is_forwarded(api: Api, pools: SandboxPools, runtime_class: str) -> None:
    warm(api, runtime_class=runtime_class)
    with pools.claim("python") as sandbox:
        large = os.urandom(4 << 20)
        with serving(sandbox), sandbox.forward(8080) as address:
            assert fetch(address) == b"hello\n"
            sandbox.write("/data/www/index.html", large)
            with ThreadPoolExecutor(4) as threads:
                answers = list(threads.map(fetch, [address] * 4))
            assert all(answer == large for answer in answers)
        forward = sandbox.forward(9)
        with forward as address:
            with pytest.raises((urllib.error.URLError, ConnectionError)):
                fetch(address)
            error = eventually(
                lambda: forward.error, until=lambda said: said is not None, message="it says why"
            )
        assert "port 9" in str(error)


# The way there.


class Proxy:
    """An HTTP proxy that knows CONNECT."""

    def __init__(self) -> None:
        self.targets: list[str] = []
        self._sockets: list[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            head = b""
            while b"\r\n\r\n" not in head:
                head += client.recv(4096)
            target = head.split()[1].decode()
            self.targets.append(target)
            host, _, port = target.rpartition(":")
            server = socket.create_connection((host, int(port)))
            self._sockets += [client, server]
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            for pair in ((client, server), (server, client)):
                threading.Thread(target=self._copy, args=pair, daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        for end in [self._server, *self._sockets]:
            end.close()


def test_it_works_through_a_proxy_and_from_another_context(
    api: Api, kubeconfig: Path, namespace: str, tmp_path: Path
) -> None:
    warm(api)
    proxy = Proxy()
    config = yaml.safe_load(kubeconfig.read_text())
    server = config["clusters"][0]["cluster"]["server"]
    config["clusters"][0]["cluster"]["proxy-url"] = f"http://127.0.0.1:{proxy.port}"
    context = config["contexts"][0]["context"] | {"namespace": namespace}
    config["contexts"].append({"name": "mine", "context": context})
    config["clusters"].append(
        {"name": "away", "cluster": {"server": "https://127.0.0.1:1"}},
    )
    config["contexts"].append(
        {"name": "away", "context": context | {"cluster": "away"}},
    )
    config["current-context"] = "away"
    file = tmp_path / "kubeconfig"
    file.write_text(yaml.safe_dump(config))
    try:
        there = SandboxPools.from_config("mine", kubeconfig=file)
        with there, there.claim("python") as sandbox:
            assert sandbox.run(["cat"], stdin=BINARY).stdout == BINARY
        assert set(proxy.targets) == {server.removeprefix("https://")}
        away = SandboxPools.from_config(kubeconfig=file)
        with away, pytest.raises(ConnectionLost, match="cannot be reached"):
            away.claim("python")
    finally:
        proxy.close()


def test_an_api_server_that_restarts_ends_a_stream_and_not_the_sandbox(
    api: Api, deployed: DeployedOperator, pools: SandboxPools
) -> None:
    warm(api)
    with deployed.log_set_aside() as log, pools.claim("python") as sandbox:
        with sandbox.stream(["sh", "-c", "echo begun; exec sleep 600"]) as command:
            chunks = iter(command)
            assert next(chunks).data == b"begun\n"
            nodes.exec_on(CONTROL_PLANE, "sh", "-c", "kill -9 $(pidof kube-apiserver)")
            with pytest.raises(ConnectionLost, match="unknown"):
                list(chunks)
        eventually(lambda: answers(sandbox), message="the API server is back", timeout=90)
        assert sandbox.run(["echo", "still here"]).text == "still here\n"
    # kopf and Kubernetes' own rights may complain meanwhile; the operator's own code may not.
    assert [line for line in log if '"ERROR"' in line and '"logger": "sandboxpool' in line] == []
    # Scheduler, kubelet and operator do their work.
    warm(api, "afterwards")
    with pools.claim("afterwards") as another:
        assert another.run(["true"]).exit_code == 0


def answers(sandbox: Sandbox) -> bool:
    try:
        sandbox.refresh()
    except SandboxPoolError:
        return False
    return True
