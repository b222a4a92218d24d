"""The package's types and requests against the daemon's own source."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any, Optional, Union, get_args, get_origin, get_type_hints

import pytest
import rust_types

import spore
from spore import errors, models
from spore._core import calls, command, decode
from spore._core.call import Call

if not rust_types.SOURCE.is_dir():
    pytest.skip(f"SKIPPED: the daemon's types are not here: {rust_types.SOURCE}", allow_module_level=True)

STRUCTS = rust_types.structs()

#: The package's class, and the struct it is of, where that has another name.
ANSWERS = {
    models.ImageCheckpoint: "ImageCheckpoint",
    models.ImageInfo: "Image",
    models.CheckpointInfo: "Checkpoint",
    models.SandboxMemory: "SandboxMemory",
    models.Network: "Network",
    models.SandboxTimes: "SandboxTimes",
    models.Usage: "Usage",
    models.SandboxInfo: "Sandbox",
    models.ExecResult: "ExecResult",
    models.DirEntry: "DirEntry",
    models.FileInfo: "FileInfo",
    models.Capacity: "Capacity",
    models.Pressure: "Pressure",
    models.Versions: "Versions",
    models.HostInfo: "HostInfo",
    models.Build: "Build",
}

SCALARS = {"String": str, "bool": bool, "f64": float, **dict.fromkeys(("u8", "u32", "u64", "i32", "i64", "usize"), int)}


def python_type(rust: str) -> Any:
    """The type that a field of a Rust type should have here."""
    if rust.startswith("Option<"):
        return Optional[python_type(rust[7:-1])]
    if rust.startswith("Vec<"):
        return list[python_type(rust[4:-1])]  # type: ignore[misc]
    if rust == "[f64; 3]":
        return list[float]
    if rust == "BTreeMap<String, String>":
        return dict[str, str]
    if rust == "NetworkPolicy":
        return models.NetworkPolicy
    if rust == "ErrorBody":
        return errors.SporeError
    by_struct = {struct: kind for kind, struct in ANSWERS.items()}
    if rust in by_struct:
        return by_struct[rust]
    # An enum without data is a word: there may be new ones.
    return SCALARS.get(rust, str)


@pytest.mark.parametrize("kind", ANSWERS, ids=lambda kind: kind.__name__)
def test_an_answers_class_has_the_fields_of_the_daemons_type(kind: type[Any]) -> None:
    theirs = STRUCTS[ANSWERS[kind]]
    ours = {key: (hint, optional) for _, key, hint, optional in decode.fields(kind)}
    assert ours.keys() == theirs.keys()
    for key, (hint, optional) in ours.items():
        expected = python_type(theirs[key].rust_type)
        if hint is bytes:
            assert expected is str, key
            continue
        assert hint == expected, key
        assert optional == theirs[key].optional, key


def test_events_and_build_messages_have_the_fields_of_all_kinds() -> None:
    ignored = {"type", "id", "timeMs"}
    for kind, enum in ((models.Event, "EventKind"), (models.BuildMessage, "BuildMessage")):
        theirs: set[str] = set()
        for name, fields in rust_types.variants(enum).items():
            if (enum, name) != ("BuildMessage", "Error"):
                theirs |= fields.keys()
        ours = {key for _, key, _, _ in decode.fields(kind)}
        assert ours - ignored == theirs


def test_every_error_code_has_a_class() -> None:
    codes = {re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower() for name in rust_types.variants("ErrorCode")}
    assert set(errors.BY_CODE) == codes
    assert all(hasattr(spore, kind.__name__) for kind in errors.BY_CODE.values())


def body(call: Call[Any]) -> dict[str, Any]:
    found = json.loads(call.body or b"")
    assert isinstance(found, dict)
    return found


def full_requests() -> dict[str, Call[Any]]:
    """Requests that say all that can be said, by the names of their types."""
    words = {"a": "b"}
    run = command.exec_request("x", env=words, cwd="/", user="0", stdin=b"", timeout_seconds=1, tty=(1, 2))
    return {
        "CreateSandbox": calls.create_sandbox(
            image="i",
            checkpoint="c",
            memory_mb=1,
            cpus=1,
            disk_mb=1,
            env=words,
            metadata=words,
            timeout_seconds=1,
            idle_timeout_seconds=1,
            network={"allow": ["x"]},
            exec="true",
            count=1,
            partial=True,
        ),
        "ForkRequest": calls.fork_sandbox(
            "s",
            count=1,
            memory_mb=1,
            env=words,
            metadata=words,
            timeout_seconds=1,
            idle_timeout_seconds=1,
            network="nat",
            partial=True,
        ),
        "BuildRequest": calls.start_build({"base": "b"}, no_cache=True, step_timeout_seconds=1, network="none"),
        "ExecRequest": calls.run_command("s", run),
        "SandboxUpdate": calls.update_sandbox("s", memory_mb=1, timeout_seconds=0, idle_timeout_seconds=0, metadata={}),
        "CheckpointRequest": calls.checkpoint_sandbox("s", "n", 1),
        "Drain": calls.drain(False),
    }


def test_requests_say_all_that_can_be_said_and_nothing_else() -> None:
    for struct, call in full_requests().items():
        assert body(call).keys() == STRUCTS[struct].keys(), struct
    assert body(full_requests()["ExecRequest"])["tty"].keys() == STRUCTS["TtySize"].keys()
    assert body(full_requests()["CreateSandbox"])["exec"].keys() < STRUCTS["ExecRequest"].keys()


def test_what_is_not_given_is_left_to_the_daemon() -> None:
    create = calls.create_sandbox(
        image="i",
        memory_mb=None,
        cpus=None,
        disk_mb=None,
        env=None,
        metadata=None,
        timeout_seconds=None,
        network="none",
        exec=None,
    )
    assert body(create) == {"image": "i"}
    build = calls.build({"base": "b"}, no_cache=False, step_timeout_seconds=None, network="auto")
    assert body(build) == {"manifest": {"base": "b"}}
    assert body(calls.checkpoint_sandbox("s", None, None)) == {}


def test_controls_of_a_stream_are_of_the_daemons_kinds() -> None:
    kinds = {name[0].lower() + name[1:] for name in rust_types.variants("ExecControl")}
    said = [json.loads(text) for text in (command.stdin_end(), command.resize(1, 2), command.send_signal(2))]
    assert {control.pop("type") for control in said} == kinds
    assert said == [{}, {"rows": 1, "cols": 2}, {"signal": 2}]
    assert said[1].keys() == STRUCTS["TtySize"].keys()
    assert said[2].keys() == STRUCTS["ExecSignal"].keys()


def test_every_public_class_of_answers_is_exported() -> None:
    public = {name for name, item in vars(models).items() if dataclasses.is_dataclass(item)}
    assert public <= set(spore.__all__)


def test_unions_are_only_of_none_and_one_other() -> None:
    # The decoder relies on it, but for the network policy.
    for kind in [*ANSWERS, models.Event, models.BuildMessage]:
        for hint in get_type_hints(kind).values():
            if get_origin(hint) is Union and hint != models.NetworkPolicy:
                arms = get_args(hint)
                assert len(arms) == 2
                assert type(None) in arms
