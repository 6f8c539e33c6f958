//! What `/v1/responses`, `/v1/messages`, `/v1/embeddings` and `/v1/rerank` take, and what belongs to each of them.
use serde_json::{Value, json};

use super::generation::{
    cache_hints, is_waited_for, model, options, reasoning_budget, refused, schema_name, shared, template_kwargs,
    thinking_budgets, tool_name, tools,
};
use super::schema::{
    Field, any_of, anything, count, default, flag, integer, list, list_of, map, number, object, one_of, optional,
    required, some_text, text, token, with, words,
};
use crate::api::anthropic::{EFFORTS as MESSAGE_EFFORTS, KEEP_THOUGHTS, UNSUPPORTED as MESSAGE_UNSUPPORTED};
use crate::api::chat::EFFORTS;
use crate::api::encoders::INPUTS_MAX;
use crate::api::params::STOPS_MAX;
use crate::api::responses::{ABSENT, ELSEWHERE, INCLUDES, SUMMARIES};
use crate::api::responses_input::{ROLES, STATUSES};
use crate::api::tools::{Form, TOOLS_MAX};

const HINT: &str = "A hint about caching, which cannot change the answer.";
const EARLIER: &str = "Of an earlier answer; ignored.";

fn only_false() -> Value {
    json!({"type": "boolean", "enum": [false]})
}

/// The body of `/v1/responses`.
pub(super) fn response() -> Value {
    let mut fields = shared();
    fields.extend(response_prompt());
    fields.extend([
        optional("max_output_tokens", count(1..=u32::MAX), "Most tokens of the answer, thoughts included."),
        optional("max_tool_calls", count(1..=u32::MAX), "Counts calls of built-in tools, of which there are none."),
        optional("include", list(words(INCLUDES)), "Of these, only the log-probabilities have an effect."),
        optional("top_logprobs", integer(0..=20), "Alternatives to each token; only with their `include`."),
    ]);
    object(fields)
}

/// The body of `/v1/responses/input_tokens`.
pub(super) fn response_count() -> Value {
    object(response_prompt())
}

/// What a response's prompt is made of, and what is refused beside it.
fn response_prompt() -> Vec<Field> {
    let mut fields: Vec<Field> = ELSEWHERE.iter().chain(ABSENT).map(|(name, hint)| refused(name, hint)).collect();
    fields.extend(tools(Form::Responses));
    fields.extend(thinking_budgets());
    let reasoning = object(vec![
        reasoning_budget(),
        optional("effort", words(EFFORTS), "How much a model thinks that can be told so."),
        optional("summary", words(SUMMARIES), "There are no summaries: the thoughts themselves are shown."),
        optional("generate_summary", words(SUMMARIES), "The same under its old name."),
        optional("context", words(&["auto"]), ""),
        optional("mode", words(&["standard"]), ""),
    ]);
    let text_settings = object(vec![
        optional("verbosity", words(&["low", "medium", "high"]), "Only `medium` is supported."),
        optional("format", text_format(), "The form that the answer must have."),
    ]);
    let input = any_of(vec![text(), list_of(item(), 1..=usize::MAX)]);
    fields.extend([
        model("generates"),
        optional(
            "store",
            flag(),
            "Whether the response is kept for later requests: by default where the server keeps responses (`--responses-store`); \
            `true` is refused elsewhere.",
        ),
        optional(
            "previous_response_id",
            text(),
            "The response whose conversation goes on, where the server keeps responses; its instructions do not. Refused elsewhere.",
        ),
        optional("background", default(only_false(), false), "An answer ends with its connection."),
        optional("instructions", text(), "A system's message before the input."),
        required("input", input, "A user's text, or the whole conversation as items."),
        template_kwargs(),
        optional("reasoning", reasoning, "How the model thinks."),
        optional("text", text_settings, "What the answer looks like."),
        optional(
            "truncation",
            default(words(&["auto", "disabled"]), "disabled"),
            "`auto` drops the oldest turns of a conversation that is too long.",
        ),
    ]);
    fields
}

fn text_format() -> Value {
    let kind = |kind: &str| required("type", words(&[kind]), "");
    one_of(vec![
        object(vec![kind("text")]),
        object(vec![kind("json_object")]),
        object(vec![
            kind("json_schema"),
            schema_name(),
            required("schema", map(), "A JSON schema."),
            optional("description", text(), "For the reader."),
            optional("strict", flag(), "A schema is enforced whether `strict` or not."),
        ]),
    ])
}

/// An item of a response's input.
fn item() -> Value {
    let typed = |kind: &str, more: Vec<Field>| {
        let mut fields = vec![
            required("type", words(&[kind]), ""),
            optional("id", text(), EARLIER),
            optional("status", words(STATUSES), EARLIER),
        ];
        fields.extend(more);
        object(fields)
    };
    let said = || required("content", texts(&["input_text", "output_text", "refusal"]), "A text, or its parts.");
    let phase = words(&["commentary", "final_answer"]);
    let message = |kind: Field| {
        object(vec![
            kind,
            optional("id", text(), EARLIER),
            optional("status", words(STATUSES), EARLIER),
            required("role", words(ROLES), "Who says it."),
            said(),
            optional("phase", phase.clone(), EARLIER),
        ])
    };
    let parts = |kind: &str| list(part(kind));
    let called = || required("call_id", text(), "The call's id.");
    let whose = || {
        let caller = object(vec![required("type", words(&["direct"]), "The model itself.")]);
        let namespace = optional("namespace", text(), "The tool's namespace.");
        [namespace, optional("caller", caller, EARLIER), is_waited_for()]
    };
    let call = |kind: &str, input: Field| {
        let mut fields = vec![called(), required("name", text(), "The tool's name."), input];
        fields.extend(whose());
        typed(kind, fields)
    };
    let result = |kind: &str| {
        let output = required("output", texts(&["input_text"]), "What the tool says.");
        let mut fields = vec![called(), output, optional("name", text(), "The tool's name.")];
        fields.extend(whose());
        typed(kind, fields)
    };
    any_of(vec![
        message(optional("type", words(&["message"]), "")),
        typed(
            "reasoning",
            vec![
                optional("summary", parts("summary_text"), "Read where there is no content."),
                optional("content", parts("reasoning_text"), "What the assistant thought."),
                optional("encrypted_content", text(), "Nobody but its maker can read it; ignored."),
            ],
        ),
        call("function_call", required("arguments", text(), "JSON, as the model wrote it.")),
        call("custom_tool_call", required("input", text(), "As the model wrote it.")),
        result("function_call_output"),
        result("custom_tool_call_output"),
        object(vec![
            optional("type", words(&["item_reference"]), ""),
            required("id", text(), "An item of a response that is kept: as if it stood here."),
        ]),
    ])
}

/// A text, or parts of these kinds.
fn texts(kinds: &[&str]) -> Value {
    any_of(vec![text(), list_of(one_of(kinds.iter().map(|kind| part(kind)).collect()), 1..=usize::MAX)])
}

fn part(kind: &str) -> Value {
    let said = if kind == "refusal" { "refusal" } else { "text" };
    let mut fields = vec![
        required("type", words(&[kind]), ""),
        required(said, text(), ""),
        optional("annotations", list(anything()), EARLIER),
        optional("logprobs", list(anything()), EARLIER),
    ];
    fields.extend(cache_hints());
    object(fields)
}

/// The body of `/v1/messages`, and of `/v1/messages/count_tokens`, which needs no `max_tokens`.
pub(super) fn messages(counting: bool) -> Value {
    let max_tokens = (count(1..=u32::MAX), "Most tokens of the answer, thoughts included.");
    let (schema, about) = max_tokens;
    let max_tokens =
        if counting { optional("max_tokens", schema, about) } else { required("max_tokens", schema, about) };
    let mut fields: Vec<Field> = MESSAGE_UNSUPPORTED.iter().map(|(name, hint)| refused(name, hint)).collect();
    let texts = || any_of(vec![text(), list(text_block())]);
    let format = object(vec![
        required("type", words(&["json_schema"]), ""),
        required("schema", map(), "A JSON schema that the answer follows."),
    ]);
    let config = object(vec![
        optional("format", format, "The form that the answer must have."),
        optional("effort", words(MESSAGE_EFFORTS), "How much a model thinks whose template reads it."),
    ]);
    let stops = list_of(some_text(), 0..=STOPS_MAX);
    let metadata = object(vec![optional("user_id", text(), "Ignored.")]);
    fields.extend([
        model("generates"),
        max_tokens,
        required(
            "messages",
            list_of(message(), 1..=usize::MAX),
            "The conversation; one that ends with the assistant's words is continued.",
        ),
        optional("system", texts(), "What the model is told before the conversation."),
        optional("temperature", default(number(0.0..=1.0), 1.0), "0 always takes the most likely token."),
        optional(
            "top_p",
            default(number(0.0..=1.0), 1.0),
            "Sample from the most likely tokens that have this probability together.",
        ),
        optional("top_k", integer(0..=i64::from(u32::MAX)), "Sample from so many tokens."),
        optional("stop_sequences", stops, "Texts that end the answer."),
        optional("stream", default(flag(), false), "Answer with server-sent events."),
        optional("thinking", thinking(), "Whether the model thinks."),
        optional("output_config", config, "The answer's form, and the effort for it."),
        optional("tools", list_of(message_tool(), 0..=TOOLS_MAX), "What the model may call."),
        optional("tool_choice", message_tool_choice(), "Whether it may, must, or which one it must call."),
        optional("context_management", context_management(), "Conversations are not edited here."),
        options(),
        optional("metadata", metadata, "Ignored."),
        optional("service_tier", words(&["auto", "standard_only"]), "There is one tier."),
        optional("speed", words(&["standard"]), "There is one speed."),
        optional("user_profile_id", text(), "Ignored."),
        optional("cache_control", anything(), HINT),
    ]);
    object(fields)
}

fn context_management() -> Value {
    let edit = object(vec![
        required("type", words(&[KEEP_THOUGHTS]), ""),
        required("keep", words(&["all"]), "All thoughts stay in the conversation."),
    ]);
    object(vec![optional("edits", list(edit), "Only those that change nothing.")])
}

fn thinking() -> Value {
    object(vec![
        required("type", words(&["enabled", "disabled", "adaptive", "between_tools"]), ""),
        optional("budget_tokens", count(1..=u32::MAX), "Most tokens that the model may think."),
        optional("display", words(&["summarized", "omitted"]), "`omitted` leaves the thoughts out of the answer."),
    ])
}

fn message_tool() -> Value {
    let hints = ["cache_control", "defer_loading", "allowed_callers", "input_examples", "eager_input_streaming"];
    let mut fields = vec![
        optional("type", words(&["custom"]), "Tools run at the client."),
        tool_name(),
        optional("description", text(), "What it does, for the model."),
        required("input_schema", map(), "A JSON schema of type `object`."),
        optional("strict", default(flag(), false), "Refuse a schema that cannot be enforced."),
    ];
    fields.extend(hints.map(|name| optional(name, anything(), "A hint; ignored.")));
    object(fields)
}

fn message_tool_choice() -> Value {
    let choice = |kinds: &[&str], name: Field| {
        let parallel = optional("disable_parallel_tool_use", default(flag(), false), "At most one call in an answer.");
        object(vec![required("type", words(kinds), ""), name, parallel])
    };
    one_of(vec![
        choice(&["auto", "any", "none"], optional("name", text(), "Ignored.")),
        choice(&["tool"], required("name", text(), "The tool to call.")),
    ])
}

/// A block, with what belongs to it.
fn block(kind: &str, more: Vec<Field>) -> Value {
    let mut fields = vec![required("type", words(&[kind]), ""), optional("cache_control", anything(), HINT)];
    fields.extend(more);
    object(fields)
}

fn text_block() -> Value {
    block("text", vec![required("text", text(), ""), optional("citations", list(anything()), EARLIER)])
}

fn message() -> Value {
    let result = vec![
        required("tool_use_id", text(), "A `tool_use` of the message before."),
        optional("content", any_of(vec![text(), list(text_block())]), "What the tool says."),
        optional("is_error", default(flag(), false), "The tool failed."),
    ];
    let call = vec![
        required("id", text(), "To be repeated by the tool's result."),
        required("name", text(), "Of the tool."),
        optional("input", any_of(vec![map(), text()]), "What it was called with."),
        optional("caller", anything(), EARLIER),
    ];
    let thoughts =
        vec![optional("thinking", text(), "What the assistant thought."), optional("signature", text(), EARLIER)];
    let sealed = with(block("redacted_thinking", Vec::new()), "additionalProperties", true);
    let turn = |role: &str, blocks: Vec<Value>| {
        let content = any_of(vec![text(), list_of(one_of(blocks), 1..=usize::MAX)]);
        object(vec![
            required("role", words(&[role]), "Who says it."),
            required("content", content, "A text, or blocks."),
        ])
    };
    one_of(vec![
        turn("system", vec![text_block()]),
        turn("user", vec![text_block(), block("tool_result", result)]),
        turn("assistant", vec![text_block(), block("thinking", thoughts), sealed, block("tool_use", call)]),
    ])
}

/// Fields that say who asks.
pub(super) fn asker() -> Vec<Field> {
    ["user", "request_id", "safety_identifier"].map(|name| optional(name, text(), "Checked, then ignored.")).into()
}

pub(super) fn truncation(about: &str) -> Field {
    optional("truncate_prompt_tokens", integer(-1..=i64::MAX), about)
}

/// The body of `/v1/embeddings`.
pub(super) fn embedding() -> Value {
    let ids = || list_of(token(), 1..=usize::MAX);
    let input = any_of(vec![some_text(), list_of(some_text(), 1..=INPUTS_MAX), ids(), list_of(ids(), 1..=INPUTS_MAX)]);
    let mut fields = asker();
    fields.extend([
        model("embeds"),
        options(),
        required("input", input, "One text or several, or the ids of their tokens, which are taken as they are."),
        optional(
            "encoding_format",
            default(words(&["float", "base64"]), "float"),
            "`base64`: of little-endian 32-bit floats.",
        ),
        optional(
            "dimensions",
            count(1..=u32::MAX),
            "Shorten the vectors, to at most what the model has, and normalise them.",
        ),
        truncation(
            "Keep so many tokens of an input's beginning, special ones included; -1: as many as the model reads.",
        ),
    ]);
    object(fields)
}

/// The body of `/v1/rerank`.
pub(super) fn rerank() -> Value {
    let document = any_of(vec![some_text(), object(vec![required("text", some_text(), "")])]);
    let mut fields = asker();
    fields.extend([
        model("reranks"),
        options(),
        required("query", some_text(), "What is searched for."),
        required("documents", list_of(document, 1..=INPUTS_MAX), "What is to be ordered by how well it fits."),
        optional("top_n", count(1..=u32::MAX), "Answer with so many of the best. Without it: with all."),
        optional("return_documents", default(flag(), false), "Repeat the documents in the answer."),
        optional("max_tokens_per_doc", count(1..=u32::MAX), "Keep so many tokens of each document."),
        truncation("Keep so many tokens of the query and a document together, cut off the document; -1: as many as the model reads."),
    ]);
    object(fields)
}
