"""The official SDK of Cloudflare with its base URL pointed at wick; plain HTTP where it does not stream."""

import json
import math
import os

import cloudflare
import jsonschema
import openai
import pytest
from conftest import KEY, URL, say

ACCOUNT = "0123456789abcdef0123456789abcdef"
# A further name of the first model, with slashes, which the SDK escapes.
NAME = os.environ.get("WICK_FURTHER_NAME", os.environ.get("WICK_MODEL", "smollm2-135m"))
EMBEDDER = os.environ.get("WICK_EMBEDDER", "all-minilm-l6-v2")
SUM = {
    "name": "add",
    "description": "Adds two numbers",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer", "description": "one"}, "b": {"type": "integer", "description": "other"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def sdk():
    with cloudflare.Cloudflare(api_token=KEY, base_url=f"{URL}/client/v4", max_retries=0, timeout=300) as client:
        yield client


def run(sdk, name=NAME, **fields):
    """The result as plain data, and the envelope around it."""
    raw = sdk.ai.with_raw_response.run(name, account_id=ACCOUNT, **fields)
    envelope = json.loads(raw.text())
    assert (envelope["success"], envelope["errors"], envelope["messages"]) == (True, [], [])
    return envelope["result"]


def test_the_sdk_unwraps_the_result(sdk):
    result = sdk.ai.run(NAME, account_id=ACCOUNT, prompt="Say hello.", max_tokens=8, temperature=0)
    response = result["response"] if isinstance(result, dict) else result.response
    assert isinstance(response, str) and response


def test_text(sdk):
    result = run(sdk, messages=say("Say hello.", "Be brief."), max_tokens=12, temperature=0, seed=1, top_k=5)
    usage = result["usage"]
    assert result["response"] and 0 < usage["completion_tokens"] <= 12
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    raw = run(sdk, prompt="The capital of France is", raw=True, max_tokens=4, temperature=0)
    assert "Paris" in raw["response"]


def test_256_tokens_by_default(sdk):
    result = run(sdk, prompt="Count to a thousand.", temperature=0, extra_body={"ignore_eos": True})
    assert (result["usage"]["completion_tokens"], result["finish_reason"]) == (256, "length")


def test_a_stream_is_the_answer(http, sdk):
    body = {"messages": say("Write one sentence about the sea."), "max_tokens": 24, "temperature": 0}
    whole = run(sdk, **body)
    with http.stream("POST", f"/client/v4/accounts/{ACCOUNT}/ai/run/{NAME}", json={**body, "stream": True}) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("data: ") for line in reply.iter_lines() if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    events = [json.loads(event) for event in events]
    assert "".join(event["response"] for event in events) == whole["response"]
    same = ("prompt_tokens", "completion_tokens", "total_tokens")
    assert [events[-1]["usage"][field] for field in same] == [whole["usage"][field] for field in same]
    assert all("usage" not in event for event in events[:-1])


@pytest.mark.parametrize("tools", [[SUM], [{"type": "function", "function": SUM}]], ids=["traditional", "openai"])
def test_tools(sdk, tools):
    result = run(
        sdk, messages=say("What is 2 + 3?"), tools=tools, max_tokens=100, temperature=0, extra_body={"tool_choice": "required"}
    )
    assert result["response"] is None
    call = result["tool_calls"][0]
    assert call["name"] == "add"
    jsonschema.validate(call["arguments"], SUM["parameters"])
    history = [*say("What is 2 + 3?"), {"role": "assistant", "content": "", "tool_calls": [call]}]
    final = run(sdk, messages=[*history, {"role": "tool", "name": "add", "content": "5"}], max_tokens=16, temperature=0)
    assert final["response"]


def test_json_mode(sdk):
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    form = {"response_format": {"type": "json_schema", "json_schema": schema}}
    result = run(sdk, messages=say("Invent a person."), max_tokens=100, temperature=1, seed=3, extra_body=form)
    jsonschema.validate(result["response"], schema)
    with pytest.raises(cloudflare.BadRequestError) as caught:
        run(sdk, messages=say("Invent a person."), max_tokens=2, extra_body=form)
    assert "JSON Mode couldn't be met" in str(caught.value)
    with pytest.raises(cloudflare.BadRequestError):
        run(sdk, messages=say("Invent a person."), stream=True, extra_body=form)


def test_embeddings(client, sdk):
    texts = ["A man is eating food.", "Someone is having a meal."]
    result = run(sdk, EMBEDDER, text=texts)
    assert result["shape"] == [2, 384] and result["pooling"] == "mean"
    same = client.embeddings.create(model=EMBEDDER, input=texts, encoding_format="float")
    for mine, other in zip(result["data"], same.data, strict=True):
        assert math.dist(mine, other.embedding) < 1e-6
    assert run(sdk, EMBEDDER, text=texts[0])["shape"] == [1, 384]


def code(caught):
    return caught.value.errors[0].code


def test_errors(sdk):
    with pytest.raises(cloudflare.BadRequestError) as caught:
        run(sdk, "@cf/acme/no-such-model", prompt="x")
    assert code(caught) == 5007 and "No such model @cf/acme/no-such-model or task" in str(caught.value)
    with pytest.raises(cloudflare.BadRequestError) as caught:
        run(sdk, messages=[{"role": "king", "content": "x"}])
    assert code(caught) == 5006 and "messages[0].role" in str(caught.value)
    with pytest.raises(cloudflare.APIStatusError) as caught:
        run(sdk, prompt="x", lora="mine")
    assert (caught.value.status_code, code(caught)) == (405, 5005)
    with pytest.raises(cloudflare.APIStatusError) as caught:
        run(sdk, prompt="x", max_tokens=10_000_000)
    assert (caught.value.status_code, code(caught)) == (413, 5021)
    with pytest.raises(cloudflare.BadRequestError):
        run(sdk, prompt="x", extra_query={"queueRequest": "true"})


def test_openai_clients_below_the_account():
    base_url = f"{URL}/client/v4/accounts/{ACCOUNT}/ai/v1"
    with openai.OpenAI(base_url=base_url, api_key=KEY, max_retries=0, timeout=300) as client:
        reply = client.chat.completions.create(model=NAME, messages=say("Say hello."), max_tokens=8, temperature=0)
        assert reply.model == NAME and reply.choices[0].message.content
        response = client.responses.create(model=NAME, input="Say hello.", max_output_tokens=16)
        assert response.model == NAME
        assert client.embeddings.create(model=EMBEDDER, input="x").data[0].embedding
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="no-such-model", messages=say("x"))
        assert caught.value.code == "model_not_found"
