"""jaxclf train: one run."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from jaxclf.cli.recipe import Fields, RecipeFile, Stoppable, must_be_python
from jaxclf.config import Cluster, Config, Loader, Watching

Machines = Annotated[Cluster, tyro.conf.arg(name="")]
Watched = Annotated[Watching, tyro.conf.arg(name="")]


@dataclasses.dataclass(frozen=True)
class Train(Stoppable):
    """Train one config, or go on where a run of the same config stopped in the same directory."""

    recipe: RecipeFile
    """A file with get_config() -> Config, as in configs/."""
    workdir: Path
    """The run directory, a path or gs://BUCKET/PATH (extra `gcs`)."""
    extend: bool = False
    """Give a finished or stopped run in the directory more epochs, by a larger --run.epochs."""
    loader: Loader = dataclasses.field(default_factory=Loader)
    cluster: Machines = dataclasses.field(default_factory=Cluster)
    watching: Watched = dataclasses.field(default_factory=Watching)
    config: Fields = dataclasses.field(default_factory=Config)

    def run(self) -> None:
        """Join the other processes, if there are any, train, and print the result."""
        must_be_python(self.recipe)
        from jaxclf.cli.result import print_result
        from jaxclf.devices import cluster
        from jaxclf.training import loop

        cluster.join(self.cluster)
        given = {
            "loader": self.loader,
            "devices": self.cluster.devices,
            "watching": self.watching,
            "extend": self.extend,
        }
        print_result(loop.train(self.config, self.workdir, **given))
