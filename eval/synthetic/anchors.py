"""Published MQAR accuracies (Zoology: arXiv 2312.04927 and its repository), read off plots by eye: ±0.02."""

SLICES = ((64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256))
"""(length, n_pairs) of the test slices of the recall-memory plot; the last two are longer than any training slice."""

D = (64, 128, 256, 512)  # widths of the columns below


def _by_width(*values: float) -> dict[int, float]:
    return dict(zip(D, values, strict=True))


FIG2 = {
    (64, 4): {
        "attention": _by_width(1, 1, 1, 1),
        "hyena": _by_width(0.52, 0.75, 0.84, 0.86),
        "rwkv4": _by_width(0.76, 0.93, 0.97, 0.99),
        "h3": _by_width(0.93, 1, 0.98, 0.98),
        "base_conv": _by_width(0.70, 0.94, 0.97, 1),
    },
    (128, 8): {
        "attention": _by_width(1, 1, 1, 1),
        "hyena": _by_width(0.18, 0.64, 0.74, 0.84),
        "rwkv4": _by_width(0.18, 0.50, 0.75, 0.93),
        "h3": _by_width(0.25, 0.73, 0.92, 0.76),
        "base_conv": _by_width(0.38, 0.61, 0.84, 0.96),
    },
    (256, 16): {
        "attention": _by_width(1, 1, 1, 1),
        "hyena": _by_width(0.06, 0.13, 0.53, 0.69),
        "rwkv4": _by_width(0.05, 0.06, 0.67, 0.80),
        "h3": _by_width(0.07, 0.64, 0.62, 0.67),
        "base_conv": _by_width(0.14, 0.33, 0.81, 0.94),
    },
    (512, 64): {  # the other mixers' narrower models lie at or below 0.02
        "attention": _by_width(1, 1, 1, 1),
        "hyena": {512: 0.17},
        "rwkv4": {512: 0.36},
        "h3": {512: 0.09},
        "base_conv": {512: 0.71},
    },
}
"""(length, n_pairs) -> mixer -> d_model -> accuracy; Fig. 2 of arXiv 2312.04927, one training run per cell and rate."""

RECALL_BY_STATE = {
    "attention": {5e5: 1.0, 1e6: 1.0},
    "sliding_window": {1e4: 0.08, 1.8e4: 0.15, 3.4e4: 0.31, 6.7e4: 0.52, 1.3e5: 0.66, 2.6e5: 0.80, 5.2e5: 0.94},
    "gated_deltanet": {1.7e4: 0.89, 6.7e4: 0.99, 2.6e5: 0.99},
    "deltanet": {9e3: 0.79, 3.4e4: 0.965, 1.3e5: 0.995},
    "rwkv7": {1.7e4: 0.815, 1.3e5: 0.915, 1e6: 0.98},
    "based": {9e3: 0.67, 1.2e4: 0.72, 2.5e4: 0.84, 4e4: 0.91, 8e4: 0.985, 1.6e5: 0.99, 5.7e5: 1.0},
    "gla": {5e3: 0.53, 1.8e4: 0.77, 6.8e4: 0.95},
    "mamba2": {8e3: 0.52, 1.6e4: 0.69, 2.5e4: 0.73, 3.3e4: 0.785, 6.5e4: 0.83, 9.8e4: 0.845},
    "mamba": {2.5e4: 0.70, 4.9e4: 0.76, 9.8e4: 0.85},
}
"""mixer -> bytes of state -> mean accuracy over SLICES at the best learning rate; the plot of Zoology's README."""
