"""The plots of a report, as SVG that takes its colours and its font from the page it stands in."""

from __future__ import annotations

import io
import re
import warnings
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from runtime.compare.result import by_position
from runtime.evaluate import SCORES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from runtime.compare.layers import Layer
    from runtime.compare.measure import Measured
    from runtime.compare.result import Candidate, Side
    from runtime.compare.statistics import Interval

# Stand-ins that no plot would use by itself; the page gives each its colour, in light and in dark.
INK, MUTED, LINE, FAIL = "#010203", "#010204", "#010205", "#010206"
COLORS = ("#010210", "#010211", "#010212", "#010213", "#010214", "#010215")
_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", FAIL: "fail"} | {
    color: f"model-{number}" for number, color in enumerate(COLORS)
}
MARKERS = ("o", "s", "^", "D", "v", "P")
SIGNS = ("●", "■", "▲", "◆", "▼", "✚")  # the same in text
WIDTH = 400  # user units, near the pixels of a phone, so that text of 10 can be read there
_MOST_BINS, _LONGEST_NAME, _MANY_LAYERS = 32, 26, 150
_LEAST_KL, _LEAST_ERROR = 1e-6, 1e-3  # below, axes are linear
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_TOWERS = (("visual", "vision"), ("mtp", "MTP"), ("lm_head", "head"))  # in this order; all others are the decoder's
_LABELS = {"exact_match": "exact match", "cer": "CER", "anls": "ANLS"}
_RC: dict[Any, Any] = {
    "svg.hashsalt": "compare",  # the same ids in every run
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
def kl_by_position(names: Sequence[str], measured: Sequence[Measured]) -> str:
    """Mean KL against the place in the answer, a line a candidate; below, how many answers are as long."""
    figure = Figure(figsize=(WIDTH / 72, 290 / 72), layout="constrained")
    top, bottom = figure.subplots(2, sharex=True, height_ratios=(7, 2))
    for number, name in enumerate(names):
        top.plot(*mean_kl(measured, number), label=_short(name), **_style(number))
    _log_to_zero(top, _LEAST_KL)
    top.set_ylabel("KL, nats a token")
    lengths = np.array([len(one.baseline.log_likelihood) for one in measured])
    places = np.arange(1, lengths.max() + 1)
    bottom.fill_between(places, [(lengths >= place).sum() for place in places], step="mid", color=MUTED)
    bottom.set(xlabel="token of the true answer", ylabel="documents", ylim=(0, None), yticks=(0, len(lengths)))
    _legend(figure, len(names))
    return _svg(figure, "kl")


def mean_kl(measured: Sequence[Measured], number: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Places in the answer, from 1, and a candidate's mean KL there, of every token of every document.

    Answers longer than 32 tokens are cut into at most 32 runs of as many tokens; a run's place is its middle.
    """
    kl = [one.differences[number].kl for one in measured]
    longest = max(map(len, kl))
    width = -(-longest // _MOST_BINS)
    means = by_position(kl, width)
    places: NDArray[np.float64] = np.arange(len(means), dtype=np.float64) * width + (width + 1) / 2
    return places, means


@mpl.rc_context(_RC)
def score_differences(names: Sequence[str], candidates: Sequence[Candidate]) -> str:
    """Candidate less baseline with its interval, a panel a score; the gate is a dashed line."""
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
    panels[-1].set_xlabel("candidate less baseline, 95 % interval")
    return _svg(figure, "scores")


@mpl.rc_context(_RC)
def layer_errors(names: Sequence[str], candidates: Sequence[Candidate]) -> str:
    """Error of every linear in order, a panel a candidate; suspects are ringed, the worst is named."""
    shown = [number for number, candidate in enumerate(candidates) if has_errors(candidate)]
    figure = Figure(figsize=(WIDTH / 72, (60 + 130 * len(shown)) / 72), layout="constrained")
    panels = figure.subplots(len(shown), sharex=True, sharey=True, squeeze=False)[:, 0]
    for number, panel in zip(shown, panels, strict=True):
        _layers(panel, candidates[number].layers, number)
        panel.set_title(_short(names[number]))
        panel.tick_params(axis="x", length=0)
    weights = any(layer.error is not None for number in shown for layer in candidates[number].layers)
    _log_to_zero(panels[0], _LEAST_ERROR if weights else _LEAST_ERROR**2)  # what quantize reports is squared
    panels[-1].set_xticks(*_towers(candidates[shown[0]].layers))
    return _svg(figure, "layers")


@mpl.rc_context(_RC)
def cost(names: Sequence[str], baseline: Side, candidates: Sequence[Candidate]) -> str:
    """Mean KL against size and against speed, a point a candidate; the baseline's cost is a dashed line."""
    costs = [candidate.cost for candidate in candidates]
    figure = Figure(figsize=(WIDTH / 72, 250 / 72), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for field, label, panel in zip(
        ("weights", "tokens_per_second"), ("weights, MiB", "tokens a second"), panels, strict=True
    ):
        for number, (candidate, taken) in enumerate(zip(candidates, costs, strict=True)):
            found = candidate.mean_kl
            spread = [[max(found.value - found.low, 0)], [max(found.high - found.value, 0)]]
            panel.errorbar(
                getattr(taken, field), found.value, spread, capsize=3, label=_short(names[number]), **_style(number)
            )
        if baseline.cost is not None:
            panel.axvline(getattr(baseline.cost, field), color=MUTED, linestyle=(0, (4, 3)), linewidth=1.2)
        panel.set_xlabel(label)
        panel.set_xlim(0, 1.1 * panel.get_xlim()[1])
    _log_to_zero(panels[0], _LEAST_KL)
    panels[0].set_ylabel("mean KL, nats a token")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=2, handletextpad=0.3)
    return _svg(figure, "cost")


def has_errors(candidate: Candidate) -> bool:
    """Whether there is anything to show of its layers."""
    return any(error(layer) is not None for layer in candidate.layers)


def error(layer: Layer) -> float | None:
    """What a layer's plot shows: its distance from the baseline's weights, or else what quantize reported."""
    return layer.reported if layer.error is None else layer.error


def _layers(panel: Axes, layers: Sequence[Layer], number: int) -> None:
    ordered = sorted(layers, key=_order)
    style = _style(number) | {"linestyle": "", "markersize": 4 if len(layers) < _MANY_LAYERS else 2, "clip_on": False}
    panel.plot([_nan(error(layer)) for layer in ordered], **style)
    if all(layer.error is None for layer in ordered):
        nearest = [_nan(layer.reported_rtn) for layer in ordered]
        panel.plot(nearest, **style | {"markerfacecolor": "none", "markeredgewidth": 0.7})
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
    """Name the suspect of the largest error and say how many others there are: names of neighbours would overlap."""
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
    """Where on the axis each part of a model has its middle, and what it is called; small neighbours share a name."""
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
    """Vision, decoder, MTP, head; inside them by number, which the alphabet would not."""
    parts = [(int(part), "") if part.isdigit() else (-1, part) for part in layer.name.split(".")]
    return ("vision", "decoder", "MTP", "head").index(_tower(layer.name)), parts


def _tail(name: str) -> str:
    """A linear's name from the number of its block on."""
    found = re.search(r"\w+\.\d+\..*", name)
    return found[0] if found else name


def _interval(panel: Axes, found: Interval, number: int) -> None:
    """A point and its interval; hollow where it may be chance."""
    color = COLORS[number % len(COLORS)]
    panel.plot((found.low, found.high), (number, number), color=color, linewidth=2)
    style = _style(number) | {"markersize": 7}
    if found.is_zero_possible:
        style |= {"markerfacecolor": "none", "markeredgewidth": 1.6}
    panel.plot(found.value, number, **style)


def _log_to_zero(panel: Axes, linear: float) -> None:
    """A logarithmic y axis that goes on to 0 below `linear`: models that agree are 0 apart."""
    panel.set_yscale("symlog", linthresh=linear, linscale=0.4)
    panel.set_ylim(0, max(2 * panel.get_ylim()[1], 10 * linear))
    panel.yaxis.set_major_formatter(lambda value, _: _power_of_ten(value))


def _power_of_ten(value: float) -> str:
    if value == 0:
        return "0"
    power = round(np.log10(value))
    return "1" if power == 0 else "10" + str(power).translate(_RAISED)


def _style(number: int) -> dict[str, Any]:
    color = COLORS[number % len(COLORS)]
    return {"color": color, "marker": MARKERS[number % len(MARKERS)], "markeredgecolor": color}


def _legend(figure: Figure, count: int) -> None:
    if count > 1:
        figure.legend(loc="outside upper left", ncols=2)


def _nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _short(name: str) -> str:
    """A name short enough for a plot."""
    half = (_LONGEST_NAME - 1) // 2
    return name if len(name) <= _LONGEST_NAME else f"{name[:half]}…{name[-half:]}"


def _svg(figure: Figure, prefix: str) -> str:
    """The figure as an element of a page, without a size; its ids are unique among figures of other prefixes."""
    file = io.StringIO()
    with warnings.catch_warnings():
        # The page's font draws what the font that text is measured with lacks.
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    # A style sheet inside a page would hold for all of the page.
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'^<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg)
    svg = re.sub(r'(\sid="|url\(#|xlink:href="#)', rf"\g<1>{prefix}-", svg).replace("xlink:href", "href")
    svg = svg.replace("'DejaVu Sans'", "var(--sans)")
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var(--{variable})")
    return svg
