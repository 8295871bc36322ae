"""Claims: a directory belongs to one process at a time."""

import contextlib
import fcntl
import json
import os
import secrets
import socket
import threading
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxclf.errors import RunError, UsageError
from jaxclf.storage.places import Location, address, as_os_errors, filesystem_of, is_local

BEAT = 10.0
"""Seconds between two signs of life of whoever holds a bucket's lock."""
STALE = 60.0
"""Seconds without one after which the lock is taken over."""


@runtime_checkable
class Claim(Protocol):
    """A directory that no other process writes to."""

    def require(self) -> None:
        """Raise `RunError` if another process has taken it over."""
        ...

    def close(self) -> None:
        """Give it back."""
        ...


def claim(directory: Location) -> Claim:
    """Make a directory this process's own until it ends or closes the claim.

    A bucket's is held by an object with a sign of life every `BEAT` seconds. Whoever finds one waits for the next sign,
    until there was none for `STALE` seconds, and then takes over what a killed process has left.

    Raises `UsageError` for a directory that cannot be written to and `RunError` for one that another process has.
    """
    return _FileLock(directory) if is_local(directory) else _ObjectLock(directory / "lock")


class _FileLock:
    """A lock that the system gives back when its process ends, however it ends."""

    def __init__(self, directory: Path) -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = (directory / "lock").open("w")
        except OSError as error:
            raise UsageError(f"cannot write to the run directory {directory}: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise RunError(f"another process is running in {directory}") from error
        except OSError as error:  # of file systems without locks, as Lustre may be
            warnings.warn(
                f"{directory}/lock cannot be locked ({error.strerror}): nothing keeps a second run out of this "
                "directory; start only one, or take a --workdir on another file system",
                stacklevel=5,
            )

    def require(self) -> None:
        """Nobody can take it over."""

    def close(self) -> None:
        """Release the lock."""
        self._file.close()


class _ObjectLock:
    """An object that only one process can create, with who it is and its last sign of life in its metadata."""

    def __init__(self, file: Location) -> None:
        self._files, self._file, self._ended, self._lost = filesystem_of(file), file, threading.Event(), False
        self._bucket, _, self._name = address(file).partition("/")
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._own = {"host": socket.gethostname(), "process": str(os.getpid()), "since": since}
        self._own["token"] = secrets.token_hex(8)  # tells a request of ours that was sent twice from another's
        try:
            with as_os_errors():
                self._generation = self._acquire()
        except OSError as error:
            raise UsageError(f"cannot write to the run directory {file.parent}: {error.strerror}") from error
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def require(self) -> None:
        """Raise `RunError` if another process has taken it over."""
        if self._lost:
            raise RunError(f"another process has taken over {self._file.parent}: this one gave no sign for {STALE:g} s")

    def close(self) -> None:
        """Delete the object, unless it is another's by now."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(Exception):  # without a network, the next run takes it over
            if (held := self._read()) and held["token"] == self._own["token"]:
                self._delete(self._generation)

    def _acquire(self) -> str:
        """Create the object, and return its generation."""
        while True:
            with contextlib.suppress(FileExistsError):
                text = json.dumps(self._own) + "\n"
                self._files.pipe_file(address(self._file), text.encode(), metadata=self._signed(), mode="create")
            if (held := self._read()) is None:
                continue  # given back in between
            if held["token"] == self._own["token"]:
                return held["generation"]
            self._await_silence(held)
            text = f"{self._holder(held)}, gives no sign of life any more: its lock is taken over"
            warnings.warn(f"{self._file.parent}: {text}", stacklevel=6)
            self._delete(held["generation"])

    def _await_silence(self, held: Mapping[str, str]) -> None:
        """Return when a lock is stale; `RunError` as soon as its holder gives a sign of life, or another has it.

        Machines' clocks may differ: whatever they say, two signs are waited for, and no longer than `STALE` seconds.
        """
        age = time.time() - float(held["beat"])
        end = time.monotonic() + min(max(STALE - age, 2 * BEAT), STALE)
        while time.monotonic() < end:
            time.sleep(BEAT / 4)
            now = self._read()
            if now is None:
                return
            if now["beat"] != held["beat"]:
                raise RunError(f"another process is running in {self._file.parent}: {self._holder(now)}")

    def _holder(self, held: Mapping[str, str]) -> str:
        return f"process {held['process']} of {held['host']}, since {held['since']}"

    def _signed(self) -> dict[str, str]:
        return self._own | {"beat": str(time.time())}

    def _beat(self) -> None:
        """Give a sign of life every `BEAT` seconds, until the lock is another's."""
        while not self._ended.wait(BEAT):
            with contextlib.suppress(Exception):  # a network that fails for less than STALE does no harm
                if (held := self._read()) is None or held["token"] != self._own["token"]:
                    self._lost = True
                    return
                self._call("PATCH", ifGenerationMatch=self._generation, json={"metadata": self._signed()})

    def _read(self) -> dict[str, str] | None:
        try:
            found = self._call("GET")
        except FileNotFoundError:
            return None
        # A file named so may have been copied here with a run directory from a disk.
        unknown = dict.fromkeys(("host", "process", "since", "token"), "unknown") | {"beat": "0"}
        return {**unknown, **found.get("metadata", {}), "generation": found["generation"]}

    def _delete(self, generation: str) -> None:
        """Delete the object unless it is a newer one, or gone."""
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            self._files.call("DELETE", "b/{}/o/{}", self._bucket, self._name, ifGenerationMatch=generation)

    def _call(self, method: str, **given: Any) -> dict[str, Any]:
        return self._files.call(method, "b/{}/o/{}", self._bucket, self._name, json_out=True, **given)
