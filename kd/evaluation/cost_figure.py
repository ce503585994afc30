"""Latencies of a benchmark as a picture: median and 95th percentile, by backend and net."""

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from kd.evaluation.cost_text import at, places
from kd.files.benchmark_file import BenchmarkRecord
from kd.log import number_of
from kd.reports.palette import BLACK, ROLES


def figure_of(found: BenchmarkRecord) -> Figure:
    """Draw one panel per device and batch, with a row per backend and net, in ms on a log axis.

    Args:
        found: what `benchmark.json` holds.
    """
    where = list(dict.fromkeys((device, batch) for device, _, batch in places(found)))
    counts = [sum((each[0], each[2]) == panel for each in places(found)) for panel in where]
    height = 1.6 + sum(0.3 * len(found.models) * count + 0.9 for count in counts)
    figure = Figure(figsize=(7.5, height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(max(len(where), 1), 1, squeeze=False, height_ratios=counts or None)[
        :, 0
    ]
    for axes, (device, batch) in zip(panels, where, strict=False):
        _panel(axes, found, device, batch)
    handles = {
        label: handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=len(handles) or 1,
        fontsize=9,
    )
    env = found.environment
    figure.suptitle(
        f"{found.name}\nmedian, with a line to the 95th percentile; {env.cpu}", fontsize=10
    )
    return figure


def _panel(axes: Axes, found: BenchmarkRecord, device: str, batch: int) -> None:
    here = [place for place in places(found) if (place[0], place[2]) == (device, batch)]
    models = found.models
    step = 1 / (len(models) + 1)
    for i, place in enumerate(here):
        for j, model in enumerate(models):
            if row := at(model.latency, place):
                look = ROLES.get(model.role, {"color": BLACK, "marker": "o"})
                colour = look["color"]
                marker = look["marker"]
                y = i + (j - (len(models) - 1) / 2) * step
                axes.plot([row.median, row.p95], [y, y], color=colour, linewidth=1.5)
                label = f"{model.role}: {model.net}" if i == 0 else None
                axes.plot(
                    row.median,
                    y,
                    marker,
                    color=colour,
                    markersize=6,
                    linestyle="none",
                    label=label,
                )
                axes.annotate(
                    f"{row.median:.3g}",
                    (row.p95, y),
                    (5, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                )
    threads = found.environment.threads
    on = f"CPU, {number_of(threads, 'thread')}" if device == "cpu" else found.environment.device
    axes.set_title(f"{batch} image{'s' * (batch != 1)} at once, {on}", fontsize=9, loc="left")
    axes.set(xscale="log", ylim=(len(here) - 0.5, -0.5))
    axes.set_yticks(range(len(here)), [backend for _, backend, _ in here])
    axes.set_xlabel("ms for one forward pass")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.12)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for i in range(len(here) - 1):
        axes.axhline(i + 0.5, color="#bbbbbb", linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
