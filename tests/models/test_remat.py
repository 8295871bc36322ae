"""Rematerialisation: the same numbers from fewer stored arrays.

What is stored is counted as the leaves of a vjp function, by shape: XLA:CPU merges both computations of a block again,
so that a compiled program's memory shows nothing there.
"""

import collections
import functools
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from jaxclf.config import Config, ModelConfig, Remat
from jaxclf.errors import UsageError
from jaxclf.models.backbones import list_models, mobilenet_v1, mobilenet_v2
from jaxclf.models.backbones.alexnet import AlexNet
from jaxclf.models.backbones.bninception import BNInception
from jaxclf.models.backbones.densenet import DenseNet
from jaxclf.models.backbones.densenet_cifar import CifarDenseNet, HoyaDenseNet
from jaxclf.models.backbones.efficientnet import B0, VARIANTS, EfficientNet
from jaxclf.models.backbones.googlenet import GoogLeNet
from jaxclf.models.backbones.inception_v3 import InceptionV3
from jaxclf.models.backbones.mobilenet_v1 import MobileNetV1
from jaxclf.models.backbones.mobilenet_v2 import MobileNetV2
from jaxclf.models.backbones.mobilenet_v3 import SMALL as ROWS
from jaxclf.models.backbones.mobilenet_v3 import MobileNetV3
from jaxclf.models.backbones.nin import NiN
from jaxclf.models.backbones.resnet import ResNet
from jaxclf.models.backbones.resnet_cifar import CifarResNet
from jaxclf.models.backbones.resnext_cifar import CifarResNeXt
from jaxclf.models.backbones.shufflenet_v2 import ShuffleNetV2
from jaxclf.models.backbones.squeezenet import SqueezeNet
from jaxclf.models.backbones.vgg import VGG
from jaxclf.models.backbones.wide_resnet_cifar import CifarWideResNet
from jaxclf.models.classifier import build, create_model
from jaxclf.models.count import count
from jaxclf.models.layers import BatchNorm
from jaxclf.models.stages import blocks
from tests.models.drawn import drawn
from tests.tiers import quick

SMALL = {
    "resnet_cifar": (functools.partial(CifarResNet, 8, shortcut="B"), 32),
    "resnet_cifar_rebuilt": (functools.partial(CifarResNet, 8, maps=10, maps_shortcut="C"), 32),
    "densenet_cifar": (functools.partial(CifarDenseNet, 10, 4), 16),
    "resnet_basic": (functools.partial(ResNet, "resnet10", (1, 1, 1, 1), False), 32),
    "resnet_bottleneck": (functools.partial(ResNet, "resnet14", (1, 1, 1, 1), True, maps=10), 32),
    "se_resnet": (functools.partial(ResNet, "seresnet14", (1, 1, 1, 1), True, squeeze="se"), 32),
    "wide_resnet_cifar": (functools.partial(CifarWideResNet, 16, 1, 0.3), 16),
    "resnext_cifar": (functools.partial(CifarResNeXt, 11, 2, 8), 16),
    "densenet_hoya": (functools.partial(HoyaDenseNet, 10, 4), 16),
    "densenet": (functools.partial(DenseNet, 0, 8, 4, (2, 2, 2, 2)), 64),
    "vgg": (functools.partial(VGG, 11, (1, 1, 2, 2, 2), norm=True, maps=10), 32),
    "alexnet": (functools.partial(AlexNet, "", tuple("abcdefgh"), (8, 8), maps=10), 64),
    "nin": (functools.partial(NiN, maps=10), 16),
    "squeezenet": (functools.partial(SqueezeNet, "", (8, 3), (2, 2, 4), 17, maps=10), 32),
    "googlenet": (functools.partial(GoogLeNet, "", maps=10), 32),
    "bninception": (functools.partial(BNInception, maps=10), 32),
    "mobilenet_v2": (MobileNetV2, 32),
    "shufflenet_v2": (functools.partial(ShuffleNetV2, "shufflenet_v2_x0_5", (48, 96, 192, 1024)), 32),
    "mobilenet_v1": (functools.partial(MobileNetV1, ""), 32),
    "mobilenet_v3": (functools.partial(MobileNetV3, "", ROWS[:5], 40), 32),
    **{
        name: (functools.partial(EfficientNet, **{**VARIANTS[name].fields, "stages": B0[:3]}), 32)
        for name in ("efficientnet_lite0", "efficientnet_b0")
    },
    "inception_v3": (InceptionV3, 75),
}
"""One small network of every family that has blocks, and the side of its images."""
QUICK = ("resnet_cifar",)
"""Families of the default tier: blocks that hand on one array, and blocks that hand on channels apart."""


@pytest.fixture(scope="module", autouse=True)
def short() -> Iterator[None]:
    """Leave MobileNetV1 and V2 the stages with which every kind of their blocks has come."""
    with pytest.MonkeyPatch.context() as patch:
        for family in (mobilenet_v1, mobilenet_v2):
            patch.setattr(family, "STAGES", family.STAGES[:3])
        yield


def loss_of(model: nn.Module, params: Any, rest: Any, images: Any) -> tuple[jax.Array, Any]:
    rngs = {"dropout": jax.random.key(1)}
    maps, updated = model.apply({"params": params, **rest}, images, train=True, mutable=["batch_stats"], rngs=rngs)
    return jnp.square(maps).mean(), updated


def stored(model: nn.Module, variables: Any, side: int) -> list[Any]:
    """Shapes of the maps that a network's forward pass leaves for the backward one."""
    images = jax.ShapeDtypeStruct((7, side, side, 3), jnp.float32)
    params, rest = variables["params"], {name: tree for name, tree in variables.items() if name != "params"}

    def keep(params: Any, rest: Any, images: Any) -> Any:
        return jax.vjp(lambda p: loss_of(model, p, rest, images)[0], params)[1]

    leaves = jax.tree.leaves(jax.eval_shape(keep, params, rest, images))
    return [leaf for leaf in leaves if leaf.ndim == 4 and leaf.shape[0] == 7]


def channels(model: nn.Module, size: int, side: int) -> dict[int, int]:
    """How many float32 maps of a side a network stores for images of a size, by channels."""
    variables = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))
    maps = stored(model, variables, size)
    return dict(collections.Counter(x.shape[3] for x in maps if x.shape[1] == side and x.dtype == jnp.float32))


UNITS: tuple[Remat, ...] = ("block", "stage")


def operations(traced: Any) -> list[tuple[Any, ...]]:
    """Return the operations of a jaxpr in order, those of called functions inline."""
    found: list[tuple[Any, ...]] = []
    joined: dict[Any, list[str]] = {}

    def name_of(atom: Any, names: dict[Any, str]) -> str:
        return str(atom) if isinstance(atom, jex.core.Literal) else names[atom]

    def walk(jaxpr: Any, names: dict[Any, str]) -> list[str]:
        for eqn in jaxpr.eqns:
            given = [name_of(one, names) for one in eqn.invars]
            if (inner := eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))) is not None:
                inner = getattr(inner, "jaxpr", inner)
                assert not inner.constvars
                results = walk(inner, dict(zip(inner.invars, given, strict=True)))
            else:
                what = (eqn.primitive.name, str(eqn.params))
                if eqn.primitive.name == "concatenate":  # of what was concatenated before: the same in one
                    given = [part for one in given for part in joined.get((one, what), [one])]
                    joined[f"{len(found) + 1}.0", what] = given
                found.append((*what, given, [str(one.aval) for one in eqn.outvars]))
                results = [f"{len(found)}.{number}" for number in range(len(eqn.outvars))]
            names |= dict(zip(eqn.outvars, results, strict=True))
        return [name_of(one, names) for one in jaxpr.outvars]

    top = traced.jaxpr
    ends = walk(top, {one: f"given {number}" for number, one in enumerate((*top.constvars, *top.invars))})
    return [*found, ("returned", ends)]


def traces(family: str, remat: Remat) -> tuple[Any, list[Any], list[Any], int]:
    """Shapes of a small network's variables, the operations that draw them, those of a training loss, bytes stored."""
    make, side = SMALL[family]
    model, images = make(remat=remat), jax.ShapeDtypeStruct((7, side, side, 3), jnp.float32)
    drawing, variables = jax.make_jaxpr(model.init, return_shape=True)(jax.random.key(0), images)
    rest = dict(variables)
    loss = jax.make_jaxpr(functools.partial(loss_of, model))(rest.pop("params"), rest, images)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in stored(model, variables, side))
    return traverse_util.flatten_dict(variables), operations(drawing), operations(loss), size


@pytest.mark.parametrize("family", quick(SMALL, *QUICK))
def test_a_step_computes_the_same_in_the_same_order_and_stores_less(family: str) -> None:
    """Gradients are JAX's of this program: jax.checkpoint changes what they store, and no number."""
    variables, drawing, loss, without = traces(family, "none")
    assert len(loss) > 20  # of alexnet 26
    kept = []
    for unit in UNITS:
        *same, size = traces(family, unit)
        assert same == [variables, drawing, loss]
        kept.append(size)
    by_block, by_stage = kept
    # Of resnet_basic 0.598 and googlenet 0.592, whose stems are no block; of the others below 0.5.
    assert by_block < 0.6 * without
    assert by_stage <= by_block


@functools.cache
def trained(family: str, remat: Remat) -> Any:
    """Loss, new statistics and gradients of one batch of a small network, in float64."""
    make, side = SMALL[family]
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), drawn(make(), side, side, 3))
        step = jax.jit(jax.value_and_grad(functools.partial(loss_of, make(remat=remat)), has_aux=True))
        images = jax.random.normal(jax.random.key(2), (4, side, side, 3), jnp.float64)
        return step(variables.pop("params"), variables, images)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "unit"),
    [
        *(("resnet_cifar", "block"), ("resnet_cifar", "stage"), ("resnet_bottleneck", "stage")),
        *(("densenet_cifar", "block"), ("densenet_cifar", "stage"), ("mobilenet_v2", "block")),
    ],
)
def test_no_number_of_a_step_changes(family: str, unit: Remat) -> None:
    plain, again = trained(family, "none"), trained(family, unit)
    assert jax.tree.structure(plain) == jax.tree.structure(again)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(plain))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        assert a.dtype == np.float64
        # Some gradients are 0, and come out as rounding of the larger ones.
        np.testing.assert_allclose(b, a, rtol=0, atol=max(1e-9 * np.abs(a).max(), 1e-14 * largest))


@pytest.mark.parametrize("unit", UNITS)
def test_counts_are_those_without(unit: Remat) -> None:
    assert count(create_model("resnet20", num_classes=10, remat=unit), (32, 32, 3)).total("macs") == 40_551_040


@pytest.mark.parametrize(("unit", "inputs"), [("block", 2), ("stage", 1)])
def test_a_block_or_a_stage_stores_its_input_alone(unit: Remat, inputs: int) -> None:
    assert channels(CifarResNet(14, remat=unit), 32, 16) == {32: inputs}  # of layer3_0; of layer2_1 before it


@pytest.mark.parametrize(("depth", "layers"), quick([(16, 2), (28, 4)], (16, 2)))
def test_what_a_dense_block_stores_grows_with_its_depth_and_not_with_the_square(depth: int, layers: int) -> None:
    entering = (8 + 4 * layers) // 2
    leaving = entering + 4 * layers  # the transition's input
    assert channels(CifarDenseNet(depth, 4, remat="block"), 16, 8) == {entering: 1, 4: layers - 1, leaving: 1}


class Noisy(nn.Module):
    """A batch norm, dropout, and a square, whose gradient needs the dropped values."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return jnp.square(nn.Dropout(0.5, deterministic=not train)(BatchNorm(name="bn")(x, train)))


class Net(nn.Module):
    """One such block."""

    remat: Remat

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return blocks(functools.partial(Noisy, name="noisy"))(self, x, train)


@pytest.mark.slow
def test_dropout_draws_one_mask_for_both_passes_and_statistics_move_once() -> None:
    x = jnp.tile(jnp.asarray([1.0, 3.0]).reshape(2, 1, 1, 1), (1, 4, 4, 1))
    variables = Net(remat="block").init(jax.random.key(0), x, train=False)
    rngs = {"dropout": jax.random.key(1)}

    def output(model: nn.Module, scale: jax.Array) -> tuple[jax.Array, Any]:
        params = {"noisy": {"bn": {"weight": jnp.ones(1), "bias": scale.reshape(1)}}}
        given = {**variables, "params": params}
        y, updated = model.apply(given, x, train=True, mutable=["batch_stats"], rngs=rngs)
        return y.ravel(), updated

    jacobians = []
    for remat in ("none", "block"):
        y, pull, updated = jax.vjp(functools.partial(output, Net(remat=remat)), jnp.zeros(()), has_aux=True)
        jacobian = jax.vmap(lambda row, pull=pull: pull(row)[0])(jnp.eye(32))
        assert 4 < (y == 0).sum() < 28
        assert np.array_equal(jacobian == 0, y == 0)
        jacobians.append(np.asarray(jacobian))
        statistics = updated["batch_stats"]["noisy"]["bn"]
        np.testing.assert_allclose(statistics["running_mean"], [0.2], rtol=1e-6)  # 0.1 of the mean, 2
        np.testing.assert_allclose(statistics["running_var"], [0.9 + 0.1 * 32 / 31], rtol=1e-6)  # variance 1, unbiased
    assert np.array_equal(*jacobians)


@pytest.mark.parametrize("backbone", list_models("lenet*"))
def test_a_backbone_without_blocks_is_refused(backbone: str) -> None:
    text = "has no blocks or stages to compute again; remat is for all backbones but lenet5, lenet5_sigmoid, lenet_like"
    with pytest.raises(UsageError, match=f"^backbone {backbone} {text}$"):
        create_model(backbone, num_classes=10, remat="block")
    assert create_model(backbone, num_classes=10, remat="none") == create_model(backbone, num_classes=10)


def test_every_other_backbone_takes_it_from_the_config_and_weight_files_do_not_keep_it() -> None:
    for backbone in list_models():
        if not backbone.startswith("lenet"):
            config = Config(model=ModelConfig(backbone, remat="stage"))
            assert build(config, 10, seed=0).backbone.remat == "stage"
            assert config.model.options() == {}
            assert build(Config(model=ModelConfig(backbone)), 10, seed=0).backbone.remat == "none"


def test_an_unknown_unit_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^unknown remat 'layer'\. Valid: block, none, stage$"):
        create_model("resnet20", num_classes=10, remat="layer")
