"""Responses that the server keeps, through the official SDK: conversations that go on by an id, with tools, and what is left of
them (run with a model that calls tools and `--responses-store`)."""

import concurrent.futures
import json

import openai
import pytest
from test_tools import FLAT, SYSTEM

QUESTION = "What is the weather in Paris right now?"
ASK = {"instructions": SYSTEM, "tools": FLAT, "temperature": 0, "max_output_tokens": 200}


def result(call):
    return {"type": "function_call_output", "call_id": call.call_id, "output": '{"temperature": "17 degrees", "sky": "light rain"}'}


@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_of_several_turns(client, model, stream):
    def say(**options):
        if not stream:
            return client.responses.create(model=model, **ASK, **options)
        with client.responses.stream(model=model, **ASK, **options) as events:
            for _ in events:
                pass
            return events.get_final_response()

    first = say(input=QUESTION)
    assert (first.store, first.previous_response_id) == (True, None)
    [call] = first.output
    assert (call.type, call.name) == ("function_call", "get_weather")
    second = say(input=[result(call)], previous_response_id=first.id)
    assert second.previous_response_id == first.id
    assert "17" in second.output_text
    third = say(input="Which city did I ask about? Answer with its name.", previous_response_id=second.id)
    assert "Paris" in third.output_text
    # All of the turn before but its end is in the cache.
    for before, after in (first, second), (second, third):
        assert after.usage.input_tokens > before.usage.input_tokens
        assert after.usage.input_tokens_details.cached_tokens > before.usage.input_tokens - 32

    # The same as sending all of it.
    items = [{"role": "user", "content": QUESTION}, *first.output, result(call), *second.output]
    items.append({"role": "user", "content": "Which city did I ask about? Answer with its name."})
    whole = say(input=items, store=False)
    assert (whole.output_text, whole.usage.input_tokens) == (third.output_text, third.usage.input_tokens)
    assert whole.store is False

    found = client.responses.retrieve(third.id)
    assert (found.output_text, found.usage) == (third.output_text, third.usage)
    assert found.model_dump() == client.responses.retrieve(third.id, include=["reasoning.encrypted_content"]).model_dump()
    listed = list(client.responses.input_items.list(third.id, order="asc", limit=2))
    assert [item.type for item in listed] == ["message", "function_call", "function_call_output", "message", "message"]
    assert (listed[0].content[0].text, listed[1].call_id) == (QUESTION, call.call_id)
    assert json.loads(listed[1].arguments)["city"]
    backwards = client.responses.input_items.list(third.id)
    assert [item.id for item in backwards] == [item.id for item in listed][::-1]
    after = client.responses.input_items.list(third.id, order="asc", after=listed[2].id)
    assert [item.id for item in after] == [item.id for item in listed[3:]]

    client.responses.delete(second.id)
    for gone in (lambda: client.responses.retrieve(second.id), lambda: client.responses.delete(second.id), lambda: client.responses.retrieve(whole.id)):
        with pytest.raises(openai.NotFoundError):
            gone()
    # What went on from it has what it needs.
    again = say(input="Thank you.", previous_response_id=third.id)
    assert len(list(client.responses.input_items.list(again.id))) == 7


def test_items_by_reference(client, model):
    first = client.responses.create(model=model, input=QUESTION, **ASK)
    [call] = first.output
    items = [{"role": "user", "content": QUESTION}, {"type": "item_reference", "id": call.id}, result(call)]
    second = client.responses.create(model=model, input=items, **ASK)
    items[1] = call
    assert second.output_text == client.responses.create(model=model, input=items, **ASK).output_text
    counted = client.responses.input_tokens.count(
        model=model, instructions=SYSTEM, tools=FLAT, previous_response_id=first.id, input=[result(call)]
    )
    assert counted.input_tokens == second.usage.input_tokens


def test_what_is_not_there(client, model):
    with pytest.raises(openai.BadRequestError) as error:
        client.responses.create(model=model, input="x", previous_response_id="resp_1")
    assert (error.value.code, error.value.param) == ("previous_response_not_found", "previous_response_id")
    with pytest.raises(openai.NotFoundError) as error:
        client.responses.create(model=model, input=[{"type": "item_reference", "id": "msg_1"}])
    assert (error.value.code, error.value.param) == ("item_not_found", "input[0].id")
    with pytest.raises(openai.NotFoundError):
        client.responses.input_items.list("resp_1")
    kept = client.responses.create(model=model, input="Hi", max_output_tokens=1)
    with pytest.raises(openai.BadRequestError) as error:
        list(client.responses.retrieve(kept.id, stream=True))
    assert error.value.param == "stream"


def test_many_conversations_at_once(client, model):
    def talk(number):
        ask = {"model": model, "temperature": 0, "max_output_tokens": 8}
        first = client.responses.create(input=f"Remember the number {number}.", **ask)
        second = client.responses.create(input="Which number?", previous_response_id=first.id, **ask)
        texts = [item.content[0].text for item in client.responses.input_items.list(second.id, order="asc")]
        assert texts == [f"Remember the number {number}.", first.output_text, "Which number?"]

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(talk, range(100, 116)))
