"""Turning Slicer's event loop, and measuring how long the panel holds it."""

import time
from pathlib import Path

import slicer

_WAITED = Path("/proc/thread-self/schedstat")

LIMIT = 0.1
"""Seconds that one turn of the event loop may take."""

said: list[str] = []
"""What was measured, for the end of the tests' output."""


def measured(text):
    """Have ``text`` printed when all tests are done."""
    said.append(text)


class Stopwatch:
    """``seconds()`` since it was made, less what the thread waited for a processor that others had (Linux):
    a busy machine holds the event loop too, but that is not the panel's doing.
    """

    def __init__(self):
        self._begin, self._waited = time.perf_counter(), _waited()

    def seconds(self):
        return time.perf_counter() - self._begin - (_waited() - self._waited)


class EventLoop:
    """Turns the event loop as Slicer does; ``longest`` is how long one turn took, in seconds, and
    ``computing`` how much of that the thread had a processor.
    """

    def __init__(self):
        self.longest = self.computing = 0.0

    def __str__(self):
        return f"{1e3 * self.longest:.0f} ms ({1e3 * self.computing:.0f} ms of computing)"

    def until(self, condition, seconds=30.0, say=lambda: ""):
        """Turn until the condition holds; fails after ``seconds``, with what ``say()`` tells then."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"timed out {say()}"
            watch, computed = Stopwatch(), time.thread_time()
            slicer.app.processEvents()
            took = watch.seconds()
            if took > self.longest:
                self.longest, self.computing = took, time.thread_time() - computed
            time.sleep(0.002)


def _waited():
    """Seconds that this thread was ready and had no processor."""
    return int(_WAITED.read_text().split()[1]) / 1e9 if _WAITED.exists() else 0.0
