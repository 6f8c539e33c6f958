import math
import os

import openai
import pytest

EMBEDDER = os.environ.get("WICK_EMBEDDER", "all-minilm-l6-v2")
TEXTS = ["A man is eating food.", "Someone is having a meal.", "The stock market fell sharply on Monday."]


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b)) / math.hypot(*a) / math.hypot(*b)


def test_near_texts_have_near_vectors(client):
    reply = client.embeddings.create(model=EMBEDDER, input=TEXTS)
    assert (reply.object, reply.model) == ("list", EMBEDDER)
    assert [item.index for item in reply.data] == [0, 1, 2]
    assert reply.usage.prompt_tokens == reply.usage.total_tokens > 0
    meal, also_meal, stocks = (item.embedding for item in reply.data)
    assert len(meal) == 384
    assert abs(math.hypot(*meal) - 1) < 1e-5
    assert cosine(meal, also_meal) > 0.5 > 0.2 > cosine(meal, stocks)


def test_floats_are_what_base64_holds(client):
    # The SDK asks for base64 unless told otherwise.
    [packed] = client.embeddings.create(model=EMBEDDER, input=TEXTS[0]).data
    [plain] = client.embeddings.create(model=EMBEDDER, input=TEXTS[0], encoding_format="float").data
    assert all(abs(a - b) < 1e-7 for a, b in zip(packed.embedding, plain.embedding, strict=True))


def test_fewer_dimensions_are_scaled_again(client):
    [item] = client.embeddings.create(model=EMBEDDER, input=TEXTS[0], dimensions=64).data
    assert len(item.embedding) == 64
    assert abs(math.hypot(*item.embedding) - 1) < 1e-5


def test_too_long_is_a_bad_request_that_names_the_text(client):
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model=EMBEDDER, input=["short", "word " * 300])
    assert refused.value.code == "context_length_exceeded"
    assert refused.value.param == "input[1]"


def test_a_model_that_generates_does_not_embed(client, model):
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model=model, input="x")
    assert refused.value.code == "unsupported_endpoint"
