"""Writes a Hugging Face checkpoint folder from a GGUF file, through transformers.

    python make_checkpoint.py OUT_DIR [--model smollm2-135m] [--dtype f32|bf16|f16] [--shards N]

OUT_DIR gets config.json, generation_config.json, model*.safetensors, tokenizer.json (the family's upstream
pipeline, see `reference.py`) and tokenizer_config.json with the chat template; --jinja-file puts the template
into chat_template.jinja instead. Weights are the dequantised float32 values, rounded to the dtype asked for.
Nothing of it is committed.
"""

import argparse
import pathlib
import shutil

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

import make_logits
import reference

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def clean_copy(model, dtype):
    """The same weights in a model that does not remember that it came from a GGUF file."""
    keep = model.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "model_type", "transformers_version", "dtype"):
        keep.pop(key, None)
    config = AutoConfig.for_model(model.config.model_type, **keep)
    config.architectures = [type(model).__name__]
    copy = AutoModelForCausalLM.from_config(config)
    copy.load_state_dict(model.state_dict())
    config.dtype = dtype
    return copy.to(dtype)


def save_in_shards(model, folder, shards):
    """`save_pretrained` takes a size, not a number: look for a size that gives the number."""
    state = model.state_dict()
    tied = model.config.tie_word_embeddings
    total = sum(t.numel() * t.element_size() for n, t in state.items() if not (tied and n == "lm_head.weight"))
    limit = total + 1 if shards == 1 else -(-total // shards)
    for _ in range(40):
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder, max_shard_size=int(limit))
        files = sorted(folder.glob("*.safetensors"))
        if len(files) == shards:
            return files
        limit *= 1.05 if len(files) > shards else 0.97
    raise SystemExit(f"cannot split these weights into {shards} files; the nearest was {len(files)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_dir", type=pathlib.Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--models-dir", type=pathlib.Path, default=reference.MODELS)
    parser.add_argument("--dtype", choices=DTYPES, default="f32")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--jinja-file", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = options.models_dir / f"{options.model}.gguf"
    fields = reference.read_fields(path)
    model = clean_copy(make_logits.load(path), DTYPES[options.dtype])
    tokens = fields["tokenizer.ggml.tokens"]
    token_id = lambda name: fields.get(f"tokenizer.ggml.{name}_token_id")  # noqa: E731
    model.generation_config = GenerationConfig(
        bos_token_id=token_id("bos"), eos_token_id=token_id("eos"), pad_token_id=token_id("padding")
    )
    files = save_in_shards(model, options.out_dir, options.shards)
    named = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    named = {key: tokens[token_id(name)] for key, name in named.items() if token_id(name) is not None}
    tokenizer = reference.upstream_tokenizer(fields)
    if fields.get("tokenizer.ggml.add_bos_token"):
        from tokenizers import processors

        bos = named["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    hf = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **named)
    hf.chat_template = fields.get("tokenizer.chat_template")
    hf.save_pretrained(options.out_dir, save_jinja_files=options.jinja_file)
    for file in files:
        print(file, file.stat().st_size, reference.sha256(file))


if __name__ == "__main__":
    main()
