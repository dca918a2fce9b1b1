"""The pods that a pool makes."""

import copy
import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxpool.api import names
from sandboxpool.api.v1alpha1.pool import DEFAULT_CONFIG_PATH
from sandboxpool.cluster.pool import revision_of
from sandboxpool.runtimes.exclusion import hostname_requirements, require_node_affinity
from sandboxpool.runtimes.node_constraints import is_feasible, node_constraints_of
from sandboxpool.runtimes.probe import ProbeImage
from sandboxpool.runtimes.verdict import Verdict
from sandboxpool.sandboxes.template import ClaimRef, build_pod, claim_metadata, pod_name
from support.builders import facts, pool, runtime

LINUX = {"key": "kubernetes.io/os", "operator": "NotIn", "values": ["windows"]}
AWAY = {"key": names.HOSTNAME_LABEL, "operator": "NotIn", "values": ["a", "b"]}
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
CONTAINERS = [{"name": "main", "image": "registry.example/a:1"}]


def terms(spec: dict[str, Any]) -> Any:
    return spec["affinity"]["nodeAffinity"][REQUIRED]["nodeSelectorTerms"]


PROBE_IMAGE = "registry.example/probe:1"


def built(
    template: dict[str, Any],
    hostnames: tuple[str, ...] | None = None,
    claim: ClaimRef | None = None,
    **spec: Any,
) -> dict[str, Any]:
    return build_pod(
        pool(template=template, **spec),
        runtime(),
        Verdict() if hostnames is None else Verdict(by_hostname=True, excluded=hostnames),
        "pool-1",
        probe=ProbeImage(PROBE_IMAGE),
        claim=claim,
    )


def test_a_pod_is_the_pools_and_names_what_it_was_made_from() -> None:
    made = built({"spec": {"containers": CONTAINERS}, "metadata": {"labels": {"app": "x"}}})
    metadata = made["metadata"]
    (owner,) = metadata["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("SandboxPool", "pool-uid")
    assert owner["controller"] is True
    assert owner["blockOwnerDeletion"] is False
    assert metadata["labels"]["app"] == "x"
    assert metadata["labels"][names.LABEL_POOL_UID] == "pool-uid"
    assert metadata["annotations"][names.ANNOTATION_HANDLER] == "runsc"
    assert metadata["annotations"][names.ANNOTATION_RUNTIME_UID] == "class-uid"
    assert metadata["annotations"][names.ANNOTATION_SAFE_TO_EVICT] == "true"
    assert names.ANNOTATION_DO_NOT_DISRUPT not in metadata["annotations"]
    assert made["spec"]["runtimeClassName"] == "gvisor"
    assert "overhead" not in made["spec"]
    spec = built({"spec": {"containers": CONTAINERS}}, ())["spec"]
    assert terms(spec) == [{"matchExpressions": [LINUX]}], "Windows runs none of them"


def test_defaults_are_safe_and_the_template_may_say_otherwise() -> None:
    plain = built({"spec": {"containers": CONTAINERS}})["spec"]
    assert plain["automountServiceAccountToken"] is False
    assert plain["enableServiceLinks"] is False
    assert plain["restartPolicy"] == "Never"
    said = {"containers": CONTAINERS, "restartPolicy": "Always", "enableServiceLinks": True}
    chosen = built({"spec": said})["spec"]
    assert (chosen["restartPolicy"], chosen["enableServiceLinks"]) == ("Always", True)


def test_only_where_each_sandbox_is_proven_a_probe_goes_before_the_templates_own() -> None:
    template = {"spec": {"containers": CONTAINERS, "initContainers": [{"name": "mine"}]}}
    made = built(template, isolationProof="PerSandbox")
    first, second = made["spec"]["initContainers"]
    assert (first["name"], first["image"]) == ("sandboxpool-probe", PROBE_IMAGE)
    assert second == {"name": "mine"}
    plain = built(template, isolationProof="PerNode")
    assert plain["spec"]["initContainers"] == [{"name": "mine"}]
    labels = [m["metadata"]["labels"][names.LABEL_REVISION] for m in (made, plain)]
    assert labels[0] != labels[1], "pods without the probe are outdated once it is wanted"
    off = built(template, isolationProof="None")
    assert off["metadata"]["labels"][names.LABEL_REVISION] == labels[1]


def test_a_template_cannot_take_over_the_operators_own_labels() -> None:
    """The CRD refuses such a template; one from before that rule must not do harm."""
    raw = pool(template={"spec": {"containers": CONTAINERS}})
    stolen = {"labels": {names.LABEL_POOL_UID: "other"}}
    made = build_pod(
        dataclasses.replace(raw, template={**raw.template, "metadata": stolen}),
        runtime(),
        Verdict(),
        "pool-1",
        probe=ProbeImage(PROBE_IMAGE),
    )
    assert made["metadata"]["labels"][names.LABEL_POOL_UID] == "pool-uid"


def test_a_cold_pod_is_its_claims_from_the_start() -> None:
    claim = ClaimRef("job", "job-uid", labels=(("example.com/a", "b"),))
    metadata = built({"spec": {"containers": CONTAINERS}}, claim=claim)["metadata"]
    (owner,) = metadata["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("SandboxClaim", "job-uid")
    assert metadata["labels"][names.LABEL_CLAIM_UID] == "job-uid"
    assert metadata["labels"]["example.com/a"] == "b"
    assert metadata["annotations"][names.ANNOTATION_SOURCE] == "Cold"
    assert metadata["annotations"][names.ANNOTATION_SAFE_TO_EVICT] == "false"
    assert metadata["annotations"][names.ANNOTATION_DO_NOT_DISRUPT] == "true"


def test_a_claim_replaces_nothing_that_the_template_or_the_operator_sets() -> None:
    claim = ClaimRef(
        "job",
        "job-uid",
        labels=(("example.com/network", "open"), (names.LABEL_POOL_UID, "other"), ("a", "b")),
        annotations=(("example.com/tier", "gold"), (names.ANNOTATION_HANDLER, "runc")),
    )
    set_by_template = {
        "labels": {"example.com/network": "isolated"},
        "annotations": {"example.com/tier": "none"},
    }
    template = {"spec": {"containers": CONTAINERS}, "metadata": set_by_template}
    metadata = built(template, claim=claim)["metadata"]
    assert metadata["labels"].items() >= {"example.com/network": "isolated", "a": "b"}.items()
    assert metadata["labels"][names.LABEL_POOL_UID] == "pool-uid"
    assert metadata["annotations"]["example.com/tier"] == "none"
    assert metadata["annotations"][names.ANNOTATION_HANDLER] == "runsc"


def test_a_bound_pod_keeps_its_labels_and_annotations() -> None:
    """A warm pod may be of an older template, whose keys the pool's spec no longer shows."""
    claim = ClaimRef("job", "uid", (("network", "open"), ("a", "b")), (("tier", "gold"),))
    had = {names.ANNOTATION_SAFE_TO_EVICT: "true", "tier": "none"}
    given = claim_metadata(claim, labels={"network": "isolated"}, annotations=had)
    assert given["labels"] == {"a": "b", names.LABEL_CLAIM: "job", names.LABEL_CLAIM_UID: "uid"}
    assert given["annotations"] == {
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
        "karpenter.sh/do-not-disrupt": "true",
    }


def test_an_exclusion_goes_into_every_term() -> None:
    zone = {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}
    named = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]}
    affinity = {"podAffinity": {}, "nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [zone, named]}}}
    spec = built({"spec": {"containers": CONTAINERS, "affinity": affinity}}, ("a", "b"))["spec"]
    assert terms(spec) == [
        {"matchExpressions": [*zone["matchExpressions"], LINUX, AWAY]},
        {"matchFields": named["matchFields"], "matchExpressions": [LINUX, AWAY]},
    ]
    assert spec["affinity"]["podAffinity"] == {}


def test_without_an_affinity_the_exclusion_is_all_of_it() -> None:
    spec = built({"spec": {"containers": CONTAINERS}}, ("a", "b"))["spec"]
    assert terms(spec) == [{"matchExpressions": [LINUX, AWAY]}]


@pytest.mark.parametrize(
    ("of_pod", "user"),
    [(None, None), ({"runAsUser": 1000}, None), ({"runAsUser": 0}, 65532), ("odd", None)],
)
def test_a_template_that_makes_everything_root_does_not_make_the_probe_root(
    of_pod: Any, user: int | None
) -> None:
    """The kubelet starts no container that is to be root and must not be root."""
    spec = {"containers": CONTAINERS, **({"securityContext": of_pod} if of_pod else {})}
    made = built({"spec": spec}, isolationProof="PerSandbox")["spec"]
    assert made["initContainers"][0]["securityContext"].get("runAsUser") == user


@pytest.mark.parametrize(
    ("proof", "limits", "minds"),
    [
        ("PerNode", {}, ["NotIsolatingNoUserNamespaces", "NotIsolating"]),
        ("PerSandbox", {"hostUsers": True}, ["NotIsolatingNoUserNamespaces", "NotIsolating"]),
        ("None", {}, []),
        ("None", {"hostUsers": False}, ["NotIsolatingNoUserNamespaces", "NoUserNamespaces"]),
        (
            "PerNode",
            {"hostUsers": False},
            ["NotIsolatingNoUserNamespaces", "NotIsolating", "NoUserNamespaces"],
        ),
    ],
)
def test_pods_keep_away_from_labelled_nodes(
    proof: str, limits: dict[str, Any], minds: list[str]
) -> None:
    """Who wants no proof may use nodes on which the runtime does not isolate."""
    spec = built({"spec": {"containers": CONTAINERS, **limits}}, isolationProof=proof)["spec"]
    values = ["NotServing", "Quarantined", "Unavailable", *minds]
    assert terms(spec) == [
        {
            "matchExpressions": [
                LINUX,
                {"key": "excluded.sandboxpool.io/runsc", "operator": "NotIn", "values": values},
                {"key": "excluded.sandboxpool.io/pool-pool-uid", "operator": "DoesNotExist"},
            ]
        }
    ]


def requirements() -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(
        lambda key, operator, value: {"key": key, "operator": operator, "values": [value]},
        st.sampled_from(["zone", "disk"]),
        st.sampled_from(["In", "NotIn"]),
        st.sampled_from("ab"),
    )


@given(
    st.lists(st.lists(requirements(), max_size=2), min_size=1, max_size=3),
    st.fixed_dictionaries({"zone": st.sampled_from("ab"), "disk": st.sampled_from("ab")}),
    st.booleans(),
)
def test_an_exclusion_only_ever_takes_away_the_nodes_it_names(
    alternatives: list[list[dict[str, Any]]], labels: dict[str, str], named: bool
) -> None:
    listed = [{"matchExpressions": found} for found in alternatives]
    spec = {"affinity": {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": listed}}}}
    node = facts(labels={**labels, names.HOSTNAME_LABEL: "a" if named else "z"})
    before = is_feasible(node_constraints_of(spec, runtime()), node, now=True)
    limited = {
        "affinity": require_node_affinity(spec["affinity"], hostname_requirements(["a", "b"]))
    }
    after = is_feasible(node_constraints_of(limited, runtime()), node, now=True)
    assert after == (before and not named)


@given(st.booleans())
def test_the_template_itself_is_never_changed(cold: bool) -> None:
    affinity: dict[str, Any] = {
        "nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [{"matchExpressions": []}]}}
    }
    template = {
        "metadata": {"labels": {"a": "b"}, "annotations": {"c": "d"}},
        "spec": {"containers": copy.deepcopy(CONTAINERS), "affinity": affinity},
    }
    before = copy.deepcopy(template)
    claim = ClaimRef("job", "uid", (("x", "y"),), (("z", "w"),)) if cold else None
    made = built(template, ("a", "b"), claim=claim)
    assert template == before
    made["spec"]["containers"][0]["name"] = "changed"
    made["metadata"]["labels"]["a"] = "changed"
    terms(made["spec"])[0]["matchExpressions"].append("changed")
    assert template == before


def test_a_seed_names_one_pod_for_ever() -> None:
    assert pod_name("pool", "seed") == "pool-19b25856e1"
    assert pod_name("pool", "seed") != pod_name("pool", "other")
    assert len(pod_name("p" * names.MAX_POOL_NAME, "seed")) == 63


@pytest.mark.parametrize("hostnames", [None, (), ("a",)])
def test_an_exclusion_is_no_part_of_the_revision(hostnames: tuple[str, ...] | None) -> None:
    template = {"spec": {"containers": CONTAINERS}}
    made = built(template, hostnames)
    revision = revision_of(template, config_path=DEFAULT_CONFIG_PATH)
    assert made["metadata"]["labels"][names.LABEL_REVISION] == revision


def test_the_order_of_keys_is_no_part_of_the_revision() -> None:
    assert revision_of({"a": {"x": 1, "y": 2}, "b": 3}) == revision_of(
        json.loads('{"b": 3, "a": {"y": 2, "x": 1}}')
    )
