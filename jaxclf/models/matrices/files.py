"""Matrices that a user brings in a file."""

import zipfile
from pathlib import Path

import numpy as np

from jaxclf.errors import UsageError, one_line

SUFFIXES = (".npy", ".npz", ".csv")


def read(path: str) -> np.ndarray:
    """Return the matrix [k d] in a file, float64.

    Raises `UsageError` for a file that is not there, that has none of `SUFFIXES` or does not hold what its suffix says,
    for an archive of several arrays, and for anything but two axes of finite real numbers.
    """
    file = Path(path).expanduser()
    if file.suffix not in SUFFIXES:
        raise UsageError(f"{path} must end in {', '.join(SUFFIXES)} to be a head's matrix")
    try:
        found = _loaded(file)
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise UsageError(f"no matrix can be read from {path} ({one_line(error)})") from error
    if found.ndim != 2 or found.dtype.kind not in "biuf":
        raise UsageError(f"{path} holds {found.dtype} of shape {found.shape} but must hold numbers, classes x features")
    found = found.astype(np.float64)
    if not np.isfinite(found).all():
        raise UsageError(f"{path} holds numbers that are not finite")
    return found


def _loaded(file: Path) -> np.ndarray:
    if file.suffix == ".csv":
        return np.loadtxt(file, delimiter=",", ndmin=2)
    found = np.load(file, allow_pickle=False)
    if isinstance(found, np.ndarray):
        return found
    with found:
        if len(found.files) != 1:
            raise ValueError(f"it holds {len(found.files)} arrays, {', '.join(found.files)}, but must hold one")
        return found[found.files[0]]
