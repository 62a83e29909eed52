"""hybridlm: pretraining of hybrid language models, full attention mixed with linear recurrences in any ratio."""

__version__ = "0.1.0"

if __name__ == "hybridlm":  # pytest also imports this folder under the folder's own name
    from .lm.hf.register import install

    install()  # transformers' auto classes know the `hybridlm` model type, whichever is imported first
