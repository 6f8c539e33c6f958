//! What a model writes: text, thoughts and calls of tools, taken apart as it comes.
//!
//! [`OutputFormat`] says how a model marks them; it is read from the model's chat template. [`OutputParser`] is the one
//! state machine for all formats: it takes decoded text in pieces of any size and gives [`Segment`]s. It decides after
//! each character from the text before it alone, so the pieces do not matter.
//!
//! Nothing a model writes is lost:
//! - What begins like a call, and is none by the time its name should be known (other JSON, a tool that was not offered),
//!   is content, marker included.
//! - Once a call's name and the beginning of its arguments are there, the call has begun. From then on its arguments are
//!   what the model wrote, valid JSON or not, to the end of the text if they are never closed.
//! - Spaces and punctuation between calls and text (newlines, commas, closing brackets), and what a call's
//!   JSON says after its arguments (an `id`), belong to the format.
mod call;
mod generic;
mod grammar;
mod parser;
mod systems;
#[cfg(test)]
mod tests;

use serde_json::{Map, Value, json};

use super::template::{ChatTemplate, TemplateSource};
use super::{ChatInput, RenderedPrompt, Tokenizer};

pub use grammar::call_grammar;
pub use parser::{OutputParser, Segment, Thinking};

const THINK: &str = "<think>";
const THINK_END: &str = "</think>";
/// What begins and what ends a model's thoughts.
pub const THOUGHT_MARKS: (&str, &str) = (THINK, THINK_END);

/// How a model writes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CallFormat {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>`: Qwen, Hermes.
    Hermes,
    /// `{"name": …, "parameters": {…}}`, alone or after `<|python_tag|>`; also `NAME.call(KEY=VALUE, …)` after it: Llama 3.
    Llama,
    /// `[TOOL_CALLS][{"name": …, "arguments": {…}}]`, or `[TOOL_CALLS]NAME[ARGS]{…}`: Mistral.
    Mistral,
    /// `{"name": …, "arguments": {…}}`, or an array of these: for templates that know no tools, or write calls in a form
    /// that wick does not know. wick explains the tools in a system text (see `generic.rs`).
    #[default]
    Generic,
}

impl CallFormat {
    /// What opens calls, besides JSON at the beginning of a line, which every format accepts: small models forget the
    /// marker.
    fn opening(self) -> Option<&'static str> {
        match self {
            Self::Hermes => Some("<tool_call>"),
            Self::Llama => Some("<|python_tag|>"),
            Self::Mistral => Some("[TOOL_CALLS]"),
            Self::Generic => None,
        }
    }

    /// The key of a call's arguments.
    fn arguments_key(self) -> &'static str {
        if self == Self::Llama { "parameters" } else { "arguments" }
    }

    fn of(template: &str) -> Self {
        let has = |text: &str| template.contains(text);
        // The same marker around other languages than JSON.
        let is_other = has("<function=") || has("<arg_key>");
        if has("[TOOL_CALLS]") {
            Self::Mistral
        } else if has("<tool_call>") && !is_other {
            Self::Hermes
        } else if has("<|python_tag|>") || (has("ipython") && has("\"parameters\"")) {
            Self::Llama
        } else {
            Self::Generic
        }
    }
}

/// How a model's output is to be read, from its chat template.
#[derive(Debug, Clone, Default)]
pub struct OutputFormat {
    pub calls: CallFormat,
    /// The model may think between `<think>` and `</think>`.
    pub thinks: bool,
    /// The template reads `enable_thinking`.
    pub thinking_switch: bool,
    /// The template reads `reasoning_effort`.
    pub effort: bool,
    /// The template shows systems' messages wherever they stand.
    pub late_systems: bool,
    /// Markers that are control tokens: their text must be shown to the parser.
    markers: Vec<(&'static str, u32)>,
}

impl OutputFormat {
    pub(super) fn of(sources: &[TemplateSource], template: &ChatTemplate, tokenizer: &Tokenizer) -> Self {
        // A template of its own for tools says how calls are written.
        let named = |name: &str| sources.iter().find(|source| source.name == name).map(|source| source.text.as_str());
        let main = named("tool_use").or_else(|| named("default")).unwrap_or_default();
        let has = |text: &str| sources.iter().any(|source| source.text.contains(text));
        let calls = CallFormat::of(main);
        let mut texts = vec![THINK, THINK_END];
        texts.extend(calls.opening());
        texts.extend(match calls {
            CallFormat::Hermes => &["</tool_call>"][..],
            CallFormat::Mistral => &["[ARGS]", "[CALL_ID]"],
            _ => &[],
        });
        let control = |text: &'static str| {
            let id = tokenizer.added_token_id(text).filter(|id| tokenizer.is_control(*id))?;
            Some((text, id))
        };
        Self {
            calls,
            thinks: has(THINK_END),
            thinking_switch: has("enable_thinking"),
            effort: has("reasoning_effort"),
            late_systems: systems::are_shown_late(template),
            markers: texts.into_iter().filter_map(control).collect(),
        }
    }

    /// Whether a control token is a marker, whose text the parser must see.
    #[must_use]
    pub fn is_marker(&self, id: u32) -> bool {
        self.markers.iter().any(|(_, marker)| *marker == id)
    }

    /// The control token that is this marker.
    fn control(&self, text: &str) -> Option<u32> {
        self.markers.iter().find(|(marker, _)| *marker == text).map(|(_, id)| *id)
    }

    /// Whether and how the model thinks after this prompt. `continued`: the text of an answer that the prompt ends with,
    /// and that the model goes on with.
    #[must_use]
    pub fn thinking(&self, prompt: &RenderedPrompt, continued: Option<&str>) -> Thinking {
        let is_open = match continued {
            Some(text) => text.rfind(THINK).is_some_and(|open| !text[open..].contains(THINK_END)),
            None => prompt.text.trim_end().ends_with(THINK),
        };
        match (self.thinks, is_open, continued.is_some_and(|text| !text.trim().is_empty())) {
            (false, ..) => Thinking::Never,
            (true, true, _) => Thinking::Open,
            (true, false, false) => Thinking::MayOpen,
            // An answer that has begun is past its thoughts.
            (true, false, true) => Thinking::Never,
        }
    }

    /// Brings tools, earlier calls and systems' messages into the form that the model's template takes.
    pub(super) fn prepare(&self, input: &mut ChatInput) {
        match self.calls {
            CallFormat::Generic => generic::prepare(input),
            CallFormat::Mistral => input.messages.iter_mut().for_each(short_ids),
            CallFormat::Llama => input.messages = one_call_each(std::mem::take(&mut input.messages)),
            CallFormat::Hermes => {}
        }
        if !self.late_systems {
            systems::prepare(&mut input.messages);
        }
    }
}

/// A tool that a model may call.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    pub name: String,
    pub description: Option<String>,
    /// JSON Schema of the arguments: an object's.
    pub parameters: Map<String, Value>,
    /// The arguments must follow the schema exactly.
    pub strict: bool,
    /// Takes free text instead of arguments. The model sees a function with one argument `input`.
    pub custom: bool,
    /// Of a custom tool: a grammar, in llguidance's Lark, of its text as it stands inside a JSON string.
    pub input: Option<String>,
}

impl Tool {
    /// A tool that takes free text.
    #[must_use]
    pub fn custom(name: String, description: Option<String>) -> Self {
        let parameters = json!({"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"],
            "additionalProperties": false});
        let Value::Object(parameters) = parameters else { unreachable!("an object is written above") };
        Self { name, description, parameters, strict: false, custom: true, input: None }
    }

    /// Has a custom tool's text follow a grammar, which `shown` explains to the model.
    #[must_use]
    pub fn with_input(mut self, input: String, shown: String) -> Self {
        self.parameters["properties"]["input"]["description"] = shown.into();
        self.input = Some(input);
        self
    }

    /// The schema of the arguments; one that says nothing takes none.
    #[must_use]
    pub fn arguments(&self) -> Value {
        let says = |field: &str| self.parameters.get(field).is_some();
        if says("properties") || says("$ref") || says("additionalProperties") || says("anyOf") || says("allOf") {
            let mut schema = self.parameters.clone();
            if self.strict {
                schema.entry("additionalProperties").or_insert(false.into());
            }
            return Value::Object(schema);
        }
        json!({"type": "object", "properties": {}, "additionalProperties": false})
    }

    /// As chat templates take it: always the same fields in the same order, so that equal tools make equal prompts.
    #[must_use]
    pub fn for_template(&self) -> Value {
        let mut function = Map::new();
        function.insert("name".into(), self.name.as_str().into());
        if let Some(description) = &self.description {
            function.insert("description".into(), description.as_str().into());
        }
        function.insert("parameters".into(), Value::Object(self.parameters.clone()));
        json!({"type": "function", "function": function})
    }
}

/// Whether a model may, must or must not call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolChoice {
    None,
    Auto,
    /// At least one call.
    Required,
    /// A call of this tool.
    Named(String),
}

/// Llama's templates take one call in a message: several become messages of their own, each with its results behind it.
fn one_call_each(messages: Vec<Value>) -> Vec<Value> {
    let mut out = Vec::with_capacity(messages.len());
    let mut messages = messages.into_iter().peekable();
    while let Some(mut message) = messages.next() {
        let calls = match message.get_mut("tool_calls").and_then(Value::as_array_mut) {
            Some(calls) if calls.len() > 1 => std::mem::take(calls),
            _ => {
                out.push(message);
                continue;
            }
        };
        let mut results = Vec::new();
        while let Some(result) = messages.next_if(|next| next["role"] == "tool") {
            results.push(result);
        }
        for call in calls {
            let id = call["id"].clone();
            message["tool_calls"] = json!([call]);
            out.push(message.clone());
            // What was said came before the first call.
            message["content"] = Value::Null;
            let (own, others) = results.into_iter().partition(|result| result["tool_call_id"] == id);
            out.extend::<Vec<Value>>(own);
            results = others;
        }
        out.extend(results);
    }
    out
}

/// Mistral's templates want ids of nine letters and digits. A call and its result have the same id, and keep one.
fn short_ids(message: &mut Value) {
    const LEN: usize = 9;
    let short = |id: &mut Value| {
        let Some(text) = id.as_str() else { return };
        let plain: String = text.chars().filter(char::is_ascii_alphanumeric).collect();
        let tail = &plain[plain.len().saturating_sub(LEN)..];
        *id = format!("{tail:0>LEN$}").into();
    };
    message.get_mut("tool_call_id").into_iter().for_each(short);
    for call in message.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten() {
        call.get_mut("id").into_iter().for_each(short);
    }
}
