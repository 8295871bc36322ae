"""Scenes of digits under four heads: the runs whose maps digit_scenes_maps.py judges.

Run:  jaxclf table experiments/digit_scenes.py --workdir runs/digit_scenes
Cost: 12 runs of 600 steps; results/digit_scenes.jsonl has the seconds of each, on a machine that did other work.
"""

from configs.digit_scenes import get_config
from jaxclf.report.experiment import Row, Table

CAPTION = (
    "ResNet-8 on scenes of 32x32: one to three digits of a class at drawn places, among fragments of digits of other "
    "classes. 6,400 scenes an epoch to train, drawn anew each time, 2,000 of other digits to test, six epochs of SGD, "
    "the same recipe in every row. Where the digits are is never told; digit_scenes_maps asks the maps of these "
    "networks for it."
)


def get_table() -> Table:
    """Return the table."""
    heads = ("learned", "identity", "orthogonal", "hadamard")
    return Table(
        name="digit_scenes",
        title="Scenes of digits",
        caption=CAPTION,
        source="",
        recipe=get_config,
        rows=tuple(Row(label=head, group="ResNet-8", axes={"head": head}) for head in heads),
    )
