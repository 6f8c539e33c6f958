//! The JSON of chat answers: a message, and its deltas in a stream.
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;

use super::Model;
use super::choice::{Delta, Finish};
use super::fold::{Folded, FoldedCall};
use super::logprobs::{self, ChatLogprobs};
use super::stream::Chunks;
use crate::sampling::TokenLogprobs;
use crate::text::{Segment, Tokenizer};

/// One choice of a whole answer.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ChatCompletionChoice")]
pub(crate) struct ChatChoice {
    index: usize,
    message: ChatMessage,
    logprobs: Option<ChatLogprobs>,
    #[schemars(extend("enum" = ["stop", "tool_calls", "length"]))]
    finish_reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ChatCompletionMessage")]
struct ChatMessage {
    role: &'static str,
    /// `null` where there is nothing but thoughts or calls.
    content: Option<String>,
    /// Both names are in use: `reasoning_content` came first, vLLM and others now say `reasoning`.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
    refusal: Option<()>,
}

/// A call, or in a stream a part of one.
#[derive(Serialize, JsonSchema)]
struct ToolCall {
    /// In a stream: the call's place among the message's calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    /// With the call's first part only.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    function: Option<Function>,
    #[serde(skip_serializing_if = "Option::is_none")]
    custom: Option<Custom>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ToolCallFunction")]
struct Function {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    arguments: String,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ToolCallCustom")]
struct Custom {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    input: String,
}

impl ToolCall {
    /// The first part of a call, with a new id.
    fn begin(index: Option<usize>, name: String, custom: bool, arguments: String) -> Self {
        let id: String = uuid::Uuid::new_v4().simple().to_string().chars().take(24).collect();
        let part = Self::part(index, Some(name), custom, arguments);
        Self { id: Some(format!("call_{id}")), kind: Some(if custom { "custom" } else { "function" }), ..part }
    }

    fn part(index: Option<usize>, name: Option<String>, custom: bool, text: String) -> Self {
        let (function, custom) = if custom {
            (None, Some(Custom { name, input: text }))
        } else {
            (Some(Function { name, arguments: text }), None)
        };
        Self { index, id: None, kind: None, function, custom }
    }
}

impl ChatChoice {
    pub(crate) fn new(index: usize, folded: Folded, tokenizer: &Tokenizer, logprobs: bool, token_ids: bool) -> Self {
        let finish_reason = folded.finish_reason();
        let Folded { text, reasoning, calls, logprobs: entries, token_ids: ids, .. } = folded;
        let reasoning = (!reasoning.is_empty()).then_some(reasoning);
        let is_answer = !text.is_empty() || (calls.is_empty() && reasoning.is_none());
        let call = |call: FoldedCall| ToolCall::begin(None, call.name, call.custom, call.arguments);
        Self {
            index,
            message: ChatMessage {
                role: "assistant",
                content: is_answer.then_some(text),
                reasoning_content: reasoning.clone(),
                reasoning,
                tool_calls: calls.into_iter().map(call).collect(),
                refusal: None,
            },
            logprobs: logprobs.then(|| logprobs::chat(tokenizer, &entries)),
            finish_reason,
            token_ids: token_ids.then_some(ids),
        }
    }
}

/// The chunks of a stream.
pub(crate) struct ChatChunks {
    model: Arc<Model>,
    logprobs: bool,
    prompt_ids: Option<Vec<u32>>,
    /// For each choice: how many calls have begun, and whether the last one is of a custom tool.
    calls: Vec<(usize, bool)>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ChatCompletionChunkChoice")]
pub(crate) struct ChunkChoice {
    index: usize,
    delta: ChunkDelta,
    logprobs: Option<ChatLogprobs>,
    #[schemars(extend("enum" = ["stop", "tool_calls", "length", null]))]
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    token_ids: Vec<u32>,
}

#[derive(Default, Serialize, JsonSchema)]
#[schemars(rename = "ChatCompletionDelta")]
struct ChunkDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
}

impl ChatChunks {
    pub(crate) fn new(model: Arc<Model>, choices: usize, logprobs: bool, prompt_ids: Option<Vec<u32>>) -> Self {
        Self { model, logprobs, prompt_ids, calls: vec![(0, false); choices] }
    }

    fn part(&mut self, choice: usize, segment: Segment) -> Option<ChunkDelta> {
        let (count, last_is_custom) = &mut self.calls[choice];
        let call = |call: ToolCall| ChunkDelta { tool_calls: vec![call], ..ChunkDelta::default() };
        match segment {
            Segment::Content(text) => Some(ChunkDelta { content: Some(text), ..ChunkDelta::default() }),
            Segment::Reasoning(text) => Some(ChunkDelta {
                reasoning_content: Some(text.clone()),
                reasoning: Some(text),
                ..ChunkDelta::default()
            }),
            Segment::CallBegin { name, custom } => {
                let index = *count;
                (*count, *last_is_custom) = (index + 1, custom);
                Some(call(ToolCall::begin(Some(index), name, custom, String::new())))
            }
            Segment::CallArguments(text) => {
                let index = count.checked_sub(1).expect("arguments before a call are a bug");
                Some(call(ToolCall::part(Some(index), None, *last_is_custom, text)))
            }
            Segment::CallEnd => None,
        }
    }
}

fn chunk(index: usize, delta: ChunkDelta) -> ChunkChoice {
    ChunkChoice { index, delta, logprobs: None, finish_reason: None, token_ids: Vec::new() }
}

impl Chunks for ChatChunks {
    type Choice = ChunkChoice;

    fn begin(&mut self, choice: usize, _: Option<Vec<TokenLogprobs>>) -> Option<ChunkChoice> {
        let delta = ChunkDelta { role: Some("assistant"), content: Some(String::new()), ..ChunkDelta::default() };
        Some(chunk(choice, delta))
    }

    fn delta(&mut self, choice: usize, delta: Delta) -> Vec<ChunkChoice> {
        let Delta { segments, logprobs: entries, token_ids } = delta;
        let mut chunks: Vec<ChunkChoice> = segments
            .into_iter()
            .filter_map(|segment| self.part(choice, segment))
            .map(|delta| chunk(choice, delta))
            .collect();
        if chunks.is_empty() && (!entries.is_empty() || !token_ids.is_empty()) {
            chunks.push(chunk(choice, ChunkDelta { content: Some(String::new()), ..ChunkDelta::default() }));
        }
        // The tokens of all parts come with the first.
        if let Some(first) = chunks.first_mut() {
            first.token_ids = token_ids;
        }
        if self.logprobs {
            let mut entries = Some(entries);
            for chunk in &mut chunks {
                let entries = entries.take().unwrap_or_default();
                chunk.logprobs = Some(logprobs::chat(&self.model.served.text.tokenizer, &entries));
            }
        }
        chunks
    }

    fn finish(&mut self, choice: usize, reason: Finish) -> ChunkChoice {
        ChunkChoice { finish_reason: Some(reason.name()), ..chunk(choice, ChunkDelta::default()) }
    }

    fn prompt_token_ids(&self, choice: usize) -> Option<Vec<u32>> {
        self.prompt_ids.clone().filter(|_| choice == 0)
    }
}
