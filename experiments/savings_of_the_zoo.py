"""What every backbone saves without a learned classifier, at 10, 100 and 1000 classes: counted, nothing is trained.

Run: jaxclf table experiments/savings_of_the_zoo.py --workdir runs/savings_of_the_zoo   (four minutes of CPU time)

results/savings_of_the_zoo.md and .html are its table.md and index.html.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxclf.models.backbones import backbone_options, create_backbone, list_models
from jaxclf.models.classifier import create_model
from jaxclf.report.experiment import Cell, CountTable

CLASSES = (10, 100, 1000)
STAND_IN = 997
"""Classes of the traced networks. A prime that is no channel count, so an axis of this length is the classes' own."""
BORN = ("nin", "squeezenet1_0", "squeezenet1_1")
"""Networks whose published form has no classifier behind the last conv."""

CAPTION = (
    "Trainable parameters with a learned classifier and with none (identity), and the percentage that identity saves. "
    "It rebuilds the last conv to one map a class; where that costs more than the matrix that it replaces, "
    "the network grows and the saving is negative. AlexNets, VGGs and LeNets lose their hidden linear layers, too. "
    "DenseNets concatenate and have no conv to rebuild: their first features are the classes, as far as there are "
    "enough. NiN and SqueezeNet are identity heads by birth: their last conv gives the classes, and a learned matrix "
    "in its place has as many parameters. Images have the size and channels that a backbone was designed for. "
    "Auxiliary classifiers, which evaluation leaves out, are not counted."
)


def trainable(name: str, head: str, maps: int | None = None) -> Callable[[int], int]:
    """Return the number of trainable parameters as a function of the classes; the network is traced once."""
    options: dict[str, Any] = {} if maps is None else {"maps": maps}
    model = create_model(name, num_classes=STAND_IN, head=head, auxiliary=False, **options)
    side = model.backbone.image_size
    images = jax.ShapeDtypeStruct((1, side, side, 1 if side == 28 else 3), jnp.float32)  # 28x28 are grey digits
    leaves = jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0), images)["params"])
    of_classes = sum(leaf.size // STAND_IN for leaf in leaves if STAND_IN in leaf.shape)
    others = sum(leaf.size for leaf in leaves if STAND_IN not in leaf.shape)
    return lambda classes: others + classes * of_classes


def identity(name: str, learned: Callable[[int], int]) -> Callable[[int], int | None]:
    """Return the number of trainable parameters under identity; None where there are more classes than features."""
    if "maps" in backbone_options(name):
        return trainable(name, "identity", STAND_IN)
    features = create_backbone(name).features
    return lambda classes: learned(classes) - classes * (features + 1) if classes <= features else None


def row(name: str) -> tuple[str, tuple[Cell, ...]]:
    """Return a network's label and its cells: what identity saves, then both counts, at each number of classes."""
    learned = trainable(name, "learned")
    without = identity(name, learned)
    counts = [(learned(classes), without(classes)) for classes in CLASSES]
    saved = [None if left is None else 100 * (whole - left) / whole for whole, left in counts]
    cells = [Cell(share, None, ".2f") for share in saved]
    cells += [Cell(number, None, ",") for pair in counts for number in pair]
    remark = ", identity by birth" if name in BORN else "" if "maps" in backbone_options(name) else ", first features"
    return name + remark, tuple(cells)


def get_table(names: Sequence[str] | None = None) -> CountTable:
    """Return the table of some backbones, by default of all."""
    return CountTable(
        name="savings_of_the_zoo",
        title="Parameters saved without a classifier, every backbone",
        caption=CAPTION,
        source="",
        columns=(
            *(f"saved, {classes}" for classes in CLASSES),
            *(f"{head}, {classes}" for classes in CLASSES for head in ("learned", "identity")),
        ),
        rows=tuple(row(name) for name in names or list_models()),
    )
