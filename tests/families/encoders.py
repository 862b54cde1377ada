"""Tiny configurations of families that give vectors or scores of texts and are not trained as language models."""

from typing import Any

from tests.families.fields import TOKENS, Fields

_NAMES: Fields = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_LENGTHS: Fields = {"max_position_embeddings": 256, "type_vocab_size": 2}
_T5: Fields = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
_RELATIVE: Fields = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
_XLM: Fields = {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "n_words": 128}
_SQUEEZED = ("q", "k", "v", "post_attention", "intermediate", "output")


def encoder(model_type: str, **fields: Any) -> Fields:
    """A family in the names of BERT."""
    return {"model_type": model_type, "initializer_range": 0.3} | TOKENS | _NAMES | _LENGTHS | fields


ENCODER_FAMILIES: dict[str, Fields] = {
    "albert": encoder("albert", embedding_size=16),
    "deberta": encoder("deberta", **_RELATIVE),
    "deberta-v2": encoder(
        "deberta-v2", position_buckets=16, share_att_key=True, norm_rel_ebd="layer_norm", **_RELATIVE
    ),
    "distilbert": encoder("distilbert", dim=32, n_layers=2, n_heads=4, hidden_dim=64),
    "electra": encoder("electra", embedding_size=16),
    "eurobert": encoder("eurobert", num_key_value_heads=2),
    "flaubert": {"model_type": "flaubert"} | TOKENS | _XLM,
    "longformer": encoder("longformer", attention_window=[8, 8]),
    "luke": encoder("luke", entity_vocab_size=10, entity_emb_size=16),
    "mobilebert": encoder("mobilebert", embedding_size=32, intra_bottleneck_size=32),
    "modernbert": encoder(
        "modernbert", local_attention=8, global_attn_every_n_layers=2, cls_token_id=1, sep_token_id=2
    ),
    "squeezebert": encoder("squeezebert", embedding_size=32, **{f"{name}_groups": 1 for name in _SQUEEZED}),
    "xlm": {"model_type": "xlm"} | TOKENS | _XLM,
    **{name: {"model_type": name} | TOKENS | _T5 for name in ("t5", "mt5", "umt5")},
    **{
        name: encoder(name)
        for name in (
            *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "ernie", "gte"),
            *("jina_embeddings_v3", "megatron-bert", "mpnet", "mra", "nomic_bert", "rembert", "roberta"),
            *("roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl"),
        )
    },
}
