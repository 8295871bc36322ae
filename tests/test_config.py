"""Configs: round trip, names of their differences, and what is refused."""

import dataclasses
import json
import random
import typing
from typing import Any

import pytest

from jaxclf.config import Config, DataConfig, ModelConfig, OptimConfig, RunConfig, UsageError, unknown, validate

SECTIONS = {field.name: field.type for field in dataclasses.fields(Config)}
FIELDS = [
    (section.name, field.name)
    for section in dataclasses.fields(Config)
    for field in dataclasses.fields(getattr(Config(), section.name))
]


def changed(section: str, field: str, value: Any) -> Config:
    part = dataclasses.replace(getattr(Config(), section), **{field: value})
    return dataclasses.replace(Config(), **{section: part})


def other_value(section: str, field: str, rng: random.Random) -> Any:
    """Return a value of the field's type that is not its default."""
    part = getattr(Config(), section)
    hint, default = typing.get_type_hints(type(part))[field], getattr(part, field)
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    if typing.get_origin(hint) is typing.Literal:
        return rng.choice([option for option in options if option != default] or [default])
    kind = hint if isinstance(hint, type) else options[0]
    if typing.get_origin(hint) is tuple or typing.get_origin(kind) is tuple:
        inner = typing.get_args(hint if typing.get_origin(hint) is tuple else kind)[0]
        return tuple(rng.choice([inner(n), inner(n) * 2]) for n in range(1, rng.randint(2, 4)))
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
    for _ in range(30):
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
    config = changed("optim", "milestones", (3, 5))
    assert '    "lr": 0.1,\n' in config.to_json()
    assert config.to_json().endswith("}\n")
    assert Config.from_json(config.to_json()).optim.milestones == (3, 5)


def test_missing_fields_are_defaults_and_whole_numbers_become_floats() -> None:
    config = Config.from_dict({"optim": {"lr": 1}})
    assert config == changed("optim", "lr", 1.0)
    assert type(config.optim.lr) is float


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optim": {"lrr": 0.1}}, "unknown config field 'optim.lrr'; did you mean 'optim.lr'"),
        ({"modle": {}}, "unknown config field 'modle'; did you mean 'model'? Valid: data, model, optim, run"),
        ({"run": {"epoch": 1}}, "unknown config field 'run.epoch'; did you mean 'run.epochs'"),
        ({"optim": {"lr": "0.1"}}, "config field optim.lr is '0.1' but must be float"),
        ({"optim": {"lr": True}}, "config field optim.lr is True but must be float"),
        ({"optim": {"lr": None}}, "config field optim.lr is None but must be float"),
        ({"run": {"epochs": 1.0}}, "config field run.epochs is 1.0 but must be int"),
        ({"run": {"epochs": True}}, "config field run.epochs is True but must be int"),
        ({"data": {"flip": 1}}, "config field data.flip is 1 but must be bool"),
        ({"data": {"mean": 0.5}}, "config field data.mean is 0.5 but must be tuple"),
        ({"optim": {"schedule": "cosine"}}, "config field optim.schedule is 'cosine' but must be"),
        ({"model": {"maps": "10"}}, "config field model.maps is '10' but must be int | None"),
    ],
)
def test_wrong_field_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        Config.from_dict(values)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    "values",
    [
        {"optim": {"milestones": [1, "2"]}},
        {"data": {"mean": ["a"]}},
        {"data": 3},
        {"data": None},
        [],
        None,
    ],
)
def test_wrong_structure_is_refused(values: Any) -> None:
    with pytest.raises(UsageError):
        Config.from_dict(values)


@pytest.mark.parametrize("text", ["", "{", "nonsense"])
def test_text_that_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Config.from_json(text)


def test_differences_name_each_field_with_both_values() -> None:
    a = changed("optim", "lr", 0.2)
    b = dataclasses.replace(changed("run", "epochs", 3), model=ModelConfig(head="identity"))
    assert a.differences(b) == ["model.head: 'learned' != 'identity'", "optim.lr: 0.2 != 0.1", "run.epochs: 10 != 3"]
    assert a.differences(a) == []


def test_run_id_is_the_same_in_every_process() -> None:
    assert Config().run_id() == "digits-resnet20-learned-s0-65b7ff"
    assert changed("run", "seed", 3).run_id().startswith("digits-resnet20-learned-s3-")


@pytest.mark.parametrize(("section", "field"), FIELDS)
def test_run_id_and_differences_see_every_field(section: str, field: str) -> None:
    value = other_value(section, field, random.Random(1))
    if (section, field) == ("optim", "name"):
        pytest.skip("there is one optimiser")
    other = changed(section, field, value)
    assert other.run_id() != Config().run_id()
    assert Config().differences(other) == [
        f"{section}.{field}: {getattr(getattr(Config(), section), field)!r} != {value!r}"
    ]


def test_configs_hash_and_compare_by_value() -> None:
    assert len({Config(), Config(), changed("run", "seed", 1)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().run = RunConfig()  # pyright: ignore[reportAttributeAccessIssue]


def test_default_config_is_valid() -> None:
    validate(Config())


def test_all_faults_are_listed_at_once() -> None:
    config = Config(
        data=DataConfig(batch_size=0, eval_batch_size=0, pad=-1, image_size=0, classes=1),
        optim=OptimConfig(lr=-1.0, momentum=1.0, weight_decay=-1.0, milestones=(2, 1)),
        run=RunConfig(epochs=0, seed=2**32, eval_every=0, checkpoint_every=0, steps_per_dispatch=0),
    )
    with pytest.raises(UsageError) as error:
        validate(config)
    names = [fault.split(" is ")[0] for fault in str(error.value).split("; ")]
    assert names == [
        "data.batch_size",
        "data.eval_batch_size",
        "data.pad",
        "data.image_size",
        "data.classes",
        "optim.lr",
        "optim.momentum",
        "optim.weight_decay",
        "optim.milestones",
        "run.epochs",
        "run.seed",
        "run.eval_every",
        "run.checkpoint_every",
        "run.steps_per_dispatch",
    ]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("lr", [float("nan"), float("inf")])
def test_rate_that_is_no_number_is_refused(lr: float) -> None:
    with pytest.raises(UsageError, match=r"optim\.lr"):
        validate(changed("optim", "lr", lr))


def test_unknown_lists_valid_names_in_order_and_guesses_only_near_ones() -> None:
    assert str(unknown("head", "zzz", ["b", "a"])) == "unknown head 'zzz'. Valid: a, b"
    assert isinstance(unknown("head", "zzz", []), ValueError)


def test_options_are_those_that_are_set() -> None:
    assert ModelConfig().options() == {}
    assert ModelConfig(maps=10, bias=False, head_seed=3).options() == {"bias": False, "maps": 10}
