"""jaxclf table: what a table lacks, then the table."""

import dataclasses
from typing import Annotated

import tyro

from jaxclf.cli.recipe import COMMAND, Overrides, RecipeFile, Stoppable, load, override
from jaxclf.config import Config, Request

Runs = Annotated[Request, tyro.conf.arg(name="")]


@dataclasses.dataclass(frozen=True)
class RunTable(Stoppable):
    """Run what a table lacks, then write table.md, index.html and results.jsonl into the directory.

    Fields of the config (--run.epochs 1 ...) override those of every run.
    """

    experiment: RecipeFile
    """A file with get_table() -> Table, as in experiments/."""
    request: Runs
    overrides: Overrides = ()

    def run(self) -> None:
        """Run and render the table."""
        from jaxclf.report import tables
        from jaxclf.report.experiment import CountTable

        whole = load(self.experiment, "get_table")()
        workdir, flags = self.request.workdir, self.overrides
        if isinstance(whole, CountTable):
            tables.show(tables.render_counts(whole, workdir))
            return

        def changed(config: Config) -> Config:
            return override(config, flags, prog="jaxclf table")

        everything = tables.jobs(whole, workdir, changed)
        whole = tables.overridden(whole, changed)
        command = [*COMMAND, "table", str(self.experiment), *flags]
        tables.complete(whole, everything, self.request, command, root=self.experiment.parent)
