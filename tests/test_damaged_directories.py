"""Run directories as kills, power cuts, full disks and people leave them: a start goes on, begins aside, or is refused
with one line; nothing that was whole is lost. Without Ray."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors.config import UserError
from actors.files.parts import Entry
from launch.config import RunConfig, validate
from launch.run.checkpoint import Checkpoints, Written
from launch.tracking.history import steps_in_words
from launch.tracking.tracker import Tracker

Damage = Callable[[Path], object]
ANEW = "to start anew: checkpoint.resume=false, or another run.name than first"


def job(output: Path, resume: bool = True, **algorithm: Any) -> RunConfig:
    return validate(
        {
            "algorithm": {"name": "grpo", "steps": 30, **algorithm},
            "model": {"init": {"hidden_size": 32}},
            "data": {"train": "rows.jsonl", "eval": "rows.jsonl"},
            "reward": {"functions": ["exact_match"]},
            "checkpoint": {"resume": resume},
            "tracking": {"wandb": False},
            "run": {"output": str(output), "name": "first"},
        }
    )


def writer(step: int, **parts: Entry) -> Callable[[Path], Written]:
    def write(directory: Path) -> Written:
        (directory / "policy").mkdir()
        (directory / "policy/rank0.pt").write_text(f"weights of {step:04}")
        return Written({"policy": {}} | parts, [("policy/rank0.pt", 15, None)])

    return write


def run_to(output: Path, steps: int) -> Path:
    """What a run leaves that has saved every fifth step."""
    config = job(output)
    checkpoints = Checkpoints(config)
    checkpoints.prepare(checkpoints.latest())
    (config.directory / "config.json").write_text(config.model_dump_json())
    tracker = Tracker(config.directory, config)
    for step in range(1, steps + 1):
        tracker.log(step, {"reward/mean": step / 10})
        tracker.samples(step, [{"completion": f"of {step}"}])
        if step % 5 == 0:
            checkpoints.save(step, writer(step))
    tracker.close()
    return config.directory


def start(config: RunConfig) -> tuple[int | None, list[str]]:
    """The step that a start goes on from, and what it says."""
    checkpoints, told = Checkpoints(config), []
    found = checkpoints.latest()
    told += checkpoints.prepare(found)
    Tracker(config.directory, config, found.step if found else 0, told.append).close()
    return found and found.step, told


def contents(run: Path) -> set[bytes]:
    """Of all files of checkpoints and models, and all whole lines of metrics."""
    files = {path.read_bytes() for path in run.rglob("*.pt") if path.is_file() and ".partial" not in str(path)}
    lines = [line for path in run.rglob("metrics.jsonl") if path.is_file() for line in path.read_bytes().split(b"\n")]
    return files | {line.strip(b"\0") for line in lines if line.strip(b"\0").startswith(b'{"step"')}


def pointer(content: str | bytes) -> Damage:
    return lambda run: (run / "checkpoints/latest").write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )


def manifest(content: str | bytes) -> Damage:
    def damage(run: Path) -> None:
        path = run / "checkpoints/step-10/manifest.json"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def changed(**values: Any) -> Damage:
    """Of the manifest; None takes a value out."""

    def damage(run: Path) -> None:
        path = run / "checkpoints/step-10/manifest.json"
        found = json.loads(path.read_text()) | values
        path.write_text(json.dumps({name: value for name, value in found.items() if value is not None}))

    return damage


def removed(name: str) -> Damage:
    def damage(run: Path) -> None:
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def replaced(name: str, make: Damage) -> Damage:
    def damage(run: Path) -> None:
        removed(name)(run)
        make(run / name)

    return damage


def lines(change: Callable[[list[bytes]], list[bytes]], name: str = "metrics.jsonl") -> Damage:
    def damage(run: Path) -> None:
        found = (run / name).read_bytes().splitlines(keepends=True)
        (run / name).write_bytes(b"".join(change(found)))

    return damage


def one(number: int, line: bytes) -> Damage:
    return lines(lambda found: [*found[: number - 1], line, *found[number:]])


def both(*damages: Damage) -> Damage:
    return lambda run: [damage(run) for damage in damages]


def written(name: str, content: str) -> Damage:
    return lambda run: (run / name).write_text(content)


STEP = "checkpoints/step-10"
FILE = f"{STEP}/policy/rank0.pt"
NO_MANIFEST = "step-10 has no readable manifest ("
RULE = "latest must name a checkpoint such as step-20, got "

REFUSED: dict[str, tuple[Damage, str, int | None]] = {
    # name: (damage, part of the line, step of the checkpoint that is offered)
    "pointer gone": (removed("checkpoints/latest"), "checkpoints holds step-5, step-10, and latest, which says", 10),
    "pointer empty": (pointer(""), f"{RULE}''", 10),
    "pointer of NUL": (pointer(b"\0" * 7), RULE + r"'\x00\x00\x00", 10),
    "pointer no text": (pointer(b"\xff\xfe\x00"), "latest cannot be read (UnicodeDecodeError)", 10),
    "pointer outside": (pointer("../../etc"), f"{RULE}'../../etc'", 10),
    "pointer to a half": (pointer("step-10.partial"), RULE, 10),
    "pointer to an odd digit": (pointer("step-²"), RULE, 10),
    "pointer to a number": (pointer("10"), RULE, 10),
    "pointer a directory": (
        replaced("checkpoints/latest", Path.mkdir), "latest cannot be read (IsADirectoryError)", 10),
    "pointer a dead link": (
        replaced("checkpoints/latest", lambda path: path.symlink_to("nowhere")), "where to go on, is gone", 10),
    "pointer a loop": (
        replaced("checkpoints/latest", lambda path: path.symlink_to("latest")), "latest cannot be read (OSError)", 10),
    "file too many": (written(f"{STEP}/policy/rank1.pt", ""), "its manifest does not have policy/rank1.pt", 5),
    "both bad": (
        both(written(FILE, "weig"), written("checkpoints/step-5/policy/rank0.pt", "weights of 9995")),
        "has 4 bytes", None),
    "both bad, pointer gone": (
        both(removed("checkpoints/latest"), removed(FILE), removed("checkpoints/step-5/manifest.json")),
        "is gone", None),
}  # fmt: skip
PASSED_OVER: dict[str, tuple[Damage, str, int]] = {
    # name: (damage, part of the line, step that the run goes on from)
    "pointer to none": (pointer("step-99"), "step-99 has no readable manifest (FileNotFoundError)", 10),
    "pointer with zeros": (pointer("step-010"), "step-010 has no readable manifest", 10),
    "pointer long": (pointer("step-" + "9" * 300), "9 has no readable manifest (OSError)", 10),
    "manifest gone": (removed(f"{STEP}/manifest.json"), f"{NO_MANIFEST}FileNotFoundError)", 5),
    "manifest empty": (manifest(""), f"{NO_MANIFEST}JSONDecodeError)", 5),
    "manifest cut": (manifest('{"step": 10, "identi'), f"{NO_MANIFEST}JSONDecodeError)", 5),
    "manifest a list": (manifest("[]"), f"{NO_MANIFEST}TypeError)", 5),
    "manifest a number": (manifest("7"), f"{NO_MANIFEST}TypeError)", 5),
    "manifest null": (manifest("null"), f"{NO_MANIFEST}TypeError)", 5),
    "manifest without anything": (manifest("{}"), f"{NO_MANIFEST}KeyError)", 5),
    "manifest of NUL": (manifest(b"\0" * 400), f"{NO_MANIFEST}JSONDecodeError)", 5),
    "manifest no text": (manifest(b"\xff{}"), f"{NO_MANIFEST}UnicodeDecodeError)", 5),
    "manifest deep": (manifest("[" * 200_000), f"{NO_MANIFEST}RecursionError)", 5),
    "manifest a directory": (replaced(f"{STEP}/manifest.json", Path.mkdir), f"{NO_MANIFEST}IsADirectoryError)", 5),
    "no parts": (changed(parts=None), f"{NO_MANIFEST}KeyError)", 5),
    "parts a list": (changed(parts=[1]), f"{NO_MANIFEST}TypeError)", 5),
    "a part a number": (changed(parts={"kl": 7}), f"{NO_MANIFEST}TypeError)", 5),
    "no step": (changed(step=None), f"{NO_MANIFEST}KeyError)", 5),
    "of another step": (changed(step=7), f"{NO_MANIFEST}ValueError)", 5),
    "step a text": (changed(step="10"), f"{NO_MANIFEST}ValueError)", 5),
    "step a truth": (changed(step=True), f"{NO_MANIFEST}ValueError)", 5),
    # Manifests of older versions have one state of the loop instead of parts.
    "state a list": (changed(state=[]), f"{NO_MANIFEST}", 5),
    "state without step": (changed(state={"batches": {}}), f"{NO_MANIFEST}KeyError)", 5),
    "state of another step": (changed(state={"step": 7}), f"{NO_MANIFEST}ValueError)", 5),
    "state with a text": (changed(state={"step": "10"}), f"{NO_MANIFEST}ValueError)", 5),
    "state with a truth": (changed(state={"step": True}), f"{NO_MANIFEST}ValueError)", 5),
    "files a list": (changed(files=[1, 2]), f"{NO_MANIFEST}TypeError)", 5),
    "files none": (changed(files={}), "step-10 is damaged, its manifest names no files", 5),
    "hash of a file gone": (changed(sha256={}), f"{NO_MANIFEST}KeyError)", 5),
    "hashes a list": (changed(sha256=["a"]), f"{NO_MANIFEST}TypeError)", 5),
    "identity a list": (changed(identity=[1]), f"{NO_MANIFEST}TypeError)", 5),
    "identity gone": (changed(identity=None), f"{NO_MANIFEST}KeyError)", 5),
    "file cut": (written(FILE, "weig"), "step-10 is damaged, policy/rank0.pt has 4 bytes, not 15", 5),
    "file empty": (written(FILE, ""), "step-10 is damaged, policy/rank0.pt has 0 bytes, not 15", 5),
    "file gone": (removed(FILE), "step-10 is damaged, policy/rank0.pt is missing", 5),
    "file a directory": (replaced(FILE, Path.mkdir), "step-10 is damaged, policy/rank0.pt is missing", 5),
    "checkpoint a file": (replaced(STEP, Path.touch), f"{NO_MANIFEST}NotADirectoryError)", 5),
    "checkpoint gone": (removed(STEP), f"{NO_MANIFEST}FileNotFoundError)", 5),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_to(tmp_path_factory.mktemp("whole"), 10)


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "first")
    return tmp_path / "first"


@pytest.mark.parametrize("name", REFUSED)
def test_a_damaged_checkpoint_is_one_line_with_the_one_to_go_on_from(run: Path, name: str) -> None:
    """Whose command leads to it; nothing has changed before."""
    damage, part, offered = REFUSED[name]
    damage(run)
    before = sorted(str(path) for path in run.rglob("*"))
    with pytest.raises(UserError) as caught:
        start(job(run.parent))
    (line,) = caught.value.problems
    assert line.startswith("checkpoint.resume: ") and part in line and line.endswith(ANEW) and "\n" not in line
    assert sorted(str(path) for path in run.rglob("*")) == before
    if offered is None:
        assert "to go on from" not in line
        return
    command = line.partition(f"; to go on from step-{offered}, which is whole: ")[2].partition("; ")[0]
    kept = contents(run)
    subprocess.run(["sh", "-ec", command], check=True, timeout=10)
    reached, told = start(job(run.parent))
    assert reached == offered
    if told != ["steps 6 to 10 came after the checkpoint of step 5: they are done again"]:  # without a newer one
        assert contents(run) >= kept


@pytest.mark.parametrize("name", PASSED_OVER)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(run: Path, name: str) -> None:
    """It is kept aside with what came after the other one, and the next start finds that."""
    damage, part, expected = PASSED_OVER[name]
    damage(run)
    kept = contents(run)
    found = Checkpoints(job(run.parent)).latest()
    assert found is not None and found.step == expected
    (line,) = found.passed_over
    assert part in line and line.endswith(f": going on from step-{expected}, the newest whole one before it")
    reached, told = start(job(run.parent))
    assert reached == expected
    if name != "checkpoint gone":  # nothing of it is there to be kept
        assert contents(run) >= kept
    assert (run / "checkpoints/latest").read_text() == f"step-{expected}"
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, expected + 1))
    if expected == 5:
        assert AGAIN in told
    again = Checkpoints(job(run.parent)).latest()
    assert again is not None and again.step == expected and not again.passed_over


def test_of_damaged_ones_each_is_named(run: Path) -> None:
    """The content of one that nobody has pointed at counts, too, before newer ones are moved."""
    checkpoints = Checkpoints(job(run.parent))
    shutil.copytree(run / "checkpoints/step-5", run / "checkpoints/step-3")
    content = (run / "checkpoints/step-3/manifest.json").read_text()
    (run / "checkpoints/step-3/manifest.json").write_text(content.replace('"step": 5', '"step": 3'))
    written(FILE, "weig")(run)
    written("checkpoints/step-5/policy/rank0.pt", "weights of 9995")(run)
    found = checkpoints.latest()
    assert found is not None and found.step == 3
    ten, five = found.passed_over
    assert "step-10 is damaged, policy/rank0.pt has 4 bytes, not 15: going on from step-3, the newest " in ten
    assert "step-5 is damaged, policy/rank0.pt is not what was saved: going on from step-3, " in five


ASIDE = "{run}/set-aside-1"
AGAIN = "steps 6 to 10 came after the checkpoint of step 5: they are done again"
GOES_ON: dict[str, tuple[Damage, int | None, list[str]]] = {
    # name: (damage, step that the run goes on from, what is told)
    "nothing": (lambda run: None, 10, []),
    "pointer with a line break": (pointer("step-10\n"), 10, []),
    "pointer set back": (
        pointer("step-5"), 5,
        [f"step-10: newer than step-5, which the run goes on from; it is kept in {ASIDE}, with the metrics", AGAIN]),
    "killed before the pointer": (
        both(pointer("step-5"), written("checkpoints/latest.partial", "step-10")), 10,
        ["step-10 was saved as the last start ended: latest names it now"]),
    "killed before the first pointer": (
        both(removed("checkpoints/latest"), written("checkpoints/latest.partial", "step-10")), 10,
        ["step-10 was saved as the last start ended: latest names it now"]),
    "next pointer of NUL": (written("checkpoints/latest.partial", "\0" * 7), 10, []),
    "next pointer to none": (written("checkpoints/latest.partial", "step-15"), 10, []),
    "half a checkpoint": (lambda run: (run / "checkpoints/step-15.partial").mkdir(), 10, []),
    "best no text": (lambda run: (run / "checkpoints/best").write_bytes(b"\xff"), 10, []),
    "driver no text": (lambda run: (run / "logs/driver.id").write_bytes(b"\xff\0"), 10, []),
    "configuration empty": (written("config.json", ""), 10, []),
    "metrics gone": (
        removed("metrics.jsonl"), 10, ["metrics.jsonl is gone: it has nothing of steps 1 to 10, which are done"]),
    "metrics empty": (
        written("metrics.jsonl", ""), 10, ["metrics.jsonl has nothing of steps 1 to 10, which are done"]),
    "metrics behind": (
        lines(lambda found: found[:7]), 10, ["metrics.jsonl has nothing of steps 8 to 10, which are done"]),
    "metrics with a hole": (
        lines(lambda found: found[:2] + found[3:4] + found[6:]), 10,
        ["metrics.jsonl has nothing of steps 3, 5 to 6, which are done"]),
    "metrics torn": (
        lines(lambda found: [*found[:9], found[9][:12]]), 10, ["metrics.jsonl has nothing of step 10, which is done"]),
    "metrics without the last line break": (lines(lambda found: [*found[:9], found[9].strip()]), 10, []),
    "metrics with NUL in the end": (
        lines(lambda found: [*found[:8], b"\0" * 500]), 10,
        [f"metrics.jsonl had 1 broken line, the first is line 9; as it was, it is kept in {ASIDE}; "
         "it has nothing of steps 9 to 10, which are done"]),
    "metrics all NUL": (
        lambda run: (run / "metrics.jsonl").write_bytes(b"\0" * 4096), 10,
        [f"metrics.jsonl had 1 broken line, the first is line 1; as it was, it is kept in {ASIDE}; "
         "it has nothing of steps 1 to 10, which are done"]),
    "metrics with NUL before a line": (lines(lambda found: [*found[:4], b"\0" * 9, *found[4:]]), 10, []),
    "metrics no text": (
        one(4, b"\xff\xfe\n"), 10,
        [f"metrics.jsonl had 1 broken line, the first is line 4; as it was, it is kept in {ASIDE}; "
         "it has nothing of step 4, which is done"]),
    "metrics glued": (
        one(4, b'{"step": 4, "rew{"step": 4, "reward/mean": 0.4}\n'), 10,
        [f"metrics.jsonl had 1 broken line, the first is line 4; as it was, it is kept in {ASIDE}; "
         "it has nothing of step 4, which is done"]),
    "metrics without step": (
        both(one(4, b'{"loss": 1}\n'), one(9, b'{"step": "9"}\n')), 10,
        [f"metrics.jsonl had 2 broken lines, the first is line 4; as it was, it is kept in {ASIDE}; "
         "it has nothing of steps 4, 9, which are done"]),
    "metrics with another thing": (
        lines(lambda found: [b"[1]\n", b"\n", b"null\n", *found]), 10,
        [f"metrics.jsonl had 3 broken lines, the first is line 1; as it was, it is kept in {ASIDE}"]),
    "metrics ahead": (
        lines(lambda found: [*found, b'{"step": 11}\n', b'{"step": 12}\n', b'{"st']), 10,
        ["steps 11 to 12 came after the checkpoint of step 10: they are done again"]),
    "samples gone": (
        removed("samples.jsonl"), 10, ["samples.jsonl is gone: it has nothing of steps 1 to 10, which are done"]),
    "samples broken": (
        lines(lambda found: [b"\x80\n", *found], "samples.jsonl"), 10,
        [f"samples.jsonl had 1 broken line, the first is line 1; as it was, it is kept in {ASIDE}"]),
    "checkpoints gone": (
        removed("checkpoints"), None,
        [f"no checkpoint to go on from: what an earlier start left is kept in {ASIDE} (metrics.jsonl, samples.jsonl)"]),
    "killed in the first checkpoint": (
        both(removed("checkpoints"), lambda run: (run / "checkpoints/step-5.partial").mkdir(parents=True)), None,
        [f"no checkpoint to go on from: what an earlier start left is kept in {ASIDE} (metrics.jsonl, samples.jsonl)"]),
    "only a model left": (
        both(*map(removed, ("checkpoints", "metrics.jsonl", "samples.jsonl")), lambda run: (run / "export").mkdir(),
             written("export/weights.pt", "trained")), None,
        [f"no checkpoint to go on from: what an earlier start left is kept in {ASIDE} (export)"]),
    "nothing but empty files": (
        both(removed("checkpoints"), written("metrics.jsonl", ""), written("samples.jsonl", "")), None, []),
}  # fmt: skip


@pytest.mark.parametrize("name", GOES_ON)
def test_what_is_missing_is_told_and_what_is_whole_is_kept(run: Path, name: str) -> None:
    damage, reached, told = GOES_ON[name]
    damage(run)
    kept = contents(run)
    assert start(job(run.parent)) == (reached, [line.format(run=run) for line in told])
    done_again = {line for line in kept if line.startswith(b'{"step": 1') and b"reward" not in line}
    assert contents(run) >= kept - done_again
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(row["step"] <= (reached or 0) for row in rows)
    assert start(job(run.parent))[0] == reached, "the next start finds it as this one left it"


class Killed(BaseException):
    """In place of a signal that nothing catches."""


@pytest.mark.parametrize("what", ["checkpoints", "metrics.jsonl"])
def test_a_file_or_directory_in_the_wrong_place_is_one_line(run: Path, what: str) -> None:
    removed(what)(run)
    (run / what).touch() if what == "checkpoints" else (run / what).mkdir()
    for resume in (True, False):
        if what == "metrics.jsonl" and not resume:
            continue  # removed, as it was asked for
        with pytest.raises(UserError) as caught:
            start(job(run.parent, resume))
        (line,) = caught.value.problems
        assert line.startswith("run.output: ") and what in line and line.endswith(f"got {run.parent}")


def test_only_who_asks_for_it_loses_an_earlier_run(run: Path) -> None:
    found = start(job(run.parent, resume=False))
    names = "step-5, step-10, metrics.jsonl, samples.jsonl, tokens.jsonl"
    assert found == (None, [f"checkpoint.resume is false: removed {names} of an earlier run in {run}"])
    assert contents(run) == set() and not list(run.glob("set-aside-*"))


def test_a_second_start_aside_does_not_write_over_the_first_one(run: Path) -> None:
    removed("checkpoints")(run)
    first = contents(run)
    start(job(run.parent))
    (run / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 7}\n')
    assert start(job(run.parent))[1][0].endswith(f"is kept in {run}/set-aside-2 (metrics.jsonl)")
    assert contents(run) == first | {b'{"step": 1, "reward/mean": 7}'}
    assert json.loads((run / "set-aside-1/config.json").read_text())["run"]["name"] == "first"


def test_a_best_checkpoint_that_is_gone_is_told(run: Path) -> None:
    best = {"metric": "eval/reward/mean", "value": 0.75}
    config = job(run.parent, eval_every=5, best_by="eval/reward/mean")
    checkpoints = Checkpoints(config)
    checkpoints.save(15, writer(15, best=best), best=True)
    assert checkpoints.prepare(checkpoints.latest()) == []
    (run / "checkpoints/best").write_bytes(b"\0\0")
    (line,) = checkpoints.prepare(checkpoints.latest())
    assert line.startswith("the best checkpoint so far, with eval/reward/mean 0.75, is gone: ")


def test_a_kill_between_best_and_latest_keeps_both(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each of the renames that make a checkpoint count."""
    from launch.run import checkpoint

    best = {"metric": "eval/reward/mean", "value": 0.75}
    config = job(run.parent, eval_every=5, best_by="eval/reward/mean")
    for allowed, reached in enumerate((10, 15, 15, 15)):
        directory = run.parent / f"{allowed}/first"
        shutil.copytree(run, directory)
        config = job(directory.parent, eval_every=5, best_by="eval/reward/mean")
        left = iter(range(allowed))

        def replace(source: Path, target: Path, left: Any = left) -> None:
            if next(left, None) is None:
                raise Killed
            Path(source).rename(target)

        monkeypatch.setattr(checkpoint.os, "replace", replace)
        try:
            Checkpoints(config).save(15, writer(15, best=best), best=True)
        except Killed:
            assert allowed < 3
        monkeypatch.undo()
        assert start(config)[0] == reached
        found = Checkpoints(config).best()
        assert found == (None if reached == 10 else directory / "checkpoints/step-15")


def test_steps_in_words() -> None:
    assert steps_in_words([3]) == "step 3"
    assert steps_in_words([7, 5, 6, 3]) == "steps 3, 5 to 7"
    assert steps_in_words(range(0, 40, 2)) == "steps 0, 2, 4, 6, 8 and 15 ranges more"
