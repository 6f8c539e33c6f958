//! Text as Workers AI tells it: one result, or a stream of its pieces. Beside the vendor's fields stand those that clients of thinking
//! models and of several rounds need: `reasoning_content`, `finish_reason`, and the `id` of a call.
use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::{enveloped, errors, request};
use crate::api::body::JsonBody;
use crate::api::choice::Finish;
use crate::api::error::ApiError;
use crate::api::fold::{Folded, FoldedCall, fold};
use crate::api::gate::{RequestContext, Tokens};
use crate::api::messages::arguments_of;
use crate::api::pipeline::Event;
use crate::api::stream::{Telling, data, tell};
use crate::api::types::UsageBody;
use crate::api::{AppState, Model};
use crate::text::Segment;

/// Answers a request for text.
pub(super) async fn text(
    app: &AppState,
    context: &RequestContext,
    model: Arc<Model>,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let (request, claim) = body.lower(app, move |fields, _| request::lower(fields, model)).await?;
    let (streams, json) = (request.streams(), request.json);
    let job = request.start(app, context, claim).await?;
    if streams {
        return Ok(tell(job, Story::default(), app.options().keep_alive));
    }
    let (mut choices, usage) = fold(job).await?;
    let folded = choices.pop().expect("an answer without a choice is a bug");
    Ok(enveloped(result(folded, usage, json)?).into_response())
}

/// The result of a whole answer. In JSON mode the response is JSON itself.
fn result(folded: Folded, usage: Tokens, json: bool) -> Result<Value, ApiError> {
    let finish = folded.finish();
    let Folded { text, reasoning, calls, .. } = folded;
    let mut result = Map::new();
    let response = match (text.is_empty(), calls.is_empty(), json) {
        (true, false, _) => Value::Null,
        (_, _, true) => serde_json::from_str(&text).map_err(|_| not_met(finish))?,
        _ => text.into(),
    };
    result.insert("response".to_owned(), response);
    if !reasoning.is_empty() {
        result.insert("reasoning_content".to_owned(), reasoning.into());
    }
    if !calls.is_empty() {
        result.insert("tool_calls".to_owned(), calls.into_iter().map(call).collect());
    }
    result.insert("finish_reason".to_owned(), finish.name().into());
    result.insert("usage".to_owned(), json!(UsageBody::from(usage)));
    Ok(Value::Object(result))
}

/// An answer that is not the JSON that was asked for.
fn not_met(finish: Finish) -> ApiError {
    let reason = match finish {
        Finish::Length => "it was cut off after `max_tokens`; allow more",
        Finish::Stop | Finish::ToolCalls => "it ended early, at a stop string or a stop token; leave those out",
    };
    ApiError::GrammarStuck { reason: reason.to_owned() }
}

/// `{"name", "arguments": {…}}`. What a model wrote as no object stays text.
fn call(call: FoldedCall) -> Value {
    let FoldedCall { name, custom, arguments } = call;
    let id: String = uuid::Uuid::new_v4().simple().to_string().chars().take(24).collect();
    let arguments = if custom { json!({ "input": arguments }) } else { arguments_of(arguments) };
    json!({"id": format!("call_{id}"), "name": name, "arguments": arguments})
}

/// Tells an answer piece by piece: texts as they come, each call when it is complete, and the usage at the end.
#[derive(Default)]
struct Story {
    open: Option<FoldedCall>,
    calls: usize,
    end: Option<(Finish, Tokens)>,
}

impl Story {
    fn segment(&mut self, segment: Segment, out: &mut Vec<u8>) {
        match segment {
            Segment::Content(text) => data(&json!({ "response": text }), out),
            Segment::Reasoning(text) => data(&json!({"response": "", "reasoning_content": text}), out),
            Segment::CallBegin { name, custom } => {
                self.close(out);
                self.open = Some(FoldedCall { name, custom, arguments: String::new() });
            }
            Segment::CallArguments(text) => {
                let open = self.open.as_mut().expect("arguments before a call are a bug");
                open.arguments.push_str(&text);
            }
            Segment::CallEnd => self.close(out),
        }
    }

    /// Tells the call that is open.
    fn close(&mut self, out: &mut Vec<u8>) {
        let Some(open) = self.open.take() else { return };
        let mut told = call(open);
        told["index"] = self.calls.into();
        self.calls += 1;
        data(&json!({"response": "", "tool_calls": [told]}), out);
    }
}

impl Telling for Story {
    fn event(&mut self, event: Event, out: &mut Vec<u8>) {
        match event {
            Event::Begin { .. } => {}
            Event::Delta { delta, .. } => delta.segments.into_iter().for_each(|segment| self.segment(segment, out)),
            Event::Finish { reason, tokens, .. } => {
                self.close(out);
                self.end = Some((reason, tokens));
            }
            Event::Failed(_) => unreachable!("failures are told apart"),
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        let (reason, tokens) = self.end.expect("the end of an answer that has not finished is a bug");
        let usage = UsageBody::from(tokens);
        data(&json!({"response": "", "finish_reason": reason.name(), "usage": usage}), out);
        out.extend_from_slice(b"data: [DONE]\n\n");
    }

    fn failed(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        // No [DONE].
        data(&errors::body(error), out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::choice::Delta;

    fn told(story: &mut Story, event: Event) -> Vec<Value> {
        let mut out = Vec::new();
        story.event(event, &mut out);
        let text = String::from_utf8(out).unwrap();
        let events = text.split_terminator("\n\n").map(|event| event.strip_prefix("data: ").unwrap());
        events.map(|event| serde_json::from_str(event).unwrap()).collect()
    }

    #[test]
    fn calls_are_told_whole() {
        let mut story = Story::default();
        let delta = |segments: &[Segment]| Event::Delta {
            choice: 0,
            delta: Delta { segments: segments.to_vec(), ..Delta::default() },
            tokens: Tokens::default(),
        };
        let begin = |custom| Segment::CallBegin { name: "f".into(), custom };
        let arguments = |text: &str| Segment::CallArguments(text.into());
        assert_eq!(told(&mut story, delta(&[Segment::Content("a".into()), begin(false)])), [json!({"response": "a"})]);
        assert_eq!(told(&mut story, delta(&[arguments("{\"x\"")])), [] as [Value; 0]);
        let events = told(&mut story, delta(&[arguments(": 1}"), Segment::CallEnd, begin(true), arguments("free")]));
        assert_eq!(events.len(), 1);
        assert_eq!(events[0]["tool_calls"][0]["arguments"], json!({"x": 1}));
        let finish = Event::Finish {
            choice: 0,
            reason: Finish::Length,
            stop: None,
            mean_logprob: 0.0,
            tokens: Tokens::default(),
        };
        let events = told(&mut story, finish);
        assert_eq!(events[0]["tool_calls"][0]["arguments"], json!({"input": "free"}));
        assert_eq!(
            (&events[0]["tool_calls"][0]["index"], &events[0]["tool_calls"][0]["name"]),
            (&json!(1), &json!("f"))
        );
    }
}
