"""Benchmarks by lm-eval: our tasks, our models, one table of scores."""
