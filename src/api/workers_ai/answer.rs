//! Text as Workers AI tells it: one result, or a stream of its pieces. Beside the vendor's fields stand those that clients of thinking
//! models and of several rounds need: `reasoning_content`, `finish_reason`, and the `id` of a call.
use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

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

/// A whole answer.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "WorkersAiText")]
pub(crate) struct TextResult {
    /// A text, or in JSON mode any JSON; `null` where there are but calls.
    #[schemars(with = "Value")]
    response: Said,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Call>,
    #[schemars(extend("enum" = ["stop", "tool_calls", "length"]))]
    finish_reason: &'static str,
    usage: UsageBody,
}

/// What a model said.
#[derive(Serialize)]
#[serde(untagged)]
enum Said {
    Nothing,
    Text(String),
    /// As the model wrote it: legal JSON may nest deeper, and have larger numbers, than a parser would keep.
    Json(Box<RawValue>),
}

/// An event of a stream.
#[derive(Default, Serialize, JsonSchema)]
#[schemars(rename = "WorkersAiTextPiece")]
pub(crate) struct Piece {
    response: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Call>,
    /// In the last event, with the usage.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["stop", "tool_calls", "length", null]))]
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<UsageBody>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "WorkersAiCall")]
struct Call {
    id: String,
    /// In a stream: the call's place among the answer's calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    name: String,
    /// An object; what a model wrote as no object stays text.
    arguments: Value,
}

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
fn result(folded: Folded, usage: Tokens, json: bool) -> Result<TextResult, ApiError> {
    let finish = folded.finish();
    let Folded { text, reasoning, calls, .. } = folded;
    let response = match (text.is_empty(), calls.is_empty(), json) {
        (true, false, _) => Said::Nothing,
        (_, _, true) => Said::Json(RawValue::from_string(text).map_err(|_| not_met(finish))?),
        _ => Said::Text(text),
    };
    Ok(TextResult {
        response,
        reasoning_content: (!reasoning.is_empty()).then_some(reasoning),
        tool_calls: calls.into_iter().map(Call::of).collect(),
        finish_reason: finish.name(),
        usage: usage.into(),
    })
}

/// An answer that is not the JSON that was asked for.
fn not_met(finish: Finish) -> ApiError {
    let reason = match finish {
        Finish::Length => "it was cut off after `max_tokens`; allow more",
        Finish::Stop | Finish::ToolCalls => "it ended early, at a stop string or a stop token; leave those out",
    };
    ApiError::GrammarStuck { reason: reason.to_owned() }
}

impl Call {
    fn of(call: FoldedCall) -> Self {
        let FoldedCall { name, custom, arguments } = call;
        let id: String = uuid::Uuid::new_v4().simple().to_string().chars().take(24).collect();
        let arguments = if custom { json!({ "input": arguments }) } else { arguments_of(arguments) };
        Self { id: format!("call_{id}"), index: None, name, arguments }
    }
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
            Segment::Content(text) => data(&Piece { response: text, ..Piece::default() }, out),
            Segment::Reasoning(text) => data(&Piece { reasoning_content: Some(text), ..Piece::default() }, out),
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
        let call = Call { index: Some(self.calls), ..Call::of(open) };
        self.calls += 1;
        data(&Piece { tool_calls: vec![call], ..Piece::default() }, out);
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
        data(&Piece { finish_reason: Some(reason.name()), usage: Some(tokens.into()), ..Piece::default() }, out);
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
