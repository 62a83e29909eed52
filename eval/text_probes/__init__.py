"""Probes of one ability each in plain text, generated from a seed: any tokenizer, any model that reads English."""
