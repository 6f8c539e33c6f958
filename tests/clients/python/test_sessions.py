"""An agent's session over several turns: its cache grows with it, and the server says where a prompt parted from it."""

import pytest

LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Reads a file.",
        "parameters": {"type": "object", "properties": {"path": {"type": "string", "maxLength": 20}}, "required": ["path"]},
    },
}
TURNS = 4


def ask(client, model, messages, session, **extra):
    """The explanation as a dict, and the completion."""
    headers = {"x-session-id": session, "x-cache-explain": "1"}
    raw = client.chat.completions.with_raw_response.create(
        model=model, messages=messages, temperature=0, max_tokens=60, extra_headers=headers, **extra
    )
    assert raw.headers["x-session-affinity"] == session
    pairs = (pair.split("=") for pair in raw.headers["x-cache-explain"].split(", "))
    explained = {key: value if key == "closest" else int(value) for key, value in pairs}
    return explained, raw.parse()


@pytest.mark.parametrize("stream", [False, True])
def test_a_session_of_an_agent(client, model, salt, stream):
    messages = [
        {"role": "system", "content": f"Session {salt}: you read files for the user."},
        {"role": "user", "content": "What is in README.md, and in the files that it names?"},
    ]
    explained, reused = [], []
    for turn in range(TURNS):
        found, reply = ask(client, model, messages, salt, tools=[LOOK], tool_choice="required")
        if stream:
            # Asked once more, all but the last token is known.
            again, chunks = ask(client, model, messages, salt, tools=[LOOK], tool_choice="required", stream=True)
            assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] is not None
            assert again["closest"] == "whole"
            assert again["reused"] == (again["prompt"] - 1) // 16 * 16
        assert found["prompt"] == reply.usage.prompt_tokens
        assert found["reused"] == reply.usage.prompt_tokens_details.cached_tokens
        explained.append(found)
        reused.append(found["reused"])
        message = reply.choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        for call in message.tool_calls:
            messages.append({"role": "tool", "tool_call_id": call.id, "content": f"Line {turn} of {salt}."})
    assert reused == sorted(set(reused)), "each turn finds more than the one before"
    for before, now in zip(explained, explained[1:]):
        # All of the earlier prompt was found, but for what the template writes at its end for the answer.
        assert now["reused"] > before["prompt"] - 48
        assert now["differs_at"] >= now["reused"]

    # Somebody changes a word near the beginning.
    changed = [{"role": "system", "content": f"Session {salt}: you write files for the user."}, *messages[1:]]
    found, _ = ask(client, model, changed, salt, tools=[LOOK], tool_choice="required")
    assert found["closest"] == "differs"
    assert 0 < found["differs_at"] < explained[0]["prompt"]
    assert found["reused"] == found["differs_at"] // 16 * 16
