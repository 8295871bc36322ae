"""Requests to stop: SIGTERM and SIGINT, and the maintenance notices of Google's virtual machines."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from types import FrameType, TracebackType

SIGNALS = (signal.SIGTERM, signal.SIGINT)
METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/"
NOTICES = {"preempted": "FALSE", "maintenance-event": "NONE"}
"""Questions to Google's metadata server, and its answer while nothing is to come: TRUE at the end of a spot machine,
TERMINATE_ON_HOST_MAINTENANCE or MIGRATE_ON_HOST_MAINTENANCE a minute or more before a maintenance."""
PARENT = "JAXCLF_PARENT"
"""Environment variable with the number of the process that this one is to end with."""
PR_SET_PDEATHSIG = 1
"""Linux's prctl: signal that a process gets when the thread that started it ends."""
POLL = 5.0
"""Seconds between two questions."""


class Requests:
    """Listens while it is entered; `reason` says who asked, once somebody has.

    The first signal only asks. The second one finds the system's own handler and ends the process at once, at whatever
    it is: what is on the disk is whole at any moment. Outside the main thread, where Python allows no handlers, only
    notices are heard, and signals do what they did before.
    """

    def __init__(self, metadata: str | None = None) -> None:
        """Ask the metadata server under this URL; None: Google's, on Google's machines."""
        self.reason: str | None = None
        self._metadata = METADATA if metadata is None and _on_google() else metadata
        self._before: dict[signal.Signals, object] = {}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True, name="maintenance notices")

    def __enter__(self) -> "Requests":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        if self._metadata is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]  # what signal() returned

    def _hear(self, number: int, _: FrameType | None) -> None:
        self.reason = self.reason or signal.Signals(number).name
        for one in SIGNALS:
            signal.signal(one, signal.SIG_DFL)

    def _ask(self) -> None:
        while not self._closed.wait(POLL):
            for name, nothing in NOTICES.items():
                answer = self._answer(name)
                if answer not in (None, nothing):
                    self.reason = self.reason or f"the notice {name}: {answer}"
                    return

    def _answer(self, name: str) -> str | None:
        """Return what the server says; None where it says nothing, which is no reason to stop."""
        question = urllib.request.Request(f"{self._metadata}{name}", headers={"Metadata-Flavor": "Google"})
        with (
            contextlib.suppress(urllib.error.URLError, OSError),
            urllib.request.urlopen(question, timeout=POLL) as said,
        ):
            return said.read().decode().strip()
        return None


def ending_with_this_process() -> dict[str, str]:
    """Return the environment of a process of ours that is to stop when this one ends."""
    return {PARENT: str(os.getpid())}


def end_with_parent() -> None:
    """Ask this process to stop, by SIGTERM, when the process that said so in the environment ends, by SIGKILL too.

    Only Linux can. What this process starts does not inherit it.
    """
    parent = os.environ.pop(PARENT, None)
    if parent is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # it ended before
        os.kill(os.getpid(), signal.SIGTERM)


def _on_google() -> bool:
    name = Path("/sys/class/dmi/id/product_name")
    return name.is_file() and "Google" in name.read_text()
