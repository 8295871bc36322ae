"""Streamed sets for tests, and their files."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from jaxclf.config import DataConfig
from jaxclf.data.datasets import StreamedSet, resolve

Example: Any = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]  # made at run time
needs_prepare = pytest.mark.skipif(
    any(importlib.util.find_spec(module) is None for module in ("tensorflow", "importlib_resources")),
    reason="needs tensorflow and importlib_resources (the prepare extra)",
)


def streamed(config: DataConfig) -> StreamedSet:
    dataset = resolve(config)
    assert isinstance(dataset, StreamedSet)
    return dataset


def inside(data_dir: Path) -> Path:
    """Directory of the prepared set in a copy of `tiny_imagenet`."""
    return data_dir / "synthetic_imagenet" / "1.0.0"


def write_shard(file: Path, records: list[bytes]) -> None:
    writer = ArrayRecordWriter(str(file), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
