"""Every head of the library on Fashion-MNIST, two networks with and without their last ReLU, three seeds.

Run:  jaxclf data prepare fashion_mnist [--downloads DIR], then
      jaxclf table experiments/fashion_head_library.py --workdir runs/fashion_head_library --jobs 2 [--rows ROW ...]
Cost: 408 runs of four epochs, 48,000 images each: about 20 core-seconds a run of ResNet-8 and 15 of LeNet-5 with
      start and compilation. results/fashion_head_library.jsonl has their seconds on a machine that did other work.
      On a GPU: --stack instead of --jobs.
"""

import dataclasses

from configs.fashion_mnist import get_config as fashion
from jaxclf.config import Config, DataConfig
from jaxclf.models.heads import OWN, head_matrix
from jaxclf.models.matrices.geometry import orthant
from jaxclf.report.experiment import Row, Scatter, Table

CAPTION = (
    "Which fixed matrix can stand where a learned one would, what does it make of the features, and does it matter "
    "whether these are behind a ReLU? A row of a matrix that no non-negative vector comes near cannot be reached "
    "behind one: the orthant cosine says how near. Two small networks, 12,000 training and all test images, four "
    "epochs, the same recipe in every row: ten classes on 64 features of ResNet-8 (images of 14x14) and on the 84 of "
    "LeNet-5, or on those of the head's own neck. Both networks end in a convolution without an activation (maps), "
    "and a ReLU follows it or does not. identity_maps is the thesis's identity: it ends the network in ten channels, "
    "one a class; identity takes the first ten of 64 or 84. etf_dr, cosface and arcface are trained with the losses "
    "of their papers, all others with cross-entropy."
)
LOSSES = {"etf_dr": "dot_regression", "cosface": "cosface", "arcface": "arcface"}
HEADS = (
    "learned",
    *("identity_maps", "identity", "block_identity", "signed_identity", "orthoplex"),
    *("orthogonal", "hadamard", "hadamard_printed", "hadamard_exact", "biorthogonal_hadamard"),
    *("biorthogonal_hadamard_varied", "kerdock", "gold", "hypercube", "hypercube_random", "hypercube_compact"),
    *("simplex", "simplex_recursive", "etf", "etf_rotated", "polygon", "tammes", "hyperspherical"),
    *("gaussian", "rademacher", "sphere", "hoffer_orthogonal", "etf_dr"),
    *("reponet_simplex", "reponet_orthoplex", "reponet_cube", "kasarla", "ebv"),
    *("normface", "cosface", "arcface", "class_mean"),
)
NETWORKS = {"ResNet-8": ("resnet8", 64), "LeNet-5": ("lenet5", 84)}
"""Title -> (name, features)."""


def matrix_of(head: str) -> str | None:
    """Return the name of a head whose fixed matrix stands on the network's own features; None for the others."""
    row = OWN[name := head.removesuffix("_maps")]
    return None if row.matrix is None or "neck" in row.options else name


def get_config(backbone: str, head: str, relu: bool = True) -> Config:
    """Return a row's recipe: that of configs/fashion_mnist.py on a fifth of its images, with the head's own loss."""
    residual, name = backbone == "resnet8", head.removesuffix("_maps")
    config = fashion("learned", backbone)
    width = dict(NETWORKS.values())[backbone]
    model = dataclasses.replace(config.model, head=name, maps=width if head == name else 10, relu_before_pool=relu)
    side = 14 if residual else None
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, train_split="train[:20%]", batch_size=64, image_size=side),
        augment=dataclasses.replace(config.augment, pad=1 if residual else 2),
        model=model,
        loss=dataclasses.replace(config.loss, name=LOSSES.get(head, config.loss.name)),
        optim=dataclasses.replace(config.optim, lr=0.05 if residual else 0.02, milestones=(3,)),
        run=dataclasses.replace(config.run, epochs=4, eval_every=4, collapse=True, checkpoint_every=None),
    )


def rows() -> list[Row]:
    """Return every head behind a ReLU, and without it those that the question is about."""
    found = []
    for title, (backbone, _) in NETWORKS.items():
        for relu in (True, False):
            group = f"{title}, {'ReLU' if relu else 'no ReLU'}"
            for head in HEADS:
                if relu or head == "learned" or matrix_of(head):
                    axes = {"backbone": backbone, "head": head, "relu": relu}
                    found.append(Row(label=f"{group} {head}", group=group, axes=axes))
    return found


def orthant_cosines() -> dict[str, float]:
    """Return by label the largest cosine of non-negative features with a class's row, mean over the ten classes."""
    features = dict(NETWORKS.values())
    found = {}
    for row in rows():
        if name := matrix_of(head := row.axes["head"]):
            width = features[row.axes["backbone"]] if head == name else 10
            found[row.label] = orthant(OWN[name].options.get("sign", 1) * head_matrix(name, 10, width))
    return found


def get_table() -> Table:
    """Return the table."""
    return Table(
        name="fashion_head_library",
        title="Every head on Fashion-MNIST",
        caption=CAPTION,
        source="",
        recipe=get_config,
        rows=tuple(rows()),
        scatter=Scatter("mean orthant cosine", orthant_cosines),
        probe=DataConfig("digits"),
    )
