"""Perplexity by position in a long text."""
