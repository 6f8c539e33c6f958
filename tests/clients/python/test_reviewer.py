"""An agent that reviews code, with the official SDK: it gets a diff, looks around with tools, and answers by schema.

What it finds is up to the model (a small one): what holds here is that the loop works and how."""

import json
import pathlib
import re
import uuid
from typing import Literal

import openai
import pydantic
import pytest

PROJECT = pathlib.Path(__file__).parent / "review"
# It looks before it speaks, and comes to an end.
CHOICES = [{"type": "function", "function": {"name": name}} for name in ("read_file", "grep")] + ["auto", "auto", "none"]
SYSTEM = """You review changes of a Python project. Look at the files that a diff changes with your tools before you \
judge: a diff shows only a part. Then answer with your findings: mistakes that the change makes, each with its file and \
line. Do not call a tool twice with the same arguments."""


class ReadFile(pydantic.BaseModel):
    """Read a file of the project, with line numbers."""

    path: Literal["shop/cart.py", "shop/prices.py"]


class Grep(pydantic.BaseModel):
    """Find the lines of the project that contain a text."""

    text: str = pydantic.Field(min_length=2, max_length=40)


class Finding(pydantic.BaseModel):
    file: Literal["shop/cart.py", "shop/prices.py"]
    line: int = pydantic.Field(ge=1, le=40)
    severity: Literal["error", "warning"]
    message: str = pydantic.Field(min_length=10, max_length=120)


class Review(pydantic.BaseModel):
    findings: list[Finding] = pydantic.Field(min_length=1, max_length=2)
    verdict: Literal["approve", "request changes"]


def read_file(ask):
    lines = (PROJECT / ask.path).read_text().splitlines()
    return "\n".join(f"{number}: {line}" for number, line in enumerate(lines, 1))


def grep(ask):
    found = []
    for path in sorted(PROJECT.rglob("*.py")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if ask.text in line:
                found.append(f"{path.relative_to(PROJECT)}:{number}: {line}")
    return "\n".join(found) or "nothing found"


TOOLS = {"read_file": (ReadFile, read_file), "grep": (Grep, grep)}


class Reviewer:
    """The loop, and a record of it."""

    def __init__(self, client, model):
        self.client, self.turns, self.results = client, [], []
        self.ask = {
            "model": model,
            "tools": [openai.pydantic_function_tool(kind, name=name) for name, (kind, _) in TOOLS.items()],
            "response_format": Review,
            "temperature": 0,
            "max_tokens": 300,
            "parallel_tool_calls": False,
            # No earlier prompts are found in the cache.
            "extra_body": {"cache_salt": uuid.uuid4().hex},
        }
        self.messages = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": "Review this change.\n\n" + (PROJECT / "change.diff").read_text()},
        ]

    def run(self):
        for tool_choice in CHOICES:
            reply = self.client.chat.completions.parse(messages=self.messages, tool_choice=tool_choice, **self.ask)
            self.turns.append(reply)
            [choice] = reply.choices
            if not choice.message.tool_calls:
                return choice
            self.messages.append(choice.message)
            for call in choice.message.tool_calls:
                result = TOOLS[call.function.name][1](call.function.parsed_arguments)
                self.results.append(result)
                self.messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
        raise AssertionError("the last turn has no tools, and yet called one")


@pytest.fixture(scope="module")
def reviewer(client, model):
    made = Reviewer(client, model)
    made.answer = made.run()
    return made


def test_it_looks_and_comes_to_an_end(reviewer):
    *looks, last = reviewer.turns
    for turn in looks:
        [choice] = turn.choices
        assert choice.finish_reason == "tool_calls"
        [call] = choice.message.tool_calls
        assert isinstance(call.function.parsed_arguments, TOOLS[call.function.name][0])
    assert {turn.choices[0].message.tool_calls[0].function.name for turn in looks} == set(TOOLS)
    assert last.choices[0].finish_reason == "stop"
    assert any(re.search(r"def (average|price_of)", result) for result in reviewer.results)


def test_its_findings_follow_the_schema(reviewer):
    review = reviewer.answer.message.parsed
    assert isinstance(review, Review)
    assert Review.model_validate(json.loads(reviewer.answer.message.content), strict=True) == review


def test_each_turn_finds_the_one_before_in_the_cache(reviewer):
    """As long as the tools that the prompt begins with are the same: without tools it begins differently."""
    turns = [turn.usage for turn in reviewer.turns[: CHOICES.index("none")]]
    assert turns[0].prompt_tokens_details.cached_tokens == 0
    for before, after in zip(turns, turns[1:]):
        cached = after.prompt_tokens_details.cached_tokens
        # Whole blocks of 16 tokens.
        assert before.prompt_tokens - 16 <= cached < after.prompt_tokens
        assert cached > before.prompt_tokens_details.cached_tokens


def test_the_streamed_answer_is_the_same(reviewer, client):
    """The stream helper with the same history: the last turn again."""
    last = CHOICES[len(reviewer.turns) - 1]
    with client.chat.completions.stream(messages=reviewer.messages, tool_choice=last, **reviewer.ask) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        answer = stream.get_final_completion().choices[0]
    assert len(deltas) > 10
    assert "".join(deltas) == answer.message.content == reviewer.answer.message.content
    assert answer.message.parsed == reviewer.answer.message.parsed
