"""What an attention layer learns whose addressing is random and fixed (Fu et al. 2023, arXiv 2307.11353).

    f(x_0; x_1 .. x_N) = sum_m <v_m, phi_m>,   phi_m = sum_i a_mi x~_i,   x~ = [x; 1]
    relu: a_mi = relu(x~_0^T W_m x~_i) / N;   softmax: a_m = softmax_i(x~_0^T W_m x~_i)

W_m are Gaussian and fixed; biased ones have the identity added on the x block. Only the v_m are fitted, by ridge
regression, so that no optimizer stands between the features and the result. Beside them as many features of a random
ReLU network on all inputs. x_0 and x_i are uniform on the unit sphere. `attention: {freeze_qk: true}` is the same idea
as a layer of a language model.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from rich.table import Table

from ...lm.parts.errors import ConfigError
from .drawing import generator
from .sweep import spread
from .task import Anchor

Features = Literal["relu", "biased relu", "softmax", "biased softmax", "mlp"]
Target = Literal["second moment", "selected sum"]
LAMBDAS = (1e-4, 1e-2, 1.0, 1e2)
INIT_STD = 0.5
"""Of the entries of W_m. The scale is that of the anchors; for relu it only shifts the ridge penalty."""

ANCHORS = {  # test error / variance of the target at 60 heads, d = 8, N = 16, 1500 examples, one seed
    "second moment": {"relu": 0.134, "biased relu": 0.163, "softmax": 0.140, "mlp": 1.21},
    "selected sum": {"relu": 0.239, "biased relu": 0.081, "softmax": 0.190, "biased softmax": 0.118, "mlp": 0.476},
}


class Sizes(NamedTuple):
    """Heads of random addressing, channels of an input, inputs beside the query, examples to fit and to test on."""

    heads: int = 60
    dim: int = 8
    n_keys: int = 16
    n_train: int = 1500
    n_test: int = 800


STANDARD = Sizes()
"""What the anchors were computed at."""


class SphereInputs(NamedTuple):
    """query: [n, d], keys: [n, N, d], all on the unit sphere."""

    query: np.ndarray
    keys: np.ndarray


class Fit(NamedTuple):
    """One row of the table: test error divided by the target's variance, so that 1 is as good as a constant."""

    target: Target
    features: Features
    error: float
    penalty: float


def draw(n: int, dim: int, n_keys: int, seed: int, stream: str) -> SphereInputs:
    """n examples, uniform on the sphere in R^dim."""
    x = generator("random_features", seed, stream).standard_normal((n, n_keys + 1, dim))
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    return SphereInputs(x[:, 0], x[:, 1:])


def target_values(target: Target, inputs: SphereInputs, direction: np.ndarray) -> np.ndarray:
    """second moment: mean_i <b, x_i>^2; selected sum: mean_i relu(<x_0, x_i>) <b, x_i>; b is a unit vector: [n]."""
    along = inputs.keys @ direction  # [n, N]
    if target == "second moment":
        return np.square(along).mean(1)
    return (np.maximum(np.einsum("nd,nkd->nk", inputs.query, inputs.keys), 0) * along).mean(1)


def random_matrices(heads: int, dim: int, seed: int, *, biased: bool) -> np.ndarray:
    """W [heads, dim + 1, dim + 1]."""
    matrices = INIT_STD * generator("random_features", seed, "heads").standard_normal((heads, dim + 1, dim + 1))
    if biased:
        matrices[:, :-1, :-1] += np.eye(dim)
    return matrices


def attention_features(inputs: SphereInputs, matrices: np.ndarray, kind: Literal["relu", "softmax"]) -> np.ndarray:
    """phi: [n, heads * (d + 1)]; see the module."""
    query, keys = (np.concatenate((x, np.ones_like(x[..., :1])), -1) for x in inputs)
    logits = np.einsum("np,mpq,nkq->nmk", query, matrices, keys, optimize=True)
    if kind == "relu":
        weights = np.maximum(logits, 0) / keys.shape[1]
    else:
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
    return (weights @ keys).reshape(len(query), -1)


def mlp_features(inputs: SphereInputs, count: int, seed: int) -> np.ndarray:
    """relu of `count` random linear functions of query, keys and a constant, over sqrt(count): [n, count]."""
    x = np.concatenate((inputs.query, inputs.keys.reshape(len(inputs.query), -1)), 1)
    x = np.concatenate((x, np.ones_like(x[:, :1])), 1)
    weights = generator("random_features", seed, "mlp").standard_normal((x.shape[1], count))
    return np.maximum(x @ weights, 0) / np.sqrt(count)


def features(kind: Features, inputs: SphereInputs, heads: int, seed: int) -> np.ndarray:
    """The features by name: [n, heads * (d + 1)]."""
    dim = inputs.query.shape[1]
    if kind == "mlp":
        return mlp_features(inputs, heads * (dim + 1), seed)
    matrices = random_matrices(heads, dim, seed, biased=kind.startswith("biased"))
    return attention_features(inputs, matrices, "softmax" if kind.endswith("softmax") else "relu")


def ridge(phi: np.ndarray, y: np.ndarray, penalty: float) -> np.ndarray:
    """argmin_v |phi v - y|^2 + penalty |v|^2, from the smaller of the two systems: [n, F], [n] -> [F]."""
    n, count = phi.shape
    if count > n:
        return phi.T @ np.linalg.solve(phi @ phi.T + penalty * np.eye(n), y)
    return np.linalg.solve(phi.T @ phi + penalty * np.eye(count), phi.T @ y)


def probe(seed: int = 0, sizes: Sizes = STANDARD) -> list[Fit]:
    """Every kind of features on every target. The penalty is chosen on a fifth of the training examples, then refitted.

    Raises ValueError for sizes that leave nothing to fit or to choose on.
    """
    heads, dim, n_keys, n_train, n_test = sizes
    if min(heads, dim, n_keys, n_test) < 1 or n_train < 10:
        raise ValueError(f"probe: {heads=}, {dim=}, {n_keys=}, {n_test=} must be positive and {n_train=} at least 10")
    train, test = (draw(n, dim, n_keys, seed, name) for n, name in ((n_train, "train"), (n_test, "test")))
    direction = generator("random_features", seed, "direction").standard_normal(dim)
    direction /= np.linalg.norm(direction)
    fits = []
    for kind in get_args(Features):
        phi, phi_test = (features(kind, inputs, heads, seed) for inputs in (train, test))
        for target in get_args(Target):
            y, y_test = (target_values(target, inputs, direction) for inputs in (train, test))
            penalty = _choose(phi, y)
            weights = ridge(phi, y - y.mean(), penalty)
            error = np.square(phi_test @ weights + y.mean() - y_test).mean() / y_test.var()
            fits.append(Fit(target, kind, float(error), penalty))
    return fits


def _choose(phi: np.ndarray, y: np.ndarray) -> float:
    """The penalty of LAMBDAS that predicts the last fifth of the examples best from the others."""
    fitted = len(y) - len(y) // 5
    mean = y[:fitted].mean()

    def error(penalty: float) -> float:
        weights = ridge(phi[:fitted], y[:fitted] - mean, penalty)
        return float(np.square(phi[fitted:] @ weights + mean - y[fitted:]).mean())

    return min(LAMBDAS, key=error)


@dataclass(frozen=True)
class Measured:
    """Fits of several seeds."""

    fits: list[list[Fit]]
    sizes: Sizes

    def table(self) -> Table:
        """A row per kind of features: its error on each target, mean ± deviation over the seeds, and the anchor's."""
        seeds = f"{len(self.fits)} seed{'s' if len(self.fits) > 1 else ''}"
        given = zip(Sizes._fields, self.sizes, STANDARD, strict=True)
        sizes = "".join(f", {name}={size}" for name, size, standard in given if size != standard)
        table = Table(title=f"test error / variance of the target, {seeds}{sizes}", title_justify="left")
        table.add_column("features")
        published = ANCHORS if self.sizes == STANDARD else {}
        for target in get_args(Target):
            table.add_column(target, justify="right")
            if published:
                table.add_column("anchor", justify="right")
        for kind in get_args(Features):
            cells = []
            for target in get_args(Target):
                mine = [fit for fits in self.fits for fit in fits if (fit.target, fit.features) == (target, kind)]
                cells.append(spread([fit.error for fit in mine]))
                if published:
                    cells.append(f"{published[target][kind]:g}" if kind in published[target] else "")
            table.add_row(kind, *cells)
        return table


def measure(seed: int = 0, seeds: int = 3, sizes: Sizes = STANDARD) -> Measured:
    """`probe` of `seeds` seeds from `seed` on. Raises ConfigError for bad sizes."""
    try:
        return Measured([probe(one, sizes) for one in range(seed, seed + seeds)], sizes)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def anchors(target: Target) -> list[Anchor]:
    """Figures of an independent computation at the default sizes, penalties chosen on its test examples."""
    return [Anchor(kind, "error / variance", value, "60 heads, one seed") for kind, value in ANCHORS[target].items()]
