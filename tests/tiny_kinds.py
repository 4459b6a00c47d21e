"""A tiny model of every kind, as overrides of a config: what the tests of kinds go through."""

TINY_KINDS = {
    "transformer": {"kind": "transformer", "num_layers": 1, "d_model": 16, "num_heads": 2},
    "rnn": {"kind": "rnn", "num_layers": 2, "d_model": 16},
    "gru": {"kind": "gru", "num_layers": 2, "d_model": 16},
    "gru_before": {"kind": "gru", "d_model": 16, "reset": "before"},
    "lstm": {"kind": "lstm", "num_layers": 2, "d_model": 16},
    "mlp": {"kind": "mlp", "window": 3, "d_embed": 8, "d_model": 16, "direct": True},
    "mlp_norm": {"kind": "mlp", "window": 3, "d_embed": 8, "d_model": 16, "batch_norm": True},
    "tcn": {"kind": "tcn", "num_layers": 2, "d_model": 16},
    "wavenet": {"kind": "tcn", "num_layers": 2, "d_model": 16, "gate": "wavenet"},
    "bigram": {"kind": "bigram"},
}
