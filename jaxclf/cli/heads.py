"""jaxclf heads: every fixed classifier for k classes on d features, as a table and as pictures."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from jaxclf.errors import UsageError

if TYPE_CHECKING:
    from jaxclf.report.head_table import HeadRow


@dataclasses.dataclass(frozen=True)
class Heads:
    """Compare heads: rank, distinct rows, cosines and their bound, what is trained, stored and computed."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Heads; none: all of them."""
    num_classes: int = 10
    """Classes, k."""
    features: int = 64
    """Features, d."""
    seed: int = 0
    """Seed of matrices that are drawn."""
    out: Path | None = None
    """Directory for index.html, with a picture of every fixed matrix, and for the pictures as PNG files."""

    def run(self) -> None:
        """Print the table, and write the page if asked to."""
        import warnings

        import rich.console
        import rich.table

        from jaxclf.models.heads import HeadWarning, list_heads
        from jaxclf.report.head_table import COLUMNS, cells, head_rows

        if self.out is not None:
            from jaxclf.report.page import make_directory

            make_directory(self.out)
        if self.features < 1:
            raise UsageError(f"--features is {self.features} but must be at least 1")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HeadWarning)  # the table has the numbers that it warns of
            rows = head_rows(self.names or list_heads(), self.num_classes, self.features, self.seed)
        table = rich.table.Table(title=f"{self.num_classes} classes, {self.features} features")
        for column in COLUMNS:
            table.add_column(column, justify="left" if column == "head" else "right", no_wrap=True)
        for row in rows:
            if not row.obstacle:
                table.add_row(*cells(row))
        rich.console.Console(width=140).print(table)
        for row in rows:
            if row.obstacle:
                print(f"not for these numbers: {row.obstacle}")
        if self.out is not None:
            self._write(rows, self.out)

    def _write(self, rows: "list[HeadRow]", out: Path) -> None:
        from jaxclf.report.head_pictures import draw_head
        from jaxclf.report.page import render_heads, write_page

        title = f"Heads for {self.num_classes} classes on {self.features} features"
        write_page(out, render_heads(title, rows), ((row.name, draw_head(row)) for row in rows if row.facts))
        print(out / "index.html")
