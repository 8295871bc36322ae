"""Neural collapse: measures of features whose values are known, and the columns of a run."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclf
from jaxclf.config import Config, DataConfig, ModelConfig
from jaxclf.data.augment import normalise
from jaxclf.errors import UsageError
from jaxclf.models.heads import Head, create_head
from jaxclf.models.matrices import matrix
from jaxclf.training.collapse import MEASURES, Moments, head_weight, measures, nearest_classes
from jaxclf.training.evaluation import measure_collapse, restore
from jaxclf.training.loop import train
from jaxclf.training.run_directory import RunDirectory
from jaxclf.training.setup import set_up
from jaxclf.training.stack import train_stacked
from tests.tiers import quick
from tests.tiny import get_config
from tests.training.runs import rows_of

SIMPLEX = np.pad(np.sqrt(4 / 3) * (np.eye(4) - 1 / 4), ((0, 0), (0, 2)))
"""Four unit vectors at cosines of -1/3, in six columns of which the last two are zero."""
POINTS = np.array([[4.0, 1.0], [2.0, -1.0], [-2.0, 1.0], [-4.0, -1.0]])
"""Two images of each of two classes: means (3, 0) and (-3, 0)."""
PAIRS = np.array([0, 0, 1, 1])
COLUMNS = [f"{split}_{name}" for split in ("train", "test") for name in MEASURES]


def collapsing(given: Config, **data: Any) -> Config:
    given = dataclasses.replace(given, data=dataclasses.replace(given.data, **data))
    return dataclasses.replace(given, run=dataclasses.replace(given.run, collapse=True))


def by_definition(features: np.ndarray, labels: np.ndarray, weight: np.ndarray) -> dict[str, Any]:
    """Compute the measures image by image, of classes 0 to k - 1 that all have images."""
    k = len(weight)
    means = np.stack([features[labels == c].mean(0) for c in range(k)])
    within = np.cov((features - means[labels]).T, bias=True)
    centred = means - means.mean(0)
    norms = np.linalg.norm(centred, axis=1)
    variances = [np.square(features[labels == c] - means[c]).sum(1).mean() for c in range(k)]
    pairs = [(a, b) for a in range(k) for b in range(k) if a != b]
    gaps = {pair: np.square(means[pair[0]] - means[pair[1]]).sum() for pair in pairs}
    share = np.linalg.svd(np.cov(features.T, bias=True))[1]
    share = share[share > 0] / share.sum()
    return {
        "nc1": np.trace(within @ np.linalg.pinv(centred.T @ centred / k, rcond=1e-9)) / k,
        "cdnv": np.mean([(variances[a] + variances[b]) / (2 * gaps[a, b]) for a, b in pairs]),
        "nc2_norm": norms.std() / norms.mean(),
        "nc2_angle": np.mean([abs(centred[a] @ centred[b] / norms[a] / norms[b] + 1 / (k - 1)) for a, b in pairs]),
        "nc3": np.linalg.norm(centred / np.linalg.norm(centred) - weight / np.linalg.norm(weight)),
        "effective_rank": np.exp(-(share * np.log(share)).sum()),
        "dead": np.mean([not features[:, channel].any() for channel in range(features.shape[1])]),
    }


# Measures


@pytest.mark.parametrize("centre", [0.0, 5.0])
def test_features_on_a_simplex_have_collapsed(centre: float) -> None:
    """The last two channels are dead where the centre does not move them; three directions vary, all alike."""
    labels = np.array([0, 1, 2, 3, 3, 2, 1, 0])
    features = 3 * SIMPLEX[labels] + centre
    moments = Moments.of(features, labels, 4)
    found = measures(moments, 0.1 * SIMPLEX)
    expected = {"nc1": 0.0, "cdnv": 0.0, "nc2_norm": 0.0, "nc2_angle": 0.0, "nc3": 0.0, "effective_rank": 3.0}
    assert found == pytest.approx(expected | {"dead": 0.0 if centre else 1 / 3}, abs=1e-9)
    assert nearest_classes(moments, features).tolist() == labels.tolist()


def test_a_case_by_hand() -> None:
    """S_w = [[1, 1], [1, 1]] and S_b = diag(9, 0), so nc1 = (1/9)/2; V_c = 2 and |m_0 - m_1| = 6, so cdnv = 4/72."""
    found = measures(Moments.of(POINTS, PAIRS, 2), np.array([[0.0, 2.0], [0.0, -2.0]]))
    shares = np.array([11 + 85**0.5, 11 - 85**0.5]) / 22  # eigenvalues of [[10, 1], [1, 1]]
    rank = np.exp(-(shares * np.log(shares)).sum())
    expected = {"nc1": 1 / 18, "cdnv": 1 / 18, "nc2_norm": 0.0, "nc2_angle": 0.0, "nc3": 2**0.5}
    assert found == pytest.approx(expected | {"effective_rank": rank, "dead": 0.0}, abs=1e-12)


@pytest.mark.parametrize(("k", "d"), [(5, 3), (3, 7)], ids=["more_classes_than_features", "fewer"])
def test_unequal_classes_in_batches_give_what_the_definitions_give(k: int, d: int) -> None:
    """And a class without an image changes nothing, wherever it stands."""
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.arange(k), rng.integers(0, k, 40)])
    features, weight = rng.standard_normal((len(labels), d)) + 10 + 2 * labels[:, None], rng.standard_normal((k, d))
    features[:, 1] = 0
    parts = [Moments.of(features[own], labels[own], k) for own in (slice(20), slice(20, 20), slice(20, None))]
    found = measures(parts[0] + parts[1] + parts[2], weight)
    assert found == pytest.approx(by_definition(features, labels, weight), rel=1e-7)
    assert list(found) == [name for name in MEASURES if name != "nc4"]
    gap = Moments.of(features, labels + (labels > 0), k + 1)
    assert gap.counts[1] == 0
    assert measures(gap, np.insert(weight, 1, 9.0, axis=0)) == pytest.approx(found)
    assert 1 not in nearest_classes(gap, features)


def test_nearest_classes_are_those_of_the_shortest_distance() -> None:
    """The means are (3, 0) and (-3, 0); (0, 1) is as far from both, and among equals the first counts."""
    moments = Moments.of(POINTS, PAIRS, 2)
    assert nearest_classes(moments, np.array([[0.2, 9.0], [-0.2, 9.0], [0.0, 1.0]])).tolist() == [0, 1, 0]


def test_the_effective_rank_of_isotropic_features_is_their_number() -> None:
    features = np.concatenate([np.eye(5), -np.eye(5)])
    assert measures(Moments.of(features, np.arange(10) % 2, 2))["effective_rank"] == pytest.approx(5.0)


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_what_is_not_defined_is_left_out(value: float) -> None:
    """All means are equal, and so are all features; 0.1 is no sum of powers of two, so rounding is there."""
    found = measures(Moments.of(np.full((9, 4), value), np.arange(9) % 3, 3), np.ones((3, 4)))
    assert found == {"dead": float(value == 0)}
    alone = measures(Moments.of(POINTS, np.zeros(4, int), 1))
    assert set(alone) == {"effective_rank", "dead"}


# Heads


class EmbedsAndNormalises(Head):
    """y = V h / |V h|: no matrix gives its answers."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        y = x @ self.param("kernel", nn.initializers.normal(), (x.shape[-1], self.num_classes))
        return y / jnp.linalg.norm(y, axis=-1, keepdims=True)


def variables_of(head: Head) -> Any:
    return head.init(jax.random.key(0), jnp.zeros((1, 8)))


@pytest.mark.parametrize("name", quick(["learned", "orthogonal", "identity"], "orthogonal"))
def test_a_linear_heads_matrix_is_found(name: str) -> None:
    head = create_head(name, 5, 8)
    variables = variables_of(head)
    kernel = np.asarray(variables["params"]["kernel"]).T if name == "learned" else matrix(name, 5, 8)
    weight = head_weight(head, variables, 8)
    assert weight is not None
    np.testing.assert_allclose(weight, kernel, atol=1e-6)


def test_the_matrix_behind_normalised_features_has_the_heads_sign() -> None:
    head = create_head("hadamard", 5, 8)
    weight = head_weight(head, variables_of(head), 8)
    assert weight is not None
    np.testing.assert_allclose(weight, -(5**-0.5) * matrix("hadamard", 5, 8), atol=1e-6)


def test_a_head_without_a_matrix_has_none() -> None:
    head = EmbedsAndNormalises(5, bias=False)
    assert head_weight(head, variables_of(head), 8) is None


ATTENTIVE = {"pool": "attention", "relu_before_pool": True, "dropout": 0.5}


@pytest.mark.parametrize("options", quick([{}, ATTENTIVE], ATTENTIVE))
def test_the_features_are_what_the_head_takes(options: Any) -> None:
    model = jaxclf.create_model("tests.tiny:Tiny", num_classes=3, **options)
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    variables: Any = model.init(jax.random.key(1), images)
    apply: Any = model.apply
    logits, features = apply(variables, images, method="logits_and_features")
    np.testing.assert_array_equal(logits, model.apply(variables, images))
    head = variables["params"]["head"]
    np.testing.assert_allclose(features @ head["kernel"] + head["bias"][None], logits, rtol=1e-5, atol=1e-6)


# Runs


def test_a_head_before_the_pool_is_refused(tmp_path: Path) -> None:
    given = get_config()
    given = collapsing(dataclasses.replace(given, model=dataclasses.replace(given.model, head="conv3x3")))
    with pytest.raises(UsageError, match=r"run\.collapse is True but must be False for model\.head conv3x3"):
        train(given, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_run_has_the_columns_of_all_its_images(tmp_path: Path) -> None:
    """The last batches of 100 are padded; the columns are those of all 1,352 and of all 445 images at once."""
    given = collapsing(get_config(), eval_batch_size=100)
    train(given, tmp_path / "run", quiet=True)
    (row,) = rows_of(tmp_path / "run")
    assert list(row)[-17:] == ["test_top5", *COLUMNS]
    with set_up(given) as setup, RunDirectory(tmp_path / "run", given, create=False) as directory:
        state = restore(setup, directory)
        given = {name: setup.data.examples(name, np.arange(n, dtype=np.int32)) for name, n in setup.data.sizes.items()}
    assert {name: len(labels) for name, (_, labels) in given.items()} == {"train": 1352, "test": 445}
    for split, (shown, labels) in given.items():
        images = normalise(jnp.asarray(shown), setup.data.mean, setup.data.std)
        found: Any = setup.program.model.apply(state.evaluated, images, method="logits_and_features")
        logits, features = (np.asarray(one, np.float64) for one in found)
        means = np.stack([features[labels == c].mean(0) for c in range(10)])
        nearest = np.square(features[:, None] - means).sum(2).argmin(1)
        expected = by_definition(features, labels, np.asarray(state.params["head"]["kernel"]).T)
        expected["nc4"] = (nearest == logits.argmax(1)).mean()
        assert {name: row[f"{split}_{name}"] for name in MEASURES} == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_a_skipped_image_counts_nowhere(photo_folder: Path, tmp_path: Path) -> None:
    """It stands alone in its batch, whose features are all left out, or is not there at all: 11 images either way."""
    found = []
    for name in ("broken", "gone"):
        folder = shutil.copytree(photo_folder, tmp_path / name)
        image = folder / "val" / "ant" / "0.png"
        image.write_bytes(b"") if name == "broken" else image.unlink()
        data = DataConfig(f"folder:{folder}", image_size=24, on_error="skip", batch_size=8, eval_batch_size=1)
        given = Config(data=data, model=ModelConfig("tests.tiny:Tiny"))
        with set_up(given) as setup:
            assert setup.data.sizes["test"] == (12 if name == "broken" else 11)
            found.append(measure_collapse(setup, setup.init_state(), "test"))
    assert found[0] == found[1]
    assert set(found[0]) == set(MEASURES)


@pytest.mark.slow
def test_no_other_number_of_a_run_changes(tmp_path: Path) -> None:
    plain = get_config()
    measured = collapsing(plain)
    digests = [train(one, tmp_path / str(one.run.collapse), quiet=True).sha256 for one in (plain, measured)]
    (without,), (row,) = rows_of(tmp_path / "False"), rows_of(tmp_path / "True")
    assert list(row) == [*without, *COLUMNS]
    assert {name: row[name] for name in without} == without
    assert digests[0] == digests[1]


@pytest.mark.slow
def test_stacked_runs_have_the_columns_of_each(tmp_path: Path) -> None:
    one = collapsing(get_config())
    other = dataclasses.replace(one, run=dataclasses.replace(one.run, seed=1))
    train_stacked([one, other], [tmp_path / "0", tmp_path / "1"], quiet=True)
    for given, workdir in ((one, tmp_path / "0"), (other, tmp_path / "1")):
        (row,) = rows_of(workdir)
        with set_up(given) as setup, RunDirectory(workdir, given, create=False) as directory:
            expected = measure_collapse(setup, restore(setup, directory), "test")
        assert {name: row[f"test_{name}"] for name in MEASURES} == pytest.approx(expected, rel=1e-6)
