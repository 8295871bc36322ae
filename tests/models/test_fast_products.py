"""Heads that are applied without their matrix: by gather, and by the fast Walsh-Hadamard transform."""

import json
import tracemalloc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxclf.cli.main import main
from jaxclf.errors import UsageError
from jaxclf.models.classifier import create_model
from jaxclf.models.fast_products import fast_product, walsh_hadamard
from jaxclf.models.heads import create_head
from jaxclf.models.matrices import MATRICES, distinct_rows, largest_cosine, matrix, obstacle, product_obstacle
from jaxclf.models.matrices.signed import sylvester_flaws
from jaxclf.models.torch_weights import load_torch, to_torch
from tests.models.drawn import drawn
from tests.tiers import quick

APPLIED: dict[str, Any] = {
    **dict.fromkeys(("identity", "orthoplex", "signed_identity"), "gather"),
    **dict.fromkeys(
        ("hadamard", "hadamard_exact", "biorthogonal_hadamard", "biorthogonal_hadamard_varied"), "transform"
    ),
}
"""Every matrix that is applied without being made."""
STANDING = ("orthoplex", "biorthogonal_hadamard")


def sylvester(order: int) -> np.ndarray:
    """Return Sylvester's matrix from the bits of its row and column numbers, float64."""
    return np.array([[(-1.0) ** (row & column).bit_count() for column in range(order)] for row in range(order)])


def close(found: Any, want: Any) -> None:
    """Compare within 1e-6 of the largest value."""
    found, want = np.asarray(found, np.float64), np.asarray(want, np.float64)
    assert found.shape == want.shape
    assert np.abs(found - want).max() <= 1e-6 * np.abs(want).max()


def both(name: str, k: int, d: int, **options: Any) -> tuple[Any, Any, Any, Any]:
    """Return a head applied densely and by its own way, and variables of each with the same parameters."""
    dense, fast = (create_head(name, k, d, apply=how, **options) for how in ("dense", APPLIED[name]))
    variables = jax.tree.map(jnp.asarray, drawn(dense, d))
    return dense, fast, variables, {"params": variables.get("params", {})}


@pytest.mark.parametrize("order", quick([1, 2, 4, 8, 32, 256, 1024], 32))
def test_the_transform_is_sylvesters_product_and_its_own_inverse(order: int) -> None:
    x = np.random.default_rng(order).standard_normal((3, 2, order))
    with jax.enable_x64(True):
        found = walsh_hadamard(jnp.asarray(x))
        np.testing.assert_allclose(found, x @ sylvester(order), rtol=1e-12, atol=1e-12 * order)
        np.testing.assert_allclose(walsh_hadamard(found), order * x, rtol=1e-12, atol=1e-12 * order)


def test_the_transform_takes_powers_of_two_and_adds_narrow_numbers_in_float32() -> None:
    with pytest.raises(ValueError, match="the transform takes a power of two; got 12"):
        walsh_hadamard(jnp.ones((2, 12)))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 512)), jnp.bfloat16)
    want = jnp.asarray(x.astype(np.float32) @ sylvester(512).astype(np.float32)).astype(jnp.bfloat16)
    found = jax.vmap(walsh_hadamard)(x)
    assert found.dtype == jnp.bfloat16
    assert (found == want).mean() > 0.99  # but for sums that round to a neighbour
    np.testing.assert_allclose(found.astype(jnp.float32), want.astype(jnp.float32), rtol=2**-7)


def test_which_matrices_are_applied_without_being_made() -> None:
    assert {name: row.signed.applied for name, row in MATRICES.items() if row.signed} == APPLIED


@pytest.mark.parametrize("name", quick(APPLIED))
@settings(max_examples=10, deadline=None, derandomize=True)
@given(rows=st.integers(1, 70), columns=st.integers(1, 70), seed=st.integers(0, 99))
def test_whole_numbers_are_multiplied_exactly(name: str, rows: int, columns: int, seed: int) -> None:
    applied = APPLIED[name]
    if obstacle(name, rows, columns) or product_obstacle(name, applied, rows, columns):
        with pytest.raises(UsageError):
            fast_product(jnp.ones((1, columns)), name, rows, applied)
        return
    x = np.random.default_rng(seed).integers(-9, 9, (2, columns)).astype(np.float32)
    assert np.array_equal(fast_product(jnp.asarray(x), name, rows, applied), x @ matrix(name, rows, columns).T)


SIZES = [(name, k, d) for name in APPLIED for k, d in ((7, 33), (20, 12), (100, 64))]
POSSIBLE = [
    case for case in SIZES if not (obstacle(*case) or product_obstacle(case[0], APPLIED[case[0]], case[1], case[2]))
]


@pytest.mark.filterwarnings("ignore:hadamard")
@pytest.mark.parametrize(("name", "k", "d"), quick(POSSIBLE, *[(name, 100, 64) for name in STANDING]))
def test_logits_and_gradients_are_those_of_the_dense_product(name: str, k: int, d: int) -> None:
    """Exactly by gather, within 1e-6 of the largest by the transform; of feature maps too.

    Of whole numbers: the gradient of a scale is one sum, which is small beside its terms, and its rounding is not.
    """
    dense, fast, with_matrix, without = both(name, k, d, bias=True)
    rng = np.random.default_rng(k + d)
    maps, weights = (jnp.asarray(rng.integers(-9, 10, (2, 3, 2, size)), jnp.float32) for size in (d, k))

    def answer(head: Any, params: Any, rest: Any, x: Any) -> Any:
        return head.apply(rest | {"params": params}, x)

    def loss(head: Any, params: Any, rest: Any, x: Any) -> Any:
        return (weights * answer(head, params, rest, x)).sum()

    results = []
    for head, variables in ((dense, with_matrix), (fast, without)):
        rest = {part: tree for part, tree in variables.items() if part != "params"}
        with jax.default_matmul_precision("highest"):
            gradients = jax.jit(jax.grad(loss, argnums=(1, 3)), static_argnums=0)(head, variables["params"], rest, maps)
            results.append((answer(head, variables["params"], rest, maps), *gradients))
    compare = np.testing.assert_array_equal if APPLIED[name] == "gather" else close
    jax.tree.map(lambda own, other: compare(other, own), *results)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:hadamard")
@pytest.mark.parametrize(
    ("name", "normalise"),
    quick([(name, how) for name in APPLIED for how in ("none", "features", "both")], ("biorthogonal_hadamard", "both")),
)
def test_what_stands_around_a_matrix_stands_around_its_fast_product(name: str, normalise: str) -> None:
    k = 20
    dense, fast, with_matrix, without = both(name, k, 33, bias=True, normalise=normalise, scale=3.0, neck=32)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((5, 33)), jnp.float32)
    with jax.default_matmul_precision("highest"):
        close(fast.apply(without, x), dense.apply(with_matrix, x))
    assert dense.sign == fast.sign == (-1 if name == "hadamard" else 1)
    shapes: Any = jax.eval_shape(fast.init, jax.random.key(0), x)
    assert set(shapes) == {"params"}  # nothing fixed is stored
    assert jax.tree.structure(shapes["params"]) == jax.tree.structure(with_matrix["params"])


@pytest.mark.parametrize("name", quick(APPLIED))
def test_bfloat16_features_answer_as_the_float32_ones_but_for_rounding(name: str) -> None:
    x = jnp.asarray(np.random.default_rng(0).standard_normal((5, 64)), jnp.bfloat16)
    fast: Any = create_head(name, 50, 64, bias=False, apply=APPLIED[name], normalise="none", scale=1.0)
    variables = jax.tree.map(jnp.ones_like, fast.init(jax.random.key(0), x))
    found = fast.apply(variables, x)
    assert found.dtype == jnp.bfloat16
    want = fast.apply(variables, x.astype(jnp.float32))
    np.testing.assert_allclose(found.astype(jnp.float32), want, rtol=2**-7)


@pytest.mark.parametrize(
    ("name", "k", "d", "options", "text"),
    [
        ("orthoplex", 9, 64, {"apply": "transform"}, r"transform applies .* Sylvester's .* which orthoplex's are not"),
        (
            "gaussian",
            9,
            64,
            {"apply": "gather"},
            r"gather .* gaussian's are not; .*: identity, orthoplex, signed_ident",
        ),
        (
            "orthoplex",
            9,
            64,
            {"apply": "gather", "shuffle": True},
            r"^orthoplex\+shuffle takes a dense product: gather",
        ),
        (
            "hadamard",
            9,
            64,
            {"apply": "transform", "embed": "rotate"},
            r"^hadamard\+rotate takes a dense product: tran",
        ),
        ("identity", 9, 64, {"shuffle": True}, r"^identity\+shuffle takes a dense product: gather stores no order"),
        (
            *("hadamard_exact", 9, 100, {"apply": "transform"}),
            "takes a power of two, but hadamard_exact on 100 columns is built with 100 of them; .*: hadamard, had",
        ),
        ("learned", 9, 64, {"apply": "gather"}, "^head learned takes no apply; heads that do: orthogonal, hadamard"),
    ],
)
def test_what_cannot_be_applied_so_is_refused_with_the_heads_that_can(
    name: str, k: int, d: int, options: Any, text: str
) -> None:
    with pytest.raises(UsageError, match=text):
        create_head(name, k, d, **options)


def test_a_learned_matrix_has_no_fast_product_and_an_unknown_one_is_named() -> None:
    with pytest.raises(UsageError, match=r"unknown way to apply a matrix 'gathr'; did you mean 'gather'\?"):
        fast_product(jnp.ones((1, 4)), "orthoplex", 2, "gathr")
    learned: Any = create_head("learned", 9, 64).clone(applied="gather")
    with pytest.raises(UsageError, match="gather applies fixed matrices; a learned one takes dense"):
        learned.init(jax.random.key(0), jnp.ones((1, 64)))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(rows=st.integers(1, 70), columns=st.integers(1, 70))
def test_the_flaws_of_a_corner_of_sylvesters_matrix_are_known_without_it(rows: int, columns: int) -> None:
    corner = sylvester(128)[:rows, :columns]
    assert sylvester_flaws(rows, columns) == (distinct_rows(corner), round(largest_cosine(corner) * columns))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "applied"), [("orthoplex", "gather"), ("hadamard", "transform")])
def test_memory_is_linear_in_the_features(name: str, applied: Any) -> None:
    """A matrix of 8192 x 8192 would take 256 MB in float32."""
    tracemalloc.start()
    head: Any = create_head(name, 8192, 8192, apply=applied)
    x = jax.ShapeDtypeStruct((1, 8192), jnp.float32)
    shapes: Any = jax.eval_shape(head.init, jax.random.key(0), x)
    jaxpr = jax.make_jaxpr(head.apply)(shapes, x)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    assert max(np.size(constant) for constant in [*jaxpr.consts, 0]) <= 8192


def test_a_networks_pytorch_file_is_the_same_however_its_head_is_applied() -> None:
    dense, fast = (
        create_model("tests.tiny:Tiny", num_classes=10, head="orthoplex", head_apply=how) for how in ("dense", "gather")
    )
    variables: Any = drawn(dense, 8, 8, 1)
    without = {part: tree for part, tree in variables.items() if part != "fixed"}
    files = to_torch(dense, variables), to_torch(fast, without)
    assert files[0].keys() == files[1].keys()
    assert all(np.array_equal(files[0][key], files[1][key]) for key in files[0])
    key = f"{dense.backbone.head_names[0]}.weight"
    assert key not in files[1]
    rows = matrix("orthoplex", 10, 8).astype(np.float32)
    again = load_torch(fast, {**files[1], key: rows})
    assert jax.tree.structure(again) == jax.tree.structure(without)
    with pytest.raises(UsageError, match="is not the orthoplex matrix that is fixed there"):
        load_torch(fast, {**files[1], key: -rows})


@pytest.mark.parametrize(
    ("head", "applied", "macs", "stored"),
    [("orthoplex", "gather", 0, 0), ("hadamard", "transform", 64 * 6, 0), ("hadamard", "dense", 640, 640)],
)
def test_summary_counts_additions_of_the_transform_and_nothing_for_gather(
    head: str, applied: str, macs: int, stored: int, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--num-classes", "10", "--head", head, "--head-apply", applied, "--json"]
    assert main(["summary", "resnet20", *given]) == 0
    (row,) = [row for row in json.loads(capsys.readouterr().out)["layers"] if row["path"] == "head"]
    assert (row["macs"], row["fixed"]) == (macs, stored)
