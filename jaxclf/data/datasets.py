"""The data sets: a table of facts, and reading what the table names.

`load` reads without TensorFlow: TFDS sets prepared as array_record (preparation.py), or the digits of this package.

>>> info("digits").image_shape
(8, 8, 1)
"""

import dataclasses
import importlib.resources
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int32, UInt8

from jaxclf.config import UsageError, unknown

SPLITS = ("train", "test")

READ_SLICE = 2048
"""Examples decoded at once; only bounds the memory that decoded records hold beside the result."""

IMAGENET_CLASSES = tuple((importlib.resources.files("jaxclf.data") / "imagenet_classes.txt").read_text().splitlines())
"""Names of ImageNet-1K's classes in WordNet-id order, as torchvision 0.28 lists them (WordNet's first synonyms)."""

DIGITS_TEST_EVERY = 4
"""Of every class of the digits, in file order, each 4th image is a test image."""


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before it is read."""

    name: str
    """Name in `DATASETS`."""
    num_classes: int
    """Number of classes; labels are 0 to num_classes - 1."""
    image_shape: tuple[int, int, int]
    """(h, w, c) in pixels."""
    class_names: tuple[str, ...]
    """One name per label, in label order."""
    train_examples: int
    """Images in the train split."""
    test_examples: int
    """Images in the test split."""
    mean: tuple[float, ...]
    """Mean per channel on the 0..1 scale, for normalisation."""
    std: tuple[float, ...]
    """Standard deviation per channel on the 0..1 scale, for normalisation."""
    tfds: str | None
    """Name of the TFDS builder; None ships in this package."""
    source: str
    """Origin, and licence where known."""

    def examples(self, split: str) -> int:
        """Return the number of images in a split."""
        return self.train_examples if split == "train" else self.test_examples


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """The images of a split and their labels, in memory."""

    images: UInt8[np.ndarray, "n h w c"]
    """Pixels, 0..255."""
    labels: Int32[np.ndarray, " n"]
    """Class of each image."""


def info(name: str) -> DatasetInfo:
    """Return the facts of a data set; an unknown name raises `UsageError`."""
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    return DATASETS[name]


def load(name: str, split: str, *, data_dir: str | os.PathLike[str] | None = None, classes: int | None = None) -> Split:
    """Read a split into memory, in the stored order, which is the same on every call.

    TFDS stores a set in the fixed pseudo-random order of its keys' hashes, not in the order of the original files.

    Args:
      name: a data set of `DATASETS`.
      split: "train" or "test".
      data_dir: TFDS directory; None is TFDS's own default. The digits need none.
      classes: keep only the images of the first N classes; None keeps all.

    Raises:
      UsageError: unknown name or split, `classes` outside 2..num_classes, a set that is not prepared, or a prepared
        one that cannot be read or is not what the table says.

    >>> load("digits", "test").images.shape
    (445, 8, 8, 1)
    """
    facts = info(name)
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if classes is not None and not 2 <= classes <= facts.num_classes:
        raise UsageError(f"classes is {classes} but {name} allows 2 to {facts.num_classes}")
    whole = _digits(split) if facts.tfds is None else _prepared(facts, split, data_dir)
    if classes is None:
        return whole
    keep = whole.labels < classes
    return Split(images=whole.images[keep], labels=whole.labels[keep])


def statistics(split: Split) -> tuple[Float64[np.ndarray, " c"], Float64[np.ndarray, " c"]]:
    """Return the mean and the (biased) standard deviation of each channel on the 0..1 scale.

    mean = sum(v) / n / 255 and std = sqrt(sum(v^2) / n - (sum(v) / n)^2) / 255 over all n pixels; both sums are exact
    integers, so neither the order nor the number of images costs precision.
    """
    images = split.images  # [n h w c]
    pixels = images.shape[0] * images.shape[1] * images.shape[2]
    mean = images.sum(axis=(0, 1, 2), dtype=np.uint64) / pixels
    square = np.square(images, dtype=np.uint16).sum(axis=(0, 1, 2), dtype=np.uint64) / pixels
    return mean / 255, np.sqrt(square - mean**2) / 255


def _digits(split: str) -> Split:
    """Read the digits from this package; pixels 0..16 become 0..255, rounded."""
    with (importlib.resources.files("jaxclf.data") / "digits.npz").open("rb") as file, np.load(file) as arrays:
        images, labels = arrays["images"], arrays["labels"].astype(np.int32)
    chosen = _digits_test(labels) == (split == "test")
    pixels = np.round(images[chosen] * (255 / 16)).astype(np.uint8)
    return Split(images=pixels[..., np.newaxis], labels=labels[chosen])


def _digits_test(labels: Int32[np.ndarray, " n"]) -> np.ndarray:
    """Return which digits are test images, bool [n]: a rule over the file order, so no generator's version matters."""
    test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        test[np.flatnonzero(labels == label)[DIGITS_TEST_EVERY - 1 :: DIGITS_TEST_EVERY]] = True
    return test


def _prepared(facts: DatasetInfo, split: str, data_dir: str | os.PathLike[str] | None) -> Split:
    """Read a split of a prepared TFDS set."""
    builder = open_builder(facts, data_dir)
    if not Path(builder.data_dir).exists():
        raise UsageError(
            f"{facts.name} is not prepared: there is no {builder.data_dir}; "
            f"run `jaxclf data prepare {facts.name} --data-dir {builder.data_dir_root}`"
        )
    check(facts, builder)
    count = facts.examples(split)
    images = np.empty((count, *facts.image_shape), np.uint8)  # [n h w c]
    labels = np.empty(count, np.int32)
    try:
        records = builder.as_data_source(split)
        for start in range(0, count, READ_SLICE):
            part = records.__getitems__(range(start, min(start + READ_SLICE, count)))
            images[start : start + len(part)] = [example["image"] for example in part]
            labels[start : start + len(part)] = [example["label"] for example in part]
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # array_record raises RuntimeError, TFDS and the PNG decoder whatever they meet
        raise unreadable(facts, builder.data_dir, error) from error
    return Split(images=images, labels=labels)


def open_builder(facts: DatasetInfo, data_dir: str | os.PathLike[str] | None) -> Any:
    """Return the set's TFDS builder over `data_dir`; a metadata file that does not parse raises `UsageError`."""
    import tensorflow_datasets as tfds

    directory = None if data_dir is None else Path(data_dir).expanduser()
    build = tfds.builder  # TFDS logs a failed import of its own and goes on without its names: no fault of the set
    try:
        return build(str(facts.tfds), data_dir=directory)
    except Exception as error:  # TFDS re-raises whatever the parser of its JSON files raised
        raise unreadable(facts, f"{directory or 'TFDS_DATA_DIR'}/{facts.tfds}", error) from error


def check(facts: DatasetInfo, builder: Any) -> None:
    """Compare a prepared set's metadata with the table; every difference is listed in one `UsageError`."""
    if not builder.is_prepared():
        raise unreadable(facts, builder.data_dir, "dataset_info.json is missing")
    stored = builder.info.file_format.value
    if stored != "array_record":
        raise unreadable(facts, builder.data_dir, f"it is stored as {stored}, not as array_record")
    found = {name: split.num_examples for name, split in builder.info.splits.items()}
    faults = [
        f"{split} has {found.get(split, 0)} examples instead of {facts.examples(split)}"
        for split in SPLITS
        if found.get(split) != facts.examples(split)
    ]
    if tuple(builder.info.features["label"].names) != facts.class_names:
        faults.append("the class names differ")
    if faults:
        raise unreadable(facts, builder.data_dir, ", ".join(faults))


def unreadable(facts: DatasetInfo, directory: object, reason: object) -> UsageError:
    """Return the error for a prepared set that is there but cannot be used."""
    if isinstance(reason, Exception):
        reason = f"{type(reason).__name__}: {str(reason).strip()}"
    line = " ".join(str(reason).split())
    return UsageError(
        f"the prepared {facts.name} in {directory} cannot be used ({line}); "
        f"delete that directory and run `jaxclf data prepare {facts.name}`, or choose another --data-dir"
    )


_TEN_DIGITS = tuple("0123456789")

_CIFAR10_CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())  # noqa: SIM905

# Fine labels in the order of the archive's fine_label_names.txt, which TFDS takes over.
_CIFAR100_CLASSES = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
    """.split()  # noqa: SIM905
)

DATASETS: dict[str, DatasetInfo] = {
    facts.name: facts
    for facts in (
        DatasetInfo(
            name="digits",
            num_classes=10,
            image_shape=(8, 8, 1),
            class_names=_TEN_DIGITS,
            train_examples=1352,
            test_examples=445,
            mean=(0.3049,),  # measured on our train split
            std=(0.3756,),  # measured on our train split
            tfds=None,
            source="Optical Recognition of Handwritten Digits, UCI (doi 10.24432/C50P49), test part as in scikit-learn;"
            " CC BY 4.0.",
        ),
        DatasetInfo(
            name="mnist",
            num_classes=10,
            image_shape=(28, 28, 1),
            class_names=_TEN_DIGITS,
            train_examples=60_000,
            test_examples=10_000,
            mean=(0.1307,),  # pytorch/examples, mnist/main.py
            std=(0.3081,),  # pytorch/examples, mnist/main.py
            tfds="mnist",
            source="LeCun, Cortes and Burges, yann.lecun.com/exdb/mnist; no licence stated.",
        ),
        DatasetInfo(
            name="fashion_mnist",
            num_classes=10,
            image_shape=(28, 28, 1),
            class_names=(
                "T-shirt/top",
                "Trouser",
                "Pullover",
                "Dress",
                "Coat",
                "Sandal",
                "Shirt",
                "Sneaker",
                "Bag",
                "Ankle boot",
            ),
            train_examples=60_000,
            test_examples=10_000,
            mean=(0.2860,),  # measured on the train split: .28604
            std=(0.3530,),  # measured on the train split: .35302
            tfds="fashion_mnist",
            source="Xiao, Rasul and Vollgraf, arXiv:1708.07747, github.com/zalandoresearch/fashion-mnist; MIT.",
        ),
        DatasetInfo(
            name="cifar10",
            num_classes=10,
            image_shape=(32, 32, 3),
            class_names=_CIFAR10_CLASSES,
            train_examples=50_000,
            test_examples=10_000,
            mean=(0.4914, 0.4822, 0.4465),  # hoya012: the true statistics of the train split
            std=(0.2470, 0.2435, 0.2616),  # hoya012; bearpaw's .2023 .1994 .2010, widely copied, is too small
            tfds="cifar10",
            source="Krizhevsky 2009, cs.toronto.edu/~kriz/cifar.html; no licence stated.",
        ),
        DatasetInfo(
            name="cifar100",
            num_classes=100,
            image_shape=(32, 32, 3),
            class_names=_CIFAR100_CLASSES,
            train_examples=50_000,
            test_examples=10_000,
            mean=(0.5070752, 0.4865489, 0.4409178),  # weiaicunzai: the true statistics of the train split
            std=(0.2673343, 0.2564385, 0.2761505),  # weiaicunzai; bearpaw, which the thesis cites, has CIFAR-10's
            tfds="cifar100",
            source="Krizhevsky 2009, cs.toronto.edu/~kriz/cifar.html, fine labels; no licence stated.",
        ),
    )
}
"""Every data set by name."""
