"""What reaches an imported model is what lm-eval's backend for transformers would have given the source."""

import json

import lm_eval.utils
import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from transformers import AutoTokenizer

from hybridlm.eval.benchmarks.harness import HybridHarness
from hybridlm.eval.benchmarks.lm_eval_cli import one_prefix
from hybridlm.eval.forward.scoring import TargetScore
from hybridlm.lm.data.tokenizer import Tokenizer
from hybridlm.lm.hf.tokenizers import copy_tokenizer
from hybridlm.tests.hf.tokenizer_kinds import SOURCES

KINDS = (
    "no policy",
    "BOS by template",
    "a space in front",
    "Qwen2",
    "Llama, tokenizers",
    "Llama, SentencePiece, no BOS",
)
LENGTH = 64
CONTEXTS = ("the cat", "the cat sat ", "", "<s> the cat", "<|im_start|>the cat<|im_end|>\n", "on the mat\n\n")
ANSWERS = (" sat", "\nthat was", " on the mat")
LONG = "the cat sat on the mat and that was that, 0123456789 " * 5


class Ours(HybridHarness):
    """Keeps what would be computed."""

    def __init__(self, tokenizer: Tokenizer):
        super().__init__(None, tokenizer, max_length=LENGTH)  # type: ignore[arg-type]
        self.asked = []

    def _answers(self, keys, *_):
        self.asked = [tuple(key[1:3]) if key[0] == "score" else key[1] for key in keys]
        return {i: "" if kind == "generate" else TargetScore(-1.0, False) for i, (kind, *_) in enumerate(keys)}


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    """Our harness on an import, and lm-eval's on the source, without models."""
    pytest.importorskip("accelerate", reason="lm-eval's hf adapter imports accelerate: pip install accelerate")
    from lm_eval.models.huggingface import HFLM

    class Theirs(HFLM):
        def __init__(self, tokenizer):
            self.tokenizer, self.add_bos_token, self.custom_prefix_token_id = tokenizer, None, None
            self.backend, self._max_length, self.batch_size_per_gpu, self.enable_thinking = "causal", LENGTH, 1, False
            self._rank, self._world_size, self.asked, self.cache_hook = 0, 1, [], CacheHook(None)

        def _loglikelihood_tokens(self, requests, **_):
            self.asked += [(tuple(context), tuple(continuation)) for _, context, continuation in requests]
            return [(-1.0, False)] * len(requests)

    folder = tmp_path_factory.mktemp("kind")
    SOURCES[request.param](folder / "source")
    copy_tokenizer(folder / "source", json.loads((folder / "source" / "config.json").read_text()), folder / "run")
    theirs = AutoTokenizer.from_pretrained(folder / "source")
    theirs.pad_token = theirs.eos_token
    return Ours(Tokenizer.load(folder / "run")), Theirs(theirs)


def requests(kind, arguments):
    return [Instance(kind, {}, args, i, metadata=("t", i, 1)) for i, args in enumerate(arguments)]


def test_contexts_and_continuations_are_the_same_tokens(pair):
    ours, theirs = pair
    asked = requests("loglikelihood", [(context, answer) for context in CONTEXTS for answer in ANSWERS])
    theirs.asked.clear()
    ours.loglikelihood(asked), theirs.loglikelihood(asked, disable_tqdm=True)
    assert ours.asked == theirs.asked
    assert not ours.apart[""]


def test_whole_texts_are_the_same_windows(pair, monkeypatch):
    """Later windows start like prompts in ours; where those have nothing in front they are lm-eval's."""
    monkeypatch.setattr(lm_eval.utils, "get_rolling_token_windows", one_prefix)
    ours, theirs = pair
    for text in ("the cat", "</s> the cat", LONG):
        theirs.asked.clear()
        asked = requests("loglikelihood_rolling", [(text,)])
        ours.loglikelihood_rolling(asked), theirs.loglikelihood_rolling(asked, disable_tqdm=True)
        n = 1 if ours.tokenizer.front else None
        assert ours.asked[:n] == theirs.asked[:n]
        assert sum(len(targets) for _, targets in ours.asked) == sum(len(targets) for _, targets in theirs.asked)


def test_prompts_to_continue_are_the_same_tokens(pair):
    ours, theirs = pair
    contexts = [context for context in CONTEXTS if context]
    ours.generate_until(requests("generate_until", [(context, {"max_gen_toks": 4}) for context in contexts]))
    assert ours.asked == [theirs.tok_batch_encode([context])[0][0].tolist() for context in contexts]


def test_a_prompt_of_nothing_is_what_an_empty_context_is(pair):
    ours, theirs = pair
    ours.generate_until(requests("generate_until", [("", {"max_gen_toks": 4})]))
    assert ours.asked == [[theirs.prefix_token_id]]


def test_a_continuation_that_grows_into_the_context_has_no_space_put_in_front(pair):
    """ "the ca" and "t sat": no token ends between them, so that the two are encoded apart."""
    ours, _ = pair
    found = ours.tokenizer.encode_pair("the ca", "t sat")
    whole = ours.tokenizer.decode(ours.tokenizer.encode("the cat sat"))  # with a space in front where GPT-2 puts one
    assert ours.tokenizer.decode([*found.context, *found.continuation]) == whole
