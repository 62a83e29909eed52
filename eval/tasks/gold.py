"""Bits per byte of the right answer: it moves long before a small model's accuracy leaves chance."""

import math


def bits_per_byte(log_likelihood: float, text: str) -> float:
    """-log2 p(text) / its UTF-8 bytes, from log p in nats."""
    return -log_likelihood / math.log(2) / len(text.encode())
