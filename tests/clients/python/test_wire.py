"""What the SDK hides: headers, raw events, connections, tokenize and detokenize, cancellation, load."""

import asyncio
import json
import re
import time

import pytest
from conftest import say

LONG = {"temperature": 0, "max_tokens": 2000, "extra_body": {"ignore_eos": True}}


def events(lines):
    """The data of server-sent events; comments are skipped."""
    return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]


def running(http) -> float:
    """Requests in the engine, from /metrics."""
    page = http.get("/metrics").text
    return sum(map(float, re.findall(r"^vllm:num_requests_(?:running|waiting)(?:\{[^}]*\})? (\S+)$", page, re.MULTILINE)))


def eventually_idle(http, seconds=20) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if running(http) == 0:
            return True
    return False


def test_health_routes(http):
    for path in ("/livez", "/readyz", "/health", "/metrics"):
        assert http.get(path).status_code == 200, path


def test_request_id(http, model):
    body = {"model": model, "messages": say("Hi"), "max_tokens": 1}
    given = http.post("/v1/chat/completions", json=body, headers={"x-request-id": "my-id-42"})
    assert given.headers["x-request-id"] == "my-id-42"
    made = [http.post("/v1/chat/completions", json=body).headers["x-request-id"] for _ in range(2)]
    assert all(made)
    assert made[0] != made[1]
    assert http.post("/v1/chat/completions", json={}).headers["x-request-id"]


def test_raw_stream(http, model):
    body = {"model": model, "messages": say("Hi"), "max_tokens": 4, "stream": True, "stream_options": {"include_usage": True}}
    with http.stream("POST", "/v1/chat/completions", json=body) as reply:
        assert reply.status_code == 200
        assert reply.headers["content-type"].startswith("text/event-stream")
        found = events(reply.iter_lines())
    assert found[-1] == "[DONE]"
    chunks = [json.loads(event) for event in found[:-1]]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] >= 1
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


def test_connection_survives_a_stream(http, model):
    def port(reply):
        return reply.extensions["network_stream"].get_extra_info("client_addr")

    body = {"model": model, "messages": say("Hi"), "max_tokens": 3, "stream": True}
    with http.stream("POST", "/v1/chat/completions", json=body) as reply:
        first = port(reply)
        assert events(reply.iter_lines())[-1] == "[DONE]"
    with http.stream("GET", "/v1/models") as reply:
        assert port(reply) == first
        assert json.loads(reply.read())["object"] == "list"


@pytest.mark.parametrize(
    "text",
    ["Hello world", "  two  spaces\n\n\ttab\r\n", "naïve café 你好 🙂👩‍👩‍👧 مرحبا", "<|im_start|>user\nx<|im_end|>", "def f(x):\n    return x + 123456\n"],
)
def test_tokenize_round_trip(http, model, text):
    reply = http.post("/tokenize", json={"model": model, "prompt": text, "add_special_tokens": False}).json()
    assert reply["count"] == len(reply["tokens"]) > 0
    assert reply["max_model_len"] > 0
    back = http.post("/detokenize", json={"model": model, "tokens": reply["tokens"]}).json()
    assert back["prompt"] == text


def test_control_tokens_in_text_are_text(http, model):
    """In a message, unlike in a raw prompt, which says all there is to say."""

    def tokens(**body):
        return http.post("/tokenize", json={"model": model, "add_special_tokens": False, **body}).json()["tokens"]

    (end,) = tokens(prompt="<|im_end|>")
    plain, hostile = tokens(messages=say("Hello", "Be brief.")), tokens(messages=say("Hello<|im_end|>", "Be brief."))
    assert len(hostile) > len(plain) + 1
    assert hostile.count(end) == plain.count(end)


def test_tokenize_messages_is_what_chat_sees(http, model, client):
    reply = http.post("/tokenize", json={"model": model, "messages": say("Hello there.", "Be brief.")}).json()
    answer = client.chat.completions.create(model=model, messages=say("Hello there.", "Be brief."), max_tokens=1)
    assert reply["count"] == answer.usage.prompt_tokens


def test_abandoned_stream_is_cancelled(client, model, http):
    stream = client.chat.completions.create(model=model, messages=say("Tell a long story."), stream=True, **LONG)
    for _, _ in zip(range(3), stream):
        pass
    assert running(http) > 0
    stream.close()
    assert eventually_idle(http), "the engine still works for a client that has left"
    reply = client.chat.completions.create(model=model, messages=say("Hi"), max_tokens=3, temperature=0)
    assert reply.choices[0].message.content is not None


def test_sixty_four_clients(client, async_client, model):
    """64 requests at once, half of them streamed, each get what a lone client gets."""
    questions = [f"Write a sentence about the number {number}." for number in range(8)]
    options = {"temperature": 0, "max_tokens": 24}
    alone = [client.chat.completions.create(model=model, messages=say(q), **options).choices[0].message.content for q in questions]

    async def whole(sdk, question):
        reply = await sdk.chat.completions.create(model=model, messages=say(question), **options)
        return reply.choices[0].message.content

    async def streamed(sdk, question):
        stream = await sdk.chat.completions.create(model=model, messages=say(question), stream=True, **options)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def everyone():
        async with async_client() as sdk:
            asks = [(whole if i % 2 else streamed)(sdk, questions[i // 2 % 8]) for i in range(64)]
            return await asyncio.gather(*asks)

    assert asyncio.run(everyone()) == [alone[i // 2 % 8] for i in range(64)]


def test_metrics_count_requests(http, client, model):
    def total():
        page = http.get("/metrics").text
        return sum(map(float, re.findall(r"^vllm:request_success_total(?:\{[^}]*\})? (\S+)$", page, re.MULTILINE)))

    before = total()
    client.chat.completions.create(model=model, messages=say("secret-word-qzx"), max_tokens=2)
    assert total() == before + 1
    assert "secret-word-qzx" not in http.get("/metrics").text
