"""OpenAI's agents SDK with an MCP server over stdio, on /v1/chat/completions and on /v1/responses (run with a model that
calls tools: qwen2.5-coder)."""

import asyncio
import contextlib
import pathlib
import sys

import agents
import openai
import pydantic
import pytest
from agents.mcp import MCPServerStdio
from conftest import KEY, URL

# Traces would go to OpenAI.
agents.set_tracing_disabled(True)
SERVER = {"command": sys.executable, "args": [str(pathlib.Path(__file__).with_name("mcp_server.py"))]}
# Words after which the model has no doubt whether to answer: what is tested is the way of its words, not a choice between equals.
INSTRUCTIONS = (
    "You are a clerk in a warehouse. Look things up with your tools, then tell the customer what you found, in one short sentence."
)
ASK = "How many crates of apples are in the warehouse?"
DIALECTS = {"chat": agents.OpenAIChatCompletionsModel, "responses": agents.OpenAIResponsesModel}


class Stock(pydantic.BaseModel):
    fruit: str = pydantic.Field(max_length=20)
    crates: int = pydantic.Field(ge=0, le=1000)


@contextlib.asynccontextmanager
async def warehouse(model, dialect, **options):
    """An agent with the MCP server's tools."""
    sdk = openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0, timeout=300)
    async with sdk, MCPServerStdio(params=SERVER, client_session_timeout_seconds=60) as tools:
        yield agents.Agent(
            name="clerk",
            instructions=INSTRUCTIONS,
            mcp_servers=[tools],
            model=DIALECTS[dialect](model=model, openai_client=sdk),
            model_settings=agents.ModelSettings(temperature=0, max_tokens=200, include_usage=True),
            **options,
        )


def kinds(result):
    return [item.type for item in result.new_items]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_run_calls_the_servers_tool(model, dialect):
    async def run():
        async with warehouse(model, dialect) as agent:
            first = await agents.Runner.run(agent, ASK)
            # Asked again, the model likes to guess. The SDK lifts this after the first call.
            agent.model_settings.tool_choice = "required"
            more = [*first.to_input_list(), {"role": "user", "content": "And how many crates of plums?"}]
            return first, await agents.Runner.run(agent, more)

    first, second = asyncio.run(run())
    for result, found in (first, "17"), (second, "52"):
        assert kinds(result) == ["tool_call_item", "tool_call_output_item", "message_output_item"]
        assert found in str(result.new_items[1].output)
        assert found in result.final_output
    usage = second.context_wrapper.usage
    assert usage.requests == 2
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert usage.input_tokens_details.cached_tokens > 0, "each turn begins with the one before"


@pytest.mark.parametrize("auto", [False, True])
def test_a_run_goes_on_from_a_kept_response(model, auto):
    """With `previous_response_id` the SDK sends what is new alone; with `auto_previous_response_id` within a run, too."""

    async def run():
        async with warehouse(model, "responses") as agent:
            first = await agents.Runner.run(agent, ASK, auto_previous_response_id=auto)
            agent.model_settings.tool_choice = "required"
            more = "And how many crates of plums?"
            second = await agents.Runner.run(agent, more, previous_response_id=first.last_response_id)
            agent.model_settings.tool_choice = "required"
            whole = [*first.to_input_list(), {"role": "user", "content": more}]
            agent.model_settings.store = False
            return first, second, await agents.Runner.run(agent, whole)

    first, second, whole = asyncio.run(run())
    for result, found in (first, "17"), (second, "52"):
        assert kinds(result) == ["tool_call_item", "tool_call_output_item", "message_output_item"]
        assert found in result.final_output
    assert second.final_output == whole.final_output
    usage, sent = second.context_wrapper.usage, whole.context_wrapper.usage
    assert (usage.requests, usage.input_tokens) == (2, sent.input_tokens)
    assert usage.input_tokens_details.cached_tokens > 0


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_streamed_run_is_the_same(model, dialect):
    async def run():
        async with warehouse(model, dialect) as agent:
            whole = await agents.Runner.run(agent, ASK)
            streamed = agents.Runner.run_streamed(agent, ASK)
            return whole, streamed, [event async for event in streamed.stream_events()]

    whole, streamed, events = asyncio.run(run())
    assert streamed.final_output == whole.final_output
    assert kinds(streamed) == kinds(whole)
    raw = [event.data for event in events if event.type == "raw_response_event"]
    text = "".join(event.delta for event in raw if event.type == "response.output_text.delta")
    assert text == whole.final_output
    assert sum(event.type == "response.function_call_arguments.delta" for event in raw) > 1
    names = [event.name for event in events if event.type == "run_item_stream_event"]
    assert names == ["tool_called", "tool_output", "message_output_created"]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_answer_of_a_type_after_a_call(model, dialect):
    """Each answer of the model is a call, or what `output_type` asks for."""

    async def run():
        async with warehouse(model, dialect, output_type=Stock) as agent:
            agent.model_settings.tool_choice = "required"
            return await agents.Runner.run(agent, ASK)

    result = asyncio.run(run())
    assert isinstance(result.final_output, Stock)
    assert "tool_call_output_item" in kinds(result)
