"""What counts as proof of isolation, and what is known of a fleet."""

import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxpool.api.core import Pod
from sandboxpool.api.times import timestamp
from sandboxpool.runtimes import probe
from sandboxpool.runtimes.evidence import (
    MAX_KERNEL,
    Evidence,
    Isolation,
    control_failure,
    has_run,
    judge_probe,
    judge_sandbox,
    no_evidence,
    software_of,
    started_at,
)
from sandboxpool.runtimes.evidence_store import (
    MAX_AGE_SECONDS,
    MAX_KINDS,
    PROBE_UNANSWERED_SECONDS,
    UNSEEN_CHANGE_SECONDS,
    EvidenceStore,
)
from sandboxpool.runtimes.nodes import NodeFacts
from sandboxpool.runtimes.probe import CONTROL, ProbeImage, build_probe
from sandboxpool.runtimes.resolve import Runtime
from support.builders import CLASS_UID, NOW, facts, pod, runtime

PROVEN, NOT_PROVEN, UNAVAILABLE = Isolation.PROVEN, Isolation.NOT_PROVEN, Isolation.UNAVAILABLE
BOOT_ID = "69ddd3ce-d621-4a50-b5f7-2d50f0a22f4c"
GUEST_BOOT_ID = "011ce030-7d56-422d-8585-9915f6b3f10a"
GVISOR = "Linux version 4.19.0-gvisor #1 SMP Sun Jan 10 15:06:54 PST 2016"
# As the kubelet writes it when it cannot read the file (1.36).
NOT_READ = "Error on reading termination log /var/lib/kubelet/pods/x: permission denied"
NODE = replace(facts(), boot_id=BOOT_ID, container_runtime="containerd://2.1.4", kubelet="v1.36.2")
GVISOR_CLASS = runtime()

# All changes that require a new probe.
OTHER_SOFTWARE: dict[str, dict[str, Any]] = {
    "another machine": {"uid": "another"},
    "a reboot": {"boot_id": GUEST_BOOT_ID},
    "another container runtime": {"container_runtime": "containerd://2.2.0"},
    "another kubelet": {"kubelet": "v1.37.0"},
    "another list of handlers": {"handlers": frozenset({"runc"})},
    "no list of handlers": {"handlers": None},
}


def terminated(code: int, message: str = "", reason: str = "Completed") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "message": message, "reason": reason}}


def probed(
    state: dict[str, Any] | None,
    *,
    made_for: NodeFacts = NODE,
    of: Runtime | None = GVISOR_CLASS,
    node_name: str | None = None,
    **status: Any,
) -> Pod:
    """A probe pod as the kubelet has left it."""
    body = build_probe("probe-1", "ours", made_for, of, ProbeImage("image"))
    body["metadata"] |= {"uid": "probe-1-uid", "resourceVersion": "1"}
    body["spec"]["nodeName"] = made_for.name if node_name is None else node_name
    listed = [] if state is None else [{"name": probe.PROBE_CONTAINER, "state": state}]
    body["status"] = {"phase": "Running", "containerStatuses": listed, **status}
    return msgspec.convert(body, Pod)


def sandbox(state: dict[str, Any], name: str = probe.SANDBOX_PROBE_CONTAINER) -> Pod:
    return pod(initContainerStatuses=[{"name": name, "state": state}])


def known(isolation: Isolation = PROVEN, node: NodeFacts = NODE, **changed: Any) -> Evidence:
    evidence = Evidence(isolation, NOW, software_of(node), CLASS_UID, GVISOR, "as seen")
    return replace(evidence, **changed)


# --- Probe pods ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "isolation"),
    [
        (probe.OWN_KERNEL, PROVEN),
        (probe.NODES_KERNEL, NOT_PROVEN),
        (probe.UNREADABLE, UNAVAILABLE),
        (0, UNAVAILABLE),
        (1, UNAVAILABLE),
        (128, UNAVAILABLE),
    ],
)
@pytest.mark.parametrize("message", ["", f"{GUEST_BOOT_ID}\n{GVISOR}\n", NOT_READ])
def test_a_probe_is_judged_by_its_exit_code(code: int, isolation: Isolation, message: str) -> None:
    evidence = judge_probe(probed(terminated(code, message)), NODE, NOW)
    assert evidence is not None
    assert evidence.isolation is isolation
    assert (evidence.at, evidence.class_uid) == (NOW, CLASS_UID)
    assert evidence.software == software_of(NODE)


@pytest.mark.parametrize("of_sandbox", [False, True])
def test_an_image_of_another_architecture_is_named_as_the_cause(of_sandbox: bool) -> None:
    ended = terminated(255, "exec /bin/sh: exec format error")
    judge, seen = (judge_sandbox, sandbox(ended)) if of_sandbox else (judge_probe, probed(ended))
    evidence = judge(seen, NODE, NOW)
    assert evidence is not None
    assert evidence.isolation is UNAVAILABLE
    assert "architecture" in evidence.message
    assert "probe.image" in evidence.message


@pytest.mark.parametrize("code", [probe.OWN_KERNEL, probe.NODES_KERNEL])
def test_the_message_adds_the_kernels_name(code: int) -> None:
    evidence = judge_probe(probed(terminated(code, f"{BOOT_ID}\n{GVISOR}\n")), NODE, NOW)
    assert evidence is not None
    assert evidence.kernel == GVISOR
    assert GVISOR in evidence.message
    bare = judge_probe(probed(terminated(code)), NODE, NOW)
    assert bare is not None
    assert (bare.kernel, "()" in bare.message) == ("", False)


def test_a_kernels_name_is_bounded() -> None:
    evidence = judge_probe(probed(terminated(42, f"{BOOT_ID}\n{'x' * 4000}")), NODE, NOW)
    assert evidence is not None
    assert len(evidence.kernel) == MAX_KERNEL
    assert len(evidence.message) < 2 * MAX_KERNEL


@pytest.mark.parametrize("state", [None, {"waiting": {"reason": "ContainerCreating"}}, {}])
def test_a_probe_that_has_not_ended_is_no_evidence(state: dict[str, Any] | None) -> None:
    assert judge_probe(probed(state), NODE, NOW) is None
    assert not has_run(probed(state))


@pytest.mark.parametrize("change", ["another machine", "a reboot"])
def test_a_probe_of_another_machine_is_no_evidence(change: str) -> None:
    now = replace(NODE, **OTHER_SOFTWARE[change])
    assert judge_probe(probed(terminated(42)), now, NOW) is None
    assert judge_probe(probed(terminated(42), made_for=now), now, NOW) is not None


def test_an_injected_container_that_runs_on_does_not_hold_the_answer_back() -> None:
    evidence = judge_probe(probed(terminated(42), phase="Running"), NODE, NOW)
    assert evidence is not None
    assert evidence.isolation is PROVEN


@pytest.mark.parametrize(
    ("found", "in_message"),
    [
        (probed(None, phase="Failed", reason="Evicted", message="low on memory"), "low on memory"),
        (probed(None, phase="Failed", reason="DeadlineExceeded"), "DeadlineExceeded"),
        (
            probed(terminated(128, 'exec: "/bin/sh": no such file', "StartError"), phase="Failed"),
            '/bin/sh": no such file',
        ),
    ],
)
def test_a_probe_that_ended_before_its_result_reports_the_cause(
    found: Pod, in_message: str
) -> None:
    evidence = judge_probe(found, NODE, NOW)
    assert evidence is not None
    assert evidence.isolation is UNAVAILABLE
    assert in_message in evidence.message
    assert not has_run(found)


@pytest.mark.parametrize("code", [probe.OWN_KERNEL, probe.NODES_KERNEL, probe.UNREADABLE])
def test_a_probe_with_a_result_has_run_whatever_the_result_is(code: int) -> None:
    assert has_run(probed(terminated(code)))


@pytest.mark.parametrize("code", [0, 1, 2, 126, 127, 137, 139])
def test_what_has_not_run_the_probes_script_has_not_run(code: int) -> None:
    assert not has_run(probed(terminated(code)))


@pytest.mark.parametrize("node_name", ["node-2", ""])
@pytest.mark.parametrize("code", [probe.OWN_KERNEL, probe.NODES_KERNEL, probe.UNREADABLE])
def test_a_probe_that_ran_on_another_node_is_no_evidence(code: int, node_name: str) -> None:
    """Admission can change its affinity: then it has compared with another node's boot id."""
    elsewhere = probed(terminated(code), node_name=node_name, phase="Failed")
    evidence = judge_probe(elsewhere, NODE, NOW)
    assert evidence is not None
    assert evidence.isolation is UNAVAILABLE
    assert repr(node_name) in evidence.message
    assert "'node-1'" in evidence.message
    assert (evidence.kernel, evidence.software) == ("", software_of(NODE))


def test_the_positive_control_is_judged_like_any_probe() -> None:
    evidence = judge_probe(probed(terminated(probe.NODES_KERNEL), of=None), NODE, NOW)
    assert evidence is not None
    assert (evidence.isolation, evidence.class_uid) == (NOT_PROVEN, "")


def test_a_node_whose_control_fails_reports_what_the_control_found() -> None:
    read_another = judge_probe(probed(terminated(probe.OWN_KERNEL), of=None), NODE, NOW)
    assert read_another is not None
    assert "publishes a boot id that is not its kernel's" in control_failure(read_another)
    assert "no room" in control_failure(no_evidence(NODE, "", NOW, "no room"))


def test_a_node_without_a_boot_id_is_named_as_the_cause() -> None:
    node = replace(NODE, boot_id="")
    for evidence in (
        judge_probe(probed(terminated(11), made_for=node), node, NOW),
        judge_sandbox(sandbox(terminated(0, f"{GUEST_BOOT_ID}\n")), node, NOW),
    ):
        assert evidence is not None
        assert evidence.isolation is UNAVAILABLE
        assert "bootID" in evidence.message


# --- Sandboxes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "isolation"),
    [
        (f"{GUEST_BOOT_ID}\n{GVISOR}\n", PROVEN),
        (f"{BOOT_ID}\n{GVISOR}\n", NOT_PROVEN),
        ("", UNAVAILABLE),
        ("\n\n", UNAVAILABLE),
        (f"\n{GVISOR}\n", UNAVAILABLE),
        (NOT_READ, UNAVAILABLE),
        (GUEST_BOOT_ID[:-1], UNAVAILABLE),
    ],
)
def test_a_sandbox_is_judged_by_what_it_read(message: str, isolation: Isolation) -> None:
    evidence = judge_sandbox(sandbox(terminated(0, message)), NODE, NOW)
    assert evidence is not None
    assert evidence.isolation is isolation
    assert evidence.class_uid == CLASS_UID


@given(st.text(max_size=80))
def test_no_text_but_another_boot_id_proves_a_sandbox(message: str) -> None:
    evidence = judge_sandbox(sandbox(terminated(0, message)), NODE, NOW)
    assert evidence is not None
    assert evidence.isolation is UNAVAILABLE


def test_a_sandboxs_probe_that_failed_proves_nothing() -> None:
    evidence = judge_sandbox(sandbox(terminated(137, f"{GUEST_BOOT_ID}\n{GVISOR}")), NODE, NOW)
    assert evidence is not None
    assert evidence.isolation is UNAVAILABLE


@pytest.mark.parametrize(
    "found",
    [
        sandbox({"running": {}}),
        sandbox(terminated(0, f"{GUEST_BOOT_ID}\n"), name="somebody-elses"),
        pod(containerStatuses=[{"name": probe.SANDBOX_PROBE_CONTAINER, "state": terminated(0)}]),
        pod(),
    ],
)
def test_a_sandbox_whose_probe_has_not_ended_is_no_evidence(found: Pod) -> None:
    assert judge_sandbox(found, NODE, NOW) is None


def test_a_sandbox_is_no_evidence_about_another_node() -> None:
    found = sandbox(terminated(0, f"{GUEST_BOOT_ID}\n"))
    assert judge_sandbox(found, replace(NODE, name="node-2"), NOW) is None


# --- When a sandbox was started ------------------------------------------------------------------


def ran(*started: float | None, created: float = NOW, inits: tuple[float, ...] = ()) -> Pod:
    """A pod made at that time, whose containers run since these times; None: it does not run."""

    def state(at: float | None) -> dict[str, Any]:
        return terminated(0) if at is None else {"running": {"startedAt": timestamp(at)}}

    return pod(
        age=NOW - created,
        containerStatuses=[{"name": f"c{i}", "state": state(at)} for i, at in enumerate(started)],
        initContainerStatuses=[{"name": f"i{i}", "state": state(at)} for i, at in enumerate(inits)],
    )


@pytest.mark.parametrize(
    ("it", "started"),
    [
        (ran(NOW + 5), NOW + 5),
        # One that was restarted is no evidence about the sandbox that the others still run in.
        (ran(NOW + 900, NOW + 5, None), NOW + 5),
        (ran(NOW + 900, inits=(NOW + 4,)), NOW + 4),
        # All of them are new: so is the sandbox, however old the pod is.
        (ran(NOW + 900, NOW + 901), NOW + 900),
        (ran(None), None),
        (ran(), None),
        # The node's clock is behind.
        (ran(NOW - 60), None),
        (ran(NOW), NOW),
    ],
)
def test_a_sandbox_is_no_younger_than_the_container_that_has_run_longest(
    it: Pod, started: float | None
) -> None:
    assert started_at(it) == started


# --- The store ------------------------------------------------------------------------------------


def test_what_is_known_is_found() -> None:
    store = EvidenceStore()
    assert store.current(NODE, "runsc") is None
    assert store.put("node-1", "runsc", known())
    assert store.current(NODE, "runsc") == known()
    assert store.current(NODE, "kata") is None
    assert store.current(replace(NODE, name="node-2"), "runsc") is None


@pytest.mark.parametrize("change", OTHER_SOFTWARE.values(), ids=OTHER_SOFTWARE)
def test_evidence_is_about_the_software_that_was_there(change: dict[str, Any]) -> None:
    store = EvidenceStore()
    store.put("node-1", "runsc", known())
    changed = replace(NODE, **change)
    assert store.current(changed, "runsc") is None
    store.observe_node("node-1", changed, NOW)
    assert store.current(NODE, "runsc") is None, "what is forgotten does not come back"
    assert store.summaries("runsc") == []


def test_an_irrelevant_change_keeps_the_evidence() -> None:
    store = EvidenceStore()
    store.put("node-1", "runsc", known())
    shuffled = replace(NODE, handlers=frozenset(sorted(NODE.handlers or (), reverse=True)))
    busy = replace(shuffled, labels=frozenset(), taints=(), ready=False, schedulable=False)
    store.observe_node("node-1", busy, NOW)
    assert store.current(busy, "runsc") == known()


def test_age_alone_is_no_change() -> None:
    store = EvidenceStore()
    store.put("node-1", "runsc", known())
    assert not store.put("node-1", "runsc", known(at=NOW + 60))
    assert store.current(NODE, "runsc") == known(at=NOW + 60)
    assert store.put("node-1", "runsc", known(NOT_PROVEN))
    assert store.put("node-1", "runsc", known(kernel="another"))


@pytest.mark.parametrize("answer", [PROVEN, NOT_PROVEN])
def test_no_answer_takes_no_answers_place(answer: Isolation) -> None:
    store = EvidenceStore()
    store.put("node-1", "runsc", known(answer))
    assert not store.put("node-1", "runsc", no_evidence(NODE, CLASS_UID, NOW, "no room"))
    assert store.current(NODE, "runsc") == known(answer)
    rebooted = replace(NODE, boot_id=GUEST_BOOT_ID)
    assert store.put("node-1", "runsc", no_evidence(rebooted, CLASS_UID, NOW, "no room"))


def test_a_later_answer_takes_an_earlier_ones_place() -> None:
    store = EvidenceStore()
    for isolation in (UNAVAILABLE, NOT_PROVEN, PROVEN, NOT_PROVEN):
        assert store.put("node-1", "runsc", known(isolation))
        assert store.current(NODE, "runsc") == known(isolation)


def test_forgotten_evidence_is_probed_again() -> None:
    store = EvidenceStore()
    for handler in ("runsc", "kata"):
        store.put("node-1", handler, known())
    store.forget("node-1", "runsc", NOW)
    store.forget("node-9", "runsc", NOW)
    assert store.current(NODE, "runsc") is None
    assert store.current(NODE, "kata") is not None
    store.observe_node("node-1", None, NOW)
    assert store.current(NODE, "kata") is None


def test_kinds_of_nodes_are_summed_up_the_worst_first() -> None:
    store = EvidenceStore()
    for i in range(5):
        store.put(f"node-{i}", "runsc", known(at=NOW + i))
    store.put("node-5", "runsc", known(NOT_PROVEN, kernel="6.1", message="shared"))
    store.put("node-6", "runsc", known(UNAVAILABLE, kernel=""))
    store.put("node-7", "kata", known())
    kinds = store.summaries("runsc")
    assert [(k.isolation, k.nodes, k.example) for k in kinds] == [
        (NOT_PROVEN, 1, "node-5"),
        (UNAVAILABLE, 1, "node-6"),
        (PROVEN, 5, "node-0"),
    ]
    assert kinds[0].message == "shared"
    assert (kinds[2].at, kinds[2].kernel) == (NOW + 4, GVISOR)
    assert (kinds[2].container_runtime, kinds[2].kubelet) == ("containerd://2.1.4", "v1.36.2")


def test_however_many_kinds_there_are_the_worst_are_shown() -> None:
    store = EvidenceStore()
    for i in range(50):
        store.put(f"node-{i:02}", "runsc", known(kernel=f"kernel {i}"))
    store.put("node-99", "runsc", known(NOT_PROVEN))
    kinds = store.summaries("runsc")
    assert len(kinds) == MAX_KINDS
    assert kinds[0].isolation is NOT_PROVEN


def test_what_is_written_down_can_be_read_again() -> None:
    store, other = EvidenceStore(), EvidenceStore()
    store.put("node-1", "runsc", known())
    store.put("node-1", "runc", known(NOT_PROVEN))
    store.put("node-1", "kata", known(UNAVAILABLE))
    other.load("node-1", json.loads(json.dumps(store.dump("node-1"))), {})
    assert other.current(NODE, "runsc") == known()
    assert other.current(NODE, "runc") == known(NOT_PROVEN)
    assert other.current(NODE, "kata") is None, "no answer is not worth keeping"
    assert json.dumps(other.dump("node-1")) == json.dumps(store.dump("node-1"))
    assert store.dump("node-9") == {}


def test_a_node_that_cannot_list_handlers_survives_writing() -> None:
    silent = replace(NODE, handlers=None)
    store, other = EvidenceStore(), EvidenceStore()
    store.put("node-1", "runsc", known(node=silent))
    other.load("node-1", json.loads(json.dumps(store.dump("node-1"))), {})
    assert other.current(silent, "runsc") is not None
    assert other.current(replace(NODE, handlers=frozenset()), "runsc") is None


def test_what_was_written_down_takes_nothings_place() -> None:
    source, store = EvidenceStore(), EvidenceStore()
    source.put("node-1", "runsc", known())
    store.put("node-1", "runsc", known(NOT_PROVEN))
    store.load("node-1", source.dump("node-1"), {})
    assert store.current(NODE, "runsc") == known(NOT_PROVEN)


# --- Age -----------------------------------------------------------------------------------------

DAY = MAX_AGE_SECONDS


def test_a_proof_is_asked_for_again_in_its_last_quarter_and_is_void_after_its_age() -> None:
    store = EvidenceStore()
    store.put("node-1", "runsc", known())
    assert store.expire(NOW + 0.74 * DAY) == []
    assert not store.is_renewal_due("node-1", "runsc")
    assert store.expire(NOW + 0.96 * DAY) == [("node-1", "runsc")]
    assert store.is_renewal_due("node-1", "runsc")
    assert store.current(NODE, "runsc") == known(), "it still holds"
    assert store.expire(NOW + DAY - 1) == []
    assert store.expire(NOW + DAY) == [("node-1", "runsc")]
    assert store.current(NODE, "runsc") is None
    assert not store.is_renewal_due("node-1", "runsc")
    assert store.expire(NOW + 10 * DAY) == []


def test_a_proof_that_nobody_has_looked_at_in_time_is_void_all_the_same() -> None:
    store = EvidenceStore()
    store.put("node-1", "runsc", known())
    assert store.expire(NOW + 2 * DAY) == [("node-1", "runsc")]
    assert store.current(NODE, "runsc") is None


@pytest.mark.parametrize("isolation", [NOT_PROVEN, UNAVAILABLE])
def test_what_is_no_proof_never_ages_away(isolation: Isolation) -> None:
    store = EvidenceStore()
    store.put("node-1", "runsc", known(isolation))
    store.expire(NOW + PROBE_UNANSWERED_SECONDS)
    assert store.expire(NOW + 100 * DAY) == []
    assert store.current(NODE, "runsc") == known(isolation)
    assert not store.is_renewal_due("node-1", "runsc")


def test_a_proof_that_is_refuted_before_its_time_leaves_no_age_behind() -> None:
    store = EvidenceStore()
    store.put("node-1", "runsc", known())
    store.expire(NOW + 0.96 * DAY)
    store.put("node-1", "runsc", known(NOT_PROVEN, at=NOW + 0.97 * DAY))
    assert not store.is_renewal_due("node-1", "runsc")
    assert store.expire(NOW + 100 * DAY) == []
    assert store.current(NODE, "runsc") is not None


def test_a_proof_that_is_confirmed_lives_on_and_is_asked_for_again_in_its_own_time() -> None:
    store = EvidenceStore()
    store.put("node-1", "runsc", known())
    again = NOW + 0.96 * DAY
    store.expire(again)
    assert not store.put("node-1", "runsc", known(at=again))
    assert not store.is_renewal_due("node-1", "runsc")
    assert store.expire(NOW + DAY) == store.expire(again + 0.74 * DAY) == []
    assert store.current(NODE, "runsc") == known(at=again)
    assert store.expire(again + 0.96 * DAY) == [("node-1", "runsc")]
    assert store.is_renewal_due("node-1", "runsc")
    assert store.expire(again + DAY) == [("node-1", "runsc")]
    assert store.current(NODE, "runsc") is None


def test_no_answer_to_the_question_asked_again_leaves_the_proof_its_age() -> None:
    store = EvidenceStore()
    store.put("node-1", "runsc", known())
    store.expire(NOW + 0.96 * DAY)
    silent = no_evidence(NODE, CLASS_UID, NOW + 0.97 * DAY, "no room")
    assert not store.put("node-1", "runsc", silent)
    assert store.is_renewal_due("node-1", "runsc")
    assert store.expire(NOW + DAY) == [("node-1", "runsc")]
    assert store.current(NODE, "runsc") is None


def test_each_node_and_handler_is_asked_again_at_its_own_time() -> None:
    store = EvidenceStore()
    pairs = [(f"node-{i}", handler) for i in range(100) for handler in ("runsc", "kata")]
    for name, handler in pairs:
        store.put(name, handler, known())
    asked: list[tuple[str, str]] = []
    most = 0
    for step in range(101):
        found = store.expire(NOW + (0.75 + 0.002 * step) * DAY)
        most = max(most, len(found))
        asked += found
    assert sorted(asked) == sorted(pairs)
    assert most <= 10, "of 200, in a hundredth of the time each"


def test_the_age_is_a_setting() -> None:
    store = EvidenceStore(max_age=600)
    store.put("node-1", "runsc", known())
    assert store.expire(NOW + 449) == []
    assert store.expire(NOW + 600) == [("node-1", "runsc")]
    assert store.current(NODE, "runsc") is None


@pytest.mark.parametrize("node", [None, replace(NODE, boot_id=GUEST_BOOT_ID)])
def test_a_deleted_machine_takes_the_age_of_its_proofs_along(node: NodeFacts | None) -> None:
    store = EvidenceStore()
    store.put("node-1", "runsc", known())
    store.expire(NOW + 0.96 * DAY)
    store.observe_node("node-1", node, NOW)
    assert not store.is_renewal_due("node-1", "runsc")
    assert store.expire(NOW + 2 * DAY) == []


def test_a_node_that_changes_in_other_things_leaves_a_proof_its_age() -> None:
    store = EvidenceStore()
    store.put("node-1", "runsc", known())
    store.expire(NOW + 0.96 * DAY)
    store.observe_node("node-1", replace(NODE, ready=False), NOW)
    assert store.is_renewal_due("node-1", "runsc")


def test_a_proof_that_an_earlier_process_wrote_down_goes_on_ageing() -> None:
    store, other = EvidenceStore(), EvidenceStore()
    store.put("node-1", "runsc", known())
    other.load("node-1", json.loads(json.dumps(store.dump("node-1"))), {})
    assert other.expire(NOW + 0.74 * DAY) == []
    assert other.expire(NOW + 0.96 * DAY) == [("node-1", "runsc")]
    assert other.expire(NOW + DAY) == [("node-1", "runsc")]
    assert other.current(NODE, "runsc") is None


# --- The positive control ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("isolation", "controlled"),
    [(None, False), (PROVEN, False), (UNAVAILABLE, False), (NOT_PROVEN, True)],
)
def test_a_node_is_controlled_where_no_isolation_was_seen_to_read_its_boot_id(
    isolation: Isolation | None, controlled: bool
) -> None:
    store = EvidenceStore()
    store.put("node-1", "runsc", known(NOT_PROVEN))
    if isolation is not None:
        store.put("node-1", CONTROL, known(isolation))
    assert store.has_positive_control(NODE) == controlled
    assert not store.has_positive_control(replace(NODE, boot_id=GUEST_BOOT_ID))


# --- Damage --------------------------------------------------------------------------------------

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(
    st.dictionaries(st.text(max_size=5), anything, max_size=3),
    st.sampled_from(["isolation", "software", "at", "kernel"]),
    anything,
)
def test_damage_is_left_out_and_the_rest_kept(data: dict[str, Any], field: str, value: Any) -> None:
    store, fresh = EvidenceStore(), EvidenceStore()
    store.put("node-1", "good", known())
    good = store.dump("node-1")["good"]
    fresh.load("node-1", {**data, "good": good, "bad": {**good, field: value}}, {})
    assert fresh.current(NODE, "good") == known()
    bad = fresh.current(NODE, "bad")
    assert bad is None or bad.isolation is PROVEN


# --- Sandboxes that ran before something changed -------------------------------------------------

UPGRADED = replace(NODE, kubelet="v1.37.0")
LATER = NOW + 1000.0
# Before the change without doubt, perhaps after it, and after it without doubt.
OLD, MAYBE, NEW = (ran(at) for at in (LATER - UNSEEN_CHANGE_SECONDS - 1, LATER - 1, LATER + 1))


def upgraded(isolation: Isolation = PROVEN, *, watched: bool = True) -> EvidenceStore:
    """A store that saw its node get another kubelet at LATER, or finds it so when it begins."""
    store = EvidenceStore()
    if watched:
        store.observe_node("node-1", NODE, NOW)
    store.put("node-1", "runsc", known(isolation))
    store.put("node-1", CONTROL, known(NOT_PROVEN))
    store.observe_node("node-1", UPGRADED, LATER)
    return store


def stands(store: EvidenceStore, *pods: Pod, node: NodeFacts = UPGRADED) -> list[Isolation | None]:
    found = [store.evidence_for(it, node, "runsc") for it in pods]
    return [evidence.isolation if evidence is not None else None for evidence in found]


@pytest.mark.parametrize(
    "change",
    [
        {"container_runtime": "containerd://2.2.0"},
        {"kubelet": "v1.37.0"},
        {"handlers": frozenset({"runc", "runsc", "kata"})},
    ],
)
def test_what_ran_before_a_change_keeps_its_proof_and_what_is_started_later_has_none(
    change: dict[str, Any],
) -> None:
    store = EvidenceStore()
    store.observe_node("node-1", NODE, NOW)
    store.put("node-1", "runsc", known())
    changed = replace(NODE, **change)
    store.observe_node("node-1", changed, LATER)
    assert stands(store, OLD, MAYBE, NEW, ran(None), node=changed) == [PROVEN, None, None, None]
    store.put("node-1", "runsc", no_evidence(changed, CLASS_UID, LATER, "no room"))
    assert stands(store, OLD, MAYBE, NEW, node=changed) == [PROVEN, UNAVAILABLE, UNAVAILABLE]
    store.put("node-1", "runsc", known(node=changed, at=LATER + 60))
    assert stands(store, OLD, MAYBE, NEW, ran(None), node=changed) == [PROVEN] * 4


def test_however_often_it_changes_what_runs_keeps_its_proof() -> None:
    store, node = upgraded(), UPGRADED
    store.put("node-1", "runsc", known(node=node, at=LATER + 10))
    for i in range(5):
        node = replace(node, kubelet=f"v1.38.{i}")
        store.observe_node("node-1", node, LATER + 10_000 * (i + 1))
        assert stands(store, OLD, MAYBE, NEW, node=node) == [PROVEN] * 3
        assert stands(store, ran(LATER + 10_000 * (i + 1)), node=node) == [None]
    assert len(store.dump_superseded("node-1")["runsc"]) == 1, "what is kept is bounded"


def test_between_two_changes_without_an_answer_nothing_is_proven_that_was_started() -> None:
    store = upgraded()
    again = replace(UPGRADED, kubelet="v1.38.0")
    store.observe_node("node-1", again, LATER + 1000)
    assert stands(store, OLD, MAYBE, NEW, node=again) == [PROVEN, None, None]


@pytest.mark.parametrize("watched", [True, False])
def test_a_refutation_speaks_against_whatever_runs_on_the_machine(watched: bool) -> None:
    store = upgraded(watched=watched)
    store.put("node-1", "runsc", known(NOT_PROVEN, UPGRADED, at=LATER + 60))
    assert stands(store, OLD, MAYBE, NEW) == [NOT_PROVEN] * 3
    # What was mended since is proven only if it was started since.
    store.put("node-1", "runsc", known(PROVEN, UPGRADED, at=LATER + 600))
    mended = ran(LATER + 601)
    assert stands(store, OLD, MAYBE, NEW, ran(None), mended) == [*[NOT_PROVEN] * 4, PROVEN]
    again = replace(UPGRADED, kubelet="v1.38.0")
    store.observe_node("node-1", again, LATER + 5000)
    assert stands(store, OLD, NEW, mended, node=again) == [NOT_PROVEN, NOT_PROVEN, PROVEN]


def test_what_was_refuted_before_a_change_stays_so() -> None:
    store = upgraded(NOT_PROVEN)
    assert stands(store, OLD, MAYBE, NEW) == [NOT_PROVEN, NOT_PROVEN, None]
    store.put("node-1", "runsc", known(node=UPGRADED, at=LATER + 60))
    assert stands(store, OLD, MAYBE, NEW, ran(None)) == [NOT_PROVEN, NOT_PROVEN, PROVEN, NOT_PROVEN]


def test_what_was_refuted_before_a_quarantine_stays_so_after_it() -> None:
    store = EvidenceStore()
    store.put("node-1", "runsc", known(NOT_PROVEN))
    store.forget("node-1", "runsc", LATER)
    assert stands(store, OLD, NEW, node=NODE) == [NOT_PROVEN, None]


def test_a_change_that_nobody_watched_may_have_come_right_after_the_proof() -> None:
    store = upgraded(watched=False)
    before, after = ran(NOW - 1, created=NOW - 5), ran(NOW + 1)
    assert stands(store, before, after, OLD, NEW) == [PROVEN, None, None, None]


def test_a_process_that_has_just_begun_does_not_say_how_long_it_stood_before() -> None:
    store = EvidenceStore()
    store.load("node-1", {"runsc": msgspec.to_builtins(known())}, {})
    store.observe_node("node-1", NODE, LATER - 10)
    store.observe_node("node-1", UPGRADED, LATER)
    assert stands(store, ran(NOW - 1, created=NOW - 5), OLD) == [PROVEN, None]


@pytest.mark.parametrize("change", [{"uid": "another"}, {"boot_id": GUEST_BOOT_ID}])
def test_another_machine_or_a_reboot_makes_everything_void(change: dict[str, Any]) -> None:
    store = upgraded()
    other = replace(UPGRADED, **change)
    assert stands(store, OLD, node=other) == [None], "even before the store has been told"
    store.observe_node("node-1", other, LATER + 60)
    assert stands(store, OLD, node=other) == [None]
    assert not store.has_superseded("node-1")
    assert store.dump_superseded("node-1") == {}
    store = upgraded()
    store.observe_node("node-1", None, LATER + 60)
    assert not store.has_superseded("node-1")


def test_the_positive_control_of_a_sandbox_that_runs_holds_too() -> None:
    store = upgraded()
    assert not store.has_positive_control(UPGRADED)
    found = [store.evidence_for(it, UPGRADED, CONTROL) for it in (OLD, NEW)]
    assert [e.isolation if e else None for e in found] == [NOT_PROVEN, None]
    store.put("node-1", CONTROL, known(PROVEN, UPGRADED, at=LATER + 60))
    found = [store.evidence_for(it, UPGRADED, CONTROL) for it in (OLD, NEW)]
    assert [e.isolation if e else None for e in found] == [PROVEN, PROVEN], "it is made up"


def test_the_next_process_knows_the_former_proofs() -> None:
    store, other = upgraded(), EvidenceStore()
    former = json.loads(json.dumps(store.dump_superseded("node-1")))
    other.load("node-1", {}, {**former, "kata": [{"before": "x"}], "": 1})
    other.observe_node("node-1", UPGRADED, LATER + 60)
    assert stands(other, OLD, MAYBE, NEW) == [PROVEN, None, None]


# --- Silence -------------------------------------------------------------------------------------


def test_a_node_that_gives_no_answer_for_long_is_silent_until_it_gives_one() -> None:
    store = EvidenceStore()
    for at in (0.0, 30.0, 200.0):
        store.put("node-1", "runsc", no_evidence(NODE, CLASS_UID, NOW + at, "no room"))
    assert store.expire(NOW + PROBE_UNANSWERED_SECONDS - 1) == []
    assert not store.is_unanswered("node-1", "runsc")
    assert store.expire(NOW + PROBE_UNANSWERED_SECONDS) == [("node-1", "runsc")]
    assert store.is_unanswered("node-1", "runsc")
    store.put("node-1", "runsc", known(at=NOW + 400))
    assert not store.is_unanswered("node-1", "runsc")
    assert store.expire(NOW + 2 * PROBE_UNANSWERED_SECONDS) == []


def test_other_software_is_given_time_to_answer() -> None:
    store = EvidenceStore()
    store.put("node-1", "runsc", no_evidence(NODE, CLASS_UID, NOW, "no room"))
    store.expire(NOW + PROBE_UNANSWERED_SECONDS)
    store.observe_node("node-1", UPGRADED, NOW + 400)
    assert not store.is_unanswered("node-1", "runsc")
    store.put("node-1", "runsc", no_evidence(UPGRADED, CLASS_UID, NOW + 410, "no room"))
    assert store.expire(NOW + 410 + PROBE_UNANSWERED_SECONDS - 1) == []
    assert store.expire(NOW + 410 + PROBE_UNANSWERED_SECONDS) == [("node-1", "runsc")]
