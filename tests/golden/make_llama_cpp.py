"""Writes logits/llama_cpp.json: how far llama.cpp is from transformers on the same files.

    PYTHONPATH=/tmp/llamacpp/llama_cpp_python-0.3.36 LLAMA_CPP_LIB_PATH=/tmp/llamacpp/build/bin \\
        python make_llama_cpp.py [alias ...] [--threads 2]

Uses llama-cpp-python 0.3.36's own bindings (ctypes) over the CPU library built from the llama.cpp it vendors
(Release, GGML_NATIVE=ON, no curl, no OpenSSL). Context parameters are llama.cpp's defaults except n_ctx and
n_threads. Every prompt + continuation of logits/<alias>.json is decoded teacher-forced in one batch, and the
log-prob of each given token (float64 log-softmax of llama.cpp's float32 logits) is compared with the golden's.
`greedy_ok` counts prompts where llama.cpp's own argmax follows the reference until its first near-tie.
`tokenizer_differs` names the texts of tokenizers/<alias>.json whose ids llama.cpp's tokenizer sees otherwise.
(Not called llama_cpp.py: that would hide the package of this name.)
"""

import argparse
import ctypes
import json
import os
import pathlib

import llama_cpp
import numpy

import reference


def load_model(path, vocab_only=False):
    parameters = llama_cpp.llama_model_default_params()
    parameters.vocab_only = vocab_only
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    assert model, f"llama.cpp cannot load {path}"
    return model


def tokenize(vocab, text, special):
    data = text.encode()
    room = (llama_cpp.llama_token * (len(data) + 16))()
    count = llama_cpp.llama_tokenize(vocab, data, len(data), room, len(room), False, special)
    assert count >= 0
    return list(room[:count])


def logprobs_of(context, vocab_size, ids):
    """Log-softmax rows for every position of `ids`, from one batch in a cleared context."""
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
    for index, token in enumerate(ids):
        batch.token[index] = token
        batch.pos[index] = index
        batch.n_seq_id[index] = 1
        batch.seq_id[index][0] = 0
        batch.logits[index] = 1
    batch.n_tokens = len(ids)
    assert llama_cpp.llama_decode(context, batch) == 0
    rows = []
    for index in range(len(ids)):
        pointer = llama_cpp.llama_get_logits_ith(context, index)
        address = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float))
        row = numpy.ctypeslib.as_array(address, shape=(vocab_size,)).astype(numpy.float64)
        rows.append(row - row.max() - numpy.log(numpy.exp(row - row.max()).sum()))
    llama_cpp.llama_batch_free(batch)
    return rows


def measure(alias, threads):
    path = reference.MODELS / f"{alias}.gguf"
    golden_path = reference.HERE / "logits" / f"{alias}.json"
    golden = json.loads(golden_path.read_text())
    model = load_model(path)
    vocab = llama_cpp.llama_model_get_vocab(model)
    vocab_size = llama_cpp.llama_vocab_n_tokens(vocab)
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx = 2048
    parameters.n_outputs_max = 2048
    parameters.n_outputs_max_per_seq = 2048
    parameters.n_threads = parameters.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(model, parameters)
    assert context
    of_ids, of_prompt, cases, greedy_ok = [], [], [], 0
    for case in golden["cases"]:
        prompt, ids = case["prompt_ids"], case["ids"]
        rows = logprobs_of(context, vocab_size, prompt + ids)
        given = [row[token] for row, token in zip(rows, (prompt + ids)[1:])]
        own_prompt = [abs(a - b) for a, b in zip(given, case["prompt_logprobs"])]
        own_ids = [abs(a - b) for a, b in zip(given[len(prompt) - 1 :], case["logprobs"])]
        assert len(own_ids) == len(ids)
        argmax = [int(row.argmax()) for row in rows[len(prompt) - 1 : -1]]
        same = next((i for i, (a, b) in enumerate(zip(argmax, ids)) if a != b), len(ids))
        tie = case["first_near_tie"] if case["first_near_tie"] is not None else len(ids)
        greedy_ok += same >= tie
        of_ids += own_ids
        of_prompt += own_prompt
        cases.append({"name": case["name"], "mean": round(float(numpy.mean(own_ids)), 6), "equal_tokens": same, "near_tie": case["first_near_tie"]})
    llama_cpp.llama_free(context)
    texts = json.loads((reference.HERE / "tokenizers" / f"{alias}.json").read_text())["cases"]
    differs = [t["name"] for t in texts if tokenize(vocab, t["text"], True) != t["special"]]
    differs_plain = [t["name"] for t in texts if tokenize(vocab, t["text"], False) != t["plain"]]
    llama_cpp.llama_model_free(model)
    result = {
        "model": alias,
        "model_sha256": reference.sha256(path),
        "golden_sha256": reference.sha256(golden_path),
        "mean_abs_difference": round(float(numpy.mean(of_ids)), 6),
        "max_abs_difference": round(float(numpy.max(of_ids)), 6),
        "prompt_mean_abs_difference": round(float(numpy.mean(of_prompt)), 6),
        "prompt_max_abs_difference": round(float(numpy.max(of_prompt)), 6),
        "all_mean_abs_difference": round(float(numpy.mean(of_prompt + of_ids)), 6),
        "tokens": len(of_ids),
        "prompt_tokens": len(of_prompt),
        "greedy_ok": int(greedy_ok),
        "prompts": len(cases),
        "tokenizer_differs": differs,
        "tokenizer_differs_plain": differs_plain,
        "cases": cases,
    }
    print(json.dumps({k: v for k, v in result.items() if k != "cases"}, indent=1), flush=True)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("alias", nargs="*", default=list(reference.ALIASES))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, None)
    llama_cpp.llama_backend_init()
    library = pathlib.Path(os.environ["LLAMA_CPP_LIB_PATH"]) / "libllama.so"
    target = reference.HERE / "logits" / "llama_cpp.json"
    known = {r["model"]: r for r in json.loads(target.read_text())["results"]} if target.exists() else {}
    for alias in options.alias:
        known[alias] = measure(alias, options.threads)
        made = {
            **reference.provenance(__file__, ()),
            "llama_cpp_python": llama_cpp.__version__,
            "libllama_sha256": reference.sha256(library.resolve()),
            "system": llama_cpp.llama_print_system_info().decode(),
            "build": "cmake -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF, CPU only",
        }
        reference.write_json(target, {"made_by": made, "results": list(known.values())})


if __name__ == "__main__":
    main()
