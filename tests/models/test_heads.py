"""The last layers, against their formulas in thesis.md section 1, in numpy."""

import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from jaxclf.errors import UsageError
from jaxclf.models.classifier import create_model
from jaxclf.models.heads import OWN, HeadWarning, create_head, head_matrix, head_obstacle, list_heads
from jaxclf.models.matrices import MATRICES, distinct_rows, matrix
from tests.models.drawn import drawn
from tests.tiers import quick

HEADS = ["learned", "orthogonal", "hadamard", "hadamard_printed", "identity"]
"""Heads on pooled features; conv3x3, which stands before the pool, is tested in test_variants.py."""


def head_and_variables(name: str, k: int, d: int, **options: Any) -> tuple[Any, Any]:
    head = create_head(name, k, d, **options)
    return head, jax.tree.map(jnp.asarray, drawn(head, d))


def start(name: str, k: int, d: int) -> dict[str, np.ndarray]:
    """Initial parameters of a head with a bias."""
    head = create_head(name, k, d, bias=True)
    return jax.tree.map(np.asarray, jax.jit(head.init)(jax.random.key(3), jnp.zeros((1, d)))["params"])


def features(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_every_matrix_is_a_head() -> None:
    assert list_heads()[:6] == [*HEADS, "conv3x3"]
    assert set(MATRICES) <= set(list_heads())


def test_an_unknown_head_is_answered_with_the_nearest_name() -> None:
    for ask in (lambda: create_head("identiy", 2, 2), lambda: head_matrix("identiy", 2, 2)):
        with pytest.raises(UsageError, match="unknown head 'identiy'; did you mean 'identity'"):
            ask()


def test_the_learned_head_is_a_linear_layer() -> None:
    head, variables = head_and_variables("learned", 5, 12)
    h, params = features(7, 12), variables["params"]
    want = h @ np.asarray(params["kernel"]) + np.asarray(params["bias"])
    assert np.allclose(head.apply(variables, jnp.asarray(h)), want, atol=1e-5)


@pytest.mark.parametrize(("k", "d"), [(5, 12), (12, 5)])
def test_the_orthogonal_head_is_a_fixed_linear_layer_and_a_learned_bias(k: int, d: int) -> None:
    head, variables = head_and_variables("orthogonal", k, d, seed=9)
    h = features(7, d)
    want = h @ np.asarray(variables["fixed"]["orthogonal"]).T + np.asarray(variables["params"]["bias"])
    assert np.allclose(head.apply(variables, jnp.asarray(h)), want, atol=1e-5)
    own = head.clone(bias=False).init(jax.random.key(3), jnp.asarray(h))["fixed"]["orthogonal"]
    assert np.array_equal(own, head_matrix("orthogonal", k, d, seed=9).astype(np.float32))


@pytest.mark.parametrize(("k", "d"), [(10, 64), (64, 64), (3, 16)])
def test_the_hadamard_heads_are_the_formulas_of_the_reference_code_and_of_the_thesis(k: int, d: int) -> None:
    head, variables = head_and_variables("hadamard", k, d)
    h, (scale, bias) = features(7, d), (np.asarray(variables["params"][name]) for name in ("scale", "bias"))
    rows = scipy.linalg.hadamard(d)[:k, :d]
    norm = np.sqrt((h.astype(np.float64) ** 2).sum(1, keepdims=True))
    assert np.allclose(head.apply(variables, jnp.asarray(h)), -scale * h / (norm + 1e-8) @ rows.T + bias, atol=1e-5)
    printed: Any = create_head("hadamard_printed", k, d)  # neither norm nor minus sign
    assert np.allclose(printed.apply(variables, jnp.asarray(h)), scale * h @ rows.T + bias, atol=1e-4)


def test_the_hadamard_heads_gradient_at_zero_features_is_a_number() -> None:
    head, variables = head_and_variables("hadamard", 4, 8)
    gradient = jax.grad(lambda h: head.apply(variables, jax.nn.relu(h)).sum())(jnp.full((2, 8), -1.0))
    assert np.array_equal(gradient, np.zeros((2, 8)))


@pytest.mark.parametrize("bias", [False, True])
def test_the_identity_head_takes_the_first_features(bias: bool) -> None:
    head, variables = head_and_variables("identity", 5, 12, bias=bias)
    h = features(7, 12)
    want = h[:, :5] + (np.asarray(variables["params"]["bias"]) if bias else 0)
    assert np.allclose(head.apply(variables, jnp.asarray(h)), want, atol=1e-6)


@pytest.mark.parametrize("bias", [None, False, True])
@pytest.mark.parametrize(
    ("name", "habit", "learned", "fixed"),
    [
        ("learned", True, {"kernel": (16, 10)}, {}),
        ("orthogonal", True, {}, {"orthogonal": (10, 16)}),
        ("hadamard", True, {"scale": (1,)}, {"hadamard": (10, 16)}),
        ("hadamard_printed", True, {"scale": (1,)}, {"hadamard": (10, 16)}),
        ("identity", False, {}, {}),
    ],
)
def test_what_a_head_learns_and_what_is_fixed(
    name: str, habit: bool, learned: dict[str, Any], fixed: dict[str, Any], bias: bool | None
) -> None:
    head = create_head(name, 10, 16, bias=bias)
    variables: Any = jax.eval_shape(head.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 16), jnp.float32))
    shapes = {part: {key: leaf.shape for key, leaf in variables.get(part, {}).items()} for part in ("params", "fixed")}
    has_bias = habit if bias is None else bias
    assert shapes == {"params": learned | ({"bias": (10,)} if has_bias else {}), "fixed": fixed}
    assert set(variables) <= {"params", "fixed"}


@pytest.mark.parametrize(
    ("name", "bound"),
    [("learned", 1024**-0.5), ("orthogonal", 1024**-0.5), ("hadamard", 512**-0.5), ("identity", 1024**-0.5)],
)
def test_biases_start_uniform_within_their_bound(name: str, bound: float) -> None:
    params = start(name, 512, 1024)
    bias = params["bias"]
    assert params.get("scale", 512**-0.5) == pytest.approx(512**-0.5)  # the Hadamard head's
    assert np.abs(bias).max() <= bound
    assert np.abs(bias).max() > 0.95 * bound  # false alarm .95^512 < 1e-11
    assert abs(bias.mean()) < 0.15 * bound  # 5.9 sigma


def test_the_learned_kernel_starts_uniform_within_one_over_root_n() -> None:
    kernel = start("learned", 100, 64)["kernel"]
    assert np.abs(kernel).max() <= 1 / 8
    assert kernel.std() == pytest.approx(1 / 8 / np.sqrt(3), rel=0.05)


@pytest.mark.parametrize("name", quick(HEADS, "learned"))  # fixed ones: below
@pytest.mark.parametrize("bias", [False, True])
def test_class_maps_average_to_the_logits(name: str, bias: bool) -> None:
    head, variables = head_and_variables(name, 10, 16, bias=bias)
    maps = jnp.asarray(features(3, 4, 5, 16))
    answer = head.apply(variables, maps)
    assert answer.shape == (3, 4, 5, 10)
    assert np.allclose(answer.mean((1, 2)), head.apply(variables, maps.mean((1, 2))), atol=1e-5)


@pytest.mark.parametrize("name", quick([name for name in OWN if not head_obstacle(name, 8, 8)], "identity", "learned"))
def test_a_models_class_maps_average_to_its_logits(name: str) -> None:
    """Every head that eight features have for eight classes; of the others, maps of one size: below."""
    model: Any = create_model("tests.tiny:Tiny", num_classes=8, head=name)
    variables = jax.tree.map(jnp.asarray, drawn(model, 8, 6, 1))
    for height, width in ((8, 6), (16, 20), (33, 17)):
        images = jnp.asarray(features(2, height, width, 1))
        maps = model.apply(variables, images, method="class_maps")
        cut = 2 * (name == "conv3x3")  # it has no position at the border
        assert maps.shape == (2, -(-height // 2) - cut, -(-width // 2) - cut, 8)
        logits = np.asarray(model.apply(variables, images))
        assert np.abs(maps.mean((1, 2)) - logits).max() < 1e-5 * logits.std()


def test_hadamard_past_its_width_warns_how_many_classes_can_be_predicted() -> None:
    with pytest.warns(HeadWarning, match=r"100 classes on 64 features: only 64 of its 100 rows .* at most 64 classes"):
        create_model("resnet20", num_classes=100, head="hadamard")


def test_hadamard_cut_to_342_columns_warns_how_far_from_orthogonal_it_is() -> None:
    with pytest.warns(HeadWarning, match=r"100 classes on 342 features: .* not orthogonal: .* 42/342 = 0\.123"):
        create_model("densenet_bc_100_12", num_classes=100, head="hadamard")


@pytest.mark.parametrize(("k", "d"), [(2, 4), (4, 8), (10, 64), (64, 64), (100, 128), (128, 128), (10, 512)])
def test_hadamard_with_orthogonal_rows_does_not_warn(k: int, d: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        create_head("hadamard", k, d)


def test_identity_without_enough_features_names_the_way_out() -> None:
    with pytest.raises(UsageError) as caught:
        create_model("resnet20", num_classes=100, head="identity")
    assert "there are 100 classes and 64 features; end the backbone in maps=100" in str(caught.value)
    assert (
        ", or use a head that can: learned, orthogonal, hadamard, hadamard_printed, conv3x3, biorthogonal_hadam"
        in str(caught.value)
    )
    with pytest.raises(UsageError, match="100 classes and 64 features"):
        head_matrix("identity", 100, 64)


@pytest.mark.parametrize("name", HEADS)
def test_fewer_than_two_classes_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="num_classes is 1 but must be a whole number, at least 2"):
        create_head(name, 1, 16)


def test_head_matrix() -> None:
    assert np.array_equal(head_matrix("identity", 2, 3), [[1, 0, 0], [0, 1, 0]])
    assert np.array_equal(head_matrix("hadamard", 3, 4), [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1]])
    assert np.array_equal(head_matrix("hadamard_printed", 3, 4), head_matrix("hadamard", 3, 4))
    assert np.array_equal(head_matrix("orthogonal", 3, 4, 5), matrix("orthogonal", 3, 4, 5))
    assert head_matrix("orthogonal", 3, 4, 5).dtype == np.float64
    fixed = "orthogonal, hadamard, hadamard_printed, identity, block_identity"
    with pytest.raises(UsageError, match=f"'learned' learns its matrix; heads with a fixed one: {fixed}"):
        head_matrix("learned", 3, 4)


SIZES = {"kerdock": (100, 64), "polygon": (9, 12), "block_identity": (5, 12), "etf": (12, 12), "gold": (64, 40)}
"""(k, d) of heads that need one of their own; the others take (10, 12)."""
FIXED = [name for name, row in OWN.items() if row.matrix]


def expected(name: str, k: int, variables: Any, h: np.ndarray) -> np.ndarray:
    """The logits of a head with a fixed matrix, from the fields of its row, in float64."""
    row = OWN[name]
    params = {key: np.asarray(value, np.float64) for key, value in variables.get("params", {}).items()}
    h = h @ params["neck"] if "neck" in params else h
    if row.options.get("normalise"):
        h = h / (np.linalg.norm(h, axis=1, keepdims=True) + 1e-8)
    scale: Any = params["scale"] if row.options.get("learn_scale") else row.options.get("scale", 1.0)
    sign = -1 if name == "hadamard" else 1
    return sign * scale * (h @ head_matrix(name, k, h.shape[1]).T) + params.get("bias", np.zeros(k))


@pytest.mark.filterwarnings("ignore:hadamard")
@pytest.mark.parametrize("name", quick(FIXED, "hadamard", "kerdock", "simplex", "hoffer_orthogonal", "kasarla", "ebv"))
def test_a_fixed_head_is_its_formula_and_its_class_maps_average_to_it(name: str) -> None:
    k, d = SIZES.get(name, (10, 12))
    head, variables = head_and_variables(name, k, d)
    if "params" in variables and "scale" in variables["params"]:
        variables["params"]["scale"] = jnp.asarray([1.7])
    maps = features(3, 4, 5, d)
    logits, by_place = jax.jit(lambda x, y: (head.apply(variables, x), head.apply(variables, y)))(
        maps.mean((1, 2)), maps
    )
    want = expected(name, k, variables, maps.mean((1, 2)).astype(np.float64))
    assert np.abs(logits - want).max() < 1e-5 * max(1, np.abs(want).max())
    assert np.abs(by_place.mean((1, 2)) - want).max() < 1e-5 * max(1, np.abs(want).max())


def test_the_options_of_a_fixed_head_change_what_they_say() -> None:
    h = features(7, 12)
    head, variables = head_and_variables("simplex", 5, 12, normalise="both", scale=3.0, bias=False)
    rows = head_matrix("simplex", 5, 12)
    want = 3 * h / np.linalg.norm(h, axis=1, keepdims=True) @ (rows / np.linalg.norm(rows, axis=1, keepdims=True)).T
    assert np.allclose(head.apply(variables, jnp.asarray(h)), want, atol=1e-5)
    _, variables = head_and_variables("orthogonal", 5, 12, neck=20)
    assert variables["params"]["neck"].shape == (12, 20)
    assert variables["fixed"]["orthogonal"].shape == (5, 20)
    turned: Any = create_head("kerdock", 100, 70, embed="rotate", shuffle=True, seed=4)
    ((name, rows),) = turned.init(jax.random.key(0), jnp.zeros((1, 70)))["fixed"].items()
    assert name == "kerdock+rotate+shuffle"
    assert np.array_equal(rows, matrix(name, 100, 70, 4).astype(np.float32))


@pytest.mark.parametrize(
    ("name", "k", "d", "text"),
    [
        ("simplex", 70, 64, "simplex has at most 65 rows of 64 columns; 70 were asked for, or use a head that can: "),
        ("kerdock", 5, 3, "kerdock needs at least 4 columns; 3 were asked for, or use a head that can: "),
        ("gold", 2000, 40, "gold has at most 1024 rows of 40 columns (it is built with 32 of them); 2000 were "),
        ("block_identity", 70, 64, "block_identity has at most 64 rows of 64 columns; 70 were asked for"),
    ],
)
def test_an_impossible_head_says_why_and_names_those_that_can(name: str, k: int, d: int, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        create_head(name, k, d)
    assert str(caught.value).startswith(text)
    able = str(caught.value).rpartition(": ")[2].split(", ")
    assert {"learned", "orthogonal", "gaussian"} <= set(able)
    assert name not in able


def test_options_of_fixed_heads_are_refused_by_others() -> None:
    assert create_head("learned", 5, 12, normalise="both", scale=2.0).scale == 2.0
    with pytest.raises(UsageError, match=r"^head learned takes no neck, shuffle; heads that do: orthogonal, hadamard"):
        create_head("learned", 5, 12, scale=2.0, neck=4, shuffle=True)
    with pytest.raises(UsageError, match=r"kerdock\+repeat takes 16 of 20 columns; there is no room to repeat it"):
        matrix("kerdock+repeat", 5, 20)
    with pytest.raises(UsageError, match="unknown word behind a matrix 'turn'"):
        matrix("kerdock+turn", 2, 4)


def test_the_head_that_would_not_collapse_has_a_row_for_each_of_a_hundred_classes() -> None:
    for name, distinct in (("hadamard", 64), ("biorthogonal_hadamard", 100), ("kerdock", 100)):
        assert distinct_rows(matrix(name, 100, 64)) == distinct


def test_a_matrix_from_a_file_is_a_head(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((5, 12))
    np.save(tmp_path / "own.npy", rows)
    np.savez(tmp_path / "own.npz", rows=rows)
    np.savetxt(tmp_path / "own.csv", rows, delimiter=",")
    features = jax.random.normal(jax.random.key(0), (3, 12))
    for file in (tmp_path / "own.npy", tmp_path / "own.npz", tmp_path / "own.csv"):
        np.testing.assert_array_equal(head_matrix(f"file:{file}", 5, 12), rows)
        head = create_head(f"file:{file}", 5, 12)
        variables: Any = head.init(jax.random.key(1), features)
        expected = features @ rows.T.astype(np.float32) + variables["params"]["bias"][None]
        logits: Any = head.apply(variables, features)
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    assert create_head(f"file:{tmp_path}/own.npy", 5, 40, neck=12, normalise="both", scale=3.0).neck == 12
    np.save(tmp_path / "same.npy", np.ones((5, 12)))
    with pytest.warns(HeadWarning, match="only 1 of its 5 rows are distinct"):
        create_head(f"file:{tmp_path}/same.npy", 5, 12)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "a.npy",
            np.ones((5, 11)),
            "holds a matrix of 5 classes x 11 features; a matrix of 5 classes x 12 features is",
        ),
        ("a.npy", np.ones(12), r"holds float64 of shape \(12,\) but must hold numbers, classes x features"),
        ("a.npy", np.ones((5, 12), complex), r"holds complex128 of shape \(5, 12\) but must hold numbers"),
        ("a.npy", np.full((5, 12), np.nan), "holds numbers that are not finite"),
        ("a.npy", b"no array", r"^no matrix can be read from .*a.npy \("),
        ("a.npz", {"a": np.ones((5, 12)), "b": np.ones(3)}, "it holds 2 arrays, a, b, but must hold one"),
        ("a.csv", b"1, two", r"^no matrix can be read from .*a.csv \("),
        ("a.txt", b"", "must end in .npy, .npz, .csv to be a head's matrix"),
        ("a.npy", None, r"^no matrix can be read from .*a.npy \("),
    ],
)
def test_a_file_that_is_no_matrix_is_refused(name: str, content: Any, said: str, tmp_path: Path) -> None:
    file = tmp_path / name
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif isinstance(content, dict):
        np.savez(file, **content)
    elif content is not None:
        np.save(file, content)
    with pytest.raises(UsageError, match=said):
        create_head(f"file:{file}", 5, 12)
