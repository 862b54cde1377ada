"""Rules of the jobs that compare texts, embedding models and rerankers.

Every failure is a ValueError whose text begins with the field.
"""

from actors.config import refuse_unused
from algorithms.config_encoder import EmbeddingConfig
from launch.config import RunConfig
from launch.settings.rules_rows import check_sets_are_named


def check_texts(config: RunConfig) -> None:
    """Raise ValueError for settings of sequences, of which texts have their own."""
    data, name = config.data, config.algorithm.name
    refuse_unused(data, "max_length", why=f"for {name}, which reads algorithm.max_tokens", section="data.")
    refuse_unused(data, "system_prompt", why=f"for {name}, which has prompts of its own", section="data.")
    why = f"for {name}, which reads texts, not conversations"
    refuse_unused(data, "template_arguments", why=why, section="data.")
    refuse_unused(config.model, "chat_template", why=why, section="model.")
    why = f"for {name}, which cuts texts at algorithm.max_tokens"
    refuse_unused(data, "overlong", "truncation_side", why=why, section="data.")
    why = f"for {name}, whose evaluation sets have columns of their own (data.eval)"
    refuse_unused(data, "eval_fraction", why=why, section="data.")
    refuse_unused(data, "max_bad_rows", why=f"for {name}, which skips no rows", section="data.")
    refuse_unused(data, "weights", why=f"for {name}, whose tasks have a share (algorithm.tasks)", section="data.")
    refuse_unused(config.model, "router_aux_loss", why=f"for {name}, which balances no experts", section="model.")
    refuse_unused(config.policy, "logprob_chunk_tokens", why=f"for {name}, which has no logits", section="policy.")


def check_one_source(config: RunConfig, where: str) -> None:
    """Raise ValueError for several training sets; `where`: why there is one."""
    train = config.data.train
    if isinstance(train, dict):
        raise ValueError(f"data.train must be one source {where}, got {', '.join(train) or 'none'}")


def check_searched_sets(config: RunConfig) -> None:
    """Raise ValueError for evaluation sets without a name, a corpus that nobody searches, and models of other jobs."""
    data, model, name = config.data, config.model, config.algorithm.name
    if isinstance(data.eval, dict):
        check_sets_are_named(data.eval, "data.eval")
    if data.corpus is not None and data.eval is None:
        raise ValueError(f"data.corpus needs data.eval, which searches it or names its ids, got {data.corpus} without")
    if model.quantize:
        raise ValueError(f"model.quantize must be left out for {name}, got {model.quantize}")
    if model.attention == "packed_sdpa":
        raise ValueError(f"model.attention must be auto or flash_attention_2 for {name}, got packed_sdpa")


def check_pooling_is_given(config: RunConfig, algorithm: EmbeddingConfig) -> None:
    """Raise ValueError when nobody says how a new model pools."""
    if config.model.init and algorithm.pooling is None:
        raise ValueError("algorithm.pooling must be cls, mean, last or max with model.init, got nothing")
