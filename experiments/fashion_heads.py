"""Fashion-MNIST under every head, beside the same runs in PyTorch.

Run:  jaxclf data prepare fashion_mnist [--downloads DIR], then
      python -m tests.parity.torch_twin experiments/fashion_heads.py --workdir runs/fashion_torch
      jaxclf table experiments/fashion_heads.py --workdir runs/fashion_heads --jobs 2
"""

from configs.fashion_mnist import get_config
from jaxclf.report.experiment import Row, Table

CAPTION = (
    "Two small networks on 60,000 real images, two epochs each, the second at a tenth of the rate. PyTorch starts "
    "from the same weights and sees the same pixels in the same order; rounding alone parts them. Identity ends the "
    "network in ten channels, one a class. LeNet-5's Hadamard matrix is cut from 128 to its 84 features."
)


def get_table() -> Table:
    """Return the table."""
    heads = ("learned", "orthogonal", "hadamard", "identity")
    rows = [
        Row(label=f"{backbone} {head}", group=title, axes={"backbone": backbone, "head": head})
        for title, backbone in (("LeNet-5", "lenet5"), ("ResNet-8", "resnet8"))
        for head in heads
    ]
    return Table(
        name="fashion_heads",
        title="Fashion-MNIST under every head",
        caption=CAPTION,
        source="",
        recipe=get_config,
        rows=tuple(rows),
        baseline_results="results/fashion_heads_torch.jsonl",
    )
