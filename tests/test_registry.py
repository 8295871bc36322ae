"""Networks, heads and data sets of others, by package.module:Name and by entry points."""

import importlib.metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclf
from jaxclf.config import AugmentConfig, DataConfig, Loader
from jaxclf.data.datasets import Images, ResidentSet, resolve
from jaxclf.data.facts import RESIDENT
from jaxclf.data.pipeline import open_data
from jaxclf.errors import UsageError
from jaxclf.models.backbone import Backbone, Variant
from jaxclf.models.heads import HeadEntry, Linear
from tests.tiny import Tiny


class Unfinished(Backbone):
    stem = "conv1"


class Scaled(Linear):
    """A head of somebody else's."""


class Blank(ResidentSet):
    facts = RESIDENT["digits"]

    def read(self, split: str) -> Images:
        return Images(np.zeros((10, 8, 8, 1), np.uint8), np.arange(10, dtype=np.int32))


class Unread(ResidentSet):
    facts = RESIDENT["digits"]


WIDE, UNBIASED = Variant(Tiny, {"maps": 12}), HeadEntry(Scaled, None, bias=False)


def test_a_class_that_is_named_by_its_module_is_built() -> None:
    model = jaxclf.create_model("tests.tiny:Tiny", num_classes=5, head=f"{__name__}:Scaled", maps=6)
    assert (type(model.backbone), model.backbone.features) == (Tiny, 6)
    assert isinstance(model.head, Scaled)
    images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    assert jax.eval_shape(model.init_with_output, jax.random.key(0), images)[0].shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tests.nowhere:Tiny", "there is no module 'tests.nowhere'; the current directory or PYTHONPATH must hold it"),
        ("tests.tiny:Tinny", "'tests.tiny' has no 'Tinny'"),
        ("tests.tiny:BatchNorm", "must be a subclass of jaxclf.models.backbone.Backbone"),
        ("tests.tiny:conv", "must be a subclass of jaxclf.models.backbone.Backbone"),
        (f"{__name__}:Unfinished", "Unfinished must define features, last_conv, image_size"),
    ],
)
def test_what_is_no_backbone_is_refused_in_one_line(name: str, text: str) -> None:
    with pytest.raises(UsageError, match=r"^backbone '") as caught:
        jaxclf.create_model(name, num_classes=5)
    assert text in str(caught.value)
    assert name in str(caught.value)


def test_what_is_no_head_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^head 'tests.tiny:Tiny' .* subclass of jaxclf\.models\.heads\.Head"):
        jaxclf.create_model("resnet8", num_classes=5, head="tests.tiny:Tiny")


def test_a_data_set_is_opened_as_its_config_asks() -> None:
    data = open_data(resolve(DataConfig(f"{__name__}:Blank", classes=3, image_size=4)), AugmentConfig(), Loader())
    assert (data.class_names, data.image_shape, data.sizes) == (("0", "1", "2"), (4, 4, 1), {"train": 3, "test": 3})


@pytest.mark.parametrize(
    ("name", "text"), [("tests.tiny:Tiny", "subclass of .*ResidentSet or Str"), (f"{__name__}:Unread", "define read")]
)
def test_what_is_no_data_set_is_refused(name: str, text: str) -> None:
    with pytest.raises(UsageError, match=rf"^data set '{name}' cannot be used: .*{text}"):
        resolve(DataConfig(name))


def test_entry_points_are_listed_and_built_and_do_not_replace_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        importlib.metadata.EntryPoint(name, f"{__name__}:{value}", group)
        for group, name, value in (
            ("jaxclf.backbones", "wide", "WIDE"),
            ("jaxclf.backbones", "resnet8", "WIDE"),
            ("jaxclf.heads", "unbiased", "UNBIASED"),
            ("jaxclf.datasets", "blank", "Blank"),
        )
    ]
    installed = importlib.metadata.EntryPoints(points)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda *, group: installed.select(group=group))
    assert jaxclf.list_models("wide") == ["wide"]
    assert jaxclf.list_models().count("resnet8") == 1
    assert jaxclf.list_heads()[-1] == "unbiased"
    assert isinstance(resolve(DataConfig("blank")), Blank)
    model = jaxclf.create_model("wide", num_classes=5, head="unbiased")
    assert (model.backbone.features, model.head.bias) == (12, False)
    assert jaxclf.create_model("resnet8", num_classes=5).backbone.features == 64
    with pytest.raises(UsageError, match="did you mean 'wide'"):
        jaxclf.create_model("wied", num_classes=5)
