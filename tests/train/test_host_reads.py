"""How often a training step makes the host wait for the device: never within a micro-batch."""

from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from hybridlm.kernels import head_routed_attention
from hybridlm.kernels.shared import checks
from hybridlm.kernels.shared.sequences import Sequences
from hybridlm.lm.mixers import MIXERS
from hybridlm.lm.train.loop import Totals
from hybridlm.tests.contracts.harness import matmul_backends
from hybridlm.tests.model.helpers import build, tokens

READS = ("_local_scalar_dense", "nonzero", "masked_select", "repeat_interleave", "_unique2")


class HostReads(TorchDispatchMode):
    """Counts what would wait for a device if the tensors given to `on_device`, and all that follow from them, were on
    one: on a CPU this machine cannot tell them from the tables that the host makes for itself."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.found: Counter[str] = Counter()
        self._device: WeakIdKeyDictionary = WeakIdKeyDictionary()
        original = torch.Tensor.tolist

        def tolist(x: Tensor):
            if x in self._device:
                self.found["tolist"] += 1
            return original(x)

        monkeypatch.setattr(torch.Tensor, "tolist", tolist)

    def on_device(self, *tensors: Tensor) -> None:
        for x in tensors:
            self._device[x] = True

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        tainted = any(x in self._device for x in given)
        by_mask = "aten.index" in str(op) and any(x.dtype == torch.bool for x in given[1:])
        if tainted and (by_mask or any(read in str(op) for read in READS)):
            self.found[str(op)] += 1
        out = op(*args, **(kwargs or {}))
        if tainted:
            self.on_device(*(x for x in tree_leaves(out) if isinstance(x, Tensor)))
        return out


@pytest.fixture
def reads(monkeypatch) -> HostReads:
    monkeypatch.setattr(checks, "on_host", lambda x: False)  # values are looked at where that is free, on a CPU
    # PyTorch's blocks of routed queries are as wide as the busiest head, which the host asks for; Triton's do not
    monkeypatch.delitem(head_routed_attention.backends, "chunked")
    return HostReads(monkeypatch)


def hybrid():
    layers = [*MIXERS, {"attention": {"window": 16}}, {"moh": {"n_heads": 4}}]
    return build(pattern=layers, n_layers=len(layers), z_loss=1e-4).train()


def test_a_micro_batch_of_packed_documents_reads_nothing_back(reads):
    model, ids = hybrid(), tokens(1, 192) % 61
    reads.on_device(*model.parameters(), *model.buffers(), ids)
    with reads, matmul_backends():
        output = model(ids, labels=ids, logits=False, sequences=Sequences(1, 192, (0, 10, 64, 70, 128, 192)))
        output.loss.backward()
        totals = Totals()
        totals.add(output.loss, output.aux_losses, output.stats, 187)
    assert reads.found == {}


def test_bounds_that_lie_on_the_device_are_read_once(reads):
    model, ids, bounds = hybrid(), tokens(1, 192) % 61, torch.tensor([0, 10, 64, 70, 128, 192])
    reads.on_device(*model.parameters(), ids, bounds)
    with reads, matmul_backends():
        model(ids, labels=ids, logits=False, cu_seqlens=bounds).loss.backward()
    assert reads.found == {"tolist": 1}


def test_greedy_decoding_reads_once_for_a_token(reads):
    model, ids = hybrid().eval(), tokens(2, 20) % 61
    reads.on_device(*model.parameters(), *model.buffers(), ids)
    with reads, matmul_backends():
        model.generate(ids, 5, temperature=0)
    assert reads.found == {"tolist": 5}
