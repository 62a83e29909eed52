"""Softmax attention: what is projected, what is visible, what is remembered."""
