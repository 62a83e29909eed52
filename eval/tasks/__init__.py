"""Benchmarks with lm-eval's own prompts and metrics, on data that needs no hub."""
