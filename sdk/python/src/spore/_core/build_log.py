"""What a build tells, read and made into lines for people."""

from __future__ import annotations

import json
from typing import Union

from ..errors import BadAnswerError, SporeError, from_body
from ..models import BuildMessage
from .decode import decode
from .sse import ServerSentEvent


def read_build_message(event: ServerSentEvent) -> Union[BuildMessage, SporeError]:
    """Read a message of a build, or why there is no image.

    Raises:
        BadAnswerError: It is not understood.
    """
    try:
        found = json.loads(event.data)
    except ValueError as error:
        raise BadAnswerError(f"a message of the build is no JSON: {error}") from error
    if isinstance(found, dict) and found.get("type") == "error":
        return from_body(found.get("error"))
    return decode(BuildMessage, found)


class BuildLines:
    """Makes whole lines of a build's messages."""

    def __init__(self) -> None:
        self._begun = ""
        self._of = 0

    def take(self, message: Union[BuildMessage, SporeError]) -> list[str]:
        """Give the lines that are complete with this message."""
        if isinstance(message, BuildMessage) and message.type == "output":
            *lines, self._begun = (self._begun + (message.text or "")).split("\n")
            return [line.rstrip("\r") for line in lines]
        lines = [self._begun.rstrip("\r")] if self._begun else []
        self._begun = ""
        if isinstance(message, BuildMessage):
            lines += self._said(message)
        return lines

    def _said(self, message: BuildMessage) -> list[str]:
        self._of = message.of or self._of
        step = f"[{(message.step or 0) + 1}/{self._of}]"
        if message.type in ("stepStarted", "stepCached"):
            return [f"{step} {message.label}" + (" (cached)" if message.type == "stepCached" else "")]
        if message.type == "stepDone":
            return [f"{step} done in {(message.took_ms or 0) / 1000:.1f} s"]
        if message.type == "phase":
            return [": ".join(word for word in (message.phase, message.message) if word)]
        return []
