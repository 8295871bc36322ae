"""The savings of table 5.5 and of the same four nets at 1000 classes: counted, nothing is trained.

Run: jaxclf table experiments/table_5_5_savings.py --workdir runs/table_5_5_savings
"""

from jaxclf.models.classifier import create_model
from jaxclf.models.count import count
from jaxclf.report.experiment import Cell, CountTable

# thesis table 5.5 (Cars-196, Flowers-102); at 1000 classes the figures of section 5.4
PRINTED = {
    196: {"resnet18": 12.92, "resnet50": 5.66, "mobilenet_v2": 24.26, "shufflenet_v2_x0_5": 66.65},
    102: {"resnet18": 16.83, "resnet50": 5.10, "mobilenet_v2": 21.66, "shufflenet_v2_x0_5": 63.52},
    1000: {"resnet18": -14.85, "resnet50": 10.13, "mobilenet_v2": 39.15, "shufflenet_v2_x0_5": 75.41},
}

CAPTION = (
    "Trainable parameters with a learned classifier and with none (identity, the last conv rebuilt to one channel per "
    "class), and the share that the identity saves. On 1000 classes ResNet-18 grows: its rebuilt 3x3 conv is larger "
    "than the matrix it replaces."
)


def get_table() -> CountTable:
    """Return the table."""
    rows = []
    for classes, nets in PRINTED.items():
        for name, printed in nets.items():
            learned, identity = (
                count(create_model(name, num_classes=classes, head=head, **options), (224, 224, 3)).total("trainable")
                for head, options in (("learned", {}), ("identity", {"maps": classes}))
            )
            saved = Cell(100 * (learned - identity) / learned, printed, ".2f")
            rows.append((f"{name}, {classes} classes", (Cell(learned, None, ","), Cell(identity, None, ","), saved)))
    return CountTable(
        name="table_5_5_savings",
        title="Parameters saved without a classifier (table 5.5)",
        caption=CAPTION,
        source="Z. Qian, Deep Convolutional Networks without Learning the Classifier Layer, RIT 2020, table 5.5",
        columns=("learned", "identity", "savings, %"),
        rows=tuple(rows),
    )
