"""Preparing data sets: running TFDS's own builder once, so that reading needs no TensorFlow.

The only module that imports TensorFlow, and only inside `prepare`. TFDS throws away all that it has written when it is
interrupted; at ImageNet's size that is hours. So each split is written by TFDS into a directory of its own, which is
kept once the split is whole. For a set `name/version` they lie in `name/version.parts` beside the place of the whole
set, which comes into being by one rename at the end:

    source.json       which set, of which TFDS, from which files; another one is refused
    extracted/        the files that TFDS unpacked from those of `--downloads`
    splits/SPLIT/     the shards that TFDS writes; then split.json: the split is whole
    whole/            the metadata, into which the shards are moved
"""

import contextlib
import dataclasses
import errno
import fcntl
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from jaxclf.config import DataConfig
from jaxclf.data import prepared
from jaxclf.data.datasets import TfdsSet, resolve
from jaxclf.data.facts import Facts
from jaxclf.data.sources import Report
from jaxclf.errors import RunError, UsageError, one_line
from jaxclf.storage import Location, location, require_local
from jaxclf.tools import original_files

FORMAT = "array_record"
LAYOUT = 2
"""Version of the parts directory; one that an older jaxclf began otherwise is refused like a foreign one."""


def prepare(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    downloads: str | os.PathLike[str] | None = None,
    report: Report | None = None,
) -> Location:
    """Prepare a set with TFDS's builder, or go on where an earlier call was stopped; return the directory it lies in.

    A set that is already prepared returns at once, and needs neither TensorFlow nor a network. The result is, byte for
    byte, the one that TFDS alone writes as array_record. The same call goes on after any interruption, `kill -9`
    included: finished downloads, finished splits and, under `downloads`, finished extractions are kept; the download,
    the extraction and the split that were under way begin anew. For ImageNet, whose training split is nearly all of
    it, an interruption there costs the hours since the split began, but not the files.

    Meanwhile up to twice the size of a split lies in `VERSION.parts` beside the place where the set will be. That
    directory remembers the set, TFDS's version and the source files, and is refused for others.

    Args:
      name: a TFDS image classification set, with /CONFIG where it has several; digits and folders need nothing.
      data_dir: TFDS directory; None is TFDS's own default.
      downloads: a directory that holds the original files under the last part of their URLs, and those that TFDS wants
        fetched by hand; None downloads, and looks for the latter in `data_dir`/downloads/manual. A recompressed file
        is accepted, with a warning, if its decompressed bytes are the known ones. Of files fetched by hand only size
        and end are checked, as reading ImageNet's 155 GB for a checksum would take as long as preparing a part of it.
      report: is told how many examples of a split are read. On a terminal TFDS's own bars take its place.

    Raises:
      UsageError: an unknown name, a set without image and label, files that are missing or not the right ones, no
        network, a directory that is in the way, no permission, or another process that prepares the same set.
      RunError: a full disk, or whatever the builder or the files raise meanwhile.
    """
    config = DataConfig(name, data_dir=None if data_dir is None else str(data_dir))
    dataset = resolve(config).origin
    if not isinstance(dataset, TfdsSet):
        if dataset.location is None:
            raise UsageError(f"{name} is no set of TFDS: nothing has to be prepared")
        return dataset.location
    place = location(dataset.builder.data_dir)
    if not place.exists():
        require_local(place)
        _require("tensorflow", "importlib_resources")
        sources = None if downloads is None else Path(downloads).expanduser()
        _carry_out(_Plan.of(dataset.facts, dataset.builder, sources, report))
    # A new builder: TFDS reads the metadata when it opens one.
    prepared.require_whole(name, prepared.open_builder(name, data_dir), dataset.row)
    # Usually gone by now, unless a process was killed between its last two steps.
    shutil.rmtree(parts_directory(place), ignore_errors=True)
    return place


def _require(*modules: str) -> None:
    """Raise `UsageError` if a module that only preparation needs is missing."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise UsageError(f"preparing a data set needs {' and '.join(missing)}: pip install 'jaxclf[prepare]'")


@dataclasses.dataclass(frozen=True, eq=False)
class _Plan:
    """One preparation, planned and not yet begun: nothing is written before it exists."""

    facts: Facts
    builder: Any
    """TFDS's builder over the data directory."""
    downloads: Path | None
    url_infos: dict[str, Any]
    """TFDS's table of URLs, with the sizes and checksums of the files in `downloads`."""
    manual: Path
    """Directory of the files fetched by hand."""
    source: dict[str, Any]
    """Content of `source.json`."""
    report: Report | None

    @classmethod
    def of(cls, facts: Facts, builder: Any, downloads: Path | None, report: Report | None) -> "_Plan":
        """Check the builder and the source files; `UsageError` names everything that is missing or wrong."""
        import tensorflow_datasets as tfds

        if not isinstance(builder, tfds.core.GeneratorBasedBuilder) or isinstance(builder, tfds.core.BeamBasedBuilder):
            raise UsageError(f"{facts.name} is no set that TFDS generates on one machine; prepare it with `tfds build`")
        manual = downloads or Path(builder.data_dir_root) / "downloads" / "manual"
        by_hand = original_files.fetched_by_hand(facts.name, builder, manual)
        url_infos = dict(builder.url_infos or {})
        if downloads is not None:
            url_infos = original_files.known_files(facts.name, builder, downloads, by_hand)
        files = {original_files.file_name(url): info.checksum for url, info in url_infos.items()}
        files |= {path.name: original_files.sample_sha256(path) for path in by_hand}
        source = {"set": builder.info.full_name, "tfds": tfds.__version__, "layout": LAYOUT, "files": files}
        return cls(facts, builder, downloads, url_infos, manual, source, report)

    @property
    def directory(self) -> Path:
        """Directory of the whole set."""
        return Path(self.builder.data_dir)

    @property
    def parts(self) -> Path:
        """Directory in which it comes into being. TFDS takes no directory for a set whose name is not a version."""
        return parts_directory(self.directory)

    def folder(self, split: str) -> Path:
        """Return the directory in which a split comes into being."""
        return self.parts / "splits" / split


def _carry_out(plan: _Plan) -> None:
    """Prepare the set; every failure is one line that says what is kept."""
    import tensorflow_datasets as tfds

    tfds.display_progress_bar(_bars(plan))
    with _explained(plan), _locked(plan.parts):
        if plan.directory.exists():  # another process finished it just before this one got the lock
            return
        _claim(plan)
        whole = _whole_builder(plan)
        inside = Path(whole.data_dir)
        if not (inside / "dataset_info.json").exists():
            shutil.rmtree(plan.parts / "whole", ignore_errors=True)  # left by a TFDS that was killed
            _download_and_prepare(plan, whole)
        for info in whole.info.splits.values():
            for file in map(Path, info.filepaths):
                # A kill leaves every shard in one of the two places.
                if not file.exists():
                    (plan.folder(info.name) / file.name).replace(file)
        if (inside.parents[1] / ".config").exists():  # which of several configs is the default one
            shutil.copytree(inside.parents[1] / ".config", plan.directory.parents[1] / ".config", dirs_exist_ok=True)
        inside.rename(plan.directory)
        shutil.rmtree(plan.parts)


def _bars(plan: _Plan) -> bool:
    """Return whether TFDS's bars show the progress, instead of `report`."""
    return plan.report is not None and sys.stderr.isatty()


def parts_directory(directory: Location) -> Location:
    """Return the directory in which the set that belongs in `directory` comes into being."""
    return directory.with_name(f"{directory.name}.parts")


@contextlib.contextmanager
def _locked(parts: Path) -> Iterator[None]:
    """Keep other processes out of a parts directory; the system unlocks it when this process ends, however it ends."""
    parts.mkdir(parents=True, exist_ok=True)
    with (parts / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"another process is preparing in {parts}; wait for it, or end it") from error
        yield


def _claim(plan: _Plan) -> None:
    """Say in `source.json` what is prepared here; `UsageError` if it is something else."""
    stated = plan.parts / "source.json"
    if not stated.exists():
        foreign = sorted({path.name for path in plan.parts.iterdir()} - {"lock", "source.json.new"})
        if foreign:
            raise UsageError(f"{plan.parts} holds {', '.join(foreign[:5])} of unknown origin; delete that directory")
        _write_json(stated, plan.source)
    found = json.loads(stated.read_text())
    if found == plan.source:
        return
    wanted = {key: value for key, value in plan.source.items() if key != "files"}
    differences = [f"{key} {found.get(key)} instead of {now}" for key, now in wanted.items() if found.get(key) != now]
    files, now = found.get("files", {}), plan.source["files"]
    differences += [f"another {file}" for file in sorted(files | now) if files.get(file) != now.get(file)]
    raise UsageError(
        f"{plan.parts} was begun with {', '.join(differences)}; go on with what it was begun with, or delete that "
        "directory to begin anew"
    )


def _whole_builder(plan: _Plan) -> Any:
    """Return a builder that writes the metadata into the parts directory, and each split into one of its own."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.split_builder import SplitBuilder

    base: Any = type(plan.builder)

    # TFDS would refuse a second class of this name. The module's name is part of the metadata.
    class Whole(base, skip_registration=True):  # pyright: ignore[reportGeneralTypeIssues, reportCallIssue]
        __module__ = base.__module__
        name = base.name
        url_infos = plan.url_infos

        def _download_and_prepare(self, dl_manager: Any, download_config: Any) -> None:
            writer = SplitBuilder(
                split_dict=self.info.splits,
                features=self.info.features,
                dataset_size=self.info.dataset_size,
                max_examples_per_split=None,
                beam_options=None,
                beam_runner=None,
                example_writer=self._example_writer(),
                shard_config=None,
            )
            splits = writer.normalize_legacy_split_generators(
                self._split_generators(dl_manager), self._generate_examples, is_beam=False
            )
            infos = [_written(plan, self, writer, split, examples) for split, examples in splits.items()]
            self.info.set_splits(tfds.core.SplitDict(infos))

    config = plan.builder.builder_config
    return Whole(data_dir=plan.parts / "whole", config=config, version=str(plan.builder.version))


def _download_and_prepare(plan: _Plan, whole: Any) -> None:
    """Let TFDS download, extract and write; a download that fails raises `UsageError` with the files to fetch."""
    import requests
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
    from tensorflow_datasets.core.download.util import DownloadError

    root = Path(plan.builder.data_dir_root) / "downloads"
    config = tfds.download.DownloadConfig(
        manual_dir=plan.manual,
        # TFDS names what it extracts after the file alone, and reuses what it finds under that name. mnist's and
        # fashion_mnist's files have the same names, so in a shared directory the second set would silently get the
        # first one's pixels: hence a directory of its own for files of the user's.
        extract_dir=None if plan.downloads is None else plan.parts / "extracted",
        # The hosted copies on GCS are tfrecord; trying them would only add a way to fail.
        try_download_gcs=False,
    )
    urls = [url for url in plan.url_infos if not (plan.manual / original_files.file_name(url)).exists()]
    try:
        # TFDS retries an unreachable host for minutes. Ask once first, unless an earlier run has left finished files.
        if urls and not any(root.glob("**/*.INFO*")):
            requests.head(urls[0], timeout=30, allow_redirects=True)
        # TFDS prints where it thinks that the set will be. Standard output is for where it is.
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            whole.download_and_prepare(file_format=FORMAT, download_config=config, download_dir=root)
    except (requests.RequestException, DownloadError, NonMatchingChecksumError) as error:
        raise UsageError(
            f"{plan.facts.name} could not be downloaded ({type(error).__name__}); fetch {', '.join(urls)} "
            f"elsewhere and run `jaxclf data prepare {plan.facts.name} --downloads DIR` with the directory they are in"
        ) from error


@contextlib.contextmanager
def _explained(plan: _Plan) -> Iterator[None]:
    """Turn every error while files are written into one line that says what is kept."""
    kept = f"finished splits are kept in {plan.parts}, and the same command goes on from there"
    try:
        yield
    except (UsageError, RunError):
        raise
    except PermissionError as error:
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error  # TFDS puts text in the file's place
        raise UsageError(f"{plan.facts.name}: no permission for {cause.filename or cause}; {kept}") from error
    except Exception as error:  # the builder is foreign code, and array_record says RuntimeError when the disk is full
        full = any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT))
        reason = f"the disk of {plan.parts} is full" if full else one_line(error)
        raise RunError(f"{plan.facts.name}: {reason}; {kept}") from error


def _written(plan: _Plan, builder: Any, writer: Any, split: str, examples: Any) -> Any:
    """Let TFDS write a split's shards, unless they are whole already, and return its SplitInfo."""
    import tensorflow_datasets as tfds

    folder, template = plan.folder(split), builder._get_filename_template(split)
    done = folder / "split.json"
    if not done.exists():
        if not isinstance(examples, Iterable):
            raise UsageError(f"TFDS generates {plan.facts.name} with Apache Beam; prepare it with `tfds build`")
        shutil.rmtree(folder, ignore_errors=True)  # left by a process that was killed
        folder.mkdir(parents=True)
        written = writer.submit_split_generation(
            split_name=split,
            generator=_counted(plan, split, examples),
            filename_template=template.replace(data_dir=folder),
            disable_shuffling=builder.info.disable_shuffling,
            nondeterministic_order=False,
        ).result()
        for file in folder.iterdir():
            _sync(file)
        _write_json(done, {"shard_lengths": list(written.shard_lengths), "num_bytes": written.num_bytes})
    return tfds.core.SplitInfo(name=split, filename_template=template, **json.loads(done.read_text()))


def _counted(plan: _Plan, split: str, examples: Iterable[Any]) -> Iterator[Any]:
    """Yield a split's examples; `RunError` at their end if they are not as many as are known."""
    count, known = 0, plan.facts.counts.get(split)
    for count, example in enumerate(examples, start=1):
        yield example
        if plan.report is not None and not _bars(plan):
            plan.report(f"{plan.facts.name}: reading {split}", count, known)
    if not count or known not in (None, count):
        raise RunError(
            f"{plan.facts.name}: {split} is not what it should be: it has {count:,} examples"
            f"{f' of {known:,}' if known else ''}, so the source files are not whole or have changed; delete "
            f"{plan.parts} and begin anew with the right files"
        )


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a file that is there as a whole or not at all."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(value))
    _sync(new)
    new.replace(path)
