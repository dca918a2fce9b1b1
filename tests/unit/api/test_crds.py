"""The generator of the CRDs, and that what is checked in is what it makes."""

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
import yaml
from pydantic import BaseModel, Field

from crdgen.__main__ import REPOSITORY, main
from crdgen.crd import custom_resource_definition
from crdgen.output import CHART, PLAIN, render, stale, write
from crdgen.structural import VALIDATIONS, Schema, UnsupportedSchemaError, structural
from sandboxpool.api.markers import CEL, LIST_SET, Model, immutable
from sandboxpool.api.v1alpha1 import KINDS, SandboxClaim, SandboxPool, SandboxRuntime


def convert(model: type[BaseModel]) -> Schema:
    schema = model.model_json_schema(by_alias=True)
    definitions = schema.pop("$defs", {})
    return structural(schema, definitions)


def nodes(schema: Schema, path: str = "") -> list[tuple[str, Schema]]:
    """List a schema and everything inside of it."""
    found = [(path, schema)]
    for name, child in schema.get("properties", {}).items():
        found += nodes(child, f"{path}.{name}")
    for keyword in ("items", "additionalProperties"):
        if isinstance(schema.get(keyword), dict):
            found += nodes(schema[keyword], f"{path}[]")
    return found


def root(model: Any) -> Schema:
    version = custom_resource_definition(model)["spec"]["versions"][0]
    schema: Schema = version["schema"]["openAPIV3Schema"]
    return schema


def test_what_is_checked_in_is_what_the_models_make() -> None:
    assert stale(REPOSITORY, render()) == [], "run `python -m crdgen`"


def test_check_tells_what_is_stale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--root", str(tmp_path)]
    assert main([*arguments, "--check"]) == 1
    assert "run `python -m crdgen`" in capsys.readouterr().err
    assert main(arguments) == 0
    assert main([*arguments, "--check"]) == 0
    plain, templated, *_ = render()
    (tmp_path / plain).write_text("other")
    (tmp_path / templated).unlink()
    (tmp_path / CHART / "old.yaml").write_text("")
    assert stale(tmp_path, render()) == [
        f"{plain}: differs from the models",
        f"{templated}: missing",
        f"{CHART / 'old.yaml'}: no model makes it",
    ]
    assert main(arguments) == 0
    assert stale(tmp_path, render()) == []


def test_writing_removes_what_no_model_makes(tmp_path: Path) -> None:
    write(tmp_path, {CHART / "a.yaml": "1", CHART / "b.yaml": "2", PLAIN / "a.yaml": "1"})
    write(tmp_path, {CHART / "a.yaml": "3"})
    assert [path.name for path in (tmp_path / CHART).iterdir()] == ["a.yaml"]
    assert (tmp_path / CHART / "a.yaml").read_text() == "3"
    assert list((tmp_path / PLAIN).iterdir()) == []


def test_optional_types_are_flattened_and_integers_sized() -> None:
    class Sample(Model):
        """A sample."""

        count: Annotated[int, Field(ge=1)] | None = None
        """How many,
        in a long line."""

    assert convert(Sample)["properties"] == {
        "count": {
            "description": "How many, in a long line.",
            "type": "integer",
            "format": "int64",
            "minimum": 1,
        }
    }


def test_nested_defaults_hang_on_an_empty_default_of_their_parent() -> None:
    class Inner(Model):
        size: int = 3

    class Plain(Model):
        names: tuple[str, ...] = ()
        text: str = ""

    class Outer(Model):
        inner: Inner = Inner()
        plain: Plain = Plain()

    properties = convert(Outer)["properties"]
    assert properties["inner"]["default"] == {}
    assert properties["inner"]["properties"]["size"]["default"] == 3
    assert "default" not in properties["plain"]
    assert "default" not in properties["plain"]["properties"]["names"]


def test_rules_of_a_model_and_of_the_field_that_holds_it_both_count() -> None:
    class Inner(Model):
        cel_rules: ClassVar[tuple[CEL, ...]] = (CEL("self.a > 0", message="inner"),)
        a: int = 1

    class Outer(Model):
        inner: Annotated[Inner, CEL("true", message="outer")] = Inner()

    rules = convert(Outer)["properties"]["inner"][VALIDATIONS]
    assert [rule["message"] for rule in rules] == ["inner", "outer"]


def test_a_rule_passes_over_what_an_update_leaves_as_it_is() -> None:
    class Sample(Model):
        cel_rules: ClassVar[tuple[CEL, ...]] = (CEL("self.a > 0", message="m"),)
        a: int

    assert convert(Sample)[VALIDATIONS] == [
        {
            "rule": "oldSelf.hasValue() && oldSelf.value() == self || self.a > 0",
            "optionalOldSelf": True,
            "message": "m",
        }
    ]


def test_a_rule_can_stand_in_for_a_pattern() -> None:
    class Sample(Model):
        name: Annotated[
            str, Field(pattern="^a$"), CEL("self.matches('^a$')", replaces=("pattern",))
        ]

    schema = convert(Sample)["properties"]["name"]
    assert "pattern" not in schema
    assert len(schema[VALIDATIONS]) == 1


def test_lists_and_maps() -> None:
    class Sample(Model):
        tags: Annotated[tuple[str, ...], Field(max_length=3), LIST_SET] = ()
        anything: dict[str, Any] = Field(default_factory=dict)
        labels: Annotated[dict[str, str], Field(max_length=2)] = Field(default_factory=dict)

    assert convert(Sample)["properties"] == {
        "tags": {
            "type": "array",
            "maxItems": 3,
            "x-kubernetes-list-type": "set",
            "items": {"type": "string"},
        },
        "anything": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        "labels": {
            "type": "object",
            "maxProperties": 2,
            "additionalProperties": {"type": "string"},
        },
    }


class Union(Model):
    value: int | str


class Exclusive(Model):
    value: Annotated[int, Field(gt=0)]


class Untyped(Model):
    value: Any


class Recursive(Model):
    child: "Recursive | None" = None


@pytest.mark.parametrize(
    ("model", "in_message"),
    [
        (Union, r"\.value: a union of 2 types"),
        (Exclusive, r"\.value: a CRD has no counterpart of 'exclusiveMinimum'"),
        (Untyped, r"\.value: no type"),
        (Recursive, r"\.child: Recursive contains itself"),
    ],
)
def test_what_a_crd_cannot_say_is_an_error(model: type[BaseModel], in_message: str) -> None:
    schema = model.model_json_schema(by_alias=True)
    definitions = {model.__name__: schema, **schema.pop("$defs", {})}
    schema.pop("$ref", None)
    with pytest.raises(UnsupportedSchemaError, match=in_message):
        structural({"$ref": f"#/$defs/{model.__name__}"}, definitions)


def test_immutability_sees_adding_and_removing() -> None:
    rule = immutable("a", "cure").to_schema()
    assert rule["rule"] == "has(self.a) == has(oldSelf.a) && (!has(self.a) || self.a == oldSelf.a)"
    assert rule["fieldPath"] == ".a"


@pytest.mark.parametrize("model", KINDS)
def test_every_field_is_described(model: Any) -> None:
    undescribed = [
        path
        for path, schema in nodes(root(model))
        if not schema.get("description") and not path.endswith("[]") and path != ".metadata"
    ]
    assert undescribed == []


@pytest.mark.parametrize("model", KINDS)
def test_everything_that_people_write_is_bounded(model: Any) -> None:
    unbounded = []
    for path, schema in nodes(root(model)["properties"].get("spec", {}), "spec"):
        match schema.get("type"):
            case "array":
                bounded = "maxItems" in schema
            case "integer":
                bounded = "minimum" in schema and "maximum" in schema
            case "string":
                bounded = "maxLength" in schema or "enum" in schema
            case "object" if "additionalProperties" in schema:
                bounded = "maxProperties" in schema
            case _:
                bounded = True
        if not bounded and not path.startswith("spec.template."):
            unbounded.append(path)
    assert unbounded == []


@pytest.mark.parametrize("model", KINDS)
def test_every_rule_has_a_message(model: Any) -> None:
    for path, schema in nodes(root(model)):
        for rule in schema.get(VALIDATIONS, []):
            assert rule.get("message"), path
            assert "\n" not in rule["rule"], path


@pytest.mark.parametrize("model", KINDS)
def test_a_rule_on_a_whole_object_judges_it_at_creation_only(model: Any) -> None:
    """Each update of a status changes the whole: existing objects could not be updated."""
    rules = [rule["rule"] for rule in root(model).get(VALIDATIONS, [])]
    assert [rule for rule in rules if not rule.startswith("oldSelf.hasValue() && true ||")] == []


@pytest.mark.parametrize("model", KINDS)
def test_every_rule_knows_what_was_there_before(model: Any) -> None:
    """By itself or as a comparison: before Kubernetes 1.33 nothing else spares existing objects."""
    for path, schema in nodes(root(model)):
        for rule in schema.get(VALIDATIONS, []):
            assert "oldSelf" in rule["rule"], path


def test_no_former_name_of_a_figure_blocks_a_status() -> None:
    """In a status nothing is spared before Kubernetes 1.33, and a patch keeps what is there."""
    for model in (SandboxPool, SandboxRuntime):
        startup = root(model)["properties"]["status"]["properties"]["startup"]
        assert [path for path, schema in nodes(startup) if "required" in schema] == []


@pytest.mark.parametrize("model", KINDS)
def test_there_are_no_floats(model: Any) -> None:
    assert [path for path, schema in nodes(root(model)) if schema.get("type") == "number"] == []
    columns = [column.name for column in model.resource.columns if column.type == "number"]
    assert columns == []


@pytest.mark.parametrize("model", [SandboxPool, SandboxClaim])
def test_the_schema_lists_what_is_required(model: Any) -> None:
    required = {
        f"{path}.{name}".removeprefix(".")
        for path, schema in nodes(root(model))
        for name in schema.get("required", [])
        if not path.startswith((".status", "status"))
    }
    assert (
        required
        == {
            SandboxPool: {
                "spec",
                "spec.runtimeClassName",
                "spec.template",
                "spec.template.spec",
                "spec.template.spec.containers",
            },
            SandboxClaim: {"spec", "spec.poolName"},
        }[model]
    )


@pytest.mark.parametrize("model", KINDS)
def test_a_status_has_no_defaults_but_that_of_a_new_object(model: Any) -> None:
    status = dict(root(model)["properties"]["status"])
    assert status.pop("default", None) == model.resource.first_status
    assert [path for path, schema in nodes(status) if "default" in schema] == []


def test_all_of_a_claim_but_its_lifetime_is_immutable() -> None:
    spec = root(SandboxClaim)["properties"]["spec"]
    guarded = {rule["fieldPath"][1:] for rule in spec[VALIDATIONS] if "oldSelf." in rule["rule"]}
    assert guarded == set(spec["properties"]) - {"ttlSeconds"}


def test_the_crds_say_the_version_that_the_chart_installs() -> None:
    chart = yaml.safe_load((REPOSITORY / "charts/sandboxpool/Chart.yaml").read_text())
    for model in KINDS:
        annotations = custom_resource_definition(model)["metadata"]["annotations"]
        assert annotations == {"sandboxpool.io/version": chart["appVersion"]}


def test_how_the_kinds_are_listed() -> None:
    pools = custom_resource_definition(SandboxPool)
    claims = custom_resource_definition(SandboxClaim)
    runtimes = custom_resource_definition(SandboxRuntime)
    assert pools["metadata"]["name"] == "sandboxpools.sandboxpool.io"
    assert pools["spec"]["names"]["shortNames"] == ["sbp"]
    assert claims["spec"]["names"]["shortNames"] == ["sbc"]
    assert runtimes["spec"]["names"]["shortNames"] == ["sbr"]
    listed = [crd["spec"]["names"] for crd in (pools, claims, runtimes)]
    assert [known["categories"] for known in listed] == [["sandboxpool-io"]] * 3
    # kubectl would take any of these for the category: `kubectl get sandboxpool NAME` would fail.
    for known in listed:
        called = {known["plural"], known["singular"], known["kind"].lower(), *known["shortNames"]}
        assert "sandboxpool-io" not in called
    scopes = [crd["spec"]["scope"] for crd in (pools, claims, runtimes)]
    assert scopes == ["Namespaced", "Namespaced", "Cluster"]
    subresources = pools["spec"]["versions"][0]["subresources"]
    assert subresources == {
        "status": {},
        "scale": {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        },
    }
    assert claims["spec"]["versions"][0]["subresources"] == {"status": {}}
    assert runtimes["spec"]["versions"][0]["subresources"] == {"status": {}}


def test_a_runtime_has_nothing_to_set() -> None:
    assert set(root(SandboxRuntime)["properties"]) == {"apiVersion", "kind", "metadata", "status"}


def test_an_sre_sees_at_once_how_a_runtime_stands() -> None:
    version = custom_resource_definition(SandboxRuntime)["spec"]["versions"][0]
    columns = version["additionalPrinterColumns"]
    assert [column["name"] for column in columns if not column.get("priority")] == [
        "Handler",
        "Nodes",
        "Quarantined",
        "Pools",
        "Warm",
        "P50 Ready (ms)",
        "Ready",
        "Reason",
        "Healthy",
        "Evidence",
        "Age",
    ]


@pytest.mark.parametrize("model", KINDS)
def test_columns_point_at_fields_that_exist(model: Any) -> None:
    paths = {
        path.replace(".stages[]", ".stages.ready").replace("[]", "")
        for path, _ in nodes(root(model))
    }
    for column in model.resource.columns:
        plain = re.sub(r'\[\?\(@\.type=="\w+"\)\]', "", column.json_path)
        assert plain in paths | {".metadata.creationTimestamp"}, column
