// The official Node SDK against a running wick, given by WICK_URL and WICK_MODEL (optionally WICK_API_KEY).
import assert from "node:assert/strict";
import test from "node:test";
import OpenAI from "openai";
import { zodFunction, zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const url = (process.env.WICK_URL ?? "http://127.0.0.1:8080").replace(/\/+$/, "");
const model = process.env.WICK_MODEL ?? "smollm2-135m";
const apiKey = process.env.WICK_API_KEY ?? "none";
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0, timeout: 300_000 });
const say = (content) => [{ role: "user", content }];
const greedy = { model, temperature: 0, max_tokens: 24 };

async function post(path, body) {
  const reply = await fetch(url + path, {
    method: "POST",
    headers: { "content-type": "application/json", authorization: `Bearer ${apiKey}` },
    body: JSON.stringify({ model, ...body }),
  });
  return reply.json();
}

test("models", async () => {
  const page = await client.models.list();
  assert.ok(page.data.some((entry) => entry.id === model));
  assert.equal((await client.models.retrieve(model)).id, model);
});

test("chat", async () => {
  const reply = await client.chat.completions.create({ ...greedy, messages: say("Say hello.") });
  assert.equal(reply.object, "chat.completion");
  assert.equal(reply.model, model);
  const [choice] = reply.choices;
  assert.equal(choice.message.role, "assistant");
  assert.ok(choice.message.content.length > 0);
  assert.ok(["stop", "length"].includes(choice.finish_reason));
  assert.equal(reply.usage.total_tokens, reply.usage.prompt_tokens + reply.usage.completion_tokens);
  assert.equal(typeof reply.usage.prompt_tokens_details.cached_tokens, "number");
});

test("chat stream equals the answer, and ends with usage", async () => {
  const messages = say("Write one sentence about the sea. 🌊");
  const whole = await client.chat.completions.create({ ...greedy, messages });
  const stream = await client.chat.completions.create({
    ...greedy,
    messages,
    stream: true,
    stream_options: { include_usage: true },
  });
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  const last = chunks.pop();
  assert.deepEqual(last.choices, []);
  assert.equal(last.usage.completion_tokens, whole.usage.completion_tokens);
  assert.equal(new Set(chunks.map((chunk) => chunk.id)).size, 1);
  assert.equal(chunks[0].choices[0].delta.role, "assistant");
  assert.equal(
    chunks.map((chunk) => chunk.choices[0].delta.content ?? "").join(""),
    whole.choices[0].message.content,
  );
  assert.equal(chunks.at(-1).choices[0].finish_reason, whole.choices[0].finish_reason);
});

test("the SDK's own stream helper builds the same message", async () => {
  const messages = say("Name three colours.");
  const whole = await client.chat.completions.create({ ...greedy, messages });
  const final = await client.chat.completions.stream({ ...greedy, messages }).finalChatCompletion();
  assert.equal(final.choices[0].message.content, whole.choices[0].message.content);
  assert.equal(final.choices[0].finish_reason, whole.choices[0].finish_reason);
});

test("an aborted stream leaves the server usable", async () => {
  const stream = await client.chat.completions.create({
    model,
    messages: say("Tell a long story."),
    max_tokens: 2000,
    ignore_eos: true,
    stream: true,
  });
  let seen = 0;
  for await (const chunk of stream) {
    seen += chunk.choices.length;
    if (seen === 3) break; // leaving the loop aborts the request
  }
  assert.equal(seen, 3);
  const reply = await client.chat.completions.create({ ...greedy, messages: say("Hi") });
  assert.equal(reply.choices.length, 1);
});

test("an AbortSignal ends a stream with the SDK's abort error", async () => {
  const controller = new AbortController();
  const stream = await client.chat.completions.create(
    { model, messages: say("Tell a long story."), max_tokens: 2000, ignore_eos: true, stream: true },
    { signal: controller.signal },
  );
  const pieces = [];
  try {
    for await (const chunk of stream) {
      pieces.push(chunk);
      if (pieces.length === 3) controller.abort();
    }
  } catch (error) {
    assert.ok(error instanceof OpenAI.APIUserAbortError, String(error));
  }
  assert.ok(pieces.length < 2000);
});

test("errors have the SDK's classes, codes and parameters", async () => {
  const refused = (options, kind) =>
    client.chat.completions.create({ ...greedy, messages: say("Hi"), ...options }).then(
      () => assert.fail("the request was accepted"),
      (error) => {
        assert.ok(error instanceof kind, String(error));
        return error;
      },
    );
  const unknown = await refused({ model: "no-such-model" }, OpenAI.NotFoundError);
  assert.deepEqual([unknown.status, unknown.code, unknown.param], [404, "model_not_found", "model"]);
  assert.ok(unknown.requestID);
  const hot = await refused({ temperature: 2.5 }, OpenAI.BadRequestError);
  assert.equal(hot.param, "temperature");
  const misspelt = await refused({ temprature: 1 }, OpenAI.BadRequestError);
  assert.equal(misspelt.param, "temprature");
  const { max_model_len } = await post("/tokenize", { prompt: "x" });
  const long = await refused({ messages: say("word ".repeat(max_model_len + 100)) }, OpenAI.BadRequestError);
  assert.equal(long.code, "context_length_exceeded");
  assert.match(long.message, new RegExp(`maximum context length is ${max_model_len} tokens`));
});

test("completions: text, ids, several prompts, echo and logprobs", async () => {
  const prompt = "The capital of France is";
  const text = await client.completions.create({ ...greedy, prompt });
  const { tokens } = await post("/tokenize", { prompt });
  const ids = await client.completions.create({ ...greedy, prompt: tokens });
  assert.equal(ids.choices[0].text, text.choices[0].text);
  const several = await client.completions.create({ ...greedy, prompt: [prompt, "1, 2, 3,"] });
  assert.deepEqual(several.choices.map((choice) => choice.index), [0, 1]);
  assert.equal(several.choices[0].text, text.choices[0].text);
  const echoed = await client.completions.create({ ...greedy, prompt, echo: true, logprobs: 2 });
  const [choice] = echoed.choices;
  assert.equal(choice.text, prompt + text.choices[0].text);
  assert.equal(choice.logprobs.token_logprobs[0], null);
  assert.ok(choice.logprobs.token_logprobs.slice(1).every((value) => value <= 0));
  assert.equal(choice.logprobs.tokens.length, choice.logprobs.text_offset.length);
});

test("completions stream", async () => {
  const prompt = "1, 2, 3, 4,";
  const whole = await client.completions.create({ ...greedy, prompt });
  let text = "";
  for await (const chunk of await client.completions.create({ ...greedy, prompt, stream: true })) {
    text += chunk.choices[0].text;
  }
  assert.equal(text, whole.choices[0].text);
});

test("chat logprobs", async () => {
  const reply = await client.chat.completions.create({
    ...greedy,
    messages: say("Name a fruit."),
    logprobs: true,
    top_logprobs: 5,
  });
  const entries = reply.choices[0].logprobs.content;
  assert.ok(entries.length > 0);
  for (const entry of entries) {
    assert.ok(entry.logprob <= 0);
    assert.equal(entry.top_logprobs.length, 5);
    assert.equal(entry.logprob, entry.top_logprobs[0].logprob);
    assert.ok(Array.isArray(entry.bytes));
  }
});

test("choices, seeds and stop strings", async () => {
  const ask = { model, messages: say("Invent a name."), temperature: 1, seed: 9, n: 2, max_tokens: 12 };
  const texts = async () => (await client.chat.completions.create(ask)).choices.map((choice) => choice.message.content);
  assert.deepEqual(await texts(), await texts());
  const messages = say("Count from one to ten in digits.");
  const free = (await client.chat.completions.create({ ...greedy, messages })).choices[0].message.content;
  const stop = free.slice(4, 7);
  const [choice] = (await client.chat.completions.create({ ...greedy, messages, stop })).choices;
  assert.equal(choice.message.content, free.slice(0, free.indexOf(stop)));
  assert.equal(choice.finish_reason, "stop");
});

const shirt = z.object({ size: z.enum(["S", "M", "L"]), count: z.number().int().min(1).max(9) });
const roomy = { ...greedy, max_tokens: 100 };

test("parse and stream helpers give objects of a zod schema", async () => {
  const ask = { ...roomy, messages: say("Order a shirt."), response_format: zodResponseFormat(shirt, "shirt") };
  const [{ message }] = (await client.chat.completions.parse(ask)).choices;
  shirt.parse(message.parsed);
  const stream = client.chat.completions.stream(ask);
  let text = "";
  stream.on("content.delta", ({ delta }) => (text += delta));
  const final = await stream.finalChatCompletion();
  assert.equal(text, message.content);
  assert.deepEqual(final.choices[0].message.parsed, message.parsed);
  // A message goes back as it came.
  const again = await client.chat.completions.parse({ ...ask, messages: [...ask.messages, message, ...say("One more.")] });
  shirt.parse(again.choices[0].message.parsed);
});

for (const stream of [false, true]) {
  test(`runTools calls a function with arguments of its schema${stream ? ", streamed" : ""}`, async () => {
    const asked = [];
    const order = zodFunction({
      name: "order",
      parameters: shirt,
      function: (input) => {
        asked.push(input);
        return "ordered";
      },
    });
    const tool_choice = { type: "function", function: { name: "order" } };
    const runner = client.chat.completions.runTools({ ...roomy, messages: say("Order."), tools: [order], tool_choice, stream });
    const call = await runner.finalFunctionToolCall();
    await runner.done();
    assert.equal(call.name, "order");
    assert.deepEqual(asked.map((input) => shirt.parse(input)), [JSON.parse(call.arguments)]);
  });
}

test("responses: parse and stream helpers", async () => {
  const ask = { model, input: "Order a shirt.", temperature: 0, max_output_tokens: 100, text: { format: zodTextFormat(shirt, "shirt") } };
  const answer = await client.responses.parse(ask);
  shirt.parse(answer.output_parsed);
  const stream = client.responses.stream(ask);
  let text = "";
  stream.on("response.output_text.delta", ({ delta }) => (text += delta));
  const final = await stream.finalResponse();
  assert.equal(text, answer.output_text);
  assert.deepEqual(final.output_parsed, answer.output_parsed);
});
