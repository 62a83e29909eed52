"""In-context linear regression, beside the risks of what a trained softmax layer is said to compute.

    w ~ N(0, I_d / d),   x_l ~ N(0, I_d),   y_l = x_l w + N(0, s^2);   after l pairs and a query x: estimate x w

He et al. 2025 (arXiv 2503.12734): heads of scales omega_h, whose weights mu_h on the labels sum to zero, come to
debiased gradient descent: softmax(omega X x)_l = (1 + omega (x_l - mean x) x) / L + O(omega^2). With k = d + d s^2:

    gradient descent  eta/L sum_l y_l x_l x,              eta = L / (L + k + 1),  risk 1 - L / (L + k + 1)
    debiased          eta/L sum_l y_l (x_l - mean x) x,   eta = L / (L + k),      risk 1 - (L - 1) / (L + k)
    ridge (Bayes)     x (X^T X + d s^2 I)^-1 X^T y,       risk by Monte Carlo
"""

from functools import cache
from typing import ClassVar, NamedTuple, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from ...lm.parts.ranges import LONGEST, WIDEST
from .drawing import derive, generator
from .task import Anchor, Examples, Task


class Problem(NamedTuple):
    """n regressions in float64: x [n, L, d], y [n, L], query [n, d], answer [n] without noise."""

    x: np.ndarray
    y: np.ndarray
    query: np.ndarray
    answer: np.ndarray

    def risk(self, estimate: np.ndarray) -> float:
        """Mean squared error; 1 for estimating 0."""
        return float(np.square(estimate - self.answer).mean())


class Regression(Task):
    """The sequence x_1 y_1 ... x_L y_L x_{L+1} of vectors (x, 0) and (0, y); every x asks for x w, without noise.

    `pairs` is L. Metrics: mse, the mean over all answers; mse_2d, of the one after 2 d pairs, or after all if there are
    fewer; mse_last, of the one after all L.
    """

    kind: ClassVar[str] = "regression"
    vocab_size: int = Field(default=0, ge=0, le=0)
    length: int = Field(default=0, ge=0, le=LONGEST, description="2 pairs + 1; leave it out")
    dim: int = Field(default=5, gt=0, le=WIDEST, description="d")
    pairs: int = Field(default=40, gt=0, le=WIDEST, description="L")
    noise: float = Field(default=0.1, ge=0, le=1e6, description="s^2, the variance of the labels' noise")

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        return derive(self, length=2 * self.pairs + 1)

    @property
    def input_dim(self) -> int:  # type: ignore[override]
        """An x and a y side by side."""
        return self.dim + 1

    @property
    def label(self) -> str:
        return f"regression d{self.dim} L{self.pairs}"

    def sample(self, n: int, seed: int) -> Examples:
        x, y, answers = _draw(generator(self.kind, seed), n, self.dim, self.pairs + 1, self.noise)
        inputs = np.zeros((n, self.length, self.dim + 1), np.float32)
        inputs[:, ::2, :-1] = x
        inputs[:, 1::2, -1] = y[:, :-1]
        labels = np.full((n, self.length), np.nan, np.float32)
        labels[:, ::2] = answers
        return Examples(torch.from_numpy(inputs), torch.from_numpy(labels))

    def problem(self, examples: Examples, pairs: int) -> Problem:
        """The first `pairs` pairs of each example and the query after them, as numbers for the estimators below."""
        inputs, end = examples.inputs.double().numpy(), 2 * pairs
        return Problem(
            inputs[:, :end:2, :-1], inputs[:, 1 : end + 1 : 2, -1], inputs[:, end, :-1], examples.labels[:, end].numpy()
        )

    def scores(self, outputs: Tensor, examples: Examples) -> dict[str, Tensor]:
        """Squared errors by example [n] from the answers, row by row: [n (L + 1)]. See the class."""
        errors = (outputs.float() - examples.labels[examples.labelled]).square().reshape(-1, self.pairs + 1)
        early = min(2 * self.dim, self.pairs)
        return {"mse": errors.mean(1), "mse_2d": errors[:, early], "mse_last": errors[:, -1]}

    def anchors(self) -> list[Anchor]:
        """The closed-form risks, and the ridge's from 4,000 drawn problems, after 2 d and after L pairs."""
        anchors = []
        for metric, pairs in (("mse_2d", min(2 * self.dim, self.pairs)), ("mse_last", self.pairs)):
            risks = {
                "zero": 1.0,
                "gradient descent": descent_risk(self.dim, pairs, self.noise),
                "debiased gradient descent": debiased_risk(self.dim, pairs, self.noise),
            }
            anchors += [Anchor(who, metric, risk, "closed form, arXiv 2503.12734") for who, risk in risks.items()]
            anchors.append(Anchor("ridge", metric, ridge_risk(self.dim, pairs, self.noise), "Monte Carlo, n = 4000"))
        return anchors


def draw(n: int, dim: int, pairs: int, noise: float, seed: int) -> Problem:
    """n problems of `pairs` pairs each."""
    x, y, answers = _draw(generator("regression", seed, "problems"), n, dim, pairs + 1, noise)
    return Problem(x[:, :-1], y[:, :-1], x[:, -1], answers[:, -1])


def _draw(
    rng: np.random.Generator, n: int, dim: int, count: int, noise: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x [n, count, dim], noisy labels and answers [n, count]."""
    w = rng.standard_normal((n, dim)) / np.sqrt(dim)
    x = rng.standard_normal((n, count, dim))
    answers = np.zeros((n, count))
    for i in range(dim):  # in this order everywhere; a matrix product's order is the machine's
        answers += x[..., i] * w[:, None, i]
    return x, answers + np.sqrt(noise) * rng.standard_normal((n, count)), answers


def descent_step(dim: int, pairs: int, noise: float) -> float:
    """The best step size of one step of gradient descent from 0."""
    return pairs / (pairs + dim * (1 + noise) + 1)


def debiased_step(dim: int, pairs: int, noise: float) -> float:
    """The best step size of debiased gradient descent."""
    return pairs / (pairs + dim * (1 + noise))


def descent_risk(dim: int, pairs: int, noise: float) -> float:
    """Risk of one step of gradient descent at its best step size."""
    return 1 - descent_step(dim, pairs, noise)


def debiased_risk(dim: int, pairs: int, noise: float) -> float:
    """Risk of debiased gradient descent at its best step size."""
    return 1 - (pairs - 1) / (pairs + dim * (1 + noise))


@cache
def ridge_risk(dim: int, pairs: int, noise: float, n: int = 4000) -> float:
    """The Bayes risk, estimated from n problems."""
    problem = draw(n, dim, pairs, noise, seed=0)
    return problem.risk(ridge(problem, noise))


def descent(problem: Problem, step: float) -> np.ndarray:
    """One step of gradient descent on the squared error from 0: [n]."""
    return step * (problem.y * _products(problem.x, problem.query)).mean(1)


def debiased(problem: Problem, step: float) -> np.ndarray:
    """The same with each x_l taken relative to their mean, so that a constant added to y changes nothing: [n]."""
    return step * (problem.y * _products(problem.x - problem.x.mean(1, keepdims=True), problem.query)).mean(1)


def ridge(problem: Problem, noise: float) -> np.ndarray:
    """The posterior mean: [n]. Without noise and with fewer pairs than d, its limit, the shortest solution."""
    x, y = problem.x, problem.y
    dim = x.shape[2]
    moments = (x * y[..., None]).sum(1)
    if noise == 0:
        return np.einsum("nd,nde,ne->n", problem.query, np.linalg.pinv(x.transpose(0, 2, 1) @ x), moments)
    weights = np.linalg.solve(x.transpose(0, 2, 1) @ x + dim * noise * np.eye(dim), moments[..., None])[..., 0]
    return (weights * problem.query).sum(1)


def softmax_heads(problem: Problem, scales: list[float], weights: list[float]) -> np.ndarray:
    """sum_h mu_h sum_l softmax_l(omega_h x_l x) y_l: one layer of attention that reads only the labels: [n]."""
    total = np.zeros(len(problem.y))
    for scale, weight in zip(scales, weights, strict=True):
        logits = scale * _products(problem.x, problem.query)
        p = np.exp(logits - logits.max(1, keepdims=True))
        total += weight * (p * problem.y).sum(1) / p.sum(1)
    return total


def two_heads(problem: Problem, noise: float, scale: float = 0.02) -> np.ndarray:
    """Heads of scales omega and -omega and weights of opposite sign, which come to debiased gradient descent: [n]."""
    _n, pairs, dim = problem.x.shape
    weight = debiased_step(dim, pairs, noise) / (2 * scale)
    return softmax_heads(problem, [scale, -scale], [weight, -weight])


def _products(x: np.ndarray, query: np.ndarray) -> np.ndarray:
    return np.einsum("nld,nd->nl", x, query)
