"""jaxclf eval: a run on its test images, or weights on any data set."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from jaxclf.cli.train import Machines
from jaxclf.cli.weights import OfWeights
from jaxclf.config import Cluster, DataConfig, Loader
from jaxclf.errors import UsageError

OF_DENSE = ("sizes", "step", "windows", "mirrored")
"""Flags that only --dense uses."""
OF_A_RUN = ("loader", "cluster")
OF_WEIGHTS = ("split", "data", "dense", *OF_DENSE, "model", "head", "class_names", "weights_key")
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
    dense: bool = False
    """Slide over whole images: probabilities are averaged over the sizes of each."""
    sizes: tuple[int, ...] = ()
    """Short sides of the images under --dense, pixels; none: the side of the crop that the weights are for."""
    step: int | None = None
    """Pixels between windows under --dense, a divisor of the network's stride: shift and stitch; None: the stride."""
    windows: Literal["mean", "max"] = "mean"
    """What stands for the windows of an image under --dense: mean (Simonyan and Zisserman) or max (OverFeat)."""
    mirrored: bool = False
    """Ask for each image's mirror image under --dense, too."""
    loader: Loader = dataclasses.field(default_factory=Loader)
    cluster: Machines = dataclasses.field(default_factory=Cluster)

    def run(self) -> None:
        """Evaluate the run or the weights, and print the result."""
        if (self.workdir is None) == (self.weights is None):
            raise UsageError("eval needs --workdir DIR, a run, or --weights FILE, and not both")
        unused = OF_A_RUN if self.workdir is None else OF_WEIGHTS
        self._refuse(unused, "--weights" if self.workdir is None else "--workdir")
        if not self.dense:
            self._refuse(OF_DENSE, "without --dense")
        if self.workdir is not None:
            self._evaluate_run(self.workdir)
        elif self.weights is not None:
            self._evaluate_weights(self.weights)

    def _refuse(self, unused: tuple[str, ...], way: str) -> None:
        """Raise `UsageError` for flags that are given and not used."""
        plain = {field.name: field for field in dataclasses.fields(self)}
        if odd := [name for name in unused if getattr(self, name) != _default(plain[name])]:
            flags = ", ".join("--" + name.replace("_", "-") for name in odd)
            raise UsageError(f"eval {way} does not use {flags}")

    def _evaluate_run(self, workdir: Path) -> None:
        from jaxclf.cli.result import print_result
        from jaxclf.devices import cluster
        from jaxclf.training import evaluation
        from jaxclf.training.run_directory import read_config

        cluster.join(self.cluster)
        config = cluster.together(lambda: read_config(workdir))
        given = {"checkpoint": self.checkpoint, "loader": self.loader, "devices": self.cluster.devices}
        print_result(evaluation.evaluate(config, workdir, **given))

    def _evaluate_weights(self, file: Path) -> None:
        from jaxclf.cli.result import class_range
        from jaxclf.tools.accuracy import accuracy
        from jaxclf.tools.dense import dense_accuracy
        from jaxclf.training import weights
        from jaxclf.training.progress import Lines

        loaded = weights.read(file, **self.given(file))
        given: dict[str, Any] = {"split": self.split, "report": Lines()}
        if self.dense:
            given |= {"sizes": self.sizes, "step": self.step, "windows": self.windows, "mirrored": self.mirrored}
            dense = dense_accuracy(loaded, self.data, **given)
            found, sizes = dense.accuracy, ", ".join(map(str, dense.sizes))
            how = f"{self.windows} of windows of {dense.side} pixels, {dense.step} apart; short sides {sizes}"
            print(f"{how}{', mirrored as well' if self.mirrored else ''}; {dense.shapes} shapes")
        else:
            found = accuracy(loaded, self.data, **given)
        print(f"{self.split} top-1 {found.top1:.2f} %  top-5 {found.top5:.2f} %  loss {found.loss:.4f}", end="")
        print(f"  per class {class_range(found.per_class)}")
        print(f"{found.images:,} images of {self.data.dataset}, {found.preprocessing}")


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
