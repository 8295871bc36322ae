"""A hundred classes out of ten digits on 64 features: does the thesis's collapse show, and what cures it?

Run:  jaxclf table experiments/hundred_classes.py --workdir runs/hundred_classes --jobs 2
Cost: 66 runs of 1,000 steps; results/hundred_classes.jsonl has the seconds of each, on a machine that did other work.
"""

import dataclasses
from typing import Any

from configs.digit_pairs import get_config
from jaxclf.config import Config
from jaxclf.report.experiment import Row, Table

CAPTION = (
    "The thesis's Hadamard head has 44.86 % on CIFAR-100, because ResNet-32 has 64 features: of its 100 rows 64 are "
    "distinct, so that 36 classes are never predicted. Here the same question is asked of 100 classes made of two "
    "digits side by side, with ResNet-8 and ResNet-20, which have 64 features as well: 10,000 pairs to train, 4,000 of "
    "other digits to test, 10 epochs of SGD, the same recipe in every row. A neck is a learned matrix before the fixed "
    "one; cosines: features and rows have norm 1, and logits are 10 times their products; identity ends the network in "
    "100 channels."
)
NETWORKS = {"ResNet-8": "resnet8", "ResNet-20": "resnet20"}
COSINES = {"head_normalise": "both", "head_scale": 10.0}
HEADS = (
    ("learned", {"head": "learned"}),
    ("orthogonal", {"head": "orthogonal"}),
    ("hadamard", {"head": "hadamard"}),
    ("biorthogonal Hadamard", {"head": "biorthogonal_hadamard"}),
    ("biorthogonal Hadamard, cosines", {"head": "biorthogonal_hadamard", **COSINES}),
    ("Kerdock", {"head": "kerdock"}),
    ("Tammes", {"head": "tammes"}),
    ("exact Hadamard behind a neck", {"head": "hadamard_exact", "neck": 100}),
    ("exact Hadamard behind a neck, cosines", {"head": "hadamard_exact", "neck": 100, **COSINES}),
    ("simplex behind a neck", {"head": "reponet_simplex"}),
    ("identity", {"head": "identity"}),
)


def recipe(head: str, neck: int | None = None, **model: Any) -> Config:
    """Return the config of a row."""
    config = get_config(head, neck)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **model))


def get_table() -> Table:
    """Return the table."""
    return Table(
        name="hundred_classes",
        title="A hundred classes on 64 features",
        caption=CAPTION,
        source="",
        recipe=recipe,
        rows=tuple(
            Row(label=f"{title} {label}", group=title, axes={"backbone": backbone, **axes})
            for title, backbone in NETWORKS.items()
            for label, axes in HEADS
        ),
    )
