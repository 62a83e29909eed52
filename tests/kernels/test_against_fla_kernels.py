"""flash-linear-attention's own chunk kernels, interpreted in a process of their own, against our references."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import torch
from hybridlm.kernels import gated_delta_rule, gated_linear_attention
from hybridlm.tests.oracles import relative_rms
from hybridlm.tools.kernel_report.hardware import TARGETS
from hybridlm.tools.kernel_report.peers import rank
from hybridlm.tools.kernel_report.pretend import PretendedGPU
from hybridlm.kernels.shared.triton_interpreter import install

install()
PretendedGPU(TARGETS["sm_90"], lambda config: rank(config, 32))
from fla.ops.gated_delta_rule import chunk_gated_delta_rule
from fla.ops.gla import chunk_gla

torch.manual_seed(0)
B, T, H, K = 1, 100, 2, 32
unit = lambda: torch.nn.functional.normalize(torch.randn(B, T, H, K), dim=-1)
gate = lambda *shape: torch.nn.functional.logsigmoid(torch.randn(*shape) + 2)
state = lambda: torch.randn(B, H, K, K)
delta = [unit(), unit(), torch.randn(B, T, H, K), gate(B, T, H), torch.rand(B, T, H), state()]
linear = [unit(), unit(), torch.randn(B, T, H, K), gate(B, T, H, K), state()]

def outcome(op, inputs, **how):
    *x, initial = (tensor.detach().clone().requires_grad_() for tensor in inputs)
    o, final = op(*x, initial_state=initial, output_final_state=True, **how)
    ((o * o).sum() + final.sin().sum()).backward()
    return [o.detach(), final.detach(), *(tensor.grad for tensor in (*x, initial))]

for theirs, ours, inputs in (
    (chunk_gated_delta_rule, gated_delta_rule, delta),
    (chunk_gla, gated_linear_attention, linear),
):
    found = outcome(theirs, inputs)
    for backend in ("reference", "triton"):
        errors = [float(relative_rms(a, b)) for a, b in zip(found, outcome(ours, inputs, backend=backend), strict=True)]
        print(ours.__name__, backend, max(errors))
        assert max(errors) < 2e-5, errors
"""


@pytest.mark.slow
def test_chunk_kernels_agree_with_ours():
    pytest.importorskip("fla")
    environment = os.environ | {"TRITON_INTERPRET": "1", "FLA_CACHE_RESULTS": "0"}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.splitlines()) == 4
