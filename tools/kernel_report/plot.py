"""Bytes and bounds against the head dim, ours beside the peers'."""

from pathlib import Path

from .result import CaseResult
from .subjects import OURS


def plot(sweep: dict[int, list[CaseResult]], path: Path) -> None:
    """`sweep`: results of one target and shape by head dim. A column of panels per case: bytes above, time below."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    from ...eval.figures import save_figure

    dims = sorted(sweep)
    names = list(dict.fromkeys(r.case for r in sweep[dims[0]]))
    figure, axes = plt.subplots(2, len(names), figsize=(3.6 * len(names), 6.4), sharex=True, squeeze=False)
    for column, case in enumerate(names):
        for subject in dict.fromkeys(r.subject for r in sweep[dims[0]] if r.case == case):
            results = [next(r for r in sweep[dim] if (r.case, r.subject) == (case, subject)) for dim in dims]
            line, width = ("o-", 2.2) if subject == OURS else ("s--", 1.5)
            axes[0, column].plot(dims, [sum(r.bytes) for r in results], line, label=subject, linewidth=width)
            axes[1, column].plot(dims, [1e3 * sum(r.bound_us) / r.tokens for r in results], line, linewidth=width)
        axes[0, column].set_title(case.replace(", ", ",\n"), fontsize=10)
        axes[0, column].legend(fontsize=8, frameon=False)
        axes[1, column].set_xlabel("head dim K = V")
        for axis in axes[:, column]:
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(
                FuncFormatter(lambda value, _: f"{value:,.3g}" if value < 1e3 else f"{value:,.0f}")
            )
            axis.yaxis.set_minor_formatter(NullFormatter())
            axis.set_xticks(dims, [str(dim) for dim in dims])
            axis.grid(True, which="both", alpha=0.25)
    at = sweep[dims[0]][0]
    axes[0, 0].set_ylabel("bytes per token and head,\nforward and backward")
    axes[1, 0].set_ylabel(f"ns per token and head,\n{at.device.name if at.device else ''} bound")
    shape = at.shape
    figure.suptitle(
        f"Counted, not timed: unique HBM bytes and the bound on time at B={shape.B}, T={shape.T}, H={shape.H}, bf16"
    )
    figure.tight_layout()
    save_figure(figure, path, dpi=130)
    plt.close(figure)
