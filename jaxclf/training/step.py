"""The training state (arrays only) and the pure steps on it.

What a compiled step depends on besides arrays is a `Program`, hashable and free of seeds: runs that differ in seed
alone, in one process, share their compiled functions.
"""

import contextlib
import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct, traverse_util
from jaxtyping import Array, Bool, Float, Int, UInt8, UInt32

from jaxclf.config import AugmentConfig, ElasticConfig, LossConfig, ModelConfig, OptimConfig
from jaxclf.data.augment import augment, mix, normalise, views
from jaxclf.devices import compiler
from jaxclf.devices.layout import ALONE, Spread
from jaxclf.models.classifier import Classifier
from jaxclf.models.initialisation import initialise
from jaxclf.models.matrices import matrix
from jaxclf.models.moving import class_sums, moved
from jaxclf.training import elastic, losses
from jaxclf.training.optim import apply_updates, average, decayed, transformation
from jaxclf.training.schedules import Timeline

Tree = Any
DROPOUT_STREAM, MIXING_STREAM, SETTING_STREAM = 2**32 - 1, 2**32 - 2, 2**32 - 3
"""Folded into the seed's key where augmentation folds in the epoch: no epoch has these numbers."""
PLAIN = ModelConfig()
PLAIN_ELASTIC = ElasticConfig()


@dataclasses.dataclass(frozen=True)
class Program:
    """Everything static about a run's steps."""

    model: Classifier
    """Built with seed 0: the steps read its fixed matrices from the state."""
    optim: OptimConfig
    timeline: Timeline
    loss: LossConfig
    augment: AugmentConfig
    mean: tuple[float, ...]
    std: tuple[float, ...]
    model_config: ModelConfig = PLAIN
    """How the model starts and computes; head_seed and weights, in which runs of one program may differ, are None."""
    elastic: ElasticConfig = PLAIN_ELASTIC
    """The smaller settings of an elastic network that steps train; without any after `phase` where there are none."""
    image_size: int | None = None
    """Side that training images are resized to, bilinear; None: they stay as they are."""
    max_loss: float | None = None
    """RunConfig.max_loss; the section's other fields, the seed among them, change no step."""
    spread: Spread = ALONE
    """How steps share a batch among devices."""

    def phase(self, epoch: int) -> "Program":
        """Return the program of an epoch's steps: before the first smaller setting that of an ordinary network."""
        start = self.elastic.start
        return self if start is not None and epoch >= start else dataclasses.replace(self, elastic=PLAIN_ELASTIC)

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of what is added to the loss."""
        return losses.regulariser_names(self.loss)

    @property
    def tx(self) -> optax.GradientTransformation:
        """The optimiser."""
        return transformation(self.optim, self.timeline, depthwise=self.model.backbone.is_depthwise)


class TrainState(struct.PyTreeNode):
    """Arrays only: with the data set and the config, all that the next step needs.

    Stacked runs are one state, with a leading axis over the runs in every array.
    """

    step: Int[Array, "*runs"]
    """Steps done."""
    seed: UInt32[Array, "*runs"]
    """All randomness of a step is a function of (seed, step)."""
    params: Tree
    batch_stats: Tree
    fixed: Tree
    """Fixed matrices: never touched by the optimiser."""
    head_state: Tree
    """What moves in a head without the optimiser: class means, or which row each class has; else empty."""
    class_sums: Tree
    """Sums [k d] of the first epoch's features by class, where a head's rows are assigned by them; else empty."""
    opt_state: optax.OptState
    average: dict[str, Tree]
    """Moving averages of "params", "batch_stats" and class means, where optim.ema asks for them; else empty."""
    sums: losses.Sums
    """Training metrics of the current epoch so far."""
    bad_step: Int[Array, "*runs"]
    """The first step (from 1) whose loss or update was not finite; 0 while there is none."""
    setting: Tree = struct.field(default_factory=dict)
    """What is evaluated of an elastic network (models/elastic.py); empty, as in training: the largest."""

    @property
    def variables(self) -> dict[str, Tree]:
        """Linen's variables, as the next step takes them."""
        named = {name: getattr(self, name) for name in ("params", "batch_stats", "fixed", "head_state")}
        return {**named, "setting": self.setting} if self.setting else named

    @property
    def evaluated(self) -> dict[str, Tree]:
        """Linen's variables, as an evaluation takes them."""
        return {**self.variables, **self.average}


def draw_fixed(shapes: Tree, seed: int) -> Tree:
    """Return the `fixed` collection for a tree of shapes: leaf names are names of matrices.py, shapes are [k d]."""
    flat: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(shapes)
    drawn = {}
    for path, leaf in flat.items():
        rows, columns = leaf.shape
        drawn[path] = np.asarray(matrix(path[-1], rows, columns, seed), np.float32)
    return traverse_util.unflatten_dict(drawn)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _init_variables(model: Classifier, init: str, image_shape: tuple[int, ...], key: jax.Array) -> dict[str, Tree]:
    variables = model.init(key, jnp.zeros((1, *image_shape), jnp.float32))
    params = initialise(variables.get("params", {}), key, init=init, last_conv=model.backbone.last_conv)
    return {"params": params, **{name: variables.get(name, {}) for name in ("batch_stats", "head_state")}}


def init_state(program: Program, image_shape: tuple[int, ...], seed: int, fixed_seed: int) -> TrainState:
    """Return the state before the first step.

    Under the default `init` it is equal to `model.init(jax.random.key(seed), images)` to the bit.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    shapes = jax.eval_shape(program.model.init, jax.random.key(0), images)
    variables = _init_variables(program.model, program.model_config.init, image_shape, jax.random.key(seed))
    fixed, moves = draw_fixed(shapes.get("fixed", {}), fixed_seed), program.model.head.moves
    averaged = {name: tree for name, tree in variables.items() if name != "head_state" or moves == "means"}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        seed=jnp.asarray(seed, jnp.uint32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        fixed=jax.tree.map(jnp.asarray, fixed),
        head_state=variables["head_state"],
        class_sums=jax.tree.map(jnp.zeros_like, fixed["head"]) if moves == "rows" else {},
        opt_state=jax.tree.map(jnp.copy, program.tx.init(variables["params"])),  # donated: no two may share memory
        average={} if program.optim.ema is None else jax.tree.map(jnp.copy, averaged),
        sums=losses.zeros(terms=program.terms),
        bad_step=jnp.zeros((), jnp.int32),
    )


def train_step(
    program: Program,
    state: TrainState,
    images: UInt8[Array, "m h w c"],
    labels: Int[Array, " m"],
    indices: Int[Array, " b"] | None,
    examples: Int[Array, " b"] | None = None,
) -> TrainState:
    """Take one step on the rows `indices` of some images, a resident training set; None: on the images as they are.

    `examples` are their numbers in the data set, the rows themselves where the images are the whole set. The keys of
    dropout and mixing are functions of (seed, step), augmentation's of (seed, epoch, example). Batches that
    `optim.accumulate` splits pass through the network one part after the other, so BatchNorm sees parts, as it does in
    PyTorch's loop; parts weigh as many examples as they have. Regularisers enter once.

    Smaller settings of an elastic network enter as `ElasticConfig` says; metrics are those of the largest.

    On several devices a batch is computed where its rows are. Under pmap each replica does all of this on its own
    part, with its own mixing and dropout, and gradients and statistics are averaged, as in torch's DDP. A head that
    moves does so once a step, by sums over the whole batch.
    """
    key = jax.random.key(state.seed)
    epoch = state.step // program.timeline.steps_per_epoch
    epoch_key = jax.random.fold_in(key, epoch)
    mixing, dropout = (
        program.spread.own(jax.random.fold_in(jax.random.fold_in(key, stream), state.step))
        for stream in (MIXING_STREAM, DROPOUT_STREAM)
    )
    if indices is None:
        images = program.spread.split(images)
    else:
        indices = program.spread.split(indices)
    batch = augment(program.augment, images, indices, epoch_key, program.mean, program.std, examples=examples)
    batch, hard = program.spread.split(batch), labels if indices is None else labels[indices]
    batch, targets = mix(program.augment, batch, jax.nn.one_hot(hard, program.model.head.num_classes), mixing)
    if (side := program.image_size) is not None:
        batch = jax.image.resize(batch, (len(batch), side, side, batch.shape[-1]), "bilinear")
    drawn = jax.random.fold_in(jax.random.fold_in(key, SETTING_STREAM), state.step)
    settings = elastic.settings(program.elastic, program.model.backbone, drawn, epoch)
    grads, batch_stats, report = _gradients(program, state.variables, batch, targets, dropout, settings)
    grads, batch_stats = program.spread.mean(grads), program.spread.statistics(batch_stats)
    updates, opt_state = program.tx.update(grads, state.opt_state, state.params)
    params, step = apply_updates(program.optim, state.params, updates), state.step + 1
    everyone = jnp.ones(len(batch), bool)
    sums = losses.metric_sums(report["logits"], hard, everyone, report["losses"])
    sums = program.spread.total(sums) | report["terms"]
    loss, count = sums["loss"] + sum(report["terms"].values()), sums["count"].astype(jnp.float32)
    good = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(updates)) & jnp.isfinite(optax.tree.norm(batch_stats))
    if program.max_loss is not None:
        good &= sums["loss"] <= program.max_loss * count
    new = {"params": params, "batch_stats": batch_stats}
    if program.model.head.moves:
        by_class = program.spread.total(class_sums(report["taken"], targets))
        first_epoch = state.step < program.timeline.steps_per_epoch
        new |= moved(program.model.head, state, by_class, first_epoch=first_epoch)
    state = state.replace(
        **new,
        step=step,
        opt_state=opt_state,
        average=average(program.optim, state.average, {name: new[name] for name in state.average}, step),
        sums=jax.tree.map(jnp.add, state.sums, sums),
        bad_step=jnp.where((state.bad_step == 0) & ~good, step, state.bad_step),
    )
    return program.spread.whole(state)


def apply_model(program: Program, variables: dict[str, Tree], images: jax.Array, **options: Any) -> Any:
    """Return what `model.apply` does, with products of the run's precision."""
    precision = program.model_config.precision
    with contextlib.nullcontext() if precision == "default" else jax.default_matmul_precision(precision):
        return program.model.apply(variables, images, **options)


def _gradients(
    program: Program,
    variables: dict[str, Tree],
    batch: jax.Array,
    targets: jax.Array,
    rng: jax.Array,
    settings: list[Tree],
) -> tuple[Tree, Tree, dict[str, Any]]:
    """Return the gradient over a batch's parts, new BatchNorm statistics, and a report of answers, losses and terms.

    `settings` are the smaller ones of an elastic network; the report is of the largest.
    """
    count, sums, reports = len(batch), None, []
    bounds = np.linspace(0, count, min(program.optim.accumulate, count) + 1).astype(int)
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        part, own = slice(start, stop), jax.random.fold_in(rng, number) if number else rng
        share = (stop - start) / count
        given = (program.spread.split(batch[part]), targets[part], own)
        grads, (batch_stats, report) = _part_gradient(program, variables, *given, share=share, first=number == 0)
        sums = grads if sums is None else jax.tree.map(jnp.add, sums, grads)
        reports.append(report)
        taught = jax.nn.softmax(report["logits"])
        for setting in settings:
            smaller = {**variables, "batch_stats": batch_stats, "setting": setting}
            grads, (batch_stats, _) = _part_gradient(program, smaller, *given, share=share, first=False, taught=taught)
            sums = jax.tree.map(jnp.add, sums, grads)
        variables = {**variables, "batch_stats": batch_stats}
    terms = reports[0]["terms"]  # regularisers enter with the first part
    whole = {name: jnp.concatenate([report[name] for report in reports]) for name in reports[0] if name != "terms"}
    return sums, variables["batch_stats"], whole | {"terms": terms}


def _part_gradient(
    program: Program,
    variables: dict[str, Tree],
    images: jax.Array,
    targets: jax.Array,
    rng: jax.Array,
    *,
    share: float,
    first: bool,
    taught: Float[Array, "n k"] | None = None,
) -> tuple[Tree, tuple[Tree, dict[str, Any]]]:
    """Return the gradient of one part's share of the loss (and of the regularisers, if first), statistics, report.

    `taught` are the class probabilities that a larger network gives the images.
    """
    model, scale = program.model, losses.cosine_scale(program.loss, program.model.head)

    def loss_of(params: Tree) -> tuple[jax.Array, tuple[Tree, dict[str, Any]]]:
        answers, batch_stats = train_forward(program, {**variables, "params": params}, images, rng)
        each = losses.example_losses(program.loss, answers["logits"], targets, scale)
        for one in model.backbone.auxiliary_trained:
            each += one.weight * losses.example_losses(program.loss, answers[one.name], targets, scale)
        if taught is not None:
            each += program.elastic.distil * optax.softmax_cross_entropy(answers["logits"], taught)
        mask = decayed(program.optim, params, depthwise=model.backbone.is_depthwise)
        last = model.backbone.last_conv
        terms = losses.regularisers(program.loss, params, decayed=mask, last_conv=last) if first else {}
        report = {**answers, "losses": each, "terms": terms}
        return sum(terms.values(), each.mean() * share), (batch_stats, report)

    return jax.grad(loss_of, has_aux=True)(variables["params"])


def train_forward(
    program: Program, variables: dict[str, Tree], images: jax.Array, rng: jax.Array, kept: str = "batch_stats"
) -> tuple[dict[str, Float[Array, "n _"]], Tree]:
    """Return answers and new BatchNorm statistics of training images, of which BatchNorm sees a ghost batch at a time.

    Answers are "logits" [n k], those of auxiliary classifiers under their names, and, of a head that moves, "taken"
    [n d], what its matrix stands on. Ghost batches are consecutive images; the last one may be smaller. Their
    statistics are averaged by their sizes. With `kept` "batch_moments" these are those of the images alone, instead of
    the running ones.
    """
    group, moves, body = program.model_config.ghost_batch, program.model.head.moves, program.model.backbone
    changing = ["batch_stats", kept, *(["intermediates"] if moves or body.auxiliary else [])]

    def forward(part: jax.Array, own: jax.Array) -> tuple[dict[str, jax.Array], Tree]:
        options = {"train": True, "mutable": changing, "rngs": {"dropout": own}}
        logits, updated = apply_model(program, variables, part, **options)
        answers = {"logits": logits}
        if moves:
            answers["taken"] = updated["intermediates"]["head"]["taken"][0]
        for one in body.auxiliary_trained:
            answers[one.name] = updated["intermediates"]["backbone"][one.name]["logits"][0].astype(logits.dtype)
        return answers, updated.get(kept, {})

    if group is None or group >= len(images):
        return forward(images, rng)
    count = len(images) // group
    inside, rest = images[: count * group], images[count * group :]
    groups = program.spread.split(inside.reshape(count, group, *images.shape[1:]))
    keys = jax.vmap(functools.partial(jax.random.fold_in, rng))(jnp.arange(count))
    answers, stats = jax.vmap(forward)(groups, keys)
    answers = {name: each.reshape(count * group, -1) for name, each in answers.items()}
    stats = jax.tree.map(lambda leaf: leaf.mean(0), stats)
    if len(rest):
        more, other = forward(rest, jax.random.fold_in(rng, count))
        share = len(rest) / len(images)
        answers = {name: jnp.concatenate([each, more[name]]) for name, each in answers.items()}
        stats = jax.tree.map(lambda a, b: a + share * (b - a), stats, other)
    return {name: program.spread.split(each) for name, each in answers.items()}, stats


def take_steps(
    program: Program,
    state: TrainState,
    images: UInt8[Array, "m h w c"],
    labels: Int[Array, " m"],
    indices: Int[Array, "s b"] | None,
    examples: Int[Array, "s b"] | Int[Array, " b"] | None = None,
) -> TrainState:
    """Take s steps, each as `train_step`; without indices, one on the images as they are.

    s = 1 is no scan: on CPU a scan around convolution gradients is an order of magnitude slower.
    """
    if indices is None:
        return train_step(program, state, images, labels, None, examples)
    examples = indices if examples is None else examples
    if len(indices) == 1:
        return train_step(program, state, images, labels, indices[0], examples[0])
    both = (indices, examples)
    return jax.lax.scan(lambda s, i: (train_step(program, s, images, labels, *i), None), state, both)[0]


class Answers(NamedTuple):
    """Label and predicted class of each row of an evaluation batch; -1 where the mask leaves it out."""

    labels: Int[Array, " b"]
    predictions: Int[Array, " b"]


@functools.partial(compiler.jit, static_argnums=0)
def eval_step(
    program: Program,
    state: TrainState,
    images: UInt8[Array, "m h w c"],
    labels: Int[Array, " m"],
    indices: Int[Array, " b"] | None,
    mask: Bool[Array, " b"],
) -> tuple[losses.Sums, Answers]:
    """Return masked metric sums and answers of the examples `indices` (None: of all), by the mean logits of views."""
    batch, labels = _eval_batch(program, images, labels, indices)
    logits = _over_views(apply_model(program, state.evaluated, batch), len(labels))
    return program.spread.whole((losses.metric_sums(logits, labels, mask), _answers(logits, labels, mask)))


@functools.partial(compiler.jit, static_argnums=0)
def feature_step(
    program: Program,
    state: TrainState,
    images: UInt8[Array, "m h w c"],
    labels: Int[Array, " m"],
    indices: Int[Array, " b"] | None,
    mask: Bool[Array, " b"],
) -> tuple[Answers, Float[Array, "b d"]]:
    """Return answers as `eval_step` does, and the head's input, the mean over views; the mask leaves none of it out.

    Raises `UsageError` for a head that stands before the pool.
    """
    batch, labels = _eval_batch(program, images, labels, indices)
    given = apply_model(program, state.evaluated, batch, method="logits_and_features")
    logits, features = (_over_views(one, len(labels)) for one in given)
    return program.spread.whole((_answers(logits, labels, mask), features))


def _eval_batch(
    program: Program, images: jax.Array, labels: jax.Array, indices: jax.Array | None
) -> tuple[Float[Array, "vb h w c"], Int[Array, " b"]]:
    """Return the network's input for the examples `indices` (None: for all), view by view, and their labels."""
    if indices is not None:
        indices = program.spread.split(indices)
        images, labels = images[indices], labels[indices]
    shown = views(program.augment, images)  # [v b h w c]
    return normalise(shown.reshape(-1, *shown.shape[2:]), program.mean, program.std), labels


def _over_views(values: Float[Array, "vb k"], count: int) -> Float[Array, "b k"]:
    """Average over the views of `count` images."""
    return values.reshape(-1, count, values.shape[-1]).mean(0) if len(values) > count else values


def _answers(logits: Float[Array, "b k"], labels: Int[Array, " b"], mask: Bool[Array, " b"]) -> Answers:
    return Answers(*(jnp.where(mask, one.astype(jnp.int32), -1) for one in (labels, logits.argmax(-1))))
