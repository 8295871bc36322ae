"""The original files of a TFDS set in a directory of the user's: which are missing, cut off, or not the right ones."""

import dataclasses
import gzip
import hashlib
import re
import tarfile
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from jaxclf.errors import UsageError


def file_name(url: str) -> str:
    """Return the name under which a URL's file is looked for."""
    return url.rsplit("/", 1)[1]


def fetched_by_hand(name: str, builder: Any, directory: Path) -> list[Path]:
    """Return the files that have to be fetched by hand; `UsageError` names those that are missing or cut off.

    TFDS has no list of them. Where its instructions say what the directory "should contain", as for everything that
    begins with ImageNet's archives, the archives they name are it; otherwise something has to be there, and the builder
    says what it misses.
    """
    instructions = " ".join((builder.MANUAL_DOWNLOAD_INSTRUCTIONS or "").split())
    if not instructions:
        return []
    names = re.findall(r"[\w.-]+\.(?:tar\.gz|tar|tgz|zip)\b", instructions) if "should contain" in instructions else []
    files = [directory / file for file in dict.fromkeys(names)]
    missing = [file.name for file in files if not file.is_file()]
    if missing or not directory.is_dir() or not any(directory.iterdir()):
        raise UsageError(
            f"{name} needs files fetched by hand that are not in {directory}: {', '.join(missing) or 'it has none'}; "
            f"give the directory they are in as --downloads DIR. TFDS says: {instructions}"
        )
    sizes = {file_name(url): int(info.size) for url, info in (builder.url_infos or {}).items()}
    for file in files:
        size = file.stat().st_size
        if _cut_off(file):
            raise UsageError(f"{file} is cut off or no archive ({size:,} bytes); fetch it again")
        if sizes.get(file.name, size) != size:
            warnings.warn(f"{file} has {size:,} bytes, the original {sizes[file.name]:,}: used as it is", stacklevel=4)
    return files


def _cut_off(file: Path) -> bool:
    """Return whether an archive lacks its end: two empty blocks of a tar, the directory of a zip."""
    if file.suffix == ".zip":
        return not zipfile.is_zipfile(file)
    if file.suffix != ".tar":
        return False
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - 2 * tarfile.BLOCKSIZE))
        return opened.read() != bytes(2 * tarfile.BLOCKSIZE)


def sample_sha256(file: Path) -> str:
    """Return a hash of a file's size and of 64 blocks of 64 KiB spread over it, to tell archives apart."""
    size, block = file.stat().st_size, 64 << 10
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as opened:
        for position in np.linspace(0, max(0, size - block), 64, dtype=np.int64).tolist():
            opened.seek(position)
            digest.update(opened.read(block))
    return digest.hexdigest()


def known_files(name: str, builder: Any, downloads: Path, by_hand: list[Path]) -> dict[str, Any]:
    """Return TFDS's table of URLs with the size and checksum of the files in `downloads`, once their content is known.

    Missing files raise one `UsageError` that lists them all, and so do files with the wrong content. A set that has
    configs, of which each needs its own files, or that also needs files fetched by hand may download what is missing.
    """
    registered = {
        url: info for url, info in (builder.url_infos or {}).items() if downloads / file_name(url) not in by_hand
    }
    paths = {url: downloads / file_name(url) for url in registered}
    missing = [path.name for path in paths.values() if not path.is_file()]
    if missing and not builder.BUILDER_CONFIGS and not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        raise UsageError(
            f"{name} needs files that are not in {downloads}: {', '.join(missing)} (from {', '.join(registered)})"
        )
    found, faults = dict(builder.url_infos or {}), []
    for url, path in paths.items():
        if not path.is_file():
            continue
        with path.open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
        found[url] = dataclasses.replace(registered[url], filename=path.name)  # TFDS looks for it under this name
        if checksum == registered[url].checksum:
            continue
        if _content_sha256(path) != CONTENT_SHA256.get(name, {}).get(path.name, "unknown"):
            faults.append(f"{path.name} has SHA-256 {checksum} instead of {registered[url].checksum}")
            continue
        warnings.warn(f"{path} has another checksum than TFDS knows, but the right content: used", stacklevel=4)
        size = type(registered[url].size)(path.stat().st_size)
        found[url] = dataclasses.replace(registered[url], checksum=checksum, size=size, filename=path.name)
    if faults:
        raise UsageError(f"not the files of {name}, in {downloads}: {'; '.join(faults)}")
    return found


def _content_sha256(path: Path) -> str | None:
    """Return the SHA-256 of a gzip file's decompressed bytes, or None if it is no whole gzip file."""
    try:
        with gzip.open(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]
    except (gzip.BadGzipFile, EOFError, zlib.error):
        return None


CONTENT_SHA256: dict[str, dict[str, str]] = {
    # Published for the uncompressed files in many repositories beside the checksums TFDS registers; not measured here.
    "mnist": {
        "train-images-idx3-ubyte.gz": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte.gz": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte.gz": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte.gz": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    # Debian's dataset-fashion-mnist. With the file name and the time (1504176606 for train, 1504176627 for t10k) put
    # back into the gzip headers, those files have exactly the checksums that TFDS registers.
    "fashion_mnist": {
        "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
}
"""SHA-256 of the decompressed original files, for files that were recompressed. CIFAR's archives must match exactly."""
