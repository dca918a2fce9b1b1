"""What others' schedulers say of our pods: kube-scheduler's own code, and Karpenter's."""

import json
import random
import subprocess
from typing import Any

import msgspec
import pytest

from localcluster import tools
from sandboxpool.api.core import Node
from sandboxpool.runtimes.exclusion import PREFIX, handler_key, is_excluded, pool_key
from sandboxpool.runtimes.node_constraints import (
    admitted_node_constraints,
    is_feasible,
    node_constraints_of,
)
from sandboxpool.runtimes.nodes import node_facts
from sandboxpool.runtimes.probe import ProbeImage
from sandboxpool.runtimes.verdict import Verdict
from sandboxpool.sandboxes.template import build_pod
from support.builders import POOL_UID, pool, runtime

Body = dict[str, Any]

CASES = 20_000
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
HOSTNAME = "kubernetes.io/hostname"
KEYS = ("a", "b", HOSTNAME)
# Numbers as Go reads them, and what only resembles one.
VALUES = ("", "x", "1", "2", "10", "007", "1_0", "1.5", str(2**63 - 1), str(2**63))
BOUNDS = ("0", "1", "5", str(2**63 - 1))
TAINTS = (
    "mine",
    "node.kubernetes.io/unschedulable",
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
    "node.kubernetes.io/memory-pressure",
)
EFFECTS = ("NoSchedule", "NoExecute", "PreferNoSchedule")
# What the plugin DefaultTolerationSeconds adds to every pod.
DEFAULTS = [
    {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
    for key in TAINTS[2:4]
]


def ask(binary: str, questions: list[Body]) -> list[Any]:
    answer = subprocess.run(
        [str(tools.path(binary))],
        input="\n".join(map(json.dumps, questions)),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert answer.returncode == 0, answer.stderr
    return [json.loads(line) for line in answer.stdout.splitlines()]


class Dice(random.Random):
    """Pods and nodes as the API's validation lets them pass."""

    def requirement(self) -> Body:
        operator = self.choice(("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"))
        values = {"Exists": [], "DoesNotExist": []}.get(operator, self.sample(VALUES, 2))
        if operator in ("Gt", "Lt"):
            values = [self.choice(BOUNDS)]
        return {"key": self.choice(KEYS), "operator": operator, "values": values}

    def term(self) -> Body:
        found: Body = {}
        if self.random() < 0.8:
            found["matchExpressions"] = [self.requirement() for _ in range(self.randint(0, 3))]
        if self.random() < 0.2:
            field = {"key": "metadata.name", "operator": self.choice(("In", "NotIn"))}
            found["matchFields"] = [{**field, "values": [self.choice(("node-0", "node-1"))]}]
        return found

    def toleration(self) -> Body:
        found: Body = {"operator": "Exists"}
        if self.random() < 0.8:
            found["key"] = self.choice(TAINTS)
            if self.random() < 0.5:
                found |= {"operator": "Equal", "value": self.choice(("", "v"))}
        if self.random() < 0.5:
            found["effect"] = self.choice(EFFECTS)
        return found

    def spec(self) -> Body:
        found: Body = {"containers": []}
        if self.random() < 0.3:
            found["nodeSelector"] = {self.choice(KEYS): self.choice(VALUES[:4])}
        if self.random() < 0.6:
            terms = [self.term() for _ in range(self.randint(1, 3))]
            found["affinity"] = {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": terms}}}
        found["tolerations"] = [self.toleration() for _ in range(self.randint(0, 2))]
        return found

    def node(self) -> Body:
        labels = {key: self.choice(VALUES) for key in KEYS if self.random() < 0.7}
        for key in (handler_key("runsc"), handler_key("other"), pool_key(POOL_UID)):
            if self.random() < 0.2:
                labels[key] = self.choice(("NotServing", "Unavailable", "NotIsolating", "Avoided"))
        taints = [
            {
                "key": self.choice(TAINTS),
                "value": self.choice(("", "v")),
                "effect": self.choice(EFFECTS),
            }
            for _ in range(self.choice((0, 0, 1, 2)))
        ]
        # As Kubernetes' own controller keeps them: where one ends pods, one forbids new ones, too.
        taints += [
            {**taint, "effect": "NoSchedule"}
            for taint in taints
            if taint["key"] in TAINTS[2:4] and taint["effect"] == "NoExecute"
        ]
        name = f"node-{self.randint(0, 1)}"
        return {
            "metadata": {"name": name, "uid": "u", "resourceVersion": "1", "labels": labels},
            "spec": {"unschedulable": self.random() < 0.1, "taints": taints},
        }


def test_pods_land_where_kube_scheduler_lets_them_and_on_no_node_that_is_kept_out() -> None:
    dice = Dice(7)
    questions, ours = [], []
    for _ in range(CASES):
        proof = dice.choice(("PerNode", "None"))
        spec, body = dice.spec(), dice.node()
        made = build_pod(
            pool(template={"spec": spec}, isolationProof=proof),
            runtime(),
            Verdict(),
            "pod-1",
            probe=ProbeImage("image"),
        )
        node = node_facts(msgspec.convert(body, Node))
        kept_out = pool_key(POOL_UID) in node.exclusions or is_excluded(
            node.exclusions, "runsc", proof_wanted=proof == "PerNode", user_namespaces=False
        )
        ours.append(
            is_feasible(node_constraints_of(spec, runtime()), node, now=True) and not kept_out
        )
        questions.append({"pod": {"spec": made["spec"]}, "node": body})
    theirs = ask("scheduler-check", questions)
    wrong = [q for q, mine, true in zip(questions, ours, theirs, strict=True) if mine != true]
    assert not wrong, f"{len(wrong)} of {CASES}, such as {json.dumps(wrong[0])}"
    assert CASES * 0.1 < sum(theirs) < CASES * 0.9, "both answers are common"


def test_the_admitted_pod_is_judged_as_kube_scheduler_judges_it() -> None:
    """But for our own labels, which are no limit of the pool's."""
    dice = Dice(8)
    questions, ours = [], []
    for _ in range(CASES):
        made = build_pod(
            pool(template={"spec": dice.spec()}),
            runtime(),
            Verdict(),
            "pod-1",
            probe=ProbeImage("image"),
        )
        made["spec"]["nodeSelector"] = {"a": "x", **made["spec"].get("nodeSelector", {})}
        made["spec"]["tolerations"] += DEFAULTS
        body = dice.node()
        for key in [key for key in body["metadata"]["labels"] if key.startswith(PREFIX)]:
            del body["metadata"]["labels"][key]
        placement = admitted_node_constraints(json.dumps(made).encode(), runtime())
        ours.append(is_feasible(placement, node_facts(msgspec.convert(body, Node)), now=True))
        questions.append({"pod": {"spec": made["spec"]}, "node": body})
    theirs = ask("scheduler-check", questions)
    wrong = [q for q, mine, true in zip(questions, ours, theirs, strict=True) if mine != true]
    assert not wrong, f"{len(wrong)} of {CASES}, such as {json.dumps(wrong[0])}"
    assert sum(theirs) > CASES * 0.02


@pytest.mark.parametrize("proof", ["PerNode", "PerSandbox", "None"])
def test_karpenter_makes_nodes_for_pods_that_keep_away_by_label_and_none_by_hostname(
    proof: str,
) -> None:
    zone = {"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["a"]}
    terms = [{"matchExpressions": [zone]}, {"matchExpressions": [{**zone, "values": ["b"]}]}]
    affinity = {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": terms}}}
    by_label, by_label_too, by_hostname = ask(
        "karpenter-check",
        [
            build_pod(
                pool(template={"spec": {"containers": [], **limits}}, isolationProof=proof),
                runtime(handler="kata-qemu"),
                verdict,
                "pod-1",
                probe=ProbeImage("image"),
            )
            for limits, verdict in (
                ({}, Verdict()),
                ({"affinity": affinity}, Verdict()),
                ({}, Verdict(by_hostname=True, excluded=("node-1",))),
            )
        ],
    )
    assert by_label == []
    assert by_label_too == []
    (why,) = by_hostname
    assert HOSTNAME in why, "what NodesServing says of it (ExcludedByHostname) holds no more"
