"""The probe's pod and container; its script is run by a real shell."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sandboxpool.api import names
from sandboxpool.api.core import Pod
from sandboxpool.runtimes import probe
from sandboxpool.runtimes.evidence import Evidence, Isolation, judge_probe
from sandboxpool.runtimes.evidence_store import EvidenceStore
from sandboxpool.runtimes.nodes import NodeFacts
from sandboxpool.runtimes.probe import (
    ProbeImage,
    ProbeOptions,
    build_probe,
    probe_name,
    sandbox_probe_container,
)
from support.builders import NOW, facts, runtime
from support.simulation.patches import selector

IMAGE = ProbeImage("registry.example/probe:1", "Never", ("one", "two"))
BOOT_ID = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
OTHER_BOOT_ID = "00000000-0000-4000-8000-000000000000"
KERNEL = Path("/proc/version").read_text().strip()
LOG = "/dev/termination-log"

# Those of this machine. In the operator's image /bin/sh is dash.
SHELLS = [
    [*shell, "-c"]
    for shell in (["/bin/sh"], ["dash"], ["bash"], ["busybox", "sh"])
    if shutil.which(shell[0])
]


def built(**image: Any) -> dict[str, Any]:
    return build_probe(
        "probe-1", "ours", facts(), runtime(), ProbeImage(**image) if image else IMAGE
    )


def ran(shell: list[str], script: str, expected: str | None = None) -> int:
    """Run a script without a PATH, so that only the shell's own commands are found."""
    environment = {"PATH": ""} | ({} if expected is None else {"EXPECTED_BOOT_ID": expected})
    command = [shutil.which(shell[0]) or shell[0], *shell[1:], script]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=10, check=False)
    assert done.stderr == b""
    return done.returncode


def test_it_runs_with_no_privileges() -> None:
    spec = built()["spec"]
    (container,) = spec["containers"]
    # And no user: OpenShift's restricted-v2 refuses any that is not of the namespace's range.
    assert "securityContext" not in spec
    assert container["securityContext"] == {
        "runAsNonRoot": True,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert not {"volumes", "hostNetwork", "hostPID", "hostIPC", "nodeName"} & set(spec)


def test_it_is_pinned_to_its_node_and_goes_through_the_scheduler() -> None:
    spec = built()["spec"]
    assert spec["runtimeClassName"] == "gvisor"
    required = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert required["nodeSelectorTerms"] == [
        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node-1"]}]}
    ]
    assert spec["tolerations"] == [{"operator": "Exists"}]
    assert spec["containers"][0]["resources"]["requests"]


def test_it_ends_even_if_nobody_looks_after_it() -> None:
    spec = built()["spec"]
    assert spec["restartPolicy"] == "Never"
    assert 120 < spec["activeDeadlineSeconds"] <= 600
    assert spec["terminationGracePeriodSeconds"] <= 1


def test_its_labels_name_node_and_runtime() -> None:
    metadata = built()["metadata"]
    assert metadata["annotations"] == {
        names.ANNOTATION_RUNTIME_UID: "class-uid",
        names.ANNOTATION_HANDLER: "runsc",
        names.ANNOTATION_SAFE_TO_EVICT: "true",
        probe.ANNOTATION_NODE: "node-1",
        probe.ANNOTATION_NODE_UID: "node-1-uid",
        probe.ANNOTATION_BOOT_ID: "node-1-boot",
    }
    assert len(metadata["labels"][probe.LABEL_PROBE]) <= names.MAX_LABEL_VALUE


def test_the_image_is_pulled_as_told() -> None:
    spec = built()["spec"]
    assert spec["imagePullSecrets"] == [{"name": "one"}, {"name": "two"}]
    assert spec["containers"][0]["image"] == "registry.example/probe:1"
    assert spec["containers"][0]["imagePullPolicy"] == "Never"


def test_it_has_what_the_clusters_policies_want() -> None:
    options = ProbeOptions(
        labels={"team": "blue", probe.LABEL_PROBE: "mine"},
        annotations={"linkerd.io/inject": "disabled", probe.ANNOTATION_NODE: "another"},
        resources={"limits": {"cpu": "50m", "memory": "64Mi"}},
        tolerations=({"key": "gpu", "operator": "Exists"},),
        priority_class="probes",
        security_context={"runAsUser": 1000680000},
    )
    image = replace(IMAGE, security_context={"runAsNonRoot": True})
    made = build_probe("probe-1", "ours", facts(), runtime(), image, options)
    usual = built()
    labels, annotations = made["metadata"]["labels"], made["metadata"]["annotations"]
    assert labels == {**usual["metadata"]["labels"], "team": "blue"}, "what is its own stays"
    more = {"linkerd.io/inject": "disabled"}
    assert annotations == {**usual["metadata"]["annotations"], **more}
    (container,) = made["spec"]["containers"]
    assert container["resources"] == {"limits": {"cpu": "50m", "memory": "64Mi"}}
    assert container["securityContext"] == {"runAsNonRoot": True}
    assert made["spec"]["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    assert made["spec"]["priorityClassName"] == "probes"
    assert made["spec"]["securityContext"] == {"runAsUser": 1000680000}
    assert "priorityClassName" not in usual["spec"]


def test_the_name_is_the_same_for_the_same_seed_only() -> None:
    made = [probe_name(seed) for seed in ("1", "2", "", "x" * 500)]
    assert len(set(made)) == 4
    assert probe_name("1") == made[0]
    assert all(len(name) <= 63 for name in made)


def test_without_a_class_it_is_the_positive_control_and_the_same_in_all_else() -> None:
    control = build_probe("probe-1", "ours", facts(), None, IMAGE)
    assert "runtimeClassName" not in control["spec"]
    annotations = control["metadata"]["annotations"]
    assert (annotations[names.ANNOTATION_RUNTIME_UID], annotations[names.ANNOTATION_HANDLER]) == (
        "",
        probe.CONTROL,
    )
    usual = built()
    assert control["metadata"]["labels"] != usual["metadata"]["labels"]
    del usual["spec"]["runtimeClassName"]
    assert control["spec"] == usual["spec"]


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
@pytest.mark.parametrize(
    ("expected", "code"),
    [
        (BOOT_ID, probe.NODES_KERNEL),
        (OTHER_BOOT_ID, probe.OWN_KERNEL),
        ("", probe.UNREADABLE),
        (None, probe.UNREADABLE),
    ],
)
def test_the_exit_code_is_the_answer(
    shell: list[str], expected: str | None, code: int, tmp_path: Path
) -> None:
    script = built()["spec"]["containers"][0]["command"][-1].replace(LOG, str(tmp_path / "log"))
    assert ran(shell, script, expected) == code
    assert (tmp_path / "log").read_text() == f"{BOOT_ID}\n{KERNEL}\n"


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
def test_the_answer_needs_no_message(shell: list[str], tmp_path: Path) -> None:
    script = built()["spec"]["containers"][0]["command"][-1]
    script = script.replace(LOG, str(tmp_path / "no" / "such" / "directory"))
    assert ran(shell, script, OTHER_BOOT_ID) == probe.OWN_KERNEL


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
@pytest.mark.parametrize("content", [None, "", "\n", "no boot id\n"])
def test_what_cannot_be_read_is_no_answer(
    shell: list[str], content: str | None, tmp_path: Path
) -> None:
    source = tmp_path / "boot_id"
    if content is not None:
        source.write_text(content)
    script = built()["spec"]["containers"][0]["command"][-1].replace(LOG, str(tmp_path / "log"))
    script = script.replace("/proc/sys/kernel/random/boot_id", str(source))
    assert ran(shell, script, OTHER_BOOT_ID) == probe.UNREADABLE


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
@pytest.mark.parametrize("log", ["log", "no/such/directory"])
def test_a_sandboxs_own_probe_tells_and_never_fails(
    shell: list[str], log: str, tmp_path: Path
) -> None:
    container = sandbox_probe_container(IMAGE)
    assert ran(shell, container["command"][-1].replace(LOG, str(tmp_path / log))) == 0
    if (tmp_path / log).exists():
        assert (tmp_path / log).read_text() == f"{BOOT_ID}\n{KERNEL}\n"


def test_a_sandboxs_own_probe_is_as_restricted_and_takes_what_the_sandbox_takes() -> None:
    resources = {"requests": {"cpu": "1"}, "limits": {"cpu": "1"}}
    container = sandbox_probe_container(IMAGE, resources=resources)
    assert container["securityContext"] == built()["spec"]["containers"][0]["securityContext"]
    assert (container["imagePullPolicy"], container["resources"]) == ("Never", resources)
    assert container["name"] == probe.SANDBOX_PROBE_CONTAINER


# --- Answers that are none -----------------------------------------------------------------------


def judged(node: NodeFacts, code: int, *, ran_on: str = "", control: bool = False) -> Evidence:
    """What is made of an exit code of a probe for a node."""
    body = build_probe("probe-1", "ours", node, None if control else runtime(), IMAGE)
    body["metadata"] |= {"uid": "u", "resourceVersion": "1"}
    body["spec"]["nodeName"] = ran_on or node.name
    ended = {"terminated": {"exitCode": code}}
    listed = [{"name": probe.PROBE_CONTAINER, "state": ended}]
    body["status"] = {"phase": "Failed", "containerStatuses": listed}
    evidence = judge_probe(msgspec.convert(body, Pod), node, NOW)
    assert evidence is not None
    return evidence


def exit_code(node: NodeFacts, tmp_path: Path) -> int:
    """Run a node's probe in a shell that is isolated from nothing."""
    (container,) = build_probe("probe-1", "ours", node, runtime(), IMAGE)["spec"]["containers"]
    (expected,) = container["env"]
    script = container["command"][-1].replace(LOG, str(tmp_path / "log"))
    return ran(SHELLS[0], script, expected["value"])


def test_a_probe_that_ran_elsewhere_proves_nothing_though_it_read_another_boot_id(
    tmp_path: Path,
) -> None:
    here, other = facts("node-1", boot_id=BOOT_ID), facts("node-2", boot_id=OTHER_BOOT_ID)
    code = exit_code(other, tmp_path)
    assert code == probe.OWN_KERNEL, "it ran on node-1, and compared with the boot id of node-2"
    assert judged(other, code, ran_on="node-1").isolation is Isolation.UNAVAILABLE
    assert judged(here, exit_code(here, tmp_path)).isolation is Isolation.NOT_PROVEN


def test_a_made_up_boot_id_is_caught_by_the_control(tmp_path: Path) -> None:
    """As that of a node which another cluster makes up, to no kernel's knowledge."""
    fake = facts(boot_id="k3f9x2qa-71bd-mm0z-p2c4-8hn5t6w0r1ye", handlers=None)
    real = facts(boot_id=BOOT_ID)
    for node, controlled in ((fake, False), (real, True)):
        control = judged(node, exit_code(node, tmp_path), control=True)
        store = EvidenceStore()
        store.put(node.name, probe.CONTROL, control)
        assert store.has_positive_control(node) == controlled


@pytest.mark.parametrize("command", [["/bin/sh", "-c", "true"], ["true"]])
def test_what_does_nothing_proves_nothing(command: list[str]) -> None:
    code = subprocess.run(command, timeout=10, check=False).returncode
    assert judged(facts(boot_id=BOOT_ID), code).isolation is Isolation.UNAVAILABLE


@pytest.mark.parametrize("ours", ["sandboxpool", "team-a"])
@pytest.mark.parametrize("theirs", ["sandboxpool", "team-a"])
def test_a_release_watches_its_own_probes_only(ours: str, theirs: str) -> None:
    options = ProbeOptions(labels=probe.release_labels(theirs))
    made = build_probe("probe-1", "ours", facts(), None, IMAGE, options)
    selects = selector("ours", {"labelSelector": probe.probe_selector(ours)})
    assert selects(made) is (ours == theirs)
