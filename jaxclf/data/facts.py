"""Facts of the data sets that this package knows, as rows of two tables.

>>> RESIDENT["digits"].image_shape, STREAMED["imagenet2012"].counts
((8, 8, 1), {'train': 1281167, 'validation': 50000})
"""

import dataclasses
import importlib.resources
from typing import Literal

SPLITS = ("train", "test")
"""Names of the training and the test images in a run."""
TRAIN_NAMES, TEST_NAMES = ("train",), ("test", "val", "valid", "validation")
"""Names of the two in folders and in TFDS; the first that is there is taken."""
IMAGENET_CLASSES = tuple((importlib.resources.files("jaxclf.data") / "imagenet_classes.txt").read_text().splitlines())
"""Names of ImageNet-1K's classes in WordNet-id order, as torchvision 0.28 lists them (WordNet's first synonyms)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts of a data set that are known before an image is read."""

    name: str
    """Name, as `data.dataset` has it."""
    source: str
    """Origin, and licence where known."""
    num_classes: int
    """Number of classes; labels are 0 to num_classes - 1."""
    class_names: tuple[str, ...] = ()
    """One name per label, in label order; empty in rows of sets whose names only TFDS knows."""
    train_examples: int | None = None
    """Number of training images; None: it is known once the set is opened."""
    test_examples: int | None = None
    """Number of test images; None: it is known once the set is opened."""
    image_shape: tuple[int, int, int] | tuple[None, None, int] = (None, None, 3)
    """(h, w, c) in pixels; (None, None, c): images differ in size, and the set is streamed."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Mean per channel on the 0..1 scale, for normalisation: torchvision's for ImageNet, or the set's own; empty where
    no source states it."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Standard deviation per channel on the 0..1 scale, likewise."""
    splits: tuple[str, str] = SPLITS
    """Names that TFDS, or the directory, has for the training and the test images."""

    @property
    def streamed(self) -> bool:
        """Whether images are read while the run goes on, instead of before it."""
        return self.image_shape[0] is None

    @property
    def decoded(self) -> Literal[1, 3]:
        """Channels that image files are decoded to: 3 is RGB, 1 is grey."""
        return 3 if self.image_shape[2] == 3 else 1

    @property
    def counts(self) -> dict[str, int | None]:
        """Number of images by split, under the set's own names."""
        return dict(zip(self.splits, (self.train_examples, self.test_examples), strict=True))


_TEN_DIGITS = tuple("0123456789")

_CIFAR10_CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())  # noqa: SIM905

_FASHION_CLASSES = tuple("T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(","))  # noqa: SIM905

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

RESIDENT: dict[str, Facts] = {
    facts.name: facts
    for facts in (
        Facts(
            name="digits",
            num_classes=10,
            image_shape=(8, 8, 1),
            class_names=_TEN_DIGITS,
            train_examples=1352,
            test_examples=445,
            mean=(0.3049,),  # measured on our train split
            std=(0.3756,),  # measured on our train split
            source="Optical Recognition of Handwritten Digits, UCI (doi 10.24432/C50P49), test part as in scikit-learn;"
            " CC BY 4.0.",
        ),
        Facts(
            name="digit_pairs",
            num_classes=100,
            image_shape=(16, 16, 1),
            class_names=tuple(f"{number:02}" for number in range(100)),
            train_examples=10_000,
            test_examples=4_000,
            mean=(0.1524,),  # measured on the pairs of seed 0, epoch 0
            std=(0.3062,),  # measured on the pairs of seed 0, epoch 0
            source="Ours: two of the digits above side by side, those of the same split; CC BY 4.0.",
        ),
        Facts(
            name="digit_scenes",
            num_classes=10,
            image_shape=(32, 32, 1),
            class_names=_TEN_DIGITS,
            train_examples=6_400,
            test_examples=2_000,
            mean=(0.0827,),  # measured on the scenes of seed 0, epoch 0
            std=(0.2165,),  # measured on the scenes of seed 0, epoch 0
            source="Ours: digits above, enlarged, at places of a larger image, those of the same split; CC BY 4.0.",
        ),
        Facts(
            name="mnist",
            num_classes=10,
            image_shape=(28, 28, 1),
            class_names=_TEN_DIGITS,
            train_examples=60_000,
            test_examples=10_000,
            mean=(0.1307,),  # pytorch/examples, mnist/main.py
            std=(0.3081,),  # pytorch/examples, mnist/main.py
            source="LeCun, Cortes and Burges, yann.lecun.com/exdb/mnist; no licence stated.",
        ),
        Facts(
            name="fashion_mnist",
            num_classes=10,
            image_shape=(28, 28, 1),
            class_names=_FASHION_CLASSES,
            train_examples=60_000,
            test_examples=10_000,
            mean=(0.2860,),  # measured on the train split: .28604
            std=(0.3530,),  # measured on the train split: .35302
            source="Xiao, Rasul and Vollgraf, arXiv:1708.07747, github.com/zalandoresearch/fashion-mnist; MIT.",
        ),
        Facts(
            name="fashion_pairs",
            num_classes=100,
            image_shape=(28, 28, 1),
            class_names=tuple(f"{left} | {right}" for left in _FASHION_CLASSES for right in _FASHION_CLASSES),
            train_examples=60_000,
            test_examples=10_000,
            mean=(0.1432,),  # measured on the pairs of seed 0, epoch 0
            std=(0.2740,),  # measured on the pairs of seed 0, epoch 0
            source="Ours: two of the images above side by side, halved, those of the same split; MIT.",
        ),
        Facts(
            name="cifar10",
            num_classes=10,
            image_shape=(32, 32, 3),
            class_names=_CIFAR10_CLASSES,
            train_examples=50_000,
            test_examples=10_000,
            mean=(0.4914, 0.4822, 0.4465),  # hoya012: the true statistics of the train split
            std=(0.2470, 0.2435, 0.2616),  # hoya012; bearpaw's .2023 .1994 .2010, widely copied, is too small
            source="Krizhevsky 2009, cs.toronto.edu/~kriz/cifar.html; no licence stated.",
        ),
        Facts(
            name="cifar100",
            num_classes=100,
            image_shape=(32, 32, 3),
            class_names=_CIFAR100_CLASSES,
            train_examples=50_000,
            test_examples=10_000,
            mean=(0.5070752, 0.4865489, 0.4409178),  # weiaicunzai: the true statistics of the train split
            std=(0.2673343, 0.2564385, 0.2761505),  # weiaicunzai; bearpaw, which the thesis cites, has CIFAR-10's
            source="Krizhevsky 2009, cs.toronto.edu/~kriz/cifar.html, fine labels; no licence stated.",
        ),
    )
}
"""Resident sets by name."""

STREAMED: dict[str, Facts] = {
    facts.name: facts
    for facts in (
        Facts(
            name="imagenet2012",
            num_classes=1_000,
            class_names=IMAGENET_CLASSES,
            train_examples=1_281_167,
            test_examples=50_000,
            splits=("train", "validation"),
            source="Russakovsky et al. 2015, image-net.org, ILSVRC 2012; non-commercial research.",
        ),
        Facts(
            name="cars196",
            num_classes=196,
            train_examples=8_144,
            test_examples=8_041,
            source="Krause et al. 2013, Stanford Cars; no licence stated.",
        ),
        Facts(
            name="oxford_flowers102",
            num_classes=102,
            train_examples=1_020,
            test_examples=6_149,
            source="Nilsback and Zisserman 2008, robots.ox.ac.uk/~vgg/data/flowers/102; no licence stated.",
        ),
    )
}
"""Streamed sets of the thesis by name. Flowers has 1,020 more images, TFDS's split `validation`."""
