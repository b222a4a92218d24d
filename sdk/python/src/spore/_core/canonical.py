"""Canonical JSON (RFC 8785), as far as a manifest needs it, and the content hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_LARGEST_INTEGER = 2**53 - 1


def canonical(value: Any) -> bytes:
    """Write a value as RFC 8785 says, in UTF-8.

    Raises:
        ValueError: It has a float, an integer that is not exact as a double, or text with a lone
            surrogate.
        TypeError: It has something that is no JSON, or a key that is no text.
    """
    parts: list[str] = []
    _write(value, parts)
    try:
        return "".join(parts).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{error.object[error.start]!r} is half a character, and has no UTF-8") from error


def content_hash(manifest: Mapping[str, Any]) -> str:
    """Hash what an image is built from: SHA-256 over the canonical JSON of its base and steps."""
    return hashlib.sha256(canonical({"base": manifest["base"], "steps": manifest["steps"]})).hexdigest()


def _write(value: Any, parts: list[str]) -> None:
    if value is None:
        parts.append("null")
    elif isinstance(value, bool):
        parts.append("true" if value else "false")
    elif isinstance(value, str):
        parts.append(json.dumps(value, ensure_ascii=False))
    elif isinstance(value, int):
        if abs(value) > _LARGEST_INTEGER:
            raise ValueError(f"{value} is beyond the integers that canonical JSON can write")
        parts.append(str(int(value)))
    elif isinstance(value, float):
        raise ValueError(f"{value} is no integer; a manifest has no other numbers")
    elif isinstance(value, (list, tuple)):
        _write_list(value, parts)
    elif isinstance(value, dict):
        _write_object(value, parts)
    else:
        raise TypeError(f"{type(value).__name__} is no JSON")


def _write_list(items: list[Any] | tuple[Any, ...], parts: list[str]) -> None:
    separator = "["
    for item in items:
        parts.append(separator)
        _write(item, parts)
        separator = ","
    parts.append("]" if items else "[]")


def _write_object(entries: dict[Any, Any], parts: list[str]) -> None:
    for key in entries:
        if not isinstance(key, str):
            raise TypeError(f"{key!r} is a key and no text")
    separator = "{"
    for key in sorted(entries, key=_utf16):
        parts.append(separator)
        _write(key, parts)
        parts.append(":")
        _write(entries[key], parts)
        separator = ","
    parts.append("}" if entries else "{}")


def _utf16(key: str) -> bytes:
    # RFC 8785 section 3.2.3: by code units, where a character beyond U+FFFF is two from D800 to DFFF. A lone
    # surrogate is let through here to be refused with the rest.
    return key.encode("utf-16-be", "surrogatepass")
