"""The table of GPUs, by the names that drivers give."""

import pytest
import torch

from hybridlm.kernels.shared.devices import DEVICES, device_named
from hybridlm.lm.train.telemetry import device_peak


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA GB200", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_a_driver_s_name_finds_the_rates_of_that_card_alone(name, device, monkeypatch):
    found = device_named(name)
    assert found is (device and DEVICES[device])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert device_peak(torch.device("cuda")) == (found and found.bf16)


def test_a_cpu_has_no_known_peak():
    assert device_peak(torch.device("cpu")) is None
