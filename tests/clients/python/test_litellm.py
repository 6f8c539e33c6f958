"""LiteLLM's proxy between the official SDKs and wick. LITELLM is its command, and wick wants WICK_API_KEY; it has one place
for a request that runs and one for a request that waits (`--max-running 1 --queue-requests 1`)."""

import asyncio
import json
import os
import pathlib
import socket
import subprocess
import time

import anthropic
import httpx
import openai
import pytest
from conftest import KEY, URL, say

EMBEDDER = os.environ.get("WICK_EMBEDDER", "all-minilm-l6-v2")
MASTER_KEY = "sk-gateway-0123456789abcdef"
START_SECONDS = 180


def configuration(model):
    """LiteLLM's file: JSON is YAML, too."""

    def route(name, target, key=KEY):
        return {"model_name": name, "litellm_params": {"model": f"openai/{target}", "api_base": f"{URL}/v1", "api_key": key}}

    return {
        "model_list": [
            route("small", model),
            route("vectors", EMBEDDER),
            route("no-key", model, "sk-wrong"),
            route("no-model", "no-such-model"),
        ],
        # One request to the proxy is one request to wick, whatever became of those before.
        "router_settings": {"num_retries": 0, "disable_cooldowns": True},
        "litellm_settings": {"num_retries": 0, "request_timeout": 300, "telemetry": False},
        "general_settings": {"master_key": MASTER_KEY},
    }


@pytest.fixture(scope="module")
def gateway(tmp_path_factory, model):
    """The proxy's address."""
    folder = tmp_path_factory.mktemp("litellm")
    (folder / "config.yaml").write_text(json.dumps(configuration(model)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [os.environ.get("LITELLM", "litellm"), "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port)]
    # Prices of models would come from the internet.
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "DISABLE_ADMIN_UI": "True"}
    log = pathlib.Path(folder / "log")
    with log.open("w") as out:
        proxy = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not alive(port):
            if proxy.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the proxy did not start:\n{log.read_text()[-4000:]}")
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
    finally:
        proxy.terminate()
        proxy.wait(timeout=30)


def alive(port):
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health/liveliness", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module")
def sdk(gateway):
    with openai.OpenAI(base_url=f"{gateway}/v1", api_key=MASTER_KEY, max_retries=0, timeout=300) as made:
        yield made


GREEDY = {"temperature": 0, "max_tokens": 24}
CITY = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"], "additionalProperties": False},
    },
}


def test_chat(sdk, client, model):
    ask = {"messages": say("Name a fruit.", "Be brief."), **GREEDY}
    through = sdk.chat.completions.create(model="small", **ask)
    direct = client.chat.completions.create(model=model, **ask)
    assert through.choices[0].message.content == direct.choices[0].message.content
    assert through.choices[0].finish_reason == direct.choices[0].finish_reason
    assert through.usage.prompt_tokens == direct.usage.prompt_tokens
    assert through.usage.completion_tokens == direct.usage.completion_tokens
    assert through.usage.total_tokens == direct.usage.total_tokens


def test_cached_tokens_pass(sdk):
    ask = {"model": "small", "messages": say("Remember: " + "apple river stone cloud " * 60), **GREEDY}
    sdk.chat.completions.create(**ask)
    usage = sdk.chat.completions.create(**ask).usage
    assert usage.prompt_tokens - 16 <= usage.prompt_tokens_details.cached_tokens < usage.prompt_tokens


def test_stream(sdk, client, model):
    ask = {"messages": say("Write one sentence about the sea."), **GREEDY}
    direct = client.chat.completions.create(model=model, **ask)
    chunks = list(sdk.chat.completions.create(model="small", stream=True, stream_options={"include_usage": True}, **ask))
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == direct.choices[0].message.content
    assert [c.finish_reason for c in choices if c.finish_reason] == [direct.choices[0].finish_reason]
    [usage] = [chunk.usage for chunk in chunks if chunk.usage]
    assert usage.completion_tokens == direct.usage.completion_tokens
    assert usage.prompt_tokens == direct.usage.prompt_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_tools(sdk, stream):
    ask = {"model": "small", "messages": say("Is it warm in Rome?"), "tools": [CITY], "tool_choice": "required", "temperature": 0, "max_tokens": 100}
    if stream:
        with sdk.chat.completions.stream(**ask) as events:
            choice = events.until_done().get_final_completion().choices[0]
    else:
        choice = sdk.chat.completions.create(**ask).choices[0]
    assert choice.finish_reason == "tool_calls"
    call = choice.message.tool_calls[0]
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    result = {"role": "tool", "tool_call_id": call.id, "content": "21 degrees"}
    history = [*ask["messages"], {"role": "assistant", "tool_calls": [call.model_dump(exclude={"index"}, exclude_none=True)]}, result]
    again = sdk.chat.completions.create(**{**ask, "messages": history, "tool_choice": "auto"})
    assert again.choices[0].message.content or again.choices[0].message.tool_calls


def test_structured_output(sdk):
    schema = {"type": "object", "properties": {"size": {"enum": ["S", "M"]}}, "required": ["size"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "size", "strict": True, "schema": schema}}
    reply = sdk.chat.completions.create(model="small", messages=say("A size."), response_format=form, **GREEDY)
    assert json.loads(reply.choices[0].message.content)["size"] in ("S", "M")


def test_embeddings(sdk, client):
    texts = ["A man is eating food.", "Someone has lunch."]
    through = sdk.embeddings.create(model="vectors", input=texts)
    direct = client.embeddings.create(model=EMBEDDER, input=texts)
    for ours, theirs in zip(through.data, direct.data, strict=True):
        assert ours.embedding == pytest.approx(theirs.embedding, abs=1e-6)
    assert through.usage.prompt_tokens == direct.usage.prompt_tokens


def test_responses(sdk):
    answer = sdk.responses.create(model="small", input="Say hello.", temperature=0, max_output_tokens=24)
    assert answer.output_text
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_messages(gateway, stream):
    """Anthropic's dialect: LiteLLM turns it into /v1/responses."""
    ask = {"model": "small", "messages": say("Say hello."), "max_tokens": 200, "system": "Be brief."}
    with anthropic.Anthropic(base_url=gateway, api_key=MASTER_KEY, max_retries=0, timeout=300) as claude:
        if stream:
            with claude.messages.stream(**ask) as events:
                message = events.get_final_message()
        else:
            message = claude.messages.create(**ask)
    assert message.stop_reason in ("end_turn", "max_tokens")
    assert message.content[0].text
    assert message.usage.output_tokens > 0


@pytest.mark.parametrize("stream", [False, True])
def test_context_too_long(sdk, context_length, stream):
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.create(model="small", messages=say("word " * (context_length + 100)), stream=stream, **GREEDY)
    assert "ContextWindowExceededError" in str(caught.value)
    assert f"maximum context length is {context_length} tokens" in str(caught.value)


def test_a_bad_value_names_its_field(sdk):
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.create(model="small", messages=say("Hi"), temperature=3)
    assert "`temperature`" in str(caught.value)


def test_unknown_model(sdk):
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.chat.completions.create(model="no-model", messages=say("Hi"), **GREEDY)
    assert "no-such-model" in str(caught.value)


def test_wrong_key(sdk):
    with pytest.raises(openai.AuthenticationError) as caught:
        sdk.chat.completions.create(model="no-key", messages=say("Hi"), **GREEDY)
    assert "AuthenticationError" in str(caught.value)


def test_overload(gateway):
    """What has no place is refused at once; what has one is answered. A refusal has its cause's status, so that a gateway
    may try elsewhere."""

    async def everyone():
        ask = {"model": "small", "messages": say("Tell a story."), "max_tokens": 60, "temperature": 0, "extra_body": {"ignore_eos": True}}
        async with openai.AsyncOpenAI(base_url=f"{gateway}/v1", api_key=MASTER_KEY, max_retries=0, timeout=300) as sdk:
            return await asyncio.gather(*(sdk.chat.completions.create(**ask) for _ in range(8)), return_exceptions=True)

    replies = asyncio.run(everyone())
    refused = [reply for reply in replies if isinstance(reply, Exception)]
    answered = [reply for reply in replies if not isinstance(reply, Exception)]
    assert refused and answered
    assert {error.status_code for error in refused} == {503}
    assert {reply.usage.completion_tokens for reply in answered} == {60}
