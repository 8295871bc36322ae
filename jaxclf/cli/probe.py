"""jaxclf probe: what the features of weights are worth on a data set, their own or another."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import tyro

from jaxclf.cli.weights import OWN, OfWeights
from jaxclf.config import DataConfig, Probing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe(OfWeights):
    """Probe frozen features: a linear classifier, nearest neighbours and few images a class, with 95 % intervals."""

    weights: Path
    """A weight file or directory, or a run directory; images are prepared as is kept with it."""
    data: DataConfig = dataclasses.field(default_factory=lambda: DataConfig(OWN))
    """The data set whose training and test images are told apart; own is that of the run."""
    probing: Annotated[Probing, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Probing)
    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> None:
        """Print the table."""
        from jaxclf.tools.transfer import transfer
        from jaxclf.training import weights
        from jaxclf.training.progress import Lines

        data = self.data_of(self.weights, self.data)
        found = transfer(weights.read(self.weights, **self.given(self.weights)), data, self.probing, report=Lines())
        if self.json:
            print(json.dumps(dataclasses.asdict(found), allow_nan=False))
            return
        print(f"{'':24}  top-1 %  95 % interval")
        for score in found.scores:
            print(f"{score.classifier:24}  {score.top1:7.2f}  {score.low:.2f} to {score.high:.2f}")
        print(f"linear probe: penalty {found.penalty:g}; few images: mean of {found.draws} draws, seed {found.seed}")
        images = f"{found.train_images:,} training and {found.test_images:,} test images of {found.dataset}"
        print(f"{images}, {found.features:,} features, {found.preprocessing}")
