"""Configs: round trip, names of their differences, and what is refused."""

import dataclasses
import json
import random
import re
import typing
from typing import Any

import pytest

from jaxclf.config import (
    AugmentConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    validate,
)
from jaxclf.config.fields import bound_of
from jaxclf.errors import UsageError, unknown

SECTIONS = {field.name: field.type for field in dataclasses.fields(Config)}
FIELDS = [
    (section.name, field.name)
    for section in dataclasses.fields(Config)
    for field in dataclasses.fields(getattr(Config(), section.name))
]


def changed(section: str, **fields: Any) -> Config:
    part = dataclasses.replace(getattr(Config(), section), **fields)
    return dataclasses.replace(Config(), **{section: part})


def unchecked(section: str, field: str, value: Any) -> Config:
    """Change a field as a recipe does outside of tests, where nothing checks the types that are annotated."""
    config = changed(section)
    object.__setattr__(getattr(config, section), field, value)
    return config


def other_value(section: str, field: str, rng: random.Random) -> Any:
    """Return a value of the field's type that is not its default."""
    part = getattr(Config(), section)
    hint, default = typing.get_type_hints(type(part))[field], getattr(part, field)
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    for choice in (hint, options[0] if options else None):
        if typing.get_origin(choice) is typing.Literal:
            return rng.choice([option for option in typing.get_args(choice) if option != default] or [default])
    kind = hint if isinstance(hint, type) else options[0]
    if typing.get_origin(hint) is tuple or typing.get_origin(kind) is tuple:
        inner = typing.get_args(hint if typing.get_origin(hint) is tuple else kind)
        length = rng.randint(1, 3) if Ellipsis in inner else len(inner)
        return tuple(rng.choice([inner[0](n), inner[0](n) * 2]) for n in range(1, length + 1))
    if kind is bool:
        return not default
    draws = {
        int: lambda: rng.randint(1000, 10**6),
        float: lambda: rng.uniform(1e-9, 1e9),
        str: lambda: f"ü {rng.random()}",
    }
    return draws[kind]()


def test_every_field_survives_json() -> None:
    rng = random.Random(0)
    for _ in range(10):
        parts = {
            section: type(getattr(Config(), section))(
                **{field: other_value(section, field, rng) for owner, field in FIELDS if owner == section}
            )
            for section in SECTIONS
        }
        config = Config(**parts)
        assert Config.from_json(config.to_json()) == config
        assert Config.from_json(json.dumps(json.loads(config.to_json()), sort_keys=True)) == config


def test_json_has_one_field_a_line_and_tuples_come_back_as_tuples() -> None:
    config = changed("optim", milestones=(3, 5))
    assert '    "lr": 0.1,\n' in config.to_json()
    assert config.to_json().endswith("}\n")
    assert Config.from_json(config.to_json()).optim.milestones == (3, 5)


def test_missing_fields_are_defaults_and_whole_numbers_become_floats() -> None:
    config = Config.from_dict({"optim": {"lr": 1}})
    assert config == changed("optim", lr=1.0)
    assert type(config.optim.lr) is float


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optim": {"lrr": 0.1}}, "unknown config field 'optim.lrr'; did you mean 'optim.lr'"),
        (
            {"modle": {}},
            "unknown config field 'modle'; did you mean 'model'? Valid: augment, data, elastic, loss, model, optim",
        ),
        ({"run": {"epoch": 1}}, "unknown config field 'run.epoch'; did you mean 'run.epochs'"),
        ({"optim": {"lr": "0.1"}}, "config field optim.lr is '0.1' but must be float"),
        ({"optim": {"lr": True}}, "config field optim.lr is True but must be float"),
        ({"optim": {"lr": None}}, "config field optim.lr is None but must be float"),
        ({"run": {"epochs": 1.0}}, "config field run.epochs is 1.0 but must be int"),
        ({"run": {"epochs": True}}, "config field run.epochs is True but must be int"),
        ({"augment": {"flip": 1}}, "config field augment.flip is 1 but must be bool"),
        ({"data": {"mean": 0.5}}, "config field data.mean is 0.5 but must be tuple"),
        ({"data": {"flip": True}}, "unknown config field 'data.flip'"),
        ({"optim": {"name": "sdg"}}, "config field optim.name is 'sdg' but must be"),
        ({"optim": {"schedule": "cosines"}}, "config field optim.schedule is 'cosines' but must be"),
        ({"model": {"maps": "10"}}, "config field model.maps is '10' but must be int | None"),
        ({"model": {"remat": False}}, "config field model.remat is False but must be one of 'none', 'block', 'stage'"),
    ],
)
def test_wrong_field_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        Config.from_dict(values)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    "text",
    [
        *('{"optim": {"milestones": [1, "2"]}}', '{"data": {"mean": ["a"]}}', '{"data": 3}', '{"data": null}'),
        *("[]", "null", "", "{", "nonsense"),
    ],
)
def test_text_that_is_no_config_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Config.from_json(text)


def test_differences_name_each_field_with_both_values() -> None:
    a = changed("optim", lr=0.2)
    b = dataclasses.replace(changed("run", epochs=3), model=ModelConfig(head="identity"))
    assert a.differences(b) == ["model.head: 'learned' != 'identity'", "optim.lr: 0.2 != 0.1", "run.epochs: 10 != 3"]
    assert a.differences(a) == []


def test_run_id_is_the_same_in_every_process() -> None:
    assert Config().run_id() == "digits-resnet20-learned-s0-d69e6e"
    assert changed("run", seed=3).run_id().startswith("digits-resnet20-learned-s3-")


@pytest.mark.parametrize(("section", "field"), FIELDS)
def test_run_id_and_differences_see_every_field(section: str, field: str) -> None:
    value = other_value(section, field, random.Random(1))
    other = changed(section, **{field: value})
    assert other.run_id() != Config().run_id()
    assert Config().differences(other) == [
        f"{section}.{field}: {getattr(getattr(Config(), section), field)!r} != {value!r}"
    ]


def test_configs_hash_and_compare_by_value() -> None:
    assert len({Config(), Config(), changed("run", seed=1)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().run = RunConfig()  # pyright: ignore[reportAttributeAccessIssue]


def test_default_config_is_valid() -> None:
    validate(Config())


def test_all_faults_are_listed_at_once() -> None:
    config = Config(
        data=DataConfig(batch_size=0, eval_batch_size=0, image_size=0, classes=1),
        augment=AugmentConfig(pad=-1),
        optim=OptimConfig(lr=-1.0, momentum=1.0, weight_decay=-1.0, milestones=(2, 1)),
        run=RunConfig(epochs=-1, seed=2**32, eval_every=0, checkpoint_every=0, steps_per_dispatch=0),
    )
    with pytest.raises(UsageError) as error:
        validate(config)
    names = [fault.split(" is ")[0] for fault in str(error.value).split("; ")]
    assert ", ".join(names) == (
        "data.classes, data.batch_size, data.eval_batch_size, data.image_size, augment.pad, optim.lr, optim.momentum, "
        "optim.weight_decay, optim.milestones, run.epochs, run.seed, run.eval_every, run.checkpoint_every, "
        "run.steps_per_dispatch"
    )
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("data.validation", 1.0, "from 0 to below 1"),
        ("augment.pad_mode", "edge", "one of zero, reflect"),
        ("augment.rand_augment", (2, 31), "operations, at least 0, and a magnitude from 0 to 30"),
        ("augment.rand_augment", (2,), "operations, at least 0, and a magnitude from 0 to 30"),
        (
            "augment.jitter",
            (0.4, 0.4, 0.4, 0.6),
            "brightness, contrast, saturation and hue, at least 0, hue at most 0.5",
        ),
        ("augment.lighting", -0.1, "at least 0 and finite"),
        ("augment.erasing", 1.5, "from 0 to 1"),
        ("augment.mixup", float("inf"), "at least 0 and finite"),
        ("augment.cutmix", -1.0, "at least 0 and finite"),
        ("augment.test", "six_crop", "one of none, flip, five_crop, ten_crop"),
        ("augment.test_crop", 28, "None unless augment.test is five_crop or ten_crop"),
        ("model.dropout", 1.0, "from 0 to below 1"),
        ("model.init", "orthogonl", "one of he_uniform, orthogonal_last, orthogonal"),
        ("model.pool_power", 0.0, "above 0 and finite"),
        ("model.pool_units", 0, "at least 1"),
        ("loss.name", "hinge", "one of cross_entropy, binary, mse, dot_regression, cosine, cosface, arcface"),
        ("loss.margin", 1.5, "from 0 to 1"),
        ("loss.label_smoothing", 1.0, "from 0 to below 1"),
        ("loss.dso", -0.025, "at least 0 and finite"),
        ("loss.so", -1.0, "at least 0 and finite"),
        ("optim.lr", float("nan"), "above 0 and finite"),
        ("optim.lr", float("inf"), "above 0 and finite"),
        ("optim.name", "lion", "one of sgd, rmsprop, "),
        ("optim.dampening", 1.1, "from 0 to 1"),
        ("optim.betas", (0.9, 1.0), "two numbers from 0 to below 1"),
        ("optim.betas", (0.9,), "two numbers from 0 to below 1"),
        ("optim.alpha", 1.0, "from 0 to below 1"),
        ("optim.eps", -1e-8, "at least 0 and finite"),
        ("optim.decay", "kernels", "one of all, weights, not_depthwise"),
        ("optim.clip_norm", 0.0, "above 0 and finite"),
        ("optim.accumulate", 0, "at least 1"),
        ("optim.ema", 1.0, "from 0 to below 1"),
        ("optim.schedule", "cosines", "one of constant, multistep, "),
        ("optim.gamma", float("nan"), "at least 0 and finite"),
        ("optim.milestones", (3, 3), "strictly increasing"),
        ("optim.power", 0.0, "above 0 and finite"),
        ("optim.warmup", -1.0, "at least 0 and finite"),
        ("optim.warmup_start", 2.0, "from 0 to 1"),
        ("run.recalibrate", -1, "at least 0"),
    ],
)
def test_value_out_of_its_range_is_refused_with_what_is_allowed(name: str, value: Any, allowed: str) -> None:
    section, field = name.split(".")
    with pytest.raises(UsageError) as error:
        validate(unchecked(section, field, value))
    shown = value if name == "augment.test_crop" else repr(value)
    assert str(error.value).startswith(f"{name} is {shown} but must be {allowed}")


@pytest.mark.parametrize(
    ("section", "fields", "message"),
    [
        *(
            ("optim", {"nesterov": True, **off}, "nesterov is True but must be off without momentum and with dampening")
            for off in ({"momentum": 0.0}, {"dampening": 0.1})
        ),
        ("optim", {"name": "lbfgs", "accumulate": 2}, "accumulate is 2 but must be 1 for lbfgs"),
        *(
            ("loss", {"name": name, "label_smoothing": 0.1}, f"label_smoothing is 0.1 but must be 0 for {name}")
            for name in ("mse", "dot_regression", "cosine")
        ),
        ("loss", {"margin": 0.2}, "margin is 0.2 but must be None for cross_entropy; it is of cosface and arcface"),
    ],
)
def test_field_that_is_wrong_beside_another_is_refused(section: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        validate(changed(section, **fields))
    assert str(error.value) == f"{section}.{message}"


def test_every_number_of_a_config_has_a_bound() -> None:
    hints = {
        f"{section}.{field}": typing.get_type_hints(type(getattr(Config(), section)), include_extras=True)[field]
        for section, field in FIELDS
    }
    numbers = {name for name, hint in hints.items() if re.search(r"\b(int|float)\b", str(hint))}
    free = {name for name in numbers if bound_of(hints[name]) is None}
    assert free == {"model.head_seed", "model.maps", "data.mean", "data.std"}


def test_unknown_lists_valid_names_in_order_and_guesses_only_near_ones() -> None:
    assert str(unknown("head", "zzz", ["b", "a"])) == "unknown head 'zzz'. Valid: a, b"
    assert isinstance(unknown("head", "zzz", []), ValueError)


def test_options_are_those_that_are_set() -> None:
    assert ModelConfig().options() == {}
    assert ModelConfig(maps=10, bias=False, head_seed=3).options() == {"bias": False, "maps": 10}
