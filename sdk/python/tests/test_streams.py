"""Commands that are heard while they run, both halves against a fake daemon."""

from __future__ import annotations

import asyncio
import io
import signal
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from fake import Fake
from halves import Api

import spore
from spore._core import command, websocket

pytestmark = pytest.mark.anyio


async def settled(daemon: Fake, killed: int) -> None:
    """Wait until the daemon has killed what was left to it."""
    for _ in range(500):
        if daemon.killed == killed:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{daemon.killed} commands were killed, not {killed}")


async def test_output_is_heard_as_text_and_by_its_stream(api: Api, daemon: Fake) -> None:
    sandbox = await api.Sandbox.create("tools")
    out: list[str] = []
    err: list[str] = []
    result = await sandbox.exec_stream(
        "printf 'Gr\\303'; sleep 0.2; printf '\\274\\303\\237e \\377'; echo oops >&2; exit 3",
        on_stdout=out.append,
        on_stderr=err.append,
    )
    assert ("".join(out), "".join(err)) == ("Grüße \ufffd", "oops\n")
    assert len(out) > 1
    assert (result.exit_code, result.stdout, result.stderr) == (3, "", "")


async def test_output_is_heard_before_the_command_ends(api: Api, daemon: Fake) -> None:
    sandbox = await api.Sandbox.create("tools")
    async with await sandbox.exec_interactive("echo ready; read word; echo got $word") as stream:
        heard = b""
        async for output in stream:
            heard += output.data
            if output.data == b"ready\n":
                assert stream.result is None
                await stream.send_stdin("it\n")
        assert heard == b"ready\ngot it\n"
        assert stream.result.exit_code == 0
    await settled(daemon, 0)


async def test_what_nobody_listens_to_is_in_the_result(api: Api, daemon: Fake) -> None:
    sandbox = await api.Sandbox.create("tools")
    out: list[str] = []
    result = await sandbox.exec_stream("echo out; echo err >&2", on_stdout=out.append)
    assert (out, result.stdout, result.stderr, result.truncated) == (["out\n"], "", "err\n", False)


async def test_what_is_kept_has_an_end(api: Api, daemon: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "KEPT_BYTES", 1500)
    sandbox = await api.Sandbox.create("tools")
    result = await sandbox.exec_stream("head -c 5000 /dev/zero; printf x >&2")
    assert (len(result.stdout_bytes), result.stderr, result.truncated) == (1500, "x", True)


async def test_input_of_any_kind_is_read(api: Api, daemon: Fake) -> None:
    sandbox = await api.Sandbox.create("tools")
    blocks = [b"one ", b"two ", b"", b"three"]
    for given, expected in (
        ("Grüße", "Grüße"),
        (b"bytes", "bytes"),
        (blocks, "one two three"),
        (io.BytesIO(b"a\nb\n"), "a\nb\n"),
        (None, ""),
    ):
        assert (await sandbox.exec_stream("cat", stdin=given)).stdout == expected


async def test_asynchronous_input_is_read(daemon: Fake) -> None:
    async def blocks() -> AsyncIterator[bytes]:
        for block in (b"a", b"b"):
            await asyncio.sleep(0)
            yield block

    sandbox = await spore.AsyncSandbox.create("tools")
    assert (await sandbox.exec_stream("cat", stdin=blocks())).stdout == "ab"


async def test_more_goes_both_ways_at_once_than_any_buffer_holds(api: Api, daemon: Fake) -> None:
    sandbox = await api.Sandbox.create("tools")
    data = bytes(range(256)) * 8192
    result = await sandbox.exec_stream("cat", stdin=data)
    assert result.stdout_bytes == data


async def test_a_command_need_not_read_its_input(api: Api, daemon: Fake) -> None:
    sandbox = await api.Sandbox.create("tools")
    assert (await sandbox.exec_stream("exit 4", stdin=b"x" * (4 << 20))).exit_code == 4


async def test_a_result_is_heard_although_input_cannot_be_sent_any_more(api: Api, daemon: Fake) -> None:
    sandbox = await api.Sandbox.create("tools")
    for _ in range(20):
        assert (await sandbox.exec_stream(["end early"], stdin=b"x" * (1 << 20))).exit_code == 5


async def test_input_that_fails_ends_the_command_and_is_what_went_wrong(api: Api, daemon: Fake) -> None:
    def blocks() -> Iterator[bytes]:
        yield b"x"
        raise ZeroDivisionError

    sandbox = await api.Sandbox.create("tools")
    with pytest.raises(ZeroDivisionError):
        await sandbox.exec_stream("sleep 60", stdin=blocks())
    await settled(daemon, 1)


async def test_a_callback_that_fails_ends_the_command(api: Api, daemon: Fake) -> None:
    def heard(text: str) -> None:
        raise ZeroDivisionError

    sandbox = await api.Sandbox.create("tools")
    with pytest.raises(ZeroDivisionError):
        await sandbox.exec_stream("echo x; sleep 60", on_stdout=heard)
    await settled(daemon, 1)


async def test_callbacks_may_be_coroutines(daemon: Fake) -> None:
    heard: list[str] = []

    async def hear(text: str) -> None:
        await asyncio.sleep(0)
        heard.append(text)

    sandbox = await spore.AsyncSandbox.create("tools")
    await sandbox.exec_stream("echo a; echo b >&2", on_stdout=hear, on_stderr=hear)
    assert sorted(heard) == ["a\n", "b\n"]


async def test_what_ends_badly_is_raised_if_it_is_checked(api: Api, daemon: Fake) -> None:
    sandbox = await api.Sandbox.create("tools")
    with pytest.raises(spore.CommandFailedError, match="exit code 3: why"):
        await sandbox.exec_stream("echo why >&2; exit 3", check=True)
    with pytest.raises(spore.GuestRefusedError, match="working directory"):
        await sandbox.exec_stream("true", cwd="/nothing")


async def test_signals_and_terminal_sizes_are_passed_on(api: Api, daemon: Fake) -> None:
    sandbox = await api.Sandbox.create("tools")
    # Not SIGINT: a shell cannot trap what was ignored when it began, as that is in a script's background.
    async with await sandbox.exec_interactive("trap 'exit 7' TERM; echo up; while :; do sleep 0.01; done") as stream:
        async for output in stream:
            # Once: the shell may say that its child was terminated, and be gone before it could be told more.
            if output.data == b"up\n":
                await stream.resize(50, 132)
                await stream.send_signal(signal.SIGTERM)
        assert stream.result.exit_code == 7
    assert daemon.controls == [{"type": "resize", "rows": 50, "cols": 132}, {"type": "signal", "signal": 15}]


async def test_closing_a_stream_kills_its_command(api: Api, daemon: Fake) -> None:
    sandbox = await api.Sandbox.create("tools")
    async with await sandbox.exec_interactive("sleep 60") as stream:
        assert stream.result is None
    await settled(daemon, 1)
    with pytest.raises(spore.ConnectionLostError):
        await stream.send_stdin("x")


async def test_a_task_that_is_cancelled_kills_its_command(daemon: Fake) -> None:
    sandbox = await spore.AsyncSandbox.create("tools")
    heard = asyncio.Event()
    task = asyncio.ensure_future(sandbox.exec_stream("echo x; sleep 60", on_stdout=lambda text: heard.set()))
    await heard.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await settled(daemon, 1)


async def test_a_stream_that_breaks_off_is_not_a_result(api: Api, daemon: Fake) -> None:
    sandbox = await api.Sandbox.create("tools")
    with pytest.raises(spore.ConnectionLostError):
        await sandbox.exec_stream(["break off"])
    with pytest.raises(spore.BadAnswerError, match="neither"):
        await sandbox.exec_stream(["speak in tongues"])
    assert [request.path.rpartition("/")[2] for request in daemon.requests].count("exec") == 2


async def test_a_refusal_is_the_daemons_own_error(api: Api, daemon: Fake) -> None:
    sandbox = await api.Sandbox.create("tools")
    await sandbox.kill()
    with pytest.raises(spore.NotFoundError, match="no sandbox"):
        await sandbox.exec_stream("true")
    daemon.faults.extend(["garble", "before"])
    with pytest.raises(spore.BadAnswerError, match=r"no HTTP/1\.1"):
        await sandbox.exec_stream("true")
    with pytest.raises(spore.ConnectionLostError):
        await sandbox.exec_stream("true")


async def test_a_daemon_that_is_not_there_is_said_to_be(
    api: Api, daemon: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = await api.Sandbox.create("tools")
    monkeypatch.setattr(sandbox._client._wire, "socket_path", "/nowhere")
    with pytest.raises(spore.DaemonUnreachableError, match="/nowhere"):
        await sandbox.exec_stream("true")


async def test_a_message_that_is_too_long_ends_the_stream(
    api: Api, daemon: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = websocket.FrameReader
    monkeypatch.setattr(websocket, "FrameReader", lambda: original(500))
    sandbox = await api.Sandbox.create("tools")
    with pytest.raises(spore.BadAnswerError, match="more than 500"):
        await sandbox.exec_stream("head -c 900 /dev/zero; sleep 60")
    await settled(daemon, 1)


def test_threads_may_send_while_one_reads(daemon: Fake) -> None:
    sandbox = spore.Sandbox.create("tools")
    with sandbox.exec_interactive("cat") as stream:
        feeder = spore.exec_stream.Feeder(stream, (b"%06d\n" % number for number in range(2000)))
        heard = b"".join(output.data for output in stream)
        feeder.raise_own()
    assert heard.split() == [b"%06d" % number for number in range(2000)]


def test_a_reader_is_not_held_up_by_a_sender(daemon: Fake) -> None:
    # The command reads nothing before all of its output was taken, and sends more than buffers hold.
    sandbox = spore.Sandbox.create("tools")
    begun = time.monotonic()
    result = sandbox.exec_stream("head -c 3000000 /dev/zero; cat >/dev/null", stdin=b"x" * 3000000)
    assert len(result.stdout_bytes) == 3000000
    assert time.monotonic() - begun < 30
