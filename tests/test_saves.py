"""Parts of a run in its checkpoints: each writes its own files, which are hashed, verified, and loaded equal."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from actors.config import UserError
from actors.episodes import Prompt
from actors.files import parts
from actors.files.own_files import sha256_of
from actors.files.parts import Entry, SavedPart, read_arrays, write_arrays
from actors.rollout.types import Sampling
from algorithms.batches import Batches, WeightedBatches
from algorithms.encoder.batches import Example, TaskBatches, TaskRows
from algorithms.loop import Best
from algorithms.rl.shaper import RewardShaper
from algorithms.rl.shaping import AdaptiveKL
from algorithms.rollouts.limits import Limits
from algorithms.rollouts.rollouts import Rollouts
from launch.config import validate
from launch.run.checkpoint import Checkpoints
from launch.run.checkpointer import RunCheckpointer
from launch.run.manifest import former_parts, read_manifest
from launch.run.saves import Saves, resume
from tests.fake_engines import FakeEngines
from tests.test_rl_steps import Loop

GOLDEN = Path(__file__).resolve().parent / "golden/checkpoints"
"""Manifests as they were before checkpoints had parts."""
ANEW = "; to start anew: checkpoint.resume=false, or another run.name than first"


class StandInForABuffer:
    """A stand-in for a buffer of rollouts: a large array, a short one, and a count."""

    def __init__(self, seed: int | None = None) -> None:
        generator = np.random.default_rng(seed)
        size = 0 if seed is None else 200_000
        self.tokens = generator.integers(0, 2**31, size, dtype=np.int32)
        self.logprobs = generator.normal(size=(size // 1000, 7)).astype(np.float32)
        self.dropped = seed

    def save(self, directory: Path) -> Entry:
        write_arrays({"tokens": self.tokens, "logprobs": self.logprobs}, directory / "groups.safetensors")
        return {"dropped": self.dropped}

    def load(self, directory: Path, entry: Entry) -> None:
        found = read_arrays(directory / "groups.safetensors")
        self.tokens, self.logprobs = found["tokens"], found["logprobs"]
        self.dropped = entry["dropped"]


class StandInForALoop:
    """A stand-in for a loop that has such a buffer, and any other parts."""

    def __init__(self, seed: int | None = None, **others: SavedPart) -> None:
        self.buffer = StandInForABuffer(seed)
        self.parts: dict[str, SavedPart] = {"rollouts": self.buffer} | others


def job(output: Path) -> Any:
    return validate(
        {
            "algorithm": {"name": "sft", "steps": 30},
            "model": {"init": {"hidden_size": 32}},
            "data": {"train": "rows.jsonl"},
            "run": {"output": str(output), "name": "first"},
        }
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint of step 3 whose only part is a buffer."""
    config, saves = job(tmp_path), Saves({})
    Checkpoints(config).prepare(Checkpoints(config).latest())
    reporter: Any = Notes()
    resume(config, saves, StandInForALoop(seed=1), reporter)
    checkpointer = RunCheckpointer(config, saves, set(), reporter)
    checkpointer.save(3, last=True)
    checkpointer.keep()
    return config.directory / "checkpoints/step-3"


class Notes:
    """What a resume says."""

    uploads = None

    def __init__(self) -> None:
        self.said: list[str] = []

    def phase(self, name: str) -> None:
        self.said.append(name)

    def note(self, text: str) -> None:
        self.said.append(text)


def resumed(output: Path, loop: Any) -> list[str]:
    reporter: Any = Notes()
    resume(job(output), Saves({}), loop, reporter)
    return reporter.said


def complaint(act: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        act()
    (line,) = caught.value.problems
    assert "\n" not in line
    return line


def test_a_part_with_a_large_array_is_saved_hashed_and_restored_equal(saved: Path, tmp_path: Path) -> None:
    """Its array is a file beside the shards, and none of it is in the manifest."""
    manifest = json.loads((saved / "manifest.json").read_text())
    name = "rollouts/groups.safetensors"
    assert manifest["parts"] == {"rollouts": {"dropped": 1}}
    assert manifest["files"] == {name: (saved / name).stat().st_size} and manifest["files"][name] > 800_000
    assert manifest["sha256"] == {name: sha256_of(saved / name)}
    assert (saved / "manifest.json").stat().st_size < 3000
    assert (saved / name).stat().st_mode & 0o777 == (saved / "manifest.json").stat().st_mode & 0o777
    loop, expected = StandInForALoop(), StandInForABuffer(seed=1)
    assert resumed(tmp_path, loop) == ["verifying the checkpoint", "resuming from step 3", "loading the checkpoint"]
    assert np.array_equal(loop.buffer.tokens, expected.tokens) and loop.buffer.tokens.dtype == np.int32
    assert np.array_equal(loop.buffer.logprobs, expected.logprobs) and loop.buffer.dropped == 1


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "one bit": (flipped, "{file} is not what was saved: its SHA-256 is another one than the manifest's"),
    "cut": (cut, "{step} is damaged, rollouts/groups.safetensors has "),
    "gone": (Path.unlink, "{step} is damaged, rollouts/groups.safetensors is missing"),
    "a stranger's": (lambda file: file.chmod(0o646), "{file} can be written by everybody (if you trust what it "),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_of_a_part_is_refused_by_name(saved: Path, tmp_path: Path, damage: str) -> None:
    """Before any part is loaded."""
    file = saved / "rollouts/groups.safetensors"
    act, line = DAMAGED[damage]
    act(file)
    loop = StandInForALoop()
    said = complaint(lambda: resumed(tmp_path, loop))
    assert said.startswith(f"checkpoint.resume: {line.format(file=file, step=saved)}") and said.endswith(ANEW)
    assert loop.buffer.dropped is None


def test_parts_that_one_of_them_lacks_are_named(saved: Path, tmp_path: Path) -> None:
    """Those that the checkpoint has and the run does not, and the other way round."""
    kl, best = AdaptiveKL(0.1, None, 100), Best(None)
    said = complaint(lambda: resumed(tmp_path, StandInForALoop(kl=kl, best=best)))
    assert said == f"checkpoint.resume: {saved} lacks the state of best, kl, which this run has{ANEW}"
    said = complaint(lambda: resumed(tmp_path, SimpleNamespace(parts={})))
    assert said == f"checkpoint.resume: {saved} has a state of rollouts, which this run has not{ANEW}"
    said = complaint(lambda: resumed(tmp_path, SimpleNamespace(parts={"kl": kl})))
    both = "lacks the state of kl, which this run has, and has a state of rollouts, which this run has not"
    assert said == f"checkpoint.resume: {saved} {both}{ANEW}"


@pytest.mark.parametrize(
    ("entry", "files", "why"),
    [
        ({}, True, "KeyError: 'dropped'"),
        ({"dropped": 1}, False, "FileNotFoundError: "),
    ],
)
def test_a_state_that_a_part_cannot_take_is_told_with_its_name(
    saved: Path, tmp_path: Path, entry: Entry, files: bool, why: str
) -> None:
    """Of a manifest that somebody has edited, and what it no longer names is not there."""
    manifest = json.loads((saved / "manifest.json").read_text()) | {"parts": {"rollouts": entry}}
    if not files:
        (saved / "other").write_text("x")
        manifest |= {"files": {"other": 1}, "sha256": {"other": sha256_of(saved / "other")}}
        shutil.rmtree(saved / "rollouts")
    (saved / "manifest.json").write_text(json.dumps(manifest))
    said = complaint(lambda: resumed(tmp_path, StandInForALoop()))
    assert said.startswith(f"checkpoint.resume: {saved} has a state of rollouts that this run cannot take ({why}")
    assert said.endswith(ANEW)


def test_a_name_is_one_directory_of_one_part() -> None:
    group: Any = []
    saves = Saves({"policy": group})
    saves.add("kl", AdaptiveKL(0.1, None, 100))
    for name in ("policy", "kl", "../kl", "a/b", ""):
        with pytest.raises(ValueError, match="name must be a new one"):
            saves.add(name, Best(None))


ARRAYS: dict[str, NDArray[Any]] = {
    "none": np.empty((0, 2), np.int64),
    "part of another": np.arange(12, dtype=np.float32).reshape(3, 4)[:, 1:3].T,
    "中": np.array([True, False]),
    "one": np.array(1.5),
}


def test_arrays_come_back_as_they_were(tmp_path: Path) -> None:
    """Also empty ones, and those that do not lie in a row; a link that lies there is not followed."""
    file, victim = tmp_path / "a/b/arrays.safetensors", tmp_path / "victim"
    victim.write_text("whole")
    file.parent.mkdir(parents=True)
    file.symlink_to(victim)
    write_arrays(ARRAYS, file)
    found = read_arrays(file)
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert np.array_equal(found[name], array) and found[name].dtype == array.dtype
    assert victim.read_text() == "whole" and not file.is_symlink()
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"arrays\.safetensors holds no arrays"):
        read_arrays(file)


def test_arrays_on_a_full_disk_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "create", lambda _: os.open("/dev/full", os.O_WRONLY))
    line = complaint(lambda: write_arrays({"a": np.ones(9)}, tmp_path / "a"))
    assert line.startswith(f"run.output: must be on a disk with room: {tmp_path}/a (0 bytes so far) did not fit on ")


def test_arrays_of_a_stranger_are_not_loaded(tmp_path: Path) -> None:
    write_arrays({"a": np.ones(9)}, tmp_path / "a")
    (tmp_path / "a").chmod(0o646)
    line = complaint(lambda: read_arrays(tmp_path / "a"))
    assert line.startswith(f"checkpoint.resume: {tmp_path}/a can be written by everybody")


# Checkpoints of the version before


def former(tmp_path: Path, name: str) -> tuple[dict[str, Entry], Entry]:
    """Parts of a checkpoint as it was then, and the state that it has instead of them."""
    manifest = json.loads((GOLDEN / f"{name}.json").read_text())
    directory = tmp_path / f"step-{manifest['step']}"
    directory.mkdir()
    shutil.copy(GOLDEN / f"{name}.json", directory / "manifest.json")
    found, files, hashes = read_manifest(directory)
    assert files == manifest["files"] and hashes == manifest["sha256"] and found["step"] == manifest["step"]
    return found["parts"], manifest["state"]


def test_a_ppo_checkpoint_of_the_version_before_gives_all_parts_their_state(tmp_path: Path) -> None:
    found, state = former(tmp_path, "ppo")
    made = Loop()
    made.arguments["shaper"] = shaper = RewardShaper(
        normalize=True, clip=2.0, overlong=None, missing_eos_penalty=1.0, max_response_tokens=8
    )
    made.arguments["batches"] = batches = Batches(60, seed=0, shuffle=True)
    sampling = Sampling(samples=2, temperature=1.0, max_tokens=8)
    nothing: Iterator[Prompt] = iter(())
    made.arguments["rollouts"] = Rollouts(
        FakeEngines(), None, nothing, sampling, Limits(silence_s=1), groups_per_step=4
    )  # fmt: skip
    loop = made.ppo(kl_coef=0.05, kl_target=1.0, kl_horizon=200, eval_every=2, best_by="eval/reward/mean")
    assert found.keys() == {"policy", "critic", "reference"} | loop.parts.keys()
    for name, part in loop.parts.items():
        part.load(tmp_path, found[name])
    assert (loop.step, loop.version, loop.last_evaluation) == (2, 2, state["last_evaluation"])
    assert (batches.epoch, batches.position) == (0, 8)
    assert vars(shaper.moments) == state["rewards"]
    assert loop.kl.coef == state["kl"]["coef"] != 0.05
    assert loop.best.value == state["best"]["value"]
    assert loop.rollouts.training.room == 0, "nothing starts before it is asked for"
    found["rollouts"] |= {"groups_per_step": 4}
    assert {name: part.save(tmp_path) for name, part in loop.parts.items()} == {
        name: entry for name, entry in found.items() if entry
    }


def test_rows_that_waited_in_a_manifest_come_first(tmp_path: Path) -> None:
    found, state = former(tmp_path, "embedding")
    assert found.keys() == {"policy", "loop", "batches", "best"}

    def draw(row: int, _: np.random.Generator) -> Example:
        return Example(texts=(f"q{row % 7}", f"p{row % 5}", f"n{row}"), targets=(), prompt=None)

    batches = TaskBatches([TaskRows(name="", rows=range(40), draw=draw, distinct=True)], seed=0, shuffle=True)
    batches.load(tmp_path / "nothing", found["batches"])
    batches.save(tmp_path / "now")
    waits = read_arrays(tmp_path / "now/waiting.safetensors")["0"].tolist()
    assert waits == state["batches"]["tasks"][""]["waiting"] == [[0, 26], [0, 16], [0, 3]]
    assert batches.next(2)[1][0].texts == ("q5", "p1", "n26")


def test_sets_with_weights_of_the_version_before_go_on(tmp_path: Path) -> None:
    found, state = former(tmp_path, "sft")
    assert found.keys() == {"policy", "loop", "batches", "best"}
    sizes, weights = {"a": 9, "b": 15}, {"a": 1.0, "b": 2.0}
    whole, later = (WeightedBatches(sizes, weights, seed=0, shuffle=True) for _ in range(2))
    whole.next(12)
    later.load(tmp_path, found["batches"])
    assert later.save(tmp_path) == state["batches"] == whole.save(tmp_path)
    assert later.next(30) == whole.next(30)


def test_still_older_states_lack_a_version_and_a_best_one() -> None:
    found = former_parts({"step": 5, "last_evaluation": {}, "batches": {}, "best": None}, ["policy/a.pt"])
    assert found == {"policy": {}, "loop": {"step": 5, "last_evaluation": {}}, "best": {}, "batches": {}}
    best = Best("eval/loss", 0.5)
    best.load(Path(), found["best"])
    assert best.value is None
