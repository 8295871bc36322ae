"""jaxclf strongest: the images of a data set that channels of a layer answer most to."""

import dataclasses
from pathlib import Path
from typing import Literal

from jaxclf.cli.weights import OWN, OfWeights
from jaxclf.config import DataConfig
from jaxclf.storage import require_local


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strongest(OfWeights):
    """Show the images that channels of a layer answer most to: the part of each that the strongest position sees."""

    weights: Path
    """A weight file or directory, or a run directory; images are prepared as is kept with it."""
    out: Path
    """Directory for index.html, and for its picture as a PNG file."""
    data: DataConfig = dataclasses.field(default_factory=lambda: DataConfig(OWN))
    """The data set that is searched; own is that of the run."""
    split: Literal["train", "test"] = "test"
    """Images of the data set that are searched."""
    layer: str | None = None
    """Path of the layer; None is the last feature map."""
    channels: tuple[int, ...] = ()
    """Channels of the layer; none: the first eight."""
    top: int = 9
    """Images to show of a channel."""
    deconvolve: bool = False
    """Show what each activation projects to, back through the layers; without max pools it is the filters alone."""

    def run(self) -> None:
        """Write the page."""
        from jaxclf.models import taps
        from jaxclf.report.channel_page import render_strongest, write_page
        from jaxclf.tools.strongest import look_up
        from jaxclf.training import weights
        from jaxclf.training.progress import Lines

        require_local(self.out)
        data = self.data_of(self.weights, self.data)
        loaded = weights.read(self.weights, **self.given(self.weights))
        given = {"split": self.split, "top": self.top, "deconvolved": self.deconvolve, "report": Lines()}
        looked = look_up(loaded, data, self.layer or taps.LAST, self.channels, **given)
        layer = self.layer or "the last feature map"
        lead = f"Channels of {layer}: the strongest of the {self.split} images of {data.dataset}."
        write_page(self.out, *render_strongest(f"What channels of {loaded.record.model} answer to", lead, looked))
        print(self.out / "index.html")
