"""What a configuration must be like to run on another machine: what it reads and writes must be there."""

from collections.abc import Iterator
from pathlib import Path

from actors.config import UserError
from algorithms.data.row_folders import row_files
from launch.config import RunConfig
from launch.jobs.selection import Selection
from launch.settings.literal_secrets import secret_problems


def upload_problems(config: RunConfig, selection: Selection) -> list[str]:
    """One line for each path that the cluster could not read or write, and for each secret."""
    found = secret_problems(config)
    if not Path(config.run.output).is_absolute():
        rule = "must be an absolute path on storage that all nodes of the cluster share"
        found.append(f"run.output: {rule}, got {config.run.output}")
    for field, given, path in existing_paths(config, selection.root):
        if path.is_absolute():
            continue
        read = _rows_of(config, field, path, selection.root) if str(path) == str(Path(given)) else []
        missing = [problem for part in read or [path] if (problem := _missing(selection, _normal(part)))]
        found += [f"{field}: {problem}, got {given}" for problem in missing[:1]]
    return found


def _rows_of(config: RunConfig, field: str, path: Path, root: Path) -> list[Path]:
    """The files that are read of a folder of rows, be it that their names look like secrets; none of anything else."""
    if not field.startswith(("data.train", "data.eval", "data.corpus")) or not (root / path).is_dir():
        return []
    split = config.data.split if field.startswith("data.train") else config.data.eval_split
    try:
        return [file.relative_to(root) for file in row_files(root / path, split, field)]
    except UserError:  # `check` tells it
        return []


def existing_paths(config: RunConfig, root: Path) -> Iterator[tuple[str, str, Path]]:
    """Settings that name a file or directory of this machine: field, value, and the path, as given or from `root`.

    Example: ("reward.functions.0.name", "rewards.mine:score", Path("rewards/mine.py")).
    """
    data, reward, critic = config.data, config.reward, config.critic
    sets = _named("data.train", data.train) | _named("data.eval", data.eval) | _named("data.corpus", data.corpus)
    paths = {"model.path": config.model.path, "model.chat_template": config.model.chat_template} | sets
    paths |= {f"algorithm.{field}": path for field, path in config.algorithm.guides.items()}
    paths |= {f"reward.models.{index}.path": model.path for index, model in enumerate(reward.models)}
    paths |= {"critic.path": critic and critic.path}
    functions = {f"reward.functions.{index}.name": function.name for index, function in enumerate(reward.functions)}
    functions |= sets | {"data.converter": data.converter}
    named = [(field, value, [value]) for field, value in paths.items() if value]
    named += [(field, value, _sources(value)) for field, value in functions.items() if value]
    for field, value, candidates in named:
        for path in candidates:
            if (root / path).exists():
                yield field, value, Path(path)
                break


def _named(field: str, value: str | dict[str, str] | None) -> dict[str, str | None]:
    """Field -> source, of data that is one source or several by name."""
    return {f"{field}.{name}": each for name, each in value.items()} if isinstance(value, dict) else {field: value}


def _sources(function: str) -> list[str]:
    """Where the code of `path.py:function` or `module:function` may be."""
    module, _, name = function.rpartition(":")
    if not module or not name:
        return []
    dotted = module.replace(".", "/")
    # A module is a file or a package; of a package all files are needed.
    return [module] if module.endswith(".py") else [f"{dotted}.py", dotted]


def _missing(selection: Selection, path: str) -> str | None:
    if path == ".." or path.startswith("../"):
        return "must be below the working directory, which is uploaded, or absolute on storage that all nodes share"
    why = selection.why_missing(path)
    return why and f"must be in the upload, or absolute on storage that all nodes share ({why})"


def _normal(path: Path) -> str:
    """Without `.` and with every `..` at the beginning, with slashes."""
    parts: list[str] = []
    for part in path.parts:
        # Not resolve(), which follows links: the upload has the names as they are.
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        else:
            parts.append(part)
    return "/".join(parts) or "."
