"""Images in buckets are the images of the directories that were copied there."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxclf import storage
from jaxclf.config import DataConfig
from jaxclf.data.decoding import decode
from jaxclf.errors import UsageError
from jaxclf.storage import location, places
from jaxclf.tools import inspection, preparation, verification
from tests.data.streamed import inside, streamed


def uploaded(directory: Path, url: str) -> str:
    """Copy all files below a directory to a URL."""
    for file in directory.rglob("*"):
        if file.is_file():
            (location(url) / str(file.relative_to(directory))).write_bytes(file.read_bytes())
    return url


def require_equal(local: DataConfig, remote: DataConfig, where: str) -> None:
    """Compare all that a run sees of two sets."""
    here, there = streamed(local), streamed(remote)
    assert here.class_names == there.class_names
    ours, theirs = here.sources(), there.sources()
    assert list(ours) == list(theirs) == ["train", "test"]
    for split, source in ours.items():
        other = theirs[split]
        assert len(source) == len(other) > 0
        assert source.labels().tolist() == other.labels().tolist()
        assert source.fingerprint() == other.fingerprint()
        assert other.name(0).startswith(where)
        for index in range(len(source)):
            one, two = source[index], other[index]
            assert one.label == two.label
            np.testing.assert_array_equal(decode(one.data, 3), decode(two.data, 3))


def test_a_folder_in_a_google_bucket(photo_folder: Path, bucket: str) -> None:
    url = uploaded(photo_folder, f"{bucket}/photos")
    require_equal(DataConfig(f"folder:{photo_folder}"), DataConfig(f"folder:{url}"), url)


@pytest.fixture(scope="module")
def s3_folder(photo_folder: Path, s3: Any) -> str:
    """photo_folder at s3://."""
    s3.mkdir("pictures")
    s3.put(str(photo_folder), "pictures/photos", recursive=True)
    return "s3://pictures/photos"


def test_a_folder_in_an_s3_bucket(photo_folder: Path, s3_folder: str) -> None:
    require_equal(DataConfig(f"folder:{photo_folder}"), DataConfig(f"folder:{s3_folder}"), s3_folder)


def test_a_folder_of_classes_alone_with_deep_and_hidden_ones(photo_folder: Path, bucket: str, tmp_path: Path) -> None:
    root = shutil.copytree(photo_folder / "train", tmp_path / "train")
    for name in (".hidden", "ant/deep", "ant/.deep"):
        (root / name).mkdir()
        shutil.copy(root / "bee" / "0.jpg", root / name / "9.jpg")
    url = uploaded(tmp_path, f"{bucket}/one")
    text = "2 hidden directories and images .* are left out"
    with pytest.warns(UserWarning, match="has no test images beside it"), pytest.warns(UserWarning, match=text):
        require_equal(DataConfig(f"folder:{root}"), DataConfig(f"folder:{url}/train"), url)


def test_a_tree_is_listed_by_one_find_and_an_image_is_one_request(
    photo_folder: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = uploaded(photo_folder, f"{bucket}/photos")
    dataset, calls = streamed(DataConfig(f"folder:{url}")), []
    real = type(places.filesystem("gs"))._call

    def counted(self: Any, method: str, path: str, *args: Any, **given: Any) -> Any:
        calls.append(method)
        return real(self, method, path, *args, **given)

    monkeypatch.setattr(type(places.filesystem("gs")), "_call", counted)
    train = dataset.open_split("train")
    assert len(calls) <= 6  # of 32 images in 4 classes: is it there, which classes has it, all below it
    calls.clear()
    assert len(train[0].data) > 0
    assert calls == ["GET"]


def test_a_folder_that_is_not_there(bucket: str) -> None:
    with pytest.raises(UsageError, match=rf"^folder:{bucket}/none: there is no directory {bucket}/none"):
        streamed(DataConfig(f"folder:{bucket}/none"))


@pytest.mark.slow
def test_a_set_of_tfds_in_a_google_bucket(own_imagenet: Path, bucket: str) -> None:
    url = uploaded(own_imagenet, f"{bucket}/tfds")
    local, remote = (DataConfig("synthetic_imagenet", data_dir=str(place)) for place in (own_imagenet, url))
    require_equal(local, remote, url)
    index = "jaxclf-labels-train.npy"
    there = location(url) / "synthetic_imagenet" / "1.0.0"
    assert (there / index).read_bytes() == (inside(own_imagenet) / index).read_bytes()
    found = [list(verification.verify("synthetic_imagenet", data_dir=str(place))) for place in (own_imagenet, url)]
    assert found[0] == found[1] == ["train: 64 images", "validation: 16 images", "80 images, all readable"]
    known = [inspection.inspect("synthetic_imagenet", data_dir=str(place)) for place in (own_imagenet, url)]
    assert list(inspection.describe(known[0])) == list(inspection.describe(known[1]))
    shard = next(name for name in storage.names(there) if "-train.array_record" in name)
    (there / shard).write_bytes((there / shard).read_bytes()[:-1000])
    with pytest.raises(UsageError, match=r"64 of 80 images cannot be used"):
        list(verification.verify("synthetic_imagenet", data_dir=url))
    (there / shard).unlink()
    with pytest.raises(UsageError, match=rf"{shard} is missing"):
        streamed(remote).sources()


def test_a_set_is_prepared_in_a_local_directory_alone(bucket: str) -> None:
    with pytest.raises(UsageError, match=rf"^{bucket}/mnist/3\.0\.1 must be a local path; what is written there"):
        preparation.prepare("mnist", data_dir=bucket)
