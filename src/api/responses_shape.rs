//! The JSON of `/v1/responses`: the response object and the events that tell how it comes about. The object is what the
//! events say, streamed or not: both are made by one [`Answer`].
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::Model;
use super::choice::{Delta, Finish, TokenEntry};
use super::error::ApiError;
use super::gate::Tokens;
use super::logprobs::{self, ChatToken};
use super::pipeline::Event;
use super::responses_kept::Keep;
use super::responses_tools::Namespaces;
use super::stream::{self, Telling};
use super::types::{new_id, unix_now};
use crate::text::{Segment, Tokenizer};

const IN_PROGRESS: &str = "in_progress";
const COMPLETED: &str = "completed";
const INCOMPLETE: &str = "incomplete";

/// An answer while it grows.
pub(crate) struct Answer {
    model: Arc<Model>,
    /// The client wants log-probabilities.
    logprobs: bool,
    response: Response,
    /// Which tools are called by two names.
    namespaces: Arc<Namespaces>,
    /// The last item may grow.
    is_open: bool,
    /// Tokens whose text has not been shown yet.
    pending: Vec<TokenEntry>,
    events: Events,
    /// Where it goes when it is complete.
    keep: Option<Keep>,
}

/// The response object.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Response {
    id: String,
    object: &'static str,
    created_at: u64,
    status: &'static str,
    background: bool,
    completed_at: Option<u64>,
    error: Option<Failure>,
    incomplete_details: Option<IncompleteDetails>,
    model: String,
    output: Vec<Item>,
    usage: Option<Usage>,
    /// The request's, with the defaults.
    #[serde(flatten)]
    settings: Map<String, Value>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ResponseError")]
struct Failure {
    code: &'static str,
    message: String,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ResponseIncompleteDetails")]
struct IncompleteDetails {
    reason: &'static str,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ResponseUsage")]
struct Usage {
    input_tokens: usize,
    input_tokens_details: InputDetails,
    output_tokens: usize,
    output_tokens_details: OutputDetails,
    total_tokens: usize,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ResponseInputDetails")]
struct InputDetails {
    cached_tokens: usize,
    /// Writes that a client would pay for: there are none, every prompt is kept for free.
    cache_write_tokens: usize,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ResponseOutputDetails")]
struct OutputDetails {
    reasoning_tokens: usize,
}

impl From<Tokens> for Usage {
    fn from(tokens: Tokens) -> Self {
        Self {
            input_tokens: tokens.prompt,
            input_tokens_details: InputDetails { cached_tokens: tokens.cached, cache_write_tokens: 0 },
            output_tokens: tokens.completion,
            output_tokens_details: OutputDetails { reasoning_tokens: tokens.reasoning },
            total_tokens: tokens.prompt + tokens.completion,
        }
    }
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ResponseItem")]
struct Item {
    id: String,
    #[serde(flatten)]
    body: Body,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'static str>,
}

#[derive(Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(rename = "ResponseItemBody")]
enum Body {
    Reasoning {
        /// wick makes none: the thoughts themselves are there.
        summary: [(); 0],
        content: Vec<Part>,
    },
    Message {
        role: &'static str,
        content: Vec<Part>,
    },
    FunctionCall {
        call_id: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        namespace: Option<String>,
        name: String,
        arguments: String,
    },
    CustomToolCall {
        call_id: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        namespace: Option<String>,
        name: String,
        input: String,
    },
}

#[derive(Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(rename = "ResponsePart")]
enum Part {
    ReasoningText { text: String },
    OutputText { text: String, annotations: [(); 0], logprobs: Vec<ChatToken> },
}

/// An event: its type, its number, and what it is about.
#[derive(Serialize)]
struct Message<'e, B> {
    #[serde(rename = "type")]
    kind: &'static str,
    sequence_number: u64,
    #[serde(flatten)]
    body: &'e B,
}

/// Writes events, if anybody wants them.
struct Events {
    wanted: bool,
    sent: u64,
}

impl Events {
    fn tell(&mut self, kind: &'static str, body: &impl Serialize, out: &mut Vec<u8>) {
        if self.wanted {
            stream::named(kind, &Message { kind, sequence_number: self.sent, body }, out);
            self.sent += 1;
        }
    }
}

#[derive(Serialize)]
struct OfResponse<'e> {
    response: &'e Response,
}

#[derive(Serialize)]
struct OfItem<'e> {
    output_index: usize,
    item: &'e Item,
}

/// What happens within an item: `B` says what.
#[derive(Serialize)]
struct Within<'e, B> {
    item_id: &'e str,
    output_index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_index: Option<usize>,
    #[serde(flatten)]
    body: B,
}

#[derive(Serialize)]
struct OfPart<'e> {
    part: &'e Part,
}

#[derive(Serialize)]
struct More<'e> {
    delta: &'e str,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<&'e [ChatToken]>,
}

#[derive(Serialize)]
struct Text<'e> {
    text: &'e str,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<&'e [ChatToken]>,
}

#[derive(Serialize)]
struct Arguments<'e> {
    name: &'e str,
    arguments: &'e str,
}

#[derive(Serialize)]
struct Input<'e> {
    input: &'e str,
}

impl Answer {
    pub(crate) fn new(
        model: Arc<Model>,
        settings: Map<String, Value>,
        namespaces: Arc<Namespaces>,
        logprobs: bool,
        streamed: bool,
        keep: Option<Keep>,
    ) -> Self {
        let response = Response {
            id: new_id("resp"),
            object: "response",
            created_at: unix_now(),
            status: IN_PROGRESS,
            background: false,
            completed_at: None,
            error: None,
            incomplete_details: None,
            model: model.served.alias.clone(),
            output: Vec::new(),
            usage: None,
            settings,
        };
        let events = Events { wanted: streamed, sent: 0 };
        Self { model, logprobs, response, namespaces, is_open: false, pending: Vec::new(), events, keep }
    }

    /// The whole answer, after its last event.
    pub(crate) fn into_response(self) -> Response {
        self.response
    }

    fn delta(&mut self, delta: Delta, out: &mut Vec<u8>) {
        if self.logprobs {
            self.pending.extend(delta.logprobs);
        }
        for segment in delta.segments {
            match segment {
                Segment::Content(text) => self.content(&text, out),
                Segment::Reasoning(text) => self.reasoning(&text, out),
                Segment::CallBegin { name, custom } => {
                    let call_id: String = new_id("call").chars().take(29).collect();
                    let (namespace, name) = self.namespaces.split(name);
                    let (prefix, body) = if custom {
                        ("ctc", Body::CustomToolCall { call_id, namespace, name, input: String::new() })
                    } else {
                        ("fc", Body::FunctionCall { call_id, namespace, name, arguments: String::new() })
                    };
                    self.open(prefix, body, out);
                }
                Segment::CallArguments(text) => self.arguments(&text, out),
                Segment::CallEnd => {
                    // Where the answer is cut off, its last call ends, too.
                    let is_whole = match self.growing() {
                        Some(Body::FunctionCall { arguments, .. }) => {
                            serde_json::from_str::<IgnoredAny>(arguments).is_ok()
                        }
                        _ => true,
                    };
                    self.close(if is_whole { COMPLETED } else { INCOMPLETE }, out);
                }
            }
        }
    }

    fn content(&mut self, text: &str, out: &mut Vec<u8>) {
        if !matches!(self.growing(), Some(Body::Message { .. })) {
            // Tokens before a message's first are markers and spaces that nobody sees.
            let tokenizer = &self.model.served.text.tokenizer;
            drop(self.pending.drain(..unspelled(tokenizer, &self.pending, text)));
            self.open("msg", Body::Message { role: "assistant", content: Vec::new() }, out);
            let part = Part::OutputText { text: String::new(), annotations: [], logprobs: Vec::new() };
            self.open_part(part, out);
        }
        if text.is_empty() {
            return;
        }
        let tokens = logprobs::chat_tokens(&self.model.served.text.tokenizer, &std::mem::take(&mut self.pending));
        let more = More { delta: text, logprobs: Some(&tokens) };
        self.within("response.output_text.delta", Some(0), more, out);
        if let Some(Body::Message { content, .. }) = self.growing()
            && let Some(Part::OutputText { text: all, logprobs, .. }) = content.last_mut()
        {
            all.push_str(text);
            logprobs.extend(tokens);
        }
    }

    fn reasoning(&mut self, text: &str, out: &mut Vec<u8>) {
        // There is no place for log-probabilities of thoughts.
        self.pending.clear();
        if !matches!(self.growing(), Some(Body::Reasoning { .. })) {
            self.open("rs", Body::Reasoning { summary: [], content: Vec::new() }, out);
            self.open_part(Part::ReasoningText { text: String::new() }, out);
        }
        self.within("response.reasoning_text.delta", Some(0), More { delta: text, logprobs: None }, out);
        if let Some(Body::Reasoning { content, .. }) = self.growing()
            && let Some(Part::ReasoningText { text: all }) = content.last_mut()
        {
            all.push_str(text);
        }
    }

    fn arguments(&mut self, text: &str, out: &mut Vec<u8>) {
        self.pending.clear();
        let kind = match self.growing() {
            Some(Body::FunctionCall { arguments, .. }) => {
                arguments.push_str(text);
                "response.function_call_arguments.delta"
            }
            Some(Body::CustomToolCall { input, .. }) => {
                input.push_str(text);
                "response.custom_tool_call_input.delta"
            }
            _ => unreachable!("arguments before a call are a bug"),
        };
        self.within(kind, None, More { delta: text, logprobs: None }, out);
    }

    /// The item that may grow.
    fn growing(&mut self) -> Option<&mut Body> {
        self.response.output.last_mut().filter(|_| self.is_open).map(|item| &mut item.body)
    }

    fn open(&mut self, prefix: &str, body: Body, out: &mut Vec<u8>) {
        self.close(COMPLETED, out);
        let status = has_status(&body).then_some(IN_PROGRESS);
        self.response.output.push(Item { id: new_id(prefix), body, status });
        self.is_open = true;
        self.item("response.output_item.added", out);
    }

    fn open_part(&mut self, part: Part, out: &mut Vec<u8>) {
        self.within("response.content_part.added", Some(0), OfPart { part: &part }, out);
        if let Some(Body::Message { content, .. } | Body::Reasoning { content, .. }) = self.growing() {
            content.push(part);
        }
    }

    /// Ends the item that may grow, if there is one.
    fn close(&mut self, status: &'static str, out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.is_open, false) {
            return;
        }
        let output_index = self.response.output.len() - 1;
        let item = &mut self.response.output[output_index];
        let events = &mut self.events;
        let item_id = item.id.as_str();
        match &item.body {
            Body::Message { content, .. } | Body::Reasoning { content, .. } => {
                for (index, part) in content.iter().enumerate() {
                    let content_index = Some(index);
                    let (kind, text, logprobs) = match part {
                        Part::ReasoningText { text } => ("response.reasoning_text.done", text, None),
                        Part::OutputText { text, logprobs, .. } => {
                            ("response.output_text.done", text, Some(logprobs.as_slice()))
                        }
                    };
                    let body = Text { text, logprobs };
                    events.tell(kind, &Within { item_id, output_index, content_index, body }, out);
                    let body = OfPart { part };
                    let done = Within { item_id, output_index, content_index, body };
                    events.tell("response.content_part.done", &done, out);
                }
            }
            Body::FunctionCall { name, arguments, .. } => {
                let body = Arguments { name, arguments };
                let done = Within { item_id, output_index, content_index: None, body };
                events.tell("response.function_call_arguments.done", &done, out);
            }
            Body::CustomToolCall { input, .. } => {
                let done = Within { item_id, output_index, content_index: None, body: Input { input } };
                events.tell("response.custom_tool_call_input.done", &done, out);
            }
        }
        item.status = has_status(&item.body).then_some(status);
        self.item("response.output_item.done", out);
    }

    /// An event about the last item as a whole.
    fn item(&mut self, kind: &'static str, out: &mut Vec<u8>) {
        let Some((item, before)) = self.response.output.split_last() else { return };
        self.events.tell(kind, &OfItem { output_index: before.len(), item }, out);
    }

    /// An event within the last item.
    fn within(&mut self, kind: &'static str, content_index: Option<usize>, body: impl Serialize, out: &mut Vec<u8>) {
        let Some((item, before)) = self.response.output.split_last() else { return };
        let within = Within { item_id: &item.id, output_index: before.len(), content_index, body };
        self.events.tell(kind, &within, out);
    }

    fn whole(&mut self, kind: &'static str, out: &mut Vec<u8>) {
        self.events.tell(kind, &OfResponse { response: &self.response }, out);
    }
}

impl Telling for Answer {
    fn begin(&mut self, out: &mut Vec<u8>) {
        self.whole("response.created", out);
        self.whole("response.in_progress", out);
    }

    fn event(&mut self, event: Event, out: &mut Vec<u8>) {
        match event {
            Event::Begin { .. } => {}
            Event::Delta { delta, .. } => self.delta(delta, out),
            Event::Finish { reason, tokens, .. } => {
                if self.response.output.is_empty() {
                    // An answer without a word is an answer.
                    self.content("", out);
                }
                let status = if reason == Finish::Length { INCOMPLETE } else { COMPLETED };
                self.close(status, out);
                self.response.status = status;
                self.response.usage = Some(tokens.into());
                match reason {
                    Finish::Length => {
                        self.response.incomplete_details = Some(IncompleteDetails { reason: "max_output_tokens" });
                    }
                    Finish::Stop | Finish::ToolCalls => self.response.completed_at = Some(unix_now()),
                }
                // Before the client hears that it is complete: it may name it at once.
                if let Some(keep) = self.keep.take() {
                    let is_kept = keep.put(&self.response.id, &self.response, &self.response.output);
                    self.response.settings.insert("store".into(), is_kept.into());
                }
            }
            Event::Failed(_) => unreachable!("failures are told apart"),
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        let is_cut = self.response.status == INCOMPLETE;
        self.whole(if is_cut { "response.incomplete" } else { "response.completed" }, out);
    }

    fn failed(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        self.close(INCOMPLETE, out);
        self.response.status = "failed";
        // The only one of OpenAI's codes that fits: what the client did wrong was refused before.
        self.response.error = Some(Failure { code: "server_error", message: error.to_string() });
        self.whole("response.failed", out);
    }
}

/// A custom tool's free text does not show whether it is whole.
fn has_status(body: &Body) -> bool {
    !matches!(body, Body::CustomToolCall { .. })
}

/// How many of these tokens come before those that spell the text.
fn unspelled(tokenizer: &Tokenizer, tokens: &[TokenEntry], text: &str) -> usize {
    let mut missing = text.len();
    let mut first = tokens.len();
    while first > 0 && missing > 0 {
        first -= 1;
        let bytes = tokenizer.token_bytes(tokens[first].id).unwrap_or_default();
        missing = missing.saturating_sub(bytes.len());
    }
    first
}
