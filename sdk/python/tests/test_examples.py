"""The examples, against a fake daemon; and against a real one, where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake import Fake

import spore

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

SAID = {
    "hello": "hello from a sandbox\nhello from a sandbox\n",
    "streams": "step 1\nstep 2\nstep 3\nstandard error: done\nyou said hello\nexit code: 7\n",
    "forks": "41\n42\n40\n",
    "checkpoints": "kept\n",
    "many": "36\n49\n",
    "place": "takes work: True - image here: True\nfound again: True\ncounts processor time: True\n",
}


def run(name: str, argument: str, socket: str) -> str:
    ended = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), argument],
        env={**os.environ, "SPORE_SOCKET": socket},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_every_example_is_run() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*SAID, "build"}


@pytest.mark.parametrize("name", SAID)
def test_an_example_says_what_it_should(name: str, daemon: Fake) -> None:
    assert run(name, "tools", daemon.socket) == SAID[name]
    assert not daemon.sandboxes
    assert not daemon.checkpoints


def test_the_example_of_a_build_says_what_it_should(daemon: Fake) -> None:
    said = run("build", "busybox", daemon.socket)
    assert "[4/4] run" in said
    assert said.endswith("content hash: True\nhello from an image\nhello from an image\n")


@pytest.mark.daemon
@pytest.mark.parametrize("name", SAID)
def test_an_example_runs_with_a_daemon(name: str, real_image: str) -> None:
    client = spore.Client.shared()
    before = {one.id for one in spore.Sandbox.list()}, {one.id for one in client.list_checkpoints()}
    assert run(name, real_image, client.socket_path) == SAID[name]
    assert ({one.id for one in spore.Sandbox.list()}, {one.id for one in client.list_checkpoints()}) == before


@pytest.mark.daemon
def test_the_example_of_a_build_runs_with_a_daemon(real_image: str) -> None:
    base = os.environ.get("SPORE_TEST_BASE")
    if not base:
        pytest.skip("SKIPPED: no base in SPORE_TEST_BASE: no image is built")
    said = run("build", base, spore.Client.shared().socket_path)
    assert said.endswith("content hash: True\nhello from an image\nhello from an image\n")
