"""jaxclf summary: a network by layer, or a recipe in short."""

import dataclasses
import json
import sys
from typing import Annotated, Any, Literal

import tyro

from jaxclf.cli.recipe import Fields, RecipeFile
from jaxclf.config import Config
from jaxclf.errors import UsageError

TOTALS = ("trainable", "fixed", "statistics", "macs", "flops_2020")


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
    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> None:
        """Print the layers and their totals."""
        from jaxclf.models.classifier import create_model
        from jaxclf.models.count import count

        for name, value in (("image-size", self.image_size), ("channels", self.channels)):
            if value is not None and value < 1:
                raise UsageError(f"--{name} is {value} but must be at least 1")
        own = ("name", "num_classes", "head", "image_size", "channels", "json")
        options: dict[str, Any] = {
            name: value for name, value in vars(self).items() if name not in own and value is not None
        }
        model = create_model(self.name, num_classes=self.num_classes, head=self.head, **options)
        size = self.image_size or model.backbone.image_size
        counted = count(model, (size, size, self.channels))
        totals = {field: counted.total(field) for field in TOTALS}
        totals |= {"auxiliary": counted.auxiliary} if counted.auxiliary else {}
        if self.json:
            layers = [dataclasses.asdict(layer) for layer in counted.layers]
            print(json.dumps({**dataclasses.asdict(self), "image_size": size, "totals": totals, "layers": layers}))
        else:
            self._print_table(size, counted.layers, totals)

    def _print_table(self, size: int, layers: Any, totals: dict[str, int]) -> None:
        import rich.console
        import rich.table

        table = rich.table.Table(title=f"{self.name}, {self.head}, {self.num_classes} classes, {size}x{size}")
        for column in ("layer", "output", *TOTALS):
            table.add_column(column, justify="left" if column == "layer" else "right", no_wrap=True)
        for layer in layers:
            numbers = [f"{value:,}" if (value := getattr(layer, field)) else "" for field in TOTALS]
            table.add_row(layer.path or "(pool)", "x".join(map(str, layer.output)), *numbers)
        table.add_section()
        table.add_row("total", "", *(f"{totals[field]:,}" for field in TOTALS))
        if "auxiliary" in totals:
            table.add_row("of it auxiliary, in training alone", "", f"{totals['auxiliary']:,}")
        rich.console.Console(width=None if sys.stdout.isatty() else 140).print(table)
