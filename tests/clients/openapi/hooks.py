"""Keeps the fuzzer's requests short, so that its time goes into the server's paths and not into a model's words."""

import os

import schemathesis

TOKENS = 3
# What limits an answer's tokens, by the end of the path, where it may be left out.
LIMITS = {
    "/v1/chat/completions": "max_completion_tokens",
    "/v1/completions": "max_tokens",
    "/v1/responses": "max_output_tokens",
    "/ai/run/{model}": "max_tokens",
}
# Fields that multiply the work: to what they are lowered, and their largest valid value. Others stay as they are.
MOST = {
    "n": (2, 128),
    "best_of": (2, 20),
    "max_tokens": (TOKENS, 2**32 - 1),
    "max_completion_tokens": (TOKENS, 2**32 - 1),
    "max_output_tokens": (TOKENS, 2**32 - 1),
}
# The served models, for paths that name one.
MODEL = os.environ.get("WICK_MODEL", "smollm2-135m")
EMBEDDER = os.environ.get("WICK_EMBEDDER", "all-minilm-l6-v2")


@schemathesis.hook
def before_call(context, case, kwargs):
    """Lowers counts, and replaces most names of models, nearly all of which would be unknown."""
    body = case.body
    if not isinstance(body, dict):
        return
    named_by_path = case.operation.path.endswith("/ai/run/{model}")
    # A text, unless it is clearly for another kind of model.
    is_text = not named_by_path or not {"text", "query", "contexts"} & body.keys()
    if named_by_path and len(str(case.path_parameters.get("model"))) % 4:
        case.path_parameters["model"] = MODEL if is_text else EMBEDDER
    for name, (most, valid) in MOST.items():
        value = body.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and most < value <= valid:
            body[name] = most
    limit = next((field for end, field in LIMITS.items() if case.operation.path.endswith(end)), None)
    if limit and is_text and body.get(limit) is None and body.get("max_tokens") is None and len(body) > 0:
        body[limit] = TOKENS
    model = body.get("model")
    if isinstance(model, str) and len(model) % 4:
        del body["model"]
