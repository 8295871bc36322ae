"""Paths of files and directories, local ones and URLs, and the file systems behind them."""

import contextlib
import errno
import functools
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
            filesystem(scheme).call("GET", "b/{}/o", bucket, maxResults=1, json_out=True)
        else:
            filesystem(scheme).call_s3("list_objects_v2", Bucket=bucket, MaxKeys=1)
    except FileNotFoundError as error:
        raise UsageError(f"there is no bucket {scheme}://{bucket}") from error
    except Exception as error:  # of fsspec, google.auth, botocore and aiohttp
        way = f"credentials come from {CREDENTIALS[scheme]}"
        raise UsageError(f"{scheme}://{bucket} cannot be reached ({one_line(error)}); {way}") from error


@functools.cache
def filesystem(scheme: str) -> Any:
    """Return fsspec's file system of a scheme, which etils and TFDS take, too."""
    import fsspec
    from etils.epath import gpath
    from fsspec.config import conf

    # Another process, and TensorStore in this one, write behind its back: what it remembers of a listing would be old.
    given = conf.setdefault(scheme, {})
    given.setdefault("use_listings_cache", False)
    if scheme == "s3":
        given.setdefault("max_concurrency", 1)  # else it asks for an image's size first, to read it in parts
    # Else etils imports TensorFlow, where it is installed, to read and write. It looks once: Orbax may have used it.
    os.environ.setdefault("EPATH_USE_TF", "0")
    gpath._is_tf_installed.cache_clear()
    return fsspec.filesystem(scheme)


def filesystem_of(path: Location) -> Any:
    """Return fsspec's file system of a path in a bucket."""
    return filesystem(str(path).partition("://")[0])


def require_local(given: str | os.PathLike[str]) -> None:
    """Raise `UsageError` for a URL where files can only be written to this machine's disks."""
    if url := URL.fullmatch(os.fspath(given)):
        raise UsageError(f"{'://'.join(url.groups())} must be a local path; what is written there can be copied")


def is_local(path: Location) -> bool:
    """Tell whether a path is one of this machine's file systems."""
    return isinstance(path, Path)


@contextlib.contextmanager
def as_os_errors() -> Iterator[None]:
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


def address(path: Location) -> str:
    """Return bucket/name, as fsspec lists it."""
    return str(path).partition("://")[2].rstrip("/")
