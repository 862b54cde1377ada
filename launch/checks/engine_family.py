"""Whether engines can serve a model's family, and how: told before anything starts."""

from collections.abc import Mapping
from importlib.util import find_spec

from actors.rollout.served import Served, served
from launch.config import RunConfig
from launch.models.class_fields import filled
from launch.models.values import architecture_of
from launch.models.vllm_source import is_served_natively


def check_engine_family(config: RunConfig, values: Mapping[str, object]) -> list[str]:
    """What to tell of how engines serve a model with these fields of config.json; raises UserError as `served`."""
    if served_as(config, values).implementation == "auto" or is_served_natively(architecture_of(values)) is not True:
        return []
    return [f"rollout: engines run the code of transformers for this {values['model_type']}, not vLLM's own class"]


def runs_transformers(config: RunConfig, values: Mapping[str, object]) -> bool:
    """Whether engines run the code of transformers; raises UserError as `served`."""
    how = served_as(config, values).implementation
    return how == "transformers" or is_served_natively(architecture_of(values)) is False


def served_as(config: RunConfig, values: Mapping[str, object]) -> Served:
    """How engines serve a model with these fields of config.json; raises UserError as `served`."""
    text, on_gpu = filled(values), bool(config.rollout.gpus_per_engine)
    return served(
        text,
        composite=text.get("model_type") != values.get("model_type"),
        on_gpu=on_gpu,
        asked=config.rollout.vllm.get("model_impl"),
        # Engines on GPUs come with it.
        torchvision=on_gpu or find_spec("torchvision") is not None,
    )
