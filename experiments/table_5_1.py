"""Table 5.1 of the thesis: CIFAR-100 under every head, its thirteen rows, and below them the heads of the library.

Run:  jaxclf data prepare cifar100
      jaxclf table experiments/table_5_1.py --workdir runs/table_5_1 [--rows ROW ...]
Cost: 39 runs for the thesis's rows, 27 of 164 epochs (ResNet-32) and 12 of 300 (DenseNet-BC), and 84 for the others, 63
      and 21; meant for an accelerator. Not run by us yet.
"""

import dataclasses
from typing import Any

from configs import cifar100_densenet_bc, cifar100_resnet32
from jaxclf.config import Config
from jaxclf.report.experiment import Row, Table

RECIPES = {"resnet32": cifar100_resnet32.get_config, "densenet": cifar100_densenet_bc.get_config}

CAPTION = (
    "Test top-1 on CIFAR-100 and on its first 64 classes. ResNet-32 has 64 features, so on 100 classes its Hadamard "
    "matrix has only 64 distinct rows, and identity needs the last block rebuilt to 100 channels. DenseNet-BC has 342 "
    "features, and identity takes the first 100 of them. Rows without a printed number are heads that the thesis does "
    "not have: a hundred distinct rows on 64 features, necks before a simplex, the combinations of the literature. "
    "etf_dr is trained with the dot regression loss of its paper, all others with cross-entropy."
)

# (group, its short name in labels, axes, {head: printed top-1}); thesis table 5.1
GROUPS: tuple[tuple[str, str, dict[str, Any], dict[str, float]], ...] = (
    (
        "ResNet-32, 100 classes",
        "R32",
        {"backbone": "resnet32"},
        {"learned": 69.46, "orthogonal": 68.61, "hadamard": 44.86},
    ),
    (
        "ResNet-32 with 100 channels, 100 classes",
        "R32 100 ch.",
        {"backbone": "resnet32", "maps": 100, "maps_shortcut": "A"},
        {"learned": 70.23, "identity": 69.98},
    ),
    (
        "DenseNet-BC(100, 12), 100 classes",
        "DenseNet",
        {"backbone": "densenet"},
        {"learned": 77.61, "orthogonal": 76.68, "hadamard": 75.84, "identity": 76.90},
    ),
    (
        "ResNet-32, first 64 classes",
        "R32 64 cl.",
        {"backbone": "resnet32", "classes": 64},
        {"learned": 73.94, "orthogonal": 73.92, "hadamard": 73.97, "identity": 74.25},
    ),
)

BEYOND: dict[str, tuple[str, ...]] = {
    "R32": (
        *("biorthogonal_hadamard", "kerdock", "orthoplex", "signed_identity", "hypercube_random", "tammes"),
        *("hyperspherical", "gaussian", "hoffer_orthogonal", "reponet_simplex", "reponet_orthoplex", "reponet_cube"),
        *("kasarla", "ebv"),
    ),
    "R32 100 ch.": ("hadamard_exact", "biorthogonal_hadamard", "etf_rotated", "etf_dr"),
    "DenseNet": (
        *("block_identity", "hadamard_exact", "biorthogonal_hadamard", "kerdock", "tammes", "etf_rotated", "etf_dr"),
    ),
    "R32 64 cl.": ("biorthogonal_hadamard", "etf_rotated", "etf_dr"),
}
"""Heads that the thesis does not have, by the short name of the group."""


def recipe(backbone: str, head: str, **axes: Any) -> Config:
    """Return the config of a row, with the loss that belongs to its head."""
    config = RECIPES[backbone](head=head, **axes)
    if head == "etf_dr":
        config = dataclasses.replace(config, loss=dataclasses.replace(config.loss, name="dot_regression"))
    return config


def get_table() -> Table:
    """Return the table."""
    rows = [
        Row(label=f"{short} {head}", group=group, axes={**axes, "head": head}, printed=printed)
        for group, short, axes, heads in GROUPS
        for head, printed in (heads | dict.fromkeys(BEYOND[short])).items()
    ]
    return Table(
        name="table_5_1",
        title="CIFAR-100 under every head (table 5.1)",
        caption=CAPTION,
        source="Z. Qian, Deep Convolutional Networks without Learning the Classifier Layer, RIT 2020, table 5.1",
        recipe=recipe,
        rows=tuple(rows),
    )
