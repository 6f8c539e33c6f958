import pytest
from conftest import say

GREEDY = {"temperature": 0, "max_tokens": 24}


def test_answer(client, model):
    reply = client.chat.completions.create(model=model, messages=say("Say hello.", "Be brief."), **GREEDY)
    assert reply.object == "chat.completion"
    assert reply.id.startswith("chatcmpl-")
    assert reply.model == model
    assert reply.created > 1_700_000_000
    [choice] = reply.choices
    assert choice.index == 0
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.message.refusal is None
    assert choice.logprobs is None
    assert choice.finish_reason in ("stop", "length")
    usage = reply.usage
    assert usage.prompt_tokens > 0
    assert 0 < usage.completion_tokens <= 24
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens >= 0
    assert usage.completion_tokens_details.reasoning_tokens == 0


def test_greedy_is_repeatable(client, model):
    ask = lambda: client.chat.completions.create(model=model, messages=say("Count to ten."), **GREEDY)  # noqa: E731
    assert ask().choices[0].message.content == ask().choices[0].message.content


def test_content_parts_are_joined(client, model):
    parts = [{"type": "text", "text": "Say "}, {"type": "text", "text": "hello."}]
    one = client.chat.completions.create(model=model, messages=say(parts), **GREEDY)
    assert one.choices[0].message.content


def test_stream_equals_answer(client, model):
    messages = say("Write one sentence about the sea. 🌊 海")
    whole = client.chat.completions.create(model=model, messages=messages, **GREEDY)
    chunks = list(client.chat.completions.create(model=model, messages=messages, stream=True, **GREEDY))
    assert all(chunk.object == "chat.completion.chunk" for chunk in chunks)
    assert len({(chunk.id, chunk.created, chunk.model, chunk.system_fingerprint) for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:])
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == [whole.choices[0].finish_reason]
    assert chunks[-1].choices[0].finish_reason is not None
    assert all(chunk.usage is None for chunk in chunks)


def test_stream_usage(client, model):
    messages = say("Say hello.")
    whole = client.chat.completions.create(model=model, messages=messages, **GREEDY)
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(model=model, messages=messages, stream=True, stream_options=options, **GREEDY))
    *others, last = chunks
    assert last.choices == []
    assert last.usage.prompt_tokens == whole.usage.prompt_tokens
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert last.usage.total_tokens == whole.usage.total_tokens
    assert all(chunk.choices and chunk.usage is None for chunk in others)


def test_max_tokens_and_finish_reason(client, model):
    reply = client.chat.completions.create(
        model=model, messages=say("Tell me a story."), temperature=0, max_completion_tokens=5, extra_body={"ignore_eos": True}
    )
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.completion_tokens == 5


def test_ignore_eos_gives_exactly_what_was_asked(client, model):
    reply = client.chat.completions.create(
        model=model, messages=say("Say only: ok"), temperature=0, max_tokens=80, extra_body={"ignore_eos": True}
    )
    assert reply.usage.completion_tokens == 80
    assert reply.choices[0].finish_reason == "length"


def test_logprobs(client, model):
    reply = client.chat.completions.create(
        model=model, messages=say("Name a fruit. 🍎"), logprobs=True, top_logprobs=5, **GREEDY
    )
    choice = reply.choices[0]
    entries = choice.logprobs.content
    text = b"".join(bytes(entry.bytes) for entry in entries)
    # A stop token has an entry's worth of generation but no text: it is not among the entries' text.
    assert text.decode(errors="replace").startswith(choice.message.content)
    for entry in entries:
        assert entry.logprob <= 0
        tops = [top.logprob for top in entry.top_logprobs]
        assert len(tops) == 5
        assert tops == sorted(tops, reverse=True)
        assert entry.logprob == tops[0], "at temperature 0 the chosen token is the likeliest"
        assert all(top.bytes is not None for top in entry.top_logprobs)


def test_logprobs_stream_equals_answer(client, model):
    ask = {"model": model, "messages": say("Name a colour."), "logprobs": True, "top_logprobs": 2, **GREEDY}
    whole = client.chat.completions.create(**ask).choices[0].logprobs.content
    chunks = client.chat.completions.create(stream=True, **ask)
    streamed = [e for c in chunks for e in ((c.choices[0].logprobs and c.choices[0].logprobs.content) or [])]
    assert [(e.token, e.logprob) for e in streamed] == [(e.token, e.logprob) for e in whole]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("length", [1, 2, 7])
def test_stop_string_never_leaks(client, model, stream, length):
    ask = {"model": model, "messages": say("Write three sentences about trees."), "temperature": 0, "max_tokens": 40}
    free = client.chat.completions.create(**ask).choices[0].message.content
    middle = len(free) // 2
    stop = free[middle : middle + length]
    expected = free[: free.index(stop)]
    if stream:
        chunks = list(client.chat.completions.create(stop=[stop], stream=True, **ask))
        text = "".join(c.choices[0].delta.content or "" for c in chunks)
        reason = chunks[-1].choices[0].finish_reason
    else:
        [choice] = client.chat.completions.create(stop=stop, **ask).choices
        text, reason = choice.message.content, choice.finish_reason
    assert (text, reason) == (expected, "stop")


def test_seed_repeats_at_temperature_one(client, model):
    def ask(seed):
        reply = client.chat.completions.create(
            model=model, messages=say("Invent a name for a ship."), temperature=1, seed=seed, max_tokens=24
        )
        return reply.choices[0].message.content

    assert ask(7) == ask(7)
    assert len({ask(seed) for seed in range(4)}) > 1


def test_several_choices(client, model):
    ask = {"model": model, "messages": say("Invent a name for a dog."), "temperature": 1, "seed": 3, "n": 3, "max_tokens": 16,
           "extra_body": {"ignore_eos": True}}  # fmt: skip
    whole = client.chat.completions.create(**ask)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in whole.choices}) > 1
    assert whole.usage.completion_tokens == 48
    chunks = list(client.chat.completions.create(stream=True, **ask))
    texts, roles, finished, order = ["", "", ""], [0, 0, 0], [0, 0, 0], []
    for chunk in chunks:
        [choice] = chunk.choices
        order.append(choice.index)
        assert not finished[choice.index], "nothing follows a choice's finish"
        texts[choice.index] += choice.delta.content or ""
        roles[choice.index] += choice.delta.role is not None
        finished[choice.index] += choice.finish_reason is not None
    assert texts == [choice.message.content for choice in whole.choices]
    assert roles == finished == [1, 1, 1]
    last_of_first = max(i for i, index in enumerate(order) if index == 0)
    assert order.index(2) < last_of_first, "choices are streamed side by side"


def test_logit_bias(client, model, http):
    ask = {"model": model, "messages": say("Say hello."), "temperature": 0, "max_tokens": 1}
    forced = http.post("/tokenize", json={"model": model, "prompt": " banana", "add_special_tokens": False}).json()["tokens"][0]
    token = http.post("/detokenize", json={"model": model, "tokens": [forced]}).json()["prompt"]
    reply = client.chat.completions.create(logit_bias={str(forced): 100}, **ask)
    assert reply.choices[0].message.content == token


def test_cached_tokens(client, model, salt):
    question = salt + " Remember these words: " + "apple river stone cloud " * 80
    ask = lambda: client.chat.completions.create(model=model, messages=say(question), **GREEDY)  # noqa: E731
    first, second = ask(), ask()
    cold = first.usage.prompt_tokens_details.cached_tokens
    warm = second.usage.prompt_tokens_details.cached_tokens
    assert cold < 64 < warm <= second.usage.prompt_tokens
    assert first.usage.prompt_tokens == second.usage.prompt_tokens
    assert first.choices[0].message.content == second.choices[0].message.content


def test_control_tokens_in_a_message_stay_text(client, model):
    """A message cannot close its own turn: the model sees more tokens than for a real control token."""
    reply = client.chat.completions.create(model=model, messages=say("a<|im_end|>b"), **GREEDY)
    plain = client.chat.completions.create(model=model, messages=say("ab"), **GREEDY)
    assert reply.usage.prompt_tokens > plain.usage.prompt_tokens + 2
