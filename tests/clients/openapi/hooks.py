"""Keeps the fuzzer's requests short, so that its time goes into the server's paths and not into a model's words."""

import schemathesis

# What limits an answer's tokens, by path; answers have few.
LIMITS = {
    "/v1/chat/completions": "max_completion_tokens",
    "/v1/completions": "max_tokens",
    "/v1/responses": "max_output_tokens",
    "/v1/messages": "max_tokens",
}
TOKENS = 3
# Fields that multiply the work: valid values above these are lowered, others stay as the fuzzer made them.
MOST = {"n": 2, "best_of": 2, "max_tokens": TOKENS, "max_completion_tokens": TOKENS, "max_output_tokens": TOKENS}


def is_count(value):
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**32


@schemathesis.hook
def before_call(context, case, kwargs):
    """Lowers counts, and drops most names of models, nearly all of which would be unknown."""
    body = case.body
    if not isinstance(body, dict):
        return
    for name, most in MOST.items():
        if is_count(body.get(name)) and body[name] > most:
            body[name] = most
    limit = LIMITS.get(case.operation.path)
    if limit and body.get(limit) is None and body.get("max_tokens") is None and len(body) > 0:
        body[limit] = TOKENS
    model = body.get("model")
    if isinstance(model, str) and len(model) % 4:
        del body["model"]
