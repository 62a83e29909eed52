"""hybridlm: pretraining of hybrid language models, full attention mixed with linear recurrences in any ratio."""

__version__ = "0.1.0"
