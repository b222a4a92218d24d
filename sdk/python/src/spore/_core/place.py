"""Where the daemon is."""

from __future__ import annotations

import os
from typing import Union

#: Where a daemon listens that was not told otherwise.
DEFAULT_SOCKET = "/run/spore/spore.sock"
#: Seconds that a client waits for calls which the daemon answers at once.
DEFAULT_TIMEOUT = 60.0


def socket_path(given: Union[str, os.PathLike[str], None]) -> str:
    """Give the path of the daemon's socket: as given, of SPORE_SOCKET, or the usual one."""
    return os.fspath(given) if given is not None else os.environ.get("SPORE_SOCKET") or DEFAULT_SOCKET
