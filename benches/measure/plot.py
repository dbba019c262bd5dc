"""Draws what a run found: ``plot.py FILE.svg`` with ``{workload: {server: CPU µs}}`` on stdin.

Run by the peers' interpreter, which has matplotlib. Draws; measures nothing.
"""

from __future__ import annotations

import json
import sys

SUBJECT = "osloxide"
COLUMNS = 3
#: Room above and below the longest and the shortest bar, as a factor: their labels stand in it.
MARGIN = 1.8
#: What may be written below an axis: few enough in each decade to stand apart.
MARKS = [digit * 10.0**power for power in range(-2, 4) for digit in (1, 2, 5)]


def draw(found: dict[str, dict[str, float]], path: str) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.fonttype"] = "none"
    mpl.rcParams["svg.hashsalt"] = "benches"  # the same figures give the same file
    from matplotlib import pyplot as plt
    from matplotlib import ticker

    names = [name for name in found if SUBJECT in found[name]]
    rows = -(-len(names) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(12, 2.4 * rows), squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, names, strict=False):
        servers = sorted(found[name], key=lambda server: -found[name][server])
        ratios = [found[name][server] / found[name][SUBJECT] for server in servers]
        colors = ["#c0392b" if server == SUBJECT else "#95a5a6" for server in servers]
        bars = axis.barh(servers, ratios, color=colors)
        axis.bar_label(bars, fmt="%.2f", padding=2, fontsize=7)
        axis.set_title(name, fontsize=9)
        axis.set_xscale("log")
        axis.set_xlim(min(0.5, *ratios) / MARGIN, max(2, *ratios) * MARGIN)
        axis.xaxis.set_major_locator(ticker.FixedLocator(MARKS))
        axis.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        # The minor marks of a short logarithmic axis have labels of their own, one over the other.
        axis.xaxis.set_minor_locator(ticker.NullLocator())
        axis.tick_params(labelsize=7)
    figure.suptitle("CPU of a request as a multiple of osloxide's (logarithmic; less is better)")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    draw(json.load(sys.stdin), sys.argv[1])
