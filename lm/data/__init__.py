"""Data: sources, corpora, tokenizers, packed shards, the resumable loader."""
