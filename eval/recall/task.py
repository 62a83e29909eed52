"""The measure of Based and JRT: whether a short greedy continuation contains the answer."""

from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from ..tasks.gold import bits_per_byte

GENERATION = {"until": ["\n"], "max_gen_toks": 48, "do_sample": False, "temperature": 0.0}
"""Arora et al. 2024 (arXiv 2402.18668): at most 48 tokens, up to the end of the line."""


def contains(text: str, golds: list[str]) -> bool:
    """Whether any of `golds` is in `text`, upper and lower case being equal."""
    lowered = text.lower()
    return any(gold.lower() in lowered for gold in golds)


class RecallTask(ConfigurableTask):
    """Documents have `prompt`, `golds` (any of them counts) and `closed`: the question without its passage, or "".

    contains: share of documents where a gold is in the continuation. gold_bpb: bits per byte of the first gold.
    closed_bpb: the same without the passage; closed_bpb - gold_bpb is what the passage is worth.
    """

    def construct_requests(self, doc: Any, ctx: Any, **kwargs: Any) -> list[Instance]:
        answer = f" {doc['golds'][0]}"
        asked = [("generate_until", (ctx, dict(self.config.generation_kwargs or {}))), ("loglikelihood", (ctx, answer))]
        if doc["closed"]:
            asked.append(("loglikelihood", (doc["closed"], answer)))
        return [
            Instance(kind, doc, arguments, i, metadata=kwargs["metadata"]) for i, (kind, arguments) in enumerate(asked)
        ]


def results(doc: Any, answers: Any) -> dict[str, float]:
    """The metrics of one document from the answers to its requests."""
    text, *scored = answers
    bits = [bits_per_byte(log_likelihood, f" {doc['golds'][0]}") for log_likelihood, _greedy in scored]
    return {
        "contains": float(contains(text, doc["golds"])),
        **dict(zip(("gold_bpb", "closed_bpb"), bits, strict=False)),
    }


def recall_config(name: str, max_gen_toks: int = 48) -> dict[str, Any]:
    """lm-eval's configuration of a RecallTask."""
    higher = {"contains": True, "gold_bpb": False, "closed_bpb": False}
    return {
        "task": name,
        "output_type": "generate_until",
        "doc_to_text": "prompt",
        "doc_to_target": "{{golds[0]}}",
        "generation_kwargs": {**GENERATION, "max_gen_toks": max_gen_toks},
        "process_results": results,
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": better} for metric, better in higher.items()
        ],
        "metadata": {"version": 1.0},
    }
