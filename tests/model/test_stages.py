"""A mixer's file in two stages: options without torch, the layer when it is asked for, one module in the end."""

import subprocess
import sys
import textwrap

import pytest

from hybridlm.lm.mixers import MIXERS
from hybridlm.lm.mixers.options import MixerConfig


def run(code: str) -> list[str]:
    found = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return found.stdout.split()


@pytest.mark.parametrize("name", MIXERS)
def test_a_mixer_s_options_are_its_own(name):
    assert MIXERS.options(name) is MIXERS[name].Config


def test_options_need_no_torch_and_the_layer_is_of_the_same_module():
    assert run("""
        import sys
        from hybridlm.lm.mixers import MIXERS
        options = [MIXERS.options(name) for name in MIXERS]
        print("torch" in sys.modules)
        print(all(MIXERS[name].Config is one for name, one in zip(MIXERS, options)))
        from hybridlm.lm.mixers.gla import GLA, GLAConfig
        print(GLA is MIXERS["gla"], GLAConfig is MIXERS.options("gla"), "torch" in sys.modules)
    """) == ["False", "True", "True", "True", "True"]


def test_a_file_that_was_imported_before_it_was_looked_up_is_not_run_again():
    assert run("""
        from hybridlm.lm.mixers.gla import GLA
        from hybridlm.lm.mixers import MIXERS
        print(MIXERS["gla"] is GLA, MIXERS.options("gla") is GLA.Config)
    """) == ["True", "True"]


def test_many_threads_may_be_first():
    assert run("""
        import threading
        from hybridlm.lm.mixers import MIXERS
        found, start = [], threading.Barrier(8)
        def look():
            start.wait()
            found.append((MIXERS.options("gla"), MIXERS["gla"], MIXERS["hgrn2"]))
        threads = [threading.Thread(target=look) for _ in range(8)]
        [t.start() for t in threads]; [t.join() for t in threads]
        print(len(found), len(set(found)))
    """) == ["8", "1"]


def test_threads_that_ask_while_another_runs_the_layer_wait_for_it():
    assert run("""
        import importlib, sys, threading
        sys.setswitchinterval(1e-6)
        from hybridlm.lm.mixers import MIXERS
        names = {"gla": "GLA", "hgrn": "HGRN", "retnet": "RetNet", "deltanet": "DeltaNet"}
        errors, start = [], threading.Barrier(6)
        def look(plain):
            start.wait()
            for name, kind in names.items():
                try:
                    module = importlib.import_module(f"hybridlm.lm.mixers.{name}")
                    getattr(module, kind) if plain else MIXERS[name]
                except Exception as error: errors.append(error)
        threads = [threading.Thread(target=look, args=(i % 2,)) for i in range(6)]
        [t.start() for t in threads]; [t.join() for t in threads]
        print(len(errors))
    """) == ["0"]


def test_a_future_import_holds_for_both_stages(tmp_path):
    (tmp_path / "late.py").write_text(
        "from __future__ import annotations\nx = 1\nimport torch\n\ndef f(y: Nowhere) -> Nowhere:\n    return y\n"
    )
    (tmp_path / "broken.py").write_text("x = 1\nimport torch\ny = 1 / 0\n")
    assert run(f"""
        import sys; sys.path.insert(0, {str(tmp_path)!r})
        from hybridlm.lm.mixers.stages import run_in_two_stages
        run_in_two_stages(["late", "broken"])
        import late, broken
        print(late.x, "torch" in sys.modules, late.f(3), late.f.__annotations__["y"])
        for _ in range(2):
            try: broken.y
            except ZeroDivisionError: print("again")
    """) == ["1", "False", "3", "Nowhere", "again", "again"]


def test_a_name_that_is_nowhere_is_an_attribute_error():
    assert run("""
        from hybridlm.lm.mixers import MIXERS
        import hybridlm.lm.mixers.hgrn as module
        MIXERS.options("hgrn")
        try: module.Nowhere
        except AttributeError as error: print(str(error).split()[-1])
    """) == ["'Nowhere'"]


def test_a_mixer_without_options_of_its_own_has_those_of_every_mixer(monkeypatch):
    class Plain:
        Config = MixerConfig

    monkeypatch.setitem(MIXERS, "plain", Plain)
    assert MIXERS.options("plain") is MixerConfig and "plain" in MIXERS
