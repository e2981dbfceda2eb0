"""Draws the plots of a report, as SVG that takes colours and font from the page around it."""

from __future__ import annotations

import io
import re
import warnings
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from runtime.compare.statistics import mean_by_position
from runtime.evaluate import SCORES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from runtime.compare.result import Candidate, DocumentResult, Layer, ModelSummary
    from runtime.compare.statistics import Interval

# Placeholder colours. `_svg` replaces them by variables of the page, which has a light and a dark scheme.
INK, MUTED, LINE, FAIL = "#010203", "#010204", "#010205", "#010206"
COLORS = ("#010210", "#010211", "#010212", "#010213", "#010214", "#010215")
_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", FAIL: "fail"} | {
    color: f"model-{number}" for number, color in enumerate(COLORS)
}
MARKERS = ("o", "s", "^", "D", "v", "P")
SIGNS = ("●", "■", "▲", "◆", "▼", "✚")  # the same in text
WIDTH = 400  # user units, about the pixels of a phone, so that text of size 10 is readable there
_MAX_BINS, _MAX_NAME, _MANY_LAYERS = 32, 26, 150
_LINEAR_KL, _LINEAR_ERROR = 1e-6, 1e-3  # axes are linear below
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_TOWERS = (("visual", "vision"), ("mtp", "MTP"), ("lm_head", "head"))  # all other layers are the decoder's
_LABELS = {"exact_match": "exact match", "cer": "CER", "anls": "ANLS"}
_RC: dict[Any, Any] = {
    "svg.hashsalt": "compare",  # the same element ids in every run
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "text.parse_math": False,  # a dollar in a folder's name is a dollar
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
}


@mpl.rc_context(_RC)
def kl_by_position(names: Sequence[str], results: Sequence[DocumentResult]) -> str:
    """Plot mean KL by token position, a line per candidate; below it, the number of answers of that length."""
    figure = Figure(figsize=(WIDTH / 72, 290 / 72), layout="constrained")
    top, bottom = figure.subplots(2, sharex=True, height_ratios=(7, 2))
    for number, name in enumerate(names):
        top.plot(*mean_kl(results, number), label=_short(name), **_style(number))
    _log_to_zero(top, _LINEAR_KL)
    top.set_ylabel("KL, nats per token")
    lengths = np.array([len(result.baseline.log_likelihood) for result in results])
    positions = np.arange(1, lengths.max() + 1)
    bottom.fill_between(positions, [(lengths >= n).sum() for n in positions], step="mid", color=MUTED)
    bottom.set(xlabel="token of the true answer", ylabel="documents", ylim=(0, None), yticks=(0, len(lengths)))
    _legend(figure, len(names))
    return _svg(figure, "kl")


def mean_kl(results: Sequence[DocumentResult], number: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Token positions, from 1, and a candidate's mean KL at each over all documents.

    Answers longer than 32 tokens are cut into at most 32 bins of equal width; a bin's position is its middle.
    """
    kl = [result.differences[number].kl for result in results]
    longest = max(map(len, kl))
    width = -(-longest // _MAX_BINS)
    means = mean_by_position(kl, width)
    positions: NDArray[np.float64] = np.arange(len(means), dtype=np.float64) * width + (width + 1) / 2
    return positions, means


@mpl.rc_context(_RC)
def score_differences(names: Sequence[str], candidates: Sequence[Candidate]) -> str:
    """Plot candidate minus baseline with its interval, a panel per score; the gate is a dashed line."""
    figure = Figure(figsize=(WIDTH / 72, (20 + 3 * (52 + 15 * len(names))) / 72), layout="constrained")
    panels = figure.subplots(len(SCORES))
    for score, panel in zip(SCORES, panels, strict=True):
        for number, candidate in enumerate(candidates):
            assert candidate.differences is not None
            _interval(panel, candidate.differences[score], number)
        panel.axvline(0, color=INK, linewidth=1)
        better = "less is better" if score == "cer" else "more is better"
        panel.set_title(f"{_LABELS[score]} ({better})")
        panel.set(yticks=range(len(names)), yticklabels=[_short(name) for name in names])
        panel.set_ylim(len(names) - 0.4, -0.6)
        panel.grid(visible=False, axis="y")
        panel.locator_params(axis="x", nbins=6)
    limit = next((c.limit for c in candidates[0].verdict.checks if c.option == "--max-drop-anls"), None)
    if limit is not None:
        panels[SCORES.index("anls")].axvline(-limit, color=FAIL, linestyle=(0, (4, 3)), linewidth=1.2)
    panels[-1].set_xlabel("candidate minus baseline, 95 % interval")
    return _svg(figure, "scores")


@mpl.rc_context(_RC)
def layer_errors(names: Sequence[str], candidates: Sequence[Candidate]) -> str:
    """Plot the error of every layer in order, a panel per candidate; suspects are ringed, the worst is named."""
    shown = [number for number, candidate in enumerate(candidates) if has_errors(candidate)]
    figure = Figure(figsize=(WIDTH / 72, (60 + 130 * len(shown)) / 72), layout="constrained")
    panels = figure.subplots(len(shown), sharex=True, sharey=True, squeeze=False)[:, 0]
    for number, panel in zip(shown, panels, strict=True):
        _layers(panel, candidates[number].layers, number)
        panel.set_title(_short(names[number]))
        panel.tick_params(axis="x", length=0)
    weights = any(layer.error is not None for number in shown for layer in candidates[number].layers)
    _log_to_zero(panels[0], _LINEAR_ERROR if weights else _LINEAR_ERROR**2)  # quantize reports squared errors
    panels[-1].set_xticks(*_towers(candidates[shown[0]].layers))
    return _svg(figure, "layers")


@mpl.rc_context(_RC)
def cost(names: Sequence[str], baseline: ModelSummary, candidates: Sequence[Candidate]) -> str:
    """Plot mean KL against size and speed, a point per candidate; the baseline's cost is a dashed line."""
    costs = [candidate.cost for candidate in candidates]
    figure = Figure(figsize=(WIDTH / 72, 250 / 72), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for field, label, panel in zip(
        ("weights", "tokens_per_second"), ("weights, MiB", "tokens per second"), panels, strict=True
    ):
        for number, (candidate, candidate_cost) in enumerate(zip(candidates, costs, strict=True)):
            kl = candidate.mean_kl
            bars = [[max(kl.value - kl.low, 0)], [max(kl.high - kl.value, 0)]]
            panel.errorbar(
                getattr(candidate_cost, field), kl.value, bars, capsize=3, label=_short(names[number]), **_style(number)
            )
        if baseline.cost is not None:
            panel.axvline(getattr(baseline.cost, field), color=MUTED, linestyle=(0, (4, 3)), linewidth=1.2)
        panel.set_xlabel(label)
        panel.set_xlim(0, 1.1 * panel.get_xlim()[1])
    _log_to_zero(panels[0], _LINEAR_KL)
    panels[0].set_ylabel("mean KL, nats per token")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=2, handletextpad=0.3)
    return _svg(figure, "cost")


def has_errors(candidate: Candidate) -> bool:
    """Whether any layer has an error to plot."""
    return any(error(layer) is not None for layer in candidate.layers)


def error(layer: Layer) -> float | None:
    """A layer's weight error against the baseline, or else the output error that quantize reported."""
    return layer.reported if layer.error is None else layer.error


def _layers(panel: Axes, layers: Sequence[Layer], number: int) -> None:
    ordered = sorted(layers, key=_order)
    style = _style(number) | {"linestyle": "", "markersize": 4 if len(layers) < _MANY_LAYERS else 2, "clip_on": False}
    panel.plot([_nan(error(layer)) for layer in ordered], **style)
    if all(layer.error is None for layer in ordered):
        rtn = [_nan(layer.reported_rtn) for layer in ordered]
        panel.plot(rtn, **style | {"markerfacecolor": "none", "markeredgewidth": 0.7})
    suspects = [(place, layer) for place, layer in enumerate(ordered) if layer.suspect]
    for place, layer in suspects:
        panel.plot(place, _nan(layer.error), "o", markersize=13, markerfacecolor="none", markeredgecolor=FAIL, mew=2)
    if suspects:
        _name_worst(panel, suspects, len(ordered))
    panel.grid(visible=False, axis="x")
    panel.set_xlim(-1, len(ordered))
    towers = [_tower(layer.name) for layer in ordered]
    for place in range(1, len(towers)):
        if towers[place] != towers[place - 1]:
            panel.axvline(place - 0.5, color=LINE, linewidth=1)


def _name_worst(panel: Axes, suspects: Sequence[tuple[int, Layer]], count: int) -> None:
    """Name the suspect with the largest error and count the others, whose names would overlap."""
    place, layer = max(suspects, key=lambda pair: _nan(pair[1].error))
    left = place > count / 2
    panel.annotate(
        _short(_tail(layer.name)) + (f" +{len(suspects) - 1}" if len(suspects) > 1 else ""),
        (place, _nan(layer.error)),
        xytext=(-11 if left else 11, -3),
        textcoords="offset points",
        ha="right" if left else "left",
        color=FAIL,
        weight="bold",
        in_layout=False,
    )


def _towers(layers: Sequence[Layer]) -> tuple[list[float], list[str]]:
    """Ticks at the middle of each part of a model, and their labels; small neighbours share a label."""
    parts = [_tower(layer.name) for layer in sorted(layers, key=_order)]
    ticks: list[tuple[float, str]] = []
    for name in dict.fromkeys(parts):
        middle = float(np.mean([place for place, part in enumerate(parts) if part == name]))
        if ticks and middle - ticks[-1][0] < len(parts) / 6:
            before, other = ticks.pop()
            middle, name = (before + middle) / 2, f"{other}, {name}"
        ticks.append((middle, name))
    return [middle for middle, _ in ticks], [name for _, name in ticks]


def _tower(name: str) -> str:
    return next((tower for part, tower in _TOWERS if part in name), "decoder")


def _order(layer: Layer) -> tuple[int, list[tuple[int, str]]]:
    """Sort key: vision, decoder, MTP, head, and within each by block number."""
    parts = [(int(part), "") if part.isdigit() else (-1, part) for part in layer.name.split(".")]
    return ("vision", "decoder", "MTP", "head").index(_tower(layer.name)), parts


def _tail(name: str) -> str:
    """A layer's name from its block number on."""
    match = re.search(r"\w+\.\d+\..*", name)
    return match[0] if match else name


def _interval(panel: Axes, change: Interval, number: int) -> None:
    """Draw a point and its interval; hollow if not significant."""
    color = COLORS[number % len(COLORS)]
    panel.plot((change.low, change.high), (number, number), color=color, linewidth=2)
    style = _style(number) | {"markersize": 7}
    if change.contains_zero:
        style |= {"markerfacecolor": "none", "markeredgewidth": 1.6}
    panel.plot(change.value, number, **style)


def _log_to_zero(panel: Axes, linear: float) -> None:
    """Make the y axis logarithmic, but linear below `linear`: a KL of 0 must be shown."""
    panel.set_yscale("symlog", linthresh=linear, linscale=0.4)
    panel.set_ylim(0, max(2 * panel.get_ylim()[1], 10 * linear))
    panel.yaxis.set_major_formatter(lambda value, _: _power_of_ten(value))


def _power_of_ten(value: float) -> str:
    if value == 0:
        return "0"
    power = round(np.log10(value))
    return "1" if power == 0 else "10" + str(power).translate(_SUPERSCRIPT)


def _style(number: int) -> dict[str, Any]:
    color = COLORS[number % len(COLORS)]
    return {"color": color, "marker": MARKERS[number % len(MARKERS)], "markeredgecolor": color}


def _legend(figure: Figure, count: int) -> None:
    if count > 1:
        figure.legend(loc="outside upper left", ncols=2)


def _nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _short(name: str) -> str:
    """Shorten a name for a plot."""
    half = (_MAX_NAME - 1) // 2
    return name if len(name) <= _MAX_NAME else f"{name[:half]}…{name[-half:]}"


def _svg(figure: Figure, prefix: str) -> str:
    """Convert a figure to an SVG element without a size; the prefix makes its ids unique in the page."""
    file = io.StringIO()
    with warnings.catch_warnings():
        # matplotlib measures text with a font that lacks glyphs; the page's font has them.
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    # A style sheet in an SVG would apply to the whole page.
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'^<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg)
    svg = re.sub(r'(\sid="|url\(#|xlink:href="#)', rf"\g<1>{prefix}-", svg).replace("xlink:href", "href")
    svg = svg.replace("'DejaVu Sans'", "var(--sans)")
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var(--{variable})")
    return svg
