"""`make bench-client`: how soon an application sees the first output of a command in a sandbox.

On the local cluster, with real kubelets and gVisor: the client beside bare requests, beside
`kubectl exec`, and beside a pod that is made from nothing. All take turns in every round.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path

from bench import machine
from bench.bareexec import Bare, Object
from bench.report import Goal
from bench.stats import percentile, ratios
from demo import install
from localcluster import images, kindcluster, tools
from localcluster.progress import say
from sandboxpool.api import names
from sandboxpool.client import Sandbox, SandboxPools, config, visible
from sandboxpool.client.blocking import run
from support import Api, eventually, objects
from support.realnodes import WITH_GVISOR, pool, template
from support.sandboxes import pool_status

ROOT = Path(__file__).resolve().parents[2]
REPORT = ROOT / "docs" / "benchmarks" / "client.md"
POOL = "bench"
# One for the client's claim and one for the bare one, and the next of each are on their way.
WARM = 4
COMMAND = ("echo", "hello")
MEGABYTE = bytes(range(256)) * 4096
COMMANDS_FOR_CPU = 50
# Claims at once, of a pool of their own.
MANY_POOL = "bench-many"
MANY = 50
# Each look starts a process: more of them would take the processors from what is measured.
_LOG_CONFIG = (
    "until [ -s /run/sandbox/claim-uid ]; do sleep 0.5; done; echo seen; exec sleep infinity"
)
IMPORTS = ("pass", "import kubernetes", "import sandboxpool.client")
_PODS = "/api/v1"
_CLAIMS = f"/apis/{names.API_VERSION}"

# Figures by name, in the order of the rounds: milliseconds, unless the name says otherwise.
Figures = dict[str, list[float]]

BOUND = "client: claim bound"
FIRST = "client: claim to first output"
SECOND = "client: second command"
UP, DOWN = "client: 1 MB up", "client: 1 MB down"
CPU = "client: CPU of a command"
VISIBLE = "claim bound to its configuration visible in the sandbox"
MANY_BOUND = f"{MANY} at once: claim bound"
MANY_VISIBLE = f"{MANY} at once: claim bound to its configuration visible"
BARE_BOUND = "bare: claim bound"
BARE_FIRST = "bare: claim to first output"
BARE_SECOND = "bare: second command"
KUBECTL = "`kubectl exec`: command in a pod that runs"
KUBECTL_UP, KUBECTL_DOWN = "`kubectl exec`: 1 MB up", "`kubectl exec`: 1 MB down"
COLD = "pod made from nothing to first output"
IMPORT = "import of the client, without the interpreter's start"
IMPORT_OFFICIAL = "import of `kubernetes`, without the interpreter's start"


class Bench:
    """A namespace with a pool, for as long as it takes to measure.

    Attributes:
        figures: What was measured.
    """

    def __init__(self, kubeconfig: Path, api: Api, namespace: str) -> None:
        self.figures: Figures = {}
        self._kubeconfig = kubeconfig
        self._api = api.within(namespace)
        self._namespace = namespace
        settings = config.load(kubeconfig=kubeconfig, namespace=namespace)
        self._pools = SandboxPools(settings)
        self._bare = Bare(settings, namespace)
        self._kubectl = str(tools.path("kubectl"))

    def prepare(self) -> None:
        """Make the pool and wait until it is warm."""
        self._api.create(pool(POOL, self._namespace, WARM, pod=_template()))
        self._await_warm()

    def round(self, number: int) -> None:
        """Measure everything once; the client and bare requests take turns at being first."""
        sides = [self._own_claim, self._bare_claim]
        for side in sides if number % 2 else reversed(sides):
            self._await_warm()
            side()
        self._cold()
        self._await_warm()
        self._config()

    def many(self) -> None:
        """Claim as many at once as there are sandboxes, each with its own configuration.

        The sandboxes themselves look for it and log it: as many commands at once would be what is
        measured.
        """
        # The ceiling keeps the sandboxes that take their places from starting beside the claims.
        waiting = pool(
            *(MANY_POOL, self._namespace, MANY), pod=_template(_LOG_CONFIG), maxSandboxes=MANY
        )
        self._api.create(waiting)
        pool_status(self._api, name=MANY_POOL, warm=MANY, timeout=900)
        all_here = threading.Barrier(MANY)

        def one(number: int) -> None:
            all_here.wait(60)
            began = time.perf_counter()
            with self._pools.claim(MANY_POOL, ttl=600, config={"task": str(number)}) as sandbox:
                self._note(MANY_BOUND, _since(began))
                bound = time.time()
                line = self._bare.first_log_line(sandbox.info.pod)
                self._note(MANY_VISIBLE, 1000 * (_moment(line) - bound))
                # What is released makes room for new sandboxes.
                all_here.wait(300)

        with ThreadPoolExecutor(MANY) as threads:
            list(threads.map(one, range(MANY)))

    def imports(self, times: int) -> None:
        """Measure what it costs to import the client, each time in a fresh interpreter."""
        for _ in range(times):
            empty, official, own = (
                _took(partial(_run, sys.executable, "-c", code)) for code in IMPORTS
            )
            self._note(IMPORT_OFFICIAL, official - empty)
            self._note(IMPORT, own - empty)

    def _own_claim(self) -> None:
        began = time.perf_counter()
        with self._pools.claim(POOL, ttl=600) as sandbox:
            self._note(BOUND, _since(began))
            _first_output(sandbox)
            self._note(FIRST, _since(began))
            self._note(SECOND, _took(lambda: _first_output(sandbox)))
            self._commands(sandbox)
            self._files(sandbox)
            self._beside(sandbox.info.pod)

    def _commands(self, sandbox: Sandbox) -> None:
        began = time.process_time()
        for _ in range(COMMANDS_FOR_CPU):
            sandbox.run(COMMAND).check()
        self._note(CPU, (time.process_time() - began) * 1000 / COMMANDS_FOR_CPU)

    def _files(self, sandbox: Sandbox) -> None:
        self._note(UP, _took(lambda: sandbox.write("/data/file", MEGABYTE)))
        self._note(DOWN, _took(lambda: sandbox.read("/data/file")))
        assert sandbox.read("/data/file") == MEGABYTE

    def _beside(self, pod: str) -> None:
        self._note(KUBECTL, _took(lambda: self._kubectl_exec(pod, *COMMAND)))
        write = ("sh", "-c", "cat > /data/other")
        self._note(KUBECTL_UP, _took(lambda: self._kubectl_exec(pod, *write, stdin=MEGABYTE)))
        self._note(KUBECTL_DOWN, _took(lambda: self._kubectl_exec(pod, "cat", "/data/other")))

    def _kubectl_exec(self, pod: str, *command: str, stdin: bytes | None = None) -> None:
        where = ("--kubeconfig", str(self._kubeconfig), "-n", self._namespace)
        options = ("-i",) if stdin is not None else ()
        _run(self._kubectl, *where, "exec", *options, pod, "--", *command, stdin=stdin)

    def _bare_claim(self) -> None:
        claim = objects.claim(f"bare-{uuid.uuid4().hex[:8]}", POOL)
        began = time.perf_counter()
        bound = self._bare.create_and_await(_CLAIMS, claim, _is_bound)
        self._note(BARE_BOUND, _since(began))
        pod = bound["status"]["podName"]
        self._bare.first_output(pod, *COMMAND)
        self._note(BARE_FIRST, _since(began))
        self._note(BARE_SECOND, _took(lambda: self._bare.first_output(pod, *COMMAND)))
        self._api.delete("SandboxClaim", claim["metadata"]["name"])

    def _config(self) -> None:
        # Seen by reading the file again and again, as `wait_for_config` does it.
        with self._pools.claim(POOL, ttl=600, config={"task": "42"}) as sandbox:
            self._note(VISIBLE, _took(lambda: run(visible.wait(sandbox._target))))

    def _cold(self) -> None:
        name = f"cold-{uuid.uuid4().hex[:8]}"
        made = _template()
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {
                **made["spec"],
                "runtimeClassName": self._namespace,
                # Nothing else keeps it from nodes without the handler.
                "nodeSelector": {"kubernetes.io/hostname": WITH_GVISOR},
            },
        }
        began = time.perf_counter()
        self._bare.create_and_await(_PODS, pod, _is_ready)
        self._bare.first_output(name, *COMMAND)
        self._note(COLD, _since(began))
        self._api.delete("Pod", name)
        eventually(lambda: self._api.find("Pod", name) is None, message="no pod", timeout=60)

    def _await_warm(self) -> None:
        pool_status(self._api, name=POOL, warm=WARM, timeout=120)

    def _note(self, what: str, figure: float) -> None:
        self.figures.setdefault(what, []).append(figure)

    def close(self) -> None:
        """Close the client's connections."""
        self._pools.close()


def _template(script: str = "exec sleep infinity") -> Object:
    made = template(volumes=[{"name": "data", "emptyDir": {}}])
    (container,) = made["spec"]["containers"]
    container["command"] = ["sh", "-c", script]
    container["volumeMounts"] = [{"name": "data", "mountPath": "/data"}]
    return made


def _moment(line: str) -> float:
    """When a line of a log was written, in seconds since 1970."""
    # Python takes no nanoseconds.
    return datetime.fromisoformat(f"{line[:26]}+00:00").timestamp()


def _is_bound(claim: Object) -> bool:
    return bool((claim.get("status") or {}).get("podName"))


def _is_ready(pod: Object) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _first_output(sandbox: Sandbox) -> None:
    with sandbox.stream(COMMAND) as command:
        assert next(iter(command)).data == b"hello\n"


def _since(began: float) -> float:
    return (time.perf_counter() - began) * 1000


def _took(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return _since(began)


def _run(*command: str, stdin: bytes | None = None) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=120, input=stdin or b"")


@contextmanager
def prepared() -> Iterator[Bench]:
    """The local cluster with the operator in it, and a namespace that is removed at the end."""
    kubeconfig = kindcluster.up()
    images.load_sample_image()
    install.install_operator(kubeconfig)
    namespace = f"bench-{uuid.uuid4().hex[:8]}"
    with Api(kubeconfig) as api:
        api.create(objects.namespace(namespace))
        api.create(objects.runtime_class(namespace, "runsc"))
        bench = Bench(kubeconfig, api, namespace)
        try:
            yield bench
        finally:
            bench.close()
            for name in (POOL, MANY_POOL):
                api.delete("SandboxPool", name, namespace)
            api.delete("Namespace", namespace)
            eventually(
                lambda: not api.list("Pod", namespace), message="the pods are gone", timeout=300
            )
            api.delete("RuntimeClass", namespace)


def about(rounds: int) -> dict[str, str]:
    """Date, machine and versions."""
    node = kindcluster.node_objects()[WITH_GVISOR]["status"]["nodeInfo"]
    return {
        **machine.here(),
        "Kubernetes": f"{node['kubeletVersion']}, {node['containerRuntimeVersion']}",
        "gVisor": _gvisor_version(),
        "kubernetes (Python)": importlib.metadata.version("kubernetes"),
        "websocket-client": importlib.metadata.version("websocket-client"),
        "rounds": str(rounds),
    }


def _gvisor_version() -> str:
    """The module's version: a build without Bazel gives `runsc --version` none to say."""
    text = (ROOT / "hack/localcluster/components/gvisor/go.mod").read_text()
    found = re.search(r"gvisor\.dev/gvisor (\S+)", text)
    assert found is not None
    return found[1]


def goals(figures: Mapping[str, Sequence[float]]) -> list[Goal]:
    """The goals; ratios are taken within each round."""
    beyond = [
        own - official
        for own, official in zip(figures[IMPORT], figures[IMPORT_OFFICIAL], strict=True)
    ]
    return [
        Goal(
            "claim to first output, to that of bare requests",
            ratios(figures[FIRST], figures[BARE_FIRST]),
            1.15,
        ),
        Goal(
            "claim to first output, to a pod made from nothing",
            ratios(figures[FIRST], figures[COLD]),
            0.25,
        ),
        Goal("client's CPU of a command", figures[CPU], 10, unit="ms"),
        Goal("import of the client, less that of `kubernetes`", beyond, 50, unit="ms"),
    ]


def report(versions: Mapping[str, str], figures: Mapping[str, Sequence[float]]) -> str:
    """The figures as a page."""
    lines = [
        "# The Python client",
        "",
        "By `make bench-client`, on the local cluster: real kubelets and gVisor. **First output**",
        "is the first byte that `echo hello` writes. **Bare** is the same requests by hand, with",
        "`http.client` and `websocket-client`: a POST, a watch and a WebSocket (v5), each on a new",
        "TLS connection. They have a sandbox of their own in each round: the first commands in a",
        "sandbox take longer than later ones. `kubectl exec` includes the start of kubectl; its",
        "commands are not the sandbox's first. The pod made from nothing has the pool's template,",
        "and its image is on the node. All take turns in each round, and share the machine",
        f"below. The sandboxes of the {MANY} claims at once look for their configuration twice a",
        "second, and their logs say when they have seen it.",
        "",
        *(f"- {key}: {value}" for key, value in versions.items()),
        "",
        "| goal | wanted | median (least to most of the rounds) | |",
        "|---|---|---|---|",
        *(goal.line() for goal in goals(figures)),
        "",
        "| ms | n | least | p50 | p95 | most |",
        "|---" * 6 + "|",
    ]
    for what, samples in figures.items():
        ordered = sorted(samples)
        cells = (ordered[0], statistics.median(ordered), percentile(ordered, 95), ordered[-1])
        shown = " | ".join(f"{value:.1f}" for value in cells)
        lines.append(f"| {what} | {len(ordered)} | {shown} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write the page, with the raw figures beside it."""
    parser = argparse.ArgumentParser(prog="python -m bench.client")
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    with prepared() as bench:
        bench.prepare()
        for number in range(given.rounds):
            say(f"round {number + 1} of {given.rounds}")
            bench.round(number)
        bench.imports(given.rounds)
        # Last, as the end of so many sandboxes takes a while.
        bench.many()
        versions = about(given.rounds)
    page = report(versions, bench.figures)
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(page)
    raw = {"about": versions, "figures": bench.figures}
    REPORT.with_suffix(".json").write_text(json.dumps(raw, indent=1) + "\n")
    say(page)
    say(f"wrote {REPORT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
