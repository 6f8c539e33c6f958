"""The load every server gets: seeded prompts, a closed loop of clients, and the figures that come of it.

Figures as vLLM's `benchmark_serving` defines them: output tokens a second = all generated tokens over the time from the
first request to the last answer; TTFT = from sending a request to its first token; ITL = the time between two tokens.
"""
import dataclasses
import http.client
import json
import queue
import random
import statistics
import threading
import time

# Each is one token in the vocabularies of the measured models when a space precedes it.
WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service friend "
    "father power hour game line end member law car city community name president team minute idea body information "
    "back parent face level office door health person art war history party result change morning reason research girl "
    "guy moment air teacher force education"
).split()


def text(tokens, seed):
    """About `tokens` tokens, different for each seed."""
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(tokens))


def prompts(seed, count, tokens, shared=0):
    """`count` prompts of about `tokens` tokens; the first `shared` of them are the same in all prompts."""
    begin = text(shared, f"{seed} shared") + " " if shared else ""
    return [begin + text(tokens - shared, f"{seed} {i}") for i in range(count)]


@dataclasses.dataclass
class Answer:
    """Times are `time.perf_counter()` of this process, in seconds, one for each event that carried text."""

    sent: float
    times: list = dataclasses.field(default_factory=list)
    prompt_tokens: int = 0
    output_tokens: int = 0


class Refused(RuntimeError):
    """The server answered with this status instead of a completion."""

    def __init__(self, status, body):
        super().__init__(f"HTTP {status}: {body}")
        self.status = status


def over_http(port, model, output):
    """A function that sends one prompt to an OpenAI-compatible server on this port and returns its `Answer`."""

    def send(prompt):
        body = {"model": model, "prompt": prompt, "max_tokens": output, "temperature": 0, "ignore_eos": True}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=900)
        answer = Answer(time.perf_counter())
        connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise Refused(response.status, response.read(300).decode(errors="replace"))
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            now = time.perf_counter()
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(str(event["error"]))
            for choice in event.get("choices", []):
                # The event that only closes the answer is no token, unless nothing was to be seen before it.
                if choice.get("text") or choice.get("finish_reason") is None or not answer.times:
                    answer.times.append(now)
            if event.get("usage"):
                answer.prompt_tokens = event["usage"]["prompt_tokens"]
                answer.output_tokens = event["usage"]["completion_tokens"]
        connection.close()
        return answer

    return send


def closed_loop(send, waiting, clients, timeout):
    """`clients` threads, each sending the next prompt as soon as its answer is complete. Returns answers and seconds.

    Raises what a client ran into, and `TimeoutError` after `timeout` seconds (the clients end when their server does).
    """
    left = queue.SimpleQueue()
    for prompt in waiting:
        left.put(prompt)
    answers, errors = [], []

    def client():
        while not errors:
            try:
                answers.append(send(left.get_nowait()))
            except queue.Empty:
                return
            except Exception as e:  # whatever it was, the cell has no figure, and the row says why
                errors.append(e)

    began = time.perf_counter()
    threads = [threading.Thread(target=client, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, began + timeout - time.perf_counter()))
    if any(thread.is_alive() for thread in threads):
        raise TimeoutError(f"not finished after {timeout} s")
    if errors:
        raise errors[0]
    return answers, time.perf_counter() - began


def quantile(values, share):
    """The value below which `share` of them lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def figures(answers, seconds, output):
    """What a cell reports. An answer of another length than asked for makes the comparison void, so it is an error."""
    lengths = {a.output_tokens for a in answers}
    if lengths != {output}:
        raise RuntimeError(f"{output} tokens were asked for, the answers have {sorted(lengths)}")
    first = [a.times[0] - a.sent for a in answers]
    gaps = [b - a for answer in answers for a, b in zip(answer.times, answer.times[1:])] or [0.0]
    return {
        "tokens_per_second": sum(a.output_tokens for a in answers) / seconds,
        "seconds": seconds,
        "ttft_p50": quantile(first, 0.5),
        "ttft_p95": quantile(first, 0.95),
        "itl_p50": quantile(gaps, 0.5),
        "itl_p95": quantile(gaps, 0.95),
        "prompt_tokens": statistics.median(a.prompt_tokens for a in answers),
    }
