"""Writes templates/<family>.json: chat templates rendered by transformers' `apply_chat_template`.

    python make_templates.py

Templates come from the GGUF files where those carry one, else from templates/src/*.jinja, written for
these tests with the features each family's published template uses. A case without `expected` has
`expected_error` instead (jinja's message) and `error_type`. `python_repr` marks a render that holds a Python
list as Python prints it. `strftime_now` is frozen at `now`.
For the real models `ids` are the prompt's token ids: the template's own control tokens are parsed, control
tokens inside a message are text. `snippets.json` holds single expressions in one shared context.
"""

import datetime
import json

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

import reference
from template_cases import CONVERSATIONS, SNIPPET_CONTEXT, SNIPPETS

NOW = datetime.datetime(2026, 3, 7, 9, 5, 3)
OPEN, CLOSE = "\ue0f0", "\ue0f1"
FAMILIES = {
    "chatml": {"eos_token": "<|im_end|>"},
    "llama2": {"bos_token": "<s>", "eos_token": "</s>"},
    "llama3.1": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    "mistral-v0.3": {"bos_token": "<s>", "eos_token": "</s>"},
    "qwen3": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    "gemma3": {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"},
    "features": {"bos_token": "<s>", "eos_token": "</s>"},
}


class FrozenClock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


def empty_tokenizer(special_tokens):
    from tokenizers import Tokenizer, models

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **special_tokens)


def attempt(render):
    try:
        return {"expected": render()}
    except (TemplateError, TypeError, ValueError, IndexError, KeyError, ZeroDivisionError) as error:
        return {"expected_error": str(error), "error_type": type(error).__name__}


def mark(value, control_tokens):
    """Hides control tokens inside user strings from the tokenizer: every one gets a marker inside."""
    if isinstance(value, str):
        for token in control_tokens:
            value = value.replace(token, token[0] + OPEN + token[1:])
        return value
    if isinstance(value, dict):
        return {key: mark(item, control_tokens) for key, item in value.items()}
    if isinstance(value, list):
        return [mark(item, control_tokens) for item in value]
    return value


def prompt_ids(tokenizer, rendered, control_tokens):
    """Ids of a render made from marked messages: only the template's own control tokens are parsed."""
    import re

    splitter = re.compile("(" + "|".join(map(re.escape, sorted(control_tokens, key=len, reverse=True))) + ")")
    ids = []
    for index, piece in enumerate(splitter.split(rendered)):
        if index % 2:
            ids.append(control_tokens[piece])
        elif piece:
            ids += reference.encode(tokenizer, piece.replace(OPEN, ""), special=False)
    return ids


def conversation_cases(template, special_tokens, upstream=None, control_tokens=None):
    hf = empty_tokenizer(special_tokens)
    for name, (messages, options) in CONVERSATIONS.items():
        tools, kwargs = options.get("tools"), options.get("kwargs", {})
        generation = options.get("generation", True)

        def render(said=messages):
            return hf.apply_chat_template(
                said, tools=tools, chat_template=template, add_generation_prompt=generation, tokenize=False, **kwargs
            )

        case = {"name": name, "messages": messages, "tools": tools, "add_generation_prompt": generation}
        if kwargs:
            case["kwargs"] = kwargs
        case.update(attempt(render))
        if "[{'type'" in case.get("expected", ""):
            case["python_repr"] = True
        if upstream is not None and "expected" in case:
            case["ids"] = prompt_ids(upstream, render(mark(messages, control_tokens)), control_tokens)
            assert upstream.decode(case["ids"], skip_special_tokens=False) == decodable(case["expected"])
        yield case


def decodable(text):
    import unicodedata

    return unicodedata.normalize("NFC", text) if decodable.nfc else text


def write(name, template, special_tokens, cases, model=None):
    value = {
        "made_by": reference.provenance(__file__, ("transformers", "tokenizers", "Jinja2"), model),
        "cases_sha256": reference.sha256(reference.HERE / "template_cases.py"),
        "name": name,
        "now": NOW.isoformat(),
        "special_tokens": special_tokens,
        "template": template,
        "cases": list(cases),
    }
    reference.write_json(reference.HERE / "templates" / f"{name}.json", value)
    failed = [case["name"] for case in value["cases"] if "expected" not in case]
    print(name, len(value["cases"]), "cases; errors:", failed)


def main():
    chat_template_utils.datetime = FrozenClock
    for family, special_tokens in FAMILIES.items():
        template = (reference.HERE / "templates" / "src" / f"{family}.jinja").read_text()
        write(family, template, special_tokens, conversation_cases(template, special_tokens))
    for alias in ("smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"):
        path = reference.MODELS / f"{alias}.gguf"
        fields = reference.read_fields(path)
        upstream = reference.upstream_tokenizer(fields)
        tokens = fields["tokenizer.ggml.tokens"]
        special_tokens = {
            f"{short}_token": tokens[fields[f"tokenizer.ggml.{long}_token_id"]]
            for short, long in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
            if f"tokenizer.ggml.{long}_token_id" in fields
        }
        kinds = fields["tokenizer.ggml.token_type"]
        control = {t: i for i, (t, k) in enumerate(zip(tokens, kinds)) if k == reference.CONTROL}
        decodable.nfc = fields["tokenizer.ggml.pre"] == "qwen2"
        template = fields["tokenizer.chat_template"]
        write(alias, template, special_tokens, conversation_cases(template, special_tokens, upstream, control), path)
    hf = empty_tokenizer({})
    snippets = []
    for name, source in SNIPPETS.items():
        result = attempt(
            lambda: hf.apply_chat_template(
                SNIPPET_CONTEXT["messages"], chat_template=source, tokenize=False, x=SNIPPET_CONTEXT["x"]
            )
        )
        snippets.append({"name": name, "template": source, **result})
    reference.write_json(
        reference.HERE / "templates" / "snippets.json",
        {
            "made_by": reference.provenance(__file__, ("transformers", "Jinja2")),
            "cases_sha256": reference.sha256(reference.HERE / "template_cases.py"),
            "now": NOW.isoformat(),
            "context": json.loads(json.dumps(SNIPPET_CONTEXT)),
            "cases": snippets,
        },
    )


if __name__ == "__main__":
    main()
