"""`python -m hybridlm`: the command line, for launchers that start a module."""

from .lm.cli import main

main()
