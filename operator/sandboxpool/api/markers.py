"""What a JSON schema cannot say: CEL rules, list semantics and how a kind is listed.

The models carry these markers, and the generator of the CRDs reads them from the JSON schema that
pydantic makes. The operator never evaluates a rule: the API server does, before an object exists.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

VALIDATIONS = "x-kubernetes-validations"

# Words that Kubernetes writes in capitals when they are not the first of a field's name.
_INITIALISMS = {"ttl": "TTL"}


def wire_name(python_name: str) -> str:
    """Spell a field as Kubernetes does: `default_ttl_seconds` becomes `defaultTTLSeconds`."""
    first, *rest = python_name.split("_")
    return first + "".join(_INITIALISMS.get(word, word.capitalize()) for word in rest)


# An object that breaks a rule which was added or tightened later must go on: its status, its
# metadata and what else it says can be written. The API server passes over what an update does not
# change, but where the status is written only since Kubernetes 1.33. So each rule says it itself.
UNCHANGED = "oldSelf.value() == self"
# For a rule on a whole object, which is changed by whatever is written.
AT_CREATION = "true"


@dataclass(frozen=True, slots=True)
class CEL:
    """One rule of `x-kubernetes-validations`, for `Annotated` or for `Model.cel_rules`.

    Attributes:
        rule: The expression; false refuses the object.
        message: What the person who wrote the object reads: field, cause and cure.
        message_expression: The same as an expression; used instead of `message` where it is set.
        reason: The kind of error; the API server's default is `FieldValueInvalid`.
        field_path: The child that the error is about, where the rule stands on its parent.
        passes: Whether an object that is there already, as `oldSelf.value()`, is not judged.
            Empty for a rule that compares `self` and `oldSelf` itself.
        replaces: Keywords of the JSON schema that this rule makes superfluous. The API server's
            own message for a `pattern` recites the expression and does not say what to do.
    """

    rule: str
    message: str = ""
    message_expression: str = ""
    reason: str = ""
    field_path: str = ""
    ratchet: str = UNCHANGED
    replaces: tuple[str, ...] = ()

    def to_schema(self) -> dict[str, str | bool]:
        """Return the rule as it stands in a CRD."""
        pairs: dict[str, str | bool] = {
            "rule": f"oldSelf.hasValue() && {self.ratchet} || {self.rule}"
            if self.ratchet
            else self.rule,
            "optionalOldSelf": bool(self.ratchet),
            "message": self.message,
            "messageExpression": self.message_expression,
            "reason": self.reason,
            "fieldPath": self.field_path,
        }
        return {key: value for key, value in pairs.items() if value}

    def apply(self, schema: JsonSchemaValue) -> None:
        """Add the rule to a JSON schema."""
        for keyword in self.replaces:
            schema.pop(keyword, None)
        schema[VALIDATIONS] = [*schema.get(VALIDATIONS, []), self.to_schema()]

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core_schema)
        self.apply(schema)
        return schema


@dataclass(frozen=True, slots=True)
class SchemaKeywords:
    """Keywords that are laid over the JSON schema of an annotated field."""

    keywords: Mapping[str, Any]

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core_schema)
        schema.update(self.keywords)
        return schema


def must_not_set(name: str, cure: str) -> CEL:
    """Refuse a property that belongs to somebody else."""
    return CEL(
        rule=f"!has(self.{name})",
        message=cure,
        reason="FieldValueForbidden",
        field_path=f".{name}",
        ratchet=f"has(oldSelf.value().{name})",
    )


def immutable(name: str, cure: str) -> CEL:
    """Refuse any change of a property, adding and removing it included.

    The rule stands on the parent. On the property itself it would not run at all when the property
    is added or removed.
    """
    return CEL(
        rule=(
            f"has(self.{name}) == has(oldSelf.{name})"
            f" && (!has(self.{name}) || self.{name} == oldSelf.{name})"
        ),
        message=cure,
        reason="FieldValueForbidden",
        field_path=f".{name}",
        ratchet="",
    )


def list_map(*keys: str) -> SchemaKeywords:
    """Let several writers own items of a list, told apart by these keys."""
    return SchemaKeywords(
        {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}
    )


LIST_SET = SchemaKeywords({"x-kubernetes-list-type": "set"})
LIST_ATOMIC = SchemaKeywords({"x-kubernetes-list-type": "atomic"})


@dataclass(frozen=True, slots=True)
class Column:
    """A column of `kubectl get`."""

    name: str
    json_path: str
    type: str = "string"
    description: str = ""
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Scale:
    """Where the `/scale` subresource finds its figures."""

    spec_replicas: str
    status_replicas: str
    selector: str


@dataclass(frozen=True, slots=True)
class Resource:
    """How a kind is served and listed."""

    kind: str
    plural: str
    singular: str
    short_names: Sequence[str]
    categories: Sequence[str]
    scope: Literal["Namespaced", "Cluster"] = "Namespaced"
    columns: Sequence[Column] = field(default_factory=tuple)
    scale: Scale | None = None
    # What the status of a new object is before the operator has looked at it.
    first_status: Mapping[str, str] | None = None


class Model(BaseModel):
    """Base of all API models.

    Unknown fields are ignored, because a newer CRD must not break an older operator. Instances are
    frozen: what was read from a cache is shared by everybody who looks at it.
    """

    model_config = ConfigDict(
        alias_generator=wire_name,
        validate_by_name=True,
        validate_by_alias=True,
        extra="ignore",
        frozen=True,
        use_attribute_docstrings=True,
    )

    cel_rules: ClassVar[tuple[CEL, ...]] = ()

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler, /
    ) -> JsonSchemaValue:
        reference = handler(core_schema)
        schema = handler.resolve_ref_schema(reference)
        for rule in cls.cel_rules:
            rule.apply(schema)
        return reference


def quote(text: str) -> str:
    """Quote a string as a CEL literal."""
    return "'" + re.sub(r"(['\\])", r"\\\1", text) + "'"
