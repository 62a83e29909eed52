"""What a synthetic task is: a generator of labelled sequences, its scores, and the figures to print beside them."""

import hashlib
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from ...lm.model.loss import IGNORE
from ...lm.parts.ranges import LONGEST
from ...lm.parts.strict import Strict

HALF = 1 << 31  # seeds of training segments lie below, those of test segments from here to 2 * HALF


class Examples(NamedTuple):
    """n sequences of length L.

    inputs: [n, L] int64 token ids, or [n, L, input_dim] float32 where the task reads vectors. labels: the answer due at
    that very position (nothing is shifted), [n, L] int64 with IGNORE elsewhere, or float32 targets with NaN elsewhere.
    Every example has at least one label.
    """

    inputs: Tensor
    labels: Tensor

    @property
    def labelled(self) -> Tensor:
        """[n, L], True where an answer is due."""
        return ~self.labels.isnan() if self.labels.is_floating_point() else self.labels != IGNORE


class Anchor(NamedTuple):
    """A published or closed-form figure: whose it is, of which metric, and where it stands."""

    who: str
    metric: str
    value: float
    source: str


class Task(Strict):
    """One slice: a task with its options fixed, such as MQAR at one length and number of pairs."""

    model_config = ConfigDict(frozen=True)

    kind: ClassVar[str]
    """Name in TASKS, and of the `task:` key of a recipe."""
    edition: ClassVar[int] = 1
    """Raised when the same options and seed give other examples than before."""
    input_dim: ClassVar[int | None] = None
    """Size of the vectors the task reads; None: it reads tokens."""
    vocab_size: int = Field(ge=0, le=LONGEST)
    """Ids lie in [0, vocab_size), in labels too; 0 where vectors are read."""
    length: int = Field(gt=0, le=LONGEST)

    @property
    def label(self) -> str:
        """Short name of the slice, e.g. `mqar L64 K8`."""
        return f"{self.kind} L{self.length}"

    def identity(self) -> tuple[str, dict[str, Any]]:
        """What the examples of a seed depend on: the generator and its options."""
        return self.kind if self.edition == 1 else f"{self.kind}/{self.edition}", self.model_dump()

    def sample(self, n: int, seed: int) -> Examples:
        """n examples: the same bytes for the same options, n and seed, on every machine, whatever was drawn before."""
        raise NotImplementedError

    def readout(self, d_model: int) -> nn.Module | None:
        """What makes outputs [n, L, ...] of hidden vectors [n, L, d_model]; None: the model's own head."""
        return None

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """In float32: mean cross entropy of logits [N, vocab_size] and ids [N], or mean squared error of values [N]."""
        if targets.is_floating_point():
            return F.mse_loss(outputs.float(), targets)
        return F.cross_entropy(outputs.float(), targets)

    def scores(self, outputs: Tensor, examples: Examples) -> dict[str, Tensor]:
        """Metrics per example, [n] each: accuracy (share of answers that are right) and exact (all are), or mse.

        outputs: logits [N, vocab_size] or values [N] at the N labelled positions, in row-major order.
        """
        targets = examples.labels[examples.labelled]
        if targets.is_floating_point():
            return {"mse": _mean_per_example((outputs.float() - targets) ** 2, examples.labelled)}
        accuracy = _mean_per_example((outputs.argmax(-1) == targets).float(), examples.labelled)
        return {"accuracy": accuracy, "exact": (accuracy == 1).float()}

    def anchors(self) -> list[Anchor]:
        """Figures to print beside ours."""
        return []


def segment_seeds(seed: int, n_train: int, n_test: int) -> tuple[list[int], list[int]]:
    """A seed for each training and each test slice, all different: training in [0, 2^31), test in [2^31, 2^32).

    A slice added at the end leaves the seeds of those before it as they were.
    """
    digest = hashlib.sha256(f"segments/{seed}".encode()).digest()
    first_train, first_test = (int.from_bytes(digest[i : i + 4], "little") for i in (0, 4))
    train = [(first_train + i) % HALF for i in range(n_train)]
    test = [HALF + (first_test + i) % HALF for i in range(n_test)]
    return train, test


def _mean_per_example(values: Tensor, labelled: Tensor) -> Tensor:
    """Means over the labelled positions of each row: values [N] in row-major order -> [n]."""
    counts = labelled.sum(1)
    rows = torch.arange(len(counts), device=values.device).repeat_interleave(counts)
    return values.new_zeros(len(counts)).index_add(0, rows, values) / counts
