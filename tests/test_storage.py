"""Checkpoints in an object store: whole or not there, whatever fails or is killed in between."""

import os
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from actors.config import UserError
from launch.config import RunConfig, validate
from launch.run.checkpoint import Checkpoints, Written
from launch.storage import address
from launch.storage.address import check_apart, check_package, storage_problem
from launch.storage.store import Storage, StorageError
from launch.storage.stored import Attempt, StoredCheckpoints, put_model

ROOT = Path(__file__).resolve().parent.parent


def job(output: Path, *, name: str = "first", storage: str | None = None, **checkpoint: Any) -> RunConfig:
    return validate(
        {
            "algorithm": {"name": "sft", "steps": 30, "eval_every": 1, "best_by": "eval/loss"},
            "model": {"init": {"hidden_size": 32}},
            "data": {"train": "rows.jsonl", "eval": "rows.jsonl"},
            "checkpoint": {"every": 1} | checkpoint,
            "tracking": {"wandb": False},
            "run": {"output": str(output), "name": name, "storage": storage},
        }
    )


def save(config: RunConfig, step: int, *, best: bool = False, spared: Callable[[], Iterable[Path]] = tuple) -> Path:
    """A whole checkpoint on the disk, of two files; older ones are removed, but for those that are `spared`."""

    def write(directory: Path) -> Written:
        (directory / "policy").mkdir()
        (directory / "policy/a.bin").write_bytes(bytes([step]) * 1000)
        (directory / "b.json").write_text(f"{step}")
        entry = {"metric": "eval/loss", "value": 1.0} if best else {}
        return Written({"best": entry}, [("policy/a.bin", 1000, None), ("b.json", len(f"{step}"), None)])

    checkpoints = Checkpoints(config)
    checkpoints.spared = spared
    return checkpoints.save(step, write, best=best)


class Faulty(Storage):
    """Storage that fails where it is told to."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.writes: list[str] = []
        self.fails: Callable[[int, str], bool] = lambda count, name: False

    def put(self, path: Path, name: str) -> None:
        self._count(name)
        super().put(path, name)

    def put_text(self, text: str, name: str) -> None:
        self._count(name)
        super().put_text(text, name)

    def remove(self, prefix: str) -> None:
        self._count(f"-{prefix}")
        super().remove(prefix)

    def _count(self, name: str) -> None:
        self.writes.append(name)
        if self.fails(len(self.writes), name):
            raise StorageError(f"cannot write {name}")


def memory() -> Faulty:
    return Faulty(f"memory://{uuid.uuid4().hex}")


def stored(storage: Storage, driver: str = "me") -> StoredCheckpoints:
    found = StoredCheckpoints(storage, "first", driver)
    found.claim("run 1")
    return found


def assert_same(directory: Path, original: Path) -> None:
    names = {path.relative_to(original) for path in original.rglob("*")}
    assert names == {path.relative_to(directory) for path in directory.rglob("*")}
    for name in names:
        if (original / name).is_file():
            assert (directory / name).read_bytes() == (original / name).read_bytes()


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_what_is_put_comes_back(kind: str, tmp_path: Path) -> None:
    """The pointers, too; and nothing is put again that is there already."""
    config = job(tmp_path)
    storage = memory() if kind == "memory" else Faulty(f"file://{tmp_path}/there")
    checkpoints = stored(storage)
    assert (checkpoints.candidates(), checkpoints.pointer("latest"), checkpoints.run_id()) == ([], None, "run 1")
    for step in (1, 2):
        directory = save(config, step, best=step == 1)
        checkpoints.put(Attempt(step, directory), best=step == 1, rules=config.checkpoint)
        assert checkpoints.fetch(step, tmp_path / f"fetched-{step}") is None
        assert_same(tmp_path / f"fetched-{step}", directory)
    assert checkpoints.candidates() == [2, 1]
    assert (checkpoints.pointer("latest"), checkpoints.pointer("best")) == (2, 1)
    before = len(storage.writes)
    checkpoints.put(Attempt(2, directory), best=False, rules=config.checkpoint)
    assert storage.writes[before:] == []
    checkpoints.remove_all()
    assert checkpoints.steps() == [] and checkpoints.run_id() == "run 1"


def test_an_attempt_that_fails_goes_on_where_it_was(tmp_path: Path) -> None:
    """Each write fails once; no file is put twice, and the one before is the latest until all is there."""
    config, storage = job(tmp_path), memory()
    checkpoints = stored(storage)
    checkpoints.put(Attempt(1, save(config, 1)), best=False, rules=config.checkpoint)
    attempt, failed = Attempt(2, save(config, 2)), set[str]()

    def fails(count: int, name: str) -> bool:
        new = name not in failed and "step-" in name
        failed.update([name] if new else [])
        return new

    storage.fails = fails
    del storage.writes[:]
    for _ in range(4):
        assert checkpoints.candidates() == [1]
        with pytest.raises(StorageError):
            checkpoints.put(attempt, best=False, rules=config.checkpoint)
    checkpoints.put(attempt, best=False, rules=config.checkpoint)
    assert checkpoints.candidates() == [2, 1] and checkpoints.fetch(2, tmp_path / "fetched") is None
    puts = [name for name in storage.writes if attempt.name in name]
    assert len(puts) == 2 * 3, "each of the three files once in vain, and once more"


KILLED = """
    import os, sys
    from pathlib import Path
    from tests.test_storage import Attempt, Faulty, job, save, stored

    def kill(storage, number):
        def fails(count, name):
            if count == number:
                os._exit(7)
            return False
        storage.fails = fails

    output = Path(sys.argv[1])
    config = job(output, keep=1)
    for number in range(1, 100):
        storage = Faulty(f"file://{output}/there-{number}")
        directory = save(config, 1)
        stored(storage).put(Attempt(1, directory), best=False, rules=config.checkpoint)
        newer = save(config, 2)
        del storage.writes[:]
        if not os.fork():
            kill(storage, number)
            stored(storage).put(Attempt(2, newer), best=True, rules=config.checkpoint)
            os._exit(0)
        if os.waitstatus_to_exitcode(os.wait()[1]) == 0:
            print(number)
            break
"""


def test_who_is_killed_between_two_writes_leaves_a_whole_one(tmp_path: Path) -> None:
    """At any: the one before or the new one; the next try ends with the new one alone, and nothing half-made."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    program = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    last = int(done.stdout)
    assert last > 8, "a claim, three files, a manifest, two pointers and two removals"
    config, found = job(tmp_path, keep=1), []
    newest = tmp_path / "first/checkpoints/step-2"
    for number in range(1, last):
        checkpoints = StoredCheckpoints(Storage(f"file://{tmp_path}/there-{number}"), "first", "next")
        (step, *_) = checkpoints.candidates()
        found.append(step)
        assert checkpoints.fetch(step, tmp_path / f"fetched-{number}") is None
        checkpoints.claim("run 1")
        checkpoints.put(Attempt(2, newest), best=True, rules=config.checkpoint)
        assert checkpoints.candidates() == [2]
        left = [path for path in (tmp_path / f"there-{number}").rglob("*") if path.is_file()]
        assert len(left) == 2 + 2 + 1 + 3, left
    assert found == sorted(found) and {*found} == {1, 2}


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_name_that_begins_another_one_is_not_that(kind: str, tmp_path: Path) -> None:
    """step-1 of step-10, and a run of another one's name."""
    storage = memory() if kind == "memory" else Storage(f"file://{tmp_path}/there")
    for name in ("a/step-1/b/c", "a/step-10/b", "a/step-1.json", "a2/b"):
        storage.put_text(name, name)
    assert storage.sizes("a") == {name: len(name) for name in ("a/step-1/b/c", "a/step-10/b", "a/step-1.json")}
    storage.remove("a/step-1")
    assert {*storage.sizes("a")} == {"a/step-10/b", "a/step-1.json"} and storage.text("a2/b") == "a2/b"


@pytest.mark.parametrize("damage", ["flipped", "missing", "manifest", "elsewhere"])
def test_a_damaged_object_is_named(damage: str, tmp_path: Path) -> None:
    config, storage = job(tmp_path), Storage(f"file://{tmp_path}/there")
    checkpoints, attempt = stored(storage), Attempt(1, save(config, 1))
    checkpoints.put(attempt, best=False, rules=config.checkpoint)
    base = tmp_path / "there/first/checkpoints/step-1"
    file, manifest = base / attempt.name / "policy/a.bin", base / "manifest.json"
    if damage == "flipped":
        file.write_bytes(bytes(1000))
    elif damage == "missing":
        file.unlink()
    elif damage == "manifest":
        manifest.write_text(manifest.read_text()[:-9])
    else:
        manifest.write_text(manifest.read_text().replace("policy/a.bin", "../../a.bin"))
    told = checkpoints.fetch(1, tmp_path / "a/b/fetched")
    what = {
        "flipped": f"{attempt.name}/policy/a.bin is not what was saved: its SHA-256 is another one than the manifest's",
        "missing": f"{attempt.name}/policy/a.bin is missing",
    }.get(damage, "its manifest cannot be read")
    assert told == f"file://{base} is damaged, {what}"
    assert not (tmp_path / "a/a.bin").exists()


def test_a_file_that_arrives_short_makes_nothing_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, storage = job(tmp_path), memory()
    checkpoints = stored(storage)
    put = Storage.put
    monkeypatch.setattr(Faulty, "put", lambda self, path, name: Storage.put_text(self, "", name))
    attempt = Attempt(1, save(config, 1))
    with pytest.raises(StorageError, match=r"policy/a\.bin has 0 bytes, not 1000|has 0 bytes"):
        checkpoints.put(attempt, best=False, rules=config.checkpoint)
    assert checkpoints.candidates() == []
    monkeypatch.setattr(Faulty, "put", put)
    for _ in range(3):
        try:
            checkpoints.put(attempt, best=False, rules=config.checkpoint)
        except StorageError:
            continue
    assert checkpoints.candidates() == [1]


def test_what_is_kept_there_is_what_is_kept_here(tmp_path: Path) -> None:
    """The newest, every k-th, and the best; of what goes, the manifest goes first, as it makes the rest whole."""
    config, storage = job(tmp_path, keep=2, keep_every=4), memory()
    checkpoints = stored(storage)
    for step in range(1, 8):
        checkpoints.put(Attempt(step, save(config, step)), best=step == 2, rules=config.checkpoint)
    assert checkpoints.steps() == [2, 4, 6, 7]
    assert sorted(int(path.name[5:]) for path in (tmp_path / "first/checkpoints").glob("step-*")) == [4, 6, 7]
    removed = [name for name in storage.writes if name.startswith("-")]
    assert removed[:2] == ["-first/checkpoints/step-1/manifest.json", "-first/checkpoints/step-1"]


def test_newer_ones_go_when_the_run_has_gone_back(tmp_path: Path) -> None:
    """They are of a future that did not come, and else stay; what an attempt that was killed has left goes."""
    config, storage = job(tmp_path, keep=9), memory()
    checkpoints = stored(storage)
    directories = {step: save(config, step) for step in range(1, 5)}
    for step in (1, 3, 4):
        checkpoints.put(Attempt(step, directories[step]), best=False, rules=config.checkpoint)
    storage.put_text("half", "first/checkpoints/step-1/killed/policy/a.bin")
    checkpoints.put(Attempt(2, directories[2]), best=False, rules=config.checkpoint)
    assert checkpoints.candidates() == [2, 1] and checkpoints.steps() == [1, 2, 3, 4]
    assert not [name for name in storage.sizes("first") if "killed" in name]
    checkpoints.put(Attempt(2, directories[2]), best=False, rules=config.checkpoint, newer_go=True)
    assert not [name for name in storage.sizes("first") if "step-3" in name or "step-4" in name]
    assert checkpoints.steps() == [1, 2]


def test_half_a_pointer_names_nothing(tmp_path: Path) -> None:
    config, storage = job(tmp_path, keep=30), memory()
    checkpoints = stored(storage)
    for step in (1, 12):
        checkpoints.put(Attempt(step, save(config, step)), best=False, rules=config.checkpoint)
    storage.put_text("step-1", "first/checkpoints/latest")
    assert checkpoints.pointer("latest") is None and checkpoints.candidates() == [12, 1]
    storage.put_text("step-1\n", "first/checkpoints/latest")
    assert checkpoints.candidates() == [1]


def test_another_driver_and_another_owner_are_told(tmp_path: Path) -> None:
    config, storage = job(tmp_path), memory()
    checkpoints, directory = stored(storage), save(config, 1)
    stored(storage, "another")
    with pytest.raises(UserError) as caught:
        checkpoints.put(Attempt(1, directory), best=False, rules=config.checkpoint)
    url = f"{storage.url}/first"
    assert str(caught.value) == f"run.storage: another driver has taken over {url}, so this one ends, got {url}"
    with pytest.raises(UserError, match="another driver"):
        checkpoints.put_export(directory, set())
    assert checkpoints.steps() == []
    strange = memory()
    for name in ("a", "b/c", "d", "e"):
        strange.put_text("", f"first/{name}")
    with pytest.raises(UserError) as caught:
        StoredCheckpoints(strange, "first", "me").run_id()
    url = f"{strange.url}/first"
    rule = f"must hold nothing but a run's files in {url} (it has a, b/c, d and 1 more)"
    assert str(caught.value) == f"run.storage: {rule}, got {url}"


def test_a_model_is_there_when_its_config_is(tmp_path: Path) -> None:
    """Also where it replaces another one with more files."""
    storage, model = memory(), tmp_path / "model"
    (model / "adapter").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "adapter/a"):
        (model / name).write_text("new")
    storage.put_text("old", "first/export/config.json")
    storage.put_text("old", "first/export/model-2.safetensors")
    storage.fails = lambda count, name: name.endswith("model.safetensors")
    with pytest.raises(StorageError):
        put_model(model, storage, "first/export", done := set[str]())
    assert storage.text("first/export/config.json") is None
    storage.fails = lambda count, name: False
    put_model(model, storage, "first/export", done)
    assert {*storage.sizes("first/export")} == {
        f"first/export/{name}" for name in ("config.json", "model.safetensors", "adapter/a")
    }
    assert storage.writes[-1] == "first/export/config.json" and storage.writes.count("first/export/adapter/a") == 1


def test_a_failure_is_told_in_a_line_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a library raises; what is not there is nothing of the kind."""
    storage = memory()
    assert storage.text("none") is None and storage.sizes("none") == {}
    storage.remove("none")

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("refused https://me:word@host/a?token=abc\nsecond line")

    monkeypatch.setattr(storage._files, "pipe_file", fail)
    with pytest.raises(StorageError) as caught:
        storage.put_text("", "a")
    line = str(caught.value)
    assert line.startswith(f"cannot write {storage.url}/a (RuntimeError: refused https://***@host/a?token=***")
    assert "\n" not in line and "hunter2" not in line and "abc" not in line


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("s3://bucket/runs", None),
        ("gs://bucket", None),
        ("file:///shared/runs", None),
        ("memory://a", "must outlive the run, and memory:// is the memory of one process, got memory://a"),
        ("ftp://host/a", "must begin with s3://, gs:// or file://, got ftp://host/a"),
        ("/shared/runs", "must begin with s3://, gs:// or file://, got /shared/runs"),
        ("s3://", "must name a bucket, s3://BUCKET/PATH, got s3://"),
        ("file://shared/runs", "must be absolute, file:///shared/x, got file://shared/runs"),
        ("file:///", "must be absolute, file:///shared/x, got file:///"),
        ("s3://bucket/../a", "must be a path without .., got s3://bucket/../a"),
        ("s3://a b", "must be a URL without spaces, got 's3://a b'"),
    ],
)
def test_urls_are_looked_at_before_anything_starts(url: str, problem: str | None, tmp_path: Path) -> None:
    assert storage_problem(url) == problem
    if problem:
        with pytest.raises(UserError) as caught:
            job(tmp_path, storage=url)
        assert str(caught.value) == f"run.storage {problem}"


@pytest.mark.parametrize(
    "url", ["s3://AKIAX:hunter2@bucket/a", "s3://hunter2@bucket", "gs://b/a?token=hunter2", "gs://b#hunter2"]
)
def test_credentials_in_a_url_are_refused_and_not_shown(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        job(tmp_path, storage=url)
    (line,) = caught.value.problems
    assert line.startswith("run.storage must hold no user, password") and "hunter2" not in line and "\n" not in line


def test_a_package_that_lacks_and_a_place_within_the_run_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(address.importlib.util, "find_spec", lambda name: None)
    check_package("run.storage", "file:///a")
    with pytest.raises(UserError) as caught:
        check_package("run.storage", "s3://bucket")
    line = "needs the package s3fs, which is not installed (pip install s3fs)"
    assert str(caught.value) == f"run.storage: {line}, got s3://bucket"
    for url in (f"file://{tmp_path}", f"file://{tmp_path}/first/a"):
        with pytest.raises(UserError, match=r"^run\.storage: must be apart from the run's directory"):
            check_apart(url, tmp_path / "first")
    check_apart(f"file://{tmp_path}/there", tmp_path / "first")
    check_apart("s3://bucket", tmp_path / "first")
