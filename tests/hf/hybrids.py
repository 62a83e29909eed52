"""Small models that transformers has too: three layers of odd sizes."""

OLMO = {
    "pattern": ["gated_deltanet", "gated_deltanet", "attention"],
    "attention": {"n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "norm": "post", "qk_norm": "full"},
    "gated_deltanet": {"n_heads": 2, "n_v_heads": 4, "head_dim": 10, "v_head_dim": 14, "conv_size": 3},
    "norm_eps": 1e-5,
}
QWEN = {
    "pattern": ["gated_deltanet", "gated_deltanet", "attention"],
    "attention": {
        "n_heads": 4,
        "n_kv_heads": 2,
        "head_dim": 8,
        "gate": True,
        "qk_norm": "head",
        "rope": {"theta": 5e4, "fraction": 0.5},
    },
    "gated_deltanet": {"n_heads": 2, "n_v_heads": 4, "head_dim": 10, "v_head_dim": 14, "conv_size": 3},
    "norm_eps": 1e-5,
    "zero_centered_norms": True,
}
