"""Rotary embeddings: the kinds of scaling, with an original length of 16 that sequences of 40 tokens exceed."""

from tests.families.fields import Fields, decoder, rope

LONG: Fields = {"short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [2.0, 4.0, 6.0, 8.0]}

ROPES: dict[str, Fields] = {
    "llama3 rope": decoder(
        "llama",
        "LlamaForCausalLM",
        rope_parameters=rope(
            "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16
        ),
    ),
    "llama dynamic ntk": decoder(
        "llama", "LlamaForCausalLM", max_position_embeddings=16, rope_parameters=rope("dynamic", factor=4.0)
    ),
    "llama yarn": decoder(
        "llama",
        "LlamaForCausalLM",
        rope_parameters=rope("yarn", factor=4.0, original_max_position_embeddings=16),
    ),
    "longrope phi3": decoder(
        "phi3",
        "Phi3ForCausalLM",
        original_max_position_embeddings=16,
        rope_parameters=rope("longrope", original_max_position_embeddings=16, **LONG),
    ),
}
