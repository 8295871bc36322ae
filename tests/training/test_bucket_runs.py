"""A run in a bucket is the run in a directory, to the bit."""

from pathlib import Path

import pytest

from jaxclf import storage
from jaxclf.training import loop
from tests.training.runs import config, ended, stop_before_step

CONFIG = config(checkpoint_every=5, epochs=2)


def downloaded(url: str, directory: Path) -> Path:
    """Copy all objects below a URL into a directory."""
    place = storage.location(url)
    for name in storage.checksums(place):
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes((place / name).read_bytes())
    return directory


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that nothing stops."""
    workdir = tmp_path_factory.mktemp("local") / "run"
    loop.train(CONFIG, workdir, quiet=True)
    return workdir


@pytest.mark.slow
def test_a_run_in_a_bucket_that_was_stopped_ends_as_the_local_one(bucket: str, local: Path, tmp_path: Path) -> None:
    url = f"{bucket}/runs/one"
    stop_before_step(CONFIG, storage.location(url), 34)
    left = ["checkpoints", "config.json", "data.json", "environment.json", "heartbeat.json", "metrics.csv"]
    assert storage.names(storage.location(url)) == [*left, "metrics.jsonl"]
    result = loop.train(CONFIG, url, quiet=True)
    assert result.workdir == url
    assert ended(downloaded(url, tmp_path / "copy")) == ended(local)
