#!/usr/bin/env python3
"""Compares a running server with a logits golden. Python standard library only.

    python compare.py --url http://127.0.0.1:8080 --model smollm2-135m --golden logits/smollm2-135m.json

For each prompt of the golden it asks `/v1/completions` twice: once with prompt + reference continuation as
token ids, `echo` and `logprobs`, which gives the server's log-prob of every given token, and once for a greedy
continuation. It prints the mean and largest absolute difference of log-probs (continuation tokens, and prompt
tokens), and how many greedy continuations equal the reference up to its first near-tie. `/tokenize` is asked
for the ids of the prompt's text. Exit code 1 when the mean exceeds --max-mean, when a greedy continuation
leaves the reference before a near-tie (unless --allow-divergent N), or when prompt ids differ.
"""

import argparse
import concurrent.futures
import json
import pathlib
import sys
import urllib.error
import urllib.request

from prompts import CHAT


class Server:
    def __init__(self, url: str, model: str, key: str | None, timeout: float):
        self.url, self.model, self.key, self.timeout = url.rstrip("/"), model, key, timeout

    def post(self, path: str, body: dict) -> dict:
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        data = json.dumps({"model": self.model, **body}).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{path}: HTTP {error.code}: {error.read().decode(errors='replace')}") from None


def forced_logprobs(server: Server, ids: list[int], max_tokens: int) -> list[float]:
    """The server's log-prob of ids[1:], each given all ids before it."""
    reply = server.post(
        "/v1/completions",
        {"prompt": ids, "echo": True, "max_tokens": max_tokens, "logprobs": 5, "temperature": 0, "return_token_ids": True},
    )
    choice = reply["choices"][0]
    found = choice["logprobs"]["token_logprobs"][: len(ids)]
    echoed = choice.get("prompt_token_ids")
    if echoed is not None and echoed != ids:
        raise RuntimeError("the server echoes other prompt ids than it was given")
    if len(found) != len(ids) or found[0] is not None or any(value is None for value in found[1:]):
        raise RuntimeError(f"expected {len(ids)} prompt log-probs, the first null; got {len(found)}: {found[:3]} …")
    return found[1:]


def greedy(server: Server, ids: list[int], steps: int) -> tuple[list[int], list[float]]:
    reply = server.post(
        "/v1/completions",
        {"prompt": ids, "max_tokens": steps, "temperature": 0, "ignore_eos": True, "logprobs": 1, "return_token_ids": True},
    )
    choice = reply["choices"][0]
    return choice["token_ids"], choice["logprobs"]["token_logprobs"]


def tokenized(server: Server, case: dict) -> list[int]:
    """Ids of the prompt's text; a chat goes in as messages, since control tokens in plain text stay text."""
    if case["name"] in CHAT and case.get("text", "").find("<|im_start|>") >= 0:
        return server.post("/tokenize", {"messages": CHAT[case["name"]], "add_generation_prompt": True})["tokens"]
    return server.post("/tokenize", {"prompt": case["text"], "add_special_tokens": True})["tokens"]


def check(server: Server, case: dict, options) -> dict:
    prompt, ids = case["prompt_ids"], case["ids"]
    forced = forced_logprobs(server, prompt + ids, options.echo_max_tokens)
    of_prompt, of_ids = forced[: len(prompt) - 1], forced[len(prompt) - 1 :]
    got_ids, got_logprobs = greedy(server, prompt, len(ids))
    until = case["first_near_tie"] if case["first_near_tie"] is not None else len(ids)
    same = next((i for i, (a, b) in enumerate(zip(got_ids, ids)) if a != b), min(len(got_ids), len(ids)))
    result = {
        "name": case["name"],
        "prompt_tokens": len(prompt),
        "differences": [abs(a - b) for a, b in zip(of_ids, case["logprobs"], strict=True)],
        "prompt_differences": [abs(a - b) for a, b in zip(of_prompt, case["prompt_logprobs"], strict=True)],
        "greedy_differences": [abs(a - b) for a, b in zip(got_logprobs[:same], case["logprobs"][:same])],
        "near_tie": case["first_near_tie"],
        "equal_tokens": same,
        "greedy_ok": len(got_ids) == len(ids) and same >= until,
        "greedy_identical": got_ids == ids,
        "prompt_ids_ok": None,
    }
    if not options.no_tokenize and "text" in case:
        result["prompt_ids_ok"] = tokenized(server, case) == prompt
    return result


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--model", help="model name to ask for (default: the golden's)")
    parser.add_argument("--golden", required=True, type=pathlib.Path)
    parser.add_argument("--max-mean", type=float, default=0.02, help="largest accepted mean absolute difference")
    parser.add_argument("--allow-divergent", type=int, default=0, help="continuations that may leave the reference early")
    parser.add_argument("--no-tokenize", action="store_true", help="do not compare prompt ids through /tokenize")
    parser.add_argument("--echo-max-tokens", type=int, default=0, choices=(0, 1), help="max_tokens of the echo request")
    parser.add_argument("--concurrency", type=int, default=1, help="prompts in flight at once")
    parser.add_argument("--only", nargs="*", help="names of the prompts to run")
    parser.add_argument("--api-key")
    parser.add_argument("--timeout", type=float, default=600.0)
    parser.add_argument("--output", type=pathlib.Path, help="write the figures as JSON")
    options = parser.parse_args()
    golden = json.loads(options.golden.read_text())
    server = Server(options.url, options.model or golden["model"], options.api_key, options.timeout)
    cases = [case for case in golden["cases"] if not options.only or case["name"] in options.only]
    with concurrent.futures.ThreadPoolExecutor(options.concurrency) as pool:
        results = list(pool.map(lambda case: check(server, case, options), cases))

    print(f"{'prompt':14} {'tokens':>6} {'mean':>10} {'max':>10} {'prompt mean':>12} {'greedy equal':>13} {'ids':>5}")
    for r in results:
        tie = "" if r["near_tie"] is None else f" (tie at {r['near_tie']})"
        ids = {True: "same", False: "DIFF", None: "-"}[r["prompt_ids_ok"]]
        print(
            f"{r['name']:14} {r['prompt_tokens']:6} {mean(r['differences']):10.6f} {max(r['differences']):10.6f} "
            f"{mean(r['prompt_differences']):12.6f} {r['equal_tokens']:10}{'' if r['greedy_ok'] else ' !!'}{tie:>3} {ids:>5}"
        )
    every = [d for r in results for d in r["differences"]]
    every_prompt = [d for r in results for d in r["prompt_differences"]]
    summary = {
        "model": golden["model"],
        "golden_sha256_of_model": golden["made_by"].get("model_sha256"),
        "prompts": len(results),
        "tokens": len(every),
        "mean_abs_difference": mean(every),
        "max_abs_difference": max(every),
        "prompt_mean_abs_difference": mean(every_prompt),
        "prompt_max_abs_difference": max(every_prompt, default=0.0),
        "greedy_ok": sum(r["greedy_ok"] for r in results),
        "greedy_identical": sum(r["greedy_identical"] for r in results),
        "prompt_ids_differ": [r["name"] for r in results if r["prompt_ids_ok"] is False],
    }
    print(json.dumps(summary, indent=2))
    if options.output:
        slim = [{k: v for k, v in r.items() if not k.endswith("differences")} | {"mean": mean(r["differences"])} for r in results]
        options.output.write_text(json.dumps({**summary, "cases": slim}, indent=1) + "\n")
    divergent = summary["prompts"] - summary["greedy_ok"]
    failed = []
    if summary["mean_abs_difference"] > options.max_mean:
        failed.append(f"mean difference {summary['mean_abs_difference']:.6f} exceeds {options.max_mean}")
    if divergent > options.allow_divergent:
        failed.append(f"{divergent} greedy continuations leave the reference before a near-tie")
    if summary["prompt_ids_differ"]:
        failed.append(f"prompt ids differ: {summary['prompt_ids_differ']}")
    for line in failed:
        print("FAILED:", line, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
