//! A message as server-sent events, in the order that Anthropic's SDKs expect.
use serde_json::{Value, json};

use super::answer::{Answer, Block, Change};
use super::errors;
use crate::api::ApiError;
use crate::api::pipeline::Event;
use crate::api::stream::{Telling, named};

/// Tells a message.
pub(super) struct Story {
    answer: Answer,
}

impl Story {
    pub(super) fn new(model: &str, max_tokens: Option<usize>) -> Self {
        Self { answer: Answer::new(model, max_tokens) }
    }
}

/// An event, whose type is also its name.
fn put(kind: &str, mut body: Value, out: &mut Vec<u8>) {
    body["type"] = kind.into();
    named(kind, &body, out);
}

impl Telling for Story {
    fn event(&mut self, event: Event, out: &mut Vec<u8>) {
        let (begins, ends) = (matches!(event, Event::Begin { .. }), matches!(event, Event::Finish { .. }));
        for change in self.answer.take(event) {
            match change {
                Change::Begin { index, block } => {
                    put("content_block_start", json!({"index": index, "content_block": block.json()}), out);
                }
                Change::Grow { index, text } => {
                    let delta = match self.answer.block(index) {
                        Block::Thinking(_) => json!({"type": "thinking_delta", "thinking": text}),
                        Block::Text(_) => json!({"type": "text_delta", "text": text}),
                        Block::ToolUse { .. } => json!({"type": "input_json_delta", "partial_json": text}),
                    };
                    put("content_block_delta", json!({"index": index, "delta": delta}), out);
                }
                Change::End { index } => put("content_block_stop", json!({"index": index}), out),
            }
        }
        if begins {
            put("message_start", json!({"message": self.answer.message()}), out);
        }
        if ends {
            let (stop_reason, stop_sequence) = self.answer.stop();
            let delta = json!({"stop_reason": stop_reason, "stop_sequence": stop_sequence});
            put("message_delta", json!({"delta": delta, "usage": self.answer.usage()}), out);
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        put("message_stop", json!({}), out);
    }

    fn failed(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        named("error", &errors::body(error, None), out);
    }
}
