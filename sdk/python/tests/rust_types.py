"""The types of the HTTP interface as the daemon's own source has them, so that nobody's memory of them is tested."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

SOURCE = Path(__file__).resolve().parents[3] / "api" / "types" / "src"


@dataclass(frozen=True)
class Field:
    """A field of a struct, or of an enum's variant."""

    name: str
    rust_type: str
    #: Whether it may be missing in an answer.
    optional: bool


def camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(word.capitalize() for word in rest)


def _fields(body: str) -> dict[str, Field]:
    found: dict[str, Field] = {}
    attributes = ""
    for line in body.splitlines():
        text = line.strip()
        if text.startswith("#["):
            attributes += text
            continue
        match = re.fullmatch(r"(?:pub )?(\w+): (.+),", text)
        if match:
            renamed = re.search(r'rename = "(\w+)"', attributes)
            name = renamed[1] if renamed else camel(match[1])
            if "flatten" in attributes:
                name = "*"
            found[name] = Field(name, match[2], "skip_serializing_if" in attributes)
            attributes = ""
        elif not text.startswith("//"):
            attributes = ""
    return found


def _text() -> str:
    return "\n".join(path.read_text("utf-8") for path in sorted(SOURCE.glob("*.rs")))


def structs() -> dict[str, dict[str, Field]]:
    """All structs: the fields by their names in JSON."""
    found = {
        match[1]: _fields(match[2]) for match in re.finditer(r"^pub struct (\w+) \{\n(.*?)^\}", _text(), re.M | re.S)
    }
    for fields in found.values():
        flat = fields.pop("*", None)
        if flat is not None and flat.rust_type in found:
            fields.update(found[flat.rust_type])
    return found


def variants(enum: str) -> dict[str, dict[str, Field]]:
    """An enum's variants by their names in Rust, and the fields of each."""
    match = re.search(rf"^pub enum {enum} \{{\n(.*?)^\}}", _text(), re.M | re.S)
    assert match, enum
    found: dict[str, dict[str, Field]] = {}
    inside: Optional[str] = None
    body: list[str] = []
    for line in match[1].splitlines():
        begun = re.fullmatch(r"    (\w+)( \{|\(.*\))?,?", line)
        if inside is None and begun:
            found[begun[1]] = {}
            if begun[2] == " {":
                inside, body = begun[1], []
        elif inside is not None and line == "    },":
            found[inside], inside = _fields("\n".join(body)), None
        elif inside is not None:
            body.append(line)
    return found
