"""Drives mistral.rs in this process: its Python package has the engine, but no HTTP server.

Runs in the peers' virtual environment: drive_mistralrs.py SPEC, SPEC being JSON (see peers.InProcess). Prints JSON.
"""
import json
import pathlib
import sys
import time

import mistralrs

import load
import process


def runner(spec):
    file = pathlib.Path(spec["file"])
    which = mistralrs.Which.GGUF(quantized_model_id=str(file.parent), quantized_filename=file.name)
    # The tokenizer comes from the GGUF file; nothing is asked of a hub.
    return mistralrs.Runner(which=which, max_seqs=32, token_source="none")


def sender(engine, output):
    """A function that sends one prompt and returns its `Answer`; for `load.closed_loop`."""

    def send(prompt):
        # A text instead of messages is a prompt that needs no chat template.
        request = mistralrs.ChatCompletionRequest(
            messages=prompt, model="default", max_tokens=output, temperature=0.0, top_k=1, stream=True, ignore_eos=True
        )
        answer = load.Answer(time.perf_counter())
        for chunk in engine.send_chat_completion_request(request):
            now = time.perf_counter()
            if chunk.choices and (chunk.choices[0].delta.content or not answer.times):
                answer.times.append(now)
            if chunk.usage:
                answer.prompt_tokens, answer.output_tokens = chunk.usage.prompt_tokens, chunk.usage.completion_tokens
        return answer

    return send


def engine_cells(engine, spec):
    """Tokens a second of prefill and of decode at each batch; decode counts while all sequences decode.

    Each figure is printed as soon as it is known: a slow peer is ended before the last one.
    """

    def run(name, batch, prompt, output):
        waiting = load.prompts(f"{spec['seed']} {name}", batch, prompt)
        began = time.perf_counter()
        answers, _ = load.closed_loop(sender(engine, output), waiting, batch, spec["timeout"])
        first, end = max(a.times[0] for a in answers), min(a.times[-1] for a in answers)
        later = sum(first < t <= end for a in answers for t in a.times)
        return first - began, later / (end - first) if later else None

    run("warm-up", 1, 16, 2)
    # One sequence first: it takes the least time.
    for batch, output in spec["decode"]:
        show(**{f"decode-{batch}": run(f"decode {batch}", batch, spec["context"], output)[1]})
        if batch == 1:
            show(prefill=spec["prefill"] / run("prefill", 1, spec["prefill"], 1)[0])


def served(engine, spec):
    send = sender(engine, spec["output"])
    sender(engine, 2)(load.text(16, "warm-up"))
    waiting = load.prompts(spec["seed"], spec["requests"], spec["input"], spec["shared"])
    show(**load.figures(*load.closed_loop(send, waiting, spec["clients"], spec["timeout"]), spec["output"]))


def start(engine, _):
    sender(engine, 1)("Hello")


def show(**figures):
    print(json.dumps(figures), flush=True)


def main():
    spec = json.loads(sys.argv[1])
    {"engine": engine_cells, "served": served, "start": start}[spec["task"]](runner(spec), spec)
    show(peak_mib=process.peak_mib("self"))


if __name__ == "__main__":
    main()
