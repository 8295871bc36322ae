"""jaxclf activations: what the layers of a network answer for image files."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from jaxclf.cli.weights import OfWeights
from jaxclf.errors import UsageError
from jaxclf.storage import require_local


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
    invert: int | None = None
    """Steps of gradient descent, a few hundred, towards an image for which a layer answers the same; None: no such."""

    def run(self) -> None:
        """Write the page; if a file could not be read, raise `UsageError` after that."""
        import numpy as np

        from jaxclf.report.channel_page import render_activations, write_page
        from jaxclf.tools.activations import activations, filters
        from jaxclf.tools.inversion import invert_images

        require_local(self.out)
        if self.invert is not None and self.invert < 1:
            raise UsageError(f"--invert is {self.invert} but must be at least 1")
        loaded, preprocessing = self.prepared(self.weights)
        model, variables = loaded.model, loaded.variables
        given = {"layers": self.layers, "channels": self.channels}
        found = activations(model, variables, preprocessing, self.images, **given)
        images = [one.image for one in found if one.image is not None]
        layers = {maps.path: None for one in found for maps in one.layers}
        kept = {}
        if self.invert is not None and images:
            kept = invert_images(model, variables, np.stack(images), tuple(layers), steps=self.invert)
        title = f"What {loaded.record.model} answers, layer by layer"
        kernels = filters(model, variables)
        write_page(self.out, *render_activations(title, found, kernels, preprocessing, kept, stem=model.backbone.stem))
        print(self.out / "index.html")
        if broken := [one.file for one in found if one.error is not None]:
            raise UsageError(f"{len(broken)} of {len(found)} files are not shown: {', '.join(broken)}")
