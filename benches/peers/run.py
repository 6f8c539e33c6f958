#!/usr/bin/env python3
"""wick beside llama.cpp, OpenVINO GenAI and mistral.rs: the same files, the same threads, runs taking turns.

    benches/peers/run.py [--models …] [--cells …] [--peers …] [--out table.md]   the table, within --budget minutes
    benches/peers/run.py --quick                                                 a few minutes, smollm2-135m only
    benches/peers/run.py --install                                               only installs: 10 to 30 minutes
    benches/peers/run.py --render table.json                                     the Markdown of a recorded run

Peers are installed from their packages into ~/.cache/wick-peers (or $WICK_PEERS_CACHE). Next to the table lies a JSON
file with every single run. Run it while nothing else does: what other processes took is recorded, not corrected for.
"""
import argparse
import dataclasses
import datetime
import json
import os
import pathlib
import platform
import re
import shlex
import subprocess
import sys
import time

import gguf
import install
import load
import peers
import process
import table

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MODELS = ["smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b", "gemma-3-270m"]
CELLS = ["engine", "start", "served-1", "served-8", "served-32", "shared"]
QUICK_CELLS = ("engine", "start")
# Without a chat template and a whole column of targets of its own: prefill and decode with one sequence.
ENGINE_ONLY = {"gemma-3-270m"}
# Of files from this size on, fewer requests are sent: the slower peers take minutes for them.
LARGE = 700 << 20


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Tokens and requests of the cells."""

    prefill: int = 512
    context: int = 64
    decode: tuple = ((1, 64), (8, 32), (32, 32))
    input: int = 256
    output: int = 128
    prefix: int = 1024
    own: int = 32
    shared_output: int = 32
    requests: int = 32


QUICK = Sizes(128, 16, ((1, 16), (8, 8)), input=32, output=16, prefix=64, own=8, shared_output=8, requests=8)


def spec(cell, sizes, file, seed, timeout):
    """What a peer is asked to do for a cell."""
    common = {"seed": seed, "timeout": timeout}
    if cell == "engine":
        return common | {"task": "engine", "prefill": sizes.prefill, "context": sizes.context, "decode": sizes.decode}
    if cell == "start":
        return common | {"task": "start", "clients": 1, "input": 16, "output": 1}
    if cell == "shared":
        lengths = {"input": sizes.prefix + sizes.own, "output": sizes.shared_output, "shared": sizes.prefix}
        return common | lengths | {"task": "served", "clients": 8, "requests": sizes.requests}
    clients = int(cell.removeprefix("served-"))
    twice = file.stat().st_size < LARGE and clients < 32
    requests = max(2, clients * (2 if twice else 1))
    lengths = {"input": sizes.input, "output": sizes.output, "shared": 0}
    return common | lengths | {"task": "served", "clients": clients, "requests": requests}


def roofs(threads):
    """Read bandwidth in GB/s and int8 multiply-adds in 10^9/s, as the kernels' own bench measures them."""
    flags = pathlib.Path("/proc/cpuinfo").read_text()
    isa = "avx512vnni" if "avx512_vnni" in flags else "avx2" if "avx2" in flags else "scalar"
    command = ["cargo", "bench", "--quiet", "-p", "wick-kernels", "--bench", "products", "--"]
    # No format has this name: only the roofs are measured.
    done = subprocess.run([*command, str(threads), isa, "roofs", "packed"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the roofs could not be measured (--no-roofs leaves them out):\n{done.stderr}")
    found = {"gb_per_second": r"bandwidth ([\d.]+) GB/s", "gmac_per_second": r"vpdpbusd ([\d.]+) GMAC/s"}
    matches = {name: re.search(pattern, done.stdout) for name, pattern in found.items()}
    return {name: float(match[1]) for name, match in matches.items() if match}


def file_of(model, wick):
    """The GGUF file of a model: a path as it is, a name through `wick pull`."""
    if model.endswith(".gguf"):
        return pathlib.Path(model)
    return pathlib.Path(process.output_of([wick, "pull", "--print-path", model], 1800).splitlines()[0])


def name_of(model):
    return pathlib.Path(model).stem if model.endswith(".gguf") else model


class Run:
    """The recorded run: every measurement is written out at once, so that an interrupted run keeps what it has."""

    def __init__(self, args, chosen, models, measured_roofs):
        self.args, self.peers, self.files = args, chosen, models
        self.sizes = QUICK if args.quick else Sizes()
        self.began = time.monotonic()
        self.unavailable, self.took, self.turns = {}, {}, {}
        cpu = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
        self.state = {
            "date": datetime.date.today().isoformat(),
            "command": shlex.join(["benches/peers/run.py", *sys.argv[1:]]),
            "machine": {"cpu": cpu[1] if cpu else platform.processor(), "cores": os.cpu_count()},
            "load": os.getloadavg(),
            "threads": args.threads,
            "roofs": measured_roofs,
            "sizes": dataclasses.asdict(self.sizes),
            "cells": args.cells,
            "models": [
                {"name": name, "file": file.name, "work": dataclasses.asdict(gguf.of_file(file))}
                for name, file in models.items()
            ],
            "peers": [],
            "records": [],
        }

    def install(self):
        for peer in self.peers:
            try:
                peer.setup()
            except install.Unavailable as e:
                self.unavailable[peer.name] = str(e)
            error = self.unavailable.get(peer.name)
            described = {"name": peer.name, "version": peer.version, "note": peer.note, "error": error}
            self.state["peers"].append(described)
            print(f"{peer.name} {peer.version or ''}: {error or 'ready'}", flush=True)

    def save(self):
        self.args.out.with_suffix(".json").write_text(json.dumps(self.state, indent=1))
        self.args.out.write_text(table.document(self.state))

    def measure(self, model, cell, peer, seed):
        file = self.files[model]
        record = {"model": model, "cell": cell, "peer": peer.name}
        known = [r for r in self.state["records"] if "error" in r and (r["model"], r["peer"]) == (model, peer.name)]
        known = [r for r in known if r["cell"] == cell or (r["cell"] == "engine" and cell not in QUICK_CELLS)]
        if peer.name in self.unavailable:
            record["error"] = self.unavailable[peer.name]
        elif known:
            # It cannot run this model, or not in time: once is enough to know.
            first = known[0]
            other = "" if first["cell"] == cell else "not tried, because of prefill and decode: "
            record["error"] = other + first["error"]
        else:
            asked = spec(cell, self.sizes, file, seed, self.args.timeout)
            if model in ENGINE_ONLY and cell == "engine":
                asked["decode"] = asked["decode"][:1]
            process.warm(file)
            process.wait_until_quiet(self.args.wait)
            with process.Others() as others:
                try:
                    record["figures"] = getattr(peer, asked["task"])(file, asked)
                    if "stopped" in record["figures"]:
                        record["error"] = record["figures"].pop("stopped")
                except subprocess.TimeoutExpired:
                    record["error"] = f"not finished after {self.args.timeout} s"
                except Exception as e:  # whatever a peer ran into: the row says it, the others go on
                    record["error"] = str(e) or type(e).__name__
            record["others"] = others.cores
        self.state["records"].append(record)
        shown = [f"{name} {value:.4g}" for name, value in record.get("figures", {}).items() if value is not None]
        shown += [record["error"]] if "error" in record else []
        print(f"{self.minutes():5.1f} min  {model} {cell} {peer.name}: {', '.join(shown)}", flush=True)
        self.save()

    def minutes(self):
        return (time.monotonic() - self.began) / 60

    def expected(self, model, cell):
        """Minutes that one turn of all peers takes: what the last one took, or what their engines' figures say."""
        if (model, cell) in self.took or cell in QUICK_CELLS:
            return self.took.get((model, cell), 0.0)
        asked = spec(cell, self.sizes, self.files[model], 0, self.args.timeout)
        clients, requests, shared = asked["clients"], asked["requests"], asked["shared"]
        seconds = 0.0
        for record in self.state["records"]:
            rates = record.get("figures", {})
            is_engine = (record["model"], record["cell"]) == (model, "engine")
            if is_engine and rates.get("prefill") and rates.get(f"decode-{clients}"):
                # A shared prefix is computed by each slot of some peers.
                prompts = requests * (asked["input"] - shared) + clients * shared
                needed = prompts / rates["prefill"] + requests * asked["output"] / rates[f"decode-{clients}"]
                seconds += min(needed, self.args.timeout) / self.turns[model, "engine"]
        return seconds / 60

    def turn(self, number, cell, model):
        """One turn of all peers, if it fits into what is left of the time; else a first turn leaves its reason."""
        if self.minutes() + self.expected(model, cell) > self.args.budget:
            if number == 0:
                why = f"not enough was left of the run's {self.args.budget:g} minutes"
                skipped = {"model": model, "cell": cell, "error": why}
                self.state["records"] += [skipped | {"peer": peer.name} for peer in self.peers]
            return
        began = self.minutes()
        self.turns[model, cell] = self.turns.get((model, cell), 0) + 1
        for peer in self.peers:
            self.measure(model, cell, peer, f"{number} {model} {cell}")
        self.took[model, cell] = self.minutes() - began

    def all(self):
        """What is short or most asked for comes first: where the time ends, other cells have fewer turns, or none."""

        def turns(numbers, cells, models):
            pairs = [(cell, model) for cell in cells for model in models]
            pairs = [(cell, model) for cell, model in pairs if cell == "engine" or model not in ENGINE_ONLY]
            return [(number, *pair) for number in numbers for pair in pairs]

        models = list(self.files)
        large = [model for model in models if self.files[model].stat().st_size >= LARGE]
        small = [model for model in models if model not in large]
        quick = [cell for cell in self.args.cells if cell in QUICK_CELLS]
        served = [cell for cell in self.args.cells if cell not in QUICK_CELLS]
        more = range(1, self.args.repeats)
        order = turns([0], quick, models) + turns(more, quick, small)
        order += turns([0], served, models) + turns(more, quick, large) + turns(more, served, models)
        for number, cell, model in order:
            self.turn(number, cell, model)
        self.save()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="MODEL", help="the catalogue's names, or files")
    parser.add_argument("--cells", nargs="+", default=CELLS, choices=CELLS)
    parser.add_argument("--peers", nargs="+", default=["wick", "llama.cpp", "openvino", "mistral.rs"], metavar="PEER")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each cell; the budget may allow fewer")
    parser.add_argument("--budget", type=float, default=25.0, help="minutes; installing is not counted")
    parser.add_argument("--timeout", type=int, default=240, help="seconds one peer may take for one cell")
    parser.add_argument("--wait", type=float, default=0.0, help="seconds to wait for a quiet machine before each run")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--wick", default=os.environ.get("WICK_BIN", ROOT / "target" / "release" / "wick"))
    parser.add_argument("--wick-args", default="", help="options added to `wick serve` and `wick bench`")
    parser.add_argument("--no-roofs", action="store_true", help="do not measure the machine's limits")
    parser.add_argument("--quick", action="store_true", help="small sizes, one model, one turn")
    parser.add_argument("--install", action="store_true", help="install the peers and stop")
    parser.add_argument("--render", type=pathlib.Path, metavar="JSON", help="print a recorded run's table and stop")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("peers.md"))
    args = parser.parse_args()
    if args.quick:
        args.repeats = 1
        args.models = args.models if args.models != MODELS else MODELS[:1]
    return args


def main():
    args = arguments()
    if args.render:
        print(table.document(json.loads(args.render.read_text())), end="")
        return
    chosen = peers.choose(args.peers, args)
    models = {} if args.install else {name_of(model): file_of(model, args.wick) for model in args.models}
    run = Run(args, chosen, models, {} if args.install or args.no_roofs else roofs(args.threads))
    run.install()
    if not args.install:
        run.began = time.monotonic()
        run.all()
        print(f"\n{args.out} and {args.out.with_suffix('.json')}")


if __name__ == "__main__":
    main()
