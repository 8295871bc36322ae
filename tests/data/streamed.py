"""Streamed sets for tests, and their files."""

import contextlib
import importlib.util
import json
from collections.abc import Iterator
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


@contextlib.contextmanager
def edited(file: Path) -> Iterator[Any]:
    """Yield the content of a JSON file, and write back what has become of it."""
    content = json.loads(file.read_text())
    yield content
    file.write_text(json.dumps(content))


def without_split(data_dir: Path, split: str) -> None:
    """Let a prepared set never have had a split."""
    with edited(inside(data_dir) / "dataset_info.json") as facts:
        facts["splits"] = [one for one in facts["splits"] if one["name"] != split]


def replace_shards(data_dir: Path, parts: list[list[bytes]]) -> list[Path]:
    """Let the training records be these, one list a shard; return the shards."""
    (whole,) = inside(data_dir).glob("*-train.array_record-*")
    whole.unlink()
    shards = [Path(str(whole).replace("0-of-00001", f"{number}-of-{len(parts):05}")) for number in range(len(parts))]
    for shard, part in zip(shards, parts, strict=True):
        write_shard(shard, part)
    with edited(inside(data_dir) / "dataset_info.json") as facts:
        (split,) = (split for split in facts["splits"] if split["name"] == "train")
        split["shardLengths"] = [str(len(part)) for part in parts]
    return shards
