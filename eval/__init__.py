"""Scoring a model: lm-eval adapter, perplexity, probes."""
