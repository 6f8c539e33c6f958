"""`/v1/responses` through the official SDK. Function calls are in test_tools.py."""

import openai
import pytest

ASK = {"input": "Say hello.", "temperature": 0, "max_output_tokens": 24}


@pytest.fixture(scope="module")
def whole(client, model):
    return client.responses.create(model=model, instructions="Be brief.", metadata={"k": "v"}, **ASK)


def test_a_response(whole, model):
    assert whole.id.startswith("resp_")
    assert (whole.object, whole.model, whole.error) == ("response", model, None)
    assert whole.status in ("completed", "incomplete")
    [message] = whole.output
    assert (message.type, message.role) == ("message", "assistant")
    assert whole.output_text == message.content[0].text != ""
    usage = whole.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert 0 < usage.output_tokens <= 24
    assert usage.input_tokens_details.cached_tokens >= 0
    assert usage.output_tokens_details.reasoning_tokens == 0
    assert (whole.instructions, whole.metadata, whole.temperature) == ("Be brief.", {"k": "v"}, 0)
    assert (whole.tools, whole.tool_choice, whole.parallel_tool_calls) == ([], "auto", True)


def test_every_field_has_its_type(whole):
    """The SDK does not validate what it reads; its models do."""
    type(whole).model_validate(whole.model_dump(by_alias=True), strict=True)


def test_events(client, model, whole):
    events = list(client.responses.create(model=model, instructions="Be brief.", stream=True, **ASK))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    for event in events:
        type(event).model_validate(event.model_dump(by_alias=True))
    kinds = [event.type for event in events]
    assert kinds[:4] == ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]
    ends = ["response.output_text.done", "response.content_part.done", "response.output_item.done", f"response.{whole.status}"]
    assert kinds[-4:] == ends
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert len(kinds) > 10
    assert "".join(event.delta for event in events[4:-4]) == whole.output_text == events[-1].response.output_text


def test_the_stream_helper(client, model):
    # Ends by itself, as the helper wants it.
    with client.responses.stream(model=model, input="Say hello.", temperature=0, max_output_tokens=400) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        answer = stream.get_final_response()
    assert answer.status == "completed"
    assert answer.output_text == text != ""


def test_a_cut_answer_says_so(client, model):
    answer = client.responses.create(model=model, input="Tell a story.", temperature=0, max_output_tokens=4)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (answer.output[0].status, answer.usage.output_tokens) == ("incomplete", 4)


def test_a_conversation_goes_on_with_earlier_items(client, model, whole):
    items = [{"role": "user", "content": [{"type": "input_text", "text": "Say hello."}]}, *whole.output]
    ask = {**ASK, "input": [*items, {"role": "user", "content": "Again."}]}
    answer = client.responses.create(model=model, **ask)
    assert answer.output_text
    assert answer.usage.input_tokens > whole.usage.input_tokens


def test_it_says_what_a_chat_says(client, model, whole):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say hello."}]
    chat = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=24)
    assert chat.choices[0].message.content == whole.output_text
    assert chat.usage.prompt_tokens == whole.usage.input_tokens


def test_log_probabilities(client, model):
    answer = client.responses.create(model=model, include=["message.output_text.logprobs"], top_logprobs=2, **ASK)
    part = answer.output[0].content[0]
    assert b"".join(bytes(token.bytes) for token in part.logprobs).decode(errors="replace").startswith(part.text)
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in part.logprobs)


def test_input_tokens(client, model, whole):
    counted = client.responses.input_tokens.count(model=model, instructions="Be brief.", input="Say hello.")
    assert (counted.object, counted.input_tokens) == ("response.input_tokens", whole.usage.input_tokens)


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "file_search"}]}, "tools[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0]"),
        ({"extra_body": {"inptu": 1}}, "inptu"),
    ],
)
def test_refusals_name_the_field(client, model, options, param):
    with pytest.raises(openai.BadRequestError) as error:
        client.responses.create(**{"model": model, **ASK, **options})
    assert error.value.param == param
