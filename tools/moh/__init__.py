"""Conversion of attention to Mixture-of-Head attention: which heads are shared, and what it costs before tuning."""
