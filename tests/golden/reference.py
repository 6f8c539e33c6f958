"""Shared parts of the golden-data scripts: provenance, GGUF access, the reference tokenizers.

Nothing here comes from wick. Tokenizers are built with the `tokenizers` library from the vocabulary
and merges inside the GGUF file, with each family's upstream pipeline written out below, because
transformers 5.23 does not restore it when it converts a GGUF file:

* smollm: it builds a plain GPT-2 pipeline and loses the `Digits(individual_digits=True)` step;
* qwen2: it keeps the split expression but loses the NFC normalizer;
* gemma3: runs of spaces are not matched as user-defined symbols as SentencePiece does it.

`make_tokenizer.py` measures how often the two differ on its corpus and writes it down.
"""

import hashlib
import json
import pathlib
import platform
import sys
from importlib import metadata

HERE = pathlib.Path(__file__).resolve().parent
MODELS = pathlib.Path("/tmp/models")
ALIASES = ("smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b", "gemma-3-270m")

# GGUF token types (gguf specification).
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def sha256(path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def provenance(script: str, packages=("transformers", "tokenizers", "torch", "gguf"), model=None) -> dict:
    """Who made a file: the script and its digest, the command, library versions, the model's digest."""
    made = {
        "script": pathlib.Path(script).name,
        "script_sha256": sha256(script),
        "reference_sha256": sha256(HERE / "reference.py"),
        "command": " ".join(["python", *[pathlib.Path(sys.argv[0]).name], *sys.argv[1:]]),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    for name in packages:
        made[name] = metadata.version(name)
    if model is not None:
        made["model_file"] = pathlib.Path(model).name
        made["model_sha256"] = sha256(model)
    return made


def write_json(path, value, indent_lists=True) -> None:
    """Compact ASCII JSON: one line per top-level key, and one per element of top-level lists."""
    dump = lambda v: json.dumps(v, ensure_ascii=True, separators=(",", ":"))  # noqa: E731
    lines = []
    for key, item in value.items():
        if indent_lists and isinstance(item, list) and item:
            body = ",\n".join(dump(element) for element in item)
            lines.append(f"{json.dumps(key)}:[\n{body}\n]")
        else:
            lines.append(f"{json.dumps(key)}:{dump(item)}")
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"wrote {path} ({path.stat().st_size} bytes)")


def read_fields(path) -> dict:
    """All metadata of a GGUF file as plain Python values."""
    from gguf import GGUFReader

    reader = GGUFReader(str(path))
    return {key: field.contents() for key, field in reader.fields.items()}


def byte_alphabet() -> dict[int, str]:
    """GPT-2's map from byte to printable character."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {byte: chr(byte) for byte in printable}
    spare = 0x100
    for byte in range(256):
        if byte not in table:
            table[byte] = chr(spare)
            spare += 1
    return table


def _add_tokens(tokenizer, fields) -> None:
    """Control tokens become special added tokens, user-defined ones plain added tokens; ids stay."""
    from tokenizers import AddedToken

    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    size = tokenizer.get_vocab_size()
    pick = lambda kind: [t for t, k in zip(tokens, kinds) if k == kind]  # noqa: E731
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in pick(CONTROL)])
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in pick(USER_DEFINED)])
    assert tokenizer.get_vocab_size() == size, "an added token was not in the vocabulary"
    for index, (token, kind) in enumerate(zip(tokens, kinds)):
        if kind in (CONTROL, USER_DEFINED):
            assert tokenizer.token_to_id(token) == index, (index, token)


def byte_level_tokenizer(fields):
    """The upstream tokenizer.json pipeline of a `gpt2` vocabulary, chosen by `tokenizer.ggml.pre`."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    vocab = {t: i for i, (t, k) in enumerate(zip(tokens, kinds)) if k != UNUSED}
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    pre = fields["tokenizer.ggml.pre"]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre == "llama-bpe"))
    if pre == "smollm":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
            ]
        )
    elif pre in ("qwen2", "llama-bpe"):
        split = QWEN2_SPLIT if pre == "qwen2" else LLAMA3_SPLIT
        if pre == "qwen2":
            tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(split), behavior="isolated", invert=False),
                pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
            ]
        )
    else:
        raise ValueError(f"no upstream pipeline is written down here for pre-tokenizer {pre!r}")
    tokenizer.decoder = decoders.ByteLevel()
    _add_tokens(tokenizer, fields)
    return tokenizer


def sentencepiece_merges(tokens, kinds) -> list[tuple[str, str]]:
    """BPE merges that a SentencePiece vocabulary implies: best score first, and within a piece the
    longest left part first. Only normal and user-defined pieces take part, as in SentencePiece: a
    control token can never be the result of a merge."""
    usable = {t: i for i, (t, k) in enumerate(zip(tokens, kinds)) if k in (NORMAL, USER_DEFINED)}
    found = []
    for piece, rank in usable.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in usable and right in usable:
                found.append((rank, -cut, left, right))
    found.sort(key=lambda entry: entry[:2])
    return [(left, right) for _, _, left, right in found]


def gemma_tokenizer(fields):
    """Gemma's pipeline: spaces become U+2581, no prefix space, BPE with byte fallback."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    scores = fields["tokenizer.ggml.scores"]
    normal = [scores[i] for i, kind in enumerate(kinds) if kind == NORMAL]
    assert all(a > b for a, b in zip(normal, normal[1:])), "ids are not in score order"
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=sentencepiece_merges(tokens, kinds),
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    _add_tokens(tokenizer, fields)
    return tokenizer


def upstream_tokenizer(fields):
    """The reference tokenizer of a GGUF file (a `tokenizers.Tokenizer` without post-processor)."""
    if fields["tokenizer.ggml.model"] == "gpt2":
        return byte_level_tokenizer(fields)
    if fields["general.architecture"] == "gemma3":
        return gemma_tokenizer(fields)
    raise ValueError(f"no reference tokenizer for {fields['general.architecture']!r}")


def encode(tokenizer, text: str, special: bool) -> list[int]:
    """Ids without BOS/EOS; `special=False` treats special tokens written in the text as text."""
    tokenizer.encode_special_tokens = not special
    try:
        return tokenizer.encode(text, add_special_tokens=False).ids
    finally:
        tokenizer.encode_special_tokens = False
