"""Mixtures of experts that cannot be trained, or not be divided over ranks, by their config.json. No torch."""

from collections.abc import Mapping

from actors.config import UserError


def refuse_mixed_tokens(values: Mapping[str, object]) -> None:
    """Raise UserError for a model that computes a token from others of its batch, whatever attention sees."""
    if values.get("model_type") == "doge" and values.get("is_moe"):
        # transformers 5.19 reads the logits of [tokens, 2 keys] as [2, tokens, keys].
        raise UserError(
            "model.path: doge cannot be trained with is_moe, as transformers chooses the experts of a token by the "
            "tokens that stand beside it in a batch, got is_moe=true"
        )


_CALLED_OFTEN = {
    "dbrx": "its tokens choose experts",
    **dict.fromkeys(("qwen4_exp", "qwen4_exp_text"), "its texts have groups of tokens"),
}
"""Families of which transformers 5.19 calls a module with parameters so many times for a batch."""


def refuse_divided(values: Mapping[str, object], field: str) -> None:
    """Raise UserError for a model whose ranks would wait for each other under ZeRO-3; `field`: its group's stage."""
    kind = str(values.get("model_type"))
    if often := _CALLED_OFTEN.get(kind):
        raise UserError(
            f"{field}: must be below 3 for {kind}, of which each rank gathers weights as often as {often}, got 3"
        )
