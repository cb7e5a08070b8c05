"""The life line of a host: the stream of lines from the launcher. When it ends, or no beat comes for long,
the launcher is lost."""

import os
import selectors
import time

from launch.cluster.work import SILENCE

BEGINS_WITHIN = 60.0
"""Seconds for the first line, which is sent with the command that starts who reads it."""


class LifeLine:
    """Reads lines of a descriptor without waiting for them."""

    def __init__(self, descriptor: int):
        self._descriptor = descriptor
        self._selector = selectors.DefaultSelector()
        self._selector.register(descriptor, selectors.EVENT_READ)
        self._rest = b""
        self._heard = time.monotonic()
        self.ended = False

    def first(self) -> bytes:
        """The first line; empty where the launcher is lost before, or says none."""
        lines: list[bytes] = []
        until = time.monotonic() + BEGINS_WITHIN
        while not lines and not self.ended and time.monotonic() < until:
            lines = self.lines(wait=1.0, most=1)
        return lines[0] if lines else b""

    def lines(self, wait: float, most: int | None = None) -> list[bytes]:
        """The lines that have come, without their ends; waits up to `wait` seconds for the first bytes."""
        if not (self._rest.count(b"\n") or self.ended) and self._selector.select(wait):
            content = os.read(self._descriptor, 1 << 16)
            self.ended = not content
            self._rest += content
            self._heard = time.monotonic()
        *lines, rest = self._rest.split(b"\n")
        taken = lines[:most]
        self._rest = b"\n".join([*lines[len(taken) :], rest])
        return taken

    def lost(self, beats: bool) -> str:
        """Why the launcher counts as lost; empty while it does not."""
        if self.ended:
            return "the launcher has ended"
        if beats and time.monotonic() - self._heard > SILENCE:
            return f"no word from the launcher for {SILENCE:.0f} s"
        return ""
