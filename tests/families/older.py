"""Decoders with names of their own for their sizes, learned or sinusoidal positions, ALiBi; decoders of translators."""

from typing import Any

from tests.families.fields import Fields, decoder, plain

SIZES: Fields = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def gpt(model_type: str, architecture: str, **fields: Any) -> Fields:
    """Sizes in the names of GPT-2."""
    return plain(model_type, architecture, **({"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256} | fields))


def bert(model_type: str, architecture: str, **fields: Any) -> Fields:
    """An encoder with a causal mask."""
    positions = {"max_position_embeddings": 256, "is_decoder": True}
    return plain(model_type, architecture, **(SIZES | positions | fields))


def translator(model_type: str, architecture: str, **fields: Any) -> Fields:
    """The decoder of a translator, alone."""
    sizes = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64}
    encoder = {"encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64}
    given = {"max_position_embeddings": 256, "init_std": 0.2, "is_decoder": True, "is_encoder_decoder": False}
    tokens = {"decoder_start_token_id": 2, "forced_eos_token_id": None}
    return plain(model_type, architecture, **(sizes | encoder | given | tokens | fields))


OLDER: dict[str, Fields] = {
    "gpt2": gpt("gpt2", "GPT2LMHeadModel"),
    "gpt-sw3": gpt("gpt-sw3", "GPT2LMHeadModel", n_inner=64),
    "gpt_bigcode": gpt("gpt_bigcode", "GPTBigCodeForCausalLM"),
    "gpt_bigcode all heads": gpt("gpt_bigcode", "GPTBigCodeForCausalLM", multi_query=False),
    "gpt_neo": plain(
        "gpt_neo",
        "GPTNeoForCausalLM",
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=16,
        max_position_embeddings=256,
    ),
    "gpt_neox": decoder("gpt_neox", "GPTNeoXForCausalLM"),
    "gpt_neox_japanese": decoder("gpt_neox_japanese", "GPTNeoXJapaneseForCausalLM"),
    "openai-gpt": gpt("openai-gpt", "OpenAIGPTLMHeadModel"),
    "ctrl": gpt("ctrl", "CTRLLMHeadModel", dff=64),
    "codegen": gpt("codegen", "CodeGenForCausalLM", n_ctx=256, rotary_dim=4),
    "gptj": gpt("gptj", "GPTJForCausalLM", rotary_dim=4),
    "opt": decoder("opt", "OPTForCausalLM", ffn_dim=64, word_embed_proj_dim=32, init_std=0.2),
    "bloom": plain("bloom", "BloomForCausalLM", hidden_size=32, n_layer=2, n_head=4),
    "mpt": plain("mpt", "MptForCausalLM", d_model=32, n_heads=4, n_layers=2, max_seq_len=256),
    "falcon alibi": decoder("falcon", "FalconForCausalLM", alibi=True, ffn_hidden_size=64),
    "biogpt": plain("biogpt", "BioGptForCausalLM", **SIZES, max_position_embeddings=256),
    "xglm": plain(
        "xglm",
        "XGLMForCausalLM",
        d_model=32,
        ffn_dim=64,
        num_layers=2,
        attention_heads=4,
        max_position_embeddings=256,
        init_std=0.2,
    ),
    "xlm": plain(
        "xlm",
        "XLMWithLMHeadModel",
        emb_dim=32,
        n_layers=2,
        n_heads=4,
        causal=True,
        max_position_embeddings=256,
        init_std=0.2,
        embed_init_std=0.2,
    ),
    "xlnet": plain("xlnet", "XLNetLMHeadModel", d_model=32, n_layer=2, n_head=4, d_inner=64, d_head=8, attn_type="uni"),
    "reformer local": plain(
        "reformer",
        "ReformerModelWithLMHead",
        hidden_size=32,
        attention_head_size=8,
        num_attention_heads=4,
        feed_forward_size=64,
        attn_layers=["local", "local"],
        axial_pos_embds=False,
        max_position_embeddings=256,
        is_decoder=True,
        local_attn_chunk_length=8,
    ),
    "bert": bert("bert", "BertLMHeadModel"),
    "bert-generation": bert("bert-generation", "BertGenerationDecoder"),
    "big_bird": bert("big_bird", "BigBirdForCausalLM", attention_type="original_full"),
    "camembert": bert("camembert", "CamembertForCausalLM"),
    "data2vec-text": bert("data2vec-text", "Data2VecTextForCausalLM"),
    "electra": bert("electra", "ElectraForCausalLM", embedding_size=16),
    "ernie": bert("ernie", "ErnieForCausalLM"),
    "megatron-bert": bert("megatron-bert", "MegatronBertForCausalLM"),
    "rembert": bert("rembert", "RemBertForCausalLM", input_embedding_size=16, output_embedding_size=24),
    "roberta": bert("roberta", "RobertaForCausalLM", pad_token_id=1, bos_token_id=0),
    "roberta-prelayernorm": bert(
        "roberta-prelayernorm", "RobertaPreLayerNormForCausalLM", pad_token_id=1, bos_token_id=0
    ),
    "roc_bert": bert(
        "roc_bert",
        "RoCBertForCausalLM",
        pronunciation_embed_dim=8,
        pronunciation_vocab_size=128,
        shape_embed_dim=8,
        shape_vocab_size=128,
    ),
    "roformer": bert("roformer", "RoFormerForCausalLM", embedding_size=16),
    "xlm-roberta": bert("xlm-roberta", "XLMRobertaForCausalLM", pad_token_id=1, bos_token_id=0),
    "xlm-roberta-xl": bert("xlm-roberta-xl", "XLMRobertaXLForCausalLM", pad_token_id=1, bos_token_id=0),
    "xmod": bert("xmod", "XmodForCausalLM", default_language="en_XX", pad_token_id=1, bos_token_id=0),
    "git": plain(
        "git",
        "GitForCausalLM",
        **SIZES,
        max_position_embeddings=256,
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "image_size": 16,
            "patch_size": 8,
        },
    ),
    "bart": translator("bart", "BartForCausalLM"),
    "bigbird_pegasus": translator("bigbird_pegasus", "BigBirdPegasusForCausalLM"),
    "blenderbot": translator("blenderbot", "BlenderbotForCausalLM"),
    "blenderbot-small": translator("blenderbot-small", "BlenderbotSmallForCausalLM"),
    "marian": translator("marian", "MarianForCausalLM", decoder_vocab_size=128),
    "mbart": translator("mbart", "MBartForCausalLM"),
    "mvp": translator("mvp", "MvpForCausalLM"),
    "pegasus": translator("pegasus", "PegasusForCausalLM"),
    "plbart": translator("plbart", "PLBartForCausalLM"),
    "trocr": translator("trocr", "TrOCRForCausalLM"),
    "whisper": translator("whisper", "WhisperForCausalLM", max_target_positions=256, begin_suppress_tokens=None),
}
