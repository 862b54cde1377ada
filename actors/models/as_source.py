"""The configuration of an export: that of its source, but for what training has changed. No torch."""

import json
import shutil
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

CONFIG, GENERATION = "config.json", "generation_config.json"
_PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
"""Of models that read more than text: what turns the rest into their inputs."""
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_LABELS = ("num_labels", "id2label", "label2id", "problem_type")
_DTYPES = ("dtype", "torch_dtype")
_OF_TRAINING: dict[str, object] = {
    "router_jitter_noise": 0.0,
    "input_jitter_noise": 0.0,
    "moe_jitter_eps": None,
    "altup_coef_clip": 1e30,
    "rescale_every": 0,
}
"""Settings -> the value with which training is like evaluation: noise at the inputs of routers, coefficients that are
cut, weights that are divided in evaluation."""
_THRESHOLDS = ("phimoe",)
"""Families whose router_jitter_noise is no noise: it decides, in evaluation too, which experts may be mixed."""


def restore_settings(directory: Path, source: str, *, scores: bool) -> None:
    """Give the model in `directory`, as transformers has just written it, the settings of `source`, field by field.

    Training runs without dropout and without a cache, and transformers renames settings; neither belongs to what was
    trained. Of the written config.json stay class, dtype and quantisation, and with `scores` (a model with a score
    head) the labels and the padding token. generation_config.json and files of processors are the source's, or none.
    Without a `source` (empty, or gone), all stays as it was written.
    """
    origin = Path(source)
    given, written = read_settings(origin / CONFIG) if source else {}, read_settings(directory / CONFIG)
    if not given or not written:
        return
    if given.get("model_type") == written.get("model_type"):
        settings = _merged(given, written, scores=scores)
        for name in _PROCESSORS:
            if is_own(origin / name, origin, _PROCESSORS):
                shutil.copyfile(origin / name, directory / name)
    else:  # the text part of a larger model: the names are others
        ours = {*as_in_evaluation(given), "use_cache"}
        changed = [name for name in written if name in given and name in ours]
        settings = written | {name: given[name] for name in changed}
    (directory / CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if (directory / GENERATION).is_file():
        (directory / GENERATION).unlink()
        if is_own(origin / GENERATION, origin, [GENERATION]):
            shutil.copyfile(origin / GENERATION, directory / GENERATION)
        elif found := read_settings(origin / GENERATION):
            from transformers import GenerationConfig

            known = GenerationConfig().to_dict()
            settings = {name: value for name, value in found.items() if name in known}
            (directory / GENERATION).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def generation_problem(directory: Path) -> str | None:
    """Why transformers cannot load the generation_config.json of an export, which is its source's; None: it can."""
    try:
        found = json.loads((directory / GENERATION).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # then it does without
        return None
    from transformers import GenerationConfig

    try:
        GenerationConfig.from_dict(found)
    except Exception as error:  # each field has its own way to be wrong
        reason = " ".join(str(error).split())
        return f"generation_config.json of the model is kept as it is, and transformers cannot read it: {reason}"
    return None


def tokens_for_generation(directory: Path) -> dict[str, object]:
    """Which tokens begin, end and pad a text, by the files of a model; for where `generation_problem` finds one."""
    found = read_settings(directory / GENERATION) or read_settings(directory / CONFIG)
    return {name: found[name] for name in _TOKENS if name in found}


def as_in_evaluation(settings: dict[str, object]) -> dict[str, object]:
    """The settings of a config.json that let a model compute something else in training, with values that do not."""
    # Rates are floats; other settings may have the word in their names.
    found: dict[str, object] = {
        name: 0.0 for name, value in settings.items() if _is_dropout(name) and isinstance(value, float)
    }
    found |= {name: value for name, value in _OF_TRAINING.items() if settings.get(name)}
    if settings.get("model_type") in _THRESHOLDS:
        found.pop("router_jitter_noise", None)
    return found


def _is_dropout(name: str) -> bool:
    return any(word in name for word in ("dropout", "pdrop", "layerdrop"))


def is_own(file: Path, source: Path, names: Sequence[str]) -> bool:
    """Whether a file of `source` may be copied as it is: an export can be uploaded, and a link could lead to anything.
    One to another file there of these names (or patterns) may, and in the hub's cache those to blobs."""
    if not file.is_file():
        return False
    root, target = source.resolve(), file.resolve()
    if root.parent.name == "snapshots" and target.parent == root.parent.parent / "blobs":
        return True
    named = any(fnmatchcase(target.name, name.rpartition("/")[2]) for name in names)
    return target.is_relative_to(root) and named


def _merged(given: dict[str, object], written: dict[str, object], *, scores: bool) -> dict[str, object]:
    # A source's own code is not copied with it, nor is its quantisation where the weights are whole.
    ours = ["architectures", "transformers_version", "quantization_config", "auto_map"]
    ours += [*_LABELS, "pad_token_id"] if scores else []
    settings = {name: value for name, value in given.items() if name not in ours}
    settings |= {name: written[name] for name in ours if name in written}
    dtype = next((written[name] for name in _DTYPES if name in written), None)
    named = [name for name in _DTYPES if name in given] or _DTYPES[:1]
    return settings | (dict.fromkeys(named, dtype) if dtype else {})


def read_settings(file: Path) -> dict[str, object]:
    """The object in a JSON file; empty where there is none."""
    try:
        # Editors on Windows put a byte order mark first, which JSON does not allow.
        found = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):  # it was there when the model was loaded
        return {}
    return found if isinstance(found, dict) else {}
