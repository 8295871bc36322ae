"""The images of a data set as weights want them: prepared for testing, in the set's order, in batches of one size."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Array, Float, Float32, Int32
from PIL import Image

from jaxclf.data.decoding import decode
from jaxclf.data.kinds import Images, ResidentSet, StreamedSet
from jaxclf.data.sources import Report, Source
from jaxclf.data.transforms import Preprocessing, preprocess, to_image
from jaxclf.errors import UsageError, one_line
from jaxclf.models.classifier import Classifier
from jaxclf.tools.inspection import in_threads
from jaxclf.training.weights import Weights

T = TypeVar("T")
BATCH = 64
"""Images in one compiled call."""
PREPARED = ("image_size", "resize", "interpolation", "mean", "std")
"""Fields of `DataConfig` that say how images are prepared, where weights do not."""


@dataclasses.dataclass(frozen=True, eq=False)
class Inputs:
    """The splits of a data set, opened; none is read before it is asked for."""

    preprocessing: Preprocessing
    """Steps from an image to the network's input: those kept with the weights, or else the data set's."""
    splits: Mapping[str, Images | Source]
    report: Report | None = None

    def labels(self, split: str) -> Int32[np.ndarray, " n"]:
        """Return the labels of a split; of a streamed set, `UNREADABLE` where a record cannot be read."""
        chosen = self.splits[split]
        return chosen.labels if isinstance(chosen, Images) else chosen.labels(self.report)

    def batches(
        self, split: str, what: str
    ) -> Iterator[tuple[Float32[np.ndarray, "b h w c"], Int32[np.ndarray, " n"]]]:
        """Yield b = `BATCH` inputs and the labels of the first n of them; zeros follow the last image of a split.

        `report` is told of `what`. Raises `UsageError` for an image that cannot be read.
        """
        images, labels = [], []
        for image, label in self.examples(split, what, self._prepared):
            images.append(image)
            labels.append(label)
            if len(images) == BATCH:
                yield np.stack(images), np.array(labels, np.int32)
                images, labels = [], []
        if images:
            missing = np.zeros((BATCH - len(images), *images[0].shape), np.float32)
            yield np.concatenate([np.stack(images), missing]), np.array(labels, np.int32)

    def some(self, split: str, numbers: Sequence[int], what: str) -> Float32[np.ndarray, "n h w c"]:
        """Return the inputs of some images of a split by their numbers, as `batches` yields them."""
        return np.stack([image for image, _ in self.examples(split, what, self._prepared, numbers)])

    def _prepared(self, image: Image.Image) -> Float32[np.ndarray, "h w c"]:
        return preprocess(image, self.preprocessing)

    def examples(
        self, split: str, what: str, prepare: Callable[[Image.Image], T], numbers: Sequence[int] | None = None
    ) -> Iterator[tuple[T, int]]:
        """Yield what `prepare` makes of images of a split, and their labels: of all (None), in order, or by numbers.

        `report` is told of `what`. Raises `UsageError` for an image that cannot be read.
        """
        source = self.splits[split]
        if numbers is None:
            numbers = range(len(source.labels) if isinstance(source, Images) else len(source))
        if isinstance(source, Images):
            for number in numbers:
                yield prepare(to_image(source.images[number])), int(source.labels[number])
            return

        def read(index: int) -> tuple[T, int]:
            try:
                encoded = source[index]
                pixels = decode(encoded.data, len(self.preprocessing.mean))
                return prepare(to_image(pixels)), encoded.label
            except Exception as error:  # whatever readers and decoders raise for broken bytes
                raise UsageError(f"{source.name(index)} cannot be read ({one_line(error)})") from error

        yield from in_threads(read, numbers, what, self.report)


def open_inputs(weights: Weights, dataset: ResidentSet | StreamedSet, report: Report | None = None) -> Inputs:
    """Open a data set for weights; its classes may be others than theirs.

    Raises `UsageError` for a set that is not there, of other channels, or whose config prepares images in another way
    than the weights say.
    """
    data, kept = dataset.config, weights.record.preprocessing
    preprocessing = kept or dataset.preprocessing
    if kept and (odd := [f"data.{name}" for name in PREPARED if getattr(data, name) is not None]):
        raise UsageError(f"{', '.join(odd)} given, but the weights say how images are prepared: {preprocessing}")
    channels = dataset.facts.image_shape[2]
    wanted = {len(preprocessing.mean), image_channels(weights.model, weights.variables)}
    if wanted != {channels}:
        said = " or ".join(str(number) for number in sorted(wanted - {channels}))
        raise UsageError(f"the weights take images of {said} channels, but {data.dataset} has {channels}")
    splits = dataset.sources(report) if isinstance(dataset, StreamedSet) else dataset.images()
    return Inputs(preprocessing, splits, report)


def image_channels(model: Classifier, variables: Mapping[str, Any]) -> int:
    """Return the number of channels of the images that a model's first convolution takes."""
    return stem_kernel(model, variables).shape[2]


def stem_kernel(model: Classifier, variables: Mapping[str, Any]) -> Float[Array | np.ndarray, "k l c d"]:
    """Return the kernel of a model's first convolution."""
    node = variables["params"]["backbone"]
    for name in model.backbone.stem.split("/"):
        node = node[name]
    return node["kernel"]
