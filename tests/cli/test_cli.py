"""The command line: what --help says, what the data commands print, how flags reach the run."""

import ast
import dataclasses
import inspect
import io
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import jaxclf
from jaxclf.cli import data
from jaxclf.cli import main as cli
from jaxclf.cli.main import main
from jaxclf.cli.recipe import load
from jaxclf.config import Cluster, Config, DataConfig, Loader, Probing, Request, Searching, Watching
from jaxclf.data.facts import RESIDENT, STREAMED
from jaxclf.errors import Stopped
from jaxclf.models.backbones import backbone_options, list_models
from jaxclf.models.classifier import create_model
from jaxclf.models.count import count
from jaxclf.training import loop

ROOT = Path(__file__).resolve().parents[2]
TINY = str(ROOT / "tests" / "tiny.py")
PARTS = {
    **{"data": DataConfig, "request": Request, "probing": Probing, "searching": Searching},
    **{"loader": Loader, "cluster": Cluster, "watching": Watching},
}
"""Arguments that are fields of their own."""


def field_docs(kind: type) -> dict[str, str]:
    """Return the docstring under each field of a dataclass."""
    (body,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(body, ast.ClassDef)
    inherited = field_docs(kind.__base__) if kind.__base__ not in (object, None) else {}
    return inherited | {
        field.target.id: " ".join(doc.value.value.split())
        for field, doc in itertools.pairwise(body.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant) and isinstance(doc.value.value, str)
    }


def help_of(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as leaving:
        main([*command.split(), "--help"])
    assert leaving.value.code == 0
    out, err = capsys.readouterr()
    assert err == ""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", out).split())


@pytest.mark.parametrize("section", [field.name for field in dataclasses.fields(Config)])
def test_train_help_shows_every_field_of_the_config(
    section: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown, part = squeeze(help_of("train", monkeypatch, capsys)), getattr(Config(), section)
    docs = field_docs(type(part))
    for field in dataclasses.fields(part):
        flag = f"--{section}.{field.name.replace('_', '-')}"
        default = getattr(part, field.name)
        value = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
        assert flag in shown
        assert squeeze(f"{docs[field.name]} (default: {value})") in shown, flag


def squeeze(text: str) -> str:
    """Drop all blanks: a long line is broken anywhere, and beside another box."""
    return re.sub(r"\s+", "", text)


ACTIONS = {f"data {kind.__name__.lower()}": kind for kind in (data.Info, data.Prepare, data.Verify, data.Bench)}


@pytest.mark.parametrize(("command", "kind"), [*(cli.COMMANDS | ACTIONS).items()])
def test_help_shows_every_argument_with_its_meaning(
    command: str, kind: type, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown, docs = squeeze(help_of(command, monkeypatch, capsys)), field_docs(kind)
    assert squeeze((kind.__doc__ or "").splitlines()[0]) in shown
    for field in dataclasses.fields(kind):
        if field.name in PARTS:
            assert all(squeeze(text) in shown for text in field_docs(PARTS[field.name]).values())
        elif field.name not in ("config", "overrides", "action"):
            assert squeeze(docs[field.name]) in shown, field.name


LIGHT = """
import contextlib, io, sys
from jaxclf.cli.main import COMMANDS, main

for args in ([], *([name] for name in COMMANDS), ["data", "bench"]):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as help:
        main([*args, "--help"])
    assert f"usage: {' '.join(['jaxclf', *args])} " in help.getvalue()
main(["--version"])
print(sorted({"jax", "flax", "numpy", "matplotlib", "tensorflow_datasets"} & set(sys.modules)))
"""


def test_help_of_every_command_and_the_version_import_no_jax() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"jaxclf {jaxclf.__version__}\n[]\n"


def test_public_names_are_found_at_their_first_use() -> None:
    assert all(callable(getattr(jaxclf, name)) for name in jaxclf.__all__)
    with pytest.raises(AttributeError, match=r"^module 'jaxclf' has no attribute 'trian'$"):
        _ = jaxclf.trian  # pyright: ignore[reportAttributeAccessIssue]


def test_a_mistyped_command_is_named_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian", "configs/digits.py"]) == 2
    assert capsys.readouterr().err.startswith(
        "jaxclf: unknown command 'trian'; did you mean 'train'? Valid: activations, "
    )


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (
            "",
            "Expected one of {train, eval, table, sweep, search, models, heads, summary, convert, ",
        ),
        ("data", "Expected one of {list, info, prepare, verify, bench}"),
        ("data inof", "Available subcommands: list, info, prepare, verify, bench"),
        ("data info", "Missing from jaxclf data info: NAME"),
        ("data list digits", "Unrecognized options: digits"),
        ("data list --data-dir x", "--data-dir (applied to jaxclf data list)"),
        ("data info digits --seconds 1", "--seconds"),
        ("data info digits --downloads x --loader.threads 2", "--loader.threads (applied to jaxclf data info)"),
        ("data verify digits --sample 3 --image-size 9", "--sample (applied to jaxclf data verify)"),
        ("data prepare digits --backbone resnet8", "--backbone"),
        ("data bench digits --downloads x", "--downloads (applied to jaxclf data bench)"),
    ],
)
def test_words_that_a_command_does_not_know_are_named(
    args: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert main(args.split()) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err


def test_programs_are_kept_in_the_cache_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = "JAX_COMPILATION_CACHE_DIR"
    for given, expected in (({"XDG_CACHE_HOME": "/x"}, "/x/jaxclf/xla"), ({kept: "/y"}, "/y"), ({}, None)):
        monkeypatch.setattr(os, "environ", environment := dict(given))
        monkeypatch.setattr(Path, "home", no_home)
        cli._cache_compilations()
        assert environment.get(kept) == expected


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_names_that_the_encoding_of_stdout_lacks_are_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "val"):
        for name in ("größe", "日本"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("L", (8, 8)).save(tmp_path / split / name / "0.png")
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, "latin-1"))
    assert main(["data", "info", f"folder:{tmp_path}"]) == 0
    assert "größe, \\u65e5\\u672c".encode("latin-1") in printed.getvalue()


def test_models_shows_names_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "resnet1*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list_models("resnet1*")
    assert lines[0].split(None, 1)[1] == ", ".join(backbone_options(lines[0].split()[0]))
    assert main(["models", "resnt*"]) == 2
    assert capsys.readouterr().err.startswith("jaxclf: unknown backbone 'resnt*'")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--channels 0", "--channels is 0 but must be at least 1"),
        ("--image-size -3", "--image-size is -3 but must be at least 1"),
        ("--num-classes 1", "num_classes is 1 but must be a whole number"),
        ("--shortcut C", "unknown shortcut 'C'"),
    ],
)
def test_a_summary_that_cannot_be_is_refused(flags: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summary", "resnet8", *flags.split()]) == 2
    assert capsys.readouterr().err.startswith(f"jaxclf: {said}")


def test_a_summary_takes_the_options_of_its_network(capsys: pytest.CaptureFixture[str]) -> None:
    command = "summary resnet8 --num-classes 10 --shortcut B --bias False --pool attention --pool-units 4 --json"
    assert main(command.split()) == 0
    plain, options = create_model("resnet8", num_classes=10), {"shortcut": "B", "bias": False}
    other = create_model("resnet8", num_classes=10, pool="attention", pool_units=4, **options)
    totals = json.loads(capsys.readouterr().out)["totals"]
    assert totals["trainable"] == count(other, (32, 32, 3)).total("trainable")
    assert totals["trainable"] != count(plain, (32, 32, 3)).total("trainable")


def test_data_list_shows_every_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == [*RESIDENT, *STREAMED]
    named = {line.split()[0]: line for line in lines}
    assert re.match(r"digits +10 classes  8x8x1 +1,352 \+ 445 ", named["digits"])
    assert re.match(r"cifar100 +100 classes  32x32x3 +50,000 \+ 10,000 ", named["cifar100"])
    assert re.match(r"imagenet2012 +1,000 classes  any size +1,281,167 \+ 50,000 ", named["imagenet2012"])
    assert "any image classification set of TFDS by its name, and folder:PATH" in lines[-1]


def test_preparing_the_digits_needs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "prepare", "digits"]) == 0
    assert capsys.readouterr().out.endswith("digits.npz\n")


def test_flags_override_the_recipe_and_the_run_can_be_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "w"
    flags = ["--optim.lr", "0.2", "--run.seed", "4", "--data.eval-batch-size", "100", "--optim.milestones", "2", "3"]
    assert main(["train", TINY, "--workdir", str(workdir), *flags]) == 0
    out, err = capsys.readouterr()
    config = json.loads((workdir / "config.json").read_text())
    assert (config["optim"]["lr"], config["optim"]["milestones"]) == (0.2, [2, 3])
    assert config["run"] == dataclasses.asdict(Config().run) | {"epochs": 1, "seed": 4}
    assert (config["data"]["eval_batch_size"], config["data"]["batch_size"]) == (100, 64)  # 64 is the recipe's
    result = json.loads((workdir / "result.json").read_text())
    assert f"test top-1 {result['top1']:.2f} %" in out
    assert f"sha256 {result['sha256']}  {workdir}" in out
    assert "epoch 1/1  lr 0.2  train loss" in err  # one line an epoch where stderr is no terminal

    for checkpoint in ("last", "best"):
        assert main(["eval", "--workdir", str(workdir), "--checkpoint", checkpoint]) == 0
        out, err = capsys.readouterr()
        assert f"sha256 {result['sha256']}  {workdir}" in out
        assert "images/s" not in out
        assert err == ""


def test_demo_recipe_gives_the_config_of_its_head() -> None:
    get_config = load(ROOT / "configs" / "digits.py", "get_config")
    assert get_config().model.head == "learned"
    rebuilt = get_config(head="identity", seed=2)
    assert (rebuilt.model.maps, rebuilt.model.maps_shortcut, rebuilt.run.seed) == (10, "B", 2)


def test_an_interrupt_that_no_run_hears_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: data.Data) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(data.Data, "run", interrupted)
    assert main(["data", "list"]) == 130
    assert capsys.readouterr().err == "jaxclf: interrupted; the same command goes on from the last checkpoint\n"


@pytest.mark.parametrize(("flags", "code"), [((), 75), (("--stop-code", "42"), 42), (("--stop-code", "0"), 2)])
def test_a_run_that_was_asked_to_stop_ends_with_its_stop_code(
    flags: tuple[str, ...],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise Stopped("stopped at step 3")

    monkeypatch.setattr(loop, "train", stopped)
    assert main(["train", TINY, "--workdir", str(tmp_path / "run"), *flags]) == code
    said = "--stop-code is 0 but must be from 1 to 255" if code == 2 else "stopped at step 3"
    assert capsys.readouterr().err == f"jaxclf: {said}\n"


@pytest.mark.parametrize("recipe", ["configs/digits", "imagenet_resnet18", "/does/not/exist"])
def test_a_recipe_that_is_no_python_file_is_refused(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", recipe, "--workdir", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.startswith("jaxclf: the recipe is '")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("args", [["train", "", "--workdir", "w"], ["train", "a.py", "--workdir", ""]])
def test_an_empty_argument_is_refused(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    place = args.index("") + 1
    assert capsys.readouterr().err == f"jaxclf: argument {place} is empty; give a path, a name or a number\n"


RECIPES = {
    "def get_config(:": "line 1: SyntaxError: ",
    "import nothing_like_this": "line 1: ModuleNotFoundError: No module named 'nothing_like_this'",
    "get_config = 3": "defines no get_config()",
    "def get_config(a):\n    return a": "TypeError: get_config() missing 1 required positional argument: 'a'",
    "def get_config():\n    return 1 / 0": "line 2: ZeroDivisionError: division by zero",
    "from jaxclf.config import Config\n\ndef get_config():\n    return Config(optm=3)": "line 4: TypeError: ",
}


@pytest.mark.parametrize("text", RECIPES)
def test_a_fault_of_a_recipe_is_one_line_with_its_place(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.py"
    recipe.write_text(text)
    assert main(["train", str(recipe), "--workdir", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"jaxclf: {recipe}")
    assert (RECIPES[text] in err, err.count("\n")) == (True, 1)


@pytest.mark.parametrize("made", ["None", "{}"])
def test_a_recipe_that_returns_no_config_is_refused(
    made: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipes" / "wrong.py"
    recipe.parent.mkdir()
    recipe.write_text(f"def get_config():\n    return {made}\n")
    assert main(["train", str(recipe), "--workdir", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == f"jaxclf: {recipe}: get_config() returned {made} but must return a Config\n"


def test_fields_of_a_recipe_are_checked_as_those_of_json(tmp_path: Path) -> None:
    """In a process of its own: here every call of the package is checked already."""
    recipe = tmp_path / "recipes" / "wrong.py"
    recipe.parent.mkdir()
    recipe.write_text("from jaxclf.config import Config\n\ndef get_config():\n    return Config(optim=3)\n")
    command = [sys.executable, "-m", "jaxclf", "train", str(recipe), "--workdir", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"jaxclf: {recipe}: config optim is 3 but must be fields with values\n"


@pytest.mark.slow
def test_truncated_entries_of_the_compilation_cache_are_compiled_again(tmp_path: Path) -> None:
    """As a process leaves them that is killed while it writes."""
    cache = tmp_path / "cache"
    ended = []
    for name in ("whole", "truncated"):
        command = [sys.executable, "-m", "jaxclf", "train", TINY, "--workdir", str(tmp_path / name)]
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0
        assert "warning" not in done.stderr
        ended.append(json.loads((tmp_path / name / "result.json").read_text())["sha256"])
        entries = [file for file in cache.iterdir() if file.name.endswith("-cache")]
        assert entries
        for file in entries:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert ended[0] == ended[1]
