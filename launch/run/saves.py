"""What of a run has state: its parts by name, how they are saved, verified and loaded.

    groups that learn   policy, critic, a reference that follows    shards, each rank its own, below <name>/
    the driver's parts  loop, batches, best; rollouts, shaper, kl   JSON values in the manifest, arrays below <name>/

What a part keeps is known to the part alone (`actors.files.parts`); a loop says which it has (`parts`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from actors.config import UserError
from actors.files.own_files import StoredFile
from actors.files.parts import Entry, SavedPart
from actors.group import ActorGroup
from actors.train.shards import Shards
from algorithms.data.row_contents import Contents
from algorithms.loop import Reporter
from launch.checks.resumed_data import GO_ON, accepted, content_problems, over_new_rows
from launch.config import RunConfig
from launch.kinds.kind import Loop
from launch.run.checkpoint import Checkpoints, Written
from launch.run.manifest import Checkpoint, damage_of, kept_shards, read_manifest, surplus
from launch.run.restore import fetched_again
from launch.storage.uploads import Uploads

if TYPE_CHECKING:
    from actors.files.stored import Flaw
    from actors.train.trainer import TrainedWorker
    from launch.screen.reporter import RunReporter

_UNFIT = (OSError, LookupError, TypeError, ValueError, AttributeError)
"""What a part raises for a state that it has not saved: of an edited manifest, or of another version."""


class Saves:
    """The parts of a run by name, of which each writes and reads its own."""

    def __init__(self, groups: "Mapping[str, ActorGroup[TrainedWorker]]", rows: Contents | None = None) -> None:
        """`groups`: those that learn, or follow one that does; `rows`: what the sets hold that the run reads."""
        self.groups = groups
        self.rows = rows or Contents()
        self.parts: dict[str, SavedPart] = {}

    def add(self, name: str, part: SavedPart) -> None:
        """Take in a part of the driver's; `name` is a directory of its own in every checkpoint."""
        if name in self.groups or name in self.parts or not name.isidentifier():
            raise ValueError(f"name must be a new one in letters and digits, got {name!r}")
        self.parts[name] = part

    def write(self, directory: Path) -> Written:
        """Let all parts write into the directory of a checkpoint, which is absolute."""
        from actors.train.trainer import TrainedWorker

        files = [
            file
            for name, group in self.groups.items()
            for file in files_of_ranks(name, group.call(TrainedWorker.save, directory / name))
        ]
        entries: dict[str, Entry] = {name: {} for name in self.groups}  # all that ranks keep is in their files
        for name, part in self.parts.items():
            # Ranks and driver are both between steps here: their parts fit each other.
            entries[name] = part.save(directory / name)
            files += files_below(directory, name)
        return Written(entries, files, self.rows)

    def difference(self, kept: Iterable[str]) -> str | None:
        """What distinguishes the parts of a checkpoint from those of this run, in words that follow its name."""
        own, kept = {*self.groups, *self.parts}, {*kept}
        lacking, further = sorted(own - kept), sorted(kept - own)
        said = [f"lacks the state of {', '.join(lacking)}, which this run has"] if lacking else []
        said += [f"has a state of {', '.join(further)}, which this run has not"] if further else []
        return ", and ".join(said) or None

    def go_back_to_best(self, entry: Entry) -> None:
        """Let the best value so far be that of a checkpoint, by its entry: a better one was not written."""
        if "best" in self.parts:
            self.parts["best"].load(Path(), entry)

    def load(
        self, found: Checkpoint, entries: Mapping[str, Entry], refused: Callable[[str], UserError]
    ) -> dict[str, tuple[float, float]]:
        """Let all parts go on from a checkpoint: the driver's first, from their `entries`, as they are there at once.

        Returns:
            Group that learns -> rate of its next update, by the schedule of then and by that of this run.

        Raises:
            UserError: a part's own, or `refused` of the part that cannot take what is there.
        """
        from actors.train.trainer import TrainedWorker

        for name, part in self.parts.items():
            try:
                part.load(found.directory / name, entries[name])
            except UserError as error:
                if name != "batches":
                    raise
                # Of rows that are left out: what the sets hold has been compared before.
                raise UserError(*(f"{line}; {GO_ON}" for line in error.problems)) from None
            except _UNFIT as error:
                why = f"{type(error).__name__}: {error}"
                raise refused(f"{found.directory} has a state of {name} that this run cannot take ({why})") from None
        rates = {
            name: group.call(TrainedWorker.load, found.directory.absolute() / name, found.shards.get(name))[0]
            for name, group in self.groups.items()
        }
        return {name: pair for name, pair in rates.items() if name != "reference"}  # which follows, and has none


def resume(config: RunConfig, saves: Saves, loop: Loop, reporter: "RunReporter") -> Checkpoint | None:
    """Let a loop's parts be saved from now on, and continue from the run's latest checkpoint that is what was saved, if
    there is one, which is returned.

    Raises:
        UserError: the groups that learn do not see the run's directory, where they would write checkpoints; or the
            checkpoint has other parts than the run, holds more than data, or none is what was saved.
    """
    from actors.train.trainer import TrainedWorker

    for name, part in loop.parts.items():
        saves.add(name, part)
    checkpoints = Checkpoints(config)
    for group in saves.groups.values():
        checkpoints.require_shared(lambda path, group=group: group.call(TrainedWorker.text_of, path))
    first = checkpoints.latest()
    if first is None:
        return None
    found, entries = _as_saved(config, saves, checkpoints, first, reporter)
    if found.step != first.step:
        for line in (*found.passed_over, *checkpoints.go_on_from(found)):
            reporter.warning(line)
        reporter.rewind(found.step)
    if not has_hashes(found.directory):
        reporter.note(f"{found.directory.name} has no hashes: only the sizes of its files were compared")
    reporter.note(f"resuming from step {found.step}")
    if reporter.uploads:
        _put_earlier(reporter.uploads, checkpoints, found, fell_back=found.step != first.step)
    for line in divided_anew(config, found, saves.groups):
        reporter.note(line)
    reporter.phase("loading the checkpoint")
    for name, (then, now) in saves.load(found, entries, checkpoints.refused).items():
        if then != now:
            reporter.note(
                f"{name}.optimizer.schedule: {getattr(config, name).optimizer.schedule} over another number of updates "
                f"than when {found.directory.name} was saved: the next one has rate {now:.3g}, not {then:.3g}"
            )
    return found


def _as_saved(
    config: RunConfig, saves: Saves, checkpoints: Checkpoints, found: Checkpoint, reporter: "RunReporter"
) -> tuple[Checkpoint, dict[str, Entry]]:
    """The checkpoint, or the newest before it, whose files are what was saved, and what the driver's parts go on from.
    One that is damaged is fetched again first where storage has it. Raises UserError as `resume` does."""
    damaged: dict[str, str] = {}
    fetched: set[int] = set()
    while True:
        entries = _entries(config, found, saves.rows, reporter)
        # Before its files are read, which may take minutes.
        if problem := saves.difference(found.parts):
            raise checkpoints.refused(f"{found.directory} {problem}")
        reporter.phase("verifying the checkpoint")
        flaws = flaws_of(found.directory, saves.groups, saves.parts)
        if not flaws:
            return found, entries
        why = _in_words(flaws)
        if not all(flaw.damage for flaw in flaws):
            raise checkpoints.refused(why)
        again = False
        if reporter.uploads and found.step not in fetched:
            fetched.add(found.step)
            reporter.note(why)
            again = fetched_again(config, reporter.uploads.stored, found.step, reporter.note)
        if not again:
            damaged[found.directory.name] = why
        next_one = checkpoints.latest(damaged)
        assert next_one is not None, "there was one, and where none is whole, that is refused"
        found = next_one


def _put_earlier(uploads: Uploads, checkpoints: Checkpoints, found: Checkpoint, *, fell_back: bool) -> None:
    """Put what an earlier start has not put into storage; where the run `fell_back` to `found` as newer ones are
    damaged on the disk, those in storage stay the latest until the run has a newer one."""
    best = checkpoints.best()
    others = [directory for directory in checkpoints.lasting() if directory != found.directory]
    uploads.put_earlier([*others, found.directory] if fell_back else others, best)
    if not fell_back:
        uploads.put(found.step, found.directory, best=best == found.directory)


def divided_anew(config: RunConfig, found: Checkpoint, groups: Iterable[str]) -> list[str]:
    """Of each group whose state in the checkpoint is divided otherwise than it will be, by what, a line each."""
    lines = []
    for name in groups:
        if then := found.shards.get(name):
            now = Shards(getattr(config, name).ranks, getattr(config, name).zero_stage)
            if then != now:
                ranks = f"{then.ranks} {name} rank{'s' if then.ranks > 1 else ''} with ZeRO-{then.zero_stage}"
                lines.append(
                    f"checkpoint {found.directory.name} was written by {ranks}: resuming on {now.ranks} with "
                    f"ZeRO-{now.zero_stage}"
                )
    return lines


def _entries(config: RunConfig, found: Checkpoint, rows: Contents, reporter: Reporter) -> dict[str, Entry]:
    """What the run's parts go on from: that of the checkpoint, or of a run over other rows where that is accepted.

    Raises UserError: the rows are others than those of the checkpoint.
    """
    problems = content_problems(config, found, rows)
    if rows and not found.rows:
        reporter.note(f"{found.directory.name} does not say what rows it was trained on: they were not compared")
    if not config.checkpoint.accept_new_data:
        # What `check` has told already where it could read all rows in time.
        if problems:
            raise UserError(*problems)
        return found.parts
    for line in problems:
        reporter.note(f"accepted: {accepted(line)}")
    # Also where the sets hold the same: other limits leave out other rows.
    return over_new_rows(found.parts)


def require_as_saved(
    directory: Path, groups: "Mapping[str, ActorGroup[TrainedWorker]]", refused: Callable[[str], UserError]
) -> None:
    """Raise UserError, `refused` of what is wrong, unless the groups' files of a checkpoint are what was saved, the
    user's own, and hold only data; see `flaws_of`."""
    if found := flaws_of(directory, groups):
        raise refused(_in_words(found))


def flaws_of(
    directory: Path, groups: "Mapping[str, ActorGroup[TrainedWorker]]", parts: Iterable[str] = ()
) -> "list[Flaw]":
    """Look at the files of a checkpoint before any of it is loaded: each rank of the groups at a part of their own,
    this process at those of the driver's `parts`; returns what is wrong with them.

    Of those without hashes, which older versions have written, the content is not compared.
    """
    from actors.files.stored import Flaw, faults
    from actors.train.worker import Worker

    _, sizes, hashes = read_manifest(directory)
    if damage := damage_of(directory, sizes):
        return [Flaw(f"{directory} is damaged, {damage}", damage=surplus(directory, sizes) is None)]
    looking = {}
    for name, group in groups.items():
        # The largest first, dealt out in turn: every rank hashes about as many bytes.
        own = [file for file in sorted(sizes, key=lambda file: -sizes[file]) if file.startswith(f"{name}/")]
        shares = [{file: hashes[file] for file in own[rank :: len(group)]} for rank in range(len(group))]
        looking[name] = [
            group.submit(rank, Worker.faults, directory.absolute(), shares[rank]) for rank in range(len(group))
        ]
    found = faults(directory, {file: hashes[file] for name in parts for file in hashes if file.startswith(f"{name}/")})
    return found + [
        flaw for name, refs in looking.items() for flaws in groups[name].gather(refs, "faults") for flaw in flaws
    ]


def has_hashes(directory: Path) -> bool:
    """Whether a checkpoint has hashes to compare with; those of older versions have none."""
    return None not in read_manifest(directory)[2].values()


def _in_words(flaws: "Sequence[Flaw]") -> str:
    # What is more than damage first: it decides.
    first = min(flaws, key=lambda flaw: flaw.damage)
    return first.line + (f" (and {len(flaws) - 1} more)" if len(flaws) > 1 else "")


def load_best(config: RunConfig, trained: "Mapping[str, ActorGroup[TrainedWorker]]") -> int | None:
    """Let the groups go back to the best checkpoint, when there is one; returns its step."""
    from actors.train.trainer import TrainedWorker

    directory = Checkpoints(config).best()
    if directory is None:
        return None
    otherwise = "to export the latest one: the same command with algorithm.best_by=null"
    require_as_saved(directory, trained, lambda problem: UserError(f"algorithm.best_by: {problem}; {otherwise}"))
    # Of an earlier start, perhaps, with other ranks.
    shards = kept_shards(read_manifest(directory)[0])
    for name, group in trained.items():
        group.call(TrainedWorker.load, directory.absolute() / name, shards.get(name))
    return int(directory.name.removeprefix("step-"))


def files_of_ranks(name: str, ranks: Iterable[Iterable[StoredFile]]) -> list[StoredFile]:
    """What the ranks of a group have written, by their names in the checkpoint."""
    return [(f"{name}/{file}", size, sha256) for rank in ranks for file, size, sha256 in rank]


def files_below(directory: Path, name: str) -> list[StoredFile]:
    """What a part of the driver's has written; its files are hashed as they are on the disk."""
    found = sorted(path for path in (directory / name).rglob("*") if path.is_file())
    return [(str(path.relative_to(directory)), path.stat().st_size, None) for path in found]
