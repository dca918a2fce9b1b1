"""The check of prerequisites; integration tests run it on a real API server."""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest
import yaml

from crdgen.__main__ import REPOSITORY
from sandboxpool.api.v1alpha1 import KINDS
from sandboxpool.app import preflight
from sandboxpool.app.preflight import StartError, check, missing_fields
from sandboxpool.app.settings import Settings
from sandboxpool.kube.errors import ApiError, KubeError

looptime = pytest.mark.looptime

SETTINGS = Settings(probe_image="image", namespace="ours")


def schemas() -> dict[str, dict[str, Any]]:
    found = [yaml.safe_load(path.read_text()) for path in (REPOSITORY / "crds").glob("*.yaml")]
    return {
        crd["spec"]["names"]["plural"]: crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        for crd in found
    }


class Server:
    """Responds as an API server that meets all prerequisites, except what a test changes."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {
            "/version": {"major": "1", "minor": "30", "gitVersion": "v1.30.0"},
            "/apis/sandboxpool.io/v1alpha1": {
                "resources": [
                    {"name": f"{kind.resource.plural}{end}"}
                    for kind in KINDS
                    for end in ("", "/status")
                ]
            },
            "/openapi/v3/apis/sandboxpool.io/v1alpha1": {
                "components": {
                    "schemas": {
                        f"io.sandboxpool.v1alpha1.{kind.__name__}": schemas()[kind.resource.plural]
                        for kind in KINDS
                    }
                }
            },
        }
        self.denied: Callable[[Mapping[str, str]], bool] = lambda asked: False
        self.evaluation_error = ""
        self.namespaces = {"ours"}
        self.asked = 0

    async def get(self, path: str) -> bytes:
        self.asked += path == "/version"
        answer = self.answers.get(path, ApiError(404, "NotFound", "not found"))
        if isinstance(answer, Exception):
            raise answer
        return msgspec.json.encode(answer)

    async def create(self, path: str, body: Mapping[str, Any], params: Any = None) -> bytes:
        if path.endswith("/selfsubjectaccessreviews"):
            allowed = not self.denied(body["spec"]["resourceAttributes"])
            status = {"allowed": allowed, "evaluationError": self.evaluation_error}
            return msgspec.json.encode({"status": status})
        assert params == {"dryRun": "All"}, "nothing is written before anybody leads"
        if path.split("/")[5] not in self.namespaces:
            raise ApiError(404, "NotFound", "no such namespace")
        raise ApiError(409, "AlreadyExists", "somebody leads")


async def said(server: Server) -> str:
    with pytest.raises(StartError) as caught:
        await check(server, SETTINGS)  # type: ignore[arg-type]
    assert server.asked == preflight.ATTEMPTS, "one answer may be a moment too early"
    return str(caught.value)


@looptime
async def test_with_all_prerequisites_the_operator_starts_at_once() -> None:
    server = Server()
    await check(server, SETTINGS)  # type: ignore[arg-type]
    assert server.asked == 1


@looptime
@pytest.mark.parametrize("minor", ["29", "29+"])
async def test_an_api_server_that_is_too_old_is_named(minor: str) -> None:
    server = Server()
    server.answers["/version"] = {"major": "1", "minor": minor, "gitVersion": "v1.29.1"}
    assert "v1.29.1" in await said(server)


@looptime
@pytest.mark.parametrize("resource", ["sandboxclaims", "sandboxruntimes/status"])
async def test_a_kind_that_is_not_served_is_named(resource: str) -> None:
    server = Server()
    listed = server.answers["/apis/sandboxpool.io/v1alpha1"]["resources"]
    listed.remove({"name": resource})
    text = await said(server)
    assert resource.partition("/")[0] in text
    assert "kubectl apply" in text


@looptime
async def test_without_any_kind_the_crds_are_missing() -> None:
    server = Server()
    del server.answers["/apis/sandboxpool.io/v1alpha1"]
    assert "sandboxpools" in await said(server)


@looptime
@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("SandboxPool", "spec.claims.ttlSecondsAfterFinished"),
        ("SandboxPool", "status.runtime.issues.since"),
        ("SandboxClaim", "spec.metadata.labels"),
        ("SandboxClaim", "status.conditions.observedGeneration"),
        ("SandboxRuntime", "status.startup.stages.samples"),
    ],
)
async def test_a_field_that_the_crd_lacks_is_named(kind: str, path: str) -> None:
    server = Server()
    (openapi,) = [v for k, v in server.answers.items() if k.startswith("/openapi")]
    schema = openapi["components"]["schemas"][f"io.sandboxpool.v1alpha1.{kind}"]
    *parents, field = path.split(".")
    for parent in parents:
        schema = schema["properties"][parent]
        schema = schema.get("items") or schema.get("additionalProperties") or schema
    del schema["properties"][field]
    text = await said(server)
    assert f"{kind.lower()}s.sandboxpool.io" in text
    assert path in text


def test_the_crds_of_this_version_lack_nothing() -> None:
    for kind in KINDS:
        assert list(missing_fields(kind, schemas()[kind.resource.plural])) == []


@looptime
async def test_missing_permissions_are_named() -> None:
    server = Server()
    server.denied = lambda asked: asked["resource"] == "pods" and asked["verb"] == "patch"
    text = await said(server)
    assert "no permission to patch pods;" in text
    assert "rbac.create" in text


@looptime
@pytest.mark.parametrize("wanted", [False, True])
async def test_permissions_that_only_a_setting_needs_are_checked_if_it_is_on(wanted: bool) -> None:
    server = Server()
    server.denied = lambda asked: asked["resource"] == "nodes" and asked["verb"] == "patch"
    settings = Settings(probe_image="image", namespace="ours", publish_on_nodes=wanted)
    fault = await preflight.find_problem(server, settings)  # type: ignore[arg-type]
    assert (fault is not None) is wanted


@looptime
async def test_a_missing_namespace_is_named() -> None:
    server = Server()
    server.namespaces.clear()
    text = await said(server)
    assert "'ours' does not exist" in text
    assert "SANDBOXPOOL_NAMESPACE" in text


@looptime
@pytest.mark.parametrize(
    "path",
    ["/version", "/apis/sandboxpool.io/v1alpha1", "/openapi/v3/apis/sandboxpool.io/v1alpha1"],
)
async def test_a_forbidden_read_does_not_prevent_the_start(path: str) -> None:
    server = Server()
    server.answers[path] = ApiError(403, "Forbidden", "no")
    await check(server, SETTINGS)  # type: ignore[arg-type]


@looptime
async def test_failed_requests_and_failing_authorizers_are_retried(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server()
    server.denied, server.evaluation_error = (lambda asked: True), "webhook: timeout"
    with pytest.raises(KubeError, match="webhook: timeout"):
        await preflight.find_problem(server, SETTINGS)  # type: ignore[arg-type]
    good = server.answers["/version"]
    answers = [ApiError(500, "InternalError", "etcd")] * 5
    server = Server()

    async def get(path: str) -> bytes:
        if path == "/version":
            server.answers[path] = answers.pop() if answers else good
        return await Server.get(server, path)

    server.get = get  # type: ignore[method-assign]
    await check(server, SETTINGS)  # type: ignore[arg-type]
    assert server.asked == 6
    assert len([r for r in caplog.records if "retried in" in r.getMessage()]) == 5


@looptime
async def test_a_watched_namespace_without_permissions_is_named_and_stops_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server()
    asked: list[Mapping[str, str]] = []

    def denied(attributes: Mapping[str, str]) -> bool:
        asked.append(attributes)
        return attributes["namespace"] == "two"

    server.denied = denied
    settings = Settings(probe_image="image", namespace="ours", watch_namespaces=("one", "two"))
    await check(server, settings)  # type: ignore[arg-type]
    (said,) = [record.getMessage() for record in caplog.records]
    assert "in namespace two" in said
    assert "in namespace one" not in said
    everywhere = {a["resource"] for a in asked if not a["namespace"]}
    assert everywhere == {"nodes", "runtimeclasses", "sandboxruntimes"}


@looptime
async def test_permissions_in_its_own_namespace_are_needed_whether_it_is_watched_or_not() -> None:
    for watched in (("one",), ("one", "ours")):
        server = Server()
        server.denied = lambda asked: (asked["namespace"], asked["resource"]) == ("ours", "pods")
        settings = Settings(probe_image="image", namespace="ours", watch_namespaces=watched)
        fault = await preflight.find_problem(server, settings)  # type: ignore[arg-type]
        assert fault is not None
        assert "create pods in namespace ours" in fault
