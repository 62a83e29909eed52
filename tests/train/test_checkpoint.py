"""Resuming is exact at every stage and between world sizes; a save is whole or absent."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

import hybridlm.lm.train.checkpoint as module
from hybridlm.lm.parts.errors import CheckpointError, ConfigError
from hybridlm.lm.recipe.train import CheckpointConfig
from hybridlm.lm.run import latest_checkpoint
from hybridlm.lm.train.checkpoint import Checkpoints
from hybridlm.tests.train.worker import build_model, checkpoints, model_config, train

STAGES = pytest.mark.parametrize("stage", [0, 1, 2, 3])
FILES = {"model.safetensors", "optimizer.safetensors", "state.json"}


class Toy:
    """Stands in for an engine where only the files matter: one process, one tensor each."""

    is_main = True

    def __init__(self, value: float = 0.0, shape: tuple[int, ...] = (4,)):
        self.w = torch.full(shape, value)

    def export_state(self):
        return {"w": self.w}, {"exp_avg.w": self.w + 1, "updates": torch.tensor(1.0)}

    def import_state(self, model, optimizer):
        self.w = model("w")

    def shapes(self):
        return {"w": tuple(self.w.shape)}

    def check_optimizer(self, names, updates):
        assert updates.ndim == 0 and {"exp_avg.w", "updates"} <= set(names)


def toy_checkpoints(folder: Path, architecture: dict | None = None, **options) -> Checkpoints:
    return Checkpoints(folder, CheckpointConfig(**options), architecture or {})


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], x) for name, x in expected.items())


def saved(folder: Path) -> list[str]:
    """Everything in the folder, hidden or not."""
    return sorted(path.name for path in folder.iterdir())


@STAGES
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resuming_is_bitwise_the_uninterrupted_run(start, tmp_path, stage, precision):
    whole = train(start(zero_stage=stage, precision=precision), range(8))
    first = start(zero_stage=stage, precision=precision)
    assert train(first, range(4)) == whole[:4]
    checkpoints(tmp_path).save(first, 4, {"loader": {"documents": 17}})
    second = start(build_model(seed=1), zero_stage=stage, precision=precision)
    kept = checkpoints(tmp_path)
    assert kept.load(second, kept.latest()) == {"loader": {"documents": 17}, "step": 4}
    assert train(second, range(4, 8)) == whole[4:]


@pytest.mark.parametrize(("before", "after"), [(0, 3), (3, 1), (1, 0), (2, 3)])
def test_a_state_moves_between_stages_unchanged(start, tmp_path, before, after):
    first = start(zero_stage=before)
    train(first, range(3))
    path = checkpoints(tmp_path).save(first, 3, {})
    second = start(build_model(seed=1), zero_stage=after)
    checkpoints(tmp_path).load(second, path)
    for old, new in zip(first.export_state(), second.export_state(), strict=True):
        assert same(new, old)
    assert train(second, range(3, 6)) == pytest.approx(train(first, range(3, 6)), rel=1e-6)


@STAGES
def test_a_state_saved_before_the_first_step_starts_the_same_run(start, tmp_path, stage):
    first = start(zero_stage=stage)
    path = checkpoints(tmp_path).save(first, 0, {})
    second = start(build_model(seed=1), zero_stage=stage)
    checkpoints(tmp_path).load(second, path)
    assert train(second, range(3)) == train(first, range(3))


@STAGES
def test_an_imported_model_is_trained_with_a_new_optimizer(start, tmp_path, stage):
    first = start(zero_stage=stage)
    path = checkpoints(tmp_path).save(first, 0, {})
    (path / "optimizer.safetensors").unlink()
    halved = {name: x.bfloat16() for name, x in load_file(path / "model.safetensors").items()}
    save_file(halved, path / "model.safetensors")
    second = start(build_model(seed=1), zero_stage=stage)
    other = Checkpoints(tmp_path, CheckpointConfig(), model_config().model_dump(mode="json") | {"context": 16})
    assert other.load(second, path) == {"step": 0}  # no state of a loader, and any context will do
    model, optimizer = second.export_state()
    assert same(model, {name: x.float() for name, x in halved.items()})
    assert all(not bool(x.any()) for name, x in optimizer.items() if name.startswith("exp_avg"))


def test_a_trained_model_without_its_optimizer_is_refused(tmp_path):
    kept = toy_checkpoints(tmp_path)
    path = kept.save(Toy(), 3, {})
    (path / "optimizer.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"step-000003: has no optimizer\.safetensors; restore it, or move"):
        kept.load(Toy(), path)


def test_the_files_say_what_they_hold(start, tmp_path):
    engine = start(zero_stage=3)
    train(engine, range(2))
    path = checkpoints(tmp_path).save(engine, 2, {"metric": 1.5})
    assert path.name == "step-000002" and {file.name for file in path.iterdir()} == FILES
    weights = load_file(path / "model.safetensors")
    assert "embed.weight" in weights and "lm_head.weight" not in weights
    model = build_model(seed=1)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    assert torch.equal(model.lm_head.weight, weights["embed.weight"])
    optimizer = load_file(path / "optimizer.safetensors")
    assert optimizer.keys() == {"updates", "rng.cpu"} | {f"{m}.{n}" for m in ("exp_avg", "exp_avg_sq") for n in weights}
    assert optimizer["updates"] == 2
    state = json.loads((path / "state.json").read_text())
    assert (state["format"], state["step"], state["extra"]) == (1, 2, {"metric": 1.5})
    assert state["architecture"] == model_config().model_dump(mode="json")


def test_persistent_buffers_come_along(start, tmp_path):
    def model_with_counts(value: float):
        model = build_model()
        model.register_buffer("counts", torch.full((3,), value))
        return model

    path = checkpoints(tmp_path).save(start(model_with_counts(7.0), zero_stage=3), 1, {})
    second = start(model_with_counts(0.0), zero_stage=3)
    checkpoints(tmp_path).load(second, path)
    assert second.model.counts.tolist() == [7.0] * 3


def test_random_draws_continue(tmp_path):
    path = toy_checkpoints(tmp_path).save(Toy(), 1, {})
    expected = torch.rand(5)
    torch.manual_seed(12345)
    toy_checkpoints(tmp_path).load(Toy(), path)
    assert torch.equal(torch.rand(5), expected)


def test_rotation_keeps_the_last_and_the_milestones(tmp_path):
    kept = toy_checkpoints(tmp_path, keep_last=2, keep_every=40)
    for step in range(10, 101, 10):
        kept.save(Toy(), step, {})
    assert saved(tmp_path) == ["step-000040", "step-000080", "step-000090", "step-000100"]
    assert kept.latest() == tmp_path / "step-000100"


def test_latest_goes_by_number_and_ignores_what_is_no_checkpoint(tmp_path):
    assert latest_checkpoint(tmp_path / "nowhere") is None
    (tmp_path / "step-3000000").write_text("a file")
    for name in ("step-999999", "step-1000000", "step-2000000.bak", "step-x", ".step-3000000.partial"):
        (tmp_path / name).mkdir()
    assert latest_checkpoint(tmp_path) == tmp_path / "step-1000000"


def test_a_step_saved_again_is_replaced(tmp_path):
    kept = toy_checkpoints(tmp_path)
    kept.save(Toy(1.0), 5, {})
    path = kept.save(Toy(2.0), 5, {})
    assert saved(tmp_path) == ["step-000005"]
    assert load_file(path / "model.safetensors")["w"].tolist() == [2.0] * 4


def full_at(name: str, monkeypatch) -> None:
    """The disk is full as soon as the file `name` is written."""
    real = module.save_file

    def save_file(tensors, path, **options):
        if Path(path).name != name:
            return real(tensors, path, **options)
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "save_file", save_file)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_a_full_disk_leaves_the_old_checkpoints_and_no_debris(tmp_path, monkeypatch, name):
    kept = toy_checkpoints(tmp_path, keep_last=1)
    kept.save(Toy(1.0), 1, {})
    full_at(name, monkeypatch)
    with pytest.raises(
        CheckpointError, match=r"step-000002 not written: .*No space left.* needs .* MB.* MB free"
    ) as error:
        kept.save(Toy(2.0), 2, {})
    assert "\n" not in str(error.value)
    assert saved(tmp_path) == ["step-000001"]
    again = Toy()
    kept.load(again, kept.latest())
    assert again.w.tolist() == [1.0] * 4


def test_too_little_room_is_noticed_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=3))
    with pytest.raises(CheckpointError, match="No space left"):
        toy_checkpoints(tmp_path / "new").save(Toy(), 1, {})
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
def test_a_disk_that_is_really_full(tmp_path, monkeypatch):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("this machine does not let root mount")
    try:
        kept = toy_checkpoints(tmp_path)
        kept.save(Toy(1.0, (1000,)), 1, {})
        monkeypatch.setattr(module, "_free", lambda folder: 1 << 40)  # so that writing itself fails
        with pytest.raises(CheckpointError, match=r"No space left|os error 28"):
            kept.save(Toy(2.0, (40_000,)), 2, {})
        assert saved(tmp_path) == ["step-000001"]
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


SAVE_FOR_EVER = """
import sys
from pathlib import Path
from hybridlm.tests.train.test_checkpoint import Toy, toy_checkpoints
kept = toy_checkpoints(Path(sys.argv[1]), keep_last=2)
print("started", flush=True)
for step in range(1, 100000):
    kept.save(Toy(float(step), (300_000,)), step, {"value": step})
"""


def test_a_killed_save_is_never_loaded_and_is_cleared_away(tmp_path):
    for delay in (0.05, 0.15):
        run = subprocess.Popen([sys.executable, "-c", SAVE_FOR_EVER, str(tmp_path)], stdout=subprocess.PIPE)
        assert run.stdout and run.stdout.readline() == b"started\n"
        time.sleep(delay)
        run.send_signal(signal.SIGKILL)
        run.wait()
        kept = toy_checkpoints(tmp_path)
        assert all(not name.startswith(".") for name in saved(tmp_path))
        for path in tmp_path.iterdir():
            toy = Toy(0.0, (300_000,))
            extra = kept.load(toy, path)
            assert extra["value"] == extra["step"] and bool((toy.w == extra["value"]).all())


def test_a_kill_between_the_renames_of_a_step_saved_again_loses_nothing(tmp_path, monkeypatch):
    kept = toy_checkpoints(tmp_path)
    kept.save(Toy(1.0), 5, {})
    rename = Path.rename

    def killed(self, target):
        if self.name.endswith(module.PARTIAL):
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", killed)
        kept.save(Toy(2.0), 5, {})
    assert saved(tmp_path) == [".step-000005.replaced"]
    again, toy = toy_checkpoints(tmp_path), Toy()
    assert saved(tmp_path) == ["step-000005"]
    again.load(toy, tmp_path / "step-000005")
    assert toy.w.tolist() == [1.0] * 4
    shutil.copytree(tmp_path / "step-000005", tmp_path / ".step-000005.replaced")
    toy_checkpoints(tmp_path)
    assert saved(tmp_path) == ["step-000005"]


BROKEN = {
    "nothing": lambda path: [file.unlink() for file in path.iterdir()],
    "junk": lambda path: (path / "state.json").write_text("junk"),
    "half a state": lambda path: (path / "state.json").write_text('{"format": 1, "step": 3'),
    "another state": lambda path: (path / "state.json").write_text('{"format": 1}'),
    "a list": lambda path: (path / "state.json").write_text("[]"),
    "half of the weights": lambda path: (path / "model.safetensors").write_bytes(b"half"),
    "no weights": lambda path: (path / "model.safetensors").unlink(),
    "half of the optimizer": lambda path: (path / "optimizer.safetensors").write_bytes(b""),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_checkpoint_is_one_line(tmp_path, how):
    kept = toy_checkpoints(tmp_path)
    path = kept.save(Toy(), 3, {})
    BROKEN[how](path)
    with pytest.raises(
        CheckpointError, match=r"step-000003: not a whole checkpoint: .*; move the folder away"
    ) as error:
        kept.load(Toy(), path)
    assert "\n" not in str(error.value)


def test_every_file_is_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    """fsync of the three files and their folder, then the rename, then fsync of the parent."""
    events = []
    fsync, rename = os.fsync, Path.rename

    def log_fsync(descriptor):
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def log_rename(self, target):
        events.append(f"rename to {Path(target).name}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", log_fsync)
    monkeypatch.setattr(Path, "rename", log_rename)
    toy_checkpoints(tmp_path / "c").save(Toy(), 3, {})
    assert set(events[:3]) == FILES
    assert events[3:] == [".step-000003.partial", "rename to step-000003", "c"]


def test_another_architecture_is_refused_by_its_first_differences(tmp_path):
    old = {"d_model": 64, "ffn": {"hidden": 128}, "layers": 2, "removed_option": 1}
    path = toy_checkpoints(tmp_path, old).save(Toy(), 1, {})
    new = {"d_model": 32, "ffn": {"hidden": 256}, "layers": 2, "added_option": 1}
    with pytest.raises(
        ConfigError, match=r"model.d_model is 64 there and 32 here; model.ffn.hidden is 128 there and 256"
    ):
        toy_checkpoints(tmp_path, new).load(Toy(), path)
    with pytest.raises(ConfigError, match=r"tensor w is \(4,\) there and \(5,\) here"):
        toy_checkpoints(tmp_path, old).load(Toy(shape=(5,)), path)


def test_a_recipes_own_architecture_is_accepted(tmp_path):
    """Tuples and such look different after JSON; that is no difference."""
    kept = toy_checkpoints(tmp_path, {"betas": (1, 2)})
    kept.load(Toy(), kept.save(Toy(), 1, {}))


def test_a_format_of_the_future_is_refused(tmp_path, monkeypatch):
    kept = toy_checkpoints(tmp_path)
    monkeypatch.setattr(module, "FORMAT", 2)
    path = kept.save(Toy(), 1, {})
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="checkpoint format 2, this version reads 1"):
        kept.load(Toy(), path)


def test_reading_checkpoints_needs_no_deepspeed():
    program = "import sys, hybridlm.lm.train.checkpoint; sys.exit('deepspeed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def torchrun(processes: int, folder: Path, stage: int, steps: int, *more: str) -> list[float]:
    """Rank 0's losses of a run of tests/train/worker.py."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", "hybridlm.tests.train.worker", str(folder), "--stage", str(stage), "--steps", str(steps), *more]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--precision", "fp32"], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "losses.json").read_text())


@pytest.mark.slow
@STAGES
def test_two_processes_to_one_to_two(start, tmp_path, stage):
    """The single process is this one."""
    expected = train(start(zero_stage=stage), range(8))
    found = torchrun(2, tmp_path, stage, 3)
    before = load_file(tmp_path / "step-000003" / "model.safetensors")
    alone = start(build_model(seed=1), zero_stage=stage)
    checkpoints(tmp_path).load(alone, tmp_path / "step-000003")
    assert same(alone.export_state()[0], before)
    found += train(alone, range(3, 6))
    path = checkpoints(tmp_path, keep_last=9).save(alone, 6, {})
    found += torchrun(2, tmp_path, stage, 8, "--resume")
    assert same(torch.load(tmp_path / "loaded.pt", weights_only=True), load_file(path / "model.safetensors"))
    assert found == pytest.approx(expected, rel=1e-5)
