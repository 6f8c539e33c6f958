"""Keeps the fuzzer's requests short, so that its time goes into the server's paths and not into a model's words."""

import schemathesis

TOKENS = 3
# What limits an answer's tokens, by path, where it may be left out.
LIMITS = {
    "/v1/chat/completions": "max_completion_tokens",
    "/v1/completions": "max_tokens",
    "/v1/responses": "max_output_tokens",
}
# Fields that multiply the work: to what they are lowered, and their largest valid value. Others stay as they are.
MOST = {
    "n": (2, 128),
    "best_of": (2, 20),
    "max_tokens": (TOKENS, 2**32 - 1),
    "max_completion_tokens": (TOKENS, 2**32 - 1),
    "max_output_tokens": (TOKENS, 2**32 - 1),
}


@schemathesis.hook
def before_call(context, case, kwargs):
    """Lowers counts, and drops most names of models, nearly all of which would be unknown."""
    body = case.body
    if not isinstance(body, dict):
        return
    for name, (most, valid) in MOST.items():
        value = body.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and most < value <= valid:
            body[name] = most
    limit = LIMITS.get(case.operation.path)
    if limit and body.get(limit) is None and body.get("max_tokens") is None and len(body) > 0:
        body[limit] = TOKENS
    model = body.get("model")
    if isinstance(model, str) and len(model) % 4:
        del body["model"]
