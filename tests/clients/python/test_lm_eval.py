"""lm-eval's API models on tasks of this folder. LM_EVAL is its command; no data set and no tokenizer is fetched: the tasks
are files, and it tokenizes with wick's own routes."""

import json
import os
import pathlib
import subprocess

import pytest
from conftest import KEY, URL

HERE = pathlib.Path(__file__).parent
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def evaluate(folder, model, kind, path, tasks, *options, **settings):
    """Runs the harness; its results, and its samples by task."""
    settings = {"model": model, "base_url": f"{URL}/v1/{path}", "max_retries": 1, **settings}
    command = [os.environ.get("LM_EVAL", "lm-eval"), "run", "--model", kind]
    command += ["--model_args", ",".join(f"{name}={value}" for name, value in settings.items())]
    command += ["--tasks", ",".join(tasks), "--include_path", "lm_eval_tasks", "--output_path", str(folder), "--log_samples", *options]
    environment = {**os.environ, **OFFLINE, "OPENAI_API_KEY": KEY, "HF_HOME": str(folder / "hf")}
    subprocess.run(command, cwd=HERE, env=environment, check=True, timeout=300)
    [results] = folder.rglob("results_*.json")
    samples = {}
    for task in tasks:
        [lines] = folder.rglob(f"samples_{task}_*.jsonl")
        samples[task] = [json.loads(line) for line in lines.read_text().splitlines()]
    return json.loads(results.read_text())["results"], samples


@pytest.fixture(scope="module")
def completions(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("completions")
    tasks = ["wick_capitals", "wick_counting", "wick_prose"]
    # Prompts are token ids, in batches, two requests at once.
    return evaluate(folder, model, "local-completions", "completions", tasks, "--batch_size", "4", num_concurrent=2)


def score(http, model, ids, start):
    """The log-probability of `ids` from `start` on, each given those before, and whether each is the likeliest."""
    body = {"model": model, "prompt": ids, "echo": True, "max_tokens": 0, "logprobs": 1, "temperature": 0}
    found = http.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]
    values, tops = found["token_logprobs"], found["top_logprobs"]
    assert len(values) == len(ids)
    return sum(values[start:]), all(value == max(top.values()) for value, top in zip(values[start:], tops[start:]))


def ids_of(http, model, text):
    body = {"model": model, "prompt": text, "add_special_tokens": False}
    return http.post("/tokenize", json=body).json()["tokens"]


def test_multiple_choice(completions, http, model):
    results, samples = completions
    assert results["wick_capitals"]["acc,none"] >= 0.6
    assert len(samples["wick_capitals"]) == 5
    for sample in samples["wick_capitals"]:
        for asked, answered in zip(sample["arguments"].values(), sample["filtered_resps"], strict=True):
            context, continuation = asked["arg_0"], asked["arg_1"]
            start, ids = len(ids_of(http, model, context)), ids_of(http, model, context + continuation)
            total, greedy = score(http, model, ids, start)
            assert float(answered[0]) == pytest.approx(total, abs=1e-4), asked
            assert answered[1] in (greedy, str(greedy)), asked


def test_whole_texts(completions, http, model):
    """Rolling: from the first token on, after the one that begins a text by /tokenizer_info."""
    _, samples = completions
    info = http.get("/tokenizer_info", params={"model": model}).json()
    [begin] = ids_of(http, model, info["bos_token"] or info["eos_token"])
    for sample in samples["wick_prose"]:
        total, _ = score(http, model, [begin, *ids_of(http, model, sample["doc"]["text"])], 1)
        assert float(sample["filtered_resps"][0]) == pytest.approx(total, abs=1e-4)


def test_generation(completions, client, model):
    results, samples = completions
    assert results["wick_counting"]["exact_match,stripped"] == 1
    for sample in samples["wick_counting"]:
        ask = {"prompt": sample["doc"]["start"], "max_tokens": 8, "temperature": 0, "stop": [","]}
        [[answered]] = sample["resps"]
        assert answered == client.completions.create(model=model, **ask).choices[0].text


def test_chat(tmp_path, client, model):
    options = ["--apply_chat_template"]
    _, samples = evaluate(tmp_path, model, "local-chat-completions", "chat/completions", ["wick_counting"], *options)
    assert len(samples["wick_counting"]) == 2
    for sample in samples["wick_counting"]:
        messages = [{"role": "user", "content": sample["doc"]["start"]}]
        ask = {"messages": messages, "max_tokens": 8, "temperature": 0, "stop": [","]}
        [[answered]] = sample["resps"]
        assert answered == client.chat.completions.create(model=model, **ask).choices[0].message.content
