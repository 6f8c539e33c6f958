"""The official anthropic SDK against /v1/messages (run with a model that calls tools: qwen2.5-coder)."""

import json
from typing import Literal

import anthropic
import pydantic
import pytest
from conftest import KEY, URL

WEATHER = {
    "name": "get_weather",
    "description": "Get the current weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "The city's name"}},
        "required": ["city"],
    },
}
ASK = {"role": "user", "content": "What is the weather in Paris right now?"}
SYSTEM = "You are a helpful assistant. When you have the result of a tool, answer the user in one sentence."
# Not among the SDK's arguments any more.
GREEDY = {"extra_body": {"temperature": 0}, "max_tokens": 200, "system": SYSTEM}


@pytest.fixture(scope="module")
def claude():
    with anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0, timeout=300) as sdk:
        yield sdk


@pytest.fixture(scope="module")
def first(claude, model):
    return claude.messages.create(model=model, messages=[ASK], tools=[WEATHER], **GREEDY)


def test_a_text(claude, model):
    message = claude.messages.create(model=model, messages=[{"role": "user", "content": "Say hello."}], **GREEDY)
    assert message.type == "message" and message.role == "assistant" and message.model == model
    [block] = message.content
    assert block.type == "text" and block.text
    assert message.stop_reason == "end_turn" and message.stop_sequence is None
    assert message.usage.output_tokens > 0


def test_a_stop_sequence(claude, model):
    ask = {"role": "user", "content": "Count from 1 to 10, separated by commas."}
    message = claude.messages.create(model=model, messages=[ask], stop_sequences=["5"], **GREEDY)
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "5")
    assert "5" not in message.content[0].text


def test_a_call(first):
    assert first.stop_reason == "tool_use"
    [call] = [block for block in first.content if block.type == "tool_use"]
    assert call.id.startswith("toolu_") and call.name == "get_weather" and "Paris" in call.input["city"]


def test_the_stream_helper_puts_the_same_message_together(claude, model, first):
    with claude.messages.stream(model=model, messages=[ASK], tools=[WEATHER], **GREEDY) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"
    assert final.stop_reason == "tool_use"
    shown = lambda message: [block.model_dump(exclude={"id"}) for block in message.content]  # noqa: E731
    assert shown(final) == shown(first)
    assert final.usage.input_tokens + final.usage.cache_read_input_tokens == (
        first.usage.input_tokens + first.usage.cache_read_input_tokens
    )


def test_a_second_round(claude, model, first):
    [call] = [block for block in first.content if block.type == "tool_use"]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": json.dumps({"celsius": 21, "sky": "clear"})}
    rounds = [ASK, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    message = claude.messages.create(model=model, messages=rounds, tools=[WEATHER], **GREEDY)
    assert message.stop_reason == "end_turn"
    assert "21" in message.content[0].text
    assert message.usage.cache_read_input_tokens > 0, "the first round is in the cache"


def test_the_parse_helper_gives_an_object_of_its_type(claude, model):
    class Order(pydantic.BaseModel):
        fruit: Literal["apples", "pears"]
        crates: int

    ask = {"role": "user", "content": "I take three crates of pears."}
    message = claude.messages.parse(model=model, messages=[ask], output_format=Order, **GREEDY)
    assert message.parsed_output == Order(fruit="pears", crates=3)


def test_counting(claude, model, first):
    counted = claude.messages.count_tokens(model=model, messages=[ASK], tools=[WEATHER], system=SYSTEM)
    assert counted.input_tokens == first.usage.input_tokens + first.usage.cache_read_input_tokens


def test_errors_are_the_sdks(claude, model):
    with pytest.raises(anthropic.BadRequestError) as bad:
        claude.messages.create(model=model, messages=[ASK], max_tokens=10, extra_body={"temperature": 7})
    assert "temperature" in str(bad.value) and bad.value.request_id
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="nothing", messages=[ASK], max_tokens=10)
