"""Drives OpenVINO GenAI's ContinuousBatchingPipeline in this process: the package has no HTTP server.

Runs in the peers' virtual environment: drive_openvino.py SPEC, SPEC being JSON (see peers.InProcess). Prints JSON.
"""
import collections
import json
import random
import sys
import time

import numpy
import openvino
import openvino_genai

import load
import process


class Pipeline:
    """Requests go in as text or token ids; `step` computes and stamps the tokens that came out."""

    def __init__(self, spec):
        config = openvino_genai.SchedulerConfig()
        # As many tokens in a step as the others have by default. Prefix caching is for prompts that share something.
        config.max_num_batched_tokens = 512
        config.enable_prefix_caching = spec["task"] == "served" and spec["shared"] > 0
        config.cache_size = spec["cache_gib"]
        properties = {"INFERENCE_NUM_THREADS": spec["threads"]}
        if spec["kv"] != "default":
            properties["KV_CACHE_PRECISION"] = spec["kv"]
        self.pipeline = openvino_genai.ContinuousBatchingPipeline(spec["file"], config, "CPU", properties)
        self.running = []
        self.count = 0

    def add(self, prompt, output):
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = output
        config.ignore_eos, config.do_sample, config.apply_chat_template = True, False, False
        answer = load.Answer(time.perf_counter())
        if isinstance(prompt, list):
            prompt = openvino.Tensor(numpy.array([prompt], dtype="int64"))
        self.running.append((self.pipeline.add_request(self.count, prompt, config), answer))
        self.count += 1
        return answer

    def step(self):
        """Computes one step. Returns the answers that it completed."""
        self.pipeline.step()
        now, finished, running = time.perf_counter(), [], []
        for handle, answer in self.running:
            while handle.can_read():
                for part in handle.read().values():
                    answer.output_tokens += len(part.generated_ids)
                    answer.times += [now] * len(part.generated_ids)
            if handle.get_status() == openvino_genai.GenerationStatus.RUNNING:
                running.append((handle, answer))
            else:
                answer.prompt_tokens = handle.get_perf_metrics().get_num_input_tokens()
                finished.append(answer)
        self.running = running
        return finished


def engine(pipeline, spec):
    """Tokens a second of prefill and of decode at each batch; decode counts while all sequences decode.

    Each figure is printed as soon as it is known: a slow peer is ended before the last one.
    """
    rng = random.Random(spec["seed"])

    def run(batch, prompt, output):
        began = time.perf_counter()
        answers = [pipeline.add([rng.randrange(1000, 20000) for _ in range(prompt)], output) for _ in range(batch)]
        while pipeline.running:
            pipeline.step()
        first = max(a.times[0] for a in answers)
        end = min(a.times[-1] for a in answers)
        later = sum(first < t <= end for a in answers for t in a.times)
        return first - began, later / (end - first) if later else None

    run(1, 16, 2)
    show(prefill=spec["prefill"] / run(1, spec["prefill"], 1)[0])
    for batch, output in spec["decode"]:
        run(batch, 8, 3)
        show(**{f"decode-{batch}": run(batch, spec["context"], output)[1]})


def served(pipeline, spec):
    """A closed loop, as `load.closed_loop` runs it against a server."""
    pipeline.add(load.text(16, "warm-up"), 2)
    while pipeline.running:
        pipeline.step()
    waiting = collections.deque(load.prompts(spec["seed"], spec["requests"], spec["input"], spec["shared"]))
    began, answers = time.perf_counter(), []
    while waiting or pipeline.running:
        while waiting and len(pipeline.running) < spec["clients"]:
            pipeline.add(waiting.popleft(), spec["output"])
        answers += pipeline.step()
    show(**load.figures(answers, time.perf_counter() - began, spec["output"]))


def start(pipeline, _):
    pipeline.add("Hello", 1)
    while pipeline.running:
        pipeline.step()


def show(**figures):
    print(json.dumps(figures), flush=True)


def main():
    spec = json.loads(sys.argv[1])
    {"engine": engine, "served": served, "start": start}[spec["task"]](Pipeline(spec), spec)
    show(peak_mib=process.peak_mib("self"))


if __name__ == "__main__":
    main()
