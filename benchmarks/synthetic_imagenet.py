"""A synthetic ImageNet: photographs, tinted and cropped by class, with noise, as a prepared TFDS set or as a folder.

Run:  python benchmarks/synthetic_imagenet.py DIRECTORY [--folder DIRECTORY] [--classes 1000] [--train-per-class 4] ...
Building takes scikit-image and scikit-learn, whose wheels hold the photographs, and importlib-resources, which TFDS
does not declare; no network, and no TensorFlow, which TFDS 4.9.10 does not import for images that come encoded. 1,000
classes and 5,000 images of 110 kB, 0.6 GB, take about a minute on one core. Reading takes none of these:

    source = tfds.builder_from_directory(DIRECTORY/synthetic_imagenet/1.0.0).as_data_source("train")

It stands in for ImageNet where only the cost of reading, decoding and cropping counts: the records have the features
of TFDS's imagenet2012 (image, label, file_name), the images about its sizes in pixels and bytes. The proportions in
`SIZES` and the spread are chosen to resemble it, not measured on it. What decides an image's class is a photograph, a
region of it and a tint, so a network can learn the classes; accuracy on them says nothing about ImageNet.

One image in 100 is odd as some of ImageNet's are: grey, CMYK, a PNG under a .JPEG name, or turned with the turn noted
in EXIF. Every image depends on the recipe and its own number alone. The same bytes come out wherever Pillow's libjpeg
is the same; another one may round otherwise.
"""

import dataclasses
import functools
import importlib.util
import io
import json
import math
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import rich.progress
import tyro
from PIL import Image

from jaxclf.errors import UsageError

Split = Literal["train", "validation"]
NAME, VERSION = "synthetic_imagenet", "1.0.0"
FORMAT = 1
"""Part of the stored parameters. To be raised with every change of the bytes, or old sets would pass for new ones."""
STREAMS = {"train": 0, "validation": 1, "class": 2}
"""The second word of the key (seed, stream, number) of every random generator."""
PHOTOGRAPHS = {
    "skimage/data": (
        *("astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png"),
        *("coins.png", "grass.png", "gravel.png", "horse.png", "hubble_deep_field.jpg", "ihc.png", "moon.png"),
        *("motorcycle_left.png", "motorcycle_right.png", "retina.jpg", "rocket.jpg"),
    ),
    "sklearn/datasets/images": ("china.jpg", "flower.jpg"),
}
SIZES = {
    (500, 375): 0.42,
    (375, 500): 0.17,
    (500, 333): 0.10,
    (333, 500): 0.06,
    (500, 400): 0.04,
    (400, 500): 0.02,
    (500, 500): 0.04,
    (400, 300): 0.04,
    (250, 188): 0.03,
    (188, 250): 0.01,
    (640, 480): 0.05,
    (1024, 768): 0.02,
}
"""(width, height) in pixels -> share of the images, for images of 110 kB; others are scaled to as many bits a pixel."""
SPREAD = 0.35
"""Standard deviation of the logarithm of the bytes, among images of one size."""
ODD = {5: "grey", 12: "cmyk", 19: "png", 26: "exif"}
"""Number within its split, modulo 400 -> kind. All within the first 40, so that a test's small set has them too."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What the images depend on."""

    classes: int = 1000
    """Classes, 1 to 1000."""
    train_per_class: int = 4
    """Images of each class in `train`."""
    validation_per_class: int = 1
    """Images of each class in `validation`."""
    kilobytes: int = 110
    """Median size of an image in units of 1000 bytes; the pixels follow it, 110 being 500 x 375. At least 3."""
    seed: int = 0
    """Another one gives other classes and other images."""

    def __post_init__(self):
        allowed = {
            "classes": (1, 1000),
            "train_per_class": (1, None),
            "validation_per_class": (1, None),
            "kilobytes": (3, 1000),
            "seed": (0, None),
        }
        faults = [
            f"{field} is {value} but {low} to {high or 'any'} is allowed"
            for field, (low, high) in allowed.items()
            if (value := getattr(self, field)) < low or (high is not None and value > high)
        ]
        if faults:
            raise UsageError(f"{NAME}: {'; '.join(faults)}")

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name for each label, in the shape of ImageNet's wnids and, like them, sorted."""
        return tuple(_wnid(label) for label in range(self.classes))

    def count(self, split: Split) -> int:
        """Return the number of images of a split."""
        return self.classes * (self.train_per_class if split == "train" else self.validation_per_class)

    def parameters(self) -> dict[str, int]:
        """Return what is stored beside a set, to be compared before it is used again."""
        return {"format": FORMAT, **dataclasses.asdict(self)}


class Example(NamedTuple):
    """One encoded image."""

    image: bytes
    label: int
    name: str


def build(
    directory: Path,
    *,
    classes: int = Recipe.classes,
    train_per_class: int = Recipe.train_per_class,
    validation_per_class: int = Recipe.validation_per_class,
    kilobytes: int = Recipe.kilobytes,
    seed: int = Recipe.seed,
    progress: bool = False,
) -> Path:
    """Let a TFDS builder prepare the set, as array_record, and return <directory>/synthetic_imagenet/1.0.0.

    A set that is already there returns at once. TFDS writes into a directory of another name
    and renames it at the end, so what is there is whole. TFDS's own progress bars, which know no total, are switched
    off for the process; `progress` shows ours.

    Raises `UsageError` for parameters out of range, for a set of other parameters in the same place, and for missing
    packages.
    """
    recipe = Recipe(classes, train_per_class, validation_per_class, kilobytes, seed)
    prepared = Path(directory).expanduser() / NAME / VERSION
    if not _present(prepared, prepared / "metadata.json", recipe):
        _require("importlib_resources", *(folder.split("/")[0] for folder in PHOTOGRAPHS))
        import tensorflow_datasets as tfds

        tfds.display_progress_bar(False)
        _builder(recipe, prepared.parents[1], progress=progress).download_and_prepare(file_format="array_record")
    return prepared


def write_folder(
    directory: Path,
    *,
    classes: int = Recipe.classes,
    train_per_class: int = Recipe.train_per_class,
    validation_per_class: int = Recipe.validation_per_class,
    kilobytes: int = Recipe.kilobytes,
    seed: int = Recipe.seed,
    progress: bool = False,
) -> Path:
    """Write the same images as <directory>/train/CLASS/NAME.JPEG and validation/CLASS/NAME.JPEG; return `directory`.

    They are written into a directory of another name, which is renamed at the end. A folder that is already there
    returns at once. Raises `UsageError` as `build` does, and for a directory that holds something else.
    """
    recipe = Recipe(classes, train_per_class, validation_per_class, kilobytes, seed)
    directory = Path(directory).expanduser()
    if _present(directory, directory / f"{NAME}.json", recipe):
        return directory
    unfinished = directory.with_name(f"{directory.name}.incomplete")
    shutil.rmtree(unfinished, ignore_errors=True)
    for split in ("train", "validation"):
        for name in recipe.class_names:
            (unfinished / split / name).mkdir(parents=True)
        for example in _shown(examples(recipe, split), recipe, split, progress=progress):
            (unfinished / split / recipe.class_names[example.label] / example.name).write_bytes(example.image)
    (unfinished / f"{NAME}.json").write_text(json.dumps(recipe.parameters()))
    unfinished.rename(directory)  # over an empty directory too
    return directory


def examples(recipe: Recipe, split: Split) -> Iterator[Example]:
    """Yield a split's images in the order of their numbers: one of each class, then the next of each."""
    for number in range(recipe.count(split)):
        yield example(recipe, split, number)


def example(recipe: Recipe, split: Split, number: int) -> Example:
    """Make one image: crop of the class's photograph, class's tint, noise, and the quality that gives it its bytes."""
    rng = np.random.default_rng([recipe.seed, STREAMS[split], number])
    label = number % recipe.classes
    scale = math.sqrt(recipe.kilobytes / Recipe.kilobytes)
    nominal = list(SIZES)[rng.choice(len(SIZES), p=list(SIZES.values()))]
    width, height = (max(8, round(side * scale)) for side in nominal)
    # Larger images have more bytes, but fewer for each pixel.
    target = 1000 * recipe.kilobytes * (math.prod(nominal) / (500 * 375)) ** 0.8 * math.exp(SPREAD * rng.normal())
    # Most of ImageNet is stored at high quality. Noise that grows with the bits a pixel keeps it there, and the
    # decoder's work, which goes by the bits, is the same whether they hold detail or noise.
    amplitude = 2.0 * rng.uniform(0.7, 1.3) * min(8 * target / (width * height), 12.0)
    picture = _noisy(_picture(recipe, label, width, height, rng), amplitude, rng)
    name = f"{_wnid(label)}_{number}.JPEG" if split == "train" else f"ILSVRC2012_val_{number + 1:08d}.JPEG"
    return Example(_encode(picture, target, ODD.get(number % 400)), label, name)


def _wnid(label: int) -> str:
    """Return a name for a label that looks like those of ImageNet: 1,000 of them span the same range."""
    return f"n{1_440_764 + 13_648 * label:08d}"


def _picture(recipe: Recipe, label: int, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Return a crop of the class's photograph in its colours; `rng` moves, zooms and mirrors it."""
    of_class = np.random.default_rng([recipe.seed, STREAMS["class"], label])
    photographs = _photographs()
    photograph = photographs[(label + recipe.seed) % len(photographs)]
    centre = of_class.uniform(0.25, 0.75, 2) + rng.uniform(-0.05, 0.05, 2)
    zoom = of_class.uniform(0.4, 0.9) * rng.uniform(0.9, 1.1)
    gain, offset = of_class.uniform(0.45, 1.0, 3), of_class.uniform(0.0, 70.0, 3)

    extent = np.array([width, height]) * zoom * min(photograph.width / width, photograph.height / height)
    corner = np.clip(centre * photograph.size - extent / 2, 0.0, photograph.size - extent)
    box: Any = (*corner.tolist(), *(corner + extent).tolist())
    crop = photograph.resize((width, height), Image.Resampling.BILINEAR, box=box)
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    tint = np.clip(np.arange(256) * gain[:, None] + offset[:, None], 0, 255).astype(np.uint8)  # [channel value]
    return crop.point(tint.ravel().tolist())


@functools.cache
def _photographs() -> tuple[Image.Image, ...]:
    """Return the photographs in RGB, from the files of the installed packages."""
    _require(*(folder.split("/")[0] for folder in PHOTOGRAPHS))
    found = []
    for folder, names in PHOTOGRAPHS.items():
        package, *rest = folder.split("/")
        spec = importlib.util.find_spec(package)  # importing scikit-learn would take longer than a test's whole set
        assert spec is not None
        assert spec.submodule_search_locations
        for name in names:
            with Image.open(Path(spec.submodule_search_locations[0]).joinpath(*rest, name)) as image:
                found.append(image.convert("RGB"))
    return tuple(found)


def _noisy(picture: Image.Image, amplitude: float, rng: np.random.Generator) -> Image.Image:
    """Add normal noise to the brightness. Noise in the colours would mostly go where JPEG halves their resolution."""
    noise = (amplitude * rng.standard_normal((picture.height, picture.width, 1), np.float32)).astype(np.int16)
    return Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))


def _encode(picture: Image.Image, target: float, kind: str | None) -> bytes:
    """Return the bytes of a picture of a kind of `ODD`, or a usual one, about `target` of them."""
    if kind == "png":
        return _png(picture, target)
    if kind == "grey":
        return _jpeg(picture.convert("L"), target)
    if kind == "cmyk":
        return _jpeg(picture.convert("CMYK"), target)
    if kind == "exif":
        exif = Image.Exif()
        exif[0x0112] = 6  # Orientation: to be shown turned clockwise by 90 degrees
        return _jpeg(picture.transpose(Image.Transpose.ROTATE_90), target, exif=exif)
    return _jpeg(picture, target)


def _jpeg(picture: Image.Image, target: float, **options: Any) -> bytes:
    """Return a JPEG at the quality that comes nearest to `target` bytes, of at most four that are tried.

    The logarithm of the bytes is nearly linear in log(101 - quality), with slope -0.6 on these images: the first
    guess is mostly the last but one.
    """
    tried: dict[int, bytes] = {}
    quality = 96
    while quality not in tried and len(tried) < 4:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality, **options)
        tried[quality] = file.getvalue()
        excess = math.log(len(tried[quality]) / target)
        if abs(excess) < 0.05:
            break
        quality = min(max(round(101 - (101 - quality) * math.exp(excess / 0.6)), 10), 100)
    return min(tried.values(), key=lambda data: abs(math.log(len(data) / target)))


def _png(picture: Image.Image, target: float) -> bytes:
    """Return a PNG of about `target` bytes: it has no quality to lower, so it has fewer pixels."""
    for _ in range(2):
        file = io.BytesIO()
        picture.save(file, "PNG")
        factor = math.sqrt(target / len(file.getvalue()))
        if factor > 0.95:
            break
        width, height = (max(8, round(side * factor)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return file.getvalue()


def _builder(recipe: Recipe, data_dir: Path, *, progress: bool) -> Any:
    """Return the TFDS builder of a recipe. Made here, so that a folder is written without TFDS."""
    import tensorflow_datasets as tfds

    # Unregistered: TFDS refuses a second class of a name, and this one is made anew for every recipe.
    class SyntheticImagenet(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Photographs from installed packages, tinted and cropped by class, with noise: the shape of ImageNet."""

        name = NAME
        VERSION = tfds.core.Version(VERSION)

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(
                builder=self,
                description=self.__doc__,
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(encoding_format="jpeg"),
                        "label": tfds.features.ClassLabel(names=recipe.class_names),
                        "file_name": tfds.features.Text(),
                    }
                ),
                supervised_keys=("image", "label"),
                # Stored as metadata.json among the files, so it appears with the rest of the set or not at all.
                metadata=tfds.core.MetadataDict(recipe.parameters()),
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
            del dl_manager
            return {split: self._generate_examples(split) for split in ("train", "validation")}

        def _generate_examples(self, split: Split) -> Iterator[tuple[str, dict[str, Any]]]:
            for image, label, name in _shown(examples(recipe, split), recipe, split, progress=progress):
                # A file is stored as it is; pixels would be encoded again.
                yield name, {"image": io.BytesIO(image), "label": label, "file_name": name}

    return SyntheticImagenet(data_dir=data_dir)


def _shown(items: Iterable[Example], recipe: Recipe, split: Split, *, progress: bool) -> Iterator[Example]:
    """Pass the examples on, with a progress bar on request."""
    yield from rich.progress.track(items, f"making {split}", total=recipe.count(split), disable=not progress)


def _present(directory: Path, record: Path, recipe: Recipe) -> bool:
    """Return whether `directory` holds the set; one that holds anything else raises `UsageError`."""
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return False
    if not record.is_file():
        raise UsageError(f"{directory} is there but is no finished {NAME} ({record.name} is missing): choose another")
    found, wanted = json.loads(record.read_text()), recipe.parameters()
    different = [
        f"{key} {found.get(key)} instead of {wanted.get(key)}"
        for key in sorted(found.keys() | wanted.keys())
        if found.get(key) != wanted.get(key)
    ]
    if different:
        raise UsageError(
            f"{directory} holds another set ({', '.join(different)}): delete it or choose another directory"
        )
    return True


def _require(*modules: str) -> None:
    """Raise `UsageError` if a package is missing."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        install = "pip install importlib-resources scikit-image scikit-learn"
        raise UsageError(f"making {NAME} needs {' and '.join(missing)}: {install}")


def sizes(prepared: Path) -> np.ndarray:
    """Return the number of bytes of every image of a prepared set."""
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder_from_directory(prepared)
    decoders: Any = {"image": tfds.decode.SkipDecoding()}
    sources: list[Any] = [builder.as_data_source(split, decoders=decoders) for split in ("train", "validation")]
    return np.array([len(source[index]["image"]) for source in sources for index in range(len(source))])


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Make a synthetic ImageNet, as a TFDS set that is read without TensorFlow."""

    directory: tyro.conf.Positional[Path]
    """TFDS's data_dir: the set lies in DIRECTORY/synthetic_imagenet/1.0.0."""
    folder: Path | None = None
    """Write the same images to FOLDER/train/CLASS/NAME.JPEG and FOLDER/validation/CLASS/NAME.JPEG too."""
    recipe: Annotated[Recipe, tyro.conf.OmitArgPrefixes] = dataclasses.field(default_factory=Recipe)


def main(args: list[str]) -> int:
    """Run the command line; return 0, or 2 after one line on stderr that says what was wrong."""
    try:
        chosen = tyro.cli(Arguments, prog="synthetic_imagenet.py", args=args)
        start = time.perf_counter()
        prepared = build(chosen.directory, **dataclasses.asdict(chosen.recipe), progress=True)
        if chosen.folder is not None:
            write_folder(chosen.folder, **dataclasses.asdict(chosen.recipe), progress=True)
        seconds = time.perf_counter() - start
    except (UsageError, OSError) as error:
        print(f"synthetic_imagenet: {error}", file=sys.stderr)
        return 2
    found = sizes(prepared)
    low, median, high = np.percentile(found / 1000, [5, 50, 95])
    print(
        f"{prepared}: {len(found)} examples, {found.sum() / 1e9:.2f} GB, median {median:.1f} kB, "
        f"5th percentile {low:.1f} kB, 95th {high:.1f} kB, {seconds:.1f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
