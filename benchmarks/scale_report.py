"""What ``benchmarks.scale`` found, as Markdown: tables of what was measured, then of what is computed from it.

print(report(comparing.read(Path("benchmarks/results/scale.jsonl"))))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from benchmarks.drawing import Row
from benchmarks.scale_simulation import LAYOUTS, of_kind, winner

MEASURED = ("store", "step", "clients", "shard", "one", "moment")  # kinds; the others are computed from them
NAMES = {"one": "one process", "local": "a block a trainer", "shards": "shards on Ray"}


def report(rows: Sequence[Row]) -> str:
    """All tables, for the kinds of rows that are there."""
    parts: list[tuple[str, Callable[[Sequence[Row]], str], str]] = [
        ("Measured: draws and updates against shards", flow_table, "store"),
        ("Measured: what a step loses", step_table, "step"),
        ("Measured: several clients", client_table, "clients"),
        ("Measured: what a shard takes, and its death", shard_table, "shard"),
        ("Measured: one process", one_table, "one"),
        ("Computed and measured: draws from blocks against draws from one store", moment_table, "moment"),
        ("Fitted: unit costs", unit_table, "units"),
        ("Computed beside measured", check_table, "check"),
        ("Computed: which layout", winner_table, "simulated"),
        ("Computed: what each layout takes", layout_table, "simulated"),
    ]
    told = [f"### {title}\n\n{table(rows)}" for title, table, kind in parts if of_kind(rows, kind)]
    return "\n\n".join([*told, machine(rows)])


def machine(rows: Sequence[Row]) -> str:
    """What it was measured on."""
    found: Row = next((row["machine"] for row in rows if "machine" in row), {})
    return ", ".join(f"{name} {value}" for name, value in found.items())


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]], left: int = 1) -> str:
    """A table, whose first columns are to the left."""
    rule = ["---"] * left + ["--:"] * (len(head) - left)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, rule, *lines])


def number(value: float) -> str:
    """Three digits that count, whole from 1,000 on."""
    if value == 0.0:
        return "0"
    if abs(value) >= 100.0:
        return f"{value:,.0f}"
    if abs(value) >= 0.01:
        return f"{value:.3g}"
    return f"{value:.1e}"


def power(value: int) -> str:
    """10^9 as 1e9, and others as they are."""
    exponent = len(str(value)) - 1
    return f"1e{exponent}" if value == 10**exponent and exponent > 4 else f"{value:,}"


def span(quartiles: Sequence[float]) -> str:
    """Quartiles."""
    return f"{number(quartiles[0])}-{number(quartiles[1])}"


# --- measured ---------------------------------------------------------------------------------


def flow_table(rows: Sequence[Row]) -> str:
    """As fast as they go."""
    head = "S,B,ahead,draw µs (quartiles),update µs (quartiles),draws/s,updates/s,one process: draws/s,updates/s"
    head += ",step over one process,calls a draw"
    found = sorted(of_kind(rows, "store"), key=lambda row: (row["batch_size"], row["shards"], row["prefetch"]))
    return markdown(
        head.split(","),
        (
            [
                f"{row['shards']}",
                f"{row['batch_size']:,}",
                f"{row['prefetch']}",
                f"{number(row['draw_us'])} ({span(row['draw_quartiles_us'])})",
                f"{number(row['update_us'])} ({span(row['update_quartiles_us'])})",
                *(f"{row[name]:,}" for name in ("draws_per_second", "updates_per_second")),
                *(f"{row[name]:,}" for name in ("one_draws_per_second", "one_updates_per_second")),
                f"{number(row['step_over_one'])}x",
                number(row["draw_calls"]),
            ]
            for row in found
        ),
    )


def step_table(rows: Sequence[Row]) -> str:
    """Lost and waited, a column a step and prefetch."""
    found = of_kind(rows, "step")
    columns = sorted({(row["step_ms"], row["prefetch"]) for row in found})
    at = {(row["shards"], row["step_ms"], row["prefetch"]): row for row in found}
    shards = sorted({row["shards"] for row in found})
    head = ["S", *(f"{step:g} ms, {ahead} ahead" for step, ahead in columns)]
    lines = (
        [f"{count}", *(f"{number(row['lost_ms'])} ({number(row['waited_ms'])})" for row in here)]
        for count in shards
        for here in [[at[(count, *column)] for column in columns]]
    )
    return "ms lost a step, and waited of these\n\n" + markdown(head, lines)


def client_table(rows: Sequence[Row]) -> str:
    """Steps a second of all clients."""
    found = of_kind(rows, "clients")
    counts = sorted({row["clients"] for row in found})
    at = {(row["shards"], row["clients"]): row for row in found}
    return "steps a second, all clients together (quartiles)\n\n" + markdown(
        ["S", *(f"{count} client{'s' * (count > 1)}" for count in counts)],
        (
            [f"{shards}", *(f"{number(r['steps_per_second'])} ({span(r['quartiles'])})" for r in here)]
            for shards in sorted({row["shards"] for row in found})
            for here in [[at[(shards, count)] for count in counts]]
        ),
    )


def shard_table(rows: Sequence[Row]) -> str:
    """Of each store."""
    head = "samples a shard,S,MB resident a shard,bytes a sample,build s,fill s,snapshot s,killed: next draw after s"
    head += ",empty calls to all µs"
    return markdown(
        head.split(","),
        (
            [
                f"{row['shard_samples']:,}",
                f"{row['shards']}",
                number(float(np.mean(row["resident_bytes"])) / 1e6),
                number(float(np.mean(row["resident_bytes"])) / row["shard_samples"]),
                number(row["build_s"]),
                number(row["fill_s"]),
                number(row["snapshot_s"][0]),  # of all shards; before the second one, only one of them has learnt
                ", ".join(map(number, row["restart_s"])),
                f"{number(row['round_trip_us'])} ({span(row['round_trip_quartiles_us'])})",
            ]
            for row in sorted(of_kind(rows, "shard"), key=lambda row: row["shard_samples"])
        ),
    )


def one_table(rows: Sequence[Row]) -> str:
    """Of each N."""
    head = ["N", "B", "draw µs", "update µs", "MB", "snapshot s", "load s"]
    return markdown(
        head,
        (
            [
                f"{row['num_samples']:,}",
                f"{row['batch_size']}",
                *(number(row[name]) for name in ("draw_us", "update_us")),
                number(row["resident_bytes"] / 1e6),
                *(number(row[name]) for name in ("snapshot_s", "load_s")),
            ]
            for row in of_kind(rows, "one")
        ),
    )


def moment_table(rows: Sequence[Row]) -> str:
    """At the σ that was measured by draws, or the first."""
    found = of_kind(rows, "moment")
    sigma = next((row["sigma"] for row in found if "draw_steps" in row), found[0]["sigma"])
    head = [
        "samples",
        "λ",
        "W",
        "1+CV²",
        "second moment",
        "by draws",
        "variance of the mean",
        "by draws",
        "systematic draws",
    ]
    lines = []
    for row in found:
        if row["sigma"] == sigma:
            named = ("multinomial_second", "multinomial_variance", "systematic_variance")
            second, variance, systematic = (error(row.get(name)) for name in named)
            lines.append(
                [
                    row["arrangement"],
                    f"{row['uniform_fraction']:g}",
                    f"{row['workers']:,}",
                    f"{row['one_plus_cv2']:.4f}",
                    f"{row['second_over_one_store']:.4f}",
                    second,
                    f"{row['variance_over_one_store']:.4f}",
                    variance,
                    systematic,
                ]
            )
    return f"over those of one store, σ = {sigma:g}, N = {found[0]['num_samples']:,}\n\n{markdown(head, lines)}"


def error(value: Sequence[float] | None) -> str:
    """A figure and its standard error; nothing where there is none."""
    return "" if value is None else f"{value[0]:.4f} ± {value[1]:.4f}"


# --- computed ---------------------------------------------------------------------------------


def unit_table(rows: Sequence[Row]) -> str:
    """What was fitted."""
    units = of_kind(rows, "units")[0]
    lines = []
    for name, what in (("client", "the trainer's process"), ("shard", "all shards together")):
        for verb in ("draw", "update"):
            batch, call, sample = units[f"{name}_{verb}"]
            per_batch = f"{number(batch)} a batch + " if name == "client" else ""
            lines.append([f"{verb}, CPU of {what}", f"{per_batch}{number(call)} a call + {number(sample)} a sample µs"])
    for name, what, unit, scale, each in (
        ("trip", "a round of empty calls", "µs", 1.0, "shard"),
        ("memory", "a shard, resident", "bytes", 1.0, "sample"),
        ("restart", "from the death of a shard to its next draw", "s", 1e6, "million samples"),
        ("one_memory", "a sampler in the process", "bytes", 1.0, "sample"),
        ("one_write", "its snapshot", "s", 1e6, "million samples"),
        ("one_load", "loading that", "s", 1e6, "million samples"),
    ):
        constant, slope = units[name]
        lines.append([what, f"{number(constant)} + {number(slope * scale)} a {each} {unit}"])
    return markdown(["", "fitted"], lines, left=2)


def check_table(rows: Sequence[Row]) -> str:
    """How far the simulation is from what was measured, a line a sort."""
    found = of_kind(rows, "check")
    lines = []
    for what, shown in sorted({(row["what"], row["prefetch"]) for row in found}):
        here = [row for row in found if (row["what"], row["prefetch"]) == (what, shown)]
        ratio = [row["ratio"] for row in here]
        sides = "; ".join(
            f"S={row['shards']}{'' if row['batch_size'] == found[0]['batch_size'] else ' B=' + str(row['batch_size'])}:"
            f" {number(row['measured_ms'])} / {number(row['simulated_ms'])}"
            for row in sorted(here, key=lambda row: (row["batch_size"], row["shards"]))
        )
        ends = f"{number(min(ratio))}-{number(max(ratio))}"
        lines.append([what, f"{shown}", sides, number(float(np.median(ratio))), ends])
    ratios = np.array([row["ratio"] for row in found])
    factor = float(np.exp(np.median(np.abs(np.log(ratios)))))
    within = int(np.sum(np.abs(np.log(ratios)) <= np.log(2.0)))
    said = f"{within} of {ratios.size} within a factor of 2; half within a factor of {factor:.2f}"
    head = ["", "ahead", "ms measured / simulated", "simulated over measured: median", "least-most"]
    return f"{said}\n\n{markdown(head, lines)}"


def points(rows: Sequence[Row]) -> dict[tuple[int, int], list[Row]]:
    """The rows of the simulation by N and W."""
    found: dict[tuple[int, int], list[Row]] = {}
    for row in of_kind(rows, "simulated"):
        if "skipped" not in row:
            found.setdefault((row["num_samples"], row["workers"]), []).append(row)
    return found


def winner_table(rows: Sequence[Row]) -> str:
    """The layout that gets on fastest, N against W; and how much more shards would have to save."""
    by_point = points(rows)
    if not by_point:
        return of_kind(rows, "simulated")[0]["skipped"]
    sizes, workers = (sorted({point[axis] for point in by_point}) for axis in (0, 1))
    lines = []
    for size in sizes:
        cells = []
        for count in workers:
            here = {row["layout"]: row for row in by_point[size, count]}
            best = winner(list(here.values()))
            cell = "none fits" if best is None else f"{NAMES[best]}, {100 * here[best]['part']:.1f} %"
            if best == "local" and count > 1 and here["shards"]["fits"]:
                cell += f"; shards from {here['local']['part'] / here['shards']['part']:.3g}"
            cells.append(cell)
        lines.append([power(size), *cells])
    assumed = ", ".join(
        f"{k} {v:g}" for k, v in of_kind(rows, "assumptions")[0].items() if k not in ("kind", "machine")
    )
    return (
        f"assumed: {assumed}\n\nThe part of the time that goes into steps that count. `shards from x`: shards win all "
        "the same where draws from blocks would take x times as many steps.\n\n"
        + markdown(["N", *(f"W = {count:,}" for count in workers)], lines)
    )


def layout_table(rows: Sequence[Row]) -> str:
    """Every layout at every N and W."""
    head = [
        "N",
        "W",
        "layout",
        "S",
        "machines",
        "GB a process",
        "calls a step",
        "calls/s a shard",
        "busy",
        "lost ms",
        "down s",
        "useful",
        "part",
    ]
    lines = []
    for (size, count), here in sorted(points(rows).items()):
        for row in sorted(here, key=lambda row: LAYOUTS.index(row["layout"])):
            if "why" in row:
                continue
            lines.append(
                [
                    power(size),
                    f"{count:,}",
                    NAMES[row["layout"]] + ("" if row["fits"] else " (does not fit)"),
                    f"{row['shards']:,}",
                    f"{row['machines']:,}",
                    *(number(row[name]) for name in ("gb_a_shard", "calls_a_step", "calls_a_shard_second")),
                    f"{100 * row['busy']:.0f} %",
                    *(number(row[name]) for name in ("lost_ms", "shard_down_s")),
                    *(f"{100 * row[name]:.1f} %" for name in ("useful", "part")),
                ]
            )
    return markdown(head, lines, left=3)
