"""What the demo shows, step by step."""

from __future__ import annotations

import shutil
import time

from demo import binding, install, terminal
from demo.kube import Object, condition, shown, until
from localcluster import images, kindcluster, paths, tools
from localcluster.kindcluster import kubectl

SAMPLES = paths.REPOSITORY / "samples"
POOL_SECONDS = 120.0
DELETE_SECONDS = 90.0

HANDLERS = "custom-columns=NODE:.metadata.name,HANDLERS:.status.runtimeHandlers[*].name"
PODS = "custom-columns=POD:.metadata.name,NODE:.spec.nodeName,RUNTIMECLASS:.spec.runtimeClassName"


def show() -> None:
    """Make the cluster, install the operator, and show what it does."""
    began = time.monotonic()
    terminal.heading(
        1,
        "A cluster with real gVisor, and the operator",
        "Three workers with different runtimes. Steps that were done before are skipped.",
    )
    kubeconfig = kindcluster.up()
    images.load_sample_image()
    install.install_operator(kubeconfig)
    kubectl("config", "set-context", "--current", "--namespace=default")
    shown("--namespace", install.NAMESPACE, "get", "deployments,pods")
    _runtimes()
    _gvisor_pool()
    _claim()
    _kernel()
    _broken_runtime()
    _pretender()
    _truth()
    _farewell(time.monotonic() - began)


def _apply(file: str) -> None:
    shown("apply", "-f", _typed(file))


def _typed(file: str) -> str:
    # Users run this from the repository; the demo may be started from anywhere.
    path = SAMPLES / file
    return f"samples/{file}" if paths.REPOSITORY.samefile(".") else str(path)


def _runtimes() -> None:
    terminal.heading(
        2,
        "What each node says of runtimes",
        "A RuntimeClass only names a handler, and the scheduler never asks which nodes have it. "
        "The nodes themselves say what is configured; that is where the operator begins. Here "
        "gVisor (runsc) is on two workers, and one lists a kata-qemu that has nothing behind it. "
        "The empty name is the default.",
    )
    _apply("runtimeclasses.yaml")
    shown("get", "runtimeclasses")
    shown("get", "nodes", "-o", HANDLERS)


def _gvisor_pool() -> None:
    terminal.heading(
        3,
        "A pool of gVisor sandboxes becomes Ready",
        "Sandboxes start only where the runtime is: the worker without runsc gets none, and the "
        "condition NodesServing names it. They are warm once a probe has shown, on each node, that "
        "a sandbox there has a kernel of its own.",
    )
    _apply("gvisor-pool.yaml")
    pool = until(
        "sandboxpool",
        "gvisor",
        lambda found: condition(found, "Warm").get("status") == "True",
        seconds=POOL_SECONDS,
        expectation="all sandboxes of pool gvisor are warm",
    )
    shown("get", "sandboxpool", "gvisor")
    shown("get", "pods", "-l", "sandboxpool.io/pool=gvisor", "-o", PODS)
    _say_why(pool, "NodesServing")
    runtime = until(
        "sandboxruntime",
        "gvisor",
        lambda found: condition(found, "IsolationProven").get("status") == "True",
        seconds=POOL_SECONDS,
        expectation="runtime gvisor is proven",
    )
    shown("get", "sandboxruntime", "gvisor")
    _say_why(runtime, "IsolationProven")


def _claim() -> None:
    terminal.heading(
        4,
        "An application takes a sandbox",
        "The claim gets a pod that runs already. The time is from sending the claim to seeing it "
        "Bound in a watch.",
    )
    # A claim of an earlier run goes first, and its sandbox with it.
    kubectl(
        *("delete", "-f", str(SAMPLES / "claim.yaml"), "--ignore-not-found"),
        f"--timeout={DELETE_SECONDS:.0f}s",
        timeout=DELETE_SECONDS + 10,
    )
    terminal.command(["kubectl", "create", "-f", _typed("claim.yaml")])
    seconds, claim = binding.timed(kindcluster.kubeconfig(), SAMPLES / "claim.yaml")
    terminal.output(f"sandboxclaim.sandboxpool.io/{claim['metadata']['name']} created")
    terminal.output(f"\nBound after {seconds * 1000:.0f} ms")
    shown("get", "sandboxclaim", "my-task")


def _kernel() -> None:
    terminal.heading(
        5,
        "The kernel that the sandbox sees",
        "The sandbox answers with gVisor's own kernel; the node that it runs on has another.",
    )
    claim = until(
        "sandboxclaim",
        "my-task",
        lambda found: condition(found, "Ready").get("status") == "True",
        seconds=POOL_SECONDS,
        expectation="claim my-task is Ready",
    )
    status = claim["status"]
    shown("exec", status["podName"], "--", "cat", "/proc/version")
    kernel = "custom-columns=NODE:.metadata.name,KERNEL:.status.nodeInfo.kernelVersion"
    shown("get", "node", status["nodeName"], "-o", kernel)


def _broken_runtime() -> None:
    terminal.heading(
        6,
        "A runtime that is listed and does not work",
        "Pool kata-qemu cannot become ready, and says precisely why and where; the node is "
        "quarantined for that handler, and probed now and then. This shows that runtimes are "
        "diagnosed; no Kata virtual machine runs here.",
    )
    _apply("kata-qemu-pool.yaml")
    pool = until(
        "sandboxpool",
        "kata-qemu",
        lambda found: condition(found, "Ready").get("reason") == "ShimMissing",
        seconds=POOL_SECONDS,
        expectation="pool kata-qemu says ShimMissing",
    )
    _say_why(pool, "Ready")
    until(
        "sandboxruntime",
        "kata-qemu",
        lambda found: condition(found, "Healthy").get("reason") == "ShimMissing",
        seconds=POOL_SECONDS,
        expectation="the runtime's table has it",
    )
    shown("get", "sandboxruntimes")


def _pretender() -> None:
    terminal.heading(
        7,
        "A runtime that only pretends",
        "The class pretender stands for a handler that starts sandboxes well, but by runc: they "
        "share the node's kernel. Its pool hands none out.",
    )
    _apply("pretender.yaml")
    pool = until(
        "sandboxpool",
        "pretender",
        lambda found: condition(found, "Ready").get("reason") == "IsolationNotProven",
        seconds=POOL_SECONDS,
        expectation="pool pretender says IsolationNotProven",
    )
    _say_why(pool, "Ready")


def _truth() -> None:
    terminal.heading(
        8, "The whole truth in one table", "Runtimes and their nodes, stock, claims, causes."
    )
    until(
        "sandboxpool",
        "gvisor",
        lambda found: condition(found, "Warm").get("status") == "True",
        seconds=POOL_SECONDS,
        expectation="pool gvisor has refilled",
    )
    shown("get", "sbr,sbp,sbc")


def _say_why(obj: Object, kind: str) -> None:
    found = condition(obj, kind)
    terminal.output(f"\n{kind}={found['status']} {found['reason']}")
    terminal.say(found["message"])


def _farewell(seconds: float) -> None:
    terminal.output(f"\nShown in {seconds:.0f} s. The cluster goes on running; use it with")
    terminal.output(f"  export KUBECONFIG={kindcluster.kubeconfig()}")
    if shutil.which("kubectl") is None:
        terminal.output(f"  alias kubectl={tools.path('kubectl')}")
    terminal.output("and remove it with `make down`.")
