"""Writes tokenizers/tiny/<family>/{tokenizer.json,expected.json}: small trained vocabularies inside the
true tokenizer.json pipelines of families without real weights here.

    python make_tiny_tokenizers.py

The vocabularies are trained on `corpus.py`; the pipelines (normalizer, pre-tokenizer, model flags,
post-processor, decoder, added tokens) are those of the families' published tokenizer.json files.
`expected.json` has the same form as tokenizers/<alias>.json, and `with_template`: the ids of "Hello world"
with the post-processor's special tokens.
"""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import reference
from corpus import LONG, SPECIAL, TEXTS

BASE_SIZE = 600
FAMILY_SPECIALS = {
    "llama3": ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"],
    "qwen2": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "qwen3": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "smollm2": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<file_sep>"],
    "llama2-prepend": ["<unk>", "<s>", "</s>"],
    "llama2-metaspace": ["<unk>", "<s>", "</s>"],
    "mistral-v3": ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"],
    "gemma3": ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"],
}
# Added tokens that are not special: found in text even when special tokens are treated as text.
FAMILY_ADDED = {
    "llama3": ["<wick_a>", "<wick b>"],
    "qwen2": ["<tool_call>", "</tool_call>"],
    "qwen3": ["<tool_call>", "</tool_call>", "<think>", "</think>"],
    "smollm2": ["<wick_a>", "<wick b>"],
    "llama2-prepend": ["<wick_a>", "<wick b>"],
    "llama2-metaspace": ["<wick_a>", "<wick b>"],
    "mistral-v3": ["<wick_a>", "<wick b>"],
    "gemma3": ["\n\n", "\n\n\n", "  ", "   ", "    ", "<table>", "<tr>", "<td>"],
}
# Vocabulary entries that no merge reaches: found only with Llama 3's `ignore_merges`.
UNREACHABLE = ["ĠZanzibar", "ĠQuixotic"]
EXTRA_TEXTS = {
    "ignore_merges": "a Zanzibar Quixotic Zanzibarian",
    "added_tokens": "x<wick_a>y <wick b> <wick_a><wick b>z <wick_a",
    "added_think": "<think>\nhm\n</think>\n\n<tool_call>{}</tool_call> <think",
    "special_mistral": "[INST] hi [/INST][TOOL_CALLS] [{}]</s>[AVAILABLE_TOOLS][INST]",
    "hello": "Hello world",
    "leading_space": " Hello world",
}
SKIPPED = {*LONG, "code_rust", "code_js", "code_html", "code_sql", "prose_pl_cz_tr", "prose_vi", "thai",
           "tamil_bengali", "georgian_armenian_amharic", "code_latex", "chinese_traditional", "hebrew",
           "control_each", "markdown", "yaml", "korean", "special_vision", "special_smollm",
           "prose_ru", "prose_el", "bidi_zero_width", "numbers_glued", "box_drawing"}


def training_texts():
    return [text for name, text in TEXTS.items() if name not in SPECIAL]


def train_byte_level(pre_tokenizer, normalizer=None):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=BASE_SIZE, initial_alphabet=sorted(reference.byte_alphabet().values()), show_progress=False
    )
    tokenizer.train_from_iterator(training_texts(), trainer)
    return vocab_and_merges(tokenizer)


def train_characters():
    """Vocabulary over characters with U+2581 for the space, as SentencePiece trains it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always", split=True)
    trainer = trainers.BpeTrainer(vocab_size=BASE_SIZE - 256, limit_alphabet=110, show_progress=False)
    tokenizer.train_from_iterator(training_texts(), trainer)
    return vocab_and_merges(tokenizer)


def vocab_and_merges(tokenizer):
    import json

    model = json.loads(tokenizer.to_str())["model"]
    pieces = [piece for piece, _ in sorted(model["vocab"].items(), key=lambda entry: entry[1])]
    return pieces, [tuple(merge) for merge in model["merges"]]


def add_tokens(tokenizer, family):
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in FAMILY_SPECIALS[family]])
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in FAMILY_ADDED[family]])


def add_bos(tokenizer, bos):
    return processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )


def byte_level_family(family):
    split = {"llama3": reference.LLAMA3_SPLIT, "qwen2": reference.QWEN2_SPLIT, "qwen3": reference.QWEN2_SPLIT}.get(family)
    if split is None:
        first, trim, regex = pre_tokenizers.Digits(individual_digits=True), True, True
    else:
        first, trim, regex = pre_tokenizers.Split(Regex(split), behavior="isolated", invert=False), family == "llama3", False
    pre = pre_tokenizers.Sequence(
        [first, pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=trim, use_regex=regex)]
    )
    normalizer = normalizers.NFC() if family.startswith("qwen") else None
    pieces, merges = train_byte_level(pre, normalizer)
    if family == "llama3":
        pieces = pieces + UNREACHABLE
    if family == "smollm2":
        # The published vocabulary lacks 21 byte symbols; text with those bytes loses them.
        absent = {reference.byte_alphabet()[byte] for byte in (0x04, 0x06, 0xC0, 0xF1, 0xF5, 0xFF)}
        merges = [(a, b) for a, b in merges if not absent & set(a + b)]
        pieces = [piece for piece in pieces if not absent & set(piece)]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=family == "llama3"))
    tokenizer.pre_tokenizer = pre
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    add_tokens(tokenizer, family)
    if family == "llama3":
        tokenizer.post_processor = processors.Sequence(
            [processors.ByteLevel(trim_offsets=False), add_bos(tokenizer, "<|begin_of_text|>")]
        )
    elif family.startswith("qwen"):
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def sentencepiece_family(family):
    pieces, merges = train_characters()
    head = FAMILY_SPECIALS[family] + [t for t in FAMILY_ADDED[family] if family == "gemma3"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    spelled = [t.replace(" ", "\u2581") if t.strip(" ") == "" else t for t in head]
    names = list(dict.fromkeys(spelled + bytes_ + pieces))
    vocab = {piece: index for index, piece in enumerate(names)}
    if family == "gemma3":
        runs = ["\u2581" * n for n in (2, 3, 4)]
        merges = [("\u2581", "\u2581"), ("\u2581", runs[0]), (runs[0], runs[0]), *merges]
        merges = [m for i, m in enumerate(merges) if m not in merges[:i] and m[0] in vocab and m[1] in vocab]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    space = normalizers.Replace(" ", "\u2581")
    if family == "llama2-prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), space])
    elif family == "gemma3":
        tokenizer.normalizer = space
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous", invert=False)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="first", split=False)
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    if family != "gemma3":
        steps.append(decoders.Strip(content=" ", left=1))
    tokenizer.decoder = decoders.Sequence(steps)
    if family == "gemma3":
        tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in FAMILY_SPECIALS[family]])
        added = ["\u2581" * len(t) if t.strip(" ") == "" else t for t in FAMILY_ADDED[family]]
        tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in added])
    else:
        add_tokens(tokenizer, family)
    tokenizer.post_processor = add_bos(tokenizer, "<bos>" if family == "gemma3" else "<s>")
    return tokenizer


def make(family: str) -> None:
    byte_level = family in ("llama3", "qwen2", "qwen3", "smollm2")
    tokenizer = byte_level_family(family) if byte_level else sentencepiece_family(family)
    folder = reference.HERE / "tokenizers" / "tiny" / family
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    specials = {tokenizer.token_to_id(t) for t in FAMILY_SPECIALS[family] if t != "<unk>"}
    cases = []
    for name, text in {**TEXTS, **EXTRA_TEXTS}.items():
        if name in SKIPPED:
            continue
        plain = reference.encode(tokenizer, text, special=False)
        special = reference.encode(tokenizer, text, special=True)
        assert not specials.intersection(plain), (family, name)
        case = {"name": name, "text": text, "plain": plain, "special": special}
        decoded = tokenizer.decode(special, skip_special_tokens=False)
        if decoded != text:
            case["decoded"] = decoded
        cases.append(case)
    size = (folder / "tokenizer.json").stat().st_size
    assert size < 100_000, size
    reference.write_json(
        folder / "expected.json",
        {
            "made_by": reference.provenance(__file__, ("tokenizers",)),
            "family": family,
            "vocab_size": tokenizer.get_vocab_size(),
            "special_tokens": {t: tokenizer.token_to_id(t) for t in FAMILY_SPECIALS[family]},
            "added_tokens": {t: tokenizer.encode(t, add_special_tokens=False).ids for t in FAMILY_ADDED[family]},
            "with_template": tokenizer.encode("Hello world").ids,
            "cases": cases,
        },
    )


if __name__ == "__main__":
    for name in FAMILY_SPECIALS:
        make(name)
