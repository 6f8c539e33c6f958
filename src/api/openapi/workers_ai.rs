//! Workers AI: what a model named by the path takes and answers, the envelope of errors, and its copies of OpenAI's endpoints.
use serde_json::{Value, json};

use super::dialects::{asker, truncation};
use super::generation::{
    Calls, chat_fields, function, message, options, refused, schema_name, tool, tool_choice, tool_fields, tool_hint,
};
use super::operations::{Dialect, Operation, chunked, post};
use super::schema::{
    Field, any_of, component, count, default, flag, list_of, map, number, object, one_of, optional, required,
    some_text, text, with, words,
};
use crate::api::ApiError;
use crate::api::encoders::INPUTS_MAX;
use crate::api::tools::{Form, TOOLS_MAX};
use crate::api::workers_ai::{
    MAX_TOKENS_DEFAULT, NO_EMBEDDING, NO_RERANKING, TEMPERATURE_DEFAULT, TEMPERATURE_MAX, TOP_P_MAX, UNSUPPORTED,
    Wording,
};

/// OpenAI's endpoints that are there for every account: the operation without one, the path, and the operation's id.
const COPIES: [(&str, &str, &str); 8] = [
    ("chat", "/client/v4/accounts/{account}/ai/v1/chat/completions", "workersAiChat"),
    ("complete", "/client/v4/accounts/{account}/ai/v1/completions", "workersAiComplete"),
    ("embed", "/client/v4/accounts/{account}/ai/v1/embeddings", "workersAiEmbed"),
    ("respond", "/client/v4/accounts/{account}/ai/v1/responses", "workersAiRespond"),
    ("getResponse", "/client/v4/accounts/{account}/ai/v1/responses/{id}", "workersAiGetResponse"),
    ("deleteResponse", "/client/v4/accounts/{account}/ai/v1/responses/{id}", "workersAiDeleteResponse"),
    ("listInputItems", "/client/v4/accounts/{account}/ai/v1/responses/{id}/input_items", "workersAiListInputItems"),
    ("listModels", "/client/v4/accounts/{account}/ai/v1/models", "workersAiListModels"),
];
const TAG: &str = "Workers AI";

/// The operations of every account, where `own` are those without one.
pub(super) fn operations(own: &[Operation], body_bytes_max: usize) -> Vec<Operation> {
    let path = "/client/v4/accounts/{account}/ai/run/{*model}";
    let body = ("WorkersAiRequest", json!({"prompt": "Hello!", "max_tokens": 8}));
    let run = Operation {
        tag: TAG,
        summary: "Runs the model that the path names: what the body means depends on it",
        answers: chunked("WorkersAiAnswer", "WorkersAiTextPiece", "WorkersAiError"),
        dialect: Dialect::WorkersAi(Wording::Native),
        queues: true,
        query: &[("queueRequest", text, "`true` is refused: there are no asynchronous batches.")],
        ..post(path, "workersAiRun", body, body_bytes_max)
    };
    let copies = COPIES.into_iter().flat_map(|(from, path, id)| {
        let dialect = Dialect::WorkersAi(Wording::Both);
        let of = own.iter().filter(move |operation| operation.id == from);
        of.map(move |of| Operation { path, id, tag: TAG, dialect, ..of.clone() })
    });
    let mut all: Vec<Operation> = std::iter::once(run).chain(copies).collect();
    for operation in &mut all {
        operation.errors.extend(errors(operation));
    }
    all
}

/// What goes wrong below an account's path, beside what goes wrong elsewhere.
fn errors(operation: &Operation) -> Vec<ApiError> {
    // Of an account or a model whose name is no part of a path, such as `..`.
    let method = operation.method.to_uppercase();
    let mut errors = vec![ApiError::RouteNotFound { method, path: "/client/v4/accounts".to_owned() }];
    if operation.queues {
        errors.push(ApiError::ContextLength { param: "messages", context_max: 4096, prompt: 4090, completion: 256 });
    }
    if operation.dialect == Dialect::WorkersAi(Wording::Native) {
        // Adapters have a status of their own.
        errors.extend(UNSUPPORTED.iter().map(|(name, hint)| ApiError::Unsupported { param: (*name).to_owned(), hint }));
        let reason = "it was cut off after `max_tokens`; allow more".to_owned();
        errors.push(ApiError::GrammarStuck { reason });
    }
    errors
}

/// The envelope of an error. Below `/ai/v1` OpenAI's `error` stands in it, too.
pub(super) fn error() -> Value {
    let source = json!({
        "type": "object",
        "required": ["pointer"],
        "properties": {"pointer": with(text(), "description", "The field at fault, such as `/messages/2/content`.")},
    });
    let told = json!({
        "type": "object",
        "required": ["code", "message"],
        "properties": {
            "code": with(count(0..=u32::MAX), "description", "As Workers AI has them, such as 3040: try again."),
            "message": with(text(), "description", "What is wrong, where, and what to do."),
            "source": source,
        },
    });
    json!({
        "type": "object",
        "required": ["result", "success", "errors", "messages"],
        "properties": {
            "result": {"type": "null"},
            "success": {"type": "boolean", "enum": [false]},
            "errors": list_of(told, 1..=1),
            "messages": list_of(json!({}), 0..=0),
        },
    })
}

/// An answer, by the model's purpose.
pub(super) fn answer() -> Value {
    let of = |result: &str| component(&format!("EnvelopeOf{result}"));
    any_of(vec![of("WorkersAiText"), of("WorkersAiEmbeddings"), of("WorkersAiReranking")])
}

/// A body, by the model's purpose.
pub(super) fn request() -> Value {
    let of = ["WorkersAiTextRequest", "WorkersAiEmbeddingRequest", "WorkersAiRerankRequest"];
    any_of(of.map(component).into())
}

fn model() -> Field {
    optional("model", text(), "The name that the path has, and no other.")
}

/// For a model that generates: a chat or a prompt.
pub(super) fn text_request() -> Value {
    let only_false = || json!({"type": "boolean", "enum": [false]});
    let only_zero = || json!({"type": "integer", "enum": [0]});
    let mut fields = chat_fields();
    fields.extend(UNSUPPORTED.iter().map(|(name, hint)| refused(name, hint)));
    fields.extend(tool_fields(tools(), any_of(vec![tool_choice(Form::Nested), tool_choice(Form::Flat)])));
    let messages = list_of(message(Calls::Traditional), 1..=usize::MAX);
    fields.extend([
        model(),
        optional("messages", messages, "The conversation. Either this or a `prompt` is needed."),
        optional("prompt", some_text(), "What a user says, in place of `messages`."),
        optional(
            "raw",
            default(flag(), false),
            "Takes the `prompt` as it is, without the model's template; nothing that belongs to a chat may stand beside it.",
        ),
        optional(
            "temperature",
            default(number(0.0..=TEMPERATURE_MAX), TEMPERATURE_DEFAULT),
            "0 always takes the most likely token.",
        ),
        optional(
            "top_p",
            default(number(0.0..=TOP_P_MAX), 1.0),
            "Sample from the most likely tokens that have this probability together; more than 1 is as 1.",
        ),
        optional(
            "max_tokens",
            default(count(1..=u32::MAX), MAX_TOKENS_DEFAULT),
            "Most tokens of the answer, thoughts included.",
        ),
        optional("max_completion_tokens", count(1..=u32::MAX), "Another name of `max_tokens`."),
        optional("n", with(count(1..=u32::MAX), "enum", json!([1])), "There is one answer."),
        optional("logprobs", only_false(), "Not supported here."),
        optional("return_token_ids", only_false(), "Not supported here."),
        optional("top_logprobs", only_zero(), "Not supported here."),
        optional("prompt_logprobs", only_zero(), "Not supported here."),
        optional(
            "response_format",
            response_format(),
            "The form that the answer must have. JSON is answered as JSON, not as its text, and not with `stream`.",
        ),
    ]);
    with(object(fields), "anyOf", json!([{"required": ["messages"]}, {"required": ["prompt"]}]))
}

/// Tools as OpenAI writes them, or without a `function` around each.
fn tools() -> Value {
    let mut flat = vec![optional("type", words(&["function"]), ""), tool_hint()];
    flat.extend(function());
    any_of(vec![
        list_of(one_of(vec![tool(Form::Nested, "function"), tool(Form::Nested, "custom")]), 0..=TOOLS_MAX),
        list_of(one_of(vec![object(flat), tool(Form::Flat, "custom")]), 0..=TOOLS_MAX),
    ])
}

fn response_format() -> Value {
    let kind = |kind: &str| required("type", words(&[kind]), "");
    let named = object(vec![
        schema_name().or_absent(),
        optional("description", text(), "For the reader."),
        required("schema", map(), "A JSON schema."),
        optional("strict", flag(), "A schema is enforced whether `strict` or not."),
    ]);
    let about = "A JSON schema, or one with a name.";
    one_of(vec![
        object(vec![kind("text")]),
        object(vec![kind("json_object")]),
        object(vec![kind("json_schema"), required("json_schema", any_of(vec![named, map()]), about)]),
    ])
}

/// For a model that embeds.
pub(super) fn embedding_request() -> Value {
    let texts = any_of(vec![some_text(), list_of(some_text(), 1..=INPUTS_MAX)]);
    let mut fields: Vec<Field> = NO_EMBEDDING.iter().map(|(name, hint)| refused(name, hint)).collect();
    fields.extend(asker());
    fields.extend([
        model(),
        options(),
        required("text", texts, "One text or several."),
        optional("pooling", words(&["mean", "cls"]), "What the model was made for, and nothing else."),
        optional("truncate_inputs", default(flag(), false), "Cut off what is longer than the model reads."),
        truncation("Keep so many tokens of a text's beginning, special ones included; -1: as many as the model reads."),
    ]);
    object(fields)
}

/// For a model that reranks.
pub(super) fn rerank_request() -> Value {
    let context = any_of(vec![some_text(), object(vec![required("text", some_text(), "")])]);
    let mut fields: Vec<Field> = NO_RERANKING.iter().map(|(name, hint)| refused(name, hint)).collect();
    fields.extend(asker());
    fields.extend([
        model(),
        options(),
        required("query", some_text(), "What is searched for."),
        required("contexts", list_of(context, 1..=INPUTS_MAX), "What is to be ordered by how well it fits."),
        optional("top_k", count(1..=u32::MAX), "Answer with so many of the best. Without it: with all."),
        optional("max_tokens_per_doc", count(1..=u32::MAX), "Keep so many tokens of each context."),
        truncation("Keep so many tokens of the query and a context together, cut off the context; -1: as many as the model reads."),
    ]);
    object(fields)
}
