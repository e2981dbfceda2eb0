"""config.json of a model without vision."""

TEXT = {  # EXAONE 4.0 1.2B: no sliding window, tied embeddings; fewer layers
    "model_type": "exaone4",
    "vocab_size": 102400,
    "hidden_size": 2048,
    "intermediate_size": 4096,
    "num_hidden_layers": 6,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 65536,
    "sliding_window": None,
    "sliding_window_pattern": None,
    "tie_word_embeddings": True,
}
