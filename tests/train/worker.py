"""What the engine's tests train, also as the program of their several-process runs.

    torchrun -m hybridlm.tests.train.worker OUT --stage 1 --precision fp32 --steps 4 [--resume]

continues from OUT's newest checkpoint if told to, trains to --steps, saves, and writes the losses to OUT/losses.json.
"""

import argparse
import json
from pathlib import Path

import torch

from hybridlm.lm.model import HybridLM
from hybridlm.lm.recipe.model import ModelConfig
from hybridlm.lm.recipe.train import CheckpointConfig, OptimConfig, ScheduleConfig, TrainConfig
from hybridlm.lm.train.checkpoint import Checkpoints
from hybridlm.lm.train.engine import Engine
from hybridlm.lm.train.schedule import learning_rate

B, T, VOCAB, TOTAL = 4, 24, 61, 8
OPTIM = OptimConfig(lr=3e-3, schedule=ScheduleConfig(warmup=2, decay=0.25))


def model_config(**options) -> ModelConfig:
    options = {"pattern": ["gated_deltanet", "attention"], **options}
    return ModelConfig(vocab_size=VOCAB, d_model=32, n_layers=2, context=T, **options)


def build_model(seed: int = 0, **options) -> HybridLM:
    torch.manual_seed(seed)
    return HybridLM(model_config(**options))


def train_config(**options) -> TrainConfig:
    return TrainConfig(steps=TOTAL, micro_batch=1, **options)


def batch(step: int) -> torch.Tensor:
    """Token ids [B, T] of one step, the same for any number of processes."""
    return torch.randint(VOCAB, (B, T), generator=torch.Generator().manual_seed(step))


def train(engine: Engine, steps: range) -> list[float]:
    """Each step's loss over the whole batch; every rank takes its rows one by one."""
    losses = []
    for step in steps:
        loss = torch.zeros((), dtype=torch.float64)
        for row in batch(step)[engine.rank :: engine.world_size]:
            ids = row[None].to(engine.device)
            output = engine.forward(input_ids=ids, labels=ids, logits=False)
            engine.backward(output.loss / B)
            loss += output.loss.item() / B
        assert engine.step(learning_rate(step, TOTAL, OPTIM)).applied
        losses.append(engine.all_reduce(loss).item())
    return losses


def checkpoints(folder: Path, **options) -> Checkpoints:
    return Checkpoints(folder, CheckpointConfig(**options), model_config().model_dump(mode="json"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--stage", type=int)
    parser.add_argument("--precision")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--resume", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    engine = Engine(build_model(), OPTIM, train_config(zero_stage=asked.stage, precision=asked.precision), TOTAL)
    kept, first = checkpoints(asked.out, keep_last=9), 0
    if asked.resume:
        newest = kept.latest()
        assert newest is not None
        first = kept.load(engine, newest)["step"]
        again, _ = engine.export_state()
        if engine.is_main:
            torch.save(again, asked.out / "loaded.pt")
    losses = train(engine, range(first, asked.steps))
    kept.save(engine, asked.steps, {})
    if engine.is_main:
        (asked.out / "losses.json").write_text(json.dumps(losses))
    engine.close()


if __name__ == "__main__":
    main()
