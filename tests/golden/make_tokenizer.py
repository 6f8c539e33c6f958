"""Writes tokenizers/<alias>.json: reference token ids of the corpus for the real models.

    python make_tokenizer.py

`plain`: special tokens written in the text are text. `special`: they are parsed. Neither has BOS/EOS;
`bos`/`eos` say what the model adds by itself. `decoded` is given where decoding `special` does not give
the text back (NFC, bytes that the vocabulary lacks). The tokenizer is the family's upstream pipeline, see
`reference.py`; for Gemma every `plain` list is checked against Google's `sentencepiece` on a model file
assembled from the same vocabulary. `transformers_gguf_differs` names the corpus entries on which
transformers' own conversion of the GGUF file gives other ids.
"""

import sys

import reference
from corpus import TEXTS


def sentencepiece_processor(fields):
    """Google's SentencePiece over the GGUF's pieces, scores and types: a second opinion."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2 as pb

    proto = pb.ModelProto()
    proto.trainer_spec.model_type = pb.TrainerSpec.BPE
    proto.trainer_spec.byte_fallback = True
    proto.trainer_spec.unk_id, proto.trainer_spec.bos_id = 3, 2
    proto.trainer_spec.eos_id, proto.trainer_spec.pad_id = 1, 0
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = False
    proto.normalizer_spec.remove_extra_whitespaces = False
    proto.normalizer_spec.escape_whitespaces = True
    columns = ("tokens", "scores", "token_type")
    for token, score, kind in zip(*(fields[f"tokenizer.ggml.{c}"] for c in columns)):
        piece = proto.pieces.add()
        piece.piece = token.replace(" ", "\u2581") if kind == reference.USER_DEFINED else token
        piece.score = score
        piece.type = pb.ModelProto.SentencePiece.UNKNOWN if token == "<unk>" else kind
    return sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())


def transformers_conversion(path):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(str(path.parent), gguf_file=path.name).backend_tokenizer


def make(alias: str) -> None:
    path = reference.MODELS / f"{alias}.gguf"
    fields = reference.read_fields(path)
    tokenizer = reference.upstream_tokenizer(fields)
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    conversion = transformers_conversion(path)
    second = sentencepiece_processor(fields) if fields["tokenizer.ggml.model"] == "llama" else None
    specials = {i for i, kind in enumerate(kinds) if kind == reference.CONTROL}
    cases, differing, disputed = [], [], []
    for name, text in TEXTS.items():
        plain = reference.encode(tokenizer, text, special=False)
        special = reference.encode(tokenizer, text, special=True)
        assert not specials.intersection(plain), (alias, name)
        case = {"name": name, "text": text, "plain": plain, "special": special}
        decoded = tokenizer.decode(special, skip_special_tokens=False)
        if decoded != text:
            case["decoded"] = decoded
        cases.append(case)
        if conversion.encode(text, add_special_tokens=False).ids != special:
            differing.append(name)
        if second is not None and second.encode(text) != plain:
            disputed.append(name)
    assert not disputed, f"sentencepiece disagrees on {disputed}"
    bos = fields.get("tokenizer.ggml.add_bos_token", False)
    eos = fields.get("tokenizer.ggml.add_eos_token", False)
    made = reference.provenance(__file__, ("tokenizers", "transformers", "gguf", "sentencepiece"), path)
    reference.write_json(
        reference.HERE / "tokenizers" / f"{alias}.json",
        {
            "made_by": made,
            "model": alias,
            "tokenizer_model": fields["tokenizer.ggml.model"],
            "pre_tokenizer": fields.get("tokenizer.ggml.pre"),
            "vocab_size": len(tokens),
            "bos": fields["tokenizer.ggml.bos_token_id"] if bos else None,
            "eos": fields["tokenizer.ggml.eos_token_id"] if eos else None,
            "control_tokens": {tokens[i]: i for i in sorted(specials) if not tokens[i].startswith("<unused")},
            "user_defined_tokens": {t: i for i, (t, k) in enumerate(zip(tokens, kinds)) if k == reference.USER_DEFINED},
            "checked_with_sentencepiece": second is not None,
            "transformers_gguf_differs": differing,
            "cases": cases,
        },
    )
    print(alias, len(cases), "texts; transformers' conversion differs on", differing)


if __name__ == "__main__":
    for alias in sys.argv[1:] or reference.ALIASES:
        make(alias)
