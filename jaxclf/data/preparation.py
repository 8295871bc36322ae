"""Preparing data sets: running TFDS's own builder once, so that reading needs no TensorFlow.

The only module that imports TensorFlow, and only inside `prepare`.
"""

import dataclasses
import gzip
import hashlib
import importlib.resources
import importlib.util
import os
import tempfile
import warnings
import zlib
from pathlib import Path
from typing import Any

from jaxclf.config import UsageError
from jaxclf.data import datasets


def prepare(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    downloads: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Path:
    """Run TFDS's builder once, so that `load` can read the set, and return the directory it lies in.

    A set that is already prepared returns at once, and needs neither TensorFlow nor a network. TFDS writes into a
    directory of another name and renames it at the end, so an interrupted preparation is never taken for a whole one.
    `downloads` is a directory that holds the original files under the last part of their URLs; None downloads them. A
    recompressed file is accepted, with a warning, if its decompressed bytes are the known ones. `progress` is TFDS's
    own switch, which holds for the whole process.

    Raises `UsageError` for an unknown name, without TensorFlow, for files that are missing or not the right ones,
    without a network, and for a directory that is in the way.
    """
    facts = datasets.info(name)
    if facts.tfds is None:
        return Path(str(importlib.resources.files("jaxclf.data") / "digits.npz"))
    builder = datasets.open_builder(facts, data_dir)
    directory = Path(builder.data_dir)
    if directory.exists():
        datasets.check(facts, builder)
        return directory
    _require("tensorflow", "importlib_resources")

    import tensorflow_datasets as tfds

    tfds.display_progress_bar(progress)
    if downloads is None:
        _download_and_prepare(facts, builder)
    else:
        _prepare_from_files(facts, Path(downloads).expanduser(), data_dir)
    datasets.check(facts, datasets.open_builder(facts, data_dir))
    return directory


def _require(*modules: str) -> None:
    """Raise `UsageError` if a module that only preparation needs is missing."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise UsageError(f"preparing a data set needs {' and '.join(missing)}: pip install 'jaxclf[prepare]'")


def _download_and_prepare(facts: datasets.DatasetInfo, builder: Any) -> None:
    """Let TFDS download and prepare; a download that fails raises `UsageError` with the files to fetch by hand."""
    import requests
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
    from tensorflow_datasets.core.download.util import DownloadError

    # The hosted copies on GCS are tfrecord; trying them would only add a way to fail.
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        # TFDS retries an unreachable host for minutes. Ask once first, unless an earlier run has left finished files.
        if not any((Path(builder.data_dir_root) / "downloads").glob("**/*.INFO*")):
            requests.head(next(iter(builder.url_infos)), timeout=30, allow_redirects=True)
        builder.download_and_prepare(file_format="array_record", download_config=config)
    except (requests.RequestException, DownloadError, NonMatchingChecksumError) as error:
        raise UsageError(
            f"{facts.name} could not be downloaded ({type(error).__name__}); fetch {', '.join(builder.url_infos)} "
            f"elsewhere and run `jaxclf data prepare {facts.name} --downloads DIR` with the directory they are in"
        ) from error


def _prepare_from_files(facts: datasets.DatasetInfo, downloads: Path, data_dir: str | os.PathLike[str] | None) -> None:
    """Let TFDS prepare from files that are already here.

    TFDS names what it extracts after the file alone, and reuses what it finds under that name. mnist's and
    fashion_mnist's files have the same names, so in a shared directory the second set would silently get the first
    one's pixels: hence a directory of its own for every preparation.
    """
    import tensorflow_datasets as tfds

    base: Any = tfds.builder_cls(str(facts.tfds))
    found = _verify_files(facts, base.url_infos, downloads)

    # The real builder, with the checksums of the files that are here. TFDS would refuse a second class of this name.
    class Local(base, skip_registration=True):  # pyright: ignore[reportGeneralTypeIssues, reportCallIssue]
        __module__ = base.__module__
        name = base.name
        url_infos = found

    root = None if data_dir is None else Path(data_dir).expanduser()
    with tempfile.TemporaryDirectory(prefix="jaxclf-extract-") as extracted:
        config = tfds.download.DownloadConfig(manual_dir=downloads, extract_dir=extracted, try_download_gcs=False)
        Local(data_dir=root).download_and_prepare(file_format="array_record", download_config=config)


def _verify_files(facts: datasets.DatasetInfo, registered: dict[str, Any], downloads: Path) -> dict[str, Any]:
    """Return TFDS's table of URLs with the size and checksum of the files in `downloads`, once their content is known.

    Missing files raise one `UsageError` that lists them all, and so do files with the wrong content.
    """
    paths = {url: downloads / url.rsplit("/", 1)[1] for url in registered}
    missing = [path.name for path in paths.values() if not path.is_file()]
    if missing:
        raise UsageError(
            f"{facts.name} needs files that are not in {downloads}: {', '.join(missing)} (from {', '.join(registered)})"
        )
    found, faults = dict(registered), []
    for url, path in paths.items():
        with path.open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
        if checksum == registered[url].checksum:
            continue
        if _content_sha256(path) != CONTENT_SHA256.get(facts.name, {}).get(path.name, "unknown"):
            faults.append(f"{path.name} has SHA-256 {checksum} instead of {registered[url].checksum}")
            continue
        warnings.warn(f"{path} has another checksum than TFDS knows, but the right content: used", stacklevel=4)
        size = type(registered[url].size)(path.stat().st_size)
        found[url] = dataclasses.replace(registered[url], checksum=checksum, size=size, filename=path.name)
    if faults:
        raise UsageError(f"not the files of {facts.name}, in {downloads}: {'; '.join(faults)}")
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
