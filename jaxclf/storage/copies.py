"""Local copies of what lies in a bucket, for libraries that know only files."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from jaxclf.errors import UsageError
from jaxclf.storage.files import write_whole
from jaxclf.storage.places import Location, address, as_os_errors, filesystem_of, is_local


@contextlib.contextmanager
def fetched(file: Location) -> Iterator[Path]:
    """Give a file a local path in the context: its own, or that of a copy."""
    if is_local(file):
        yield file
        return
    with tempfile.TemporaryDirectory() as own:
        copy = Path(own) / file.name
        with as_os_errors():
            filesystem_of(file).get_file(address(file), str(copy))
        try:
            yield copy
        except UsageError as error:  # names the copy
            raise UsageError(str(error).replace(str(copy), str(file))) from error


@contextlib.contextmanager
def written(file: Location) -> Iterator[Path]:
    """Give a local path to write to in the context; what is there behind it becomes the file, whole."""
    if is_local(file):
        part = file.with_name(f"{file.name}.part")
        yield part
        part.replace(file)
        return
    with tempfile.TemporaryDirectory() as own:
        yield (part := Path(own) / file.name)
        with as_os_errors():
            filesystem_of(file).put_file(str(part), address(file))


class Outbox:
    """A local directory for files that grow, as TensorBoard's: the directory itself, or one sent to a bucket."""

    def __init__(self, directory: Location) -> None:
        """Send to a directory."""
        self._directory, self._sent = directory, dict[Path, int]()
        self.path = directory if is_local(directory) else Path(tempfile.mkdtemp(prefix="jaxclf-"))

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
