"""Every rule of the CRDs against a real API server: one object accepted, one refused.

A refusal must tell its reader which field, why, and what to do instead; each case names a piece of
all three, so a rule that lost its message fails here. All of it holds on the oldest API server that
the chart takes, and on the one of all other tests.
"""

import copy
import json
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from localcluster import builds
from localcluster.controlplane import APISERVER_VARIABLE, ControlPlane
from sandboxpool.api import names
from sandboxpool.api.reasons import Reason
from sandboxpool.cluster.sandbox_state import SandboxState
from sandboxpool.fleet.status import GENERATION, RuntimeStatusInput, runtime_status
from sandboxpool.runtimes.evidence import Isolation
from sandboxpool.runtimes.evidence_store import EvidenceSummary
from sandboxpool.runtimes.failure_history import FailureSummary
from sandboxpool.runtimes.resolve import Runtime
from sandboxpool.runtimes.verdict import Verdict
from support import Api, objects
from support.crds import apply_crds

NAMESPACE = "crd-validation"
ABSENT = object()

Body = dict[str, Any]

POOL: Body = {
    "apiVersion": names.API_VERSION,
    "kind": names.POOL_KIND,
    "metadata": {"name": "pool", "namespace": NAMESPACE},
    "spec": {
        "runtimeClassName": "gvisor",
        "template": {"spec": {"containers": [{"name": "main", "image": "example.com/image"}]}},
    },
}
CLAIM: Body = {
    "apiVersion": names.API_VERSION,
    "kind": names.CLAIM_KIND,
    "metadata": {"name": "claim", "namespace": NAMESPACE},
    "spec": {"poolName": "pool", "runtimeClassName": "gvisor", "ttlSeconds": 60},
}


def variant(base: Body, changes: dict[str, Any]) -> Body:
    """Copy an object with some fields set, or removed where the value is ABSENT."""
    body = copy.deepcopy(base)
    for path, value in changes.items():
        *parents, last = path.split(".")
        node = body
        for name in parents:
            node = node.setdefault(name, {})
        if value is ABSENT:
            node.pop(last, None)
        else:
            node[last] = value
    return body


@dataclass(frozen=True)
class Case:
    """One rule: what passes it, what fails it, and what the refusal says."""

    name: str
    accepted: dict[str, Any]
    refused: dict[str, Any]
    in_message: tuple[str, ...]
    before: dict[str, Any] | None = field(default=None)


# The name of a RuntimeClass, which no label has to hold.
RUNTIME: Body = {
    "apiVersion": names.API_VERSION,
    "kind": names.RUNTIME_KIND,
    "metadata": {"name": "a" * 253},
}


def collection(body: Body) -> str:
    plural = {
        names.POOL_KIND: names.POOLS,
        names.CLAIM_KIND: names.CLAIMS,
        names.RUNTIME_KIND: names.RUNTIMES,
    }[body["kind"]]
    where = "" if plural == names.RUNTIMES else f"/namespaces/{NAMESPACE}"
    return f"/apis/{names.API_VERSION}{where}/{plural}"


# The API server words the refusals by the schema. Since a version it says the first of each pair,
# before it the second.
WORDED_SINCE = (
    ((1, 32), ("may not be more than", "may not be longer than")),
    # Refusals of a status name its fields only.
    ((1, 31), ("status.", "")),
)


class Server:
    """The API server, with refusals as values."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        version = plane.request("GET", "/version")
        self._version = int(version["major"]), int(version["minor"].rstrip("+"))

    def worded(self, text: str) -> str:
        """What this version says where the newest says `text`."""
        for since, (newer, older) in WORDED_SINCE:
            if self._version < since:
                text = text.replace(newer, older)
        return text

    def send(self, method: str, path: str, body: object = None) -> tuple[int, Body]:
        try:
            return 200, self._plane.request(method, path, body)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def dry_create(self, body: Body) -> tuple[int, Body]:
        return self.send("POST", f"{collection(body)}?dryRun=All&fieldValidation=Strict", body)

    def dry_update(self, body: Body) -> tuple[int, Body]:
        return self.send("PUT", f"{collection(body)}/{body['metadata']['name']}?dryRun=All", body)

    def create(self, body: Body) -> Body:
        status, answer = self.send("POST", collection(body), body)
        assert status == 200, answer
        return answer

    def put_status(self, body: Body, status: Body) -> tuple[int, Body]:
        path = f"{collection(body)}/{body['metadata']['name']}/status"
        return self.send("PUT", path, {**body, "status": status})

    def row(self, body: Body) -> dict[str, Any]:
        """What `kubectl get` prints of an object, by column."""
        request = urllib.request.Request(
            f"{self._plane.url}{collection(body)}/{body['metadata']['name']}"
        )
        request.add_header("Authorization", f"Bearer {self._plane.admin_token}")
        request.add_header("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
        context = ssl.create_default_context(cafile=str(self._plane.ca_file))
        with urllib.request.urlopen(request, timeout=10, context=context) as response:
            table = json.load(response)
        headings = [column["name"] for column in table["columnDefinitions"]]
        return dict(zip(headings, table["rows"][0]["cells"], strict=True))

    def delete(self, body: Body) -> None:
        self.send("DELETE", f"{collection(body)}/{body['metadata']['name']}")


# None is the one of all other tests. `make compat` chooses it, and wants no other.
API_SERVERS = [pytest.param(None, id="usual")]
if APISERVER_VARIABLE not in os.environ:
    API_SERVERS.insert(0, pytest.param(builds.apiserver(builds.OTHER_VERSIONS[0]), id="oldest"))


@pytest.fixture(scope="module", params=API_SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """An API server with the CRDs and a namespace for the objects."""
    with ControlPlane(apiserver=request.param) as plane, Api(plane.kubeconfig) as api:
        apply_crds(api)
        api.create(objects.namespace(NAMESPACE))
        yield Server(plane)


PREFIXES = "spec.claims.allowedMetadataPrefixes"

POOL_CASES = [
    *(
        Case(
            f"configuration at {path!r}",
            {"spec.claims.configPath": good},
            {"spec.claims.configPath": path},
            ("spec.claims.configPath: Invalid", f'"{path}" is not an absolute path', 'or ""'),
        )
        for good, path in (
            ("/run/sandbox", "run/sandbox"),
            ("", "/"),
            ("/a", "/a/"),
            ("/a.b/C_d-0", "/a/../b"),
            (ABSENT, "/a//b"),
            ("/0", "/a:b"),
        )
    ),
    Case(
        "runtime class missing",
        {"spec.runtimeClassName": "kata-qemu"},
        {"spec.runtimeClassName": ABSENT},
        ("spec.runtimeClassName: Required value",),
    ),
    Case(
        "runtime class empty",
        {"spec.runtimeClassName": "a"},
        {"spec.runtimeClassName": ""},
        ("spec.runtimeClassName: Invalid", '"" cannot be the name', "kubectl get runtimeclass"),
    ),
    Case(
        "runtime class in upper case",
        {"spec.runtimeClassName": "kata.v2"},
        {"spec.runtimeClassName": "Kata"},
        ("spec.runtimeClassName: Invalid", '"Kata" cannot be the name', "use lower-case"),
    ),
    Case(
        "runtime class with a newline at the end",
        {"spec.runtimeClassName": "kata"},
        {"spec.runtimeClassName": "kata\n"},
        ("spec.runtimeClassName: Invalid", "cannot be the name", "use lower-case"),
    ),
    Case(
        "runtime class too long",
        {"spec.runtimeClassName": "a" * 253},
        {"spec.runtimeClassName": "a" * 254},
        ("spec.runtimeClassName: Too long", "may not be more than 253"),
    ),
    Case(
        "runtime class of another type",
        {"spec.runtimeClassName": "1"},
        {"spec.runtimeClassName": 1},
        ("spec.runtimeClassName: Invalid", "must be of type string"),
    ),
    Case(
        "expected handler",
        {"spec.expectedHandler": "runsc"},
        {"spec.expectedHandler": "runsc.v1"},
        (
            "spec.expectedHandler: Invalid",
            '"runsc.v1" cannot be the name of a handler',
            "use lower",
        ),
    ),
    Case(
        "expected handler empty",
        {"spec.expectedHandler": ABSENT},
        {"spec.expectedHandler": ""},
        ("spec.expectedHandler: Invalid", '"" cannot be', "leave the field out"),
    ),
    Case(
        "replicas negative",
        {"spec.replicas": 0},
        {"spec.replicas": -1},
        ("spec.replicas: Invalid", "should be greater than or equal to 0"),
    ),
    Case(
        "replicas absurd",
        {"spec.replicas": 10000},
        {"spec.replicas": 10001},
        ("spec.replicas: Invalid", "should be less than or equal to 10000"),
    ),
    Case(
        "replicas no number",
        {"spec.replicas": 3},
        {"spec.replicas": "3"},
        ("spec.replicas: Invalid", "must be of type integer"),
    ),
    Case(
        "replicas beyond maxSandboxes are clamped, not refused; no ceiling of 0",
        {"spec.replicas": 5, "spec.maxSandboxes": 1},
        {"spec.maxSandboxes": 0},
        ("spec.maxSandboxes: Invalid", "should be greater than or equal to 1"),
    ),
    Case(
        "maxSandboxes absurd",
        {"spec.maxSandboxes": 100000},
        {"spec.maxSandboxes": 100001},
        ("spec.maxSandboxes: Invalid", "should be less than or equal to 100000"),
    ),
    Case(
        "template missing",
        {},
        {"spec.template": ABSENT},
        ("spec.template: Required value",),
    ),
    Case(
        "template without a spec",
        {"spec.template.metadata": {"labels": {"team": "blue"}}},
        {"spec.template": {"metadata": {}}},
        ("spec.template.spec: Required value",),
    ),
    Case(
        "template without containers",
        {"spec.template.spec.volumes": [{"name": "scratch", "emptyDir": {}}]},
        {"spec.template.spec": {"volumes": []}},
        ("spec.template.spec.containers: Required value",),
    ),
    Case(
        "template with an empty list of containers",
        {},
        {"spec.template.spec.containers": []},
        ("spec.template.spec.containers: Invalid", "should have at least 1 items"),
    ),
    Case(
        "template chooses a runtime",
        {},
        {"spec.template.spec.runtimeClassName": "runc"},
        ("spec.template.spec.runtimeClassName: Forbidden", "may not choose", "remove the field"),
    ),
    Case(
        "template sets the overhead",
        {},
        {"spec.template.spec.overhead": {"memory": "1Mi"}},
        ("spec.template.spec.overhead: Forbidden", "comes from the RuntimeClass", "remove the"),
    ),
    Case(
        "template names a node",
        {"spec.template.spec.nodeSelector": {"pool": "sandboxes"}},
        {"spec.template.spec.nodeName": "node-1"},
        ("spec.template.spec.nodeName: Forbidden", "bypasses the scheduler", "use nodeSelector"),
    ),
    Case(
        "template with a label of ours",
        {"spec.template.metadata.labels": {"example.com/team": "blue"}},
        {"spec.template.metadata.labels": {"sandboxpool.io/pool": "other"}},
        ("spec.template.metadata.labels: Invalid", "set by the operator", "remove them"),
    ),
    Case(
        "template with an annotation of ours",
        {"spec.template.metadata.annotations": {"io.katacontainers.config.x": "for the SRE"}},
        {"spec.template.metadata.annotations": {"sandboxpool.io/handler": "x"}},
        ("spec.template.metadata.annotations: Invalid", "set by the operator", "remove them"),
    ),
    Case(
        "start-up timeout zero",
        {"spec.startup.timeoutSeconds": 1},
        {"spec.startup.timeoutSeconds": 0},
        ("spec.startup.timeoutSeconds: Invalid", "should be greater than or equal to 1"),
    ),
    Case(
        "start-up timeout absurd",
        {"spec.startup.timeoutSeconds": 86400},
        {"spec.startup.timeoutSeconds": 86401},
        ("spec.startup.timeoutSeconds: Invalid", "should be less than or equal to 86400"),
    ),
    Case(
        "maxStarting zero",
        {"spec.startup.maxStarting": 1},
        {"spec.startup.maxStarting": 0},
        ("spec.startup.maxStarting: Invalid", "should be greater than or equal to 1"),
    ),
    Case(
        "maxStarting absurd",
        {"spec.startup.maxStarting": 1000},
        {"spec.startup.maxStarting": 1001},
        ("spec.startup.maxStarting: Invalid", "should be less than or equal to 1000"),
    ),
    Case(
        "update type unknown",
        {"spec.update.type": "OnClaim"},
        {"spec.update.type": "OnDelete"},
        ("spec.update.type: Unsupported", "OnDelete", '"RollingUpdate", "OnClaim", "Recreate"'),
    ),
    Case(
        "maxUnavailable zero",
        {"spec.update.maxUnavailable": 10000},
        {"spec.update.maxUnavailable": 0},
        ("spec.update.maxUnavailable: Invalid", "should be greater than or equal to 1"),
    ),
    Case(
        "maxUnavailable absurd",
        {"spec.update.maxUnavailable": 1},
        {"spec.update.maxUnavailable": 10001},
        ("spec.update.maxUnavailable: Invalid", "should be less than or equal to 10000"),
    ),
    *(
        Case(
            f"maxUnavailable as a percentage: {wrong!r}",
            {"spec.update.maxUnavailable": "25%"},
            {"spec.update.maxUnavailable": wrong},
            ("spec.update.maxUnavailable", "a percentage from 1% to 100%"),
        )
        for wrong in ("0%", "101%", "05%", "25", "-5%", "many", "5%\n")
    ),
    Case(
        "maxUnavailable of another type",
        {"spec.update.maxUnavailable": "100%"},
        {"spec.update.maxUnavailable": True},
        ("spec.update.maxUnavailable: Invalid", "must be of type integer,string"),
    ),
    Case(
        "placement unknown",
        {"spec.placement": "Packed"},
        {"spec.placement": "packed"},
        ("spec.placement: Unsupported", '"Spread", "Packed"'),
    ),
    Case(
        "maxAgeSeconds too short",
        {"spec.maxAgeSeconds": 60},
        {"spec.maxAgeSeconds": 59},
        ("spec.maxAgeSeconds: Invalid", "should be greater than or equal to 60"),
    ),
    Case(
        "isolationProof unknown",
        {"spec.isolationProof": "None"},
        {"spec.isolationProof": "off"},
        ("spec.isolationProof: Unsupported", '"None", "PerNode", "PerSandbox"'),
    ),
    Case(
        "default lifetime above the maximum",
        {"spec.claims": {"defaultTTLSeconds": 60, "maxTTLSeconds": 60}},
        {"spec.claims": {"defaultTTLSeconds": 61, "maxTTLSeconds": 60}},
        ("spec.claims.defaultTTLSeconds: Invalid", "more than maxTTLSeconds", "lower the default"),
    ),
    Case(
        "lifetime negative",
        {"spec.claims.maxTTLSeconds": 1},
        {"spec.claims.maxTTLSeconds": -1},
        ("spec.claims.maxTTLSeconds: Invalid", "should be greater than or equal to 1"),
    ),
    Case(
        "retention negative",
        {"spec.claims.ttlSecondsAfterFinished": 0},
        {"spec.claims.ttlSecondsAfterFinished": -1},
        ("spec.claims.ttlSecondsAfterFinished: Invalid", "should be greater than or equal to 0"),
    ),
    *(
        Case(
            f"prefix {prefix!r}",
            {PREFIXES: ["example.com/", "io.kata-fans/"]},
            {PREFIXES: ["example.com/", prefix]},
            (f"{PREFIXES}: Invalid", f'"{prefix}" is reserved', "name a domain of your own"),
        )
        for prefix in (
            "io.katacontainers.config.hypervisor/",
            "dev.gvisor/",
            "kubernetes.io/",
            "cluster-autoscaler.kubernetes.io/",
            "k8s.io/",
            "cdi.k8s.io/",
            "sandboxpool.io/",
            "runtime.sandboxpool.io/",
            "katacontainers.io/",
            "gvisor.dev/",
            "unified-cgroup.crio.io/",
            "seccomp-profile.kubernetes.cri-o.io/",
            "io.kubernetes.cri-o/",
            "module.wasm.image/",
        )
    ),
    *(
        Case(
            f"prefix {prefix[:20]!r} is no whole domain",
            {PREFIXES: ["example.com/", "a/", f"{'a' * 253}/"]},
            {PREFIXES: ["example.com/", prefix]},
            (
                f"{PREFIXES}: Invalid",
                f'"{prefix}" is not a whole domain',
                "with a slash at its end, such as example.com/",
            ),
        )
        for prefix in (
            *("", "/", "io.", "p", "seccomp", "example.com", "platform-runtime-path.crio.io"),
            *("example.com/job", "example.com/job/", "Example.com/", ".example.com/"),
        )
    ),
    Case(
        "prefix too long",
        {PREFIXES: [f"{'a' * 253}/"]},
        {PREFIXES: [f"{'a' * 254}/"]},
        (f"{PREFIXES}[0]: Too long", "may not be more than 254"),
    ),
    Case(
        "the same prefix twice",
        {PREFIXES: ["a.example/", "b.example/"]},
        {PREFIXES: ["a.example/", "a.example/"]},
        (f"{PREFIXES}[1]: Duplicate value",),
    ),
    Case(
        "too many prefixes",
        {PREFIXES: [f"p{number}.example/" for number in range(32)]},
        {PREFIXES: [f"p{number}.example/" for number in range(33)]},
        (f"{PREFIXES}: Too many", "at most 32"),
    ),
    Case(
        "pool name too long for the names of its pods",
        {"metadata.name": "a" * 52},
        {"metadata.name": "a" * 53},
        ("metadata.name is too long", "names are hostnames", "a name of at most 52 characters"),
    ),
    Case(
        "pool without a spec",
        {},
        {"spec": ABSENT},
        ("spec: Required value",),
    ),
    Case(
        "misspelt field",
        {"spec.paused": True},
        {"spec.pasued": True},
        ('unknown field "spec.pasued"',),
    ),
]


def of_characters(count: int) -> dict[str, str]:
    """A configuration of two files with so many characters, the names included."""
    return {"a": "x" * (count // 2 - 1), "b": "é" * (count - count // 2 - 1)}


CLAIM_CASES = [
    *(
        Case(
            f"configuration with the file name {name!r}",
            {"spec.config": {good: "", "sub.dir_-9": "{}"}},
            {"spec.config": {"fine": "", name: ""}},
            ("spec.config: Invalid", f'"{name}" cannot be a file name', "use at most 63"),
        )
        for good, name in (
            ("task.json", "a/b"),
            (".hidden", ".."),
            ("a.b", "."),
            ("a" * 63, "a" * 64),
            ("-", "..data"),
            ("_", "a b"),
            ("0", ""),
        )
    ),
    Case(
        "configuration of too many files",
        {"spec.config": {f"file-{number}": "" for number in range(16)}},
        {"spec.config": {f"file-{number}": "" for number in range(17)}},
        ("spec.config: Too many", "must have at most 16 items"),
    ),
    Case(
        "configuration that is too large",
        {"spec.config": of_characters(32768)},
        {"spec.config": of_characters(32769)},
        ("spec.config: Invalid", "more than 32768 characters", "put large data into the sandbox"),
    ),
    Case(
        "pool missing",
        {"spec.poolName": "a.b"},
        {"spec.poolName": ABSENT},
        ("spec.poolName: Required value",),
    ),
    Case(
        "pool empty",
        {},
        {"spec.poolName": ""},
        ("spec.poolName: Invalid", '"" cannot be the name of a SandboxPool', "use lower-case"),
    ),
    Case(
        "pool too long",
        {"spec.poolName": "a" * 52},
        {"spec.poolName": "a" * 53},
        ("spec.poolName: Too long", "may not be more than 52"),
    ),
    Case(
        "asserted runtime class",
        {"spec.runtimeClassName": ABSENT},
        {"spec.runtimeClassName": "Kata"},
        ("spec.runtimeClassName: Invalid", '"Kata" cannot be the name', "use lower-case"),
    ),
    *(
        Case(
            f"asserted proof {proof!r}",
            {"spec.isolationProof": enough},
            {"spec.isolationProof": proof},
            ("spec.isolationProof: Unsupported", '"PerNode", "PerSandbox"'),
        )
        for enough, proof in (("PerNode", "None"), ("PerSandbox", "perNode"), (ABSENT, ""))
    ),
    Case(
        "lifetime zero",
        {"spec.ttlSeconds": ABSENT},
        {"spec.ttlSeconds": 0},
        ("spec.ttlSeconds: Invalid", "should be greater than or equal to 1"),
    ),
    Case(
        "lifetime absurd",
        {"spec.ttlSeconds": 31536000},
        {"spec.ttlSeconds": 31536001},
        ("spec.ttlSeconds: Invalid", "should be less than or equal to"),
    ),
    Case(
        "bind timeout zero",
        {"spec.bindTimeoutSeconds": 1},
        {"spec.bindTimeoutSeconds": 0},
        ("spec.bindTimeoutSeconds: Invalid", "should be greater than or equal to 1"),
    ),
    Case(
        "bind timeout absurd",
        {"spec.bindTimeoutSeconds": 86400},
        {"spec.bindTimeoutSeconds": 86401},
        ("spec.bindTimeoutSeconds: Invalid", "should be less than or equal to 86400"),
    ),
    Case(
        "onEmpty unknown",
        {"spec.onEmpty": "Create"},
        {"spec.onEmpty": "Block"},
        ("spec.onEmpty: Unsupported", '"Wait", "Create", "Fail"'),
    ),
    *(
        Case(
            f"reserved key {key!r} in {where}",
            {f"spec.metadata.{where}": {"example.com/job": "1", "io.kata": "x"}},
            {f"spec.metadata.{where}": {"example.com/job": "1", key: "x"}},
            (
                f"spec.metadata.{where}: Invalid",
                f'"{key}" is never taken from a claim',
                "remove it",
            ),
        )
        for where in ("labels", "annotations")
        for key in (
            "io.katacontainers.config.hypervisor.kernel_params",
            "dev.gvisor.flag.debug",
            "kubernetes.io/hostname",
            "cluster-autoscaler.kubernetes.io/safe-to-evict",
            "cdi.k8s.io/gpu",
            "sandboxpool.io/claim",
            "io.kubernetes.cri-o.userns-mode",
            "run.oci.handler",
            "seccomp-profile.kubernetes.cri-o.io/POD",
            "unified-cgroup.crio.io/main",
        )
    ),
    *(
        Case(
            f"unusable key {key[:20]!r} in {where}",
            {f"spec.metadata.{where}": {"example.com/" + "a" * 63: "x", "a": "y"}},
            {f"spec.metadata.{where}": {"a": "y", key: "x"}},
            (f"spec.metadata.{where}: Invalid", "cannot be the key", "such as example.com/job"),
        )
        for where in ("labels", "annotations")
        for key in ("", "/a", "a/", "Example.com/a", "a/b/c", "é", "a" * 64, f"{'a' * 254}/b")
    ),
    Case(
        "unusable label value",
        {"spec.metadata.labels": {"example.com/job": ""}},
        {"spec.metadata.labels": {"example.com/job": "two words"}},
        ("spec.metadata.labels: Invalid", '"example.com/job" has a value', "put the text into"),
    ),
    Case(
        "label value too long",
        {"spec.metadata.labels": {"a": "b" * 63}},
        {"spec.metadata.labels": {"a": "b" * 64}},
        ("spec.metadata.labels.a: Too long", "may not be more than 63"),
    ),
    Case(
        "too many labels",
        {"spec.metadata.labels": {f"l{number}": "" for number in range(32)}},
        {"spec.metadata.labels": {f"l{number}": "" for number in range(33)}},
        ("spec.metadata.labels: Too many", "at most 32"),
    ),
    Case(
        "annotation too long",
        {"spec.metadata.annotations": {"a": "b" * 4096}},
        {"spec.metadata.annotations": {"a": "b" * 4097}},
        ("spec.metadata.annotations.a: Too long", "may not be more than 4096"),
    ),
    Case(
        "claim name too long for a label",
        {"metadata.name": "a" * 63},
        {"metadata.name": "a" * 64},
        ("metadata.name is too long", "becomes a label", "a name of at most 63 characters"),
    ),
    Case(
        "claim without a spec",
        {},
        {"spec": ABSENT},
        ("spec: Required value",),
    ),
]


def check(server: Server, base: Body, case: Case) -> None:
    status, answer = server.dry_create(variant(base, case.accepted))
    assert status == 200, answer
    status, answer = server.dry_create(variant(base, case.refused))
    assert status in (400, 422), answer
    expected = [server.worded(text) for text in case.in_message]
    assert [text for text in expected if text not in answer["message"]] == [], answer["message"]


@pytest.mark.parametrize("case", POOL_CASES, ids=lambda case: case.name)
def test_pool_rule(server: Server, case: Case) -> None:
    check(server, POOL, case)


@pytest.mark.parametrize("case", CLAIM_CASES, ids=lambda case: case.name)
def test_claim_rule(server: Server, case: Case) -> None:
    check(server, CLAIM, case)


@pytest.fixture
def claim(server: Server) -> Iterator[Body]:
    body = server.create(
        variant(CLAIM, {"metadata.name": "immutable", "spec.isolationProof": "PerNode"})
    )
    yield body
    server.delete(body)


NEW_CLAIM = "delete this claim and create another"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.poolName", "other"),
        ("spec.runtimeClassName", "runc"),
        ("spec.runtimeClassName", ABSENT),
        ("spec.isolationProof", "PerSandbox"),
        ("spec.isolationProof", ABSENT),
        ("spec.bindTimeoutSeconds", 1),
        ("spec.onEmpty", "Create"),
        ("spec.metadata", {"labels": {"example.com/a": "b"}}),
        ("spec.config", {"a": "b"}),
    ],
)
def test_a_claim_keeps_its_spec(server: Server, claim: Body, path: str, value: object) -> None:
    status, answer = server.dry_update(variant(claim, {path: value}))
    assert status == 422, answer
    assert f"{path}: " in answer["message"]
    assert f"{path} of a claim cannot be added, changed or removed" in answer["message"]
    assert NEW_CLAIM in answer["message"]


@pytest.mark.parametrize(
    ("path", "value"), [("spec.runtimeClassName", "gvisor"), ("spec.isolationProof", "PerNode")]
)
def test_an_optional_field_cannot_be_added_to_a_claim(
    server: Server, path: str, value: str
) -> None:
    body = server.create(variant(CLAIM, {"metadata.name": "added", path: ABSENT}))
    try:
        status, answer = server.dry_update(variant(body, {path: value}))
        assert status == 422, answer
        assert f"{path} of a claim cannot be added" in answer["message"]
    finally:
        server.delete(body)


@pytest.mark.parametrize("value", [1, 31536000, ABSENT])
def test_the_lifetime_of_a_claim_can_be_changed(server: Server, claim: Body, value: object) -> None:
    status, answer = server.dry_update(variant(claim, {"spec.ttlSeconds": value}))
    assert status == 200, answer


def test_a_lifetime_can_be_added_to_a_claim(server: Server) -> None:
    body = server.create(variant(CLAIM, {"metadata.name": "ttl", "spec.ttlSeconds": ABSENT}))
    try:
        status, answer = server.dry_update(variant(body, {"spec.ttlSeconds": 5}))
        assert status == 200, answer
    finally:
        server.delete(body)


def test_what_a_claim_must_have_cannot_be_removed(server: Server, claim: Body) -> None:
    status, answer = server.dry_update(variant(claim, {"spec": ABSENT}))
    assert status == 422, answer
    assert "spec: Required value" in answer["message"]
    status, answer = server.dry_update(variant(claim, {"spec.poolName": ABSENT}))
    assert status == 422, answer
    assert "spec.poolName: Required value" in answer["message"]


def test_a_pool_may_change_its_runtime(server: Server) -> None:
    body = server.create(variant(POOL, {"metadata.name": "changing"}))
    try:
        status, answer = server.dry_update(variant(body, {"spec.runtimeClassName": "kata-qemu"}))
        assert status == 200, answer
    finally:
        server.delete(body)


def test_defaults_are_filled_in(server: Server) -> None:
    status, answer = server.dry_create(POOL)
    assert status == 200, answer
    assert {key: value for key, value in answer["spec"].items() if key != "template"} == {
        "runtimeClassName": "gvisor",
        "replicas": 1,
        "startup": {"timeoutSeconds": 300, "maxStarting": 10},
        "update": {"type": "RollingUpdate", "maxUnavailable": 1},
        "placement": "Spread",
        "isolationProof": "PerNode",
        "claims": {
            "configPath": "/run/sandbox",
            "disruption": "Allow",
            "ttlSecondsAfterFinished": 3600,
        },
        "paused": False,
    }
    assert answer["spec"]["template"] == POOL["spec"]["template"]
    assert "status" not in answer
    status, answer = server.dry_create(CLAIM)
    assert status == 200, answer
    assert answer["spec"] == {**CLAIM["spec"], "bindTimeoutSeconds": 300, "onEmpty": "Wait"}


def test_the_pod_spec_is_kept_whole(server: Server) -> None:
    spec = {
        "containers": [
            {
                "name": "main",
                "image": "example.com/image",
                "env": [{"name": "A", "value": "b"}],
                "securityContext": {"runAsUser": 1000},
            }
        ],
        "tolerations": [{"operator": "Exists"}],
        "hostUsers": False,
    }
    status, answer = server.dry_create(variant(POOL, {"spec.template.spec": spec}))
    assert status == 200, answer
    assert answer["spec"]["template"]["spec"] == spec


def test_scale_reads_and_writes_the_pool(server: Server) -> None:
    body = server.create(variant(POOL, {"metadata.name": "scaled", "spec.maxSandboxes": 2}))
    path = f"/apis/{names.API_VERSION}/namespaces/{NAMESPACE}/{names.POOLS}/scaled"
    try:
        status = {"replicas": 1, "selector": "sandboxpool.io/pool=scaled"}
        code, answer = server.send("PUT", f"{path}/status", {**body, "status": status})
        assert code == 200, answer
        code, scale = server.send("GET", f"{path}/scale")
        assert code == 200, scale
        assert scale["status"] == status
        scale["spec"]["replicas"] = 5
        code, answer = server.send("PUT", f"{path}/scale", scale)
        assert code == 200, answer
        code, answer = server.send("GET", path)
        assert answer["spec"]["replicas"] == 5
    finally:
        server.delete(body)


# --- What the operator alone writes ---------------------------------------------------------------


def runtime_given(**changes: Any) -> RuntimeStatusInput:
    """A fleet with something of everything in it."""
    now = 1_700_000_000.5
    given: Body = {
        "class_name": RUNTIME["metadata"]["name"],
        "runtime": Runtime("gvisor", "class-uid", "runsc", overhead=(("memory", "20Mi"),)),
        "verdict": Verdict(
            serving=("a",), not_serving=("b",), quarantined=("c",), advice=("example.com/g", "")
        ),
        "issues": [
            FailureSummary(Reason.SHIM_MISSING, "runsc", 1, ("c",), now, now, "<text> & 'more'")
        ],
        "evidence": [
            EvidenceSummary(
                "containerd://2.1.4", "v1.36.2", Isolation.PROVEN, "4.19", 1, "a", now, "seen"
            )
        ],
        "pools": ["team/pool"],
        "sandboxes": {SandboxState.WARM: 2},
        "startup": {
            "stages": {"ready": {f"p{n}Milliseconds": 10 * n for n in (50, 95, 99)}},
            "windowSeconds": 3600,
        },
        "proof_wanted": True,
        "proven": True,
        "now": now,
    }
    given["startup"]["stages"]["ready"]["samples"] = 7
    return RuntimeStatusInput(**{**given, **changes})


@pytest.fixture
def runtime(server: Server) -> Iterator[Body]:
    body = server.create(RUNTIME)
    yield body
    server.delete(body)


def test_the_status_of_a_runtime_comes_back_as_it_was_sent(server: Server, runtime: Body) -> None:
    sent = runtime_status(runtime_given(), {})
    code, answer = server.put_status(runtime, sent)
    assert code == 200, answer
    assert answer["status"] == sent
    assert answer["metadata"]["generation"] == GENERATION
    # What is computed from what came back says nothing new: there would be no end of writing.
    assert runtime_status(runtime_given(), answer["status"]) == answer["status"]


def test_a_runtime_is_listed_with_what_an_sre_reads_first(server: Server, runtime: Body) -> None:
    server.put_status(runtime, runtime_status(runtime_given(), {}))
    row = server.row(runtime)
    assert {key: value for key, value in row.items() if key not in ("Name", "Age")} == {
        "Handler": "runsc",
        "Nodes": "1/3",
        "Quarantined": 1,
        "Pools": 1,
        "Warm": 2,
        "P50 Ready (ms)": 500,
        "Ready": "True",
        "Reason": "SomeNodesNotServing",
        "Healthy": "False",
        "Evidence": "IsolationProven",
    }


def test_a_runtime_has_nothing_that_people_could_set(server: Server) -> None:
    status, answer = server.dry_create({**RUNTIME, "spec": {"handler": "runc"}})
    assert status == 400, answer
    assert 'unknown field "spec"' in answer["message"]
    status, answer = server.dry_create({**RUNTIME, "status": {"handler": "runc"}})
    assert status == 200, answer
    assert "status" not in answer


@pytest.mark.parametrize(
    ("damage", "in_message"),
    [
        ({"issues": [{}]}, "status.issues[0].reason: Required value"),
        ({"pools": ["a/b"] * 21}, "status.pools: Too many"),
        ({"evidence": [{"isolation": "Perhaps", "nodes": 1}]}, "status.evidence[0].isolation"),
        ({"nodes": {"eligible": -1}}, "status.nodes.eligible: Invalid value"),
        ({"advice": {"nodeSelector": {"a": "b", "c": "d"}}}, "nodeSelector: Too many"),
    ],
)
def test_the_status_of_a_runtime_is_bounded(
    server: Server, runtime: Body, damage: Body, in_message: str
) -> None:
    code, answer = server.put_status(runtime, damage)
    assert code == 422, answer
    assert server.worded(in_message) in answer["message"]
