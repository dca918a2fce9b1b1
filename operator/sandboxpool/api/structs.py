"""Kinds that machines read and write all the time, as msgspec structs: typed, and fast to decode.

The operator reads and writes the very classes that the CRDs are made from: a misspelt or a missing
field is an error of the type checker. msgspec checks types alone. Bounds and markers are for the
API server: for the CRDs, and wherever pydantic is asked, a struct is a pydantic model of the same
fields.
"""

import ast
import inspect
import textwrap
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, ClassVar, get_type_hints

import msgspec
from pydantic import Field, GetCoreSchemaHandler, create_model
from pydantic_core import CoreSchema

from sandboxpool.api.markers import CEL, Model


class Struct(msgspec.Struct, frozen=True):
    """Base of the structs. Fields are spelt as the API spells them.

    What is required in the constructor is required in the schema.
    """

    cel_rules: ClassVar[tuple[CEL, ...]] = ()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return handler.generate_schema(_model_of(cls))

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON object as it is sent."""
        wire: dict[str, Any] = msgspec.to_builtins(self)
        return wire


class Status(Struct, frozen=True):
    """Base of what the operator always writes as a whole.

    The constructor requires every field without a default, but the schema none: a status of an
    earlier version, which lacks some, could not be written any more.
    """


@dataclass(frozen=True, slots=True)
class ShownAs:
    """Gives a field the schema of another type than that which it is decoded to."""

    type: Any

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return handler.generate_schema(self.type)


@cache
def _model_of(struct: type[Struct]) -> type[Model]:
    hints = get_type_hints(struct, include_extras=True)
    known = {field.name: field for field in msgspec.structs.fields(struct)}
    fields: dict[str, Any] = {}
    for name, text in _described(struct).items():
        if known[name].required:
            # Crdgen leaves out the defaults of a status.
            default = None if issubclass(struct, Status) else ...
        elif known[name].default is msgspec.NODEFAULT:
            default = known[name].default_factory()
        else:
            default = msgspec.to_builtins(known[name].default)
        fields[name] = (hints[name], Field(default, description=text))
    model = create_model(
        struct.__name__,
        __base__=Model,
        __doc__=struct.__doc__,
        __module__=struct.__module__,
        **fields,
    )
    model.cel_rules = struct.cel_rules
    return model


def _described(struct: type[Struct]) -> dict[str, str | None]:
    """The fields in the order of their last declarations, each with the docstring below it."""
    texts: dict[str, str | None] = {}
    for base in reversed(struct.__mro__[: struct.__mro__.index(Struct)]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for statement, below in pairwise([*tree.body, ast.Pass()]):
            match statement:
                case ast.AnnAssign(target=ast.Name(name)) if name in struct.__struct_fields__:
                    # A field that is declared again moves to its new place.
                    texts.pop(name, None)
                    texts[name] = _text_of(below)
    return texts


def _text_of(statement: ast.stmt) -> str | None:
    match statement:
        case ast.Expr(ast.Constant(str(text))):
            return inspect.cleandoc(text)
    return None
