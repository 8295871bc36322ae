"""Is identity's map as good as CAM's? What the maps of digit_scenes.py's networks say of where the digits are.

Run:  jaxclf table experiments/digit_scenes.py --workdir runs/digit_scenes, then
      python experiments/digit_scenes_maps.py --workdir runs/digit_scenes [--out experiments/results]
Cost: about a minute for each run and method on two cores; each run keeps its numbers in localisation.json.

It writes digit_scenes_maps.jsonl, a line for each run, method, size of the images and set of scenes, and what follows
from them: digit_scenes_maps.md and .html.
"""

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from jaxclf.config import DataConfig
from jaxclf.data.augment import normalise
from jaxclf.data.datasets import DigitScenes
from jaxclf.data.scenes import SIDE
from jaxclf.data.transforms import resize_images
from jaxclf.errors import UsageError
from jaxclf.intervals import student_half_width
from jaxclf.models.attribution import METHODS, attribute
from jaxclf.report.experiment import Difference, paired_difference
from jaxclf.report.gallery import TITLES
from jaxclf.report.map_pictures import Place, draw_places
from jaxclf.report.page import TEMPLATES
from jaxclf.report.pictures import svg
from jaxclf.tools.localisation import OVERLAPS, bilinear, energy_inside, max_box_accuracy, peaks, pointing_game
from jaxclf.training import weights
from jaxclf.training.weights import Weights

NAME = "digit_scenes_maps"
METHODS_OF = {"learned": METHODS, "identity": ("maps",), "orthogonal": ("maps",), "hadamard": ("maps",)}
"""By head; under the others the gradients say little that the maps do not."""
SEEDS = (0, 1, 2)
SIDES = (32, 48, 64)
"""Sides of the images; the networks were trained at the first."""
SETS = {"test": "one class", "two_classes": "two classes"}
"""Parts of `DigitScenes.scenes`, and what the tables call them."""
EVERY = 2
"""Every second scene is judged."""
PARTS = 4
"""Parts that scenes are worked through in: what the gradients need fits into 4 GiB."""
MEASURES = {
    "right": "classes right",
    "pointing": "pointing game",
    **{f"box_{overlap}": f"MaxBoxAcc {overlap}" for overlap in OVERLAPS},
    "box_mean": "mean of the three",
    "energy": "energy inside",
}
"""All in percent."""
COMPARED = {"pointing": "pointing game", "box_mean": "MaxBoxAcc", "energy": "energy"}
"""Measures by which identity is compared with the learned head, and their names in a sentence."""
CAPTION = (
    "ResNet-8 learned to name the digit in scenes of 32x32 and was never told where it is. Here its maps are asked. "
    "One class: 1,000 test scenes with one to three digits of a class among fragments of others. Two classes: 990 "
    "scenes with a digit of each of two classes, which no network was trained on; both maps are asked. Classes right: "
    "the largest logit, or both of the two largest, are of the classes shown. Pointing game: the map is largest inside "
    "a true box, no tolerance. MaxBoxAcc: the box around the largest region above a threshold has .3, .5, .7 of its "
    "union with a true box in common, at the threshold, in steps of .05, that is best for all these scenes. Energy "
    "inside: share of the map's positive part in true boxes, which cover {} and {} % of the "
    "scenes; a constant shift of all logits changes it, and no answer. All scenes count, those with a wrong answer, "
    "too. At 48x48 and 64x64 the same scenes are enlarged; no network was trained so. Mean over three seeds ± half of "
    "its 95 % interval (Student's t)."
)


class Question(NamedTuple):
    """Scenes, the classes whose maps are asked, and where these classes are."""

    images: UInt8[np.ndarray, "n h w c"]
    classes: Int[np.ndarray, "n t"]
    truth: Int[np.ndarray, "nt m 4"]
    """True boxes of each class of each image, in pixels of the 32x32 scene."""


@dataclasses.dataclass(frozen=True)
class Judged:
    """A line of the results: what the maps of one run are worth, in percent."""

    head: str
    seed: int
    method: str
    side: int
    scenes: str
    measures: Mapping[str, float]


def questions(every: int = EVERY) -> dict[str, Question]:
    """Return the question of each of `SETS`, of every n-th scene."""
    dataset, found = DigitScenes(DataConfig("digit_scenes")), {}
    for name in SETS:
        scenes = dataset.scenes(name)
        images, boxes, classes = scenes.images[::every], scenes.boxes[::every], scenes.classes[::every]
        one = name == "test"
        asked = classes[:, :1] if one else classes
        found[name] = Question(images, asked, boxes if one else boxes.reshape(-1, 1, 4))
    return found


def judge(run: Weights, question: Question, method: str, side: int) -> dict[str, float]:
    """Return the measures of a run's maps of enlarged scenes, in percent."""
    maps, logits = [], []
    for part in np.array_split(np.arange(len(question.images)), PARTS):
        pixels = inputs(run, question.images[part], side)
        maps.append(attribute(run.model, run.variables, pixels, question.classes[part], method=method))
        logits.append(np.asarray(answer(run.model, run.variables, pixels)))
    whole = np.concatenate(maps)
    flat = whole.reshape(-1, *whole.shape[2:])  # [n*t i j]
    truth, large = question.truth * (side / SIDE), bilinear(flat, (side, side))
    t = question.classes.shape[1]
    best = np.argsort(-np.concatenate(logits), axis=1, kind="stable")[:, :t]
    boxes = max_box_accuracy(large, truth)
    found = {
        "right": (np.sort(best) == np.sort(question.classes)).all(1).mean(),
        "pointing": pointing_game(peaks(flat, (side, side)), truth).mean(),
        **{f"box_{overlap}": share for overlap, share in zip(OVERLAPS, boxes, strict=True)},
        "box_mean": boxes.mean(),
        "energy": energy_inside(large, truth).mean(),
    }
    return {name: round(100 * float(value), 4) for name, value in found.items()}


answer = jax.jit(lambda model, variables, images: model.apply(variables, images), static_argnums=0)


def inputs(run: Weights, images: UInt8[np.ndarray, "n h w c"], side: int) -> Float[jax.Array, "n side side c"]:
    """Return enlarged scenes as a run's network takes them."""
    kept = run.record.preprocessing
    assert kept is not None
    large = images if side == images.shape[1] else resize_images(images, side)
    return normalise(jnp.asarray(large), kept.mean, kept.std)


def judged_run(directory: Path, head: str, seed: int, asked: Mapping[str, Question]) -> list[Judged]:
    """Return the lines of a run, which it keeps in localisation.json; those that are missing are worked out."""
    file, part = directory / "localisation.json", directory / "localisation.part"
    lines = [Judged(**line) for line in json.loads(file.read_text())] if file.exists() else []
    known = {(line.method, line.side, line.scenes) for line in lines}
    wanted = [(method, side, name) for method in METHODS_OF[head] for side in SIDES for name in asked]
    missing = [one for one in wanted if one not in known]
    run = weights.read(directory) if missing else None
    for method, side, name in missing:
        assert run is not None
        lines.append(Judged(head, seed, method, side, name, judge(run, asked[name], method, side)))
        part.write_text(json.dumps([dataclasses.asdict(line) for line in lines], indent=1) + "\n")
        part.replace(file)
    return lines


# The tables


def chosen(lines: Sequence[Judged], **facts: Any) -> list[Judged]:
    """Return the lines with these facts."""
    return [line for line in lines if all(getattr(line, name) == value for name, value in facts.items())]


def cell(values: Sequence[float]) -> str:
    """Return the mean over seeds ± half of its interval."""
    half = student_half_width(values)
    return f"{statistics.fmean(values):.1f}" + ("" if half is None else f" ± {half:.1f}")


def table(lines: Sequence[Judged], scenes: str) -> list[list[str]]:
    """Return the rows of one set of scenes: head and method, size, and every measure."""
    rows = []
    for head, methods in METHODS_OF.items():
        for method in methods:
            for side in SIDES:
                own = chosen(lines, head=head, method=method, side=side, scenes=scenes)
                values = [cell([line.measures[measure] for line in own]) for measure in MEASURES]
                rows.append([f"{head}, {named(head, method)}", str(side), *values])
    return rows


def named(head: str, method: str) -> str:
    """Return a method's name; the maps under a matrix are class activation maps."""
    return ("channels" if head == "identity" else "CAM") if method == "maps" else TITLES[method]


def differences(lines: Sequence[Judged], side: int) -> dict[tuple[str, str], Difference]:
    """Return identity minus learned, paired over seeds, by set of scenes and measure."""
    found = {}
    for scenes in SETS:
        for measure in COMPARED:
            ours, theirs = (
                {
                    line.seed: line.measures[measure]
                    for line in chosen(lines, head=head, method="maps", side=side, scenes=scenes)
                }
                for head in ("identity", "learned")
            )
            difference = paired_difference(ours, theirs)
            assert difference is not None
            found[scenes, measure] = difference
    return found


def verdict(lines: Sequence[Judged]) -> str:
    """Answer the question of this file in one sentence, from the comparisons at the size of training."""
    found = differences(lines, SIDES[0])
    kinds: dict[str, list[str]] = {"better": [], "worse": [], "not told apart": []}
    for (scenes, measure), one in found.items():
        kind = "not told apart" if one.inside_noise else "better" if one.mean > 0 else "worse"
        kinds[kind].append(f"{COMPARED[measure]} with {SETS[scenes]}")
    starts = {
        (False, False): "No difference between identity's map and CAM's is found",
        (True, False): "Identity's map is nowhere told worse than CAM's, and better in some measures",
        (False, True): "Identity's map is not as good as CAM's",
        (True, True): "Whether identity's map is as good as CAM's hangs on the measure",
    }
    start = starts[bool(kinds["better"]), bool(kinds["worse"])]
    counts = "; ".join(
        f"{len(names)} of {len(found)} {kind} ({', '.join(names)})" for kind, names in kinds.items() if names
    )
    return f"{start}. Three seeds, {SIDES[0]}x{SIDES[0]}: {counts}."


def difference_rows(lines: Sequence[Judged]) -> list[list[str]]:
    """Return the rows of identity minus learned: set of scenes, measure, and a cell for each size."""
    by_side = [differences(lines, side) for side in SIDES]
    return [[SETS[key[0]], MEASURES[key[1]], *(found[key].text for found in by_side)] for key in by_side[0]]


COLUMNS = ["map", "side", *MEASURES.values()]
COMPARISONS = ["scenes", "measure", *(f"{side}x{side}" for side in SIDES)]


def markdown(said: str, lines: Sequence[Judged]) -> str:
    """Return the tables as Markdown."""

    def drawn(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
        yield f"| {' | '.join(columns)} |"
        yield "|---|" + "---:|" * (len(columns) - 1)
        yield from (f"| {' | '.join(row)} |" for row in rows)

    text = ["# Where the digits are", "", verdict(lines), "", said, "", "## Identity minus learned, points", ""]
    text += [*drawn(COMPARISONS, difference_rows(lines)), ""]
    for scenes, name in SETS.items():
        text += [f"## {name.capitalize()}, percent", "", *drawn(COLUMNS, table(lines, scenes)), ""]
    return "\n".join(text)


# The page

SHOWN = {"test": (250, 550, 850), "two_classes": (115, 490, 750)}
"""Scenes that the page shows, by their places among the judged ones: chosen before any map was seen."""
DRAWN = (("learned", "maps"), ("learned", "grad_cam"), ("learned", "gradient"), ("identity", "maps"))
DRAWN += (("orthogonal", "maps"), ("hadamard", "maps"))


def pictures(workdir: Path, asked: Mapping[str, Question]) -> list[dict[str, str]]:
    """Return a picture of each scene and class that the page shows: maps of the runs of the first seed."""
    found = []
    runs = {head: weights.read(workdir / head / f"seed{SEEDS[0]}") for head in METHODS_OF}
    for name, numbers in SHOWN.items():
        images, classes, truth = asked[name]
        own, t = np.asarray(numbers), classes.shape[1]
        maps = {
            f"{head}, {named(head, method)}": attribute(
                runs[head].model,
                runs[head].variables,
                inputs(runs[head], images[own], SIDE),
                classes[own],
                method=method,
            )
            for head, method in DRAWN
        }
        for place, number in enumerate(numbers):
            for which in range(t):
                boxes = truth[number * t + which]
                places = [Place(label, one[place, which]) for label, one in maps.items()]
                picture = draw_places(images[number], boxes[boxes.any(-1)], places)
                said = f"{SETS[name]}, scene {number}: where is the {classes[number, which]}?"
                found.append({"said": said, "picture": svg(picture, name=f"{name}-{number}-{which}", label=said)})
    return found


def html(said: str, lines: Sequence[Judged], drawn: Sequence[Mapping[str, str]]) -> str:
    """Return the page."""
    return TEMPLATES.get_template("localisation.html").render(
        table={"title": "Where the digits are", "caption": said},
        verdict=verdict(lines),
        tables=[
            ("Identity minus learned, points", COMPARISONS, difference_rows(lines)),
            *((f"{name.capitalize()}, percent", COLUMNS, table(lines, scenes)) for scenes, name in SETS.items()),
        ],
        pictures=drawn,
    )


def caption(asked: Mapping[str, Question]) -> str:
    """Return `CAPTION` with the shares of a scene that the boxes of an asked class cover."""
    shares = []
    for question in asked.values():
        sides = question.truth[..., 2:] - question.truth[..., :2]
        shares.append(100 * float(sides.prod(-1).sum(1).mean()) / SIDE**2)
    return CAPTION.format(*(f"{share:.0f}" for share in shares))


def main(workdir: Path, out: Path) -> None:
    """Judge every run, then write the results."""
    directories = {(head, seed): workdir / head / f"seed{seed}" for head in METHODS_OF for seed in SEEDS}
    if missing := [str(one) for one in directories.values() if not (one / "result.json").exists()]:
        raise UsageError(f"no finished run in {', '.join(missing)}; jaxclf table experiments/digit_scenes.py trains it")
    asked, lines = questions(), []
    for (head, seed), directory in directories.items():
        print(f"{head}, seed {seed}", file=sys.stderr)
        lines += judged_run(directory, head, seed, asked)
    said = caption(asked)
    text = markdown(said, lines)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{NAME}.jsonl").write_text("".join(json.dumps(dataclasses.asdict(line)) + "\n" for line in lines))
    (out / f"{NAME}.md").write_text(text)
    (out / f"{NAME}.html").write_text(html(said, lines, pictures(workdir, asked)))
    print(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Judge the maps of digit_scenes.py's networks.")
    parser.add_argument("--workdir", type=Path, required=True, help="directory of the runs of digit_scenes.py")
    parser.add_argument("--out", type=Path, help="directory of the results; by default that of the runs")
    given = parser.parse_args()
    try:
        main(given.workdir, given.out or given.workdir)
    except UsageError as error:
        sys.exit(f"error: {error}")
