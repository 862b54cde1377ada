"""Why a model cannot be trained, or not with a setting: the same lines for whoever loads it and for whoever checks it
before anything starts. No torch."""

from actors.config import Dtype, UserError
from actors.models.family import Family
from actors.models.tried import TRIED


def unlisted(kind: str, task: str, field: str = "model.path") -> UserError:
    """transformers has no model of this kind for `AutoModelFor<task>`."""
    return UserError(f"{field}: must be a model that transformers has for {task}, got a {kind}")


def check_dtype(dtype: Dtype, family: Family) -> None:
    """Raise UserError for a precision in which a family cannot be computed."""
    if dtype == "bf16" and not family.bf16:
        raise UserError("model.dtype: must be fp32 for a model whose code in transformers fails in bf16, got bf16")


def check_attention(attention: str, family: Family) -> None:
    """Raise UserError for an attention that does not compute what a family needs."""
    if attention == "flash_attention_2" and not family.flash:
        raise UserError("model.attention: must be auto for a model that flash attention 2 cannot compute, got it")


def check_checkpointing(kind: str, *, asked: bool, supported: bool) -> None:
    """Raise UserError where activations are to be computed again by layers that cannot do so."""
    if asked and not supported:
        raise UserError(f"model.gradient_checkpointing: must be false for a {kind}, whose layers lack it, got true")


def check_tried_whole(kind: str, text: str, *, divided: bool, group: str = "policy") -> None:
    """Raise UserError for an untried kind of model that is divided over the ranks of a group; `text`: the kind of its
    text part."""
    if divided and text not in TRIED:
        raise UserError(
            f"{group}.zero_stage: must be at most 2 for a {kind}, which Tandem does not know and tries first, got 3"
        )


def check_scores_are_known(kind: str, text: str, field: str = "model.path") -> None:
    """Raise UserError for an untried kind of model that is to give scores; `text`: the kind of its text part."""
    if text not in TRIED:
        raise UserError(f"{field}: must be of a kind that Tandem knows to give scores, got a {kind}")


def without_score(name: str, directory: str, field: str = "model.path") -> UserError:
    """The class has no layer that gives a score."""
    return UserError(f"{field}: {name} has no linear score head, got {directory}")
