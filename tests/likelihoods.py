"""What is scored, and by models of what size, in tests of the likelihood."""

from dro_rl.policy.completion import Completion

RAGGED = [
    Completion((1, 7, 9, 12), (5, 6)),
    Completion((1, 7), (8, 9, 10, 2)),
    Completion((1, 30, 31, 32, 33, 34, 35), (2,)),
]
SMALL = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
