"""The Docker engine: the one that answers already, or one of our own beside it.

An engine of our own has its own data, sockets, process and network, so it does not meet another
one. Its data directory stays in the cache when the engine stops: it holds the node image.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from localcluster import firewall, host, paths, process, progress

NETWORK = "sandboxpool"
BRIDGE = "sbxpool0"
# The label of what is created in an engine that others use too.
CREATED = "sandboxpool.io/local-cluster"
ADDRESS_POOL = "10.231.0.0/16"
# A containerd that the machine runs for others is shared, but not its namespaces.
NAMESPACES = (
    "--containerd-namespace=sandboxpool",
    "--containerd-plugins-namespace=sandboxpool-plugins",
)
START_SECONDS = 180.0
STOP_SECONDS = 45.0
COMMAND_SECONDS = 180.0
PULL_SECONDS = 900.0

# The engine outlives this process; a Popen that is collected while its child runs is a warning.
_OUTLIVING: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True)
class Engine:
    """An engine in use: where it listens ("" = where the client looks) and whether it is ours."""

    docker_host: str
    owned: bool

    @property
    def env(self) -> dict[str, str]:
        """Return the variables that make docker and kind talk to this engine."""
        own = {"DOCKER_HOST": self.docker_host} if self.docker_host else {}
        return {**own, "KIND_EXPERIMENTAL_DOCKER_NETWORK": NETWORK, "DOCKER_BUILDKIT": "0"}

    def docker(
        self,
        *arguments: str,
        timeout: float = COMMAND_SECONDS,
        log: Path | None = None,
        stdin: str | None = None,
        stdin_file: Path | None = None,
        check: bool = True,
    ) -> str:
        """Run the Docker client and return what it prints."""
        return process.run(
            ["docker", *arguments],
            timeout=timeout,
            log=log,
            env=self.env,
            stdin=stdin,
            stdin_file=stdin_file,
            check=check,
        )

    def answers(self) -> bool:
        """Tell whether the engine responds."""
        try:
            self.docker("version", "--format", "{{.Server.Version}}", timeout=10)
        except process.CommandError:
            return False
        return True

    def has_image(self, tag: str) -> bool:
        """Tell whether the engine has an image."""
        return bool(self.docker("images", "-q", tag, check=False).strip())


def _record() -> Path:
    return paths.state_dir() / "engine.json"


def _data_root() -> Path:
    return paths.cache_dir() / "engine"


def current() -> Engine | None:
    """Return the engine that `acquire` chose, or None when it chose none or it is gone."""
    try:
        engine = Engine(**json.loads(_record().read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return engine if engine.answers() else None


def acquire(stock_image: str) -> Engine:
    """Return the engine to use: a running one that can pull the image, else one of our own."""
    if engine := current():
        return engine
    system = Engine(docker_host="", owned=False)
    if shutil.which("docker") and system.answers() and _can_pull(system, stock_image):
        engine = system
    else:
        engine = _start()
    _write(_record(), asdict(engine))
    return engine


def _can_pull(engine: Engine, image: str) -> bool:
    if engine.has_image(image):
        return True
    with progress.step(f"pull {image}") as step:
        try:
            engine.docker("pull", image, timeout=PULL_SECONDS, log=step.log)
        except process.CommandError as error:
            step.note(f"not possible, an image is built instead: {error}")
            return False
    return True


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _start() -> Engine:
    host.ensure_commands(
        {
            "dockerd": "docker.io",
            "docker": "docker.io",
            "runc": "runc",
            "iptables": "iptables",
            "ip": "iproute2",
        }
    )
    runtime = paths.runtime_dir()
    engine = Engine(docker_host=f"unix://{runtime}/docker.sock", owned=True)
    with progress.step("start a Docker engine") as step:
        host.require_root("starting a Docker engine")
        runtime.mkdir(parents=True, exist_ok=True)
        _data_root().mkdir(parents=True, exist_ok=True)
        before = paths.state_dir() / "firewall.json"
        if not before.exists():
            mounted = "yes" if _data_root().is_mount() else ""
            _write(before, {**firewall.snapshot(), "mounted": mounted})
        config = runtime / "daemon.json"
        _write(config, _configuration(runtime))
        log = paths.log_dir() / "dockerd.log"
        with log.open("wb") as stream:
            daemon = subprocess.Popen(
                ["dockerd", "--config-file", str(config), *NAMESPACES],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"},
            )
        _OUTLIVING.append(daemon)
        deadline = time.monotonic() + START_SECONDS
        while not engine.answers():
            if daemon.poll() is not None or time.monotonic() > deadline:
                daemon.terminate()
                raise progress.StepError(step.name, "dockerd does not answer", log)
            time.sleep(0.2)
    return engine


def _configuration(runtime: Path) -> dict[str, Any]:
    configuration: dict[str, Any] = {
        "data-root": str(_data_root()),
        "exec-root": str(runtime / "exec"),
        "pidfile": str(runtime / "dockerd.pid"),
        "hosts": [f"unix://{runtime}/docker.sock"],
        # Nothing uses the default network, and its bridge may be another engine's.
        "bridge": "none",
        "default-address-pools": [{"base": ADDRESS_POOL, "size": 24}],
        "exec-opts": ["native.cgroupdriver=cgroupfs"],
        "cgroup-parent": f"/{runtime.name}",
    }
    if not host.has_sys_resource():
        script = Path(__file__).with_name("runcwrapper.py")
        wrapper = runtime / "runc"
        wrapper.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{script}" "$@"\n')
        wrapper.chmod(0o755)
        configuration["runtimes"] = {"softened": {"path": str(wrapper)}}
        configuration["default-runtime"] = "softened"
    return configuration


def ensure_network(engine: Engine) -> None:
    """Create the network of the nodes, with a bridge that can be told from those of others."""
    if engine.docker("network", "ls", "-q", "--filter", f"name=^{NETWORK}$").strip():
        return
    engine.docker(
        *("network", "create", "--driver", "bridge", "--label", CREATED),
        *("--opt", f"com.docker.network.bridge.name={BRIDGE}"),
        *("--opt", "com.docker.network.bridge.enable_ip_masquerade=true"),
        NETWORK,
    )


def release() -> None:
    """Remove the network, and stop the engine if it is our own; the node image stays cached."""
    engine = current()
    if engine is not None:
        _remove_network(engine)
    if (engine is not None and engine.owned) or paths.runtime_dir().exists():
        with progress.step("stop the Docker engine") as step:
            _stop(step)
    _record().unlink(missing_ok=True)


def _remove_network(engine: Engine) -> None:
    # In another's engine a network of this name may have been there before.
    own = f"name=^{NETWORK}$" if engine.owned else f"label={CREATED}"
    for network in engine.docker("network", "ls", "-q", "--filter", own).split():
        engine.docker("network", "rm", network, check=False)


def _stop(step: progress.Step) -> None:
    runtime = paths.runtime_dir()
    for pid_file in (runtime / "dockerd.pid", runtime / "exec/containerd/containerd.pid"):
        _end(pid_file, runtime)
    record = paths.state_dir() / "firewall.json"
    before: dict[str, str] = json.loads(record.read_text()) if record.exists() else {}
    for point in _mounts_in(runtime, _data_root()):
        # An engine that was killed leaves its data directory mounted on itself.
        if point != str(_data_root()) or not before.get("mounted"):
            step.run(["umount", "-l", point], timeout=COMMAND_SECONDS, check=False)
    shutil.rmtree(runtime, ignore_errors=True)
    _remove_cgroups(runtime.name)
    if before:
        firewall.restore(before, BRIDGE)
        record.unlink()


def _end(pid_file: Path, runtime: Path) -> None:
    try:
        pid = int(pid_file.read_text())
        # The number may belong to another program by now.
        if str(runtime).encode() not in Path(f"/proc/{pid}/cmdline").read_bytes():
            return
        os.kill(pid, signal.SIGTERM)
    except (OSError, ValueError):
        return
    deadline = time.monotonic() + STOP_SECONDS
    while Path(f"/proc/{pid}").exists():
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            break
        time.sleep(0.1)


def _mounts_in(*roots: Path) -> list[str]:
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    inside = [p for p in points if any(f"{p}/".startswith(f"{root}/") for root in roots)]
    return sorted(inside, reverse=True)


def _remove_cgroups(name: str) -> None:
    tops = [path / name for path in Path("/sys/fs/cgroup").glob("*") if path.is_dir()]
    for top in [Path("/sys/fs/cgroup") / name, *tops]:
        if top.is_dir():
            for directory, _, _ in os.walk(top, topdown=False):
                try:
                    Path(directory).rmdir()
                except OSError:
                    continue
