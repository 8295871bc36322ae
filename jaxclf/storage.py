"""One interface over a local directory and a bucket: read, write whole, list, claim, retire.

A local path is a `pathlib.Path`, and one of a bucket is etils' `epath.Path`, which has the same methods. What the two
do differently stands here: a bucket has neither directories nor renaming, an object is written whole or not at all and
about once a second at most, and every request costs a journey, so that a tree is listed by one of them.

fsspec and what stands on it are imported where a URL is given and nowhere else.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import importlib.util
import itertools
import json
import os
import posixpath
import re
import secrets
import shutil
import socket
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from jaxclf.errors import RunError, UsageError, one_line

if TYPE_CHECKING:
    Location = Path
else:
    Location = os.PathLike
"""A path of either kind; of epath's methods, only pathlib's are used."""

URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)")
"""A URL, also after pathlib has taken one of its two slashes for superfluous."""
ANYTHING, IMAGES = ("gs",), ("gs", "s3")
"""Schemes of what may lie anywhere, and of folders of images."""
NO_S3 = "Orbax commits a checkpoint by renaming its directory, which S3 cannot do, and array_record does not read there"
PACKAGES = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}
"""By scheme: the package that fsspec needs, and our extra that has it."""
CREDENTIALS = {
    "gs": "`gcloud auth application-default login`, or a key file in GOOGLE_APPLICATION_CREDENTIALS",
    "s3": "`aws configure`, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
}
BEAT = 10.0
"""Seconds between two signs of life of whoever holds a bucket's lock."""
STALE = 60.0
"""Seconds without one after which the lock is taken over."""


# 1. Places


def location(given: str | os.PathLike[str], schemes: Sequence[str] = ANYTHING) -> Location:
    """Return the path of a file or directory.

    Raises `UsageError` for URLs of other schemes, a package that is not installed, and a bucket that is not there or
    does not let this process in.
    """
    if not isinstance(given, str | Path):
        return given  # pyright: ignore[reportReturnType]  # of a bucket already
    if (url := URL.fullmatch(str(given))) is None:
        return Path(given)
    scheme, rest = url.groups()
    whole = f"{scheme}://{rest}"
    if scheme == "s3" and scheme not in schemes:
        raise UsageError(f"{whole} can only be a folder of images: {NO_S3}. Valid here: a local path, gs://BUCKET/PATH")
    if scheme not in schemes:
        allowed = ", ".join(f"{one}://BUCKET/PATH" for one in schemes)
        raise UsageError(f"unknown scheme {scheme}:// in {whole}. Valid: a local path, {allowed}")
    package, extra = PACKAGES[scheme]
    if importlib.util.find_spec(package) is None:
        raise UsageError(f"{whole} needs a package that is not installed: pip install 'jaxclf[{extra}]'")
    _require_bucket(scheme, rest.split("/")[0])
    from etils import epath

    return epath.Path(whole)  # pyright: ignore[reportReturnType]


def absolute(path: Location) -> Location:
    """Return a local path from the root on; one of a bucket is that already, and etils would put ours before it."""
    return path.absolute() if isinstance(path, Path) else path


@functools.cache
def _require_bucket(scheme: str, bucket: str) -> None:
    """Ask for a bucket's first object, which needs no more than the right to list objects."""
    try:
        if scheme == "gs":
            _files(scheme).call("GET", "b/{}/o", bucket, maxResults=1, json_out=True)
        else:
            _files(scheme).call_s3("list_objects_v2", Bucket=bucket, MaxKeys=1)
    except FileNotFoundError as error:
        raise UsageError(f"there is no bucket {scheme}://{bucket}") from error
    except Exception as error:  # of fsspec, google.auth, botocore and aiohttp
        way = f"credentials come from {CREDENTIALS[scheme]}"
        raise UsageError(f"{scheme}://{bucket} cannot be reached ({one_line(error)}); {way}") from error


@functools.cache
def _files(scheme: str) -> Any:
    """Return fsspec's file system of a scheme, which etils and TFDS take, too."""
    import fsspec
    from fsspec.config import conf

    # Another process, and TensorStore in this one, write behind its back: what it remembers of a listing would be old.
    given = conf.setdefault(scheme, {})
    given.setdefault("use_listings_cache", False)
    if scheme == "s3":
        given.setdefault("max_concurrency", 1)  # else it asks for an image's size first, to read it in parts
    # Else etils imports TensorFlow, where it is installed, to read and write.
    os.environ.setdefault("EPATH_USE_TF", "0")
    return fsspec.filesystem(scheme)


def _of(path: Location) -> Any:
    return _files(str(path).partition("://")[0])


def local(path: Location, way: str) -> Path:
    """Return a path that must be local; `UsageError` for others, which says the `way` to do without."""
    if not isinstance(path, Path):
        raise UsageError(f"{path} must be a local path: {way}")
    return path


def _is_local(path: Location) -> bool:
    return isinstance(path, Path)


@contextlib.contextmanager
def _as_os_errors() -> Iterator[None]:
    """Turn what fsspec's file systems raise besides `OSError`s into one that says why, as a disk's do."""
    try:
        yield
    except (UsageError, RunError):
        raise
    except OSError as error:
        if error.strerror is None:
            raise OSError(error.errno or errno.EIO, one_line(error)) from error
        raise
    except Exception as error:  # of gcsfs, google.auth and aiohttp
        raise OSError(errno.EIO, one_line(error)) from error


# 2. Files


def write_whole(file: Location, data: bytes, *, writer: str = "") -> None:
    """Write or replace a file so that it is whole or as before after a power cut; raises `OSError` with its reason.

    Where several may write at a time, `writer` tells them apart.
    """
    if not _is_local(file):
        with _as_os_errors():
            _of(file).pipe_file(str(file), data)
        return
    part = file.with_name(f".{file.name}.part{writer}")
    try:
        with part.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def replace_file(file: Location, text: str) -> None:
    """Replace a file whole; unlike a result it need not survive a power cut, and nothing waits for the disk."""
    if not _is_local(file):
        write_whole(file, text.encode())
        return
    part = file.with_name(f".{file.name}.part")
    part.write_text(text)
    part.replace(file)


def least_seconds(directory: Location) -> float:
    """Return the least time between two writes of one file in a directory: a bucket takes about one a second."""
    return 0.0 if _is_local(directory) else BEAT


def retire(source: Location, target: Location) -> None:
    """Give a file or directory another name; a bucket's objects are copied, and deleted when all are."""
    if _is_local(source):
        source.rename(target)
        return
    files, start = _of(source), len(_key(source))
    with _as_os_errors():
        found = files.find(_key(source))
        for name in found:
            files.cp_file(name, _key(target) + name[start:])
        files.rm(found)


def checksums(directory: Location) -> dict[str, str]:
    """Return the checksum of every file below a directory, by its path there; of objects no byte is read for it.

    OCDBT's files, in which Orbax keeps arrays, end in a CRC-32C of their own, so that the CRC32C of every whole one is
    the same number, 48674bc7: a flipped bit changes it, but one file in the place of another does not.
    """
    if not _is_local(directory):
        start = len(_key(directory)) + 1
        return {name[start:]: one["crc32c"] for name, one in _of(directory).find(_key(directory), detail=True).items()}
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def checksum_name(directory: Location) -> str:
    """Return the name of a directory's checksums: a bucket keeps CRC32C itself."""
    return "SHA-256" if _is_local(directory) else "CRC32C"


def _key(path: Location) -> str:
    """Return bucket/name, as fsspec lists it."""
    return str(path).partition("://")[2].rstrip("/")


# 3. Claims


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
    return _FileLock(directory) if _is_local(directory) else _ObjectLock(directory / "lock")


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
        self._files, self._file, self._ended, self._lost = _of(file), file, threading.Event(), False
        self._bucket, _, self._name = _key(file).partition("/")
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._own = {"host": socket.gethostname(), "process": str(os.getpid()), "since": since}
        self._own["token"] = secrets.token_hex(8)  # tells a request of ours that was sent twice from another's
        try:
            with _as_os_errors():
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
                self._files.pipe_file(_key(self._file), text.encode(), metadata=self._signed(), mode="create")
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
        return {**found["metadata"], "generation": found["generation"]}

    def _delete(self, generation: str) -> None:
        """Delete the object unless it is a newer one, or gone."""
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            self._files.call("DELETE", "b/{}/o/{}", self._bucket, self._name, ifGenerationMatch=generation)

    def _call(self, method: str, **given: Any) -> dict[str, Any]:
        return self._files.call(method, "b/{}/o/{}", self._bucket, self._name, json_out=True, **given)


# 4. Local copies, for libraries that know only files


@contextlib.contextmanager
def fetched(file: Location) -> Iterator[Path]:
    """Give a file a local path in the context: its own, or that of a copy."""
    if _is_local(file):
        yield file
        return
    with tempfile.TemporaryDirectory() as own:
        copy = Path(own) / file.name
        with _as_os_errors():
            _of(file).get_file(_key(file), str(copy))
        try:
            yield copy
        except UsageError as error:  # names the copy
            raise UsageError(str(error).replace(str(copy), str(file))) from error


@contextlib.contextmanager
def written(file: Location) -> Iterator[Path]:
    """Give a local path to write to in the context; what is there behind it becomes the file, whole."""
    if _is_local(file):
        part = file.with_name(f"{file.name}.part")
        yield part
        part.replace(file)
        return
    with tempfile.TemporaryDirectory() as own:
        yield (part := Path(own) / file.name)
        with _as_os_errors():
            _of(file).put_file(str(part), _key(file))


class Outbox:
    """A local directory for files that grow, as TensorBoard's: the directory itself, or one sent to a bucket."""

    def __init__(self, directory: Location) -> None:
        """Send to a directory."""
        self._directory, self._sent = directory, dict[Path, int]()
        self.path = directory if _is_local(directory) else Path(tempfile.mkdtemp(prefix="jaxclf-"))

    def send(self) -> None:
        """Send what has grown since the last time; raises `OSError`."""
        if self.path == self._directory:
            return
        for file in sorted(path for path in self.path.rglob("*") if path.is_file()):
            if self._sent.get(file) != (size := file.stat().st_size):
                write_whole(self._directory / str(file.relative_to(self.path)), file.read_bytes())
                self._sent[file] = size

    def close(self) -> None:
        """Remove the copy of what was sent."""
        if self.path != self._directory:
            shutil.rmtree(self.path, ignore_errors=True)


# 5. Listings


def read(name: str) -> bytes:
    """Read a file by the name that `files_below` gives it, at once; raises `OSError`."""
    scheme, separator, key = name.partition("://")
    if not separator:
        with Path(name).open("rb", buffering=0) as file:
            return file.readall()
    with _as_os_errors():
        return _files(scheme).cat_file(key)


def names(directory: Location) -> list[str]:
    """Return the sorted names of what is in a directory; raises `OSError`."""
    if _is_local(directory):
        return sorted(entry.name for entry in directory.iterdir() if entry.exists())
    return sorted(_listed(directory))


def directories(directory: Location) -> list[str]:
    """Return the names of the directories in a directory; raises `OSError`."""
    if _is_local(directory):
        return [entry.name for entry in os.scandir(directory) if entry.is_dir()]
    return [name for name, kind in _listed(directory).items() if kind == "directory"]


def _listed(directory: Location) -> dict[str, str]:
    with _as_os_errors():
        found = _of(directory).ls(_key(directory), detail=True)
    return {posixpath.basename(one["name"].rstrip("/")): one["type"] for one in found if one["name"] != _key(directory)}


def files_below(directory: Location, names: Sequence[str], *, deep: bool) -> dict[str, list[str]]:
    """Return the files in each directory of these names, in the order of their directories, then of their own names.

    With `deep` they are those in directories further below, too. A bucket is asked once for all. Raises `OSError`.
    """
    if _is_local(directory):
        return {name: _walked(directory / name, deep=deep) for name in names}
    with _as_os_errors():
        found = _of(directory).find(_key(directory))
    scheme, start = str(directory).partition("://")[0], len(_key(directory)) + 1
    files: dict[str, list[tuple[str, str]]] = {name: [] for name in names}
    for key in found:
        inside, name = posixpath.split(key)
        first = inside[start:].partition("/")
        if first[0] in files and (deep or not first[2]):
            files[first[0]].append((inside, name))
    return {name: [f"{scheme}://{inside}/{file}" for inside, file in sorted(own)] for name, own in files.items()}


def _walked(directory: Path, *, deep: bool) -> list[str]:
    def stop(error: OSError) -> None:
        raise error

    walk = os.walk(directory, onerror=stop, followlinks=True)
    levels = sorted(walk) if deep else itertools.islice(walk, 1)
    return [str(Path(root) / file) for root, _, files in levels for file in sorted(files)]
