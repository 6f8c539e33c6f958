import openai
import pytest


def test_list(client, model):
    models = client.models.list()
    assert models.object == "list"
    assert model in [entry.id for entry in models.data]
    for entry in models.data:
        assert entry.object == "model"
        assert entry.created > 0
        assert entry.owned_by


def test_retrieve(client, model):
    entry = client.models.retrieve(model)
    assert (entry.id, entry.object) == (model, "model")


def test_retrieve_unknown(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("no-such-model")
    assert caught.value.code == "model_not_found"
    assert "no-such-model" in str(caught.value)
