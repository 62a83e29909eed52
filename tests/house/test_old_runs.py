"""Files of the code before its folders moved: what was trained, exported, scored and swept then is read the same now.

old_runs/README.md says what the files are. expected.json holds what the old code computed from them, in float32 on one
thread of a CPU. A test that fails here says that somebody's run on disk has changed its meaning.
"""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from hybridlm.eval.benchmarks.scores import Scores
from hybridlm.eval.needles import Needles
from hybridlm.eval.positions.results import Positions
from hybridlm.eval.synthetic.token_probes import TokenProbes
from hybridlm.lm import HybridLM
from hybridlm.lm.hf import load_pretrained, save_pretrained
from hybridlm.lm.model import Cache
from hybridlm.lm.run import Run

OLD = Path(__file__).parent / "old_runs"
PLACE = "OLD_RUNS"  # stands in recipe.yaml for the folder that the files lie in
EXPECTED = json.loads((OLD / "expected.json").read_text())
IDS = torch.tensor([EXPECTED["ids"]])
SCORES = "eval/step-000004"
LONG = (
    *("--suite", "long", "eval.needles.haystack=verse.jsonl", "eval.needles.tasks=[single_1,single_3]"),
    *("eval.needles.lengths=[640]", "eval.needles.depths=[0,0.5,1]", "eval.positions.text=verse.jsonl"),
    *("eval.positions.max_tokens=192", "eval.positions.blocks=2", "eval.positions.window=48"),
)
TASKS = ("--tasks", "ioi_text,phonebook_10", "--limit", "4")
VOLATILE = {"time", "seconds", "lm_eval"}  # keys that may differ: clocks, and the version of a library


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the expected values were computed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def moved(tmp_path: Path) -> Path:
    """The files at another place, where they may be written to, and which their recipe names."""
    folder = tmp_path / "moved"
    shutil.copytree(OLD, folder)
    recipe = folder / "hybrid" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(PLACE, str(folder)))
    return folder


def hybridlm(*args: str, cwd: Path) -> str:
    """What the command prints, in a process of its own: one thread, no GPU."""
    settings = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200", "PYTHONIOENCODING": "utf-8"}
    command, env = [sys.executable, "-m", "hybridlm", *args], os.environ | settings
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def alike(found: Any, old: Any, where: str = "") -> None:
    """Everything that was there is there with its value, numbers to 1e-5; there may be more now."""
    if isinstance(old, dict):
        assert old.keys() <= found.keys(), where
        for key in old.keys() - VOLATILE:
            alike(found[key], old[key], f"{where}.{key}")
    elif isinstance(old, list):
        assert len(found) == len(old), where
        for i, one in enumerate(old):
            alike(found[i], one, f"{where}[{i}]")
    else:
        assert found == (pytest.approx(old, rel=1e-5) if isinstance(old, float) else old), where


def close(logits: torch.Tensor, old: list[float]) -> None:
    """Every fifth logit of a token, to 1e-5 of the largest: one that is nearly 0 is a difference of larger numbers."""
    scale = max(map(abs, old))
    assert logits[::5].tolist() == pytest.approx(old, rel=1e-5, abs=1e-5 * scale)


def same_logits(model: Any, old: dict[str, list[float]]) -> None:
    """At the chosen positions of the prompt; `model` is ours or transformers'."""
    with torch.no_grad():
        logits = model(IDS).logits[0]
    for row, expected in old.items():
        close(logits[int(row)], expected)


@pytest.fixture(scope="module")
def model() -> HybridLM:
    return HybridLM.from_run(OLD / "hybrid")


def test_an_old_run_opens_with_its_recipe_and_records():
    run = Run(OLD / "hybrid")
    alike(yaml.safe_load(run.recipe.to_yaml()), yaml.safe_load((run.folder / "recipe.yaml").read_text()))
    losses = {record["step"]: record["loss"] for record in run.metrics() if record["kind"] == "train"}
    assert losses == {step: EXPECTED["losses"]["train"][str(step)] for step in range(1, 5)}
    assert run.newest_checkpoint().name == "step-000004"


def test_an_old_checkpoint_gives_the_same_logits(model):
    same_logits(model, EXPECTED["logits"])


def test_an_old_tokenizer_gives_the_same_tokens():
    tokenizer = Run(OLD / "hybrid").tokenizer()
    assert [tokenizer.bos_id, *tokenizer.encode(EXPECTED["prompt"])] == EXPECTED["ids"]
    assert tokenizer.decode(EXPECTED["ids"]) == EXPECTED["prompt"]


def test_greedy_decoding_writes_the_same_tokens(model):
    written = model.generate(IDS, len(EXPECTED["greedy"]), temperature=0)
    assert written[0].tolist() == EXPECTED["ids"] + EXPECTED["greedy"]


def test_the_command_line_writes_the_same_text():
    asked = ("--prompt", EXPECTED["prompt"], "--max-new-tokens", str(len(EXPECTED["greedy"])), "--temperature", "0")
    assert hybridlm("generate", "hybrid", *asked, cwd=OLD) == EXPECTED["text"]


def test_a_saved_decoding_state_is_continued(model):
    """Two sequences of unequal length, the longer one beyond the window of the first layer."""
    old = EXPECTED["state"]
    cache = Cache.load(OLD / "state.safetensors", model)
    assert cache.lengths == old["lengths"]
    with torch.no_grad():
        for column, expected in zip(torch.tensor(old["tokens"]).T, old["logits"], strict=True):
            logits = model(column[:, None], cache=cache).logits[:, -1]
            for row, values in zip(logits, expected, strict=True):
                close(row, values)


def test_an_old_run_goes_on_with_the_losses_that_it_would_have_had(moved):
    def packs() -> dict[str, int]:
        return {str(p.relative_to(moved)): p.stat().st_mtime_ns for p in moved.glob("cache/prepared/*/*")}

    before = packs()
    hybridlm("train", "hybrid", cwd=moved)
    assert packs() == before  # tokenizer and packs were found, by fingerprint, and used as they were
    run, old = Run(moved / "hybrid"), EXPECTED["losses"]
    records = run.metrics()
    steps = {record["step"]: record for record in records if record["kind"] == "train"}
    assert list(steps) == list(range(1, 9))
    for step, record in steps.items():
        assert record["loss"] == pytest.approx(old["train"][str(step)], rel=1e-5), step
        # another processor rounds another way: up to 7e-6 in a norm, where losses agree to 5e-8
        assert record["norm"] == pytest.approx(old["norm"][str(step)], rel=1e-4), step
    [last] = [record for record in records if record["kind"] == "valid/held_out" and record["step"] == 8]
    assert last["held_out/loss"] == pytest.approx(old["valid"]["8"], rel=1e-5)
    assert last["held_out/bits_per_byte"] == pytest.approx(old["bits_per_byte"]["8"], rel=1e-5)
    assert run.newest_checkpoint().name == "step-000008"
    alike(read(run.folder / "eval" / "step-000008" / "token_probes.json")["slices"], EXPECTED["probes_at_8"])


def test_the_corpus_is_prepared_to_the_same_tokenizer_and_packs(moved):
    """Names hold fingerprints, so equal names and bytes mean that every run's prepared data is found again.

    More may lie beside: hashes of documents, and the packs of a run that would begin today, which splits by text.
    """

    def files(folder: Path) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("*/*")}

    shutil.rmtree(moved / "cache")
    hybridlm("prepare", "hybrid/recipe.yaml", cwd=moved)
    assert files(moved / "cache" / "prepared").items() >= files(OLD / "cache" / "prepared").items()


EXPORTS = {"as-hybridlm": "logits", "as-llama": "as-llama", "other-mixers": "other-mixers"}


@pytest.mark.parametrize("name", EXPORTS)
def test_an_old_export_is_read_by_this_package_and_by_transformers(name):
    from transformers import AutoModelForCausalLM

    same_logits(load_pretrained(OLD / name), EXPECTED[EXPORTS[name]])
    same_logits(AutoModelForCausalLM.from_pretrained(OLD / name).eval(), EXPECTED[EXPORTS[name]])


def test_the_tokenizer_of_an_old_export_is_read_by_transformers():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(OLD / "as-hybridlm")
    assert tokenizer(EXPECTED["prompt"]).input_ids == EXPECTED["ids"]


@pytest.mark.parametrize(
    ("source", "format", "old"),
    [
        ("hybrid", "hybridlm", "as-hybridlm"),
        ("as-llama", "llama", "as-llama"),
        ("other-mixers", "hybridlm", "other-mixers"),
    ],
)
def test_exported_again_the_weights_have_the_same_names_and_bits(source, format, old, tmp_path):
    save_pretrained(load_pretrained(OLD / source), tmp_path / "again", format=format)
    found, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "again", OLD / old))
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    config = read(OLD / old / "config.json")
    alike(read(tmp_path / "again" / "config.json") | {k: config[k] for k in ("bos_token_id", "eos_token_id")}, config)


@pytest.mark.parametrize(
    ("kind", "name"),
    [(Scores, "tasks"), (Needles, "needles"), (Positions, "positions"), (TokenProbes, "token_probes")],
)
def test_an_old_result_file_is_loaded_whole(kind, name):
    file = OLD / "hybrid" / SCORES / f"{name}.json"
    loaded, content = kind.load(file), read(file)
    assert content.pop("kind") == name
    alike(asdict(loaded), content, name)
    assert loaded.values()


def test_an_old_run_scores_the_same(moved):
    """Benchmarks, needles and positions from nothing but the checkpoint."""
    shutil.rmtree(moved / "hybrid" / "eval")
    hybridlm("eval", "hybrid", *TASKS, *LONG, cwd=moved)
    for file in ("tasks", "needles", "positions"):
        alike(read(moved / "hybrid" / SCORES / f"{file}.json"), read(OLD / "hybrid" / SCORES / f"{file}.json"), file)


def test_answers_of_an_interrupted_evaluation_are_found_again(moved):
    """Each kept log likelihood is doubled first: bits per byte double only if the file is read, every answer of it."""
    [file] = (moved / "hybrid" / "eval" / "responses").iterdir()
    base = sqlite3.connect(file)
    for request, answer in base.execute("select request, answer from answers").fetchall():
        if isinstance(kept := json.loads(answer), list):
            changed = json.dumps([2 * kept[0], kept[1]])
            base.execute("update answers set answer = ? where request = ?", (changed, request))
    base.commit()
    base.close()
    hybridlm("eval", "hybrid", *TASKS, cwd=moved)
    assert list(file.parent.iterdir()) == [file]
    base = sqlite3.connect(file)
    assert base.execute("select count(*) from answers").fetchone() == (EXPECTED["answers"],)
    base.close()
    before, after = (
        {(score["task"], score["metric"]): score["value"] for score in read(top / SCORES / "tasks.json")["scores"]}
        for top in (OLD / "hybrid", moved / "hybrid")
    )
    for task in ("ioi_text", "phonebook_10"):
        assert after[task, "gold_bpb"] == pytest.approx(2 * before[task, "gold_bpb"], rel=1e-9)


def test_the_report_shows_an_old_run_and_an_old_sweep(moved):
    printed = hybridlm("report", "hybrid", "sweep", "--out", "page.html", cwd=moved)
    page = (moved / "page.html").read_text(encoding="utf-8")
    bits = EXPECTED["losses"]["bits_per_byte"]["4"]
    assert f"{bits:.3f}" in printed and f"{bits:.4f}" in page
    for score in read(OLD / "hybrid" / SCORES / "tasks.json")["scores"]:
        assert score["task"] in page and f"{score['value']:.4f}" in page
    for cell in read(OLD / "hybrid" / SCORES / "needles.json")["summary"]:
        assert cell["task"] in page
    for curve in read(OLD / "hybrid" / SCORES / "positions.json")["curves"]:
        assert f"{curve['bits_per_byte']:.4f}" in page
    for one in read(OLD / "hybrid" / SCORES / "token_probes.json")["slices"]:
        assert one["label"] in page and f"{one['accuracy']:.4f}" in page
    for line in map(json.loads, (OLD / "sweep" / "results.jsonl").read_text().splitlines()):
        assert line["variant"] in page and f"{line['parameters']:,}" in page


def test_an_old_sweep_goes_on_with_the_run_that_it_lacks(moved):
    """The others are recognised by their fingerprints and stay; the missing one comes out as it had."""
    results = moved / "sweep" / "results.jsonl"
    first, *others = results.read_text().splitlines(keepends=True)
    results.write_text("".join(others))
    hybridlm("mqar", "sweep.yaml", "--out", "sweep", "--jobs", "1", cwd=moved)
    *kept, anew = results.read_text().splitlines(keepends=True)
    assert kept == others
    alike(json.loads(anew), json.loads(first))
