"""Table 6.1: operations of four nets, of their first conv and of their classifier: counted, nothing is trained.

Run: jaxclf table experiments/table_6_1.py --workdir runs/table_6_1
"""

from jaxclf.models.classifier import create_model
from jaxclf.models.count import count
from jaxclf.report.experiment import Cell, CountTable

# net: (total, first conv, classifier, classifier's share in percent); thesis table 6.1
PRINTED = {
    "resnet50": (4121924096, 118013952, 2048000, 0.05),
    "resnet18": (1822176768, 118013952, 512000, 0.03),
    "mobilenet_v2": (320236288, 10838016, 1280000, 0.4),
    "shufflenet_v2_x0_5": (43646944, 8128512, 1024000, 2.35),
}

CAPTION = (
    "Operations for one 224x224 image in the convention of the thesis's tool: multiply-accumulates of convolutions and "
    "of the classifier, 1 per element of a conv bias, of a ReLU module's output and of a pool module's input, 2 per "
    "element of a BatchNorm's output."
)


def get_table() -> CountTable:
    """Return the table."""
    rows = []
    for name, (total, first, classifier, share) in PRINTED.items():
        model = create_model(name, num_classes=1000)
        counted = count(model, (224, 224, 3))
        layers = {layer.path: layer for layer in counted.layers}
        ours = counted.total("flops_2020")
        fc = layers["head"].macs
        stem = layers[f"backbone/{model.backbone.stem}"].macs
        rows.append(
            (
                name,
                (
                    Cell(ours, total, ","),
                    Cell(stem, first, ","),
                    Cell(fc, classifier, ","),
                    Cell(100 * fc / ours, share, ".2f"),
                ),
            )
        )
    return CountTable(
        name="table_6_1",
        title="Where the operations are (table 6.1)",
        caption=CAPTION,
        source="Z. Qian, Deep Convolutional Networks without Learning the Classifier Layer, RIT 2020, table 6.1",
        columns=("total", "first conv", "classifier", "classifier, %"),
        rows=tuple(rows),
    )
