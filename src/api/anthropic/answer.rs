//! A message as it grows: the events of a request as content blocks. The whole answer and the stream are made of it.
use serde_json::{Map, Value, json};

use crate::api::choice::Finish;
use crate::api::gate::Tokens;
use crate::api::pipeline::Event;
use crate::text::Segment;

/// What a segment did to the message.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Change {
    /// Block `index` began, empty.
    Begin { index: usize, block: Block },
    /// Block `index` got text: of its kind.
    Grow { index: usize, text: String },
    /// Block `index` is complete.
    End { index: usize },
}

/// A content block.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Block {
    Thinking(String),
    Text(String),
    /// The input is JSON text until the block is complete.
    ToolUse {
        id: String,
        name: String,
        input: String,
    },
}

impl Block {
    fn text(&mut self) -> &mut String {
        match self {
            Self::Thinking(text) | Self::Text(text) | Self::ToolUse { input: text, .. } => text,
        }
    }

    /// As the message has it when it is complete.
    pub(super) fn json(&self) -> Value {
        match self {
            // Signatures prove to Anthropic's servers that thoughts are theirs; there is nothing to prove here.
            Self::Thinking(text) => json!({"type": "thinking", "thinking": text, "signature": ""}),
            Self::Text(text) => json!({"type": "text", "text": text}),
            Self::ToolUse { id, name, input } => {
                json!({"type": "tool_use", "id": id, "name": name, "input": parsed(input)})
            }
        }
    }
}

/// Input as an object. What a model wrote as none stays text: nothing is lost, and the tool's owner sees what came.
fn parsed(input: &str) -> Value {
    match serde_json::from_str(input) {
        Ok(input @ Value::Object(_)) => input,
        _ if input.trim().is_empty() => Value::Object(Map::new()),
        _ => Value::String(input.to_owned()),
    }
}

/// The message of an answer.
#[derive(Debug)]
pub(super) struct Answer {
    id: String,
    model: String,
    blocks: Vec<Block>,
    /// The last block is not complete.
    open: bool,
    tokens: Tokens,
    /// What was asked for.
    max_tokens: Option<usize>,
    end: Option<(Finish, Option<String>)>,
}

impl Answer {
    pub(super) fn new(model: &str, max_tokens: Option<usize>) -> Self {
        let id = format!("msg_{}", uuid::Uuid::new_v4().simple());
        Self {
            id,
            model: model.to_owned(),
            blocks: Vec::new(),
            open: false,
            tokens: Tokens::default(),
            max_tokens,
            end: None,
        }
    }

    /// Takes an event that is no failure.
    pub(super) fn take(&mut self, event: Event) -> Vec<Change> {
        let mut changes = Vec::new();
        match event {
            Event::Begin { tokens, .. } => self.tokens = tokens,
            Event::Delta { delta, tokens, .. } => {
                self.tokens = tokens;
                delta.segments.into_iter().for_each(|segment| self.segment(segment, &mut changes));
            }
            Event::Finish { reason, stop, tokens, .. } => {
                self.tokens = tokens;
                self.close(&mut changes);
                self.end = Some((reason, stop));
            }
            Event::Failed(_) => unreachable!("failures are told apart"),
        }
        changes
    }

    fn segment(&mut self, segment: Segment, changes: &mut Vec<Change>) {
        match segment {
            Segment::Content(text) => {
                if !self.open || !matches!(self.blocks.last(), Some(Block::Text(_))) {
                    self.begin(Block::Text(String::new()), changes);
                }
                self.grow(text, changes);
            }
            Segment::Reasoning(text) => {
                if !self.open || !matches!(self.blocks.last(), Some(Block::Thinking(_))) {
                    self.begin(Block::Thinking(String::new()), changes);
                }
                self.grow(text, changes);
            }
            Segment::CallBegin { name, .. } => {
                let id: String = uuid::Uuid::new_v4().simple().to_string().chars().take(24).collect();
                self.begin(Block::ToolUse { id: format!("toolu_{id}"), name, input: String::new() }, changes);
            }
            Segment::CallArguments(text) => self.grow(text, changes),
            Segment::CallEnd => self.close(changes),
        }
    }

    fn begin(&mut self, block: Block, changes: &mut Vec<Change>) {
        self.close(changes);
        changes.push(Change::Begin { index: self.blocks.len(), block: block.clone() });
        self.blocks.push(block);
        self.open = true;
    }

    fn grow(&mut self, text: String, changes: &mut Vec<Change>) {
        let index = self.blocks.len() - 1;
        self.blocks[index].text().push_str(&text);
        changes.push(Change::Grow { index, text });
    }

    fn close(&mut self, changes: &mut Vec<Change>) {
        if std::mem::take(&mut self.open) {
            changes.push(Change::End { index: self.blocks.len() - 1 });
        }
    }

    pub(super) fn block(&self, index: usize) -> &Block {
        &self.blocks[index]
    }

    /// Anthropic counts cached tokens beside the others, not among them.
    pub(super) fn usage(&self) -> Value {
        json!({
            "input_tokens": self.tokens.prompt - self.tokens.cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": self.tokens.cached,
            "output_tokens": self.tokens.completion,
            "output_tokens_details": {"thinking_tokens": self.tokens.reasoning},
            "service_tier": "standard",
        })
    }

    /// Why it ended: the reason and the stop string, both `null` before the end.
    pub(super) fn stop(&self) -> (Value, Value) {
        match &self.end {
            None => (Value::Null, Value::Null),
            Some((Finish::Stop, Some(stop))) => ("stop_sequence".into(), stop.as_str().into()),
            Some((Finish::Stop, None)) => ("end_turn".into(), Value::Null),
            Some((Finish::ToolCalls, _)) => ("tool_use".into(), Value::Null),
            Some((Finish::Length, _)) if self.max_tokens.is_some_and(|most| self.tokens.completion < most) => {
                ("model_context_window_exceeded".into(), Value::Null)
            }
            Some((Finish::Length, _)) => ("max_tokens".into(), Value::Null),
        }
    }

    /// The message as far as it is.
    pub(super) fn message(&self) -> Value {
        let (stop_reason, stop_sequence) = self.stop();
        json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": self.blocks.iter().map(Block::json).collect::<Vec<_>>(),
            "stop_reason": stop_reason,
            "stop_sequence": stop_sequence,
            "usage": self.usage(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::choice::Delta;

    fn delta(segments: &[Segment]) -> Event {
        let delta = Delta { segments: segments.to_vec(), ..Delta::default() };
        let tokens = Tokens { prompt: 10, cached: 4, completion: 3, ..Tokens::default() };
        Event::Delta { choice: 0, delta, tokens }
    }

    #[test]
    fn segments_become_blocks_however_they_are_cut() {
        let (thought, text) = (|t: &str| Segment::Reasoning(t.into()), |t: &str| Segment::Content(t.into()));
        let call = || Segment::CallBegin { name: "f".into(), custom: false };
        let arguments = |t: &str| Segment::CallArguments(t.into());
        let mut answer = Answer::new("m", None);
        answer.take(delta(&[thought("a"), thought("b")]));
        answer.take(delta(&[text("c")]));
        answer.take(delta(&[text("d"), call(), arguments("{\"x\"")]));
        answer.take(delta(&[arguments(":1}"), Segment::CallEnd, call(), arguments("{\"y"), Segment::CallEnd]));
        let changes = answer.take(Event::Finish {
            choice: 0,
            reason: Finish::ToolCalls,
            stop: None,
            mean_logprob: 0.0,
            tokens: Tokens { prompt: 10, cached: 4, completion: 9, ..Tokens::default() },
        });
        assert_eq!(changes, []);
        let mut message = answer.message();
        for block in message["content"].as_array_mut().unwrap() {
            block.as_object_mut().unwrap().remove("id");
        }
        assert_eq!(
            message["content"],
            json!([
                {"type": "thinking", "thinking": "ab", "signature": ""},
                {"type": "text", "text": "cd"},
                {"type": "tool_use", "name": "f", "input": {"x": 1}},
                {"type": "tool_use", "name": "f", "input": "{\"y"},
            ])
        );
        assert_eq!((&message["stop_reason"], &message["stop_sequence"]), (&json!("tool_use"), &Value::Null));
        assert_eq!(message["usage"]["input_tokens"], 6);
        assert_eq!(message["usage"]["cache_read_input_tokens"], 4);
        assert_eq!(message["usage"]["output_tokens"], 9);
    }
}
