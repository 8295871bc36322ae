"""The streamed data set of a config."""

from jaxclf.config import DataConfig
from jaxclf.data.datasets import StreamedSet, resolve


def streamed(config: DataConfig) -> StreamedSet:
    dataset = resolve(config)
    assert isinstance(dataset, StreamedSet)
    return dataset
