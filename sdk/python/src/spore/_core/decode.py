"""JSON of the daemon to the classes of `spore.models`, by their fields' types.

A field that is not known is ignored: answers may get new ones. One that is missing or of another type is a
`BadAnswerError` that names it.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import functools
import re
import types
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from ..errors import BadAnswerError, SporeError, from_body
from ..models import NetworkPolicy

T = TypeVar("T")

_UNIONS = (Union, getattr(types, "UnionType", Union))


def json_name(name: str) -> str:
    """Give the interface's name of a field: `created_at` is `createdAt`, `floor_mb` is `floorMB`."""
    camel = re.sub(r"_([a-z])", lambda found: found[1].upper(), name)
    return re.sub(r"Mb$", "MB", camel)


def decode(kind: type[T], value: Any, where: str = "") -> T:
    """Make a `kind`, one of the data classes, of a JSON value.

    Args:
        kind: The class.
        value: What `json.loads` gave.
        where: What the value is called in errors; empty for a whole answer.

    Raises:
        BadAnswerError: It is not one.
    """
    if not isinstance(value, dict):
        raise _bad(where, "an object", value)
    arguments = {}
    for name, key, hint, optional in fields(kind):
        if key in value:
            arguments[name] = _value(hint, value[key], f"{where}.{key}" if where else key)
        elif not optional:
            raise BadAnswerError(f"{where + '.' if where else ''}{key} is missing in the answer")
    if "raw" in kind.__annotations__:
        arguments["raw"] = value
    return kind(**arguments)


def fields(kind: type[Any]) -> list[tuple[str, str, Any, bool]]:
    """Give each field's name, name in JSON, type, and whether it may be missing."""
    return _fields(cast(Any, kind))


@functools.cache
def _fields(kind: Any) -> list[tuple[str, str, Any, bool]]:
    hints = get_type_hints(kind)
    found = []
    for item in dataclasses.fields(kind):
        if item.name == "raw":
            continue
        optional = item.default is not dataclasses.MISSING
        hint = hints[item.name]
        key = json_name(item.name)
        if hint is bytes:
            # What is base64 there is called after what it is here.
            key = key.replace("Bytes", "")
        found.append((item.name, key, hint, optional))
    return found


def _value(hint: Any, value: Any, where: str) -> Any:
    origin = get_origin(hint)
    if hint == NetworkPolicy:
        if not isinstance(value, (str, dict)):
            raise _bad(where, "a network policy", value)
        return value
    if origin in _UNIONS:
        if value is None:
            return None
        (inner,) = (arm for arm in get_args(hint) if arm is not type(None))
        return _value(inner, value, where)
    if origin is list:
        if not isinstance(value, list):
            raise _bad(where, "a list", value)
        (inner,) = get_args(hint)
        return [_value(inner, item, f"{where}[{number}]") for number, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise _bad(where, "an object", value)
        inner = get_args(hint)[1]
        return {key: _value(inner, item, f"{where}.{key}") for key, item in value.items()}
    if origin is Literal:
        return value
    if dataclasses.is_dataclass(hint):
        return decode(hint, value, where)  # type: ignore[arg-type, unused-ignore]
    return _scalar(hint, value, where)


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is SporeError:
        return from_body(value)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is bytes:
        if not isinstance(value, str):
            raise _bad(where, "base64", value)
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError) as error:
            raise BadAnswerError(f"{where} in the answer is not base64: {error}") from error
    if type(value) is not hint:
        raise _bad(
            where,
            {str: "a string", int: "an integer", bool: "a boolean"}.get(hint, str(hint)),
            value,
        )
    return value


def _bad(where: str, expected: str, value: Any) -> BadAnswerError:
    return BadAnswerError(f"{where or 'the answer'} should be {expected} and is {value!r:.100}")
