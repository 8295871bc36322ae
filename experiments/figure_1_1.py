"""Figure 1.1: which share of a network's parameters is its classifier. Counted, nothing is trained.

Run: jaxclf table experiments/figure_1_1.py --workdir runs/figure_1_1

The thesis prints bars without numbers, so there is nothing to compare with here.
"""

from jaxclf.models.classifier import create_model
from jaxclf.models.count import count
from jaxclf.report.experiment import Cell, CountTable

NETS = (
    "shufflenet_v2_x0_5",
    "mobilenet_v2",
    "efficientnet_lite0",
    "shufflenet_v2_x1_0",
    "densenet121",
    "resnet50",
    "resnet18",
    "vgg16",
)

CAPTION = (
    "Trainable parameters of networks for 1000 classes, and the share that is in their last layer: most of it in the "
    "smallest network."
)


def get_table() -> CountTable:
    """Return the table, largest share first."""
    rows = []
    for name in NETS:
        counted = count(create_model(name, num_classes=1000), (224, 224, 3))
        total = counted.total("trainable")
        classifier = sum(layer.trainable for layer in counted.layers if layer.path == "head")
        rows.append(
            (name, (Cell(total, None, ","), Cell(classifier, None, ","), Cell(100 * classifier / total, None, ".2f")))
        )
    return CountTable(
        name="figure_1_1",
        title="What share of a network is its classifier (figure 1.1)",
        caption=CAPTION,
        source="Z. Qian, Deep Convolutional Networks without Learning the Classifier Layer, RIT 2020, figure 1.1",
        columns=("parameters", "classifier", "classifier, %"),
        rows=tuple(sorted(rows, key=lambda row: -row[1][2].ours)),
        bars=2,
    )
