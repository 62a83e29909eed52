"""`python -m hybridlm`: the command line, for launchers that start a module."""

from .tools.cli import main

main()
