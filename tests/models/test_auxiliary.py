"""Auxiliary classifiers: trained beside the last one, absent in evaluation, counted apart."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import save_file

from jaxclf.config import AugmentConfig, LossConfig, OptimConfig
from jaxclf.errors import UsageError
from jaxclf.models.classifier import create_model
from jaxclf.models.count import count
from jaxclf.models.torch_weights import load_torch, to_torch, transfer_torch
from jaxclf.training import losses
from jaxclf.training.schedules import Timeline
from jaxclf.training.step import Program, init_state, train_step
from jaxclf.training.weights import read
from tests.models.drawn import drawn

NAME = "tests.tiny:TinyAuxiliary"
IMAGES = jnp.asarray(np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)), jnp.uint8)
LABELS = jnp.arange(6, dtype=jnp.int32) % 5


@pytest.mark.parametrize("head", ["learned", "hadamard"])
def test_evaluation_leaves_them_out(head: str) -> None:
    model, plain = (create_model(NAME, num_classes=5, head=head, auxiliary=wanted) for wanted in (None, False))
    variables = jax.tree.map(jnp.asarray, drawn(model, 8, 8, 3))
    flat: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(variables)
    own = {path: value for path, value in flat.items() if "aux1" not in path}
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    ours: Any = model.apply(variables, x, mutable=["intermediates"])
    assert np.array_equal(ours[0], np.asarray(plain.apply(traverse_util.unflatten_dict(own), x)))
    assert not ours[1]
    assert {"/".join(path) for path in flat if path not in own} == {
        "learned": {"params/backbone/aux1/fc2/kernel", "params/backbone/aux1/fc2/bias"},
        "hadamard": {
            "fixed/backbone/aux1/fc2/hadamard",
            *(f"params/backbone/aux1/fc2/{one}" for one in ("scale", "bias")),
        },
    }[head]


def test_their_parameters_are_counted_apart_and_their_operations_not() -> None:
    with_them, without = (
        count(create_model(NAME, num_classes=5, auxiliary=wanted), (8, 8, 3)) for wanted in (True, False)
    )
    assert (with_them.auxiliary, without.auxiliary) == (8 * 5 + 5, 0)
    assert with_them.total("trainable") - without.total("trainable") == 45
    assert with_them.total("macs") == without.total("macs")
    assert with_them.total("flops_2020") == without.total("flops_2020")


def test_a_state_dict_names_them_as_the_reference_does() -> None:
    model = create_model(NAME, num_classes=5)
    variables = drawn(model, 8, 8, 3)
    state_dict = to_torch(model, variables)
    assert (state_dict["aux1.fc2.weight"].shape, state_dict["aux1.fc2.bias"].shape) == ((5, 8), (5,))
    jax.tree.map(np.testing.assert_array_equal, load_torch(model, state_dict), variables)


@pytest.mark.parametrize("there", [True, False])
def test_a_file_with_or_without_them_is_read_and_starts_a_run(there: bool, tmp_path: Path) -> None:
    given = create_model(NAME, num_classes=5, auxiliary=there)
    state_dict = to_torch(given, drawn(given, 8, 8, 3))
    save_file(state_dict, tmp_path / "bare.safetensors")
    found = read(tmp_path / "bare.safetensors", model=NAME, head="learned")
    assert (found.model, found.record.num_classes) == (given, 5)
    model = create_model(NAME, num_classes=3)
    start = drawn(model, 8, 8, 3)
    after, text = transfer_torch(model, start, state_dict)
    assert text[1] == f"auxiliary classifiers: aux1 start anew, {2 * there} tensors not used"
    body = after["params"]["backbone"]
    assert np.array_equal(body["conv2"]["kernel"], state_dict["conv2.weight"].transpose(2, 3, 1, 0))
    assert np.array_equal(body["aux1"]["fc2"]["kernel"], start["params"]["backbone"]["aux1"]["fc2"]["kernel"])


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["cross_entropy", "binary"])
@pytest.mark.parametrize("parts", [1, 2])
def test_the_weighted_losses_of_both_answers_are_minimised(loss: Any, parts: int) -> None:
    model, given = create_model(NAME, num_classes=5), LossConfig(name=loss, label_smoothing=0.1)
    optim = OptimConfig(lr=0.5, momentum=0.0, weight_decay=0.0, accumulate=parts)
    half = ((0.5,) * 3, (0.25,) * 3)
    program = Program(model, optim, Timeline(10, 3, 60), given, AugmentConfig(pad=0, flip=False), *half)
    state = init_state(program, (8, 8, 3), 0, 0)
    targets, scaled = jax.nn.one_hot(LABELS, 5), (IMAGES.astype(jnp.float32) / 255 - 0.5) / 0.25

    def expected(params: Any) -> Any:
        total, stats = jnp.zeros(()), state.batch_stats
        for rows in np.split(np.arange(6), parts):
            variables = {"params": params, "batch_stats": stats}
            answer: Any = model.apply(variables, scaled[rows], True, mutable=["batch_stats", "intermediates"])
            (inner,) = jax.tree.leaves(answer[1]["intermediates"])
            stats = answer[1]["batch_stats"]
            for factor, logits in ((1.0, answer[0]), (0.3, inner)):
                total += factor * losses.example_losses(given, logits, targets[rows], 1.0).sum()
        return total / 6

    value, gradient = jax.value_and_grad(expected)(state.params)
    after = jax.jit(train_step, static_argnums=0)(program, state, IMAGES, LABELS, jnp.arange(6, dtype=jnp.int32))
    assert float(after.sums["loss"]) / 6 == pytest.approx(float(value), rel=1e-5)
    moved = jax.tree.map(lambda old, slope: old - 0.5 * slope, state.params, gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), after.params, moved)


@pytest.mark.parametrize(
    ("backbone", "options", "said"),
    [
        ("tests.tiny:Tiny", {"auxiliary": True}, "has no auxiliary classifiers; backbones that do: "),
        (NAME, {"auxiliary": True, "freeze_statistics": True}, "so auxiliary must be False"),
        (NAME, {"head": "class_mean"}, "head class_mean moves in training, which auxiliary classifiers cannot"),
        (NAME, {"head": "identity", "maps": 5, "num_classes": 9}, "identity gives each class a feature of its own"),
    ],
)
def test_what_cannot_be_trained_beside_the_head_is_refused(backbone: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        create_model(backbone, **{"num_classes": 5, **options})
