"""Files of either kind: written whole, given other names, summed up, listed."""

import hashlib
import itertools
import os
import posixpath
import shutil
from collections.abc import Sequence
from pathlib import Path

from jaxclf.storage.places import Location, address, as_os_errors, filesystem, filesystem_of, is_local

BETWEEN_WRITES = 10.0
"""Seconds between two writes of an object that changes often: a bucket takes about one a second."""


def write_whole(file: Location, data: bytes, *, writer: str = "") -> None:
    """Write or replace a file so that it is whole or as before after a power cut; raises `OSError` with its reason.

    Where several may write at a time, `writer` tells them apart.
    """
    if not is_local(file):
        with as_os_errors():
            filesystem_of(file).pipe_file(str(file), data)
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
    if not is_local(file):
        write_whole(file, text.encode())
        return
    part = file.with_name(f".{file.name}.part")
    part.write_text(text)
    part.replace(file)


def least_seconds(directory: Location) -> float:
    """Return the least time between two writes of one file in a directory."""
    return 0.0 if is_local(directory) else BETWEEN_WRITES


def retire(source: Location, target: Location) -> None:
    """Give a file or directory another name; a bucket's objects are copied, and deleted when all are."""
    if is_local(source):
        source.rename(target)
        return
    files, start = filesystem_of(source), len(address(source))
    with as_os_errors():
        found = files.find(address(source))
        for name in found:
            files.cp_file(name, address(target) + name[start:])
        files.rm(found)


def remove(directory: Location) -> None:
    """Delete a directory and what is in it; one that is not there is left so."""
    if is_local(directory):
        shutil.rmtree(directory, ignore_errors=True)
    elif directory.exists():
        with as_os_errors():
            filesystem_of(directory).rm(address(directory), recursive=True)


def checksums(directory: Location) -> dict[str, str]:
    """Return the checksum of every file below a directory, by its path there; of objects no byte is read for it.

    OCDBT's files, in which Orbax keeps arrays, end in a CRC-32C of their own, so that the CRC32C of every whole one is
    the same number, 48674bc7: a flipped bit changes it, but one whole file in the place of another does not.
    """
    if not is_local(directory):
        start, found = len(address(directory)) + 1, filesystem_of(directory).find(address(directory), detail=True)
        return {name[start:]: one["crc32c"] for name, one in found.items()}
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def checksum_name(directory: Location) -> str:
    """Return the name of a directory's checksums: a bucket keeps CRC32C itself."""
    return "SHA-256" if is_local(directory) else "CRC32C"


def read(name: str) -> bytes:
    """Read a file by the name that `files_below` gives it, at once; raises `OSError`."""
    scheme, separator, key = name.partition("://")
    if not separator:
        with Path(name).open("rb", buffering=0) as file:
            return file.readall()
    with as_os_errors():
        return filesystem(scheme).cat_file(key)


def names(directory: Location) -> list[str]:
    """Return the sorted names of what is in a directory; raises `OSError`."""
    if is_local(directory):
        return sorted(entry.name for entry in directory.iterdir() if entry.exists())
    return sorted(_listed(directory))


def directories(directory: Location) -> list[str]:
    """Return the names of the directories in a directory; raises `OSError`."""
    if is_local(directory):
        return [entry.name for entry in os.scandir(directory) if entry.is_dir()]
    return [name for name, kind in _listed(directory).items() if kind == "directory"]


def _listed(directory: Location) -> dict[str, str]:
    own = address(directory)
    with as_os_errors():
        found = filesystem_of(directory).ls(own, detail=True)
    return {posixpath.basename(one["name"].rstrip("/")): one["type"] for one in found if one["name"] != own}


def files_below(directory: Location, names: Sequence[str], *, deep: bool) -> dict[str, list[str]]:
    """Return the files in each directory of these names, in the order of their directories, then of their own names.

    With `deep` they are those in directories further below, too. A bucket is asked once for all. Raises `OSError`.
    """
    if is_local(directory):
        return {name: _walked(directory / name, deep=deep) for name in names}
    with as_os_errors():
        found = filesystem_of(directory).find(address(directory))
    scheme, start = str(directory).partition("://")[0], len(address(directory)) + 1
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
