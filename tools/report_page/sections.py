"""The sections of the page: each takes the runs, or the sweeps, and returns its tables and charts."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from ...eval.benchmarks.conditions import Conditions
from ...eval.console import binary
from ...eval.synthetic.sweep import best
from ..records import tokens_at, valid_scores
from . import charts
from .collect import RunView, SweepView
from .panels import Panel, Section, TableCell

LOWER_IS_BETTER = ("perplexity", "bpb", "bits_per_byte", "nats", "loss", "mse")


def overview(runs: list[RunView]) -> Section:
    """What each run is and how far it got."""
    facts = [run.facts() for run in runs]
    rows = [[TableCell(name, style="text"), *(TableCell(f[name], style="text") for f in facts)] for name in facts[0]]
    return Section("Runs", [_by_run(runs, ["run"], rows)])


def losses(runs: list[RunView]) -> Section:
    """Training and validation loss, learning rate."""
    curves: dict[str, dict[str, charts.Points]] = {}
    rates: dict[str, charts.Points] = {}
    for run in runs:
        steps = run.of_kind("train")  # a run without any keeps its place, and so the others their colours
        curves[run.name] = {"train": [(r["tokens"] / 1e6, r["loss"]) for r in steps]}
        rates[run.name] = [(r["tokens"] / 1e6, r["lr"]) for r in steps]
        for name, points in run.series("valid").items():
            if name.endswith("/loss"):
                at = [(tokens_at(steps, step) / 1e6, value) for step, value in points]
                curves[run.name][name.removesuffix("/loss")] = at
    panels = [Panel(charts=[charts.loss_chart(curves, rates)])] if any(rates.values()) else []
    return Section("Loss", panels, "Thin: each step. Thick: its moving average. Markers: validation sets.")


def validation(runs: list[RunView]) -> Section:
    """The last score of every validation set."""
    scores = [valid_scores(run.run) for run in runs]
    names = list(dict.fromkeys(name for score in scores for name in score))
    rows = []
    for name in names:
        for key, unit in (("bits_per_byte", "bits per byte"), ("loss", "nats per token")):
            values = [score.get(name, {}).get(key) for score in scores]
            # nats per token compare only where the tokenizer is the same; bits per byte always do
            best = _best(values, higher=False) if key == "bits_per_byte" else None
            cells = [_figure(value, None, i == best) for i, value in enumerate(values)]
            rows.append([TableCell(name, style="text"), TableCell(unit, style="text"), *cells])
    return Section("Validation", [_by_run(runs, ["set", "unit"], rows)] if rows else [])


def during_training(runs: list[RunView]) -> Section:
    """What was measured in the loop, against the step."""
    curves: dict[str, dict[str, charts.Points]] = defaultdict(dict)
    for run in runs:
        for name, points in run.series("eval").items():
            curves[name][run.name] = points
    several = {name: lines for name, lines in curves.items() if any(len(points) > 1 for points in lines.values())}
    placed = {name: {run.name: lines.get(run.name, []) for run in runs} for name, lines in sorted(several.items())}
    images = [charts.line_chart(name, lines, "step", name, width=5) for name, lines in placed.items()]
    return Section("During training", [Panel(charts=images)] if images else [])


def benchmarks(runs: list[RunView]) -> Section:
    """lm-eval scores with standard errors; a task that differs between runs, or its conditions, has rows of its own."""
    found: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = defaultdict(dict)
    for i, run in enumerate(runs):
        for score in _longest_first(run.evaluations.get("tasks", {}).get("scores", ())):
            how = _conditions(score)
            key = (score["task"], score["metric"], score["task_hash"], score["n"], how and how.asked)
            found[(*key, how and how.max_length) if i in found[key] else key][i] = score
    versions: dict[str, set[str]] = defaultdict(set)
    for task, _metric, task_hash, *_ in found:
        versions[task].add(task_hash)
    rows = []
    for (task, metric, task_hash, n, *_), by_run in found.items():
        values = [by_run[i]["value"] if i in by_run else None for i in range(len(runs))]
        errors = [by_run[i]["stderr"] if i in by_run else None for i in range(len(runs))]
        best = _best(values, higher=not any(word in metric for word in LOWER_IS_BETTER), errors=errors)
        cells = [_figure(v, e, i == best) for i, (v, e) in enumerate(zip(values, errors, strict=True))]
        any_score = next(iter(by_run.values()))
        chance = "-" if any_score["chance"] is None else f"{any_score['chance']:.3f}"
        name = task if len(versions[task]) == 1 else f"{task} ({task_hash})"
        head = [TableCell(name, style="text"), TableCell(metric, style="text"), TableCell(f"{n:,}"), TableCell(chance)]
        rows.append([*head, *cells, TableCell(", ".join(filter(None, (_how(by_run), _remarks(by_run)))), style="text")])
    header = ["task", "metric", "n", "chance"]
    panels = [_by_run(runs, header, rows, after=["remarks"])] if rows else []
    note = (
        "± one standard error over the documents. Marked: ahead of every other run by more than two standard errors of "
        "the difference. A task that was not the same in all runs, in prompts or data, carries its hash."
    )
    return Section("Benchmarks", panels, note)


def _conditions(score: dict[str, Any]) -> Conditions | None:
    """None of a score that was kept without."""
    return Conditions(**score["conditions"]) if score.get("conditions") else None


def _longest_first(scores: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs are compared by the scores of their longest inputs, which differ with their contexts."""
    return sorted(scores, key=lambda score: -(how.max_length if (how := _conditions(score)) else 0))


def _how(by_run: dict[int, dict[str, Any]]) -> str:
    """The conditions in words, with every length."""
    found = [how for score in by_run.values() if (how := _conditions(score))]
    if not found:
        return ""  # of older versions
    lengths = dict.fromkeys(str(how.max_length) for how in found)
    return f"{found[0].asked}, {' or '.join(lengths)} tokens"


def _remarks(by_run: dict[int, dict[str, Any]]) -> str:
    """What to know before believing the figures: the most of any run."""
    words = {"truncated": "contexts cut", "apart": "answers tokenised apart", "ties": "ties"}
    counts = {word: max(score[key] for score in by_run.values()) for key, word in words.items()}
    return ", ".join(f"{count} {word}" for word, count in counts.items() if count)


def needles(runs: list[RunView]) -> Section:
    """Heat maps of depth against length, and every task's score by length."""
    panels, summary = [], []
    for run in runs:
        content = run.evaluations.get("needles")
        if content is None:
            continue
        written = all(cell["score"] is not None for cell in content["cells"])
        key = "score" if written else "answer_accuracy"
        by_task: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for cell in content["cells"]:
            if cell["depth"] is not None:
                by_task[cell["task"]].append({**cell, "score": cell[key]})
        maps = [charts.heat_map(task, cells) for task, cells in by_task.items()]
        if maps:
            measured = "" if written else ", tokens of the answer foretold"
            title = f"{run.name}, {content['checkpoint']}, in {content['haystack']}{measured}"
            panels.append(Panel(title=title, charts=maps))
        for line in content["summary"]:
            head = [
                TableCell(run.name, style="text"),
                TableCell(line["task"], style="text"),
                TableCell(f"{line['length']:,}"),
            ]
            summary.append(
                [
                    *head,
                    _figure(line["score"], line["stderr"]),
                    _figure(line["answer_accuracy"]),
                    TableCell(str(line["n"])),
                ]
            )
    if summary:
        header = ["run", "task", "tokens", "written", "foretold", "n"]
        panels.append(Panel(title="all tasks", header=header, rows=summary))
    return Section(
        "Needles",
        panels,
        "written: share of the hidden answers in what the model writes. foretold: share of their tokens ranked first.",
    )


def token_probes(runs: list[RunView]) -> Section:
    """Synthetic tasks put to a language model as they are, in tokens."""
    rows = []
    for run in runs:
        for line in run.evaluations.get("token_probes", {}).get("slices", ()):
            head = [TableCell(run.name, style="text"), TableCell(line["label"], style="text")]
            rows.append(
                [*head, _figure(line["accuracy"], line["stderr"]), _figure(line["exact"]), TableCell(str(line["n"]))]
            )
    header = ["run", "task", "accuracy", "exact", "n"]
    return Section("Token probes", [Panel(header=header, rows=rows)] if rows else [])


def positions(runs: list[RunView]) -> Section:
    """Loss by position, and the text's bits per byte."""
    curves: dict[str, dict[str, charts.Points]] = defaultdict(dict)
    rows = []
    for run in runs:
        for curve in run.evaluations.get("positions", {}).get("curves", ()):
            middles = [((b["start"] + b["end"]) / 2, b["nats"]) for b in curve["buckets"]]
            curves[curve["text"]][f"{run.name}, {curve['mode']}"] = middles
            head = [
                TableCell(run.name, style="text"),
                TableCell(curve["text"], style="text"),
                TableCell(curve["mode"], style="text"),
            ]
            rows.append([*head, TableCell(f"{curve['tokens']:,}"), _figure(curve["bits_per_byte"])])
    images = [
        charts.line_chart(f"loss by position in {text}", lines, f"position in {text}", "nats per token", log_x=True)
        for text, lines in curves.items()
    ]
    header = ["run", "text", "mode", "tokens", "bits per byte"]
    panels = [Panel(charts=images, header=header, rows=rows)] if rows else []
    note = (
        "whole: one pass over the text. carry: windows that hand their state on. reset: windows that start anew. "
        "Flat or falling beyond the training context: the model extrapolates."
    )
    return Section("Loss by position", panels, note)


def recall(sweeps: list[SweepView]) -> Section:
    """Each sweep's trade-off of accuracy against state, at each variant's best learning rate, over seeds."""
    panels = [_sweep(sweep) for sweep in sweeps if sweep.results]
    note = "At each variant's best learning rate: mean over the slices, ± standard deviation over seeds."
    return Section("Recall", panels, note)


def _sweep(sweep: SweepView) -> Panel:
    """The table of a sweep and, where tasks are scored by accuracy, its plot."""
    curves: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    rows = []
    for variant, chosen in best(sweep.results).items():
        first, accuracies = chosen.lines[0], chosen.values("accuracy")
        if accuracies:
            spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
            curves[first["mixer"]].append((first["state_bytes"], statistics.fmean(accuracies), spread))
        solved = [line["steps_to_99"] for line in chosen.lines if line["steps_to_99"] is not None]
        steps = f"{statistics.median(solved):,.0f} ({len(solved)} of {len(chosen.lines)})" if solved else "never"
        rows.append(
            [
                TableCell(variant, style="text"),
                TableCell(f"{first['lr']:g}"),
                TableCell(binary(first["state_bytes"])),
                TableCell(f"{first['parameters']:,}"),
                _spread(accuracies or chosen.values("mse")),
                _spread(chosen.values("exact")),
                TableCell(steps),
                *(_spread([_score(line["slices"][i]) for line in chosen.lines]) for i in range(len(first["slices"]))),
            ]
        )
    metric = "accuracy" if curves else "mean squared error"
    labels = [line["label"] for line in sweep.results[0]["slices"]]
    header = ["variant", "lr", "state", "parameters", metric, "exact", "steps to 99 %", *labels]
    images = [charts.trade_off(curves)] if curves else []
    return Panel(title=sweep.name, charts=images, header=header, rows=rows)


def _score(measured: dict[str, Any]) -> float:
    return measured["accuracy"] if "accuracy" in measured else measured["mse"]


def _spread(values: list[float]) -> TableCell:
    """Mean and standard deviation over seeds."""
    if not values:
        return TableCell("-")
    return TableCell(f"{statistics.fmean(values):.3f}", f"{statistics.stdev(values):.3f}" if len(values) > 1 else "")


def _by_run(
    runs: list[RunView], header: list[str], rows: list[list[TableCell]], after: list[str] | None = None
) -> Panel:
    """A table with one column per run behind those of `header`, in the runs' colours."""
    columns = {len(header) + i: i for i in range(len(runs))}
    return Panel(header=[*header, *(run.name for run in runs), *(after or ())], rows=rows, run_columns=columns)


def _figure(value: float | None, error: float | None = None, best: bool = False) -> TableCell:
    if value is None:
        return TableCell("-")
    return TableCell(f"{value:.4f}", "" if error is None else f"{error:.4f}", "best" if best else "")


def _best(values: list[float | None], *, higher: bool, errors: list[float | None] | None = None) -> int | None:
    """The run that is ahead of all others, with errors by more than two of the difference; None if none is."""
    known = [i for i, value in enumerate(values) if value is not None]
    if len(known) < 2:
        return None
    sign = 1 if higher else -1
    ranked = sorted(known, key=lambda i: -sign * (values[i] or 0.0))
    first, second = ranked[:2]
    lead = sign * ((values[first] or 0.0) - (values[second] or 0.0))
    noise = 2 * math.hypot(*(errors[i] or 0.0 for i in (first, second))) if errors else 0.0
    return first if lead > noise else None
