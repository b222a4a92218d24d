"""Answers that are not what they should be, and those that are more."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

import spore
from spore import BadAnswerError, CommandFailedError, ExecResult, SandboxInfo, SporeError, errors
from spore._core import calls
from spore._core.call import Call, Reply
from spore._core.decode import decode

SANDBOX: dict[str, Any] = {
    "id": "s1",
    "state": "running",
    "origin": "shell",
    "memory": {"floorMB": 1024, "requestedMB": 2048, "grantedMB": 2048, "maxMB": 16384},
    "cpus": 1,
    "network": {"policy": {"allow": ["example.com:443"]}, "address": "198.51.100.7"},
    "metadata": {"a": "b"},
    "createdAt": 1700000000,
    "lastUsedAt": 1700000001,
    "times": {"releasedUs": 1, "wokeUs": 2, "readyUs": 3},
}
RESULT: dict[str, Any] = {
    "exitCode": 0,
    "timedOut": False,
    "oomKills": 0,
    "tookMs": 1,
    "maxRssBytes": 4096,
    "stdout": "/w==",
    "stderr": "",
    "truncated": False,
}


def test_an_answer_becomes_what_it_says() -> None:
    info = decode(SandboxInfo, SANDBOX)
    assert (info.id, info.memory.granted_mb, info.times.ready_us) == ("s1", 2048, 3)
    assert info.network.policy == {"allow": ["example.com:443"]}
    assert (info.network.mac, info.expires_at, info.usage) == (None, None, None)


def test_fields_that_are_not_known_are_ignored() -> None:
    more = copy.deepcopy(SANDBOX)
    more["new"] = {"x": 1}
    more["memory"]["new"] = 1
    assert decode(SandboxInfo, more) == decode(SandboxInfo, SANDBOX)


def test_null_for_what_may_be_absent_is_absent() -> None:
    assert decode(SandboxInfo, {**SANDBOX, "expiresAt": None}).expires_at is None


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ((), [], "the answer"),
        (("id",), 1, "id"),
        (("cpus",), "1", "cpus"),
        (("cpus",), True, "cpus"),
        (("cpus",), 1.5, "cpus"),
        (("memory",), None, "memory"),
        (("memory", "grantedMB"), "x", "memory.grantedMB"),
        (("metadata", "a"), 1, "metadata.a"),
        (("network", "policy"), 1, "network.policy"),
    ],
)
def test_a_field_of_a_wrong_type_is_named(path: tuple[str, ...], value: Any, named: str) -> None:
    wrong: Any = copy.deepcopy(SANDBOX)
    if path:
        place = wrong
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
    else:
        wrong = value
    with pytest.raises(BadAnswerError, match=named.replace(".", r"\.")):
        decode(SandboxInfo, wrong)


@pytest.mark.parametrize("key", ["id", "memory", "times"])
def test_a_field_that_is_missing_is_named(key: str) -> None:
    with pytest.raises(BadAnswerError, match=f"^bad_answer: {key} is missing"):
        decode(SandboxInfo, {name: value for name, value in SANDBOX.items() if name != key})


def test_output_is_bytes_and_text() -> None:
    result = decode(ExecResult, {**RESULT, "stderr": "R3LDvMOfZQ=="})
    assert (result.stdout_bytes, result.stdout, result.stderr, result.ok) == (b"\xff", "\ufffd", "Grüße", True)
    assert not decode(ExecResult, {**RESULT, "exitCode": 137, "signal": 9}).ok


@pytest.mark.parametrize("text", ["/w=", "/w", "ä", "/w==\n", 7])
def test_output_that_is_not_base64_is_refused(text: Any) -> None:
    with pytest.raises(BadAnswerError, match="stdout"):
        decode(ExecResult, {**RESULT, "stdout": text})


def reply(status: int, body: bytes) -> Reply:
    return Reply(status, {}, body)


@pytest.mark.parametrize("kind", errors.BY_CODE.values(), ids=lambda kind: str(kind.for_code))
def test_each_code_is_its_own_exception(kind: type[SporeError]) -> None:
    body = f'{{"error": {{"code": "{kind.for_code}", "message": "words", "details": {{"x": 1}}}}}}'
    with pytest.raises(kind) as caught:
        reply(400, body.encode()).raise_for_error()
    error = caught.value
    assert type(error) is kind
    assert (error.code, error.message, error.details, error.status) == (kind.for_code, "words", {"x": 1}, 400)
    assert str(error) == f"{kind.for_code}: words"


def test_a_code_that_is_not_known_is_an_error_with_that_code() -> None:
    with pytest.raises(SporeError) as caught:
        reply(418, b'{"error": {"code": "tea_only", "message": "no coffee"}}').raise_for_error()
    assert type(caught.value) is SporeError
    assert (caught.value.code, caught.value.details, caught.value.status) == ("tea_only", {}, 418)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"error": 1}', b'{"error": {"message": "x"}}', b"\xff"])
def test_an_error_that_is_none_of_the_daemons_still_is_one(body: bytes) -> None:
    with pytest.raises(BadAnswerError) as caught:
        reply(502, body).raise_for_error()
    assert caught.value.status == 502


@pytest.mark.parametrize(
    ("call", "body"),
    [
        (calls.list_images(), b"[]"),
        (calls.list_images(), b'{"images": {}}'),
        (calls.list_sandboxes(None), b"nonsense"),
        (
            calls.fork_sandbox(
                "s", count=1, memory_mb=None, env=None, metadata=None, timeout_seconds=None, network=None, partial=False
            ),
            b"{}",
        ),
        (calls.start_build({}, no_cache=False, step_timeout_seconds=None, network="auto"), b"{}"),
        (calls.host(), b"null"),
    ],
)
def test_a_good_status_with_nonsense_is_a_bad_answer(call: Call[Any], body: bytes) -> None:
    with pytest.raises(BadAnswerError):
        call.settle(reply(200, body), False)


def test_errors_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(errors.from_body({"code": "busy", "message": "m", "details": {"a": 1}}, 429)))
    assert isinstance(error, spore.BusyError)
    assert (error.code, error.message, error.details, error.status) == ("busy", "m", {"a": 1}, 429)
    failed = pickle.loads(pickle.dumps(CommandFailedError("m", result=decode(ExecResult, RESULT))))
    assert failed.result.stdout_bytes == b"\xff"


@pytest.mark.parametrize("id", ["", ".", ".."])
def test_what_is_no_id_cannot_change_the_call(id: str) -> None:
    with pytest.raises(ValueError, match="no name or id"):
        calls.get_image(id)


def test_ids_are_quoted() -> None:
    assert calls.get_image("a/../b?c#d\0 é").target == "/v1/images/a%2F..%2Fb%3Fc%23d%00%20%C3%A9"
    assert calls.read_file("s", "/a b/é&mode=0").target == "/v1/sandboxes/s/files?path=%2Fa+b%2F%C3%A9%26mode%3D0"
