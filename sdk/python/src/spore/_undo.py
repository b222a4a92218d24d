"""Taking back sandboxes and checkpoints that somebody began to make and then did not wait for.

The daemon carries out a call with an idempotency key also when its client hangs up, or the call could not be made again
when a connection is lost. So what a call that was interrupted comes to is asked for by the same key, and ended.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from typing import Callable, TypeVar

from ._core.call import Call
from ._sync_wire import Wire
from .errors import SporeError

#: Seconds that the daemon may take to say what it made.
UNDO_SECONDS = 120.0


Made = TypeVar("Made")


@contextmanager
def taken_back(socket_path: str, call: Call[Made], undo: Callable[[Made], Iterable[Call[None]]]) -> Iterator[None]:
    """Take back what a call makes that is interrupted in here: its task is cancelled, or Ctrl-C is pressed.

    In a thread, which the interpreter waits for at its end: an event loop may be about to end.

    Args:
        socket_path: Of the daemon.
        call: What makes it.
        undo: The calls that end what was made.
    """
    try:
        yield
    except Exception:
        raise
    except BaseException:
        threading.Thread(target=_take_back, args=(socket_path, call, undo), name="spore-undo").start()
        raise


def _take_back(socket_path: str, call: Call[Made], undo: Callable[[Made], Iterable[Call[None]]]) -> None:
    # An error means that nothing was made, or that nobody can be asked.
    with closing(Wire(socket_path, UNDO_SECONDS)) as wire, suppress(SporeError):
        for ending in undo(wire.run(replace(call, slow=False))):
            with suppress(SporeError):
                wire.run(ending)
