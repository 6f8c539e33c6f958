//! From Workers AI's fields to a chat, or to a prompt that is taken as it is. Errors name the fields of this dialect.
use std::sync::Arc;

use serde_json::{Value, json};

use super::{NO_BATCHES, messages, take_model};
use crate::api::body::Claim;
use crate::api::chat::{self, ChatRequest};
use crate::api::choice::Reading;
use crate::api::error::ApiError;
use crate::api::fields::Fields;
use crate::api::gate::RequestContext;
use crate::api::params::Common;
use crate::api::pipeline::{self, Job, Plan, admit, check_length};
use crate::api::tools::Form;
use crate::api::{AppState, Model};

/// The vendor's defaults.
pub(crate) const MAX_TOKENS_DEFAULT: usize = 256;
pub(crate) const TEMPERATURE_DEFAULT: f64 = 0.6;
/// The vendor's limits.
pub(crate) const TEMPERATURE_MAX: f64 = 5.0;
pub(crate) const TOP_P_MAX: f64 = 2.0;

const ELSEWHERE: &str = " here, where an answer is one text; use …/ai/v1/chat/completions";

/// Fields of features that wick does not have, or that this endpoint's answers have no place for.
pub(crate) const UNSUPPORTED: &[(&str, &str)] = &[
    ("lora", ": adapters cannot be added to a model"),
    ("requests", NO_BATCHES),
    ("logprobs", ELSEWHERE),
    ("top_logprobs", ELSEWHERE),
    ("prompt_logprobs", ELSEWHERE),
    ("return_token_ids", ELSEWHERE),
];

/// A validated request for text.
pub(super) struct TextRequest {
    input: Input,
    /// The field that the prompt is made of.
    field: &'static str,
    /// The answer is JSON, and is told as such.
    pub(super) json: bool,
}

enum Input {
    Chat(Box<ChatRequest>),
    /// Without the model's template.
    Raw {
        model: Arc<Model>,
        prompt: String,
        common: Box<Common>,
        max_tokens: Option<usize>,
    },
}

/// Turns a request into one for this model.
#[expect(clippy::cast_possible_truncation, reason = "the model computes in single precision")]
pub(super) fn lower(mut fields: Fields, model: Arc<Model>) -> Result<TextRequest, ApiError> {
    take_model(&mut fields, &model.served.alias)?;
    for (name, hint) in UNSUPPORTED {
        let value = fields.take(name);
        if value.is_some_and(|value| value != false && value != 0) {
            return Err(ApiError::Unsupported { param: fields.path(name), hint });
        }
    }
    if fields.count("n", 1..=u32::MAX)?.is_some_and(|n| n > 1) {
        return Err(ApiError::Unsupported { param: "n".to_owned(), hint: ELSEWHERE });
    }
    let temperature = fields.number("temperature", 0.0..=TEMPERATURE_MAX)?.unwrap_or(TEMPERATURE_DEFAULT);
    if let Some(top_p) = fields.number("top_p", 0.0..=TOP_P_MAX)? {
        // All of the probability cannot be more than all of it.
        put(&mut fields, "top_p", top_p.min(1.0).into());
    }
    if fields.peek("max_tokens").or(fields.peek("max_completion_tokens")).is_none() {
        put(&mut fields, "max_tokens", MAX_TOKENS_DEFAULT.into());
    }
    let json = json_mode(&mut fields);
    if json && fields.peek("stream").is_some_and(|stream| *stream == true) {
        let message = "JSON mode is not available with `stream`; leave out `stream` or `response_format`.";
        return Err(ApiError::invalid("stream", message));
    }
    let raw = fields.bool("raw")?.unwrap_or(false);
    let prompt = fields.string("prompt")?;
    let field = if prompt.is_some() { "prompt" } else { "messages" };
    let mut input = match (prompt, fields.take("messages")) {
        (Some(prompt), None) if raw => return raw_prompt(fields, model, prompt, json, temperature as f32),
        (Some(prompt), None) => {
            let prompt = not_empty(prompt)?;
            fields.put("messages", json!([{"role": "user", "content": prompt}]), field.to_owned());
            chat(fields, model)?
        }
        (None, Some(_)) if raw => {
            return Err(ApiError::invalid("raw", "`raw` is for a `prompt`: `messages` need the model's template."));
        }
        (None, Some(messages)) => {
            put(&mut fields, "messages", messages::lower(messages));
            chat(fields, model)?
        }
        (Some(_), Some(_)) => {
            return Err(ApiError::invalid("prompt", "Both `prompt` and `messages` were given; give only one of them."));
        }
        (None, None) => return Err(ApiError::invalid("messages", "Give `messages`, or a `prompt`.")),
    };
    input.common.sampling.temperature = temperature as f32;
    Ok(TextRequest { input: Input::Chat(Box::new(input)), field, json })
}

/// Puts a value back where it was.
fn put(fields: &mut Fields, name: &'static str, value: Value) {
    fields.put(name, value, name.to_owned());
}

fn not_empty(prompt: String) -> Result<String, ApiError> {
    if prompt.is_empty() {
        return Err(ApiError::invalid("prompt", "`prompt` is empty; give a text."));
    }
    Ok(prompt)
}

/// Tools may be written as `{"name", "description", "parameters"}`, or as OpenAI has them.
fn chat(mut fields: Fields, model: Arc<Model>) -> Result<ChatRequest, ApiError> {
    let mut form = Form::Nested;
    if let Some(mut tools) = fields.take("tools") {
        let is_flat = |tool: &Value| tool.get("name").is_some() && tool.get("function").is_none();
        if let Some(tools) = tools.as_array_mut().filter(|tools| tools.first().is_some_and(is_flat)) {
            form = Form::Flat;
            for tool in tools.iter_mut().filter_map(Value::as_object_mut) {
                tool.entry("type").or_insert("function".into());
            }
        }
        put(&mut fields, "tools", tools);
    }
    ChatRequest::of(model, fields, form)
}

/// Whether the answer must be JSON. A schema may stand in `json_schema` as it is, or as OpenAI has it, with a name around it.
fn json_mode(fields: &mut Fields) -> bool {
    let Some(mut format) = fields.take("response_format") else { return false };
    let asks = matches!(format["type"].as_str(), Some("json_object" | "json_schema"));
    if let Some(given) = format.get_mut("json_schema") {
        match given.as_object_mut().filter(|given| given.get("schema").is_some_and(Value::is_object)) {
            Some(named) => {
                named.entry("name").or_insert("answer".into());
            }
            None => *given = json!({"name": "answer", "schema": given.take()}),
        }
    }
    put(fields, "response_format", format);
    asks
}

fn raw_prompt(
    mut fields: Fields,
    model: Arc<Model>,
    prompt: String,
    json: bool,
    temperature: f32,
) -> Result<TextRequest, ApiError> {
    let prompt = not_empty(prompt)?;
    let mut common = Common::take(&mut fields, &model)?;
    common.sampling.temperature = temperature;
    let max_tokens = chat::max_tokens(&mut fields)?;
    fields.finish()?;
    Ok(TextRequest { input: Input::Raw { model, prompt, common: Box::new(common), max_tokens }, field: "prompt", json })
}

impl TextRequest {
    /// Whether the answer is to be streamed.
    pub(super) fn streams(&self) -> bool {
        match &self.input {
            Input::Chat(chat) => chat.common.stream.is_some(),
            Input::Raw { common, .. } => common.stream.is_some(),
        }
    }

    /// Hands the request to the engine.
    pub(super) async fn start(self, app: &AppState, context: &RequestContext, claim: Claim) -> Result<Job, ApiError> {
        let (model, prompt, mut common, max_tokens) = match self.input {
            Input::Chat(request) => return chat::start(app, context, *request, claim, self.field).await,
            Input::Raw { model, prompt, common, max_tokens } => (model, prompt, common, max_tokens),
        };
        let (of, truncates) = (Arc::clone(&model), common.truncate.is_some());
        let encode = move || {
            if !truncates {
                check_length(&of, &prompt, "prompt")?;
            }
            Ok(of.served.text.tokenizer.encode_with_special(&prompt, true)?)
        };
        let prompt = claim.work(app, encode).await?;
        let grammar = pipeline::grammar(&model, &mut common).await?;
        let plan = Plan {
            model,
            common: *common,
            prompts: vec![prompt],
            prompt_field: self.field,
            max_tokens,
            per_prompt: 1,
            logprobs: None,
            prompt_logprobs: None,
            hidden_logprobs: false,
            rank: false,
            continuing: true,
            reading: Reading::plain(),
            grammar,
            thoughts: None,
        };
        Ok(admit(app, context, plan)?.explained().await)
    }
}
