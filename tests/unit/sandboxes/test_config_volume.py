"""The volume by which a sandbox sees its claim's configuration."""

from typing import Any

import pytest

from sandboxpool.api import names
from sandboxpool.cluster.pool import revision_of
from sandboxpool.runtimes.probe import ProbeImage
from sandboxpool.runtimes.verdict import Verdict
from sandboxpool.sandboxes.config_volume import add_config_volume, config_conflict
from sandboxpool.sandboxes.template import ClaimRef, build_pod
from support.builders import pool, runtime

OWN = {"name": "data", "mountPath": "/run"}
SPEC = {
    "containers": [{"name": "a", "image": "a", "volumeMounts": [OWN]}, {"name": "b", "image": "b"}],
    "initContainers": [
        {"name": "init", "image": "a"},
        {"name": "sidecar", "image": "a", "restartPolicy": "Always"},
    ],
    "volumes": [{"name": "data", "emptyDir": {}}],
}


def built(path: str | None = None, claim: ClaimRef | None = None) -> dict[str, Any]:
    given: dict[str, Any] = {} if path is None else {"claims": {"configPath": path}}
    made = pool(template={"spec": SPEC}, **given)
    probe = ProbeImage("registry.example/probe:1")
    return build_pod(made, runtime(), Verdict(), "pool-1", probe=probe, claim=claim)


def mounts(pod: dict[str, Any]) -> dict[str, list[str]]:
    containers = [*pod["spec"]["containers"], *pod["spec"]["initContainers"]]
    return {c["name"]: [m["mountPath"] for m in c.get("volumeMounts", [])] for c in containers}


def test_each_container_that_lives_with_the_sandbox_mounts_it_read_only() -> None:
    pod = built("/etc/claim")
    assert mounts(pod) == {
        "a": ["/run", "/etc/claim"],
        "b": ["/etc/claim"],
        "init": [],
        "sidecar": ["/etc/claim"],
    }
    assert pod["spec"]["containers"][1]["volumeMounts"][0]["readOnly"] is True
    data, volume = pod["spec"]["volumes"]
    assert data == {"name": "data", "emptyDir": {}}
    assert {
        item["path"]: item["fieldRef"]["fieldPath"] for item in volume["downwardAPI"]["items"]
    } == {
        "config.json": "metadata.annotations['sandboxpool.io/config']",
        "claim-name": "metadata.labels['sandboxpool.io/claim']",
        "claim-uid": "metadata.labels['sandboxpool.io/claim-uid']",
    }
    assert pod["metadata"]["annotations"][names.ANNOTATION_CONFIG_PATH] == "/etc/claim"
    assert mounts(built())["b"] == ["/run/sandbox"]


def test_nothing_is_added_where_the_path_is_empty() -> None:
    pod = built("")
    assert pod["spec"]["volumes"] == SPEC["volumes"]
    assert mounts(pod) == {"a": ["/run"], "b": [], "init": [], "sidecar": []}
    assert names.ANNOTATION_CONFIG_PATH not in pod["metadata"]["annotations"]


def test_a_sandbox_that_is_made_for_a_claim_has_the_configuration_from_the_start() -> None:
    annotations = built(claim=ClaimRef("job", "uid", config="{}"))["metadata"]["annotations"]
    assert annotations[names.ANNOTATION_CONFIG] == "{}"
    assert (
        names.ANNOTATION_CONFIG
        not in built(claim=ClaimRef("job", "uid"))["metadata"]["annotations"]
    )


def test_sandboxes_with_the_files_elsewhere_are_outdated() -> None:
    paths = ("", "/run/sandbox", "/etc/claim")
    labels = [built(path)["metadata"]["labels"][names.LABEL_REVISION] for path in paths]
    assert len(set(labels)) == 3
    assert labels[0] == revision_of({"spec": SPEC}), "switched off, nothing is replaced"


@pytest.mark.parametrize(
    ("field", "path", "conflicts"),
    [
        ("containers[1]", "/run/sandbox", True),
        ("containers[1]", "/run/sandbox/", True),
        ("containers[1]", "/run/sandbox/deeper", True),
        ("containers[1]", "/run/sandbox2", False),
        ("containers[1]", "/run", False),
        ("containers[1]", "/", False),
        ("initContainers[1]", "/run/sandbox", True),
        ("initContainers[0]", "/run/sandbox", False),
    ],
)
def test_the_template_mounts_nothing_there(field: str, path: str, conflicts: bool) -> None:
    kind, index = field.rstrip("]").split("[")
    spec: dict[str, Any] = {"containers": [{}, {}], "initContainers": [{}, {}]}
    spec["initContainers"][1]["restartPolicy"] = "Always"
    spec[kind][int(index)]["volumeMounts"] = [{"name": "x", "mountPath": path}]
    message = config_conflict(spec, "/run/sandbox")
    assert bool(message) == conflicts
    if conflicts:
        assert f"spec.template.spec.{field}.volumeMounts[0].mountPath" in message
        assert "spec.claims.configPath" in message


def test_the_name_of_the_volume_is_the_operators() -> None:
    message = config_conflict({"volumes": [{}, {"name": "sandboxpool-config"}]}, "/run/sandbox")
    assert message.startswith("spec.template.spec.volumes[1].name: 'sandboxpool-config'")
    assert "rename" in message


@pytest.mark.parametrize("broken", [None, {}, 5, "x", [None], ["x"], [{"volumeMounts": "x"}]])
def test_a_malformed_template_is_left_to_the_api_server(broken: Any) -> None:
    spec = {"volumes": broken, "containers": broken}
    assert config_conflict(spec, "/run/sandbox") == config_conflict(broken, "/run/sandbox") == ""
    add_config_volume(spec, "/run/sandbox")
    if broken and not isinstance(broken, list):
        assert spec == {"volumes": broken, "containers": broken}
