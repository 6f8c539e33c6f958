"""Writes tiny/<name>/: tiny seeded random checkpoints made by transformers, and what they compute.

    python make_tiny.py [name ...]

Each folder holds model.safetensors (or shards with an index), `config.json` spelled as published checkpoints
of the family spell it, `config-v5.json` as transformers 5 writes it (`rope_parameters`, `dtype`), a byte-level
tokenizer.json of 256 tokens, and `expected.json`: for 4 prompts the logits at the last position, log-probs of
the prompt's own tokens, and 16 greedy tokens with log-probs and the runner-up's. Both config files are loaded
back and must give the same logits. Norm weights and biases are random too, so that leaving one out shows.
"""

import json
import pathlib
import shutil
import sys
import tempfile

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

import reference

LENGTHS = (1, 7, 20, 60)
STEPS = 16
# Bytes that never occur in UTF-8 give their places to special tokens, so the vocabulary is exactly 256.
SPECIALS = {0xF5: "<s>", 0xF6: "</s>", 0xF7: "<unk>", 0xF8: "<pad>", 0xF9: "<|im_start|>", 0xFA: "<|im_end|>"}
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

BASE = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-05,
    "hidden_act": "silu",
    "initializer_range": 0.3,
    "bos_token_id": 0xF5,
    "eos_token_id": 0xF6,
    "use_cache": True,
}
LLAMA = {**BASE, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False, "mlp_bias": False}
QWEN2 = {**BASE, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "rms_norm_eps": 1e-06, "rope_theta": 1000000.0}
GEMMA3 = {
    **{key: value for key, value in BASE.items() if key != "hidden_act"},
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 7,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 24,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": None,
    "sliding_window": 8,
    "sliding_window_pattern": 6,
    "attention_bias": False,
    "tie_word_embeddings": True,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
}
CONFIGS = {
    "llama": {**LLAMA, "rope_theta": 10000.0, "rope_scaling": None, "tie_word_embeddings": True},
    "llama3-rope": {
        **LLAMA,
        "rope_theta": 10000.0,
        "rope_scaling": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
            "rope_type": "llama3",
        },
        "eos_token_id": [0xF6, 0xFA],
        "tie_word_embeddings": False,
    },
    "llama-linear-rope": {**LLAMA, "rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}, "tie_word_embeddings": True},
    "mistral": {
        **BASE,
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "head_dim": 16,
        "rope_theta": 10000.0,
        "sliding_window": 8,
        "tie_word_embeddings": False,
    },
    "qwen2": {**QWEN2, "use_sliding_window": False, "sliding_window": 8, "max_window_layers": 1, "tie_word_embeddings": True},
    "qwen2-window": {**QWEN2, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1, "tie_word_embeddings": False},
    "qwen3": {
        **BASE,
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "intermediate_size": 64,
        "head_dim": 32,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": 2,
        "tie_word_embeddings": True,
    },
    "gemma3": GEMMA3,
    "gemma3-linear-rope": {**GEMMA3, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
}
# name -> (base, dtype of the weights, number of shards)
VARIANTS = {
    "llama-sharded": ("llama", torch.float32, 3),
    "llama-f16": ("llama", torch.float16, 1),
    "llama-bf16": ("llama", torch.bfloat16, 1),
}


def tokenizer():
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    symbols = reference.byte_alphabet()
    vocab = {SPECIALS.get(byte, symbols[byte]): byte for byte in range(256)}
    built = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    built.decoder = decoders.ByteLevel()
    built.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIALS.values()])
    assert built.get_vocab_size() == 256
    return built


def random_model(config: dict, seed: int):
    torch.manual_seed(seed)
    made = AutoConfig.for_model(**config)
    model = AutoModelForCausalLM.from_config(made, attn_implementation="eager").eval()
    centre = 0.0 if config["model_type"].startswith("gemma") else 1.0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(centre + 0.3 * torch.randn_like(parameter))
            elif name.endswith("bias"):
                parameter.copy_(0.3 * torch.randn_like(parameter))
    return model


def prompts(seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 0xC0, (length,), generator=generator).tolist() for length in LENGTHS]


@torch.no_grad()
def logits_of(model, ids):
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()


def expected_case(model, prompt):
    significant = lambda values: [float(f"{value:.7g}") for value in values]  # noqa: E731
    rounded = lambda values: [round(value, 6) for value in values]  # noqa: E731
    first = logits_of(model, prompt)
    known = torch.log_softmax(first, -1)[:-1].gather(1, torch.tensor(prompt[1:], dtype=torch.long)[:, None])
    ids, chosen, second = [], [], []
    for _ in range(STEPS):
        logprobs = torch.log_softmax(logits_of(model, prompt + ids)[-1], -1)
        best = logprobs.topk(2)
        ids.append(best.indices[0].item())
        chosen.append(best.values[0].item())
        second.append([best.indices[1].item(), round(best.values[1].item(), 6)])
    return {
        "prompt_ids": prompt,
        "prompt_logprobs": rounded(known[:, 0].tolist()),
        "last_logits": significant(first[-1].tolist()),
        "ids": ids,
        "logprobs": rounded(chosen),
        "runner_up": second,
    }


def gap(case) -> float:
    """Smallest lead of a chosen token over its runner-up."""
    return min(chosen - second for chosen, (_, second) in zip(case["logprobs"], case["runner_up"]))


def save_weights(folder, state, shards):
    if shards == 1:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(state)
    share = -(-len(names) // shards)
    weight_map = {}
    for index in range(shards):
        file = f"model-{index + 1:05}-of-{shards:05}.safetensors"
        part = {name: state[name] for name in names[index * share : (index + 1) * share]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= {name: file for name in part}
    total = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def reload_with(folder, config_name):
    """The checkpoint as transformers reads it back in float32, with one of the two config files."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = pathlib.Path(scratch) / "copy"
        shutil.copytree(folder, copy)
        shutil.copyfile(folder / config_name, copy / "config.json")
        return AutoModelForCausalLM.from_pretrained(copy, dtype=torch.float32, attn_implementation="eager").eval()


def make(name: str) -> None:
    base, dtype, shards = VARIANTS.get(name, (name, torch.float32, 1))
    seed = 1000 + list(CONFIGS).index(base)
    config = {**CONFIGS[base], "torch_dtype": str(dtype).removeprefix("torch.")}
    folder = reference.HERE / "tiny" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = random_model(config, seed)
    tied = model.config.tie_word_embeddings
    state = {k: v.to(dtype).contiguous() for k, v in model.state_dict().items() if not (tied and k == "lm_head.weight")}
    save_weights(folder, state, shards)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    model.config.architectures = config["architectures"]
    model.config.dtype = dtype
    model.config.to_json_file(str(folder / "config-v5.json"), use_diff=True)
    tokenizer().save(str(folder / "tokenizer.json"), pretty=False)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    tokenizer_config = {**names, "add_bos_token": False, "chat_template": CHATML, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")

    model = reload_with(folder, "config.json")
    other = reload_with(folder, "config-v5.json")
    for prompt_seed in range(seed, seed + 100_000, 1000):  # until no greedy step is nearly a tie
        cases = [expected_case(model, prompt) for prompt in prompts(prompt_seed)]
        if min(gap(case) for case in cases) > 2e-3:
            break
    for case in cases:
        ids = case["prompt_ids"]
        assert torch.equal(logits_of(model, ids), logits_of(other, ids)), "the config files disagree"
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert size < 400_000, size
    digests = {file.name: reference.sha256(file) for file in sorted(folder.glob("*.safetensors"))}
    made = {**reference.provenance(__file__, ("transformers", "torch", "safetensors")), "seed": seed, "prompt_seed": prompt_seed, "weights_sha256": digests}
    reference.write_json(folder / "expected.json", {"made_by": made, "name": name, "cases": cases})
    spread = max(cases[-1]["last_logits"]) - min(cases[-1]["last_logits"])
    layers = getattr(model.config, "layer_types", None)
    print(f"{name}: {size} bytes, logit spread {spread:.2f}, greedy {cases[-1]['ids'][:8]}, layers {layers}, rope {model.config.rope_parameters}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for wanted in sys.argv[1:] or [*CONFIGS, *VARIANTS]:
        make(wanted)
