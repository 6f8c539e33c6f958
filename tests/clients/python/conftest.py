"""Fixtures of the client tests: a running wick is given by WICK_URL and WICK_MODEL (optionally WICK_API_KEY)."""

import os
import uuid

import httpx
import openai
import pytest

URL = os.environ.get("WICK_URL", "http://127.0.0.1:8080").rstrip("/")
MODEL = os.environ.get("WICK_MODEL", "smollm2-135m")
KEY = os.environ.get("WICK_API_KEY", "none")


@pytest.fixture(scope="session")
def url():
    return URL


@pytest.fixture(scope="session")
def model():
    return MODEL


@pytest.fixture(scope="session")
def client():
    """The official SDK, without retries: a test sees the first answer."""
    with openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0, timeout=300) as sdk:
        yield sdk


@pytest.fixture
def async_client():
    """Makes an async SDK client inside the test's own event loop."""
    return lambda: openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0, timeout=300)


@pytest.fixture
def http():
    """Plain HTTP over at most one connection."""
    limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=URL, timeout=300, limits=limits, headers=headers) as raw:
        yield raw


@pytest.fixture(scope="session")
def context_length(model):
    """The model's context in tokens, as /tokenize reports it."""
    headers = {"Authorization": f"Bearer {KEY}"}
    reply = httpx.post(f"{URL}/tokenize", json={"model": model, "prompt": "x"}, headers=headers, timeout=60)
    return reply.json()["max_model_len"]


@pytest.fixture
def salt():
    """Text that no earlier request has begun with, so that the prefix cache starts cold."""
    return uuid.uuid4().hex


def say(text, system=None):
    """One user message, optionally after a system message."""
    head = [{"role": "system", "content": system}] if system is not None else []
    return [*head, {"role": "user", "content": text}]
