"""The training benchmark compares models of one size."""

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_both_sides_have_the_same_size_and_the_ratio_is_printed():
    # a process of its own: the benchmark hides flash-linear-attention from transformers
    command = [sys.executable, "-m", "hybridlm", "bench", "train", "--steps", "2", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    sizes = [
        line.split("│")[2].strip() for line in done.stdout.splitlines() if "engine" in line or "plain loop" in line
    ]
    ours, theirs = (int(size.replace(",", "")) for size in sizes)
    assert abs(ours - theirs) / theirs < 0.001
    assert "speed ratio hybridlm / transformers:" in done.stdout
