"""FSDP2, DDP and accelerate around a model of all mixers: real groups, in a process of their own."""

import subprocess
import sys

import pytest

SCRIPT = """
import tempfile
import torch, torch.distributed as dist
from accelerate import Accelerator
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from hybridlm.lm.mixers import MIXERS
from hybridlm.tests.model.helpers import build, tokens

torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{tempfile.mkdtemp()}/store", rank=0, world_size=1)


def hybrid():
    return build(pattern=list(MIXERS), n_layers=len(MIXERS), tie_embeddings=False)


def check(model, own):
    '''The loss with and without logits, and gradients, are those of the model that nobody wraps.'''
    for logits in (False, True):
        loss = model(ids, labels=ids, logits=logits).loss
        torch.testing.assert_close(loss, expected)
        loss.backward()
        for name, p in own.named_parameters():
            grad = p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
            torch.testing.assert_close(grad, gradients[name], rtol=1e-4, atol=1e-7, msg=name)
        own.zero_grad()


ids = tokens(2, 9)
plain = hybrid()
expected = plain(ids, labels=ids, logits=False).loss
expected.backward()
gradients = {name: p.grad for name, p in plain.named_parameters()}
for own_head in (True, False):
    model = hybrid()
    for unit in [*model.layers(), *([model.lm_head] if own_head else []), model]:
        fully_shard(unit)
    check(model, model)
with torch.device("meta"):
    model = hybrid()
for unit in [*model.layers(), model]:
    fully_shard(unit)
model.to_empty(device="cpu")
torch.manual_seed(0)
model.init_weights()
whole = {name: p.full_tensor() for name, p in model.named_parameters()}
assert all(p.isfinite().all() for p in whole.values())
for name, p in plain.named_parameters():
    if "A_log" in name or "norm" in name or "dt_bias" in name:
        torch.testing.assert_close(whole[name], p, msg=name)
model = hybrid()
check(torch.nn.parallel.DistributedDataParallel(model), model)
model = hybrid()
check(Accelerator(cpu=True).prepare(model), model)
model = hybrid()
for block in model.layers():
    fully_shard(block, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
try:
    model(ids)
except ValueError as error:
    print(error)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_wrappers_of_whole_models_change_no_loss_and_no_gradient():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "is torch.bfloat16; allowed: float32, else it loses its digits" in done.stdout
