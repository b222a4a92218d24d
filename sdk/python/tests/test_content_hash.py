"""The content hash and the canonical JSON beneath it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from spore import Image
from spore._core.canonical import canonical

VECTORS = Path(__file__).resolve().parents[3] / "builder" / "tests" / "vectors" / "content-hash.json"


def vectors() -> list[Any]:
    if not VECTORS.exists():
        reason = f"SKIPPED: the vectors shared with the daemon are not here: {VECTORS}"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason))]
    return [pytest.param(vector, id=vector["name"]) for vector in json.loads(VECTORS.read_text("utf-8"))]


@pytest.mark.parametrize("vector", vectors())
def test_a_shared_vector_holds(vector: dict[str, Any]) -> None:
    content = {"steps": vector["manifest"]["steps"], "base": vector["manifest"]["base"]}
    assert canonical(content).decode("utf-8") == vector["canonical"]
    assert Image.from_manifest(vector["manifest"]).content_hash() == vector["sha256"]


def test_the_hash_is_of_what_the_methods_say() -> None:
    image = Image.base("busybox").run_commands("echo 'Grüße' && true").add_text("<&>", "/etc/motd", 0o644)
    text = (
        '{"base":"busybox","steps":[{"args":{"commands":["echo \'Grüße\' && true"]},"type":"run"},'
        '{"args":{"content":"PCY+","mode":"0644","path":"/etc/motd"},"type":"add_file"}]}'
    )
    assert image.content_hash() == hashlib.sha256(text.encode("utf-8")).hexdigest()


def test_name_memory_and_disk_are_not_in_the_hash() -> None:
    image = Image.base().run_commands("true")
    assert image.name("x").builder_memory(8192).disk(9000).content_hash() == image.content_hash()


def test_keys_are_in_the_order_of_their_utf16_code_units() -> None:
    # The example of RFC 8785 section 3.2.3: U+1F600 (D83D DE00) comes before U+FB33.
    value = {"\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "\U0001f600": 5, "\u0080": 6, "\u00f6": 7}
    assert canonical(value).decode() == '{"\\r":2,"1":4,"\x80":6,"ö":7,"€":1,"😀":5,"\ufb33":3}'


def test_strings_are_escaped_as_little_as_they_may_be() -> None:
    assert canonical("\x01\b\t\n\f\r\x1f\"\\/<>&'\x7f\u2028").decode() == (
        '"\\u0001\\b\\t\\n\\f\\r\\u001f\\"\\\\/<>&\'\x7f\u2028"'
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (False, "false"),
        (0, "0"),
        (-7, "-7"),
        (2**53 - 1, "9007199254740991"),
        ([], "[]"),
        ((), "[]"),
        ({}, "{}"),
        ([[], {}, [1, "a", None]], '[[],{},[1,"a",null]]'),
    ],
)
def test_every_other_kind_of_value_has_one_form(value: Any, text: str) -> None:
    assert canonical(value).decode() == text


@pytest.mark.parametrize("value", [1.0, 2**53, -(2**53), float("nan"), "\ud800", {"\udc00": 1}, ["a\udfff"]])
def test_what_has_no_canonical_form_here_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        canonical(value)
    assert type(caught.value) is ValueError


@pytest.mark.parametrize("value", [b"x", {1: 2}, {"a"}, object()])
def test_what_is_no_json_is_refused(value: Any) -> None:
    with pytest.raises(TypeError):
        canonical(value)
