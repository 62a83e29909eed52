"""Two processes, one of which fails: both end with its error, at once, wherever it was."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist
import yaml

from hybridlm.eval.forward.scoring import NaNScore
from hybridlm.lm.parts.errors import ConfigError
from hybridlm.lm.train.distributed import start_process_group
from hybridlm.lm.train.faults import on_main, together
from hybridlm.tests.train.pair import Ended, run_pair

PROBE = "{task: mqar, vocab_size: 64, length: 32, n_pairs: 2, examples: 8}"
BETWEEN = 20.0  # seconds, of which a process takes some to end on a busy machine; a collective would wait for 1800


def raise_on(*ranks: int, error: Callable[[int], Exception]) -> None:
    rank = dist.get_rank()
    if rank in ranks:
        raise error(rank)


def test_a_process_by_itself_raises_what_it_raised():
    error = KeyError("x")
    with pytest.raises(KeyError) as caught, together():
        raise error
    assert caught.value is error
    with together():
        pass
    assert on_main(lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        on_main(lambda: 1 // 0)


CASES: dict[str, Callable[[], object]] = {
    "value": lambda: on_main(lambda: {"rank": dist.get_rank()}),
    "config": lambda: on_main(lambda: raise_on(0, error=lambda _: ConfigError("train.steps: 0; use 1 or more"))),
    "own constructor": lambda: on_main(lambda: raise_on(0, error=NaNScore)),
    "disk": lambda: on_main(lambda: Path("/nowhere/file").read_text()),
    "bug": lambda: on_main(lambda: raise_on(0, error=lambda _: KeyError("x"))),
    "second": lambda: meet(1),
    "both": lambda: meet(0, 1),
    "again": lambda: on_main(lambda: "still together"),
}


def meet(*ranks: int) -> None:
    with together():
        raise_on(*ranks, error=lambda rank: ConfigError(f"of rank {rank}"))


def main(out: Path) -> None:
    """What every case returns or raises here, one after the other in one group."""
    start_process_group()
    told = {}
    for name, case in CASES.items():
        try:
            told[name] = case()
        except Exception as error:
            told[name] = f"{type(error).__name__}: {error}"
    (out / f"{dist.get_rank()}.json").write_text(json.dumps(told))


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> list[dict]:
    out = tmp_path_factory.mktemp("told")
    program = f"from hybridlm.tests.train.test_faults import main, Path; main(Path({str(out)!r}))"
    assert [(end.code, end.error) for end in run_pair("-c", program)] == [(0, "")] * 2
    return [json.loads((out / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize(
    ("case", "main", "other"),
    [
        ("value", {"rank": 0}, None),
        ("config", "ConfigError: train.steps: 0; use 1 or more", None),
        (
            "own constructor",
            "NaNScore: the model gives NaN, so no score would mean anything; check its weights and precision",
            None,
        ),
        ("disk", "FileNotFoundError: [Errno 2] No such file or directory: '/nowhere/file'", None),
        ("bug", "KeyError: 'x'", "RuntimeError: rank 0 failed: KeyError: 'x'"),
        ("second", "ConfigError: of rank 1", None),
        ("both", "ConfigError: of rank 0", None),
        ("again", "still together", None),
    ],
)
def test_both_processes_have_the_value_or_the_error_of_the_first_that_failed(told, case, main, other):
    assert told[0][case] == main
    assert told[1][case] == (other or main)


STEPS = ["train.steps=4", "eval.every=1", f"eval.probes=[{PROBE}]"]


def train_failing(part: str, recipe: Path, *overrides: str) -> list[Ended]:
    return run_pair("-m", "hybridlm.tests.train.failing", part, str(recipe), *STEPS, *overrides)


def said_once(pair: list[Ended], line: str) -> None:
    """Both ended soon after each other with code 1, and the first process alone printed the line."""
    first, second = pair
    assert (first.code, second.code) == (1, 1) and max(first.after, second.after) < BETWEEN
    assert first.line == line and "hybridlm:" not in second.error


LINES = {
    "hook": "the model gives NaN; check its weights",
    "preparation": "eval.tasks: task 'pica': unknown",
    "data": "data: no network; run it again",
    "log": "metrics.jsonl: No space left on device; free some and repeat",
}


@pytest.mark.slow
@pytest.mark.parametrize("part", LINES)
def test_a_part_that_fails_on_one_rank_ends_both_and_the_first_says_why(tiny_recipe, part):
    said_once(train_failing(part, tiny_recipe), f"hybridlm: {LINES[part]}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("train.step=3", "hybridlm: tiny.yaml: train.step: unknown key 'step' in train; did you mean 'steps'?"),
        ("train.batch=3", "hybridlm: train.batch=3: 2 processes cannot share it evenly; use 2 or 4"),
        ("optim.schedule={warmup: 9}", None),
    ],
)
def test_an_error_of_every_process_is_said_once(tiny_recipe, override, line):
    pair = run_pair("-m", "hybridlm", "train", str(tiny_recipe), *STEPS[:1], override)
    said_once(pair, line or pair[0].line)


@pytest.mark.slow
def test_a_disk_that_refuses_a_checkpoint_ends_both_and_leaves_nothing(tiny_recipe):
    folder = Path(yaml.safe_load(tiny_recipe.read_text())["train"]["out"].format(name="tiny")) / "checkpoints"
    first, second = train_failing("disk", tiny_recipe)
    assert first.line.startswith(
        "hybridlm: checkpoint step-000002 not written: [Errno 28] No space left on device. It "
    )
    said_once([first, second], first.line)
    assert list(folder.iterdir()) == []


@pytest.mark.slow
def test_a_checkpoint_that_one_rank_cannot_read_ends_both(tiny_recipe):
    whole = run_pair("-m", "hybridlm", "train", str(tiny_recipe), *STEPS)
    assert [end.code for end in whole] == [0, 0], whole
    ended = train_failing("checkpoint of one rank", tiny_recipe, "train.steps=5")
    said_once(ended, "hybridlm: a checkpoint of another architecture")


@pytest.mark.slow
def test_a_bug_in_a_hook_ends_both_and_its_traceback_is_that_of_the_rank_that_has_it(tiny_recipe):
    first, second = train_failing("bug in a hook", tiny_recipe)
    assert first.code == second.code == 1 and max(first.after, second.after) < BETWEEN
    assert "raise error\n" in first.error and first.line == "[rank0]: KeyError: 'nowhere'"
    assert second.line == "[rank1]: RuntimeError: rank 0 failed: KeyError: 'nowhere'"


@pytest.mark.slow
def test_a_rank_that_fails_between_collectives_ends_at_once_and_the_other_with_it(tiny_recipe):
    first, second = train_failing("validation", tiny_recipe)
    assert (first.code, first.line) == (1, "hybridlm: the model gives NaN; check its weights")
    assert second.code == 1 and second.after < BETWEEN
