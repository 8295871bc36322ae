"""Sets that TFDS prepared: their facts as TFDS has them, and whether they are whole."""

import dataclasses
import difflib
import os
from pathlib import Path
from typing import Any

from jaxclf.data.facts import RESIDENT, STREAMED, TEST_NAMES, Facts
from jaxclf.errors import UsageError, one_line
from jaxclf.storage import location, names


def open_builder(name: str, data_dir: str | os.PathLike[str] | None) -> Any:
    """Return TFDS's builder of a set over `data_dir`, from the files there or from TFDS's code.

    Raises `UsageError` for a name that neither knows, a directory that cannot be reached, and metadata that does not
    parse.
    """
    import tensorflow_datasets as tfds

    directory = None if data_dir is None else location(Path(data_dir).expanduser())
    build = tfds.builder  # TFDS logs a failed import of its own and goes on without its names: no fault of the set
    try:
        return build(name, data_dir=directory)
    except tfds.core.DatasetNotFoundError as error:
        raise _unknown(name, tfds.list_builders(with_community_datasets=False)) from error
    except Exception as error:  # TFDS re-raises whatever the parser of its JSON files raised
        raise unreadable(name, f"{directory or 'TFDS_DATA_DIR'}/{name}", error) from error


def _unknown(name: str, registered: list[str]) -> UsageError:
    near = difflib.get_close_matches(name, [*RESIDENT, *STREAMED, *registered], n=2, cutoff=0.6)
    hint = f"; did you mean {' or '.join(map(repr, dict.fromkeys(near)))}?" if near else "."
    return UsageError(
        f"unknown data set {name!r}{hint} Valid: {', '.join([*RESIDENT, *STREAMED])}, "
        "any image classification set of TFDS by its name, folder:PATH, package.module:Name"
    )


def facts_of(name: str, builder: Any) -> Facts:
    """Return the facts of a streamed set: its row, if it has one, completed by its builder.

    Raises `UsageError` for a set that has no image and label.
    """
    features, found = builder.info.features, builder.info.splits
    kinds = {key: type(feature).__name__ for key, feature in (features or {}).items()}
    if (kinds.get("image"), kinds.get("label")) != ("Image", "ClassLabel"):
        raise UsageError(f"{name} is no image classification set: it has {kinds}, but must have an image and a label")
    channels, labels = features["image"].shape[-1], features["label"]
    own = ("train", next((split for split in TEST_NAMES if split in found), "test"))
    row = STREAMED.get(name) or Facts(name=name, source=f"TFDS {builder.info.full_name}", num_classes=0, splits=own)
    train, test = (found[split].num_examples if split in found else known for split, known in row.counts.items())
    return dataclasses.replace(
        row,
        num_classes=labels.num_classes,
        class_names=row.class_names or tuple(labels.names),
        train_examples=train,
        test_examples=test,
        image_shape=(None, None, channels),
        mean=row.mean if channels == 3 else (),
        std=row.std if channels == 3 else (),
    )


def missing(name: str, builder: Any) -> UsageError:
    """Return the error for a set that is not prepared, with the command that prepares it."""
    return UsageError(
        f"{name} is not prepared: there is no {builder.data_dir}; "
        f"run `jaxclf data prepare {name} --data-dir {builder.data_dir_root}`"
    )


def require_whole(name: str, builder: Any, row: Facts | None) -> None:
    """Compare a prepared set with its metadata and its row, if it has one.

    Raises one `UsageError` that lists every difference, or says how to prepare a set that is not there.
    """
    if not location(builder.data_dir).exists():
        raise missing(name, builder)
    if not builder.is_prepared():
        raise unreadable(name, builder.data_dir, "dataset_info.json is missing")
    stored = builder.info.file_format.value
    if stored != "array_record":
        raise unreadable(name, builder.data_dir, f"it is stored as {stored}, not as array_record")
    found = {split: part.num_examples for split, part in builder.info.splits.items()}
    faults = [
        f"{split} has {found.get(split, 0)} examples instead of {count}"
        for split, count in (row.counts if row else {}).items()
        if found.get(split) != count
    ]
    if row and not row.streamed and tuple(builder.info.features["label"].names) != row.class_names:
        faults.append("the class names differ")
    files = [Path(file).name for part in builder.info.splits.values() for file in part.filepaths]
    there = set(names(location(builder.data_dir)))
    faults += [f"{file} is missing" for file in files if file not in there]
    if faults:
        raise unreadable(name, builder.data_dir, ", ".join(faults))


def unreadable(name: str, directory: object, reason: object) -> UsageError:
    """Return the error for a prepared set that is there but cannot be used."""
    return UsageError(
        f"the prepared {name} in {directory} cannot be used ({one_line(reason)}); "
        f"delete that directory and run `jaxclf data prepare {name}`, or choose another --data-dir"
    )
