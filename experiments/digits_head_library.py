"""The head library on the demo's problem: every head that there is for ten classes on 64 features, three seeds each.

Run: jaxclf table experiments/digits_head_library.py --workdir runs/digits_head_library --jobs 2
Takes: 96 runs of the demo's length; it has not been run yet.
"""

import dataclasses

from configs.digits import get_config as digits
from jaxclf.config import Config
from jaxclf.report.experiment import Row, Table

CAPTION = (
    "Which fixed matrix can stand where a learned one would? ResNet-8 on 1,797 handwritten digits (1,352 to train, 445 "
    "to test, 8x8 pixels enlarged to 16x16), 15 epochs of SGD, the same recipe in every row: ten classes on 64 "
    "features, or on those of the head's own neck. One test image is 0.22 points. etf_dr is trained with the dot "
    "regression loss of its paper, all others with cross-entropy."
)
HEADS = (
    "learned",
    *("identity", "block_identity", "signed_identity", "orthoplex"),
    *("orthogonal", "hadamard", "hadamard_printed", "hadamard_exact", "biorthogonal_hadamard", "kerdock", "gold"),
    *(
        "hypercube",
        "hypercube_random",
        "hypercube_compact",
        "simplex",
        "simplex_recursive",
        "etf",
        "etf_rotated",
        "polygon",
    ),
    *("tammes", "hyperspherical", "gaussian", "rademacher", "sphere"),
    *("hoffer_orthogonal", "etf_dr", "reponet_simplex", "reponet_orthoplex", "reponet_cube", "kasarla", "ebv"),
)


def get_config(head: str) -> Config:
    """Return the digits' recipe with a head, and with the loss that belongs to it."""
    config = digits(head)
    if head == "etf_dr":
        config = dataclasses.replace(config, loss=dataclasses.replace(config.loss, name="dot_regression"))
    return config


def get_table() -> Table:
    """Return the table."""
    return Table(
        name="digits_head_library",
        title="Every head on the digits",
        caption=CAPTION,
        source="",
        recipe=get_config,
        rows=tuple(Row(label=head, group="ResNet-8", axes={"head": head}) for head in HEADS),
    )
