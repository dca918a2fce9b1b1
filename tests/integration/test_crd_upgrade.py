"""What an upgrade of the CRDs does to objects that break a rule of the new ones.

They must go on: whoever writes their status, metadata or another field of their spec must not be
refused for what was there before. Shown on the oldest API server that the chart takes and on the
one of all other tests.

Three generations of CRDs follow each other on each server: one that takes anything, so that there
is an object for every rule that it breaks; the one of before the last changes; and the present one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fakekubelet import ApiError
from integration.test_crd_validation import (
    API_SERVERS,
    CLAIM,
    CLAIM_CASES,
    POOL,
    POOL_CASES,
    variant,
)
from localcluster.controlplane import ControlPlane
from sandboxpool.api import names
from sandboxpool.cluster.pools import parse
from sandboxpool.pools.status import invalid_status
from support import Api, objects
from support.api import Object, condition
from support.crds import CRDS, apply_crds
from support.waiting import eventually

FORMER = Path(__file__).resolve().parent / "former_crds"
NAMESPACE = "upgrade"
LONG = "n" * 60

# What no CRD has ever let in: another type, a part that is missing, what is no count for /scale.
# The API server cannot pass over these, so nothing of the sort may be added or tightened later.
NEVER_THERE = frozenset(
    {
        "runtime class missing",
        "runtime class of another type",
        "replicas negative",
        "replicas no number",
        "template missing",
        "template without containers",
        "maxUnavailable of another type",
        "pool without a spec",
        "pool missing",
        "claim without a spec",
    }
)

BROKEN = {
    **{f"pool-{i}": (POOL, case) for i, case in enumerate(POOL_CASES)},
    **{f"claim-{i}": (CLAIM, case) for i, case in enumerate(CLAIM_CASES)},
}


def read(directory: Path) -> list[Object]:
    return [yaml.safe_load(path.read_text()) for path in sorted(directory.glob("*.yaml"))]


def anything(crd: Object) -> Object:
    """The CRD without any rule but that an object is one."""
    crd = copy.deepcopy(crd)
    (version,) = crd["spec"]["versions"]
    free = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version["schema"] = {
        "openAPIV3Schema": {**free, "properties": {"spec": free, "status": free}},
    }
    version["subresources"].pop("scale", None)
    return crd


def replace(api: Api, crds: list[Object]) -> None:
    for crd in crds:
        name = crd["metadata"]["name"]
        version = api.get("CustomResourceDefinition", name)["metadata"]["resourceVersion"]
        api.replace({**crd, "metadata": {"name": name, "resourceVersion": version}})


def takes(api: Api, body: Object) -> bool:
    """Whether the API server would make the object."""
    try:
        api.create(body, dryRun="All", fieldValidation="Strict")
    except ApiError as error:
        if error.status not in (400, 422):
            raise
        return False
    return True


def named(base: Object, name: str, **spec: Any) -> Object:
    body = variant(base, {f"spec.{field}": value for field, value in spec.items()})
    body["metadata"] = {"name": name, "namespace": NAMESPACE}
    return body


def body_of(name: str) -> Object:
    """The object that breaks one rule."""
    base, case = BROKEN[name]
    body = variant(base, case.refused)
    body["metadata"]["namespace"] = NAMESPACE
    if "metadata.name" not in case.refused:
        body["metadata"]["name"] = name
    return body


STAGE = {"p50Seconds": 0.3, "p95Seconds": 0.5, "p99Seconds": 0.9, "samples": 7}
STARTUP = {"stages": {"ready": STAGE}, "windowSeconds": 3600}


def of_the_former(api: Api) -> None:
    """Objects that were right before the last changes."""
    for body in (
        named(POOL, LONG),
        named(CLAIM, "of-long", poolName=LONG),
        named(POOL, "off", isolationProof="Off", claims={"retainSeconds": 7}),
        named(POOL, "measured", update={"maxUnavailable": 3}),
    ):
        api.create(body, fieldValidation="Strict")
    runtime = {"apiVersion": names.API_VERSION, "kind": names.RUNTIME_KIND}
    api.create({**runtime, "metadata": {"name": "gvisor"}})
    api.patch_status("SandboxPool", "measured", {"startup": STARTUP})
    api.patch_status("SandboxRuntime", "gvisor", {"startup": STARTUP})


@pytest.fixture(scope="module", params=API_SERVERS)
def api(request: pytest.FixtureRequest) -> Iterator[Api]:
    """An API server with the present CRDs and objects from before."""
    present = read(CRDS)
    with ControlPlane(apiserver=request.param) as plane, Api(plane.kubeconfig) as admin:
        apply_crds(admin, [anything(crd) for crd in present])
        admin.create(objects.namespace(NAMESPACE))
        upgraded = admin.within(NAMESPACE)
        for name in BROKEN:
            upgraded.create(body_of(name))
        replace(upgraded, read(FORMER))
        eventually(
            lambda: (
                takes(upgraded, named(POOL, "x", isolationProof="Off"))
                and not takes(upgraded, named(POOL, "x", isolationProof="None"))
            ),
            message="the former CRD is in force",
        )
        of_the_former(upgraded)
        replace(upgraded, present)
        eventually(
            lambda: (
                not takes(upgraded, named(POOL, "x", isolationProof="Off"))
                and not takes(upgraded, named(CLAIM, "x", poolName=LONG))
            ),
            message="the present CRDs are in force",
        )
        yield upgraded


def goes_on(api: Api, kind: str, name: str, **spec: Any) -> Object:
    """Writes all that is written to an object in its life, and returns it as it is then."""
    api.patch_status(kind, name, {"observedGeneration": 7})
    for finalizers in (["example.com/kept"], []):
        patch = {"metadata": {"labels": {"example.com/seen": "yes"}, "finalizers": finalizers}}
        api.patch(kind, name, patch)
    written = api.patch_spec(kind, name, **spec)
    assert written["status"]["observedGeneration"] == 7
    return written


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, id=f"{name}: {case.name}")
        for name, (_, case) in BROKEN.items()
        if case.name not in NEVER_THERE
    ],
)
def test_no_rule_blocks_an_object_that_breaks_it(api: Api, name: str) -> None:
    body = body_of(name)
    if name.startswith("pool"):
        goes_on(api, body["kind"], body["metadata"]["name"], paused=True)
    else:
        goes_on(api, body["kind"], body["metadata"]["name"], ttlSeconds=77)


def test_a_pool_whose_name_is_too_long_goes_on_and_no_other_is_made(api: Api) -> None:
    goes_on(api, "SandboxPool", LONG, replicas=3)
    assert api.scale("SandboxPool", LONG, 4)["spec"]["replicas"] == 4
    with pytest.raises(ApiError, match="a name of at most 52 characters"):
        api.create(named(POOL, f"{LONG}n"))
    assert takes(api, named(POOL, "n" * 52))


def test_a_claim_of_such_a_pool_goes_on_and_no_other_is_made(api: Api) -> None:
    goes_on(api, "SandboxClaim", "of-long", ttlSeconds=77)
    with pytest.raises(ApiError, match="poolName: Too long"):
        api.create(named(CLAIM, "another", poolName=LONG))


def test_a_pool_with_the_value_off_gets_a_message_and_can_be_corrected(api: Api) -> None:
    """Nothing is guessed: the operator leaves it alone and says which field it is."""
    pool = parse(goes_on(api, "SandboxPool", "off", replicas=3), None)
    assert pool.spec is None
    assert "spec.isolationProof: Input should be 'None', 'PerNode'" in pool.spec_error
    told = api.patch_status("SandboxPool", "off", invalid_status(pool, 1.0))
    ready = condition(told, "Ready")
    assert ready is not None
    assert (ready["status"], ready["reason"]) == ("False", "InvalidObject")
    assert "spec.isolationProof" in ready["message"]
    mended = parse(api.patch_spec("SandboxPool", "off", isolationProof="None"), None)
    assert (mended.spec_error, mended.proof) == ("", "None")


def test_what_was_called_otherwise_is_dropped_and_refused_in_manifests(api: Api) -> None:
    claims = api.get("SandboxPool", "off")["spec"]["claims"]
    assert "retainSeconds" not in claims
    assert claims["ttlSecondsAfterFinished"] == 3600
    with pytest.raises(ApiError, match=r"unknown field .*spec\.claims\.retainSeconds"):
        api.create(named(POOL, "new", claims={"retainSeconds": 7}), fieldValidation="Strict")


def test_a_number_may_become_a_percentage(api: Api) -> None:
    written = goes_on(api, "SandboxPool", "measured", update={"maxUnavailable": "50%"})
    assert written["spec"]["update"]["maxUnavailable"] == "50%"


@pytest.mark.parametrize(
    ("kind", "name"), [("SandboxPool", "measured"), ("SandboxRuntime", "gvisor")]
)
def test_figures_under_their_former_names_block_nothing(api: Api, kind: str, name: str) -> None:
    api.patch(kind, name, {"metadata": {"labels": {"example.com/a": "b"}}})
    told = api.patch_status(kind, name, {"conditions": []})
    assert told["status"]["startup"]["stages"]["ready"] == {"samples": 7}
    now = {f"p{n}Milliseconds": n for n in (50, 95, 99)}
    stages = {"stages": {"ready": {**now, "samples": 8}}}
    told = api.patch_status(kind, name, {"startup": stages})
    assert told["status"]["startup"]["stages"]["ready"] == {**now, "samples": 8}
