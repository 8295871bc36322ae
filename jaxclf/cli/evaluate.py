"""jaxclf eval: a run on its test images."""

import dataclasses
from pathlib import Path
from typing import Literal

from jaxclf.cli.train import Machines
from jaxclf.config import Cluster, Loader


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Evaluate a run on its test images."""

    workdir: Path
    """The run directory."""
    checkpoint: Literal["last", "best"] | int = "last"
    """The newest one, or that of a step. best is that with the highest test accuracy: a diagnosis, not a result."""
    loader: Loader = dataclasses.field(default_factory=Loader)
    cluster: Machines = dataclasses.field(default_factory=Cluster)

    def run(self) -> None:
        """Join the other processes, if there are any, evaluate, and print the result."""
        from jaxclf.cli.result import print_result
        from jaxclf.devices import cluster
        from jaxclf.training import evaluation
        from jaxclf.training.run_directory import read_config

        config = read_config(self.workdir)
        cluster.join(self.cluster)
        given = {"checkpoint": self.checkpoint, "loader": self.loader, "devices": self.cluster.devices}
        print_result(evaluation.evaluate(config, self.workdir, **given))
