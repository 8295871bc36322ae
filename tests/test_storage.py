"""One interface over local directories and buckets: places, claims, checksums, other names."""

import http.server
import importlib.util
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from etils import epath
from etils.epath import gpath

from jaxclf import storage
from jaxclf.cli.main import main
from jaxclf.config import Config
from jaxclf.errors import RunError, UsageError
from jaxclf.storage import claim, claims, location, places
from jaxclf.training.run_directory import RunDirectory, read_config

RECIPE = Path(__file__).parent / "tiny.py"

# Places


@pytest.mark.parametrize("given", ["runs/one", "/tmp/one", "C", Path("runs"), "a:b/c"])
def test_a_local_path_is_pathlibs(given: str | Path) -> None:
    assert location(given) == Path(given)
    assert isinstance(location(given), Path)


@pytest.mark.parametrize("given", ["foo://bucket/run", Path("foo://bucket/run")])
def test_another_scheme_is_refused_by_name(given: str | Path) -> None:
    with pytest.raises(UsageError, match=r"^unknown scheme foo:// in foo://bucket/run\. Valid: .*, gs://BUCKET/PATH$"):
        location(given)


def test_s3_is_refused_with_the_reason_but_for_folders_of_images() -> None:
    with pytest.raises(UsageError, match=r"^s3://b/run can only be a folder of images: Orbax .* by renaming .* Valid"):
        location("s3://b/run")


def test_a_package_that_is_missing_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"^gs://b/run needs a package .*: pip install 'jaxclf\[gcs\]'$"):
        location("gs://b/run")
    with pytest.raises(UsageError, match=r"^s3://b/run needs a package .*: pip install 'jaxclf\[s3\]'$"):
        location("s3://b/run", storage.IMAGES)


def test_a_url_keeps_its_slashes_through_pathlib(bucket: str) -> None:
    assert str(location(Path(f"{bucket}/runs") / "one")) == f"{bucket}/runs/one"


def test_a_process_that_has_used_etils_before_reads_without_tensorflow(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EPATH_USE_TF", raising=False)
    gpath._is_tf_installed.cache_clear()
    assert epath.Path(tmp_path).exists()
    places.filesystem.cache_clear()
    places._require_bucket.cache_clear()  # another test may have asked for this bucket
    (location(bucket) / "a").write_bytes(b"1")
    assert (location(bucket) / "a").read_bytes() == b"1"


@pytest.mark.usefixtures("gcs")
def test_a_bucket_that_is_not_there_is_said() -> None:
    with pytest.raises(UsageError, match=r"^there is no bucket gs://no-such-bucket$"):
        location("gs://no-such-bucket/run")


@pytest.fixture
def closed_server(gcs: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Google Cloud Storage that knows nobody."""

    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401)
            self.end_headers()
            self.wfile.write(b'{"error": {"message": "Anonymous caller does not have storage.objects.list access"}}')

        def log_message(self, format: str, *args: object) -> None:
            pass

    import gcsfs

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
        places.filesystem.cache_clear()
        gcsfs.GCSFileSystem.clear_instance_cache()
        yield
        server.shutdown()
    places.filesystem.cache_clear()
    gcsfs.GCSFileSystem.clear_instance_cache()


@pytest.mark.usefixtures("closed_server")
def test_credentials_that_are_missing_are_one_line() -> None:
    said = r"^gs://private cannot be reached \(HttpError: Anonymous caller does not have .*\); credentials come from `g"
    with pytest.raises(UsageError, match=said):
        location("gs://private/run")


def test_credentials_of_s3_that_are_missing_are_one_line(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    places.filesystem.cache_clear()
    type(s3).clear_instance_cache()
    said = r"^s3://private cannot be reached \(NoCredentialsError: Unable to locate credentials\); credentials come fr"
    with pytest.raises(UsageError, match=said):
        location("s3://private/photos", storage.IMAGES)
    places.filesystem.cache_clear()
    type(s3).clear_instance_cache()


@pytest.mark.parametrize("workdir", ["foo://bucket/run", "s3://bucket/run"])
def test_a_run_in_another_place_is_one_line_before_anything_is_written(
    workdir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(RECIPE), "--workdir", workdir]) == 2
    assert capsys.readouterr().err.startswith(f"jaxclf: {'unknown scheme foo://' if 'foo' in workdir else workdir}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    ["heads --out", "maps x.png --weights w --out", "strongest --weights w --out", "activations x --weights w --out"],
)
def test_pages_of_pictures_are_refused_in_a_bucket(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "gs://b/page"]) == 2
    said = "gs://b/page must be a local path; what is written there can be copied"
    assert capsys.readouterr().err == f"jaxclf: {said}\n"


# Claims


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of life ten a second, and stale after one."""
    monkeypatch.setattr(claims, "BEAT", 0.1)
    monkeypatch.setattr(claims, "STALE", 1.0)


@pytest.fixture
def left(bucket: str) -> Callable[[float], str]:
    """Leave the lock of a process of another machine, whose last sign of life is so many seconds old."""

    def leave(age: float) -> str:
        who = {"host": "elsewhere", "process": "7", "since": "2026-01-01T00:00:00Z", "token": "x"}
        lock = location(f"{bucket}/run/lock")
        metadata = who | {"beat": str(time.time() - age)}
        places.filesystem_of(lock).pipe_file(str(lock), b"{}", metadata=metadata)
        return f"{bucket}/run"

    return leave


@pytest.mark.usefixtures("soon")
def test_a_bucket_has_one_writer_and_says_which(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{bucket}/run"
    with RunDirectory(url, Config()):
        who = json.loads((location(url) / "lock").read_text())
        assert (who["host"], who["process"]) == (socket.gethostname(), str(os.getpid()))
        said = f"another process is running in {url}: process {os.getpid()} of {who['host']}, since {who['since']}"
        monkeypatch.setattr(claims, "STALE", 60.0)
        with pytest.raises(RunError) as refused:
            RunDirectory(url, Config())
        assert str(refused.value) == said
        assert read_config(url) == Config()
    assert not (location(url) / "lock").exists()
    RunDirectory(url, Config()).close()


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(("age", "least"), [(3600.0, 0.2), (0.3, 0.6), (0.0, 0.9), (-3600.0, 1.0)])
def test_a_lock_without_signs_of_life_is_taken_over_with_a_warning(
    age: float, least: float, left: Callable[[float], str]
) -> None:
    """However old it is by a clock that may be wrong, two signs are waited for, and longer if it is younger."""
    url, start = left(age), time.monotonic()
    said = r"^gs:.*/run: process 7 of elsewhere, since 2026-01-01T00:00:00Z, gives no sign of life any more: its lock i"
    with pytest.warns(UserWarning, match=said):
        RunDirectory(url, Config()).close()
    assert time.monotonic() - start >= least


def test_a_live_lock_is_refused_though_its_clock_is_wrong(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT", 1.0)
    with monkeypatch.context() as patch:
        patch.setattr(claims.time, "time", lambda: 0.0)  # its first sign of life is of 1970
        held = claim(location(f"{bucket}/run"))
    with pytest.raises(RunError, match=rf"^another process is running in {bucket}/run: process {os.getpid()} of "):
        claim(location(f"{bucket}/run"))
    held.close()


def keep_writing(directory: RunDirectory) -> None:
    for _ in range(100):
        directory.write("metrics.csv", "")
        time.sleep(0.1)


@pytest.mark.usefixtures("soon")
def test_a_run_whose_lock_was_taken_over_writes_nothing_more(left: Callable[[float], str], bucket: str) -> None:
    with RunDirectory(f"{bucket}/run", Config()) as directory:
        left(0.0)
        with pytest.raises(RunError, match="another process has taken over gs://"):
            keep_writing(directory)
    assert (location(bucket) / "run" / "lock").read_text() == "{}"  # it is the other's


# Files


def test_a_directory_of_objects_is_given_another_name(bucket: str) -> None:
    place = location(bucket) / "run"
    for name in ("5/a", "5/deep/b", "55/c"):
        (place / name).write_bytes(name.encode())
    storage.retire(place / "5", place / "damaged" / "5.0")
    assert storage.names(place) == ["55", "damaged"]
    assert sorted(storage.checksums(place)) == ["55/c", "damaged/5.0/a", "damaged/5.0/deep/b"]
    assert (place / "damaged" / "5.0" / "deep" / "b").read_bytes() == b"5/deep/b"


def test_checksums_of_objects_are_their_crc32c_and_of_files_their_sha256(bucket: str, tmp_path: Path) -> None:
    """RFC 3720, B.4: of 32 bytes of zeros it is 8a9136aa; FIPS 180-2, B.1: of "abc" SHA-256 is ba7816bf..."""
    place = location(bucket) / "sums"
    (place / "zeros").write_bytes(bytes(32))
    assert storage.checksums(place) == {"zeros": "ipE2qg=="}
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "abc").write_bytes(b"abc")
    found = storage.checksums(tmp_path)
    assert found == {"deep/abc": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
