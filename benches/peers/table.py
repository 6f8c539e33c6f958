"""Turns the recorded runs into Markdown tables: medians, ratios, shares of the roof, and why a figure is missing.

A record is `{"model", "cell", "peer"}` with `"figures": {name: value}`, `"error": "why"`, or both
where some are missing.
"""
import statistics

# Cores that others may keep busy before a table says that it is not to be trusted.
QUIET = 0.2
# Row title, figure, unit, whether more is better.
ENGINE = [
    ("prefill {prefill} tokens", "prefill", "tok/s", True),
    ("decode, 1 sequence", "decode-1", "tok/s", True),
    ("decode, 8 sequences", "decode-8", "tok/s", True),
    ("decode, 32 sequences", "decode-32", "tok/s", True),
]
SERVED = [
    ("output", "tokens_per_second", "tok/s", True),
    ("TTFT p50", "ttft_p50", "s", False),
    ("TTFT p95", "ttft_p95", "s", False),
    # No median: a step that guessed right sends several tokens at once, and half of the gaps are none.
    ("ITL p95", "itl_p95", "ms", False),
    ("peak memory", "peak_mib", "MiB", False),
]
SHARED = [("total time", "seconds", "s", False), ("TTFT p50", "ttft_p50", "s", False)]
START = [("start to first token", "seconds", "s", False), ("its peak memory", "peak_mib", "MiB", False)]


def rows_of(cell):
    """The rows that a cell of the run becomes."""
    if cell == "engine":
        return ENGINE
    if cell == "start":
        return START
    clients = cell.removeprefix("served-")
    title = "shared prefix, 8 clients" if cell == "shared" else f"{clients} client{'s' * (clients != '1')}"
    return [(f"{title}: {name}", *rest) for name, *rest in (SHARED if cell == "shared" else SERVED)]


def share_of_roof(figure, rate, work, roofs):
    """(share, which roof) of the machine that a rate uses: bytes for one sequence, multiply-adds else; or None."""
    if figure == "decode-1" and roofs.get("gb_per_second"):
        return rate * work["bytes_per_step"] / 1e9 / roofs["gb_per_second"], "bandwidth"
    macs = "macs_per_prompt" if figure == "prefill" else "macs_per_decoded" if figure != "decode-1" else None
    if macs and roofs.get("gmac_per_second"):
        return rate * work[macs] / 1e9 / roofs["gmac_per_second"], "int8"
    return None


def number(value, unit):
    """Three significant digits, or whole numbers where those are more."""
    value = value * 1000 if unit == "ms" else value
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _cell(values, unit):
    text = number(statistics.median(values), unit)
    if len(values) > 1:
        text += f" ({number(min(values), unit)}–{number(max(values), unit)})"
    return text


def _values(records, cell, peer, figure):
    found = [r["figures"].get(figure) for r in records if r["cell"] == cell and r["peer"] == peer and "figures" in r]
    return [value for value in found if value is not None]


def _line(cells):
    return "| " + " | ".join(cells) + " |"


def of_model(records, cells, peers, work, roofs, sizes):
    """The lines of one model's table. The first peer is ours: the ratios are how many times better it is."""
    ours, others = peers[0], peers[1:]
    head = ["", f"**{ours}**", "of the roof"] + [part for peer in others for part in (peer, f"{ours} is")] + ["n"]
    lines, footnotes = [_line(head), _line(["---"] * len(head))], []

    def missing(cell, peer):
        why = next((r["error"] for r in records if r["cell"] == cell and r["peer"] == peer and "error" in r), None)
        why = why or "not run"
        if why not in footnotes:
            footnotes.append(why)
        return f"– ({footnotes.index(why) + 1})"

    for cell in cells:
        for title, figure, unit, more in rows_of(cell):
            mine = _values(records, cell, ours, figure)
            if not any(_values(records, cell, peer, figure) for peer in peers) and cell == "engine":
                continue  # not asked for: a model with prefill and one sequence only
            share = share_of_roof(figure, statistics.median(mine), work, roofs) if mine and cell == "engine" else None
            row = [f"{title.format(**sizes)}, {unit}", _cell(mine, unit) if mine else missing(cell, ours)]
            row.append(f"{share[0]:.0%} {share[1]}" if share else "")
            counts = {len(mine)}
            for peer in others:
                theirs = _values(records, cell, peer, figure)
                row.append(_cell(theirs, unit) if theirs else missing(cell, peer))
                if mine and theirs:
                    counts.add(len(theirs))
                    a, b = statistics.median(mine), statistics.median(theirs)
                    ratio = a / b if more else b / a
                    row.append(f"{ratio:.2f}×" if a and b else "")
                else:
                    row.append("")
            row.append("/".join(str(n) for n in sorted(counts)))
            lines.append(_line(row))
    return lines + [""] + [f"({i + 1}) {why}" for i, why in enumerate(footnotes)] * bool(footnotes)


def document(run):
    """The whole document of a recorded run (see run.py for its fields)."""
    machine, roofs, sizes = run["machine"], run["roofs"], run["sizes"]
    lines = ["# wick beside its peers", ""]
    lines.append(f"{run['date']}, {machine['cpu']}, {machine['cores']} cores; each with {run['threads']} threads.")
    if roofs:
        measured = [f"read bandwidth {roofs['gb_per_second']:.1f} GB/s"]
        if "gmac_per_second" in roofs:
            measured.append(f"int8 products {roofs['gmac_per_second']:.0f} GMAC/s")
        lines.append(f"Roofs, measured in the same run: {', '.join(measured)}.")
    load = " / ".join(f"{value:.1f}" for value in run["load"])
    others = [record["others"] for record in run["records"] if "others" in record]
    if others:
        busy = f"median {statistics.median(others):.2f}, at most {max(others):.2f}"
        lines.append(f"Cores that other processes kept busy during a cell: {busy}; load average at the start {load}.")
        if statistics.median(others) > QUIET:
            lines.append("**The machine was not quiet: the figures say more about its other processes.**")
    lines += ["", f"`{run['command']}`", ""]
    for peer in run["peers"]:
        lines.append(f"- **{peer['name']}** {peer['version']}: {peer['error'] or peer['note']}")
    lines += [
        "",
        "Medians of interleaved runs, with the least and the most, and their number in the last column (n). The column",
        "after a peer is how many times better the first column is: over 1 it is ahead.",
        "",
        f"Decode: from {sizes['context']} tokens of context on, while all decode; llama.cpp's bench samples nothing. Served:",
        f"{sizes['input']} tokens in, {sizes['output']} out, no two prompts alike.",
        f"Shared: {sizes['requests']} requests of {sizes['prefix']} common and {sizes['own']} own tokens in, "
        f"{sizes['shared_output']} out.",
        "Shares of the roof count the file's matrices, not attention: bytes at one sequence, multiply-adds else.",
    ]
    for model in run["models"]:
        records = [r for r in run["records"] if r["model"] == model["name"]]
        cells = [cell for cell in run["cells"] if any(r["cell"] == cell for r in records)]
        names = [peer["name"] for peer in run["peers"]]
        lines += ["", f"## {model['name']}", "", f"`{model['file']}`", ""]
        lines += of_model(records, cells, names, model["work"], roofs, sizes)
    return "\n".join(lines) + "\n"
