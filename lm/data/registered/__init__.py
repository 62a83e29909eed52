"""Corpora that `hybridlm fetch` knows: where they lie, and how each archive is read."""
