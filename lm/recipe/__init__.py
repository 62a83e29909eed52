"""The strict tree of a recipe. Nothing here, nor what it imports, loads torch."""
