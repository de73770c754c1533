// OpenAI's and Anthropic's clients for Node and the AI SDK against the server at LBHOST_URL.
// Part of scripts/clients.
import assert from "node:assert/strict";
import { test } from "node:test";
import Anthropic from "@anthropic-ai/sdk";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, streamObject, streamText, tool } from "ai";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const root = process.env.LBHOST_URL;
const apiKey = process.env.LBHOST_KEY;
const baseURL = `${root}/v1`;
const openai = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const anthropic = new Anthropic({ baseURL: root, apiKey, maxRetries: 0 });
const model = (await openai.models.list()).data[0].id;
const messages = [{ role: "user", content: "Name three rivers." }];
// Bounded all over: a small model may fill what is free until its tokens are used up.
const Person = z.object({ name: z.string().max(12), age: z.number().int().min(0).max(120), mood: z.enum(["good", "bad"]) });
const city = { type: "string", maxLength: 12 };
const parameters = { type: "object", properties: { city }, required: ["city"], additionalProperties: false };
const ask = { model, messages, temperature: 0, max_tokens: 24 };

test("openai: a chat, whole and streamed", async () => {
  const whole = await openai.chat.completions.create(ask);
  let text = "";
  for await (const chunk of await openai.chat.completions.create({ ...ask, stream: true }))
    text += chunk.choices[0]?.delta.content ?? "";
  assert.ok(text);
  assert.equal(text, whole.choices[0].message.content);
});

test("openai: a required tool, streamed", async () => {
  const tools = [{ type: "function", function: { name: "weather", parameters } }];
  const runner = openai.chat.completions.stream({ ...ask, max_tokens: 200, tools, tool_choice: "required" });
  const { choices } = await runner.finalChatCompletion();
  const [call] = choices[0].message.tool_calls;
  assert.equal(call.function.name, "weather");
  assert.ok(JSON.parse(call.function.arguments).city !== undefined);
  const results = choices[0].message.tool_calls.map((one) => ({ role: "tool", tool_call_id: one.id, content: "sunny" }));
  const next = [...messages, choices[0].message, ...results];
  assert.ok((await openai.chat.completions.create({ ...ask, messages: next, tools })).id);
});

test("openai: parse, completions, responses, an error", async () => {
  const parsed = await openai.chat.completions.parse({
    ...ask, max_tokens: 300, response_format: zodResponseFormat(Person, "person"),
  });
  const [choice] = parsed.choices;
  assert.ok(choice.finish_reason === "length" || Person.parse(choice.message.parsed));
  const text = await openai.completions.create({ model, prompt: "Rome is", max_tokens: 8, logprobs: 2 });
  assert.ok(text.choices[0].logprobs.tokens.length > 0);
  const response = await openai.responses.create({ model, input: "Hello", max_output_tokens: 16 });
  assert.equal(typeof response.output_text, "string");
  const events = [];
  const stream = openai.responses.stream({ model, input: "Hello", max_output_tokens: 16 });
  for await (const event of stream) events.push(event.type);
  assert.equal(events[0], "response.created");
  assert.ok((await stream.finalResponse()).output.length > 0);
  await assert.rejects(openai.chat.completions.create({ ...ask, temperature: 9 }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.equal(error.param, "temperature");
    return true;
  });
});

test("anthropic: a message, whole and streamed, a tool, a count, an error", async () => {
  const { temperature: _, ...said } = ask;
  const whole = await anthropic.messages.create(said);
  assert.ok(whole.content[0].text);
  const final = await anthropic.messages.stream(said).finalMessage();
  assert.ok(final.usage.output_tokens > 0);
  const tools = [{ name: "weather", input_schema: parameters }];
  const called = await anthropic.messages
    .stream({ ...said, max_tokens: 200, tools, tool_choice: { type: "any" } })
    .finalMessage();
  const use = called.content.find((block) => block.type === "tool_use");
  assert.equal(use.name, "weather");
  const { input_tokens } = await anthropic.messages.countTokens({ model, messages });
  assert.ok(input_tokens > 0);
  await assert.rejects(anthropic.messages.create({ ...said, max_tokens: 0 }), Anthropic.BadRequestError);
});

const providers = {
  compatible: createOpenAICompatible({ name: "lbhost", baseURL, apiKey, supportsStructuredOutputs: true })(model),
  chat: createOpenAI({ baseURL, apiKey }).chat(model),
  responses: createOpenAI({ baseURL, apiKey }).responses(model),
  anthropic: createAnthropic({ baseURL, apiKey })(model),
};
for (const [name, one] of Object.entries(providers)) {
  const how = { model: one, maxRetries: 0, maxOutputTokens: 200 };
  test(`ai sdk, ${name}: text, a stream, a tool, an object`, async () => {
    const { text } = await generateText({ ...how, prompt: "Hello", maxOutputTokens: 16 });
    assert.equal(typeof text, "string");
    const streamed = streamText({ ...how, prompt: "Hello", maxOutputTokens: 16, onError: () => {} });
    let seen = 0;
    for await (const part of streamed.fullStream) {
      assert.notEqual(part.type, "error", String(part.error));
      seen += part.type === "text-delta" ? 1 : 0;
    }
    assert.ok(seen > 0);
    const weather = tool({ inputSchema: z.object({ city: z.string().max(12) }), execute: async () => "sunny" });
    const called = await generateText({ ...how, prompt: "Weather in Rome?", tools: { weather }, toolChoice: "required" });
    assert.equal(called.toolCalls[0].toolName, "weather");
    const schema = z.object({ age: z.number().int().min(0).max(99), mood: z.enum(["good", "bad"]) });
    const { object } = await generateObject({ ...how, prompt: "Make up a person.", schema });
    assert.ok(schema.parse(object));
    const later = streamObject({ ...how, prompt: "Make up a person.", schema });
    for await (const _ of later.partialObjectStream);
    assert.ok(schema.parse(await later.object));
  });
}
