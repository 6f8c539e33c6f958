import openai
import pytest

PROMPT = "The capital of France is"
GREEDY = {"temperature": 0, "max_tokens": 12}


def ids_of(http, model, text):
    return http.post("/tokenize", json={"model": model, "prompt": text}).json()["tokens"]


def test_completion(client, model):
    reply = client.completions.create(model=model, prompt=PROMPT, **GREEDY)
    assert reply.object == "text_completion"
    assert reply.model == model
    [choice] = reply.choices
    assert choice.index == 0
    assert choice.text
    assert not choice.text.startswith(PROMPT)
    assert choice.logprobs is None
    assert choice.finish_reason in ("stop", "length")
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_sixteen_tokens_by_default(client, model):
    reply = client.completions.create(model=model, prompt=PROMPT, temperature=0, extra_body={"ignore_eos": True})
    assert reply.usage.completion_tokens == 16


def test_several_prompts(client, model):
    prompts = [PROMPT, "1, 2, 3,", "def add(a, b):\n"]
    together = client.completions.create(model=model, prompt=prompts, **GREEDY)
    assert [choice.index for choice in together.choices] == [0, 1, 2]
    alone = [client.completions.create(model=model, prompt=p, **GREEDY).choices[0].text for p in prompts]
    assert [choice.text for choice in together.choices] == alone


def test_several_prompts_and_choices(client, model):
    reply = client.completions.create(
        model=model, prompt=[PROMPT, "1, 2, 3,"], n=2, temperature=1, seed=5, max_tokens=4, extra_body={"ignore_eos": True}
    )
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert reply.usage.completion_tokens == 16


def test_token_id_prompts(client, model, http):
    ids = ids_of(http, model, PROMPT)
    from_text = client.completions.create(model=model, prompt=PROMPT, **GREEDY)
    from_ids = client.completions.create(model=model, prompt=ids, **GREEDY)
    from_lists = client.completions.create(model=model, prompt=[ids, ids], **GREEDY)
    assert from_ids.choices[0].text == from_text.choices[0].text
    assert [choice.text for choice in from_lists.choices] == [from_text.choices[0].text] * 2
    assert from_ids.usage.prompt_tokens == len(ids)


def test_token_id_outside_the_vocabulary(client, model):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=model, prompt=[1, 99_999_999], **GREEDY)
    assert caught.value.param.startswith("prompt")


def test_echo_with_logprobs(client, model, http):
    ids = ids_of(http, model, PROMPT)
    free = client.completions.create(model=model, prompt=PROMPT, logprobs=3, **GREEDY).choices[0]
    [choice] = client.completions.create(model=model, prompt=PROMPT, echo=True, logprobs=3, **GREEDY).choices
    assert choice.text == PROMPT + free.text
    logprobs = choice.logprobs
    count = len(ids)
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset)
    assert len(logprobs.tokens) == count + len(free.logprobs.tokens)
    assert logprobs.token_logprobs[0] is None
    assert logprobs.top_logprobs[0] is None
    assert all(value <= 0 for value in logprobs.token_logprobs[1:])
    assert all(len(top) >= 3 for top in logprobs.top_logprobs[1:])
    assert logprobs.token_logprobs[count:] == free.logprobs.token_logprobs
    assert logprobs.text_offset == sorted(logprobs.text_offset)
    assert logprobs.text_offset[count] == len(PROMPT)


def test_echo_without_generation(client, model, http):
    ids = ids_of(http, model, PROMPT)
    cold = client.completions.create(model=model, prompt=ids, echo=True, max_tokens=0, logprobs=1, temperature=0)
    again = client.completions.create(model=model, prompt=ids, echo=True, max_tokens=0, logprobs=1, temperature=0)
    assert cold.usage.completion_tokens == 0
    assert len(cold.choices[0].logprobs.token_logprobs) == len(ids)
    assert cold.choices[0].logprobs.token_logprobs == again.choices[0].logprobs.token_logprobs


def test_logprobs_are_those_of_the_prompt(client, model, http):
    """What was generated has the same log-probs when it is given as the prompt."""
    body = {"model": model, "prompt": ids_of(http, model, PROMPT), "max_tokens": 12, "temperature": 0, "logprobs": 1, "return_token_ids": True}
    made = http.post("/v1/completions", json=body).json()["choices"][0]
    given = {**body, "prompt": body["prompt"] + made["token_ids"], "max_tokens": 0, "echo": True}
    echoed = http.post("/v1/completions", json=given).json()["choices"][0]
    assert echoed["logprobs"]["token_logprobs"][len(body["prompt"]) :] == made["logprobs"]["token_logprobs"]


def test_stream(client, model):
    whole = client.completions.create(model=model, prompt=PROMPT, **GREEDY)
    chunks = list(client.completions.create(model=model, prompt=PROMPT, stream=True, stream_options={"include_usage": True}, **GREEDY))
    *parts, last = chunks
    assert len({chunk.id for chunk in chunks}) == 1
    assert "".join(chunk.choices[0].text for chunk in parts) == whole.choices[0].text
    assert parts[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert last.choices == []
    assert last.usage.completion_tokens == whole.usage.completion_tokens


def test_best_of(client, model):
    # Every token is shown, so that the scores here are the server's: a hidden end-of-text token would count there only.
    ask = {"model": model, "prompt": PROMPT, "temperature": 1, "seed": 11, "max_tokens": 8, "logprobs": 1}
    ask["extra_body"] = {"ignore_eos": True, "skip_special_tokens": False}
    best = client.completions.create(best_of=4, n=2, **ask)
    every = client.completions.create(n=4, **ask)

    def score(choice):
        values = choice.logprobs.token_logprobs
        return sum(values) / len(values)

    ranked = sorted(every.choices, key=score, reverse=True)
    assert [choice.text for choice in best.choices] == [choice.text for choice in ranked[:2]]
    assert best.usage.completion_tokens == every.usage.completion_tokens


@pytest.mark.parametrize("extra", [{"best_of": 1, "n": 2}, {"best_of": 3, "stream": True}])
def test_best_of_refused(client, model, extra):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=model, prompt=PROMPT, max_tokens=2, **extra)
    assert caught.value.param in ("best_of", "n", "stream")


def test_stop_is_not_returned(client, model):
    reply = client.completions.create(model=model, prompt="1, 2, 3, 4,", stop=[" 7"], temperature=0, max_tokens=40)
    assert " 7" not in reply.choices[0].text
