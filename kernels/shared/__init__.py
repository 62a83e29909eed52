"""What the operators share: sequences and chunks, checks, triangular systems, the Triton scan and interpreter."""
