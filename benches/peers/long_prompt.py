#!/usr/bin/env python3
"""What a long prompt does to the answers beside it: 8 clients read 600 tokens each, a prompt of 2,000 tokens arrives.

    benches/peers/long_prompt.py [--wick target/release/wick] [--model smollm2-135m] [--servers 3] [--rounds 3]

For each round it prints the 99th percentile of the time between two tokens of the 8, its median, and their ratio. The
rounds of a server fill its KV cache: from the second or third on it is memory that the machine has given before.
"""
import argparse
import json
import pathlib
import selectors
import socket
import statistics
import time

import load
import peers
import run

CLIENTS, OUTPUT, LONG = 8, 600, 2000
# So much later the long prompt arrives: the answers are under way, and far from their ends.
LATER_SECONDS = 2.0


class Stream:
    """A streamed completion of which only the times are noted at which something comes: the cores belong to the server."""

    def __init__(self, selector, port, model, prompt, output):
        body = {"model": model, "prompt": prompt, "max_tokens": output, "temperature": 0, "ignore_eos": True}
        body = json.dumps(body | {"stream": True}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.sent, self.times, self.last = time.perf_counter(), [], b""
        self.socket.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        selector.register(self.socket, selectors.EVENT_READ, self)

    def read(self, selector):
        came = self.socket.recv(1 << 16)
        if b"data: {" in came:
            self.times.append(time.perf_counter())
        if not came:
            selector.unregister(self.socket)
            self.socket.close()
            if b"data: [DONE]" not in self.last:
                raise RuntimeError(f"an answer ended with {self.last[-300:]!r}")
        self.last = (self.last + came)[-1000:]


def one_round(port, model, seed):
    """p99 and median of the time between tokens of those who wait beside the long prompt, and its own first token."""
    selector, long = selectors.DefaultSelector(), None
    answers = [Stream(selector, port, model, prompt, OUTPUT) for prompt in load.prompts(seed, CLIENTS, 64)]
    while selector.get_map() or long is None:
        for key, _ in selector.select(0.01):
            key.data.read(selector)
        if long is None and time.perf_counter() > answers[0].sent + LATER_SECONDS:
            long = Stream(selector, port, model, load.text(LONG, f"{seed} long"), 2)
    if any(answer.times[-1] < long.times[0] for answer in answers):
        raise RuntimeError("an answer ended before the long prompt had its first token")
    gaps = [b - a for answer in answers for a, b in zip(answer.times, answer.times[1:])]
    return load.quantile(gaps, 0.99), statistics.median(gaps), long.times[0] - long.sent


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wick", default=run.ROOT / "target/release/wick", type=pathlib.Path)
    parser.add_argument("--wick-args", default="--kv-memory 400MiB --speculation off")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--servers", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    wick, file = peers.Wick(args), run.file_of(args.model, args.wick)
    wick.setup()
    for number in range(args.servers):
        with wick.running(file, {}) as server:
            model = wick.ready(server)
            for turn in range(args.rounds):
                p99, median, first = one_round(wick.port, model, f"{number} {turn}")
                print(
                    f"server {number + 1}, round {turn + 1}: p99 {p99 * 1e3:.1f} ms, median {median * 1e3:.1f} ms,"
                    f" ratio {p99 / median:.2f}; the long prompt's first token after {first:.2f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
