"""Scores of token sequences by a model: prefix tree, budgets, long contexts."""
