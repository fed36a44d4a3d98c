"""Settings: frozen dataclasses whose fields are checked against their types when they are made.

``@settings`` is pydantic's dataclass with one set of rules: a field takes a value of its type and
nothing that merely looks like it (a list does for a tuple, an int for a float), numbers are finite,
an unknown field is an error, and what is wrong is said in one sentence that names field, value and
what is allowed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Annotated, Any, TypeVar, dataclass_transform

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from .records import quoted

T = TypeVar("T")


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


Listed = BeforeValidator(_tuple)  #: a list does for a tuple; a set, which has no order, does not
Layers = Annotated[tuple[int, ...], Listed]  #: numbers of layers, from 0
Fraction = Annotated[float, Field(gt=0, le=1)]
Texts = Annotated[tuple[str, ...], Listed]

CONFIG = ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)

BOUNDS = {
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be at most {le:g}",
}


@dataclass_transform(kw_only_default=True, frozen_default=True)
def settings(*, kw_only: bool = True) -> Callable[[type[T]], type[T]]:
    """Decorator: the class becomes a frozen dataclass that raises ValueError for a wrong field."""

    def decorate(cls: type[T]) -> type[T]:
        made: Any = dataclass(frozen=True, kw_only=kw_only, config=CONFIG)(cls)
        checked = made.__init__

        @wraps(checked)
        def __init__(self, *args, **kwargs):
            try:
                checked(self, *args, **kwargs)
            except ValidationError as error:
                raise ValueError(_sentence(made, error)) from None

        made.__init__ = __init__
        return made

    return decorate


def _sentence(cls: Any, error: ValidationError) -> str:
    """What is wrong with the first wrong field of ``cls``."""
    wrong = error.errors(include_url=False)[0]
    kind, context, name = wrong["type"], wrong.get("ctx", {}), cls.__name__
    if kind in ("value_error", "assertion_error"):  # of a check of the class's own
        return str(context["error"])
    field = wrong["loc"][0]
    if isinstance(field, int):  # given by its place
        field = fields(cls)[field].name
    if kind == "unexpected_keyword_argument":
        return f"{name} has no {quoted(field)}; it has: {', '.join(f.name for f in fields(cls))}"
    if kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{name} needs {field}"
    said = f"{name}: {field} {quoted(wrong['input'])}"
    if kind == "literal_error":
        return f"{said} is unknown; allowed: {context['expected'].replace(' or ', ', ')}"
    if kind in BOUNDS:
        return f"{said} {BOUNDS[kind].format(**context)}"
    return f"{said}: {wrong['msg'].replace('Input should', 'it should')}"
