"""jaxclf eval: a run on its test images, or weights on any data set."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from jaxclf.cli.train import Machines
from jaxclf.cli.weights import OfWeights
from jaxclf.config import Cluster, DataConfig, Loader
from jaxclf.errors import UsageError

OF_A_RUN = ("loader", "cluster")
OF_WEIGHTS = ("split", "data", "model", "head", "class_names", "weights_key")
"""Flags that only one of the two ways uses."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate(OfWeights):
    """Evaluate a run on its test images (--workdir), or weights on a data set (--weights, --data.dataset)."""

    workdir: Path | None = None
    """The run directory."""
    weights: Path | None = None
    """A weight file or directory, or a run directory; images are prepared as is kept with it."""
    split: Literal["train", "test", "validation"] = "test"
    """Images of the data set that weights are evaluated on; a directory val is test, too."""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    """The data set that weights are evaluated on."""
    loader: Loader = dataclasses.field(default_factory=Loader)
    cluster: Machines = dataclasses.field(default_factory=Cluster)

    def run(self) -> None:
        """Evaluate the run or the weights, and print the result."""
        if (self.workdir is None) == (self.weights is None):
            raise UsageError("eval needs --workdir DIR, a run, or --weights FILE, and not both")
        unused = OF_A_RUN if self.workdir is None else OF_WEIGHTS
        plain = {field.name: field for field in dataclasses.fields(self)}
        if odd := [name for name in unused if getattr(self, name) != _default(plain[name])]:
            way = "--weights" if self.workdir is None else "--workdir"
            flags = ", ".join("--" + name.replace("_", "-") for name in odd)
            raise UsageError(f"eval {way} does not use {flags}")
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

        loaded = weights.read(file, **self.given(file))
        found = accuracy(loaded, self.data, split=self.split, report=Lines())
        print(f"{self.split} top-1 {found.top1:.2f} %  top-5 {found.top5:.2f} %  loss {found.loss:.4f}", end="")
        print(f"  per class {class_range(found.per_class)}")
        print(f"{found.images:,} images of {self.data.dataset}, {found.preprocessing}")


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
