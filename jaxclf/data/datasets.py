"""The data sets: tables of facts, and reading the small ones into memory.

A set of the table `DATASETS` has images of one size and is resident: `load` reads it, without TensorFlow, from what
TFDS prepared (preparation.py) or from this package. All others are streamed (sources.py): those of `STREAMED`, any
image classification set that TFDS knows by name, and folders.

>>> info("digits").image_shape
(8, 8, 1)
"""

import dataclasses
import difflib
import importlib.resources
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int32, UInt8

from jaxclf.errors import UsageError, unknown

SPLITS = ("train", "test")
FOLDER = "folder:"
"""How the name of a set in folders begins; its directory follows."""
TRAIN_FOLDERS, TEST_FOLDERS = ("train",), ("test", "val", "valid", "validation")
"""Directories of a folder set that are taken for its splits, the first that is there; TFDS's names of splits too."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""torchvision's constants for ImageNet, which streamed sets of three channels take unless the config says others."""

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
    """Name, as `data.dataset` has it."""
    num_classes: int
    """Number of classes; labels are 0 to num_classes - 1."""
    image_shape: tuple[int, int, int] | None
    """(h, w, c) in pixels; None: they differ in size, and the set is streamed."""
    class_names: tuple[str, ...]
    """One name per label, in label order."""
    train_examples: int | None
    """Images in the train split; None is known once the set is read."""
    test_examples: int | None
    """Images in the test split, likewise."""
    mean: tuple[float, ...]
    """Mean per channel on the 0..1 scale, for normalisation; empty where nobody has said it."""
    std: tuple[float, ...]
    """Standard deviation per channel on the 0..1 scale, likewise."""
    tfds: str | None
    """Name of the TFDS builder; None ships in this package, or lies in folders."""
    source: str
    """Origin, and licence where known."""
    splits: tuple[str, str] = SPLITS
    """What TFDS, or the directory, calls the training and the test images."""
    channels: int = 3
    """Of streamed images."""

    @property
    def streamed(self) -> bool:
        """Whether images are read while the run goes on, instead of before it."""
        return self.image_shape is None

    def examples(self, split: str) -> int | None:
        """Return the number of images in a split."""
        return self.train_examples if split == "train" else self.test_examples


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """The images of a split and their labels, in memory."""

    images: UInt8[np.ndarray, "n h w c"]
    """Pixels, 0..255."""
    labels: Int32[np.ndarray, " n"]
    """Class of each image."""


def info(name: str, data_dir: str | os.PathLike[str] | None = None) -> DatasetInfo:
    """Return the facts of a data set.

    `name` is one of `DATASETS` or `STREAMED`, that of any image classification set of TFDS, or folder:PATH. Of a set
    that is in no table, what is prepared in `data_dir` is asked first. Raises `UsageError` for a name that TFDS does
    not know either, a TFDS set without image and label, and a folder that is none.
    """
    if name in DATASETS:
        return DATASETS[name]
    return _folder_info(name) if name.startswith(FOLDER) else _tfds_info(name, data_dir)


def _folder_info(name: str) -> DatasetInfo:
    root = folder_root(name)
    if not root.is_dir():
        raise UsageError(f"{name}: there is no directory {root}")
    inside = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    train = next((split for split in TRAIN_FOLDERS if split in inside), None)
    test = next((split for split in TEST_FOLDERS if split in inside), None)
    if train is None or test is None:
        raise UsageError(
            f"{root} must hold the directories train and {' or '.join(TEST_FOLDERS)}, each with a directory for every "
            f"class; it holds {', '.join(inside[:10]) or 'none'}"
        )
    names = folder_classes(root / train)
    return DatasetInfo(
        *(name, len(names), None, names, None, None, IMAGENET_MEAN, IMAGENET_STD, None),
        source=f"folders in {root}",
        splits=(train, test),
    )


def folder_root(name: str) -> Path:
    """Return the directory of a set named folder:PATH."""
    return Path(name.removeprefix(FOLDER)).expanduser().absolute()


def folder_classes(directory: Path) -> tuple[str, ...]:
    """Return the sorted names of the directories in a directory; `UsageError` without any."""
    try:
        names = sorted(entry.name for entry in os.scandir(directory) if entry.is_dir())
    except OSError as error:
        raise UsageError(f"cannot read {directory}: {error.strerror}") from error
    if not names:
        raise UsageError(f"{directory} has no directories; each class must be one, with its images in it")
    return tuple(names)


def _tfds_info(name: str, data_dir: str | os.PathLike[str] | None) -> DatasetInfo:
    known = STREAMED.get(name)
    builder = open_builder(name, data_dir)
    features = builder.info.features
    kinds = {key: type(feature).__name__ for key, feature in (features or {}).items()}
    if (kinds.get("image"), kinds.get("label")) != ("Image", "ClassLabel"):
        raise UsageError(f"{name} is no image classification set: it has {kinds}, but must have an image and a label")
    channels, labels = features["image"].shape[-1], features["label"]
    found = {split: part.num_examples for split, part in builder.info.splits.items()}
    test = next((split for split in TEST_FOLDERS if split in found), "test")
    splits = known.splits if known else (SPLITS[0], test)
    return DatasetInfo(
        name=name,
        num_classes=labels.num_classes,
        image_shape=None,
        class_names=IMAGENET_CLASSES if name == "imagenet2012" else tuple(labels.names),
        train_examples=found.get(splits[0], known.train_examples if known else None),
        test_examples=found.get(splits[1], known.test_examples if known else None),
        mean=IMAGENET_MEAN if channels == 3 else (),
        std=IMAGENET_STD if channels == 3 else (),
        tfds=name,
        source=known.source if known else f"TFDS {builder.info.full_name}",
        splits=splits,
        channels=channels,
    )


def load(name: str, split: str, *, data_dir: str | os.PathLike[str] | None = None, classes: int | None = None) -> Split:
    """Read a split into memory, in the stored order, which is the same on every call.

    TFDS stores a set in the fixed pseudo-random order of its keys' hashes, not in the order of the original files.

    Args:
      name: a data set of `DATASETS`.
      split: "train" or "test".
      data_dir: TFDS directory; None is TFDS's own default. The digits need none.
      classes: keep only the images of the first N classes; None keeps all.

    Raises:
      UsageError: a name that is not in `DATASETS`, an unknown split, `classes` outside 2..num_classes, a set that is
        not prepared, or a prepared one that cannot be read or is not what the table says.

    >>> load("digits", "test").images.shape
    (445, 8, 8, 1)
    """
    if name not in DATASETS:
        raise unknown("data set that fits into memory", name, DATASETS)
    facts = info(name)
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    check_classes(facts, classes)
    whole = _digits(split) if facts.tfds is None else _prepared(facts, split, data_dir)
    if classes is None:
        return whole
    keep = whole.labels < classes
    return Split(images=whole.images[keep], labels=whole.labels[keep])


def check_classes(facts: DatasetInfo, classes: int | None) -> None:
    """Raise `UsageError` for a number of first classes that a set does not have."""
    if classes is not None and not 2 <= classes <= facts.num_classes:
        raise UsageError(f"classes is {classes} but {facts.name} allows 2 to {facts.num_classes}")


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
    builder = open_prepared(facts, data_dir)
    assert facts.image_shape is not None
    count = builder.info.splits[split].num_examples
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
        raise unreadable(facts.name, builder.data_dir, error) from error
    return Split(images=images, labels=labels)


def open_builder(name: str, data_dir: str | os.PathLike[str] | None) -> Any:
    """Return TFDS's builder of a set over `data_dir`, from the files there or from TFDS's code.

    Raises `UsageError` for a name that neither knows, a directory that is not on a file system of this machine, and
    metadata that does not parse.
    """
    import tensorflow_datasets as tfds

    if data_dir is not None and "://" in str(data_dir):
        raise UsageError(f"data_dir {data_dir} is no path; mount the bucket (gcsfuse, mountpoint-s3) and give its path")
    directory = None if data_dir is None else Path(data_dir).expanduser()
    build = tfds.builder  # TFDS logs a failed import of its own and goes on without its names: no fault of the set
    try:
        return build(name, data_dir=directory)
    except tfds.core.DatasetNotFoundError as error:
        raise _unknown_set(name, tfds.list_builders(with_community_datasets=False)) from error
    except Exception as error:  # TFDS re-raises whatever the parser of its JSON files raised
        raise unreadable(name, f"{directory or 'TFDS_DATA_DIR'}/{name}", error) from error


def _unknown_set(name: str, registered: list[str]) -> UsageError:
    near = difflib.get_close_matches(name, [*DATASETS, *STREAMED, *registered], n=2, cutoff=0.6)
    hint = f"; did you mean {' or '.join(map(repr, dict.fromkeys(near)))}?" if near else "."
    return UsageError(
        f"unknown data set {name!r}{hint} Valid: {', '.join([*DATASETS, *STREAMED])}, "
        "any image classification set of TFDS by its name, folder:PATH"
    )


def open_prepared(facts: DatasetInfo, data_dir: str | os.PathLike[str] | None) -> Any:
    """Return the builder of a set that is prepared, whole and what the tables say; else `UsageError` says how to."""
    builder = open_builder(str(facts.tfds), data_dir)
    if not Path(builder.data_dir).exists():
        raise UsageError(
            f"{facts.name} is not prepared: there is no {builder.data_dir}; "
            f"run `jaxclf data prepare {facts.name} --data-dir {builder.data_dir_root}`"
        )
    check(facts, builder)
    return builder


def check(facts: DatasetInfo, builder: Any) -> None:
    """Compare a prepared set with its metadata and its table; every difference is listed in one `UsageError`."""
    if not builder.is_prepared():
        raise unreadable(facts.name, builder.data_dir, "dataset_info.json is missing")
    stored = builder.info.file_format.value
    if stored != "array_record":
        raise unreadable(facts.name, builder.data_dir, f"it is stored as {stored}, not as array_record")
    found = {name: split.num_examples for name, split in builder.info.splits.items()}
    table = {} if facts.streamed and facts.name not in STREAMED else dict(zip(facts.splits, SPLITS, strict=True))
    known = STREAMED.get(facts.name, facts)
    faults = [
        f"{split} has {found.get(split, 0)} examples instead of {known.examples(ours)}"
        for split, ours in table.items()
        if found.get(split) != known.examples(ours)
    ]
    if not facts.streamed and tuple(builder.info.features["label"].names) != facts.class_names:
        faults.append("the class names differ")
    files = [file for split in builder.info.splits.values() for file in split.filepaths]
    faults += [f"{Path(file).name} is missing" for file in files if not Path(file).exists()]
    if faults:
        raise unreadable(facts.name, builder.data_dir, ", ".join(faults))


def unreadable(name: str, directory: object, reason: object) -> UsageError:
    """Return the error for a prepared set that is there but cannot be used."""
    return UsageError(
        f"the prepared {name} in {directory} cannot be used ({one_line(reason)}); "
        f"delete that directory and run `jaxclf data prepare {name}`, or choose another --data-dir"
    )


def one_line(reason: object) -> str:
    """Return a text, or an exception's type and text, as one line."""
    if isinstance(reason, Exception):
        reason = f"{type(reason).__name__}: {str(reason).strip()}"
    return " ".join(str(reason).split())


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
"""Every resident data set by name."""


@dataclasses.dataclass(frozen=True)
class StreamedInfo:
    """What is known of a streamed set before it is prepared; class names and the rest are TFDS's."""

    train_examples: int
    test_examples: int
    splits: tuple[str, str]
    source: str

    def examples(self, split: str) -> int:
        """Return the number of images in a split."""
        return self.train_examples if split == "train" else self.test_examples


STREAMED = {
    "imagenet2012": StreamedInfo(
        *(1_281_167, 50_000, ("train", "validation")),
        source="Russakovsky et al. 2015, image-net.org, ILSVRC 2012; non-commercial research.",
    ),
    "cars196": StreamedInfo(
        *(8_144, 8_041, ("train", "test")), source="Krause et al. 2013, Stanford Cars; no licence stated."
    ),
    "oxford_flowers102": StreamedInfo(
        *(1_020, 6_149, ("train", "test")),
        source="Nilsback and Zisserman 2008, robots.ox.ac.uk/~vgg/data/flowers/102; no licence stated.",
    ),
}
"""Streamed sets of the thesis by name. Flowers has 1,020 more images, TFDS's split `validation`."""
