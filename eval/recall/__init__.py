"""Recall from real text: a passage, a question, and whether the answer in the passage comes out."""
