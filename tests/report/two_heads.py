"""A table of two heads on the digits, two seeds each, to be run as those of experiments/ are."""

from jaxclf.config import AugmentConfig, Config, DataConfig, ModelConfig, RunConfig
from jaxclf.report.experiment import Row, Table


def recipe(head: str) -> Config:
    """Return five epochs of five steps."""
    return Config(
        data=DataConfig(batch_size=256, drop_last=True, image_size=8),
        augment=AugmentConfig(pad=0, flip=False),
        model=ModelConfig("tests.tiny:Tiny", head, maps=10 if head == "identity" else None),
        run=RunConfig(epochs=5),
    )


def get_table() -> Table:
    """Return the table."""
    rows = (Row("Learned head", "digits", {"head": "learned"}), Row("identity", "digits", {"head": "identity"}))
    return Table("two", "Two heads", "What is compared.", "", recipe, rows, seeds=(0, 1))
