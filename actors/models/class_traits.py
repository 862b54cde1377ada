"""What a class of transformers says of itself, and with its configuration, of which family a model is."""

import inspect
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from actors.models.class_source import class_source
from actors.models.family import ClassTraits, Family, family_of
from actors.models.unfit import unlisted


def family_of_model(model: PreTrainedModel) -> Family:
    """The family of a model; raises UserError as `family_of`."""
    return _family(type(model), model.config, "model.path")


def family_of_class(loader: type[_BaseAutoModelClass], config: PretrainedConfig, field: str = "model.path") -> Family:
    """The family of the model that `loader` makes of a configuration.

    Raises:
        UserError: with `field`: as `family_of`; transformers has no such model of this kind.
    """
    classes: Any = loader._model_mapping
    found = classes.get(type(config), None)
    if found is None:
        raise unlisted(config.model_type, loader.__name__.removeprefix("AutoModelFor"), field)
    return _family(found[0] if isinstance(found, tuple) else found, config, field)


def traits_of(kind: type[PreTrainedModel]) -> ClassTraits:
    """What a class says of itself."""
    return ClassTraits(
        interface=bool(kind._supports_attention_backend),
        stateful=bool(kind._is_stateful),
        sdpa=bool(kind._supports_sdpa),
        flash=bool(kind._supports_flash_attn),
        source=class_source(Path(inspect.getfile(kind)), kind.__name__),
    )


def _family(kind: type[PreTrainedModel], config: PretrainedConfig, field: str) -> Family:
    text, traits = config.get_text_config(), traits_of(kind)  # where a model has parts, its text part decides
    # Some are no fields, but what the class of the configuration makes of others.
    made = {name: getattr(text, name) for name, _ in traits.source.factors if hasattr(text, name)}
    return family_of(text.to_dict() | made, traits, field)
