"""Calls that must be made: their grammar makes even the smallest model call correctly, at any temperature."""

import json

import pytest
from conftest import say

BOOK = {
    "type": "function",
    "function": {
        "name": "book_table",
        "description": "Book a table in a restaurant.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {
                "guests": {"type": "integer", "minimum": 1, "maximum": 12},
                "time": {"type": "string", "pattern": "^[0-2][0-9]:[0-5][0-9]$"},
                "area": {"enum": ["inside", "terrace"]},
            },
            "required": ["guests", "time", "area"],
            "additionalProperties": False,
        },
    },
}
CANCEL = {
    "type": "function",
    "function": {"name": "cancel", "parameters": {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]}},
}
ASK = say("A table for two on the terrace at half past seven, please.")


def check(name, arguments):
    arguments = json.loads(arguments)
    if name == "cancel":
        assert isinstance(arguments["id"], int)
        return
    assert name == "book_table"
    assert set(arguments) == {"guests", "time", "area"}
    assert 1 <= arguments["guests"] <= 12 and arguments["area"] in ("inside", "terrace")
    assert len(arguments["time"]) == 5


@pytest.mark.parametrize("temperature", [0, 1.5])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "book_table"}}])
def test_a_call_is_made_and_fits_its_schema(client, model, choice, temperature):
    for seed in range(3):
        choice_made = client.chat.completions.create(
            model=model, messages=ASK, tools=[BOOK, CANCEL], tool_choice=choice, parallel_tool_calls=False,
            temperature=temperature, seed=seed, max_tokens=300,
        ).choices[0]
        assert choice_made.finish_reason == "tool_calls"
        [call] = choice_made.message.tool_calls
        if choice != "required":
            assert call.function.name == "book_table"
        check(call.function.name, call.function.arguments)


def test_a_streamed_call(client, model):
    with client.chat.completions.stream(
        model=model, messages=ASK, tools=[BOOK], tool_choice="required", parallel_tool_calls=False, temperature=0, max_tokens=300
    ) as stream:
        for _ in stream:
            pass
        choice = stream.get_final_completion().choices[0]
    assert choice.finish_reason == "tool_calls"
    check(choice.message.tool_calls[0].function.name, choice.message.tool_calls[0].function.arguments)


def test_tools_and_a_form_share_an_answer(client, model):
    """An answer is a call, or JSON of the schema: nothing else."""
    form = {"type": "json_schema", "json_schema": {"name": "mood", "schema": {"enum": ["good", "bad"]}}}
    for seed in range(3):
        choice = client.chat.completions.create(
            model=model, messages=say("How are you?"), tools=[CANCEL], response_format=form, seed=seed, max_tokens=200
        ).choices[0]
        if choice.message.tool_calls:
            check(choice.message.tool_calls[0].function.name, choice.message.tool_calls[0].function.arguments)
        else:
            assert json.loads(choice.message.content) in ("good", "bad")
