"""Model directories without a model: config.json, a tokenizer, and safetensors files of headers with holes behind.

They are whole to whoever reads headers, cost no time, and take no room on the disk whatever their size.
"""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors.config import ModelInit
from actors.models.skeleton import hf_config
from actors.models.tokenizer import build_char_tokenizer
from launch.models.tensors import Shapes, expected_tensors

INIT = ModelInit(hidden_size=64, layers=2, heads=2, kv_heads=1, alphabet="abcdefgh", max_positions=128)


def header(shapes: Shapes, dtype: str = "F32", size: int = 4) -> dict[str, Any]:
    """The JSON of a safetensors file with tensors of these shapes, `size` bytes a number."""
    found, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + size * math.prod(shape)
        found[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    return found


def write_safetensors(path: Path, values: Mapping[str, Any]) -> None:
    """A file with this header, and zeros that are not stored where its tensors would be."""
    content = json.dumps(values).encode()
    end = max((value["data_offsets"][1] for value in values.values()), default=0)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(content)) + content)
        file.truncate(8 + len(content) + end)


def fake_model(directory: Path, *, init: ModelInit = INIT, shards: int = 1, **changes: Any) -> Path:
    """A model as `model.init` would make it, with other fields in its config.json, and all tensors that these mean."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = build_char_tokenizer(init.alphabet)
    tokenizer.save_pretrained(directory)
    values = hf_config(init, "fp32", len(tokenizer), 2, 0) | changes
    (directory / "config.json").write_text(json.dumps(values))
    classifier = values["architectures"][0].endswith("ForSequenceClassification")
    shapes = expected_tensors(values, "scores" if classifier else "causal")
    assert shapes is not None, "a family that is known"
    write_weights(directory, shapes | ({"score.weight": (1, values["hidden_size"])} if classifier else {}), shards)
    return directory


def write_weights(directory: Path, shapes: Shapes, shards: int = 1) -> None:
    """One file, or several with an index, which tells their size."""
    if shards == 1:
        write_safetensors(directory / "model.safetensors", header(shapes))
        return
    names, places = list(shapes), {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        held = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        write_safetensors(directory / file, header({name: shapes[name] for name in held}))
        places |= dict.fromkeys(held, file)
    total = sum(4 * math.prod(shape) for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def cache_model(cache: Path, name: str, *, revision: str = "main", commit: str = "c" * 40, **options: Any) -> Path:
    """A fake model in a hub's cache: the directory of its snapshot."""
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / revision).write_text(commit)
    return fake_model(folder / "snapshots" / commit, **options)
