"""Writes what the references compute with encoder models:

    python make_encoders.py tiny             encoders/<name>/: tiny random encoders made by transformers, with results
    python make_encoders.py real FOLDER      encoders/all-minilm-l6-v2.json: vectors of sentence-transformers, float32

FOLDER holds the files of all-MiniLM-L6-v2 as models.toml lists them. The tiny ones have random norms and biases, so that
leaving one out shows, and a tokenizer that is trained on the texts below.

    pip install torch==2.15.0 transformers==5.23.0 tokenizers==0.23.3 sentence-transformers==6.2.0
"""

import json
import pathlib
import shutil
import sys

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

import reference

OUT = reference.HERE / "encoders"

TEXTS = [
    "Hello world",
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "The girl is carrying a baby.",
    "A cheetah is running behind its prey.",
    "How do I reset my password?",
    "To reset the password, open the settings and choose Security.",
    "x",
    "?!",
    "The quick brown fox jumps over the lazy dog. " * 4,
    "Pi is 3.14159, e is 2.71828 and 1,000,000 is a million.",
    "fn main() { println!(\"{}\", vec![1, 2, 3].len()); }",
    "SELECT name, count(*) FROM users WHERE age >= 21 GROUP BY name;",
    "https://example.test/a/b?c=d&e=%20f#g",
    "Der schnelle braune Fuchs springt über den faulen Hund.",
    "Le cœur déçu mais l'âme plutôt naïve, Louÿs rêva de crapaüter en canoë.",
    "El veloz murciélago hindú comía feliz cardillo y kiwi.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "敏捷的棕色狐狸跳过了懒狗。",
    "いろはにほへと ちりぬるを",
    "다람쥐 헌 쳇바퀴에 타고파",
    "نص حكيم له سر قاطع وذو شأن عظيم",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश",
    "😀 😅 👍🏽 🇪🇺 mixed with words",
    "   spaces   and\ttabs\nand lines   ",
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a wife. "
    "However little known the feelings or views of such a man may be on his first entering a neighbourhood, this truth is so "
    "well fixed in the minds of the surrounding families, that he is considered as the rightful property of some one or other "
    "of their daughters. ",
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness. " * 8,
]
QUERY = TEXTS[5]
DOCUMENTS = [TEXTS[i] for i in (6, 1, 3, 9, 14, 16, 7, 18)]

BASE = {
    "vocab_size": 400,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 130,
    "hidden_act": "gelu",
    "initializer_range": 0.3,
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
    "pad_token_id": 0,
}
BERT = {**BASE, "model_type": "bert", "architectures": ["BertModel"]}
XLM = {**BASE, "model_type": "xlm-roberta", "type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-05}
ONE = {"num_labels": 1}
CONFIGS = {
    # Heads of 20 values and rows that are no whole number of groups of 32.
    "bert-mean": {**BERT, "hidden_size": 60, "num_attention_heads": 3, "hidden_act": "gelu_new"},
    "bert-cls": BERT,
    "xlm-roberta-max": {**XLM, "architectures": ["XLMRobertaModel"], "hidden_act": "relu"},
    "bert-reranker": {**BERT, "architectures": ["BertForSequenceClassification"], **ONE},
    "xlm-roberta-reranker": {**XLM, "architectures": ["XLMRobertaForSequenceClassification"], **ONE},
}


def bert_tokenizer():
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=BASE["vocab_size"], special_tokens=specials, continuing_subword_prefix="##", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    around = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=around
    )
    return tokenizer


def xlm_tokenizer():
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=BASE["vocab_size"], special_tokens=specials, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    around = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=around
    )
    return tokenizer


def randomize(model):
    """Norms and biases start as ones and zeros; also damp the matrices, so that activations stay of a sensible size."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("bias"):
            parameter.data = 0.2 * noise
        elif "LayerNorm" in name:
            parameter.data = 1.0 + 0.2 * noise
        else:
            parameter.data = 0.15 * noise


def pooled(name, rows):
    mode = name.rsplit("-", 1)[1]
    if mode == "cls":
        return rows[0]
    return rows.mean(0) if mode == "mean" else rows.max(0).values


def modules(name, hidden):
    mode = name.rsplit("-", 1)[1]
    kinds = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens"}
    listed = [("", "Transformer"), ("1_Pooling", "Pooling")] + ([("2_Normalize", "Normalize")] if mode != "mean" else [])
    flags = {f"pooling_mode_{kind}": kind == kinds[mode] for kind in kinds.values()}
    return {
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(listed)
        ],
        "1_Pooling/config.json": {"word_embedding_dimension": hidden, **flags},
    }


def numbers(values):
    """Nine digits say exactly which float32 it is."""
    return [float(f"{value:.9g}") for value in values]


@torch.no_grad()
def make_tiny(name):
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    fields = dict(CONFIGS[name])
    kind = fields.pop("model_type")
    tokenizer = bert_tokenizer() if kind == "bert" else xlm_tokenizer()
    fields["vocab_size"] = max(fields["vocab_size"], tokenizer.get_vocab_size())
    config = AutoConfig.for_model(kind, **fields)
    reranks = name.endswith("reranker")
    torch.manual_seed(1)
    model = (AutoModelForSequenceClassification if reranks else AutoModel).from_config(config).eval().float()
    randomize(model)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    cases = []
    if reranks:
        for document in DOCUMENTS:
            encoding = tokenizer.encode(QUERY, document)
            inputs = {"input_ids": torch.tensor([encoding.ids])}
            if kind == "bert":
                inputs["token_type_ids"] = torch.tensor([encoding.type_ids])
            score = torch.sigmoid(model(**inputs).logits[0, 0])
            cases.append({"text": document, "ids": encoding.ids, "score": numbers([score])[0]})
    else:
        for path, value in modules(name, config.hidden_size).items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_text(json.dumps(value, indent=1) + "\n")
        for text in TEXTS:
            ids = tokenizer.encode(text).ids
            if len(ids) > 120:
                continue
            vector = pooled(name, model(input_ids=torch.tensor([ids])).last_hidden_state[0])
            if not name.endswith("mean"):
                vector = torch.nn.functional.normalize(vector, dim=0)
            cases.append({"text": text, "ids": ids, "embedding": numbers(vector.tolist())})
    made = reference.provenance(__file__, packages=("transformers", "tokenizers", "torch"))
    reference.write_json(folder / "expected.json", {"made_by": made, "query": QUERY if reranks else "", "cases": cases})


@torch.no_grad()
def make_real(folder):
    from sentence_transformers import SentenceTransformer

    folder = pathlib.Path(folder)
    model = SentenceTransformer(str(folder), device="cpu").float()
    cases = []
    for text in TEXTS:
        ids = model.tokenizer(text)["input_ids"]
        assert len(ids) <= model.max_seq_length, f"{len(ids)} tokens would be cut off"
        vector = model.encode(text, convert_to_numpy=True)
        cases.append({"text": text, "ids": ids, "embedding": numbers(vector.tolist())})
    packages = ("sentence-transformers", "transformers", "tokenizers", "torch")
    made = reference.provenance(__file__, packages=packages, model=folder / "model.safetensors")
    reference.write_json(OUT / "all-minilm-l6-v2.json", {"made_by": made, "cases": cases})


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    match sys.argv[1:]:
        case ["tiny"]:
            for tiny in CONFIGS:
                make_tiny(tiny)
        case ["real", path]:
            make_real(path)
        case _:
            sys.exit(__doc__)
