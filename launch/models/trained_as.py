"""Which way a model goes in training, and what it cannot be trained with, as loading it would tell. No torch."""

from collections.abc import Collection, Mapping

from actors.config import ModelConfig
from actors.models.family import Family, family_of
from actors.models.unfit import (
    check_attention,
    check_checkpointing,
    check_dtype,
    check_scores_are_known,
    check_tried_whole,
    unlisted,
    without_score,
)
from launch.models.class_fields import check_declared, filled
from launch.models.model_classes import ClassPlace, Task, class_for, has_linear_score, is_listed, says, traits_in


def causal_family(values: Mapping[str, object], model: ModelConfig, divided: Collection[str] = ()) -> Family | None:
    """The family of a causal language model with these fields of its config.json; None where the source of the
    installed transformers does not tell.

    Args:
        model: how it shall be trained.
        divided: groups over whose ranks its weights are divided.

    Raises:
        UserError: as `load_model` does.
    """
    kind, text = str(values["model_type"]), filled(values)
    place = _class_for(kind, "CausalLM", "model.path")
    if place is None:
        return None
    check_declared(values, "model.path")
    family = family_of(text, traits_in(place), "model.path")
    _check_settings(kind, place, family, model)
    for group in divided:
        check_tried_whole(kind, str(text.get("model_type")), divided=True, group=group)
    return family


def scoring_family(values: Mapping[str, object], model: ModelConfig, directory: object, field: str) -> Family | None:
    """The same of a model in `directory` that gives scores; raises UserError, with `field`, as `load_value_model`."""
    kind, text = str(values["model_type"]), filled(values)
    place = _class_for(kind, "SequenceClassification", field)
    if place is None:
        return None
    check_declared(values, field)
    family = family_of(text, traits_in(place), field)
    check_scores_are_known(kind, str(text.get("model_type")), field)
    if not has_linear_score(place):
        raise without_score(place.name, str(directory), field)
    _check_settings(kind, place, family, model)
    return family


def _class_for(kind: str, task: Task, field: str) -> ClassPlace | None:
    if is_listed(kind, task) is False:
        raise unlisted(kind, task, field)
    return class_for(kind, task)


def _check_settings(kind: str, place: ClassPlace, family: Family, model: ModelConfig) -> None:
    check_dtype(model.dtype, family)
    check_attention(model.attention, family)
    supported = says(place, "supports_gradient_checkpointing")
    check_checkpointing(kind, asked=model.gradient_checkpointing, supported=supported)
