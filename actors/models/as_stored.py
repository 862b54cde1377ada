"""A model's tensors as files of its kind have them: under other names, and one that transformers has fused as several.

    model.layers.0.mlp.experts.gate_up_proj [E, 2 I, H]  ->  model.layers.0.mlp.experts.{0..E-1}.{gate,up}_proj.weight

What published checkpoints have is what other programs load, vLLM among them. `transformers` itself turns a whole model
into that form (`revert_weight_conversion`); here tensors come and go one at a time, and only those wait for others
that become one tensor with them.
"""

from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    PrefixChange,
    WeightConverter,
    WeightRenaming,
    WeightTransform,
    dot_natural_key,
    rename_source_key,
)

from actors.models.tensor_files import Meta


class _Group:
    """Tensors of the model that become tensors of a file together; most are alone."""

    def __init__(self, name: str, transform: WeightConverter | WeightRenaming) -> None:
        """`name` is the first one in the file, `transform` what makes them of the model's."""
        self.name, self.transform = name, transform
        self.patterns: dict[str, str] = {}
        """Name in the model -> which part of the transform takes it, in the order in which it needs them."""
        self.there: dict[str, torch.Tensor] = {}

    def add(self, name: str, tensor: torch.Tensor, model: PreTrainedModel) -> dict[str, torch.Tensor]:
        """The tensors of the file, once all of the model's are there; none before."""
        last = len(self.there) + 1 == len(self.patterns)
        # It is gone when the next one is asked for.
        self.there[name] = tensor if last else tensor.clone()
        if not last:
            return {}
        for each, pattern in self.patterns.items():
            self.transform.add_tensor(self.name, each, pattern, self.there[each])  # type: ignore[arg-type]
        self.there = {}
        made = self.transform.convert(self.name, model=model, config=model.config)
        return {new: found[0] if isinstance(found, list) else found for new, found in made.items()}


def as_stored(
    model: PreTrainedModel, names: Iterable[str], tensors: Iterable[tuple[str, torch.Tensor]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors as the files of this kind of model have them, one at a time; each may be gone when the next is asked
    for.

    Args:
        model: of which only the kind and the settings matter.
        names: of all its tensors.
        tensors: those, in any order, each of which may be gone when the next is asked for.
    """
    groups = _groups(model, names)
    for name, tensor in tensors:
        if name in groups:
            yield from groups[name].add(name, tensor, model).items()


def metas_as_stored(model: PreTrainedModel, metas: Sequence[Meta], *, sort: bool = False) -> list[Meta]:
    """Names, dtypes and shapes of what `as_stored` yields of a model's tensors, in its order, before any is there; with
    `sort` in the order in which transformers writes them."""
    # It does not sort what it leaves as it is: a new model of a kind that has one form only.
    sort &= getattr(model, "_weight_conversions", None) is not None or bool(_to_files(model))
    given = sorted(metas, key=lambda meta: dot_natural_key(meta[0])) if sort else metas
    empty = ((name, torch.empty(shape, dtype=dtype, device="meta")) for name, dtype, shape in given)
    found = as_stored(model, [meta[0] for meta in metas], empty)
    return [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in found]


def _groups(model: PreTrainedModel, names: Iterable[str]) -> dict[str, _Group]:
    """Name of each tensor that files have -> its group."""
    transforms = _to_files(model)
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    ignored: set[str] = set(model._keys_to_ignore_on_save or ())
    by_new_name: dict[str, _Group] = {}
    groups = {}
    # In this order: what a renaming does may depend on the names before.
    for name in sorted(set(names) - ignored, key=dot_natural_key):
        new, pattern = rename_source_key(name, renamings, converters, reverse=True)
        transform = WeightRenaming(name, new) if pattern is None else deepcopy(by_pattern[pattern])
        group = groups[name] = by_new_name.setdefault(new, _Group(new, transform))
        group.patterns[name] = name if pattern is None else pattern
    return groups


def _to_files(model: PreTrainedModel) -> list[WeightTransform]:
    """What turns this kind of model into its files, in the order in which it is done.

    That of the kind, whatever form the files had that this one is from: vLLM knows no other. A prefix that all names
    have, or have not, is the exception: it says which class of models the files are of.
    """
    mine: Any = model
    changed = {repr(each) for each in getattr(mine, "_weight_conversions", None) or ()}
    to_model = get_model_conversion_mapping(model, add_legacy=False)
    kept = [each for each in to_model if not isinstance(each, PrefixChange) or repr(each) in changed]
    return [each.reverse_transform() for each in reversed(kept)]
