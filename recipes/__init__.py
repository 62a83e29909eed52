"""Recipes: one YAML file per run a user would start."""
