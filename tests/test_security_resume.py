"""A checkpoint runs no code: its files are the user's own, as they were saved, and hold data only."""

import json
import os
import pickle
import re
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from actors.config import EncoderHead, ModelConfig, UserError
from actors.files import own_files, stored
from actors.files.own_files import load_data_only, sha256_of, stranger
from actors.files.pickled import foreign_names
from actors.models.encoders import load_encoder
from actors.models.load import load_model, load_value_model
from actors.train.worker import Worker
from launch.config import validate
from launch.models.tensors import check_whole
from launch.run.checkpoint import Checkpoints, Written
from launch.run.saves import has_hashes, require_as_saved
from launch.verbs.export_step import export_step
from tests.fake_models import fake_model


class Mark:
    """Unpickled without care, it makes a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.directory),)


class OneRank:
    """What `require_as_saved` needs of a group, without processes: one rank that answers at once."""

    def __len__(self) -> int:
        return 1

    def submit(self, rank: int, method: Callable[..., Any], *arguments: Any) -> Future[Any]:
        answer: Future[Any] = Future()
        answer.set_result(method(object.__new__(Worker), *arguments))
        return answer

    def gather(self, refs: list[Future[Any]], what: str) -> list[Any]:
        return [ref.result() for ref in refs]


def problems(act: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        act()
    (line,) = caught.value.problems
    assert "\n" not in line
    return line


def test_what_is_written_is_hashed_as_it_is_on_disk(tmp_path: Path) -> None:
    value = {"large": torch.randn(300, 300), "small": [1, "two", torch.ones(2)]}
    assert stored.write(value, tmp_path / "a.pt") == sha256_of(tmp_path / "a.pt")
    found = stored.read(tmp_path / "a.pt")
    assert torch.equal(found["large"], value["large"])
    assert found["small"][:2] == [1, "two"]


def test_a_changed_file_is_named(tmp_path: Path) -> None:
    """Of the same length, which sizes do not show; one that torch cannot read is named too."""
    sha256 = stored.write([torch.ones(100)], tmp_path / "a.pt")
    content = bytearray((tmp_path / "a.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "a.pt").write_bytes(content)
    expected = f"{tmp_path / 'a.pt'} is not what was saved: its SHA-256 is another one than the manifest's"
    assert stored.faults(tmp_path, {"a.pt": sha256}) == [(expected, True)]
    (tmp_path / "a.pt").write_bytes(b"no zip")
    (found,) = stored.faults(tmp_path, {"a.pt": None})
    assert found.line.startswith(f"{tmp_path / 'a.pt'} cannot be read (") and found.damage


@pytest.mark.parametrize("mode", [0o602, 0o662])
def test_a_file_that_others_may_write_is_refused(mode: int, tmp_path: Path) -> None:
    file = tmp_path / "random-0.pt"
    stored.write([torch.ones(2)], file)
    assert stranger(file) is None
    file.chmod(mode)
    why = "can be written by everybody (if you trust what it holds: chmod go-w)"
    assert stored.faults(tmp_path, {file.name: None}) == [(f"{file} {why}", False)]
    assert problems(lambda: stored.read(file)) == f"checkpoint.resume: {file} {why}; it was not loaded"


def test_what_is_saved_cannot_be_written_by_a_group(tmp_path: Path) -> None:
    """Whatever the umask is, so that a run does not refuse its own files."""
    before = os.umask(0)
    try:
        stored.write([], tmp_path / "a.pt")
        directory = Checkpoints(job(tmp_path)).save(1, save_one)
    finally:
        os.umask(before)
    for file in (tmp_path / "a.pt", directory / "manifest.json", directory / "policy/random-0.pt"):
        assert file.stat().st_mode & 0o022 == 0, file


MEAN = EncoderHead(kind="embedding", pooling="mean")


def _load_encoder(head: EncoderHead, model: ModelConfig, directory: str) -> Any:
    return load_encoder(model, head, directory)


def with_pickled_weights(directory: Path, *further: Any, zipped: bool = True) -> Path:
    """A model whose weights are in pytorch_model.bin, with something beside them."""
    found = fake_model(directory)
    weights: dict[str, Any] = load_file(found / "model.safetensors")
    (found / "model.safetensors").unlink()
    weights |= {f"further {number}": value for number, value in enumerate(further)}
    torch.save(weights, found / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    return found


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_weights_that_name_code_are_refused(zipped: bool, tmp_path: Path) -> None:
    """By the check, and by loading itself, as a policy, critic, reward or embedding model; plain ones are loaded."""
    good, marker = with_pickled_weights(tmp_path / "good", zipped=zipped), tmp_path / "marker"
    check_whole(good, "model.path")
    load_model(ModelConfig(path=str(good)), str(good))
    bad = with_pickled_weights(tmp_path / "bad", Mark(marker), zipped=zipped)
    line = problems(lambda: check_whole(bad, "model.path"))
    assert line == f"model.path: weights in {bad} cannot be read, pytorch_model.bin holds more than data: posix.mkdir"
    for load in (load_model, load_value_model, partial(_load_encoder, MEAN)):
        line = problems(lambda load=load: load(ModelConfig(path=str(bad)), str(bad)))
        assert line == f"model.path: weights in {bad} hold more than data: posix.mkdir; they were not loaded"
    assert not marker.exists()


def test_what_weights_name_is_read_without_loading(tmp_path: Path) -> None:
    """Tensors of every kind, and what does not belong to them, also by the newer opcodes of pickle."""
    torch.save({"a": torch.nn.Parameter(torch.ones(2)), "b": torch.ones(2).bfloat16().to_sparse()}, tmp_path / "a.bin")
    assert foreign_names(tmp_path / "a.bin") == []
    (tmp_path / "b.bin").write_bytes(pickle.dumps([Mark(tmp_path / "marker")], protocol=4))
    assert foreign_names(tmp_path / "b.bin") == ["posix.mkdir"]
    (tmp_path / "c.bin").write_bytes(pickle.dumps(torch.load, protocol=2))
    assert foreign_names(tmp_path / "c.bin") == ["torch.serialization.load"]


def test_ranks_make_data_only_whoever_asks_for_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    load_data_only()
    torch.save([Mark(tmp_path / "marker")], tmp_path / "a.pt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "a.pt", weights_only=False)
    assert not (tmp_path / "marker").exists()


def _status(uid: int, mode: int = 0o100644, gid: int = 0) -> os.stat_result:
    return os.stat_result((mode, 0, 0, 1, uid, gid, 0, 0, 0, 0))


def test_files_are_of_this_user_or_of_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_files.os, "geteuid", lambda: 54321)
    assert own_files.stranger_by(_status(54321)) is None
    assert own_files.stranger_by(_status(0)) is None
    line = "belongs to user 54322, neither to you nor to root (if you trust what it holds, copy the run: cp -r)"
    assert own_files.stranger_by(_status(54322)) == line


def test_a_group_counts_where_it_may_have_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not root's, nor the user's own, nor one without a name, which Kubernetes gives to a volume."""
    names = {7: "everyone", 8: "me"}
    monkeypatch.setattr(own_files.grp, "getgrgid", lambda gid: type("Group", (), {"gr_name": names[gid]}))
    monkeypatch.setattr(own_files, "_user", lambda uid: "me")
    found = [own_files.stranger_by(_status(os.geteuid(), 0o100664, gid)) for gid in (0, 7, 8, 9)]
    assert found == [None, "can be written by the group everyone (if you trust what it holds: chmod go-w)", None, None]


def test_storage_that_knows_no_owners_is_not_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There, a new file of the user's own looks like a stranger's too."""
    (tmp_path / "manifest.json").write_text("{}")
    owner = os.geteuid()
    monkeypatch.setattr(own_files.os, "geteuid", lambda: owner + 54321)
    monkeypatch.setattr(own_files.os, "fstat", lambda _: _status(1))
    monkeypatch.setattr(Path, "stat", lambda _: _status(1))
    assert stranger(tmp_path / "manifest.json") is None
    monkeypatch.setattr(own_files.os, "fstat", lambda _: _status(owner + 54321))
    assert str(stranger(tmp_path / "manifest.json")).startswith("belongs to ")


def job(directory: Path) -> Any:
    return validate(
        {
            "algorithm": {"name": "sft", "steps": 30},
            "model": {"init": {"hidden_size": 32}},
            "data": {"train": "rows.jsonl"},
            "run": {"output": str(directory), "name": "first"},
        }
    )


def save_one(directory: Path) -> Written:
    """A rank that writes a file, and a note that it does not hash."""
    (directory / "policy").mkdir()
    sha256 = stored.write([torch.ones(4)], directory / "policy/random-0.pt")
    (directory / "policy/latest").write_text("state")
    size = (directory / "policy/random-0.pt").stat().st_size
    return Written({"policy": {}}, [("policy/random-0.pt", size, sha256), ("policy/latest", 5, None)])


def test_a_manifest_has_the_hash_of_every_file(tmp_path: Path) -> None:
    checkpoints = Checkpoints(job(tmp_path))
    directory = checkpoints.save(1, save_one)
    expected = {name: sha256_of(directory / name) for name in ("policy/random-0.pt", "policy/latest")}
    assert json.loads((directory / "manifest.json").read_text())["sha256"] == expected
    assert checkpoints.latest() is not None
    group: Any = OneRank()
    require_as_saved(directory, {"policy": group}, checkpoints.refused)
    assert has_hashes(directory)
    (directory / "policy/latest").write_text("stale")
    line = problems(lambda: require_as_saved(directory, {"policy": group}, checkpoints.refused))
    assert line == (
        f"checkpoint.resume: {directory}/policy/latest is not what was saved: its SHA-256 is another one than the "
        f"manifest's; to start anew: checkpoint.resume=false, or another run.name than first"
    )


def test_a_manifest_without_hashes_is_of_an_older_version(tmp_path: Path) -> None:
    """Its files are compared by size; one that has hashes has all of them."""
    checkpoints = Checkpoints(job(tmp_path))
    directory = checkpoints.save(1, save_one)
    manifest = json.loads((directory / "manifest.json").read_text())
    hashes = manifest.pop("sha256")
    (directory / "manifest.json").write_text(json.dumps(manifest))
    assert checkpoints.latest() is not None
    group: Any = OneRank()
    require_as_saved(directory, {"policy": group}, checkpoints.refused)
    assert not has_hashes(directory)
    del hashes["policy/latest"]
    (directory / "manifest.json").write_text(json.dumps(manifest | {"sha256": hashes}))
    assert "has no readable manifest (KeyError)" in problems(checkpoints.latest)


def test_a_manifest_of_a_strangers_and_a_further_file_are_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(job(tmp_path))
    directory = checkpoints.save(1, save_one)
    torch.save([], directory / "policy/random-1.pt")
    line = f"checkpoint.resume: {directory} is damaged, its manifest does not have policy/random-1.pt; to start anew: "
    assert problems(checkpoints.latest).startswith(line)
    (directory / "policy/random-1.pt").unlink()
    (directory / "manifest.json").chmod(0o646)
    line = f"checkpoint.resume: {directory}/manifest.json can be written by everybody (if you trust what it holds: "
    assert problems(checkpoints.latest).startswith(line)


def test_the_configuration_of_a_strangers_run_is_not_followed(tmp_path: Path) -> None:
    """`export --step` would set its environment variables."""
    Checkpoints(job(tmp_path)).save(1, save_one)
    config = tmp_path / "first/config.json"
    config.write_text(job(tmp_path).model_dump_json())
    config.chmod(0o646)
    line = problems(lambda: export_step(str(tmp_path / "first"), 1))
    assert line == f"--step: {config} can be written by everybody (if you trust what it holds: chmod go-w), got 1"


def test_files_are_unpickled_in_one_place_only() -> None:
    """Elsewhere, pickles come over pipes from processes of the run's own; arrays and YAML are read as data."""
    root = Path(__file__).resolve().parent.parent
    careless = re.compile(
        r"torch\.load\(|pickle\.loads?\(|Unpickler\(|allow_pickle|weights_only=False|joblib|\b(shelve|marshal)\.|"
        r"trust_remote_code=(?!False\b)|(unsafe|full)_load|\b(?<![.\w])(eval|exec)\("
    )
    found = {
        str(path.relative_to(root))
        for package in ("actors", "algorithms", "launch")
        for path in (root / package).rglob("*.py")
        if careless.search(path.read_text())
    }
    assert found == {"actors/files/stored.py", "launch/checks/reward_probe.py"}
