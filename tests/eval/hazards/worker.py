"""What each of two processes does in test_processes: a module that a spawned process can import by its name."""

import json
from pathlib import Path

import torch
import torch.distributed as dist
from lm_eval.api.instance import Instance

from hybridlm.eval.benchmarks.harness import HybridHarness
from hybridlm.lm.data.tokenizer import Tokenizer
from hybridlm.lm.mixers import MIXERS
from hybridlm.tests.eval.hazards.conftest import small

CONTEXTS = ["The", "The value", "She said", "Numbers", "The value of", "A", "", "An oak is", "naive", "She"]


def score(tokenizer: Tokenizer, data_parallel: bool) -> dict:
    """Results of the three request types, an odd number of each; texts are drawn with a temperature too."""

    def make(kind, arguments):
        return [Instance(kind, {}, args, i, metadata=("t", i, 1)) for i, args in enumerate(arguments)]

    harness = HybridHarness(small(tuple(MIXERS)), tokenizer, max_length=48, data_parallel=data_parallel)
    greedy = {"until": ["\n"], "max_gen_toks": 6}
    drawn = greedy | {"do_sample": True, "temperature": 1.0}
    pairs = [(context, answer) for context in CONTEXTS[:5] for answer in (" of it", " oak", " value of")]
    return {
        "pairs": harness.loglikelihood(make("loglikelihood", pairs)),
        "texts": harness.loglikelihood_rolling(make("loglikelihood_rolling", [(c * 9,) for c in CONTEXTS[:7]])),
        "greedy": harness.generate_until(make("generate_until", [(c, greedy) for c in CONTEXTS[:7]])),
        "drawn": harness.generate_until(make("generate_until", [(c, drawn) for c in CONTEXTS[:7]])),
    }


def one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    try:
        results = score(Tokenizer.load(folder), True)
        Path(folder, f"{rank}.json").write_text(json.dumps(results))
    finally:
        dist.destroy_process_group()
