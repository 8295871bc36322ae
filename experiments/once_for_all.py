"""Once-for-all on Fashion-MNIST: twelve networks out of one that was trained once, beside the same trained alone.

Run:  jaxclf data prepare fashion_mnist [--downloads DIR], then
      jaxclf table experiments/once_for_all.py --workdir runs/once_for_all --jobs 2
"""

import dataclasses

from configs.fashion_mnist import get_config as fashion
from jaxclf.config import Config, ElasticConfig
from jaxclf.models.classifier import create_model
from jaxclf.models.count import count
from jaxclf.report.experiment import Row, Scatter, Table

CAPTION = (
    "One elastic network, ofa_mbv3_tiny, is trained for ten epochs by progressive shrinking: the largest network for "
    "three, then smaller kernels, fewer blocks and narrower blocks come in. Twelve settings are then cut out of it, "
    "their BatchNorm statistics averaged anew over twenty training batches and nothing else trained. Each is compared "
    "with the same network trained alone for ten epochs under the same recipe. 5,400 "
    "training images of 16x16, all test images."
)
SETTINGS: dict[str, dict[str, tuple[int, ...]]] = {
    f"k{k} e{e} d{d}": {"kernels": (k,), "expansions": (e,), "depths": (d,)}
    for k, e, d in (
        *((3, 3, 1), (5, 3, 1), (3, 4, 1), (3, 6, 1), (3, 3, 2)),
        *((5, 4, 2), (3, 6, 2), (3, 3, 3), (5, 4, 3), (5, 6, 3)),
    )
} | {
    "mixed, d2 d3": {"kernels": (5, 3, 3, 5, 3, 3), "expansions": (4, 3, 3, 6, 4, 3), "depths": (2, 3)},
    "mixed, d3 d1": {"kernels": (3, 5, 5, 3, 5, 5), "expansions": (6, 4, 3, 4, 3, 3), "depths": (3, 1)},
}
"""By name: sides of the kernels, expansions, blocks of the two stages."""
ELASTIC = "elastic network"


def get_config(setting: str = "", extracted: bool = False) -> Config:
    """Return the recipe of the elastic network, of a setting alone, or of one that is extracted."""
    config = fashion("learned", "ofa_mbv3_tiny")
    elastic = ElasticConfig(kernels=(3,), depths=(4, 5), expansions=(6, 7), random=2)
    return dataclasses.replace(
        config,
        data=dataclasses.replace(
            config.data, train_split="train[:10%]", validation=0.1, batch_size=64, drop_last=True, image_size=16
        ),
        model=dataclasses.replace(config.model, **SETTINGS.get(setting, {})),
        elastic=ElasticConfig() if setting else elastic,
        optim=dataclasses.replace(config.optim, lr=0.05, schedule="cosine", schedule_every="step", milestones=()),
        run=dataclasses.replace(
            config.run,
            epochs=0 if extracted else 10,
            eval_every=5,
            recalibrate=20 if extracted or not setting else 0,
            checkpoint_every=None,
        ),
    )


def macs() -> dict[str, float]:
    """Return by label the millions of multiply-accumulates of an image."""
    found = {}
    for setting, options in SETTINGS.items():
        model = create_model("ofa_mbv3_tiny", num_classes=10, **options)
        found |= dict.fromkeys(_labels(setting), count(model, (16, 16, 1)).total("macs") / 1e6)
    return found


def _labels(setting: str) -> tuple[str, str]:
    return f"{setting} alone", f"{setting} extracted"


def get_table() -> Table:
    """Return the table."""
    rows = [Row(label=ELASTIC, group=ELASTIC, axes={})]
    for setting in SETTINGS:
        alone, extracted = _labels(setting)
        rows.append(Row(label=alone, group=setting, axes={"setting": setting}))
        rows.append(Row(label=extracted, group=setting, axes={"setting": setting, "extracted": True}, of=ELASTIC))
    return Table(
        name="once_for_all",
        title="Once-for-all on Fashion-MNIST",
        caption=CAPTION,
        source="",
        recipe=get_config,
        rows=tuple(rows),
        scatter=Scatter("million multiply-accumulates an image", macs, together=True),
    )
