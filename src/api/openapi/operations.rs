//! What the server does: each operation with its request, its answers and its errors. An endpoint's description is an entry
//! of [`all`].
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::answers::events;
use super::schema::{any_of, component, default, integer, text, words};
use super::workers_ai::operations as of_accounts;
use crate::api::auth::Scope;
use crate::api::notes::SESSIONS;
use crate::api::responses::INCLUDES;
use crate::api::responses_kept::{ORDERS, PAGE_DEFAULT, PAGE_MAX};
use crate::api::workers_ai::{self, Wording};
use crate::api::{ApiError, anthropic};

/// Whose words errors are told in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    OpenAi,
    Anthropic,
    WorkersAi(Wording),
}

impl Dialect {
    fn schema(self) -> Value {
        match self {
            Self::OpenAi => component("Error"),
            Self::Anthropic => component("MessageError"),
            Self::WorkersAi(Wording::Native) => component("WorkersAiError"),
            Self::WorkersAi(Wording::Both) => json!({"allOf": [component("WorkersAiError"), component("Error")]}),
        }
    }

    fn status(self, error: &ApiError) -> u16 {
        let status = match self {
            Self::OpenAi => error.status(),
            Self::Anthropic => anthropic::status(error),
            Self::WorkersAi(_) => workers_ai::status(error),
        };
        status.as_u16()
    }

    fn body(self, error: &ApiError) -> Value {
        match self {
            Self::OpenAi => error.body(),
            Self::Anthropic => anthropic::body(error, Some("req_123")),
            Self::WorkersAi(wording) => workers_ai::told(error, wording),
        }
    }
}

/// A parameter of a query: name, what it may be, and what it is for.
pub(super) type Parameter = (&'static str, fn() -> Value, &'static str);

/// A path with a method.
#[derive(Clone)]
pub(super) struct Operation {
    /// As the router has it.
    pub(super) path: &'static str,
    pub(super) method: &'static str,
    pub(super) id: &'static str,
    pub(super) tag: &'static str,
    pub(super) summary: &'static str,
    /// The component that the body is, and an example of it.
    pub(super) body: Option<(&'static str, Value)>,
    /// Media types of the answer.
    pub(super) answers: Vec<(&'static str, Value)>,
    pub(super) dialect: Dialect,
    /// `None`: open to strangers.
    pub(super) scope: Option<Scope>,
    pub(super) errors: Vec<ApiError>,
    /// Its answer says what is left of the queue.
    pub(super) queues: bool,
    /// Headers that are read, beside those that every operation reads.
    pub(super) headers: &'static [&'static str],
    /// Parameters of the query.
    pub(super) query: &'static [Parameter],
}

/// Request headers: name, and what it is for.
const HEADERS: [(&str, &str); 6] = [
    (
        "x-request-id",
        "Becomes the id of the request, if it is short and plain: it comes back, and stands in the server's log.",
    ),
    ("traceparent", "The caller's place in a trace, as W3C writes it, for the server's log."),
    (
        "x-session-affinity",
        "Names the conversation that the request belongs to: the name comes back, and stands in the server's log.",
    ),
    ("x-cache-explain", "`1`: the answer's header of this name says what of the prompt was cached."),
    ("anthropic-version", "Ignored: there is one version."),
    ("anthropic-beta", "Ignored."),
];

/// Response headers: name, and what it says.
const ANSWER_HEADERS: [(&str, &str); 17] = [
    ("x-request-id", "The request's id, to be quoted in reports."),
    ("openai-processing-ms", "Milliseconds until the answer began."),
    ("x-session-affinity", "The conversation's name, where the request had one."),
    ("x-ignored-params", "Fields of the request that had asked for something, and had no effect."),
    ("x-queue-ms", "Milliseconds that the request waited for others."),
    (
        "x-cache-explain",
        "Tokens of the prompt and of its cached part, and where the closest cached text differs first, such as \
        `prompt=50, reused=32, differs_at=37, closest=differs`; `closest` may also be `none`, `ends` or `whole`.",
    ),
    ("request-id", "As `x-request-id`, under Anthropic's name."),
    ("x-ratelimit-limit-requests", "Requests that may be queued."),
    ("x-ratelimit-limit-tokens", "Prompt tokens that may be queued."),
    ("x-ratelimit-remaining-requests", "Requests that may still be queued."),
    ("x-ratelimit-remaining-tokens", "Prompt tokens that may still be queued."),
    (
        "x-ratelimit-reset-requests",
        "When the queue will be empty, such as `6m0s`; absent before anything was measured.",
    ),
    ("x-ratelimit-reset-tokens", "As `x-ratelimit-reset-requests`."),
    ("retry-after", "Seconds to wait before the next try."),
    ("retry-after-ms", "The same in milliseconds."),
    ("www-authenticate", "`Bearer`."),
    ("cache-control", "`no-cache`, on streams."),
];

const ALWAYS: [&str; 2] = ["x-request-id", "openai-processing-ms"];
/// Of answers to a body: what it was told apart by, and what became of it.
const NOTES: [&str; 2] = ["x-session-affinity", "x-ignored-params"];
const QUEUE: [&str; 8] = [
    "x-queue-ms",
    "x-cache-explain",
    "x-ratelimit-limit-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-requests",
    "x-ratelimit-reset-tokens",
];

fn busy() -> ApiError {
    let reason = "1024 requests and 50000 prompt tokens are waiting".to_owned();
    ApiError::Overloaded { reason, retry_after: Duration::from_secs(2) }
}

/// `POST`, with a JSON body, and the errors that all of these have.
pub(super) fn post(
    path: &'static str,
    id: &'static str,
    body: (&'static str, Value),
    body_bytes_max: usize,
) -> Operation {
    let place = || "messages[0].role".to_owned();
    let errors = vec![
        ApiError::MalformedJson { reason: "there is a syntax error", line: 1, column: 7 },
        ApiError::Missing { param: place() },
        ApiError::WrongType { param: place(), expected: "a string", found: "a number" },
        ApiError::UnknownParameter { param: "temprature".to_owned() },
        ApiError::ContentType,
        ApiError::ModelNotFound { model: "nope".to_owned() },
        ApiError::BodyTimeout,
        ApiError::BodyTooLarge { limit: body_bytes_max },
        ApiError::ContentEncoding { encoding: "gzip".to_owned() },
        ApiError::Internal,
        ApiError::Draining,
        busy(),
    ];
    Operation { method: "post", body: Some(body), errors, ..get(path, id) }
}

/// `GET`, of a route that is closed to strangers.
fn get(path: &'static str, id: &'static str) -> Operation {
    Operation {
        path,
        method: "get",
        id,
        tag: "Server",
        summary: "",
        body: None,
        answers: Vec::new(),
        dialect: Dialect::OpenAi,
        scope: Some(Scope::Infer),
        errors: Vec::new(),
        queues: false,
        headers: &[],
        query: &[],
    }
}

fn json_answer(name: &str) -> Vec<(&'static str, Value)> {
    vec![("application/json", component(name))]
}

/// A JSON answer, or a stream of chunks that end with `[DONE]`, or with an error.
pub(super) fn chunked(name: &str, chunk: &str, error: &str) -> Vec<(&'static str, Value)> {
    let data = any_of(vec![component(chunk), component(error)]);
    vec![("application/json", component(name)), ("text/event-stream", events(data, false, true))]
}

/// A JSON answer, or a stream of events that have names.
fn told(name: &str, event: &str) -> Vec<(&'static str, Value)> {
    vec![("application/json", component(name)), ("text/event-stream", events(component(event), true, false))]
}

/// Of a list in a query, whose name some clients write as `include[]`.
const INCLUDE: Parameter = ("include", || words(INCLUDES), "Accepted: what there is of it is in the answer anyway.");

fn gone() -> ApiError {
    ApiError::ResponseNotFound { id: "resp_123".to_owned() }
}

/// What may go on from a response that is kept.
fn going_on(mut operation: Operation) -> Operation {
    let id = || "resp_123".to_owned();
    operation.errors.extend([
        ApiError::PreviousResponseNotFound { param: "previous_response_id".to_owned(), id: id() },
        ApiError::ItemNotFound { param: "input[0].id".to_owned(), id: "msg_123".to_owned() },
        ApiError::ConversationTooLarge { bytes: 9_000_000, limit: 8 << 20 },
    ]);
    operation
}

/// Every operation.
pub(super) fn all(body_bytes_max: usize) -> Vec<Operation> {
    let mut all = own(body_bytes_max);
    all.extend(of_accounts(&all, body_bytes_max));
    all
}

/// The operations below no account.
fn own(body_bytes_max: usize) -> Vec<Operation> {
    let post = |path, id, body| post(path, id, body, body_bytes_max);
    let hello = || json!([{"role": "user", "content": "Hello!"}]);
    let rerank = |path, id| Operation {
        tag: "Encoders",
        summary: "Orders documents by how well they fit a query",
        answers: json_answer("Reranking"),
        ..post(path, id, ("RerankRequest", json!({"query": "fruit", "documents": ["an apple", "a car"]})))
    };
    let message = |path, id, summary, body, answers| Operation {
        tag: "Messages",
        summary,
        answers,
        dialect: Dialect::Anthropic,
        headers: &["anthropic-version", "anthropic-beta"],
        ..post(path, id, body)
    };
    let probe = |path, id, summary| Operation { summary, answers: vec![("text/plain", text())], ..get(path, id) };
    vec![
        Operation {
            tag: "Chat",
            summary: "Answers a conversation",
            answers: chunked("ChatCompletion", "ChatCompletionChunk", "Error"),
            queues: true,
            ..post("/v1/chat/completions", "chat", ("ChatRequest", json!({"messages": hello(), "max_tokens": 8})))
        },
        Operation {
            tag: "Chat",
            summary: "Goes on with a text",
            answers: chunked("Completion", "Completion", "Error"),
            queues: true,
            ..post("/v1/completions", "complete", ("CompletionRequest", json!({"prompt": "Once", "max_tokens": 8})))
        },
        Operation {
            tag: "Responses",
            summary: "Answers a conversation, in the form of Responses",
            answers: told("Response", "ResponseEvent"),
            queues: true,
            ..going_on(post(
                "/v1/responses",
                "respond",
                ("ResponseRequest", json!({"input": "Hello!", "max_output_tokens": 8})),
            ))
        },
        Operation {
            tag: "Responses",
            summary: "Counts the tokens of a response's prompt",
            answers: json_answer("InputTokens"),
            ..going_on(post(
                "/v1/responses/input_tokens",
                "countResponse",
                ("InputTokensRequest", json!({"input": "Hello!"})),
            ))
        },
        Operation {
            tag: "Responses",
            summary: "Gives a response that was kept",
            answers: json_answer("Response"),
            errors: vec![
                gone(),
                ApiError::ResponsesNotKept { id: "resp_123".to_owned() },
                ApiError::UnknownParameter { param: "starting_after".to_owned() },
                ApiError::Draining,
            ],
            query: &[
                INCLUDE,
                (
                    "stream",
                    || json!({"type": "boolean", "enum": [false]}),
                    "Streams are not kept; their responses are.",
                ),
            ],
            ..get("/v1/responses/{id}", "getResponse")
        },
        Operation {
            method: "delete",
            tag: "Responses",
            summary: "Forgets a response that was kept",
            answers: json_answer("ResponseDeleted"),
            errors: vec![gone(), ApiError::ResponsesNotKept { id: "resp_123".to_owned() }, ApiError::Draining],
            ..get("/v1/responses/{id}", "deleteResponse")
        },
        Operation {
            tag: "Responses",
            summary: "Lists the items of the conversation before a response that was kept",
            answers: json_answer("ResponseItems"),
            errors: vec![
                gone(),
                ApiError::ResponsesNotKept { id: "resp_123".to_owned() },
                ApiError::invalid("limit", "`limit` must be between 1 and 100, but 0 was given."),
                ApiError::Draining,
            ],
            query: &[
                INCLUDE,
                ("limit", || default(integer(1..=PAGE_MAX), PAGE_DEFAULT), "Most items of the page."),
                ("order", || default(words(ORDERS), "desc"), "`desc`: the last item first."),
                ("after", text, "The item after which the page begins."),
            ],
            ..get("/v1/responses/{id}/input_items", "listInputItems")
        },
        Operation {
            queues: true,
            ..message(
                "/v1/messages",
                "message",
                "Answers a conversation, in the form of Messages",
                ("MessageRequest", json!({"messages": hello(), "max_tokens": 8})),
                told("Message", "MessageEvent"),
            )
        },
        message(
            "/v1/messages/count_tokens",
            "countMessage",
            "Counts the tokens of a message's prompt",
            ("CountMessageRequest", json!({ "messages": hello() })),
            json_answer("MessageTokens"),
        ),
        Operation {
            tag: "Encoders",
            summary: "Turns texts into vectors",
            answers: json_answer("Embeddings"),
            ..post("/v1/embeddings", "embed", ("EmbeddingRequest", json!({"input": ["an apple", "a car"]})))
        },
        rerank("/v1/rerank", "rerank"),
        rerank("/v2/rerank", "rerankV2"),
        rerank("/rerank", "rerankPlain"),
        Operation {
            tag: "Models",
            summary: "Lists the models",
            answers: json_answer("Models"),
            errors: vec![ApiError::EngineStopped, ApiError::Draining],
            ..get("/v1/models", "listModels")
        },
        Operation {
            tag: "Models",
            summary: "Tells about a model, whose id may contain slashes",
            answers: json_answer("Model"),
            errors: vec![ApiError::ModelNotFound { model: "nope".to_owned() }, ApiError::Draining],
            ..get("/v1/models/{*id}", "getModel")
        },
        Operation {
            tag: "Tokens",
            summary: "Turns a text or a conversation into tokens",
            answers: json_answer("Tokens"),
            ..post("/tokenize", "tokenize", ("TokenizeRequest", json!({"prompt": "Hello!"})))
        },
        Operation {
            tag: "Tokens",
            summary: "Turns tokens into text",
            answers: json_answer("Text"),
            ..post("/detokenize", "detokenize", ("DetokenizeRequest", json!({"tokens": [1, 2]})))
        },
        Operation {
            tag: "Tokens",
            summary: "Tells what a client that tokenizes needs to know of a model",
            answers: json_answer("TokenizerInfo"),
            query: &[(
                "model",
                text,
                "A name that `GET /v1/models` lists. Without it: the first model that generates, or else the first.",
            )],
            errors: vec![
                ApiError::ModelNotFound { model: "nope".to_owned() },
                ApiError::invalid("model", "The query may be `?model=NAME` or empty."),
                ApiError::Draining,
            ],
            ..get("/tokenizer_info", "tokenizerInfo")
        },
        Operation { scope: None, ..probe("/livez", "live", "Says that the process answers") },
        Operation {
            scope: None,
            errors: vec![ApiError::Draining, ApiError::EngineStopped],
            ..probe("/readyz", "ready", "Says that requests are welcome")
        },
        Operation {
            errors: vec![ApiError::EngineStopped],
            ..probe("/health", "health", "Says that every model works, also while the server drains")
        },
        Operation {
            scope: Some(Scope::Metrics),
            ..probe("/metrics", "metrics", "Metrics, in Prometheus' text format")
        },
        Operation {
            scope: None,
            summary: "This document",
            answers: vec![("application/json", json!({"type": "object", "required": ["openapi", "paths"]}))],
            ..get("/openapi.json", "openapi")
        },
    ]
}

impl Operation {
    /// The path as OpenAPI writes it.
    pub(super) fn template(&self) -> String {
        self.path.replace("{*", "{")
    }

    /// The operation object.
    pub(super) fn describe(&self) -> Value {
        let mut operation = json!({
            "operationId": self.id,
            "tags": [self.tag],
            "summary": self.summary,
            "parameters": self.parameters(),
            "responses": self.responses(),
        });
        if let Some((name, example)) = &self.body {
            let mut examples = json!({"least": {"value": example}});
            if self.streams() {
                let mut streamed = example.clone();
                streamed["stream"] = true.into();
                examples["streamed"] = json!({ "value": streamed });
            }
            let content = json!({"schema": component(name), "examples": examples});
            operation["requestBody"] = json!({"required": true, "content": {"application/json": content}});
        }
        if self.scope.is_none() {
            operation["security"] = json!([]);
        }
        operation
    }

    fn streams(&self) -> bool {
        self.answers.iter().any(|(media, _)| *media == "text/event-stream")
    }

    fn parameters(&self) -> Value {
        let header = |name: &str| json!({"$ref": format!("#/components/parameters/{name}")});
        let mut parameters: Vec<Value> = self.headers.iter().map(|name| header(name)).collect();
        parameters.extend(["x-request-id", "traceparent"].map(header));
        if self.body.is_some() {
            parameters.extend(SESSIONS.map(header));
        }
        if self.queues {
            parameters.push(header("x-cache-explain"));
        }
        parameters.extend(self.query.iter().map(|(name, schema, about)| {
            json!({"name": name, "in": "query", "required": false, "description": about, "schema": schema()})
        }));
        let names = self.path.split('{').skip(1).filter_map(|rest| rest.split_once('}'));
        parameters.extend(names.map(|(name, _)| {
            let schema = json!({"type": "string", "minLength": 1});
            json!({"name": name.trim_start_matches('*'), "in": "path", "required": true, "schema": schema})
        }));
        parameters.into()
    }

    fn responses(&self) -> Value {
        let answer = |(media, schema): &(&str, Value)| ((*media).to_owned(), json!({ "schema": schema }));
        let content: Map<String, Value> = self.answers.iter().map(answer).collect();
        let mut headers = self.answer_headers();
        headers.extend(QUEUE.iter().filter(|_| self.queues));
        headers.extend(["cache-control"].iter().filter(|_| self.streams()));
        let description = if self.streams() { "The answer; events where `stream` is true." } else { "The answer." };
        let mut responses = Map::new();
        responses.insert(
            "200".to_owned(),
            json!({"description": description, "headers": refs(&headers), "content": content}),
        );
        let mut errors: Vec<&ApiError> = self.errors.iter().collect();
        let (missing, lacking) =
            (ApiError::KeyMissing, ApiError::ScopeMissing { scope: self.scope.map_or("", Scope::name) });
        if self.scope.is_some() {
            errors.extend([&missing, &lacking]);
        }
        errors.sort_by_key(|error| self.dialect.status(error));
        for same in errors.chunk_by(|a, b| self.dialect.status(a) == self.dialect.status(b)) {
            let (status, response) = self.failure(same);
            responses.insert(status.to_string(), response);
        }
        responses.into()
    }

    /// The response of errors that have the same status.
    fn failure(&self, errors: &[&ApiError]) -> (u16, Value) {
        let status = self.dialect.status(errors[0]);
        let example = |(index, error): (usize, &&ApiError)| {
            (format!("error{}", index + 1), json!({"summary": error.to_string(), "value": self.dialect.body(error)}))
        };
        let examples: Map<String, Value> = errors.iter().enumerate().map(example).collect();
        let mut headers = self.answer_headers();
        match status {
            401 => headers.push("www-authenticate"),
            429 | 503 | 529 => headers.extend(["retry-after", "retry-after-ms"]),
            _ => {}
        }
        let content = json!({"application/json": {"schema": self.dialect.schema(), "examples": examples}});
        (status, json!({"description": reason(status), "headers": refs(&headers), "content": content}))
    }

    fn answer_headers(&self) -> Vec<&'static str> {
        let notes = NOTES.iter().filter(|_| self.body.is_some());
        let own = ["request-id"].iter().filter(|_| self.dialect == Dialect::Anthropic);
        ALWAYS.iter().chain(notes).chain(own).copied().collect()
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        400 => "The request is wrong: the message says what and where.",
        401 => "No API key, or not a valid one.",
        403 => "The key lacks the scope that this route needs.",
        404 => "No such model, response, item or route.",
        405 => "Adapters cannot be added to a model.",
        408 => "The body did not arrive in time.",
        413 => "The request is larger than this server or its model takes.",
        415 => "The body has a content encoding.",
        500 => "The server failed.",
        _ => "The server is busy, shutting down, or its engine has stopped; try again later.",
    }
}

fn refs(headers: &[&str]) -> Value {
    let named = |name: &&str| ((*name).to_owned(), json!({"$ref": format!("#/components/headers/{name}")}));
    headers.iter().map(named).collect::<Map<String, Value>>().into()
}

/// The parameters that operations refer to.
pub(super) fn parameters() -> Map<String, Value> {
    let parameter = |(name, about): &(&str, &str)| {
        let parameter =
            json!({"name": name, "in": "header", "required": false, "description": about, "schema": text()});
        ((*name).to_owned(), parameter)
    };
    let further = SESSIONS.iter().filter(|name| HEADERS.iter().all(|(known, _)| known != *name));
    let further: Vec<(&str, &str)> =
        further.map(|name| (*name, "As `x-session-affinity`, where that is missing.")).collect();
    HEADERS.iter().chain(&further).map(parameter).collect()
}

/// The response headers that operations refer to.
pub(super) fn headers() -> Map<String, Value> {
    let is_count = |name: &str| {
        ["openai-processing-ms", "x-queue-ms", "retry-after", "retry-after-ms"].contains(&name)
            || name.starts_with("x-ratelimit-limit")
            || name.starts_with("x-ratelimit-remaining")
    };
    let header = |(name, about): &(&str, &str)| {
        let schema = if is_count(name) { json!({"type": "integer", "minimum": 0}) } else { text() };
        ((*name).to_owned(), json!({"description": about, "schema": schema}))
    };
    ANSWER_HEADERS.iter().map(header).collect()
}
