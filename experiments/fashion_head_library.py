"""Every head of the library on Fashion-MNIST, two networks, three seeds, with the measures of neural collapse.

Run:  jaxclf data prepare fashion_mnist [--downloads DIR], then
      jaxclf table experiments/fashion_head_library.py --workdir runs/fashion_head_library --jobs 2 [--rows ROW ...]
Cost: 222 runs of two epochs, 120,000 images each; not run yet. On a GPU: --stack instead of --jobs.
"""

import dataclasses

from configs.fashion_mnist import get_config as fashion
from jaxclf.config import Config
from jaxclf.models.heads import OWN, head_matrix
from jaxclf.models.matrices.geometry import orthant
from jaxclf.report.experiment import Row, Scatter, Table

CAPTION = (
    "Which fixed matrix can stand where a learned one would, and what does it make of the features? Two small networks "
    "on 60,000 images, two epochs each, the same recipe in every row: ten classes on the 64 features of ResNet-8 and "
    "the 84 of LeNet-5, or on those of the head's own neck. etf_dr, cosface and arcface are trained with the losses of "
    "their papers, all others with cross-entropy."
)
LOSSES = {"etf_dr": "dot_regression", "cosface": "cosface", "arcface": "arcface"}
HEADS = (
    "learned",
    *("identity", "block_identity", "signed_identity", "orthoplex"),
    *("orthogonal", "hadamard", "hadamard_printed", "hadamard_exact", "biorthogonal_hadamard"),
    *("biorthogonal_hadamard_varied", "kerdock", "gold", "hypercube", "hypercube_random", "hypercube_compact"),
    *("simplex", "simplex_recursive", "etf", "etf_rotated", "polygon", "tammes", "hyperspherical"),
    *("gaussian", "rademacher", "sphere", "hoffer_orthogonal", "etf_dr"),
    *("reponet_simplex", "reponet_orthoplex", "reponet_cube", "kasarla", "ebv"),
    *("normface", "cosface", "arcface", "class_mean"),
)


def get_config(backbone: str, head: str) -> Config:
    """Return Fashion-MNIST's recipe with a head, and with the loss that belongs to it."""
    config = fashion(head, backbone)
    loss = dataclasses.replace(config.loss, name=LOSSES.get(head, config.loss.name))
    run = dataclasses.replace(config.run, collapse=True, checkpoint_every=None)
    return dataclasses.replace(config, loss=loss, run=run)


def orthant_cosines() -> dict[str, float]:
    """Return by label the largest cosine of non-negative features with a class's row, mean over the ten classes.

    Only of fixed matrices that stand on the network's own features, which are what a ReLU or its average leaves.
    """
    found = {}
    for title, features in (("ResNet-8", 64), ("LeNet-5", 84)):
        for head in HEADS:
            row = OWN[head]
            if row.matrix is not None and "neck" not in row.options:
                found[f"{title} {head}"] = orthant(row.options.get("sign", 1) * head_matrix(head, 10, features))
    return found


def get_table() -> Table:
    """Return the table."""
    return Table(
        name="fashion_head_library",
        title="Every head on Fashion-MNIST",
        caption=CAPTION,
        source="",
        recipe=get_config,
        rows=tuple(
            Row(label=f"{title} {head}", group=title, axes={"backbone": backbone, "head": head})
            for title, backbone in (("ResNet-8", "resnet8"), ("LeNet-5", "lenet5"))
            for head in HEADS
        ),
        scatter=Scatter("mean orthant cosine", orthant_cosines),
    )
