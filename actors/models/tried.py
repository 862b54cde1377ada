"""Kinds of models, by the model_type of their text part, that the suite shows to be right."""

TRIED = frozenset(
    {
        *("afmoe", "apertus", "arcee", "aria_text", "axk1", "axk2", "bamba", "bart", "bigbird_pegasus"),
        *("biogpt", "bitnet", "blenderbot", "blenderbot-small", "bloom", "codegen", "cohere", "cohere2"),
        *("cohere2_moe", "cohere_compass_text", "ctrl", "cwm", "dbrx", "deepseek_v2", "deepseek_v3"),
        *("deepseek_v32", "deepseek_v4", "diffllama", "dots1", "ernie4_5", "ernie4_5_moe", "exaone4"),
        *("exaone_moe", "falcon", "falcon_h1", "falcon_mamba", "flex_olmo", "gemma", "gemma2", "gemma3_text"),
        *("gemma3n_text", "gemma4_text", "gemma4_unified_text", "git", "glm", "glm4", "glm4_moe"),
        *("glm4_moe_lite", "glm_moe_dsa", "gpt-sw3", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox"),
        *("gpt_neox_japanese", "gpt_oss", "gptj", "granite", "granite_swa", "granitemoe", "granitemoe_swa"),
        *("granitemoehybrid", "granitemoeshared", "helium", "hrm_text", "hunyuan_v1_dense", "hunyuan_v1_moe"),
        *("hy_v3", "hy_v4", "hyperclovax", "inkling_text", "jais2", "jamba", "jetmoe", "kimi_linear"),
        *("laguna", "lfm2", "lfm2_moe", "llama", "llama4_text", "longcat_flash", "mamba", "mamba2", "marian"),
        *("mbart", "mellum", "mimo_v2_flash", "minicpm3", "minimax", "minimax_m2", "minimax_m3_vl_text"),
        *("ministral", "ministral3", "mistral", "mixtral", "moshi", "mpt", "mvp", "nanochat", "nemotron"),
        *("nemotron_h", "olmo", "olmo2", "olmo3", "olmo_hybrid", "olmoe", "openai-gpt", "opt", "pegasus"),
        *("persimmon", "phi", "phi3", "phi4_multimodal", "phimoe", "plbart", "qwen2", "qwen2_moe", "qwen3"),
        *("qwen3_5_moe_text", "qwen3_5_text", "qwen3_moe", "qwen3_next", "qwen4_exp_text", "recurrent_gemma"),
        *("rwkv", "seed_oss", "smollm3", "solar_open", "stablelm", "starcoder2", "trocr", "vaultgemma"),
        *("whisper", "xglm", "xlstm", "youtu", "zamba", "zamba2", "zaya"),
    }
)
"""Causal language models (tests/test_families.py); all give vectors of texts as well (tests/test_family_texts.py)."""

ENCODERS = frozenset(
    {
        *("albert", "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "deberta", "deberta-v2"),
        *("distilbert", "electra", "ernie", "eurobert", "flaubert", "gte", "jina_embeddings_v3", "longformer"),
        *("luke", "megatron-bert", "mobilebert", "modernbert", "mpnet", "mra", "mt5", "nomic_bert", "rembert"),
        *("roberta", "roberta-prelayernorm", "roc_bert", "roformer", "squeezebert", "t5", "umt5", "xlm"),
        *("xlm-roberta", "xlm-roberta-xl"),
    }
)
"""Others that give vectors of texts, or scores of two (tests/test_family_texts.py)."""
