"""The package against what the daemon says of itself: its OpenAPI description, in the file that SPORE_OPENAPI names."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Optional, Union, get_args, get_origin

import pytest
import test_types
from test_types import ANSWERS

from spore import errors, models
from spore._core import calls, decode
from spore._core.call import Call

if not os.environ.get("SPORE_OPENAPI"):
    pytest.skip("SKIPPED: no description of the daemon in SPORE_OPENAPI", allow_module_level=True)

DESCRIPTION: dict[str, Any] = json.loads(Path(os.environ["SPORE_OPENAPI"]).read_text("utf-8"))
SCHEMAS: dict[str, Any] = DESCRIPTION["components"]["schemas"]
SCALARS = {"string": str, "boolean": bool, "number": float, "integer": int}


def every_call() -> list[Call[Any]]:
    """One of each, with all that it can say."""
    requests = test_types.full_requests()
    return [
        calls.build({}, no_cache=False, step_timeout_seconds=None, network="auto"),
        calls.start_build({}, no_cache=False, step_timeout_seconds=None, network="auto"),
        calls.list_images(),
        calls.get_image("x"),
        calls.delete_image("x"),
        calls.get_build("x"),
        calls.follow_build("x"),
        calls.cancel_build("x"),
        requests["CreateSandbox"],
        requests["ForkRequest"],
        calls.list_sandboxes(None),
        calls.get_sandbox("x", usage=True),
        requests["SandboxUpdate"],
        calls.delete_sandbox("x"),
        requests["ExecRequest"],
        calls.pause_sandbox("x"),
        calls.resume_sandbox("x"),
        calls.sandbox_logs("x"),
        calls.read_file("x", "/"),
        calls.write_file("x", "/", b"", 0o644),
        calls.list_files("x", "/"),
        calls.remove_file("x", "/", recursive=True),
        calls.make_directory("x", "/", 0o755),
        requests["CheckpointRequest"],
        calls.list_checkpoints(),
        calls.get_checkpoint("x"),
        calls.delete_checkpoint("x"),
        calls.host(),
        requests["Drain"],
        calls.events(None),
        calls.metrics(),
        calls.healthz(),
    ]


def described(call: Call[Any]) -> tuple[str, str]:
    """Path and method as the description has them."""
    for path in DESCRIPTION["paths"]:
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", path), call.path):
            return path, call.method.lower()
    raise AssertionError(f"{call.path} is not described")


def test_every_call_is_described_and_every_call_that_is_described_can_be_made() -> None:
    made = {described(call) for call in every_call()} | {("/v1/sandboxes/{id}/exec", "get")}
    there = {(path, method) for path, methods in DESCRIPTION["paths"].items() for method in methods}
    assert made == there - {("/v1/openapi.json", "get")}


def test_what_calls_say_in_the_query_is_described() -> None:
    for call in every_call():
        path, method = described(call)
        parameters = DESCRIPTION["paths"][path][method].get("parameters", [])
        known = {parameter["name"] for parameter in parameters if parameter["in"] == "query"}
        assert call.query.keys() <= known, (path, method)


def python_type(schema: dict[str, Any]) -> Any:
    """The type that a field with this schema should have here."""
    schema = {key: value for key, value in schema.items() if key != "description"}
    if "oneOf" in schema:
        (other,) = (arm for arm in schema["oneOf"] if arm != {"type": "null"})
        return Optional[python_type(other)]
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        by_name: dict[str, Any] = {struct: kind for kind, struct in ANSWERS.items()}
        special = {"ErrorBody": errors.SporeError, "NetworkPolicy": models.NetworkPolicy}
        # What is left are enums without data: words.
        return by_name.get(name, special.get(name, str))
    kind = schema["type"]
    if isinstance(kind, list):
        (other,) = (arm for arm in kind if arm != "null")
        return Optional[python_type({**schema, "type": other})]
    if kind == "array":
        return list[python_type(schema["items"])]  # type: ignore[misc]
    if kind == "object":
        return dict[str, str]
    return SCALARS[kind]


@pytest.mark.parametrize("kind", ANSWERS, ids=lambda kind: kind.__name__)
def test_an_answers_class_is_what_is_described(kind: type[Any]) -> None:
    schema = SCHEMAS[ANSWERS[kind]]
    fields = {key: (hint, optional) for _, key, hint, optional in decode.fields(kind)}
    assert fields.keys() == schema["properties"].keys()
    for key, (hint, optional) in fields.items():
        assert python_type(schema["properties"][key]) == (str if hint is bytes else hint), key
        assert not (optional and key in schema["required"]), key
        if get_origin(hint) is Union and type(None) in get_args(hint):
            assert optional, key


@pytest.mark.parametrize("name", ["CreateSandbox", "ForkRequest", "SandboxUpdate", "CheckpointRequest", "Drain"])
def test_a_request_says_all_that_is_described(name: str) -> None:
    body = json.loads(test_types.full_requests()[name].body or b"")
    assert body.keys() == SCHEMAS[name]["properties"].keys()


@pytest.mark.parametrize(
    ("kind", "name", "but"),
    [(models.Event, "EventKind", {"id", "timeMs"}), (models.BuildMessage, "BuildMessage", {"error"})],
)
def test_messages_have_the_fields_of_all_kinds(kind: type[Any], name: str, but: set[str]) -> None:
    theirs = {key for arm in SCHEMAS[name]["oneOf"] for key in arm["properties"]}
    ours = {key for _, key, _, _ in decode.fields(kind)}
    assert theirs - but == ours - but


def test_error_codes_are_those_that_are_described() -> None:
    assert set(SCHEMAS["ErrorCode"]["enum"]) == set(errors.BY_CODE)
