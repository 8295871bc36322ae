"""jaxclf convert: weights from and to PyTorch's files."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from jaxclf.cli.weights import OfWeights
from jaxclf.storage import location


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convert(OfWeights):
    """Convert weights between .safetensors, PyTorch's files and a directory of ours, or out of a run directory."""

    source: Annotated[Path, tyro.conf.Positional]
    """The file, directory or run to read."""
    target: Annotated[Path, tyro.conf.Positional]
    """The file to write; its suffix says the format, and none is a directory of ours. It must not exist."""
    num_classes: int | None = None
    """None is what the source says, or the size of its last layer."""
    maps: int | None = None
    """The backbone's option maps, likewise."""
    shortcut: str | None = None
    """The backbone's option shortcut, likewise."""
    maps_shortcut: str | None = None
    """The backbone's option maps_shortcut, likewise."""
    bias: bool | None = None
    """The head's option bias, likewise."""

    def run(self) -> None:
        """Write the target and print what it holds."""
        from jaxclf.training import weights

        own = ("num_classes", "maps", "shortcut", "maps_shortcut", "bias")
        given = self.given(self.source) | {name: value for name in own if (value := getattr(self, name)) is not None}
        record = weights.convert(self.source, self.target, **given)
        print(f"{location(self.target)}: {record.model}, head {record.head}, {record.num_classes} classes")
