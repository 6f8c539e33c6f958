import json

import jsonschema
import openai
import pydantic
import pytest
from conftest import say

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "colour": {"enum": ["red", "green", "blue"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 2},
    },
    "required": ["name", "age", "colour", "tags"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": SCHEMA}}
ASK = say("Invent a person. Answer in JSON.")


def check(choice):
    """A complete answer validates; one that was cut says so."""
    content = choice.message.content if hasattr(choice, "message") else choice.text
    if choice.finish_reason == "length":
        return False
    assert choice.finish_reason == "stop"
    jsonschema.validate(json.loads(content), SCHEMA)
    return True


@pytest.mark.parametrize("temperature, seed", [(0, 0), (1.5, 1), (1.5, 2), (2, 3)])
def test_every_complete_answer_validates(client, model, temperature, seed):
    settings = {"temperature": temperature, "seed": seed, "n": 2, "max_tokens": 200, "response_format": FORMAT}
    whole = client.chat.completions.create(model=model, messages=ASK, **settings)
    assert sum(check(choice) for choice in whole.choices) > 0
    texts = ["", ""]
    for chunk in client.chat.completions.create(model=model, messages=ASK, stream=True, **settings):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]


def test_completions_take_it_too(client, model):
    reply = client.completions.create(
        model=model, prompt="A person as JSON: ", max_tokens=200, extra_body={"guided_json": SCHEMA, "temperature": 1.2, "seed": 5}
    )
    assert check(reply.choices[0])


def test_cut_by_max_tokens(client, model):
    reply = client.chat.completions.create(model=model, messages=ASK, max_tokens=4, response_format=FORMAT)
    assert reply.choices[0].finish_reason == "length"


def test_json_object(client, model):
    reply = client.chat.completions.create(
        model=model, messages=ASK, max_tokens=300, temperature=0, response_format={"type": "json_object"}
    )
    [choice] = reply.choices
    assert choice.finish_reason == "length" or isinstance(json.loads(choice.message.content), dict)
    assert choice.message.content.startswith("{")


class Step(pydantic.BaseModel):
    done: bool
    count: int = pydantic.Field(ge=0, le=99)


class Plan(pydantic.BaseModel):
    first: Step
    second: Step | None


# The SDK's own, about the message that goes back.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_parse_helper(client, model):
    ask = {"model": model, "max_tokens": 200, "temperature": 0, "response_format": Plan}
    reply = client.chat.completions.parse(messages=say("Plan."), **ask)
    message = reply.choices[0].message
    assert isinstance(message.parsed, Plan)
    # A message goes back as it came, with what the helper made of it.
    again = client.chat.completions.parse(messages=[*say("Plan."), message, *say("Plan more.")], **ask)
    assert isinstance(again.choices[0].message.parsed, Plan)


def test_parse_helper_with_tools(client, model):
    tools = [openai.pydantic_function_tool(Step, name="step")]
    ask = {"model": model, "messages": say("One step."), "tools": tools, "tool_choice": "required"}
    ask |= {"parallel_tool_calls": False, "max_tokens": 200, "temperature": 0}
    message = client.chat.completions.parse(**ask).choices[0].message
    [call] = message.tool_calls
    assert isinstance(call.function.parsed_arguments, Step)
    result = {"role": "tool", "tool_call_id": call.id, "content": "done"}
    messages = [*say("One step."), message, result]
    assert client.chat.completions.parse(**{**ask, "messages": messages}).choices[0].message.tool_calls


def test_stream_helper(client, model):
    ask = {"model": model, "messages": say("Plan."), "max_tokens": 200, "temperature": 0, "response_format": Plan}
    with client.chat.completions.stream(**ask) as stream:
        events = list(stream)
        final = stream.get_final_completion().choices[0].message
    assert isinstance(final.parsed, Plan)
    assert "".join(event.delta for event in events if event.type == "content.delta") == final.content
    [done] = [event for event in events if event.type == "content.done"]
    assert done.parsed == final.parsed == client.chat.completions.parse(**ask).choices[0].message.parsed


@pytest.mark.parametrize("stream", [False, True])
def test_helpers_of_responses(client, model, stream):
    ask = {"model": model, "input": "Plan.", "temperature": 0, "max_output_tokens": 200, "text_format": Plan}
    if stream:
        with client.responses.stream(**ask) as events:
            text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
            answer = events.get_final_response()
        assert text == answer.output_text
    else:
        answer = client.responses.parse(**ask)
    assert isinstance(answer.output_parsed, Plan)


@pytest.mark.parametrize(
    "extra, texts",
    [
        ({"structured_outputs": {"choice": ["yes", "no"]}}, {"yes", "no"}),
        ({"guided_regex": "(a|b)c"}, {"ac", "bc"}),
        ({"guided_grammar": 'root ::= "x" [12]'}, {"x1", "x2"}),
        ({"structured_outputs": {"grammar": 'start: "x" /[12]/'}}, {"x1", "x2"}),
    ],
)
def test_other_forms(client, model, extra, texts):
    for temperature in (0, 1.8):
        reply = client.chat.completions.create(model=model, messages=ASK, temperature=temperature, extra_body=extra)
        assert reply.choices[0].message.content in texts
        assert reply.choices[0].finish_reason == "stop"


def test_unsupported_keyword_is_named(client, model):
    schema = {"type": "array", "uniqueItems": True}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model=model, messages=ASK, response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        )
    assert caught.value.code == "unsupported_schema"
    assert caught.value.param == "response_format"
    assert "uniqueItems" in str(caught.value)
