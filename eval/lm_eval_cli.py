"""`python -m hybridlm.eval.lm_eval_cli`: the command of `benchmarks.lm_eval_cli`, under a name of its own."""

from .benchmarks.lm_eval_cli import main

if __name__ == "__main__":
    main()
