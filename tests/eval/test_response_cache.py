import math
import os
import signal
import subprocess
import sys

import pytest

from hybridlm.eval.benchmarks import response_cache
from hybridlm.eval.benchmarks.response_cache import ResponseCache
from hybridlm.lm.parts.errors import DataError
from hybridlm.tests.model.helpers import small

REQUESTS = [("score", (1, 2), (3,)), ("score", (1,), (2, 3)), ("generate", [1, 2], "x", None)]


def test_what_came_to_recipes_later_counts_where_a_model_has_it():
    """Without it a model keeps the fingerprint of before."""
    plain, moh, routed = (
        response_cache._architecture(small(**options))
        for options in (
            {"pattern": ["attention"], "moh": {"n_heads": 7}},
            {"pattern": ["moh"], "moh": {"n_heads": 7}},
            {"pattern": ["attention"], "attention": {"heads": {"shared": 1}}},
        )
    )
    assert '"moh"' not in plain and '"heads"' not in plain and '"gla"' in plain
    assert '"moh":{' in moh and '"n_heads":7' in moh and '"heads":{"router":"moh"' in routed


def test_answers_come_back_as_they_were(tmp_path):
    answers = [[-1.2345678901234567, True], [-math.inf, False], "é\n"]
    with ResponseCache(tmp_path, "a") as cache:
        assert cache.known(REQUESTS) == {}
        for request, answer in zip(REQUESTS, answers, strict=True):
            cache.add(request, answer)
    with ResponseCache(tmp_path, "a") as cache:
        assert cache.known(REQUESTS[::-1]) == dict(enumerate(answers[::-1]))
        assert cache.known([("score", (1,), (2, 4)), REQUESTS[1]]) == {1: answers[1]}
    with ResponseCache(tmp_path, "b") as cache:
        assert cache.known(REQUESTS) == {}


def test_an_error_keeps_what_was_finished(tmp_path):
    with pytest.raises(KeyError), ResponseCache(tmp_path, "a") as cache:
        cache.add(REQUESTS[0], 1)
        raise KeyError
    with ResponseCache(tmp_path, "a") as cache:
        assert cache.known(REQUESTS) == {0: 1}


def test_two_processes_may_write_the_same_file(tmp_path):
    with ResponseCache(tmp_path, "a") as one, ResponseCache(tmp_path, "a") as two:
        one.add(REQUESTS[0], 1)
        two.add(REQUESTS[0], 1)
        two.add(REQUESTS[1], 2)
    with ResponseCache(tmp_path, "a") as cache:
        assert cache.known(REQUESTS) == {0: 1, 1: 2}


@pytest.mark.slow
def test_a_killed_process_leaves_a_file_that_can_be_read(tmp_path):
    """SIGKILL at a random moment of writing: every commit before it is there, none is half there."""
    code = f"""
from hybridlm.eval.benchmarks import response_cache
response_cache.COMMIT_EVERY = 0
cache = response_cache.ResponseCache({str(tmp_path)!r}, "a")
for i in range(10**6):
    cache.add(("score", i), i)
    print(i, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    for line in process.stdout:
        if int(line) == 40:
            os.kill(process.pid, signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    with ResponseCache(tmp_path, "a") as cache:
        assert cache.known([("score", i) for i in range(41)]) == {i: i for i in range(41)}


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "a.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(DataError, match=r"a\.sqlite': .*; delete the file$"):
        ResponseCache(tmp_path, "a")


def test_answers_are_written_in_groups(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(response_cache.time, "monotonic", lambda: clock[0])
    with ResponseCache(tmp_path, "a") as cache, ResponseCache(tmp_path, "a") as reader:
        cache.add(REQUESTS[0], 1)
        assert reader.known(REQUESTS) == {}
        clock[0] = 1.5
        cache.add(REQUESTS[1], 2)
        assert reader.known(REQUESTS) == {0: 1, 1: 2}
