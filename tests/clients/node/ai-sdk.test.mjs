// Vercel's AI SDK against a running wick, given by WICK_URL, WICK_MODEL and WICK_EMBEDDER (optionally WICK_API_KEY): through
// its OpenAI provider (chat and responses) and its provider for what is compatible with OpenAI.
import assert from "node:assert/strict";
import test from "node:test";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, Output, embed, embedMany, generateObject, generateText, isStepCount, streamText, tool } from "ai";
import { z } from "zod";

const url = (process.env.WICK_URL ?? "http://127.0.0.1:8080").replace(/\/+$/, "");
const model = process.env.WICK_MODEL ?? "smollm2-135m";
const embedder = process.env.WICK_EMBEDDER ?? "all-minilm-l6-v2";
const settings = { baseURL: `${url}/v1`, apiKey: process.env.WICK_API_KEY ?? "none" };
const openai = createOpenAI({
  ...settings,
  fetch: (to, request) => {
    sent.push(JSON.parse(request.body));
    return fetch(to, request);
  },
});
const compatible = createOpenAICompatible({ ...settings, name: "wick", includeUsage: true, supportsStructuredOutputs: true });

const providers = {
  "openai chat": (name) => openai.chat(name),
  "openai responses": (name) => openai.responses(name),
  "openai by default": (name) => openai(name),
  "openai-compatible": (name) => compatible(name),
};
const common = { temperature: 0, maxOutputTokens: 200, maxRetries: 0 };
// Where the server keeps no responses, `store: false` is needed: by default later steps only name what earlier ones said.
const options = { "openai responses": { openai: { store: false } } };
// What the provider sent, to see that it did name it.
const sent = [];

const shirt = z.object({ size: z.enum(["S", "M", "L"]), count: z.number().int().min(1).max(9) });

for (const [name, languageModel] of Object.entries(providers)) {
  const ask = { ...common, providerOptions: options[name], model: languageModel(model) };

  test(`${name}: generateText`, async () => {
    const result = await generateText({ ...ask, instructions: "Be brief.", prompt: "Name a fruit.", maxOutputTokens: 24 });
    assert.ok(result.text.length > 0);
    assert.ok(["stop", "length"].includes(result.finishReason));
    const { inputTokens, outputTokens, totalTokens } = result.usage;
    assert.ok(inputTokens > 0 && outputTokens > 0 && outputTokens <= 24);
    assert.equal(totalTokens, inputTokens + outputTokens);
  });

  test(`${name}: streamText says the same`, async () => {
    const prompt = "Write one sentence about the sea. 🌊";
    const whole = await generateText({ ...ask, prompt });
    const result = streamText({ ...ask, prompt, onError: () => {} });
    const pieces = [];
    for await (const piece of result.textStream) pieces.push(piece);
    assert.ok(pieces.length > 3);
    assert.equal(pieces.join(""), whole.text);
    assert.equal(await result.finishReason, whole.finishReason);
    assert.equal((await result.usage).outputTokens, whole.usage.outputTokens);
  });

  test(`${name}: an object by schema, whole and streamed`, async () => {
    const prompt = "Order a shirt.";
    const { output } = await generateText({ ...ask, prompt, output: Output.object({ schema: shirt }) });
    shirt.parse(output);
    // Its older form.
    assert.deepEqual((await generateObject({ ...ask, prompt, schema: shirt })).object, output);
    const result = streamText({ ...ask, prompt, output: Output.object({ schema: shirt }), onError: () => {} });
    const partial = [];
    for await (const piece of result.partialOutputStream) partial.push(piece);
    assert.ok(partial.length > 0);
    assert.deepEqual(partial.at(-1), output);
    assert.deepEqual(await result.output, output);
  });

  for (const stream of [false, true]) {
    test(`${name}: a tool in one step, an answer in the next${stream ? ", streamed" : ""}`, async () => {
      const asked = [];
      const order = tool({
        description: "Order shirts.",
        inputSchema: shirt,
        execute: async (input) => {
          asked.push(input);
          return { number: 4711 };
        },
      });
      const request = {
        ...ask,
        prompt: "Please order two shirts of size M.",
        tools: { order },
        stopWhen: isStepCount(3),
        // The smallest model calls what it must, and then talks.
        prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "none" }),
        maxOutputTokens: 60,
      };
      let steps;
      let text;
      if (stream) {
        const result = streamText({ ...request, onError: () => {} });
        const kinds = new Set();
        for await (const part of result.fullStream) kinds.add(part.type);
        for (const kind of ["tool-input-delta", "tool-call", "tool-result", "text-delta"]) assert.ok(kinds.has(kind), kind);
        steps = await result.steps;
        text = await result.text;
      } else {
        ({ steps, text } = await generateText(request));
      }
      assert.equal(steps.length, 2);
      assert.equal(steps[0].finishReason, "tool-calls");
      assert.ok(asked.length >= 1);
      assert.equal(steps[0].toolCalls[0].toolName, "order");
      assert.deepEqual(steps[0].toolCalls.map((call) => call.input), asked);
      assert.deepEqual(steps[0].toolResults[0].output, { number: 4711 });
      assert.ok(text.length > 0);
      // The conversation goes on: by default what was said before is only named.
      const messages = [{ role: "user", content: request.prompt }, ...steps.at(-1).response.messages];
      messages.push({ role: "user", content: "Thank you." });
      const { prompt, prepareStep, ...again } = request;
      sent.length = 0;
      const next = await generateText({ ...again, messages, toolChoice: "none" });
      assert.ok(next.text.length > 0);
      const named = sent[0]?.input?.filter((item) => item.type === "item_reference") ?? [];
      assert.equal(named.length, name === "openai by default" ? 1 : 0);
      if (name === "openai by default") {
        // The same as saying it.
        const whole = await generateText({ ...again, messages, toolChoice: "none", providerOptions: { openai: { store: false } } });
        assert.deepEqual([whole.text, whole.usage.inputTokens], [next.text, next.usage.inputTokens]);
      }
    });
  }

  test(`${name}: errors are API errors with wick's status and message`, async () => {
    const refused = (options) =>
      generateText({ ...ask, prompt: "Hi", ...options }).then(
        () => assert.fail("the request was accepted"),
        (error) => {
          assert.ok(APICallError.isInstance(error), String(error));
          return error;
        },
      );
    const unknown = await refused({ model: languageModel("no-such-model") });
    assert.deepEqual([unknown.statusCode, unknown.isRetryable], [404, false]);
    assert.match(unknown.message, /no-such-model/);
    const long = await refused({ prompt: "word ".repeat(9000) });
    assert.equal(long.statusCode, 400);
    assert.match(long.message, /maximum context length is \d+ tokens/);
  });
}

for (const [name, embeddingModel] of [
  ["openai", openai.embedding(embedder)],
  ["openai-compatible", compatible.embeddingModel(embedder)],
]) {
  test(`${name}: embed and embedMany`, async () => {
    const values = ["A man is eating food.", "Someone has lunch.", "The stock market fell."];
    const one = await embed({ model: embeddingModel, value: values[0], maxRetries: 0 });
    assert.equal(one.embedding.length, 384);
    assert.ok(one.usage.tokens > 0);
    const many = await embedMany({ model: embeddingModel, values, maxRetries: 0 });
    assert.equal(many.embeddings.length, 3);
    const apart = one.embedding.map((value, index) => Math.abs(value - many.embeddings[0][index]));
    assert.ok(Math.max(...apart) < 1e-6);
  });
}

test("openai by default: a conversation goes on from a kept response", async () => {
  const ask = { ...common, model: openai(model), maxOutputTokens: 24 };
  const first = await generateText({ ...ask, prompt: "My name is Zoe. Say hello." });
  const previousResponseId = first.finalStep.providerMetadata.openai.responseId;
  sent.length = 0;
  const second = await generateText({ ...ask, prompt: "And now?", providerOptions: { openai: { previousResponseId } } });
  assert.deepEqual([sent[0].previous_response_id, sent[0].input.length], [previousResponseId, 1]);
  const messages = [
    { role: "user", content: "My name is Zoe. Say hello." },
    { role: "assistant", content: first.text },
    { role: "user", content: "And now?" },
  ];
  assert.equal((await generateText({ ...ask, messages })).text, second.text);
  const gone = generateText({ ...ask, prompt: "x", providerOptions: { openai: { previousResponseId: "resp_1" } } });
  await assert.rejects(gone, (error) => APICallError.isInstance(error) && error.statusCode === 400);
});
