"""Writes what sentence-transformers computes with decoders that embed, in float32:

    python make_embedders.py tiny          embedders/<name>/: tiny random checkpoints, with vectors
    python make_embedders.py real FILE     embedders-smollm2-135m.json: transformers' last hidden states of that GGUF file

`qwen3-last` is laid out as Qwen3-Embedding is: tensors without `model.`, a tokenizer that puts <|endoftext|> last, pooling by
the last token, vectors of length 1. Beside it lies the same as a GGUF file, as llama.cpp's converter lays it out. `qwen3-mean`
has an output matrix that is of no use, and the mean of all rows. Norms are random, so that leaving one out shows.

    pip install torch==2.15.0 transformers==5.23.0 tokenizers==0.23.3 sentence-transformers==6.2.0 gguf==0.19.0 accelerate
"""

import json
import pathlib
import shutil
import sys

import gguf
import torch
import transformers
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import reference
from make_encoders import TEXTS, numbers

OUT = reference.HERE / "embedders"
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
INSTRUCTION = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
# More than any chunk of a prompt.
LONG = " ".join(TEXTS) * 3
INPUTS = [*TEXTS, *(INSTRUCTION + text for text in TEXTS[5:8]), LONG]
CONFIG = {
    "vocab_size": 400,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "initializer_range": 0.15,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "bos_token_id": 397,
    "eos_token_id": 397,
}
BLOCK = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def make_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(reference.QWEN2_SPLIT), behavior="isolated", invert=False)
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(reference.byte_alphabet().values())
    size = CONFIG["vocab_size"] - len(SPECIALS)
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIALS])
    assert tokenizer.get_vocab_size() == CONFIG["vocab_size"]
    end = [(SPECIALS[0], tokenizer.token_to_id(SPECIALS[0]))]
    assert end[0][1] == CONFIG["eos_token_id"]
    template = processors.TemplateProcessing(
        single=f"$A {SPECIALS[0]}", pair=f"$A {SPECIALS[0]} $B:1 {SPECIALS[0]}:1", special_tokens=end
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tokenizer


def random_model(mode):
    torch.manual_seed(3)
    config = AutoConfig.for_model("qwen3", **CONFIG)
    if mode == "mean":
        config.tie_word_embeddings = False
    model = (AutoModel if mode == "last" else AutoModelForCausalLM).from_config(config).eval().float()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data = 1.0 + 0.3 * torch.randn(parameter.shape)
    return model


def modules(mode):
    listed = [("", "Transformer"), ("1_Pooling", "Pooling")] + ([("2_Normalize", "Normalize")] if mode == "last" else [])
    flags = {f"pooling_mode_{kind}": kind.startswith(mode) for kind in ("cls_token", "mean_tokens", "lasttoken")}
    return {
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(listed)
        ],
        "1_Pooling/config.json": {"word_embedding_dimension": CONFIG["hidden_size"], **flags, "include_prompt": True},
    }


def write_gguf(folder, path):
    """The tensors of a folder as llama.cpp's converter names them."""
    file = gguf.GGUFWriter(path, "qwen3")
    file.add_context_length(CONFIG["max_position_embeddings"])
    file.add_embedding_length(CONFIG["hidden_size"])
    file.add_block_count(CONFIG["num_hidden_layers"])
    file.add_feed_forward_length(CONFIG["intermediate_size"])
    file.add_head_count(CONFIG["num_attention_heads"])
    file.add_head_count_kv(CONFIG["num_key_value_heads"])
    file.add_key_length(CONFIG["head_dim"])
    file.add_value_length(CONFIG["head_dim"])
    file.add_rope_freq_base(CONFIG["rope_theta"])
    file.add_layer_norm_rms_eps(CONFIG["rms_norm_eps"])
    file.add_pooling_type(gguf.PoolingType.LAST)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    tokens = [token for token, _ in sorted(model["vocab"].items(), key=lambda entry: entry[1])] + SPECIALS
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre("qwen2")
    file.add_token_list(tokens)
    kinds = [reference.NORMAL] * len(model["vocab"]) + [reference.CONTROL] * len(SPECIALS)
    file.add_token_types(kinds)
    file.add_token_merges([" ".join(merge) for merge in model["merges"]])
    file.add_eos_token_id(CONFIG["eos_token_id"])
    file.add_add_eos_token(True)
    for name, tensor in load_file(folder / "model.safetensors").items():
        name = name.removeprefix("model.").removesuffix(".weight")
        if name.startswith("layers."):
            _, layer, part = name.split(".", 2)
            name = f"blk.{layer}.{BLOCK[part]}"
        else:
            name = {"embed_tokens": "token_embd", "norm": "output_norm"}[name]
        file.add_tensor(f"{name}.weight", tensor.numpy())
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


@torch.no_grad()
def make(mode):
    folder = OUT / f"qwen3-{mode}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = random_model(mode)
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["Qwen3ForCausalLM"]  # which is what the published model says of itself
    config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    make_tokenizer().save(str(folder / "tokenizer.json"), pretty=False)
    names = {"eos_token": "<|im_end|>", "pad_token": SPECIALS[0], "model_max_length": 131072}
    settings = {**names, "tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    for path, value in modules(mode).items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(json.dumps(value, indent=1) + "\n")
    embedder = SentenceTransformer(str(folder), device="cpu").float().eval()
    cases = []
    for text in INPUTS:
        ids = embedder.tokenizer(text)["input_ids"]
        assert ids[-1] == CONFIG["eos_token_id"] and len(ids) <= embedder.max_seq_length
        vector = embedder.encode(text, convert_to_numpy=True)
        cases.append({"text": text, "ids": ids, "embedding": numbers(vector.tolist())})
    assert max(len(case["ids"]) for case in cases) > 3000
    packages = ("sentence-transformers", "transformers", "tokenizers", "torch", "gguf")
    made = reference.provenance(__file__, packages=packages)
    reference.write_json(folder / "expected.json", {"made_by": made, "query": "", "cases": cases})
    (folder / "model.safetensors").chmod(0o644)
    if mode == "last":
        write_gguf(folder, folder / "model.gguf")
    print(folder.name, len(cases), [len(case["ids"]) for case in cases][-4:], model.__class__.__name__)


@torch.no_grad()
def make_real(file):
    file = pathlib.Path(file)
    loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    tokenizer = reference.upstream_tokenizer(reference.read_fields(file))
    cases = []
    for text in [*TEXTS[:6], TEXTS[11], TEXTS[14], TEXTS[-1]]:
        ids = reference.encode(tokenizer, text, special=False)
        vector = loaded.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        vector = torch.nn.functional.normalize(vector, dim=0)
        cases.append({"text": text, "ids": ids, "embedding": [float(f"{value:.7g}") for value in vector.tolist()]})
    made = reference.provenance(__file__, model=file)
    reference.write_json(reference.HERE / "embedders-smollm2-135m.json", {"made_by": made, "cases": cases})


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    match sys.argv[1:]:
        case ["tiny"]:
            for each in ("last", "mean"):
                make(each)
        case ["real", path]:
            make_real(path)
        case _:
            sys.exit(__doc__)
