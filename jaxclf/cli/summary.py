"""jaxclf summary: a network by layer, or a recipe in short."""

import dataclasses
import json
import sys
from typing import Annotated, Any, Literal

import tyro

from jaxclf.cli.recipe import Fields, RecipeFile
from jaxclf.config import Config
from jaxclf.errors import UsageError

PARAMETERS = ("trainable", "fixed", "statistics")
COLUMNS = {
    **{name: (name,) for name in ("macs", "flops", "thop")},
    "ptflops2020": ("flops_2020",),
    "torchsummary": ("outputs",),
}
"""What the table shows beside the parameters, under each convention."""
TOTALS = (*PARAMETERS, "macs", "flops_2020", "flops", "thop", "outputs")


@dataclasses.dataclass(frozen=True)
class Outline:
    """Show a recipe in short: model, parameters, length, and its learning rate as a curve."""

    recipe: RecipeFile
    """A file with get_config() -> Config, as in configs/."""
    config: Fields = dataclasses.field(default_factory=Config)

    def run(self) -> None:
        """Print the outline."""
        from jaxclf.report.sweep import outline

        print(outline(self.config))


@dataclasses.dataclass(frozen=True)
class Summary:
    """Show a network's layers: output shapes, parameters by collection, operations for one image.

    `summary CONFIG.py` shows a recipe in short with its learning rate, and takes the fields that `train` takes.
    """

    name: Annotated[str, tyro.conf.Positional]
    """Name of a backbone, or a recipe file."""
    num_classes: int = 1000
    """Classes of the head."""
    head: str = "learned"
    """Name of a head."""
    head_normalise: Literal["none", "features", "both"] | None = None
    """Linear heads: what is divided by its norm; None is the head's own habit."""
    head_scale: float | None = None
    """Linear heads: factor of the logits; None is the head's own habit."""
    head_neck: int | None = None
    """Fixed heads: learn a matrix from the features to this many."""
    head_embed: Literal["zero", "repeat", "rotate"] | None = None
    """Fixed heads: what becomes of columns that the matrix leaves; None is zero."""
    head_shuffle: bool = False
    """Fixed heads: give the classes the rows in a random order."""
    head_assign: Literal["index", "hungarian"] = "index"
    """Fixed heads: give the classes the rows nearest to their means, after the first epoch."""
    head_momentum: float | None = None
    """class_mean: share of the class means that stays in a training step; None is the head's own habit."""
    head_apply: Literal["dense", "gather", "transform"] | None = None
    """Fixed heads: by a product with the matrix, or without one; None is the head's own habit."""
    maps: int | None = None
    """End the backbone in this many feature maps (under identity: one a class)."""
    auxiliary: bool | None = None
    """Train the classifiers on inner maps that the reference has; None: where there are such."""
    bias: bool | None = None
    """Learn a bias in the head; None is the head's own habit."""
    shortcut: str | None = None
    """Shortcut of the downsampling blocks, A or B (CIFAR ResNets)."""
    maps_shortcut: str | None = None
    """Shortcut of the block that `maps` rebuilds, A to G (CIFAR ResNets)."""
    pool: Literal["average", "max", "power", "attention"] = "average"
    """From the last feature map to one vector."""
    pool_units: int | None = None
    """Hidden units of the attention pool; None is 32."""
    image_size: int | None = None
    """Side of the image; None is the one the backbone was designed for."""
    channels: int = 3
    """Channels of the image."""
    convention: Literal["macs", "flops", "thop", "ptflops2020", "torchsummary"] | None = None
    """Count as this does: multiply-accumulates, two operations for each, thop 0.1.1, ptflops 0.6.2, or torchsummary
    1.5.1's elements of all outputs and its sizes in MB; None shows macs and flops_2020."""
    batch_size: int | None = None
    """torchsummary: images of which it gives the sizes; None is 1."""
    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> None:
        """Print the layers and their totals."""
        from jaxclf.models.classifier import create_model
        from jaxclf.models.count import count

        for name in ("image_size", "channels", "batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} is {value} but must be at least 1")
        if self.batch_size is not None and self.convention != "torchsummary":
            raise UsageError(f"--batch-size is for --convention torchsummary; the convention is {self.convention}")
        own = ("name", "num_classes", "head", "image_size", "channels", "convention", "batch_size", "json")
        options: dict[str, Any] = {
            name: value for name, value in vars(self).items() if name not in own and value is not None
        }
        model = create_model(self.name, num_classes=self.num_classes, head=self.head, **options)
        size = self.image_size or model.backbone.image_size
        counted = count(model, (size, size, self.channels))
        totals = {field: counted.total(field) for field in TOTALS}
        totals |= {"auxiliary": counted.auxiliary} if counted.auxiliary else {}
        sizes: dict[str, float] = {}
        if self.convention == "torchsummary":
            sizes = counted.megabytes((size, size, self.channels), self.batch_size or 1)._asdict()
        if self.json:
            totals |= {"megabytes": sizes} if sizes else {}
            layers = [dataclasses.asdict(layer) for layer in counted.layers]
            print(json.dumps({**dataclasses.asdict(self), "image_size": size, "totals": totals, "layers": layers}))
        else:
            self._print_table(size, counted.layers, totals, sizes)

    def _print_table(self, size: int, layers: Any, totals: dict[str, Any], sizes: dict[str, float]) -> None:
        import rich.console
        import rich.table

        fields = (*PARAMETERS, *(COLUMNS[self.convention] if self.convention else ("macs", "flops_2020")))
        table = rich.table.Table(title=f"{self.name}, {self.head}, {self.num_classes} classes, {size}x{size}")
        for column in ("layer", "output", *fields):
            table.add_column(column, justify="left" if column == "layer" else "right", no_wrap=True)
        for layer in layers:
            numbers = [f"{value:,}" if (value := getattr(layer, field)) else "" for field in fields]
            if any(numbers):
                table.add_row(layer.path or "(pool)", "x".join(map(str, layer.output)), *numbers)
        table.add_section()
        table.add_row("total", "", *(f"{totals[field]:,}" for field in fields))
        if "auxiliary" in totals:
            table.add_row("of it auxiliary, in training alone", "", f"{totals['auxiliary']:,}")
        for name, megabytes in sizes.items():
            table.add_row(f"{name.replace('_', '/')}, MB for a batch of {self.batch_size or 1}", f"{megabytes:.2f}")
        rich.console.Console(width=None if sys.stdout.isatty() else 140).print(table)
