"""Images as what they are built from."""

from __future__ import annotations

import base64
import copy
import os
import pickle
from pathlib import Path
from typing import Any, Callable

import pytest

from spore import Image
from spore._core import local_files


def steps(image: Image) -> list[dict[str, Any]]:
    found = image.manifest()["steps"]
    assert isinstance(found, list)
    return found


def test_each_method_adds_its_step_in_order() -> None:
    image = (
        Image.base()
        .apt_install(["build-essential", "cmake"])
        .pip_install("flask", "requests>=2")
        .run_commands("make -j")
        .env({"A": "1"})
        .workdir("/app")
        .add_file(b"\0\xff", "/app/x", 0o755)
        .add_text("hi", "/app/y")
        .name("mine")
        .builder_memory(8192)
        .disk(20480)
    )
    assert image.manifest() == {
        "base": "debian",
        "steps": [
            {"type": "apt_install", "args": {"packages": ["build-essential", "cmake"]}},
            {"type": "pip_install", "args": {"packages": ["flask", "requests>=2"]}},
            {"type": "run", "args": {"commands": ["make -j"]}},
            {"type": "env", "args": {"vars": {"A": "1"}}},
            {"type": "workdir", "args": {"path": "/app"}},
            {"type": "add_file", "args": {"path": "/app/x", "content": "AP8=", "mode": "0755"}},
            {"type": "add_file", "args": {"path": "/app/y", "content": "aGk="}},
        ],
        "name": "mine",
        "builderMemoryMB": 8192,
        "diskMB": 20480,
    }


def test_the_floor_is_reached_through_a_raw_manifest_only() -> None:
    image = Image.from_manifest({"base": "debian", "steps": [], "runtimeMemoryMB": 2048})
    assert image.builder_memory(512).manifest()["runtimeMemoryMB"] == 2048
    assert not [name for name in dir(image) if "runtime" in name or "floor" in name]


def test_an_image_does_not_change() -> None:
    base = Image.base()
    one, other = base.run_commands("a"), base.run_commands("b").name("x")
    assert steps(base) == []
    assert steps(one)[0]["args"] == {"commands": ["a"]}
    assert "name" not in one.manifest()
    assert other.manifest()["name"] == "x"
    with pytest.raises(AttributeError):
        one._manifest = {}
    with pytest.raises(TypeError):
        Image()


def test_what_is_given_or_taken_can_change_without_the_image() -> None:
    packages, variables = ["curl"], {"A": "1"}
    raw: dict[str, Any] = {"base": "b", "steps": [{"type": "run", "args": {"commands": []}}]}
    image, of_raw = Image.base().apt_install(packages).env(variables), Image.from_manifest(raw)
    before, before_raw = image.content_hash(), of_raw.content_hash()
    packages.append("wget")
    variables["B"] = "2"
    raw["steps"][0]["args"]["commands"].append("x")
    image.manifest()["steps"].clear()
    of_raw.manifest()["steps"][0]["args"]["commands"].append("y")
    assert (image.content_hash(), of_raw.content_hash()) == (before, before_raw)


def test_equal_images_are_equal_and_can_be_pickled_and_copied() -> None:
    image = Image.base().run_commands("a").name("x")
    assert image == Image.base().run_commands("a").name("x")
    assert image != Image.base().run_commands("b").name("x")
    assert len({image, Image.base().run_commands("a").name("x")}) == 1
    assert pickle.loads(pickle.dumps(image)) == image
    assert copy.deepcopy(image) == image
    assert "'run'" in repr(image)
    assert "'x'" in repr(image)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Image.base().apt_install(["curl", 1]),  # type: ignore[list-item]
        lambda: Image.base().env({"A": 1}),  # type: ignore[dict-item]
        lambda: Image.base().builder_memory(True),
        lambda: Image.base().builder_memory("4096"),  # type: ignore[arg-type]
        lambda: Image.base().disk(1.5),  # type: ignore[arg-type]
        lambda: Image.base().workdir(Path("/a")),  # type: ignore[arg-type]
        lambda: Image.base().add_local_dir(".", "/a", ignore="*.pyc"),
    ],
)
def test_arguments_of_a_wrong_type_are_refused_where_they_are_given(wrong: Callable[[], Image]) -> None:
    with pytest.raises(TypeError):
        wrong()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Image.base().workdir("app"),
        lambda: Image.base().add_file(b"", "motd"),
        lambda: Image.base().add_file(b"", "/motd", 0o10000),
        lambda: Image.base().add_file(b"", "/motd", True),
        lambda: Image.from_manifest({"steps": []}),
        lambda: Image.from_manifest({"base": "b", "steps": {}}),
    ],
)
def test_values_that_mean_nothing_are_refused_where_they_are_given(wrong: Callable[[], Image]) -> None:
    with pytest.raises(ValueError, match=r"."):
        wrong()


def test_a_file_from_here_keeps_its_bytes_and_whether_it_is_executable(tmp_path: Path) -> None:
    plain, program = tmp_path / "plain", tmp_path / "program"
    plain.write_bytes(b"\0\1")
    program.write_bytes(b"#!/bin/sh\n")
    plain.chmod(0o640)
    program.chmod(0o700)
    image = Image.base().add_file(plain, "/a").add_file(str(program), "/b").add_file(program, "/c", "4711")
    assert [step["args"] for step in steps(image)] == [
        {"path": "/a", "content": "AAE="},
        {"path": "/b", "content": "IyEvYmluL3NoCg==", "mode": "0755"},
        {"path": "/c", "content": "IyEvYmluL3NoCg==", "mode": "4711"},
    ]


def test_a_file_from_here_is_read_when_it_is_added(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    image = Image.base().add_file(path, "/a")
    path.write_text("after")
    assert base64.b64decode(steps(image)[0]["args"]["content"]) == b"before"


def test_a_directory_from_here_is_its_files_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for name in ("b/z", "b/a", "a-b", "a/x", "A", "é"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "b" / "z").chmod(0o755)
    (tmp_path / "link").symlink_to("A")
    (step,) = steps(Image.base().add_local_dir(tmp_path, "/d"))
    assert step["type"] == "add_dir"
    assert step["args"]["path"] == "/d"
    files = step["args"]["files"]
    assert [file["relativePath"] for file in files] == ["A", "a-b", "a/x", "b/a", "b/z", "link", "é"]
    assert [base64.b64decode(file["content"]).decode() for file in files[-3:]] == ["b/z", "A", "é"]
    assert [file.get("mode") for file in files] == [None, None, None, None, "0755", None, None]


def test_what_is_ignored_of_a_directory_is_not_even_looked_at(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("x")
    (tmp_path / "src").mkdir()
    for name in ("src/a.py", "src/a.pyc", "src/secret"):
        (tmp_path / name).write_text(name)
    os.mkfifo(tmp_path / "pipe")
    image = Image.base().add_local_dir(tmp_path, "/d", ignore=[".git", "*.pyc", "src/secret", "pipe"])
    assert [file["relativePath"] for file in steps(image)[0]["args"]["files"]] == ["src/a.py"]


def test_what_can_be_no_file_of_an_image_is_refused_and_named(tmp_path: Path) -> None:
    pipe, link = tmp_path / "p" / "pipe", tmp_path / "l" / "link"
    for path in (pipe, link):
        path.parent.mkdir()
    os.mkfifo(pipe)
    link.symlink_to(tmp_path, target_is_directory=True)
    for directory, named in ((pipe.parent, "pipe"), (link.parent, "link")):
        with pytest.raises(ValueError, match=named):
            Image.base().add_local_dir(directory, "/d")
    with pytest.raises(ValueError, match="pipe"):
        Image.base().add_file(pipe, "/p")
    with pytest.raises(NotADirectoryError):
        Image.base().add_local_dir(tmp_path / "nothing", "/d")
    (tmp_path / "l" / "link").unlink()
    os.close(os.open(os.fsencode(tmp_path / "l") + b"/\xff", os.O_CREAT))
    with pytest.raises(ValueError, match="UTF-8"):
        Image.base().add_local_dir(tmp_path / "l", "/d")


def test_more_than_a_manifest_can_carry_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="more than"):
        Image.base().add_file(huge, "/h")
    huge.unlink()
    monkeypatch.setattr(local_files, "MAX_BYTES", 30)
    for name in "abc":
        (tmp_path / name).write_bytes(b"x" * 12)
    with pytest.raises(ValueError, match="ignore"):
        Image.base().add_local_dir(tmp_path, "/d")
    assert len(steps(Image.base().add_local_dir(tmp_path, "/d", ignore=["c"]))[0]["args"]["files"]) == 2
