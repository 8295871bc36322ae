"""jaxclf convert: weights from and to PyTorch's files."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxclf.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Convert:
    """Convert weights between .safetensors, PyTorch's files and a directory of ours, or out of a run directory."""

    source: Annotated[Path, tyro.conf.Positional]
    """The file or directory to read; of a run, its newest checkpoint."""
    target: Annotated[Path, tyro.conf.Positional]
    """The file to write; its suffix says the format, and none is a directory of ours. It must not exist."""
    model: str | None = None
    """Name of the backbone, where the source does not say it."""
    num_classes: int | None = None
    """None is what the source says, or the size of its last layer."""
    head: str | None = None
    """Name of the head, where the source does not say it; learned for .pth."""
    maps: int | None = None
    """The backbone's option maps, likewise."""
    shortcut: str | None = None
    """The backbone's option shortcut, likewise."""
    maps_shortcut: str | None = None
    """The backbone's option maps_shortcut, likewise."""
    bias: bool | None = None
    """The head's option bias, likewise."""
    class_names: Path | None = None
    """A text file with one class name a line, in class order; None is what the source says."""

    weights_key: str | None = None
    """Key of the state dict in a PyTorch file that holds several, as model_ema."""
    checkpoint: Literal["last", "best"] | int = "last"
    """Checkpoint of a run directory: the newest, the best on its test images, or that of a step."""

    def run(self) -> None:
        """Write the target and print what it holds."""
        from jaxclf.training import weights

        given = {name: value for name, value in vars(self).items() if value is not None}
        if weights.is_bare(self.source):
            given.setdefault("head", "learned")
        given["class_names"] = read_names(self.class_names)
        record = weights.convert(given.pop("source"), given.pop("target"), **given)
        print(f"{self.target}: {record.model}, head {record.head}, {record.num_classes} classes")


def read_names(file: Path | None) -> tuple[str, ...] | None:
    """Return the class names in a text file, one a line."""
    try:
        return None if file is None else tuple(file.read_text().splitlines())
    except ValueError as error:
        raise UsageError(f"{file} is no text of class names, one a line: {error}") from error
