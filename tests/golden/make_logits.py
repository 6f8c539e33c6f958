"""Writes logits/<alias>.json: greedy continuations and log-probabilities by transformers in float32.

    python make_logits.py [alias ...] [--threads 1]

Weights: the GGUF file, dequantised to float32 by transformers (`gguf_file=`; the 1.5B model tensor by tensor
into transformers' model, to save memory), eager attention, no cache in the recorded pass. Continuations are found with a padded batch, then every prompt + continuation goes through
one unpadded forward pass, which gives all recorded numbers; each chosen token must be that pass's argmax.

Per prompt: `prompt_ids` (with BOS where the model adds it); `prompt_logprobs[i]` of prompt_ids[i + 1];
`ids` 48 greedy tokens (EOS ignored) with `logprobs`; `runner_up` [id, logprob] per position; `first_near_tie`
the first position whose gap to the runner-up is below 0.05 (null if none); `top` the 20 best at 3 positions.
"""

import argparse

import torch

import reference
from prompts import prompts

STEPS = 48
NEAR_TIE = 0.05
TOP_AT = (0, 16, 47)
SPARING_ABOVE = 800_000_000  # bytes of a GGUF file


# GGUF names of a Qwen2 layer (no tensor is permuted or offset in this family).
QWEN2_NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


@torch.no_grad()
def load_sparingly(path):
    """A Qwen2 GGUF tensor by tensor: transformers' own GGUF loading needs twice the model's float32 size."""
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name)
    config.dtype = torch.float32
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    left = dict(model.named_parameters())
    outer = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    for tensor in GGUFReader(str(path)).tensors:
        stem, kind = tensor.name.rsplit(".", 1)
        if stem.startswith("blk."):
            _, layer, part = stem.split(".")
            name = f"model.layers.{layer}.{QWEN2_NAMES[part]}.{kind}"
        else:
            name = f"{outer[stem]}.{kind}"
        left.pop(name).copy_(torch.from_numpy(dequantize(tensor.data, tensor.tensor_type)))
    assert not left, f"not in the file: {sorted(left)}"
    return model


def load(path):
    """The GGUF's model in float32, checked against the `gguf` package's own dequantisation."""
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from transformers import AutoModelForCausalLM

    if path.name.startswith("qwen") and path.stat().st_size > SPARING_ABOVE:
        return load_sparingly(path)
    model = AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tensors = {tensor.name: tensor for tensor in GGUFReader(str(path)).tensors}
    head = "output.weight" if "output.weight" in tensors else "token_embd.weight"
    gemma = 1.0 if model.config.model_type.startswith("gemma") else 0.0  # GGUF stores gemma's norms plus one
    for name, ours, offset in (
        ("token_embd.weight", model.get_input_embeddings().weight, 0.0),
        (head, model.get_output_embeddings().weight, 0.0),
        ("blk.1.ffn_down.weight", model.model.layers[1].mlp.down_proj.weight, 0.0),
        ("output_norm.weight", model.model.norm.weight, gemma),
    ):
        theirs = torch.from_numpy(dequantize(tensors[name].data, tensors[name].tensor_type)).float() - offset
        assert (theirs - ours).abs().max().item() < 1e-6, f"{name} was not loaded as stored"
    return model


@torch.no_grad()
def continue_greedily(model, prompt_ids: list[list[int]], steps: int) -> list[list[int]]:
    """Greedy continuations of left-padded prompts; EOS is an ordinary token."""
    width = max(map(len, prompt_ids))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompt_ids])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompt_ids])
    out = model.generate(
        input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=steps, min_new_tokens=steps,
        eos_token_id=None, pad_token_id=0, repetition_penalty=1.0, use_cache=True,
    )  # fmt: skip
    return out[:, width:].tolist()


@torch.no_grad()
def record(model, name, text, prompt, ids):
    """All numbers of one prompt from one unpadded pass; repairs a choice that padding rounded differently."""
    while True:
        logits = model(input_ids=torch.tensor([prompt + ids]), use_cache=False).logits[0].float()
        logprobs = torch.log_softmax(logits, dim=-1)
        tail = logprobs[len(prompt) - 1 : -1]
        wrong = (tail.argmax(-1) != torch.tensor(ids)).nonzero()
        if len(wrong) == 0:
            break
        at = wrong[0].item()
        print(f"  {name}: position {at} repaired", flush=True)
        kept = ids[:at] + [tail[at].argmax().item()]
        rest = STEPS - len(kept)
        ids = kept + (continue_greedily(model, [prompt + kept], rest)[0] if rest else [])
    rounded = lambda values: [round(value, 6) for value in values]  # noqa: E731
    best = tail.topk(20, dim=-1)
    chosen = tail.gather(1, torch.tensor(ids)[:, None])[:, 0]
    gaps = (best.values[:, 0] - best.values[:, 1]).tolist()
    known = torch.tensor(prompt[1:], dtype=torch.long)[:, None]
    return {
        "name": name,
        "text": text,
        "prompt_ids": prompt,
        "prompt_logprobs": rounded(logprobs[: len(prompt) - 1].gather(1, known)[:, 0].tolist()),
        "ids": ids,
        "logprobs": rounded(chosen.tolist()),
        "runner_up": [[i, round(v, 6)] for i, v in zip(best.indices[:, 1].tolist(), best.values[:, 1].tolist())],
        "first_near_tie": next((i for i, gap in enumerate(gaps) if gap < NEAR_TIE), None),
        "top": {
            str(at): [[i, round(v, 6)] for i, v in zip(best.indices[at].tolist(), best.values[at].tolist())]
            for at in TOP_AT
        },
    }


def batches(names: list[str], encoded: dict[str, list[int]]):
    """Groups of prompts of similar length (names come sorted by it), so that padding costs little."""
    batch = []
    for name in names:
        if batch and len(encoded[name]) > 2 * len(encoded[batch[0]]) + 40:
            yield batch
            batch = []
        batch.append(name)
    yield batch


def make(alias: str) -> None:
    path = reference.MODELS / f"{alias}.gguf"
    made = reference.provenance(__file__, ("transformers", "torch", "tokenizers", "gguf", "accelerate"), path)
    fields = reference.read_fields(path)
    tokenizer = reference.upstream_tokenizer(fields)
    render = None
    if "tokenizer.chat_template" in fields:
        from transformers import PreTrainedTokenizerFast

        hf = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
        render = lambda said: hf.apply_chat_template(  # noqa: E731
            said, chat_template=fields["tokenizer.chat_template"], add_generation_prompt=True, tokenize=False
        )
    texts = prompts(render)
    bos = [fields["tokenizer.ggml.bos_token_id"]] if fields.get("tokenizer.ggml.add_bos_token") else []
    encoded = {name: bos + reference.encode(tokenizer, text, special=True) for name, text in texts.items()}
    model = load(path)
    names = sorted(encoded, key=lambda name: len(encoded[name]))
    continuations = {}
    for batch in batches(names, encoded):
        for name, ids in zip(batch, continue_greedily(model, [encoded[n] for n in batch], STEPS)):
            continuations[name] = ids
    cases = []
    for name, text in texts.items():
        cases.append(record(model, name, text, encoded[name], continuations[name]))
        print(f"  {name}: {len(encoded[name])} tokens -> {tokenizer.decode(cases[-1]['ids'])[:90]!r}", flush=True)
    reference.write_json(
        reference.HERE / "logits" / f"{alias}.json",
        {
            "made_by": {
                **made,
                "prompts_sha256": reference.sha256(reference.HERE / "prompts.py"),
                "threads": torch.get_num_threads(),
                "attention": "eager",
                "dtype": "float32",
            },
            "model": alias,
            "steps": STEPS,
            "near_tie": NEAR_TIE,
            "bos": bos[0] if bos else None,
            "cases": cases,
        },
    )
    print(alias, "near ties at", {c["name"]: c["first_near_tie"] for c in cases if c["first_near_tie"] is not None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("alias", nargs="*", default=list(reference.ALIASES))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for alias in arguments.alias:
        make(alias)
