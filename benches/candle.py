#!/usr/bin/env python3
"""wick beside Candle's own quantized model: the same file, the same threads, one sequence, runs taking turns.

    benches/candle.py [--rounds N] [--threads N] [--prefill TOKENS] [--decode TOKENS] MODEL...

Builds both (release), fetches the models through `wick pull`, and prints medians and ratios.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
WICK = ROOT / "target" / "release" / "wick"
CANDLE = ROOT / "target" / "release" / "candle-bench"


def build():
    subprocess.run(["cargo", "build", "--release"], cwd=ROOT, check=True)
    manifest = ROOT / "benches" / "candle" / "Cargo.toml"
    env = dict(os.environ, CARGO_TARGET_DIR=str(ROOT / "target"))
    subprocess.run(["cargo", "build", "--release", "--manifest-path", manifest], env=env, check=True)


def wick(model, args):
    command = [WICK, "--log", "error", "bench", model, "--batch", "1", "--repeat", "1", "--json", "-"]
    command += ["--prefill", str(args.prefill), "--decode", str(args.decode), "--threads", str(args.threads)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(out)["rows"][0]


def candle(path, args):
    # Candle has two pools, each with its own variable.
    env = dict(os.environ, CANDLE_NUM_THREADS=str(args.threads), RAYON_NUM_THREADS=str(args.threads))
    command = [CANDLE, path, str(args.prefill), str(args.decode)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--decode", type=int, default=64)
    args = parser.parse_args()
    build()
    print(f"{args.threads} threads, batch 1, medians of {args.rounds} interleaved runs, tok/s")
    print(f"{'model':<22}{'':<10}{'wick':>9}{'candle':>9}{'ratio':>8}", flush=True)
    for model in args.models:
        pulled = subprocess.run([WICK, "pull", "--print-path", model], check=True, capture_output=True, text=True)
        path = pulled.stdout.splitlines()[0]
        rounds = [(wick(model, args), candle(path, args)) for _ in range(args.rounds)]
        for phase in ("prefill", "decode"):
            ours, theirs = (statistics.median(r[i][f"{phase}_tokens_per_second"] for r in rounds) for i in (0, 1))
            print(f"{model:<22}{phase:<10}{ours:>9.1f}{theirs:>9.1f}{ours / theirs:>7.2f}x", flush=True)


if __name__ == "__main__":
    main()
