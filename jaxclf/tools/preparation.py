"""Preparing data sets: running TFDS's own builder once, so that reading needs no TensorFlow.

The only module that imports TensorFlow, and only inside `prepare`. TFDS throws away what it has written when it is
interrupted; at ImageNet's size that is hours. So the builder finds, reads and encodes the examples, and TFDS writes the
metadata, but the records between the two are written here, in steps that survive a kill. For a set `name/version` they
lie in `name/version.parts` beside the place of the whole set, which comes into being by one rename at the end:

    source.json       which set, of which TFDS, from which files; another one is refused
    extracted/        what TFDS unpacked from the files of `--downloads`
    splits/SPLIT/     index and bucket-*: examples that were read. Then shards. Then split.json: the split is done
    whole/            the metadata, into which the shards are moved
"""

import contextlib
import dataclasses
import errno
import fcntl
import gzip
import hashlib
import importlib.resources
import importlib.util
import itertools
import json
import mmap
import os
import re
import shutil
import tarfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rich.console
import rich.progress

from jaxclf.data import datasets
from jaxclf.errors import RunError, UsageError

FORMAT = "array_record"
LAYOUT = 1
"""Of the parts directory; one that an older jaxclf began otherwise is refused like a foreign one."""
COMMIT_BYTES, COMMIT_SECONDS = 256 << 20, 60.0
"""Examples are kept on disk whenever so many bytes are read, or so many seconds have passed."""
REPORT_SECONDS = 30.0
"""Between two lines of progress where there is no terminal."""
BUCKET_BITS = 8
"""Examples are spread over 2**8 files by the leading bits of their hashed keys: ImageNet's are 600 MB each."""
INDEX = np.dtype([("high", "<u8"), ("low", "<u8"), ("size", "<u8")])
"""One example that was read: its key, as TFDS hashes it to 128 bits, and the length of its record."""


def prepare(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    downloads: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Path:
    """Prepare a set with TFDS's builder, or go on where an earlier call was stopped; return the directory it lies in.

    A set that is already prepared returns at once, and needs neither TensorFlow nor a network. The result is, byte for
    byte, what TFDS alone writes as array_record. The same call goes on after any interruption, `kill -9` included:

    - kept: finished downloads and, under `downloads`, finished extractions; splits that are done; of the split being
      read, all but the last minute or 256 MB; of the split being written, its finished shards. The builder still runs
      through the examples of a split that was not read to its end, but what is kept is not encoded and written again.
    - redone: the download, the extraction and the shard (up to 1 GiB) that were under way.

    Meanwhile up to the set's size, and one shard, lies in `VERSION.parts` beside the place where the set will be. That
    directory remembers the set, TFDS's version and the source files, and is refused for others.

    Args:
      name: a TFDS image classification set, with /CONFIG where it has several; digits and folders need nothing.
      data_dir: TFDS directory; None is TFDS's own default.
      downloads: a directory that holds the original files under the last part of their URLs, and those that TFDS wants
        fetched by hand; None downloads, and looks for the latter in `data_dir`/downloads/manual. A recompressed file
        is accepted, with a warning, if its decompressed bytes are the known ones. Of files fetched by hand only size
        and end are checked, as reading ImageNet's 155 GB for a checksum would take as long as preparing a part of it.
      progress: show a bar on a terminal, elsewhere a line every half minute, on stderr; holds for TFDS's bars too.

    Raises:
      UsageError: an unknown name, a set without image and label, files that are missing or not the right ones, no
        network, a directory that is in the way, no permission, or another process that prepares the same set.
      RunError: a full disk, or whatever the builder or the files raise meanwhile.
    """
    if name.startswith(datasets.FOLDER):
        return datasets.folder_root(name)
    facts = datasets.info(name, data_dir)
    if facts.tfds is None:
        return Path(str(importlib.resources.files("jaxclf.data") / "digits.npz"))
    builder = datasets.open_builder(facts.tfds, data_dir)
    directory = Path(builder.data_dir)
    if not directory.exists():
        _require("tensorflow", "importlib_resources")
        report = _Report(facts.name, quiet=not progress)
        _prepare(_Task.plan(facts, builder, None if downloads is None else Path(downloads).expanduser(), report))
        builder = datasets.open_builder(facts.tfds, data_dir)
    datasets.check(facts, builder)
    # Usually gone by now, unless a process was killed between its last two steps.
    shutil.rmtree(parts_directory(directory), ignore_errors=True)
    return directory


def _require(*modules: str) -> None:
    """Raise `UsageError` if a module that only preparation needs is missing."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise UsageError(f"preparing a data set needs {' and '.join(missing)}: pip install 'jaxclf[prepare]'")


@dataclasses.dataclass(frozen=True, eq=False)
class _Task:
    """One preparation, planned and not yet begun: nothing is written before it exists."""

    facts: datasets.DatasetInfo
    builder: Any
    """TFDS's builder over the data directory."""
    downloads: Path | None
    url_infos: dict[str, Any]
    """TFDS's table of URLs, with the sizes and checksums of the files in `downloads`."""
    manual: Path
    """Where files fetched by hand lie."""
    source: dict[str, Any]
    """What `source.json` says."""
    report: "_Report"

    @classmethod
    def plan(cls, facts: datasets.DatasetInfo, builder: Any, downloads: Path | None, report: "_Report") -> "_Task":
        """Check the builder and the source files; `UsageError` names everything that is missing or wrong."""
        import tensorflow_datasets as tfds

        if not isinstance(builder, tfds.core.GeneratorBasedBuilder) or isinstance(builder, tfds.core.BeamBasedBuilder):
            raise UsageError(f"{facts.name} is no set that TFDS generates on one machine; prepare it with `tfds build`")
        manual = downloads or Path(builder.data_dir_root) / "downloads" / "manual"
        by_hand = _manual_files(facts.name, builder, manual)
        url_infos = dict(builder.url_infos or {})
        if downloads is not None:
            url_infos = _verify_files(facts, builder, downloads, by_hand)
        files = {_file(url): info.checksum for url, info in url_infos.items()}
        files |= {path.name: _sample_sha256(path) for path in by_hand}
        source = {"set": builder.info.full_name, "tfds": tfds.__version__, "layout": LAYOUT, "files": files}
        return cls(facts, builder, downloads, url_infos, manual, source, report)

    @property
    def directory(self) -> Path:
        """Where the whole set will be."""
        return Path(self.builder.data_dir)

    @property
    def parts(self) -> Path:
        """Where it comes into being. TFDS takes no directory for a set whose name is not a version."""
        return parts_directory(self.directory)

    def expected(self, split: str) -> int | None:
        """Return how many examples a split has, where that is known before it is read."""
        known = datasets.STREAMED.get(self.facts.name, self.facts)
        names = dict(zip(known.splits, datasets.SPLITS, strict=True))
        return known.examples(names[split]) if split in names else None


def _prepare(task: _Task) -> None:
    """Carry out a task; every failure is one line that says what is kept."""
    import tensorflow_datasets as tfds

    tfds.display_progress_bar(task.report.bars)
    with _explained(task), _locked(task.parts):
        if task.directory.exists():  # another process finished it just before this one got the lock
            return
        _claim(task)
        whole = _whole_builder(task)
        inside = Path(whole.data_dir)
        if not (inside / "dataset_info.json").exists():
            shutil.rmtree(task.parts / "whole", ignore_errors=True)  # what TFDS left when it was killed
            _download_and_prepare(task, whole)
        for info in whole.info.splits.values():
            for file in map(Path, info.filepaths):
                # A kill leaves every shard in one of the two places.
                if not file.exists():
                    (_split_folder(task, info.name) / file.name).replace(file)
        if (inside.parents[1] / ".config").exists():  # which of several configs is the default one
            shutil.copytree(inside.parents[1] / ".config", task.directory.parents[1] / ".config", dirs_exist_ok=True)
        inside.rename(task.directory)
        shutil.rmtree(task.parts)


def parts_directory(directory: Path) -> Path:
    """Return where the set that belongs in a directory comes into being."""
    return directory.with_name(f"{directory.name}.parts")


def _split_folder(task: _Task, split: str) -> Path:
    return task.parts / "splits" / split


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


def _claim(task: _Task) -> None:
    """Say in `source.json` what is prepared here; `UsageError` if it is something else."""
    stated = task.parts / "source.json"
    if not stated.exists():
        foreign = sorted({path.name for path in task.parts.iterdir()} - {"lock", "source.json.new"})
        if foreign:
            raise UsageError(f"{task.parts} holds {', '.join(foreign[:5])} of unknown origin; delete that directory")
        _write_json(stated, task.source)
    found = json.loads(stated.read_text())
    if found == task.source:
        return
    wanted = {key: value for key, value in task.source.items() if key != "files"}
    differences = [f"{key} {found.get(key)} instead of {now}" for key, now in wanted.items() if found.get(key) != now]
    files, now = found.get("files", {}), task.source["files"]
    differences += [f"another {file}" for file in sorted(files | now) if files.get(file) != now.get(file)]
    raise UsageError(
        f"{task.parts} was begun with {', '.join(differences)}; go on with what it was begun with, or delete that "
        "directory to begin anew"
    )


def _whole_builder(task: _Task) -> Any:
    """Return a builder that writes the metadata into the parts directory and leaves the records to `_write_split`."""
    import tensorflow_datasets as tfds

    base: Any = type(task.builder)

    # TFDS would refuse a second class of this name. The module's name is part of the metadata.
    class Whole(base, skip_registration=True):  # pyright: ignore[reportGeneralTypeIssues, reportCallIssue]
        __module__ = base.__module__
        name = base.name
        url_infos = task.url_infos

        def _download_and_prepare(self, dl_manager: Any, download_config: Any) -> None:
            task.report.say("downloading and unpacking whatever is not there yet")
            generators = self._split_generators(dl_manager)
            if isinstance(generators, list):  # TFDS's older form
                generators = {str(part.name): self._generate_examples(**part.gen_kwargs) for part in generators}
            splits = [_write_split(task, self, split, examples) for split, examples in generators.items()]
            self.info.set_splits(tfds.core.SplitDict(splits))

    config = task.builder.builder_config
    return Whole(data_dir=task.parts / "whole", config=config, version=str(task.builder.version))


def _download_and_prepare(task: _Task, whole: Any) -> None:
    """Let TFDS do everything but the records; a download that fails raises `UsageError` with the files to fetch."""
    import requests
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
    from tensorflow_datasets.core.download.util import DownloadError

    root = Path(task.builder.data_dir_root) / "downloads"
    config = tfds.download.DownloadConfig(
        manual_dir=task.manual,
        # TFDS names what it extracts after the file alone, and reuses what it finds under that name. mnist's and
        # fashion_mnist's files have the same names, so in a shared directory the second set would silently get the
        # first one's pixels: hence a directory of its own for files of the user's.
        extract_dir=None if task.downloads is None else task.parts / "extracted",
        # The hosted copies on GCS are tfrecord; trying them would only add a way to fail.
        try_download_gcs=False,
    )
    urls = [url for url in task.url_infos if not (task.manual / _file(url)).exists()]
    try:
        # TFDS retries an unreachable host for minutes. Ask once first, unless an earlier run has left finished files.
        if urls and not any(root.glob("**/*.INFO*")):
            requests.head(urls[0], timeout=30, allow_redirects=True)
        # TFDS prints where it thinks that the set will be. Standard output is for where it is.
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            whole.download_and_prepare(file_format=FORMAT, download_config=config, download_dir=root)
    except (requests.RequestException, DownloadError, NonMatchingChecksumError) as error:
        raise UsageError(
            f"{task.facts.name} could not be downloaded ({type(error).__name__}); fetch {', '.join(urls)} "
            f"elsewhere and run `jaxclf data prepare {task.facts.name} --downloads DIR` with the directory they are in"
        ) from error


@contextlib.contextmanager
def _explained(task: _Task) -> Iterator[None]:
    """Turn what goes wrong while files are written into one line, with what is kept."""
    kept = f"what is done is kept in {task.parts}, and the same command goes on from there"
    try:
        yield
    except (UsageError, RunError):
        raise
    except PermissionError as error:
        raise UsageError(f"{task.facts.name}: no permission for {error.filename or error}; {kept}") from error
    except Exception as error:  # the builder is foreign code, and array_record says RuntimeError when the disk is full
        full = any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT))
        reason = f"the disk of {task.parts} is full" if full else datasets.one_line(error)
        raise RunError(f"{task.facts.name}: {reason}; {kept}") from error


def _write_split(task: _Task, builder: Any, split: str, examples: Any) -> Any:
    """Write a split's shards, unless that is done, and return TFDS's SplitInfo."""
    import tensorflow_datasets as tfds

    folder, template = _split_folder(task, split), builder._get_filename_template(split)
    done = folder / "split.json"
    if done.exists():
        facts = json.loads(done.read_text())
        task.report.say(f"{split} is there already ({sum(facts['shard_lengths']):,} examples)")
    else:
        reading = _Reading(folder)
        if not reading.complete:
            _read(task, builder, split, examples, reading)
        facts = _write_shards(task, builder, template.replace(data_dir=folder), reading)
        _write_json(done, facts)
        reading.remove()
    return tfds.core.SplitInfo(name=split, filename_template=template, **facts)


class _Reading:
    """The examples of a split that are read so far, on disk: records in buckets, and an index in the order of arrival.

    The index is written after the records, so whatever whole entries it holds are true; all that lies behind them in
    the buckets was under way when the process was killed, and is cut off.
    """

    def __init__(self, folder: Path) -> None:
        """Open what an earlier process left in the folder, or begin."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._file, self._mark = folder, folder / "index", folder / "read.json"
        self._records: dict[int, list[bytes]] = {}
        self._entries: list[tuple[int, int, int]] = []
        self._bytes, self._time = 0, time.monotonic()
        self.complete = self._mark.exists()
        entries = self._file.stat().st_size // INDEX.itemsize if self._file.exists() else 0
        self.index = np.fromfile(self._file, INDEX, entries) if entries else np.empty(0, INDEX)
        if not self.complete:
            self._cut()

    @property
    def buckets(self) -> np.ndarray:
        """Number of the bucket of every example of the index, int64 [n]."""
        return (self.index["high"] >> np.uint64(64 - BUCKET_BITS)).astype(np.int64)

    def bucket(self, number: int) -> Path:
        """Return the file of a bucket: records, one behind the other."""
        return self._folder / f"bucket-{number:03}"

    def _cut(self) -> None:
        lengths = np.zeros(2**BUCKET_BITS, np.uint64)
        np.add.at(lengths, self.buckets, self.index["size"])
        sizes = [file.stat().st_size if (file := self.bucket(i)).exists() else 0 for i in range(len(lengths))]
        if any(size < length for size, length in zip(sizes, lengths.tolist(), strict=True)):
            self.index, lengths = self.index[:0], np.zeros_like(lengths)  # a crash of the machine, not of the process
        for number, (size, length) in enumerate(zip(sizes, lengths.tolist(), strict=True)):
            if size > length:
                os.truncate(self.bucket(number), length)
        if self._file.exists():
            os.truncate(self._file, self.index.nbytes)

    def add(self, key: int, record: bytes) -> None:
        """Take one more example; now and then this writes all that came since the last time."""
        high, low = key >> 64, key & (2**64 - 1)
        self._records.setdefault(high >> (64 - BUCKET_BITS), []).append(record)
        self._entries.append((high, low, len(record)))
        self._bytes += len(record)
        if self._bytes >= COMMIT_BYTES or time.monotonic() >= self._time + COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Write what came since the last time, first the records and then the index."""
        for number, records in self._records.items():
            _append(self.bucket(number), b"".join(records))
        entries = np.array(self._entries, INDEX)
        _append(self._file, entries.tobytes())
        self.index = np.concatenate([self.index, entries])
        self._records, self._entries, self._bytes, self._time = {}, [], 0, time.monotonic()

    def finish(self) -> None:
        """Commit, and say that these are all examples."""
        self.commit()
        _write_json(self._mark, {"examples": len(self.index)})
        self.complete = True

    def remove(self) -> None:
        """Delete everything but the shards."""
        for file in (*self._folder.glob("bucket-*"), self._file, self._mark):
            file.unlink(missing_ok=True)


def _read(task: _Task, builder: Any, split: str, examples: Any, reading: _Reading) -> None:
    """Take a split's examples from the builder, encode them and keep them on disk, except those that are there."""
    from tensorflow_datasets.core.example_serializer import ExampleSerializer
    from tensorflow_datasets.core.hashing import Hasher

    if not isinstance(examples, Iterable):
        raise UsageError(f"TFDS generates {task.facts.name} with Apache Beam; prepare it with `tfds build`")
    features, ordered = builder.info.features, builder.info.disable_shuffling
    serialize, hasher = ExampleSerializer(features.get_serialized_info()).serialize_example, Hasher(split)
    there = {high << 64 | low for high, low, _ in reading.index.tolist()}
    if there:
        task.report.say(f"{split}: {len(there):,} examples are there already; going on behind them")
    count, known = 0, task.expected(split)
    with task.report.counting(f"{split}: reading", known) as at:
        for count, (key, example) in enumerate(examples, start=1):
            number = hasher.hash_key(key) if not ordered else key if isinstance(key, int) else count - 1
            if number in there:  # by key and not by position, so the builder's order need not be the same every time
                there.remove(number)
            else:
                reading.add(number, serialize(features.encode_example(example)))
            at(count)
    if there or not count or known not in (None, count):
        lost = f"{len(there):,} examples that it yielded earlier are gone" if there else f"it has {count:,} examples"
        raise RunError(
            f"{task.facts.name}: {split} is not what it should be: {lost}{f' of {known:,}' if known else ''}, so the "
            f"source files are not whole or have changed; delete {task.parts} and begin anew with the right files"
        )
    reading.finish()


def _write_shards(task: _Task, builder: Any, template: Any, reading: _Reading) -> dict[str, Any]:
    """Write the shards that are not there yet, in the order and of the lengths that TFDS gives them."""
    from tensorflow_datasets.core.utils import shard_utils

    index, buckets = reading.index, reading.buckets
    order = np.lexsort((index["low"], index["high"]))
    if (twice := index[order][1:][["high", "low"]] == index[order][:-1][["high", "low"]]).any():
        raise RunError(f"{task.facts.name}: {int(twice.sum())} keys of {template.split} come more than once")
    total = int(index["size"].sum())
    number = shard_utils.ShardConfig().get_number_shards(total, len(order))
    ends = list(shard_utils.get_shard_boundaries(len(order), number))
    offsets, passed = _offsets(buckets, index["size"]), 0
    with task.report.counting(f"{template.split}: writing", len(order)) as at:
        for shard, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            path = Path(template.sharded_filepath(shard_index=shard, num_shards=number))
            if not path.exists():
                new = path.with_name("shard.new")
                records = _records(reading, order[start:end], buckets, offsets)
                builder._example_writer().write(
                    new, (at(done, (done, record)) for done, record in enumerate(records, start))
                )
                _sync(new)
                new.replace(path)
            at(end)
            # Buckets are in the order of the keys. Those behind us go, or the disk would have to hold everything twice.
            passed, behind = int(buckets[order[end]]) if end < len(order) else 2**BUCKET_BITS, passed
            for bucket in range(behind, passed):
                reading.bucket(bucket).unlink(missing_ok=True)
    return {"shard_lengths": np.diff([0, *ends]).tolist(), "num_bytes": total}


def _offsets(buckets: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return where each record begins in its bucket, int64 [n], from bucket and length [n] in the order of arrival."""
    by_bucket = np.argsort(buckets, kind="stable")
    lengths = sizes[by_bucket].astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    first = np.searchsorted(buckets[by_bucket], buckets[by_bucket])
    offsets = np.empty(len(sizes), np.int64)
    offsets[by_bucket] = starts - starts[first]
    return offsets


def _records(reading: _Reading, chosen: np.ndarray, buckets: np.ndarray, offsets: np.ndarray) -> Iterator[bytes]:
    """Yield the records of chosen examples, which are in the order of their buckets."""
    for bucket, examples in itertools.groupby(chosen.tolist(), key=lambda example: int(buckets[example])):
        with reading.bucket(bucket).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for example in examples:
                yield data[offsets[example] : offsets[example] + int(reading.index["size"][example])]


def _append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a file that is there as a whole or not at all."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(value))
    _sync(new)
    new.replace(path)


class _Report:
    """What a person sees on stderr: a bar on a terminal, elsewhere a line every half minute."""

    def __init__(self, title: str, *, quiet: bool) -> None:
        """Show things under a title; `quiet` shows nothing."""
        self._title, self._quiet = title, quiet
        self._console = rich.console.Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self.bars = self._console.is_terminal and not quiet

    def say(self, line: str) -> None:
        """Print one line."""
        self._console.print(f"{self._title}: {line}", markup=False)

    @contextlib.contextmanager
    def counting(self, what: str, total: int | None) -> Iterator[Callable[..., Any]]:
        """Give a function that takes how many of `total` are done, and passes a second argument on."""
        began = shown = time.monotonic()
        done = 0
        with rich.progress.Progress(
            *(rich.progress.TextColumn("{task.description}"), rich.progress.BarColumn()),
            *(rich.progress.MofNCompleteColumn(), rich.progress.TimeRemainingColumn()),
            console=self._console,
            disable=not self.bars,
        ) as bar:
            row = bar.add_task(f"{self._title} {what}", total=total)

            def at(count: int, value: Any = None) -> Any:
                nonlocal done, shown
                done = count
                if self.bars:
                    bar.update(row, completed=count)
                elif time.monotonic() >= shown + REPORT_SECONDS:
                    shown = time.monotonic()
                    share = f" of {total:,} ({count / total:.0%})" if total else ""
                    self.say(f"{what}, {count:,}{share}, {count / (shown - began):,.0f} a second")
                return value

            yield at
        self.say(f"{what}: {done:,} examples in {time.monotonic() - began:.0f} s")


def _file(url: str) -> str:
    """Return the name under which a URL's file is looked for."""
    return url.rsplit("/", 1)[1]


def _manual_files(name: str, builder: Any, directory: Path) -> list[Path]:
    """Return the files that have to be fetched by hand; `UsageError` names those that are missing or cut off.

    TFDS has no list of them. Where its instructions say what the directory "should contain", as for everything that
    begins with ImageNet's archives, the archives they name are it; otherwise something has to be there, and the builder
    says what it misses.
    """
    instructions = " ".join((builder.MANUAL_DOWNLOAD_INSTRUCTIONS or "").split())
    if not instructions:
        return []
    names = re.findall(r"[\w.-]+\.(?:tar\.gz|tar|tgz|zip)\b", instructions) if "should contain" in instructions else []
    files = [directory / file for file in dict.fromkeys(names)]
    missing = [file.name for file in files if not file.is_file()]
    if missing or not directory.is_dir() or not any(directory.iterdir()):
        raise UsageError(
            f"{name} needs files fetched by hand that are not in {directory}: {', '.join(missing) or 'it has none'}; "
            f"give the directory they are in as --downloads DIR. TFDS says: {instructions}"
        )
    sizes = {_file(url): int(info.size) for url, info in (builder.url_infos or {}).items()}
    for file in files:
        size = file.stat().st_size
        if _cut_off(file):
            raise UsageError(f"{file} is cut off or no archive ({size:,} bytes); fetch it again")
        if sizes.get(file.name, size) != size:
            warnings.warn(f"{file} has {size:,} bytes, the original {sizes[file.name]:,}: used as it is", stacklevel=4)
    return files


def _cut_off(file: Path) -> bool:
    """Return whether an archive lacks its end: two empty blocks of a tar, the directory of a zip."""
    if file.suffix == ".zip":
        return not zipfile.is_zipfile(file)
    if file.suffix != ".tar":
        return False
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - 2 * tarfile.BLOCKSIZE))
        return opened.read() != bytes(2 * tarfile.BLOCKSIZE)


def _sample_sha256(file: Path) -> str:
    """Return a hash of a file's size and of 64 blocks of 64 KiB spread over it, to tell archives apart."""
    size, block = file.stat().st_size, 64 << 10
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as opened:
        for position in np.linspace(0, max(0, size - block), 64, dtype=np.int64).tolist():
            opened.seek(position)
            digest.update(opened.read(block))
    return digest.hexdigest()


def _verify_files(facts: datasets.DatasetInfo, builder: Any, downloads: Path, by_hand: list[Path]) -> dict[str, Any]:
    """Return TFDS's table of URLs with the size and checksum of the files in `downloads`, once their content is known.

    Missing files raise one `UsageError` that lists them all, and so do files with the wrong content. A set that has
    configs, of which each needs its own files, or that also needs files fetched by hand may download what is missing.
    """
    registered = {url: info for url, info in (builder.url_infos or {}).items() if downloads / _file(url) not in by_hand}
    paths = {url: downloads / _file(url) for url in registered}
    missing = [path.name for path in paths.values() if not path.is_file()]
    if missing and not builder.BUILDER_CONFIGS and not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        raise UsageError(
            f"{facts.name} needs files that are not in {downloads}: {', '.join(missing)} (from {', '.join(registered)})"
        )
    found, faults = dict(builder.url_infos or {}), []
    for url, path in paths.items():
        if not path.is_file():
            continue
        with path.open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
        found[url] = dataclasses.replace(registered[url], filename=path.name)  # TFDS looks for it under this name
        if checksum == registered[url].checksum:
            continue
        if _content_sha256(path) != CONTENT_SHA256.get(facts.name, {}).get(path.name, "unknown"):
            faults.append(f"{path.name} has SHA-256 {checksum} instead of {registered[url].checksum}")
            continue
        warnings.warn(f"{path} has another checksum than TFDS knows, but the right content: used", stacklevel=4)
        size = type(registered[url].size)(path.stat().st_size)
        found[url] = dataclasses.replace(registered[url], checksum=checksum, size=size, filename=path.name)
    if faults:
        raise UsageError(f"not the files of {facts.name}, in {downloads}: {'; '.join(faults)}")
    return found


def _content_sha256(path: Path) -> str | None:
    """Return the SHA-256 of a gzip file's decompressed bytes, or None if it is no whole gzip file."""
    try:
        with gzip.open(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]
    except (gzip.BadGzipFile, EOFError, zlib.error):
        return None


CONTENT_SHA256: dict[str, dict[str, str]] = {
    # Published for the uncompressed files in many repositories beside the checksums TFDS registers; not measured here.
    "mnist": {
        "train-images-idx3-ubyte.gz": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte.gz": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte.gz": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte.gz": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    # Debian's dataset-fashion-mnist. With the file name and the time (1504176606 for train, 1504176627 for t10k) put
    # back into the gzip headers, those files have exactly the checksums that TFDS registers.
    "fashion_mnist": {
        "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
}
"""SHA-256 of the decompressed original files, for files that were recompressed. CIFAR's archives must match exactly."""
