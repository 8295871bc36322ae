"""jaxclf activations: what the layers of a network answer for image files."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from jaxclf.cli.weights import OfWeights
from jaxclf.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Activations(OfWeights):
    """Show images as the layers of a network see them: maps of their strongest channels, and the first filters."""

    images: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Image files."""
    weights: Path
    """A weight file or directory, or a run directory."""
    out: Path
    """Directory for index.html, and for its pictures as PNG files."""
    layers: tuple[str, ...] = ()
    """Paths of layers; none: the last of the outermost ones at each size of map, and each with a single position."""
    channels: int = 16
    """Channels to show of a layer: those of the largest mean; of a layer with a single position, all are shown."""

    def run(self) -> None:
        """Write the page; if a file could not be read, raise `UsageError` after that."""
        from jaxclf.report.channel_page import render_activations, write_page
        from jaxclf.tools.activations import activations, filters

        loaded, preprocessing = self.prepared(self.weights)
        model, variables = loaded.model, loaded.variables
        given = {"layers": self.layers, "channels": self.channels}
        found = activations(model, variables, preprocessing, self.images, **given)
        title = f"What {loaded.record.model} answers, layer by layer"
        kernels = filters(model, variables)
        write_page(self.out, *render_activations(title, found, kernels, preprocessing, stem=model.backbone.stem))
        print(self.out / "index.html")
        if broken := [one.file for one in found if one.error is not None]:
            raise UsageError(f"{len(broken)} of {len(found)} files are not shown: {', '.join(broken)}")
