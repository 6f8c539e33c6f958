#!/usr/bin/env python3
"""Embeddings of many short texts in one call: wick beside sentence-transformers, in turns, on the same cores.

    python embeddings.py --model FOLDER [--wick target/release/wick] [--texts 256] [--rounds 7] [--threads N]

FOLDER holds all-MiniLM-L6-v2 (`wick pull --print-path all-minilm-l6-v2` prints it). wick is measured over HTTP, from
the request's text to the parsed vectors, as the official client asks for them (base64); sentence-transformers in this
process, from the list of texts to an array. Only one of the two works at a time. Prints the median of the rounds, and
how far the vectors are from each other.

    pip install sentence-transformers
"""

import argparse
import base64
import http.client
import json
import os
import random
import statistics
import subprocess
import time

import numpy

WORDS = (
    "the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which one "
    "you were her all she there would their we him been has when who will more no if out so said what up its about into "
    "than them can only other new some could time these two may then do first any my now such like our over man me even "
    "most made after also did many before must through back years where much your way well down should because each just "
    "those people how too little state good very make world still own see men work long get here between both life being "
    "under never day same another know while last might us great old year off come since against go came right used take"
).split()


def texts(count, seed=1):
    """Sentences of 4 to 24 words, as search queries and headlines have."""
    pick = random.Random(seed)
    return [" ".join(pick.choices(WORDS, k=pick.randint(4, 24))) + "." for _ in range(count)]


def start(binary, folder, port, threads, extra):
    command = [binary, "--log", "warn", "serve", folder, "--alias", "encoder", "--port", str(port), *extra]
    environment = dict(os.environ)
    if threads:
        command += ["--threads", str(threads)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    for _ in range(600):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return process
        except OSError:
            pass
        if process.poll() is not None:
            raise SystemExit("wick did not start")
        time.sleep(0.1)
    raise SystemExit("wick was not ready in a minute")


def ask(connection, inputs):
    body = json.dumps({"model": "encoder", "input": inputs, "encoding_format": "base64"})
    connection.request("POST", "/v1/embeddings", body, {"Content-Type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    if "data" not in answer:
        raise SystemExit(answer)
    return numpy.stack([numpy.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in answer["data"]])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--wick", default="target/release/wick")
    parser.add_argument("--model", required=True)
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--port", type=int, default=8391)
    options, extra = parser.parse_known_args()

    import torch
    from sentence_transformers import SentenceTransformer

    if options.threads:
        torch.set_num_threads(options.threads)
    model = SentenceTransformer(options.model, device="cpu")
    inputs = texts(options.texts)
    process = start(options.wick, options.model, options.port, options.threads, extra)
    try:
        connection = http.client.HTTPConnection("127.0.0.1", options.port, timeout=600)
        runs = {"sentence-transformers": lambda: model.encode(inputs), "wick": lambda: ask(connection, inputs)}
        results, seconds = {}, {name: [] for name in runs}
        for round_number in range(options.rounds + 1):
            for name, run in runs.items():
                began = time.perf_counter()
                results[name] = run()
                # The first round warms both up.
                if round_number:
                    seconds[name].append(time.perf_counter() - began)
    finally:
        process.terminate()
        process.wait()
    for name, times in seconds.items():
        print(f"{name:22} {statistics.median(times) * 1e3:8.1f} ms  (from {min(times) * 1e3:.1f} to {max(times) * 1e3:.1f})")
    reference, ours = results["sentence-transformers"], results["wick"]
    cosine = (reference * ours).sum(1) / numpy.linalg.norm(reference, axis=1) / numpy.linalg.norm(ours, axis=1)
    ratio = statistics.median(seconds["sentence-transformers"]) / statistics.median(seconds["wick"])
    threads = torch.get_num_threads()
    print(f"wick is {ratio:.2f} times as fast; 1 - cosine at most {1 - cosine.min():.2e}; torch {torch.__version__}, {threads} threads")


if __name__ == "__main__":
    main()
