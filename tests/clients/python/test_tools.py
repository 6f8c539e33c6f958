"""Tools with a model that calls them (run with qwen2.5-coder), at temperature 0."""

import json

import pytest
from conftest import say

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "The city's name"}},
            "required": ["city"],
        },
    },
}
TIME = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "Get the current time in a time zone.",
        "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}, "required": ["zone"]},
    },
}
SYSTEM = "You are a helpful assistant. When you have the result of a tool, answer the user in one sentence."
ASK = say("What is the weather in Paris right now?", SYSTEM)
GREEDY = {"temperature": 0, "max_tokens": 200}


@pytest.fixture(scope="module")
def first(client, model):
    """The answer to the question, with both tools offered."""
    return client.chat.completions.create(model=model, messages=ASK, tools=[WEATHER, TIME], **GREEDY).choices[0]


def test_a_call(first):
    assert first.finish_reason == "tool_calls"
    [call] = first.message.tool_calls
    assert call.type == "function"
    assert call.id.startswith("call_")
    assert call.function.name == "get_weather"
    assert "Paris" in json.loads(call.function.arguments)["city"]
    assert first.message.content is None


def test_the_stream_has_the_same_call(client, model, first):
    chunks = client.chat.completions.create(model=model, messages=ASK, tools=[WEATHER, TIME], stream=True, **GREEDY)
    parts = [(part, choice.finish_reason) for chunk in chunks for choice in chunk.choices for part in choice.delta.tool_calls or []]
    head, *rest = [part for part, _ in parts]
    assert (head.index, head.type, head.function.name, head.function.arguments) == (0, "function", "get_weather", "")
    assert head.id.startswith("call_")
    assert all(part.index == 0 and part.id is None and part.function.name is None for part in rest)
    assert len(rest) > 1, "arguments come as they are written"
    assert "".join(part.function.arguments for part in rest) == first.message.tool_calls[0].function.arguments


def test_the_stream_helper_puts_it_together(client, model, first):
    with client.chat.completions.stream(model=model, messages=ASK, tools=[WEATHER, TIME], **GREEDY) as stream:
        kinds = {event.type for event in stream}
        answer = stream.get_final_completion().choices[0]
    assert "tool_calls.function.arguments.delta" in kinds
    assert answer.finish_reason == "tool_calls"
    [call] = answer.message.tool_calls
    assert call.function.arguments == first.message.tool_calls[0].function.arguments


@pytest.mark.parametrize("stream", [False, True])
def test_a_second_round_uses_the_result(client, model, first, stream):
    [call] = first.message.tool_calls
    messages = [
        *ASK,
        first.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": '{"temperature": "17 degrees", "sky": "light rain"}'},
    ]
    ask = {"model": model, "messages": messages, "tools": [WEATHER, TIME], **GREEDY}
    if stream:
        chunks = [choice for chunk in client.chat.completions.create(stream=True, **ask) for choice in chunk.choices]
        text, reason = "".join(c.delta.content or "" for c in chunks), chunks[-1].finish_reason
    else:
        [choice] = client.chat.completions.create(**ask).choices
        text, reason = choice.message.content, choice.finish_reason
    assert reason == "stop"
    assert "17" in text


def test_none_calls_nothing(client, model):
    [choice] = client.chat.completions.create(model=model, messages=ASK, tools=[WEATHER], tool_choice="none", **GREEDY).choices
    assert choice.finish_reason in ("stop", "length")
    assert choice.message.tool_calls is None


def test_no_call_where_none_is_needed(client, model):
    [choice] = client.chat.completions.create(model=model, messages=say("Say hello in one word."), tools=[WEATHER], **GREEDY).choices
    assert choice.finish_reason == "stop"
    assert choice.message.tool_calls is None
    assert choice.message.content


def test_a_wrong_result_is_refused(client, model):
    import openai

    messages = [*ASK, {"role": "tool", "tool_call_id": "call_x", "content": "17"}]
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model=model, messages=messages, tools=[WEATHER], **GREEDY)
    assert error.value.param == "messages[2].tool_call_id"


FLAT = [{"type": "function", **tool["function"], "strict": False} for tool in (WEATHER, TIME)]


@pytest.mark.parametrize("stream", [False, True])
def test_a_round_trip_with_responses(client, model, stream):
    """The SDK's own loop: the answer's items go back with the call's output."""
    question = [{"role": "user", "content": "What is the weather in Paris right now?"}]
    ask = {"model": model, "instructions": SYSTEM, "tools": FLAT, "temperature": 0, "max_output_tokens": 200}
    if stream:
        with client.responses.stream(input=question, **ask) as events:
            kinds = {event.type for event in events}
            answer = events.get_final_response()
        assert {"response.function_call_arguments.delta", "response.function_call_arguments.done"} <= kinds
    else:
        answer = client.responses.create(input=question, **ask)
    assert answer.status == "completed"
    [call] = answer.output
    assert (call.type, call.name, call.status) == ("function_call", "get_weather", "completed")
    assert call.id.startswith("fc_")
    assert call.call_id.startswith("call_")
    assert "Paris" in json.loads(call.arguments)["city"]
    output = {"type": "function_call_output", "call_id": call.call_id, "output": '{"temperature": "17 degrees", "sky": "light rain"}'}
    last = client.responses.create(input=[*question, *answer.output, output], **ask)
    assert "17" in last.output_text
