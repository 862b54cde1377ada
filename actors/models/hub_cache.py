"""Models of the Hugging Face hub: what is in its cache on this machine, and loading what is not. No torch.

The cache has the layout that huggingface_hub documents ("Understand caching"):

    models--owner--name/refs/main               holds a commit, 40 hexadecimal digits
    models--owner--name/snapshots/COMMIT/...    the files of that commit

Within a run a model of the hub is called `owner/name@COMMIT` (see `located`), so that all processes on all nodes read
the same files, also when the branch moves on.
"""

import os
import re
from contextlib import suppress
from pathlib import Path

from actors.config import UserError
from actors.failure import reason_of

_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_WITHOUT_OWNER = re.compile(
    r"(distil)?gpt2(-(medium|large|xl))?|(distil)?bert-(base|large)-(un)?cased|(distil)?roberta-(base|large)"
    r"|xlm-roberta-(base|large)|albert-(base|large|xlarge|xxlarge)-v[12]|openai-gpt|t5-(small|base|large|3b|11b)"
)
"""Models from before the hub had owners. Any other single word is a misspelt directory, unless it is in the cache."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
FURTHER_VOCABULARIES = ("*.model", "*.spm", "*vocab*.*", "*.tiktoken", "tekken.json", "bpe.codes", "*.vocab")
"""Patterns of what older and rarer tokenizers keep theirs in."""
_NOT_TORCH = ["*.onnx", "*.onnx_data", "onnx/*", "openvino/*", "*.h5", "*.msgpack", "*.ot", "*.tflite", "*.gguf"]
_OTHER_FORMATS = ["original/*", "*.pth", "consolidated*", "metal/*"]
_SMALL = ["*.json", "*.txt", "*.model", "*.jinja"]
_DEADLINE_S = 5
_LOCATED: dict[tuple[str, str | None, str], str] = {}
"""What `located` has answered: it stays for the process, also when the branch moves on."""


def is_offline() -> bool:
    """Whether the environment forbids to ask the hub, as huggingface_hub reads it."""
    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in ("1", "ON", "YES", "TRUE")


def cache_directory() -> Path:
    """Where huggingface_hub keeps what it has loaded."""
    given = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    home = os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    return Path(os.path.expandvars(os.path.expanduser(given or f"{home}/hub")))


def is_hub_id(path: str) -> bool:
    """Whether `path` can only be a model of the hub: `owner/name` where no local directory `owner` says that a path was
    meant, a name from before there were owners, or one that is in the cache."""
    if not _ID.fullmatch(path) or Path(path).exists():
        return False
    if (cache_directory() / _folder(path)).is_dir():
        return True
    return not Path(path).parent.exists() if "/" in path else bool(_WITHOUT_OWNER.fullmatch(path))


def cached_snapshot(name: str, revision: str | None = None) -> Path | None:
    """The cache's directory of a model at a branch, tag or commit (default: main); None: not there.

    It need not hold all files: see `weight_files` of actors/models/safetensors_header.py for the weights.
    """
    if not _ID.fullmatch(name):
        return None
    folder, commit = cache_directory() / _folder(name), revision or "main"
    with suppress(OSError, ValueError):  # a commit itself, or not there
        commit = (folder / "refs" / commit).read_text(encoding="utf-8").strip()
    snapshot = folder / "snapshots" / commit
    # The commit is read from a file: it must not lead out of the cache.
    return snapshot if commit and ".." not in commit and (snapshot / "config.json").is_file() else None


def located(path: str, revision: str | None = None, field: str = "model.path") -> str:
    """What all processes of a run shall load: a local directory as an absolute path, as workers may have another
    working directory; a model of the hub with its commit, `owner/name@COMMIT`, whose small files are loaded if need be.

    Raises:
        UserError: with `field`: the hub's cache does not hold it and the hub cannot give it.
    """
    if Path(path).is_dir():
        return str(Path(path).absolute())
    # With the cache, as another one may hold another commit.
    key = (path, revision, str(cache_directory()))
    if key not in _LOCATED:
        name, commit = split_commit(path)
        _LOCATED[key] = f"{name}@{small_files(name, commit or revision, field).name}"
    return _LOCATED[key]


def located_models() -> list[str]:
    """Models of the hub that `located` has given this process, each as `owner/name@COMMIT`."""
    return sorted(set(_LOCATED.values()))


def split_commit(path: str) -> tuple[str, str | None]:
    """Name and commit of `owner/name@COMMIT`; a path without one has None."""
    name, _, commit = path.rpartition("@")
    return (name, commit) if name and not Path(path).exists() else (path, None)  # a directory may have an @ in its name


def small_files(name: str, revision: str | None, field: str) -> Path:
    """The cache's directory with a model's configuration and tokenizer, loaded if they are not there.

    Raises UserError as `located` does.
    """
    snapshot = cached_snapshot(name, revision)
    if snapshot and (has_tokenizer(snapshot) or is_offline()):
        return snapshot
    return _load(name, revision, field, small=True)


def has_tokenizer(directory: Path) -> bool:
    """Whether a directory holds a file of a tokenizer."""
    return any((directory / name).is_file() for name in TOKENIZER_FILES)


def has_vocabulary(directory: Path) -> bool:
    """Whether a directory holds the tokens of a tokenizer, of whatever kind."""
    return any(next(directory.glob(pattern), None) for pattern in (*VOCABULARIES, *FURTHER_VOCABULARIES))


def local_directory(path: str, field: str = "model.path") -> str:
    """A directory on this machine with all files of what `located` gave: loads what the hub's cache does not hold.

    Raises UserError as `located` does.
    """
    if Path(path).is_dir():
        return path
    name, commit = split_commit(path)
    snapshot = cached_snapshot(name, commit)
    if snapshot and is_complete(snapshot):
        return str(snapshot)
    return str(_load(name, commit, field, small=False))


def configured_directory(path: str, field: str = "model.path") -> str:
    """As `local_directory`, but with the configuration and the tokenizer alone, for whoever gets the weights elsewhere.

    Raises UserError as `located` does.
    """
    return path if Path(path).is_dir() else str(small_files(*split_commit(path), field))


def is_complete(snapshot: Path) -> bool:
    """Whether a directory of the cache holds weights, and all shards that its index names."""
    from actors.models.safetensors_header import weight_files

    try:
        files = weight_files(snapshot)
    except ValueError:
        return False
    # sentence-transformers keeps a dense layer's weights in a directory of its own, such as 2_Dense.
    modules = [path.parent for path in snapshot.glob("*_*/config.json") if "Dense" in path.parent.name]
    return bool(files) and all(any(module.glob("*.[sb]*")) for module in modules)


def _load(name: str, revision: str | None, field: str, *, small: bool) -> Path:
    """Load files into the cache. The hub is probed with a short deadline first: its client would try for minutes."""
    if is_offline():
        raise not_cached(name, revision, field)
    from huggingface_hub import HfApi, snapshot_download

    try:
        info = HfApi().model_info(name, revision=revision, timeout=_DEADLINE_S)
        ignored = [*_NOT_TORCH, *_OTHER_FORMATS]
        # The same weights a second time, in a format that can hold code.
        if any(sibling.rfilename.endswith(".safetensors") for sibling in info.siblings or []):
            ignored.append("*.bin")
        wanted = _SMALL if small else None
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=ignored))
    except Exception as error:  # the hub client's own types change with its versions; any cause is reported
        what = f"{name}@{revision}" if revision else name
        raise UserError(
            f"{field}: no such directory, and the hub cannot give it ({reason_of(error)}), got {what}"
        ) from error


def not_cached(name: str, revision: str | None, field: str, lacks: str = "does not hold it") -> UserError:
    """What is wrong where the hub may not be asked and its cache `lacks` something."""
    option = f" --revision {revision}" if revision else ""
    return UserError(
        f"{field}: no such directory, and the hub cannot give it (its cache {cache_directory()} {lacks}, and "
        f"HF_HUB_OFFLINE forbids to load it: `hf download {name}{option}` does, where there is a network), got {name}"
    )


def _folder(name: str) -> str:
    return "models--" + name.replace("/", "--")
