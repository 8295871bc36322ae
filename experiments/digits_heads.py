"""The demo: one small network under every head, three seeds each.

Run: jaxclf table experiments/digits_heads.py --workdir runs/digits_heads --jobs 2
"""

from configs.digits import get_config
from jaxclf.report.experiment import Row, Table

CAPTION = (
    "Does a network need to learn its last layer? ResNet-8 on 1,797 handwritten digits (1,352 to train, 445 to test, "
    "8x8 pixels enlarged to 16x16), 15 epochs of SGD, the same recipe in every row. Learned: a trained matrix. "
    "Orthogonal and Hadamard: a fixed matrix that is never trained. Identity: no matrix at all, the last "
    "convolution's ten channels are the ten classes (most of its savings are that convolution's, which is smaller)."
)


def get_table() -> Table:
    """Return the table."""
    heads = ("learned", "orthogonal", "hadamard", "identity")
    return Table(
        name="digits_heads",
        title="Digits under every head",
        caption=CAPTION,
        source="",
        recipe=get_config,
        rows=tuple(Row(label=head, group="ResNet-8", axes={"head": head}) for head in heads),
    )
