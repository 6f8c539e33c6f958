"""Every error arrives as the SDK's class for its status, with `code` and `param` where the cause has one."""

import re

import openai
import pytest
from conftest import say


def refused(client, model, kind=openai.BadRequestError, **options):
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**{"model": model, "messages": say("Hi"), "max_tokens": 2, **options})
    return caught.value


def test_unknown_model(client):
    error = refused(client, "no-such-model", openai.NotFoundError)
    assert (error.status_code, error.code, error.param) == (404, "model_not_found", "model")
    assert error.type == "invalid_request_error"
    assert error.request_id


def test_context_length(client, model, context_length):
    error = refused(client, model, messages=say("word " * (context_length + 100)))
    assert (error.status_code, error.code) == (400, "context_length_exceeded")
    assert error.param == "messages"
    assert re.search(rf"maximum context length is {context_length} tokens", str(error))
    assert max(map(int, re.findall(r"\d+", str(error)))) > context_length


def test_prompt_and_completion_together_exceed_the_context(client, model, context_length):
    error = refused(client, model, max_tokens=context_length)
    assert error.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"n": 0}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"stop": ["a"] * 33}, "stop"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "Hi"}]}, "messages"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"extra_body": {"temperature": "hot"}}, "temperature"),
        ({"extra_body": {"stream": "yes"}}, "stream"),
    ],
)
def test_bad_value(client, model, options, param):
    error = refused(client, model, **options)
    assert error.status_code == 400
    assert error.type == "invalid_request_error"
    assert error.param.startswith(param), error
    assert param in str(error)


def test_unknown_field(client, model):
    error = refused(client, model, extra_body={"temprature": 1})
    assert error.param == "temprature"
    assert "temprature" in str(error)


def test_text_response_format_is_accepted(client, model):
    reply = client.chat.completions.create(
        model=model, messages=say("Hi"), max_tokens=2, response_format={"type": "text"}, user="tester", store=False
    )
    assert reply.choices[0].message.role == "assistant"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b'{"model": 5}', b"\xff\xfe{}", b"[" * 10_000])
def test_malformed_body(http, body):
    reply = http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert set(error) == {"message", "type", "param", "code"}


def test_unknown_route_and_method(http):
    missing = http.get("/v1/no-such-route")
    assert missing.status_code == 404
    assert missing.json()["error"]["message"]
    wrong = http.get("/v1/chat/completions")
    assert wrong.status_code == 405
    assert wrong.json()["error"]["message"]


def test_errors_harm_nobody(client, model):
    for _ in range(3):
        refused(client, model, temperature=9)
    reply = client.chat.completions.create(model=model, messages=say("Hi"), max_tokens=2)
    assert reply.usage.completion_tokens >= 1
