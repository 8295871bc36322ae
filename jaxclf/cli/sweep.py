"""jaxclf sweep: a grid over a recipe's fields, as a table."""

import dataclasses

from jaxclf.cli.recipe import COMMAND, Overrides, RecipeFile, Stoppable, config_of, override
from jaxclf.cli.table import Runs


@dataclasses.dataclass(frozen=True)
class Sweep(Stoppable):
    """Run a grid over a recipe's fields, then write table.md, index.html and results.jsonl into the directory.

    Complete runs are not run again. Other fields (--run.epochs 1 ...) override those of the recipe.
    """

    recipe: RecipeFile
    """A file with get_config() -> Config, as in configs/."""
    request: Runs
    grid: tuple[str, ...]
    """Axes, as in optim.lr=0.1,0.01 model.head=learned,identity; values are JSON, words need no quotes."""
    seeds: str = "0,1,2"
    """Seeds of every point."""
    overrides: Overrides = ()

    def run(self) -> None:
        """Run and render the grid's table."""
        from jaxclf.report import tables
        from jaxclf.report.sweep import check_rows, parse_grid, parse_seeds, sweep_table

        base = override(config_of(self.recipe), self.overrides, prog="jaxclf sweep")
        grid, seeds = parse_grid(self.grid, base), parse_seeds(self.seeds)
        whole = sweep_table(self.recipe.stem, base, grid, seeds, overrides=self.overrides)
        check_rows(whole)
        everything = tables.jobs(whole, self.request.workdir)
        axes = ["--grid", *self.grid, "--seeds", self.seeds]
        command = [*COMMAND, "sweep", str(self.recipe), *axes, *self.overrides]
        tables.complete(whole, everything, self.request, command, root=self.recipe.parent)
