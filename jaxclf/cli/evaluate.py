"""jaxclf eval: a run on its test images, or weights on any data set."""

import dataclasses
from pathlib import Path
from typing import Literal

from jaxclf.cli.convert import read_names
from jaxclf.cli.train import Machines
from jaxclf.config import Cluster, DataConfig, Loader
from jaxclf.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Evaluate a run on its test images (--workdir), or weights on a data set (--weights, --data.dataset)."""

    workdir: Path | None = None
    """The run directory."""
    weights: Path | None = None
    """A weight file or directory, or a run directory; images are prepared as is kept with it."""
    split: Literal["train", "test", "validation"] = "test"
    """Images of the data set that weights are evaluated on; a directory val is test, too."""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    """The data set that weights are evaluated on."""
    model: str | None = None
    """Name of the backbone, where the weights do not say it."""
    head: str | None = None
    """Name of the head; None is what the weights say, or learned where they say nothing."""
    class_names: Path | None = None
    """A text file with one class name a line, in class order; None is what the weights say."""
    weights_key: str | None = None
    """Key of the state dict in a PyTorch file that holds several, as model_ema."""
    checkpoint: Literal["last", "best"] | int = "last"
    """The newest one, or that of a step. best is that with the highest test accuracy: a diagnosis, not a result."""
    loader: Loader = dataclasses.field(default_factory=Loader)
    cluster: Machines = dataclasses.field(default_factory=Cluster)

    def run(self) -> None:
        """Evaluate the run or the weights, and print the result."""
        if (self.workdir is None) == (self.weights is None):
            raise UsageError("eval needs --workdir DIR, a run, or --weights FILE, and not both")
        if self.workdir is not None:
            self._evaluate_run(self.workdir)
        elif self.weights is not None:
            self._evaluate_weights(self.weights)

    def _evaluate_run(self, workdir: Path) -> None:
        from jaxclf.cli.result import print_result
        from jaxclf.devices import cluster
        from jaxclf.training import evaluation
        from jaxclf.training.run_directory import read_config

        config = read_config(workdir)
        cluster.join(self.cluster)
        given = {"checkpoint": self.checkpoint, "loader": self.loader, "devices": self.cluster.devices}
        print_result(evaluation.evaluate(config, workdir, **given))

    def _evaluate_weights(self, file: Path) -> None:
        from jaxclf.cli.result import class_range
        from jaxclf.tools.accuracy import accuracy
        from jaxclf.training import weights
        from jaxclf.training.progress import Lines

        head = self.head or ("learned" if weights.is_bare(file) else None)
        which = {"weights_key": self.weights_key, "checkpoint": self.checkpoint}
        loaded = weights.read(file, model=self.model, head=head, class_names=read_names(self.class_names), **which)
        found = accuracy(loaded, self.data, split=self.split, report=Lines())
        print(f"{self.split} top-1 {found.top1:.2f} %  top-5 {found.top5:.2f} %  loss {found.loss:.4f}", end="")
        print(f"  per class {class_range(found.per_class)}")
        print(f"{found.images:,} images of {self.data.dataset}, {found.preprocessing}")
