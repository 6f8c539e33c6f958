//! The request fields that both generation endpoints share, and what becomes of those that have no effect here.
//!
//! Every field of a request is in exactly one group:
//! 1. It has its effect: the fields read by `Common::take`, the endpoint's own fields, the messages.
//! 2. It is in [`HARMLESS`]: checked, then ignored, because it cannot change the answer.
//! 3. It is in [`UNSUPPORTED`]: accepted only with a value that asks for nothing ([`Neutral`]), else a 400 that names it.
//! 4. Anything else is a 400 that names it: a misspelt field is not ignored.
use std::ops::RangeInclusive;
use std::sync::Arc;

use serde_json::Value;

use super::Model;
use super::error::ApiError;
use super::fields::{Fields, integer_at, type_name};
use super::structured::{self, Asked};
use crate::sampling::SamplingParams;
use crate::text::StopStrings;

/// Most strings in `stop`: evaluation harnesses send more than the four that OpenAI allows.
pub(crate) const STOPS_MAX: usize = 32;
/// Most ids in `stop_token_ids`.
pub(crate) const STOP_IDS_MAX: usize = 256;
/// Longest stop string, cache salt and the like, in bytes.
pub(crate) const SHORT_TEXT_MAX: usize = 4096;
/// More choices than this are refused.
pub(crate) const N_MAX: u32 = 128;

/// What a harmless field must look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    Text,
    Flag,
    OneOf(&'static [&'static str]),
    /// An object of at most 16 texts.
    Metadata,
    Object,
}

/// Fields that are checked and then ignored: they cannot change the answer. The response's header `x-ignored-params` names
/// those that asked for something.
///
/// - `user`, `safety_identifier`, `metadata`: who asks and why; wick keeps no records of them.
/// - `request_id`: vLLM's field; wick's id is the `x-request-id` header's.
/// - `client_metadata`: what Codex says of itself.
/// - `store`: wick stores nothing, whatever it says.
/// - `service_tier`: there is one tier; the response says `default`.
/// - `prompt_cache_retention`, `prompt_cache_options`: hints for a cache that wick manages itself (per tenant, always on;
///   separate it with `cache_salt`).
/// - `parallel_tool_calls`: on completions, which have no tools to call in parallel; a chat reads it.
pub const HARMLESS: &[(&str, Shape)] = &[
    ("user", Shape::Text),
    ("request_id", Shape::Text),
    ("safety_identifier", Shape::Text),
    ("metadata", Shape::Metadata),
    ("client_metadata", Shape::Object),
    ("store", Shape::Flag),
    ("service_tier", Shape::OneOf(&["auto", "default", "flex", "scale", "priority", "fast"])),
    ("prompt_cache_retention", Shape::OneOf(&["in_memory", "in-memory", "24h"])),
    ("prompt_cache_options", Shape::Object),
    ("parallel_tool_calls", Shape::Flag),
];

/// The value of an unsupported field that asks for nothing and is therefore accepted. `null` always is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Neutral {
    Nothing,
    EmptyArray,
    Text(&'static str),
    False,
    True,
    Zero,
    One,
    /// `["text"]`.
    OnlyText,
}

/// Known fields whose effect this server does not have: (name, accepted value, hint). Those that say so are left by
/// completions only; a chat reads them first.
pub const UNSUPPORTED: &[(&str, Neutral, &str)] = &[
    ("tools", Neutral::EmptyArray, " here; use /v1/chat/completions"),
    ("tool_choice", Neutral::Text("none"), " here, except `none`; use /v1/chat/completions"),
    ("functions", Neutral::EmptyArray, "; use `tools`"),
    ("function_call", Neutral::Text("none"), ", except `none`; use `tool_choice`"),
    ("guided_decoding_backend", Neutral::Nothing, ": there is one backend"),
    ("guided_whitespace_pattern", Neutral::Nothing, ": white space is bounded by the server"),
    ("modalities", Neutral::OnlyText, ", except `[\"text\"]`"),
    ("audio", Neutral::Nothing, ": models here speak text only"),
    ("prediction", Neutral::Nothing, ""),
    ("web_search_options", Neutral::Nothing, ""),
    ("moderation", Neutral::Nothing, ""),
    ("reasoning_effort", Neutral::Text("none"), " here, except `none`; use /v1/chat/completions"),
    ("thinking_budget", Neutral::Nothing, " here; use /v1/chat/completions"),
    ("thinking_token_budget", Neutral::Nothing, " here; use /v1/chat/completions"),
    ("verbosity", Neutral::Text("medium"), ", except `medium`"),
    ("suffix", Neutral::Nothing, ": models here do not fill in the middle"),
    ("priority", Neutral::Zero, ", except 0: tenants share fairly"),
    ("use_beam_search", Neutral::False, ""),
    ("bad_words", Neutral::EmptyArray, ""),
    ("allowed_token_ids", Neutral::Nothing, ""),
    ("logits_processors", Neutral::EmptyArray, ""),
    ("chat_template", Neutral::Nothing, " per request; start the server with --chat-template"),
    ("documents", Neutral::EmptyArray, ""),
    ("spaces_between_special_tokens", Neutral::True, ", except true"),
    ("detokenize", Neutral::True, ", except true"),
    ("length_penalty", Neutral::One, ", except 1: there is no beam search"),
    ("early_stopping", Neutral::False, ": there is no beam search"),
    ("return_tokens_as_token_ids", Neutral::False, "; use return_token_ids"),
    ("include_reasoning", Neutral::True, " here, except true; use /v1/chat/completions"),
    ("kv_transfer_params", Neutral::Nothing, ""),
    ("vllm_xargs", Neutral::Nothing, ""),
];

impl Neutral {
    fn accepts(self, value: &Value) -> bool {
        match self {
            Self::Nothing => false,
            Self::EmptyArray => value.as_array().is_some_and(Vec::is_empty),
            Self::Text(text) => value == text,
            Self::False => value == false,
            Self::True => value == true,
            Self::Zero => value.as_f64() == Some(0.0),
            Self::One => value.as_f64() == Some(1.0),
            Self::OnlyText => value.as_array().is_some_and(|items| items.len() == 1 && items[0] == "text"),
        }
    }
}

/// How a stream is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StreamOptions {
    /// A last chunk with the usage and no choices.
    pub(crate) include_usage: bool,
    /// The usage so far in every chunk.
    pub(crate) continuous_usage: bool,
}

/// When the text of a choice ends, and which of its tokens are shown.
#[derive(Debug, Clone, Default)]
pub(crate) struct TextRules {
    pub(crate) stops: Arc<StopStrings>,
    pub(crate) include_stop: bool,
    pub(crate) skip_special: bool,
    pub(crate) min_tokens: usize,
    pub(crate) stop_tokens: Arc<[u32]>,
}

/// How much of a prompt's end is kept, if its start may be cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Truncate {
    /// So many tokens.
    To(usize),
    /// What the context leaves beside the completion.
    ToContext,
    /// Whole turns of a chat, from the oldest on, until it fits the context.
    Turns,
}

/// What both endpoints understand, validated.
#[derive(Debug)]
pub(crate) struct Common {
    pub(crate) n: usize,
    /// Without seed and log-probabilities, which the endpoint adds.
    pub(crate) sampling: SamplingParams,
    pub(crate) seed: Option<u64>,
    pub(crate) rules: TextRules,
    pub(crate) prompt_logprobs: Option<u8>,
    pub(crate) cache_salt: Option<String>,
    /// `prompt_cache_key`, which names the session.
    pub(crate) cache_key: Option<String>,
    /// Fields that asked for something and have no effect.
    pub(crate) ignored: Vec<String>,
    pub(crate) truncate: Option<Truncate>,
    /// An answer may be shorter than its limit of tokens where the context ends before.
    pub(crate) ends_with_context: bool,
    pub(crate) return_token_ids: bool,
    /// Refused where it would have to wait for others.
    pub(crate) unless_busy: bool,
    /// The form that the answer must have.
    pub(crate) form: Option<Asked>,
    /// `None`: one JSON response.
    pub(crate) stream: Option<StreamOptions>,
}

impl Common {
    /// Takes the shared fields out of the body, together with the harmless and the unsupported ones.
    pub(crate) fn take(fields: &mut Fields, model: &Model) -> Result<Self, ApiError> {
        for (name, neutral, hint) in UNSUPPORTED {
            if let Some(value) = fields.take(name)
                && !neutral.accepts(&value)
            {
                return Err(ApiError::Unsupported { param: fields.path(name), hint });
            }
        }
        let mut ignored = Vec::new();
        for (name, shape) in HARMLESS {
            if fields.peek(name).is_some_and(asks) {
                ignored.push(fields.path(name));
            }
            check_harmless(fields, name, *shape)?;
        }
        let vocab = model.served.engine.info().vocab;
        let min_tokens = fields.count("min_tokens", 0..=u32::MAX)?.unwrap_or(0);
        let common = Self {
            n: fields.count("n", 1..=N_MAX)?.unwrap_or(1),
            sampling: sampling(fields, vocab, min_tokens)?,
            seed: seed(fields)?,
            rules: rules(fields, model, vocab, min_tokens)?,
            prompt_logprobs: small(fields, "prompt_logprobs", 0..=20)?,
            cache_salt: short_text(fields, "cache_salt")?,
            cache_key: fields.string("prompt_cache_key")?,
            ignored,
            truncate: truncate(fields, model.context_max)?,
            ends_with_context: false,
            return_token_ids: fields.bool("return_token_ids")?.unwrap_or(false),
            unless_busy: unless_busy(fields)?,
            form: structured::take(fields)?,
            stream: stream(fields)?,
        };
        if let Some(form) = &common.form {
            check_stop_tokens(model, &common.rules, form)?;
        }
        if common.stream.is_some() && common.prompt_logprobs.is_some() {
            return Err(ApiError::invalid(
                "prompt_logprobs",
                "`prompt_logprobs` is not available with `stream`; send the request without `stream`.",
            ));
        }
        Ok(common)
    }
}

/// `options.rejectIfBusy`, Workers AI's: the request is not to wait for others.
pub(crate) fn unless_busy(fields: &mut Fields) -> Result<bool, ApiError> {
    let Some(options) = fields.take("options") else { return Ok(false) };
    let mut options = Fields::at(fields.path("options"), options)?;
    let unless_busy = options.bool("rejectIfBusy")?.unwrap_or(false);
    options.finish()?;
    Ok(unless_busy)
}

/// Where the form of an answer is given, a stop token may come only at its end: one that has text would be missing before.
fn check_stop_tokens(model: &Model, rules: &TextRules, form: &Asked) -> Result<(), ApiError> {
    let tokenizer = &model.served.text.tokenizer;
    let is_text = |id: &&u32| !tokenizer.is_control(**id) && !tokenizer.stop_ids().contains(id);
    match rules.stop_tokens.iter().find(is_text) {
        None => Ok(()),
        Some(id) => Err(ApiError::invalid(
            "stop_token_ids",
            format!(
                "`stop_token_ids` has the token {id}, which has text and may be needed by `{}`; use `stop` for texts.",
                form.param
            ),
        )),
    }
}

/// A whole number that fits a byte.
pub(crate) fn small(fields: &mut Fields, name: &str, range: RangeInclusive<u8>) -> Result<Option<u8>, ApiError> {
    let value = fields.integer(name, i64::from(*range.start())..=i64::from(*range.end()))?;
    Ok(value.map(|value| u8::try_from(value).expect("a range outside u8 is a bug")))
}

/// Whether a harmless field's value asks for anything that wick does not do anyway.
fn asks(value: &Value) -> bool {
    *value != false && value != "auto" && value != "default"
}

fn check_harmless(fields: &mut Fields, name: &str, shape: Shape) -> Result<(), ApiError> {
    match shape {
        Shape::Text => fields.string(name).map(drop),
        Shape::Flag => fields.bool(name).map(drop),
        Shape::OneOf(words) => fields.choice(name, words).map(drop),
        Shape::Object => fields.object(name).map(drop),
        Shape::Metadata => {
            let Some(map) = fields.object(name)? else { return Ok(()) };
            let fits = map.iter().all(|(key, value)| {
                key.chars().count() <= 64 && value.as_str().is_some_and(|text| text.chars().count() <= 512)
            });
            if map.len() <= 16 && fits {
                return Ok(());
            }
            let param = fields.path(name);
            let message = format!(
                "`{param}` must have at most 16 entries: keys of up to 64 characters, strings of up to 512 characters."
            );
            Err(ApiError::InvalidValue { param, message })
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the model computes in single precision")]
fn sampling(fields: &mut Fields, vocab: usize, min_tokens: usize) -> Result<SamplingParams, ApiError> {
    let mut number = |name, range, neutral| -> Result<f32, ApiError> {
        Ok(fields.number(name, range)?.map_or(neutral, |value| value as f32))
    };
    let temperature = number("temperature", 0.0..=2.0, 1.0)?;
    let top_p = number("top_p", 0.0..=1.0, 1.0)?;
    let min_p = number("min_p", 0.0..=1.0, 0.0)?;
    let presence_penalty = number("presence_penalty", -2.0..=2.0, 0.0)?;
    let frequency_penalty = number("frequency_penalty", -2.0..=2.0, 0.0)?;
    let repetition_penalty = number("repetition_penalty", 0.01..=100.0, 1.0)?;
    let top_k = fields.integer("top_k", -1..=i64::from(u32::MAX))?.unwrap_or(0);
    Ok(SamplingParams {
        temperature,
        // 0 keeps only the most likely token; the smallest positive number says the same within (0, 1].
        top_p: top_p.max(f32::MIN_POSITIVE),
        top_k: u32::try_from(top_k).unwrap_or(0),
        min_p,
        presence_penalty,
        frequency_penalty,
        repetition_penalty,
        logit_bias: logit_bias(fields, vocab)?.into(),
        seed: 0,
        min_tokens,
        logprobs: None,
    })
}

#[expect(clippy::cast_possible_truncation, reason = "the model computes in single precision")]
fn logit_bias(fields: &mut Fields, vocab: usize) -> Result<Vec<(u32, f32)>, ApiError> {
    let path = fields.path("logit_bias");
    let Some(map) = fields.object("logit_bias")? else { return Ok(Vec::new()) };
    let mut biases = Vec::with_capacity(map.len().min(vocab));
    for (key, value) in map {
        // Canonical digits only, so that an id cannot be given twice.
        let id = key.parse::<u32>().ok().filter(|id| id.to_string() == key && (*id as usize) < vocab);
        let Some(id) = id else {
            let message = format!("Each key of `{path}` must be a token id from 0 to {}.", vocab.saturating_sub(1));
            return Err(ApiError::InvalidValue { param: path, message });
        };
        let Some(bias) = value.as_f64().filter(|bias| (-100.0..=100.0).contains(bias)) else {
            let message = format!("`{path}.{id}` must be a number between -100 and 100.");
            return Err(ApiError::InvalidValue { param: format!("{path}.{id}"), message });
        };
        biases.push((id, bias as f32));
    }
    // The order of the client's object must not matter.
    biases.sort_unstable_by_key(|(id, _)| *id);
    Ok(biases)
}

/// Any 64-bit integer; negative ones count as their two's complement.
fn seed(fields: &mut Fields) -> Result<Option<u64>, ApiError> {
    match fields.take("seed") {
        Some(Value::Number(number)) if number.is_u64() => Ok(number.as_u64()),
        Some(value) => Ok(Some(integer_at(|| fields.path("seed"), &value, i64::MIN..=i64::MAX)?.cast_unsigned())),
        None => Ok(None),
    }
}

fn rules(fields: &mut Fields, model: &Model, vocab: usize, min_tokens: usize) -> Result<TextRules, ApiError> {
    let ignore_eos = fields.bool("ignore_eos")?.unwrap_or(false);
    let mut stop_tokens = stop_token_ids(fields, vocab)?;
    if !ignore_eos {
        stop_tokens.extend_from_slice(model.served.text.tokenizer.stop_ids());
    }
    stop_tokens.sort_unstable();
    stop_tokens.dedup();
    Ok(TextRules {
        stops: Arc::new(StopStrings::new(stops(fields)?)),
        include_stop: fields.bool("include_stop_str_in_output")?.unwrap_or(false),
        skip_special: fields.bool("skip_special_tokens")?.unwrap_or(true),
        min_tokens,
        stop_tokens: stop_tokens.into(),
    })
}

fn stop_token_ids(fields: &mut Fields, vocab: usize) -> Result<Vec<u32>, ApiError> {
    let path = fields.path("stop_token_ids");
    let items = fields.array("stop_token_ids")?.unwrap_or_default();
    if items.len() > STOP_IDS_MAX {
        let message = format!("`{path}` must have at most {STOP_IDS_MAX} ids, but {} were given.", items.len());
        return Err(ApiError::InvalidValue { param: path, message });
    }
    token_ids(&path, &items, vocab)
}

/// Token ids of the model's vocabulary.
pub(crate) fn token_ids(path: &str, items: &[Value], vocab: usize) -> Result<Vec<u32>, ApiError> {
    let last = i64::try_from(vocab).unwrap_or(i64::MAX).saturating_sub(1);
    let id = |(index, item)| {
        let id = integer_at(|| format!("{path}[{index}]"), item, 0..=last)?;
        Ok(u32::try_from(id).expect("a vocabulary beyond u32 is a bug"))
    };
    items.iter().enumerate().map(id).collect()
}

fn stops(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let path = fields.path("stop");
    let items = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::Array(items)) => items,
        Some(text @ Value::String(_)) => vec![text],
        Some(other) => {
            let found = type_name(&other);
            return Err(ApiError::WrongType { param: path, expected: "a string or an array of strings", found });
        }
    };
    if items.len() > STOPS_MAX {
        let message = format!("`{path}` must have at most {STOPS_MAX} strings, but {} were given.", items.len());
        return Err(ApiError::InvalidValue { param: path, message });
    }
    let stop = |item| match item {
        Value::String(text) if text.is_empty() => {
            Err(ApiError::invalid(&path, format!("`{path}` must not have an empty string.")))
        }
        Value::String(text) if text.len() > SHORT_TEXT_MAX => {
            Err(ApiError::invalid(&path, format!("Strings in `{path}` must have at most {SHORT_TEXT_MAX} bytes.")))
        }
        Value::String(text) => Ok(text),
        other => Err(ApiError::WrongType {
            param: path.clone(),
            expected: "a string or an array of strings",
            found: type_name(&other),
        }),
    };
    items.into_iter().map(stop).collect()
}

fn short_text(fields: &mut Fields, name: &str) -> Result<Option<String>, ApiError> {
    let text = fields.string(name)?;
    if text.as_ref().is_some_and(|text| text.is_empty() || text.len() > SHORT_TEXT_MAX) {
        let message = format!("`{name}` must have 1 to {SHORT_TEXT_MAX} bytes.");
        return Err(ApiError::invalid(name, message));
    }
    Ok(text)
}

/// `truncate_prompt_tokens`: -1 stands for what the context leaves beside the completion.
fn truncate(fields: &mut Fields, context_max: usize) -> Result<Option<Truncate>, ApiError> {
    let limit = i64::try_from(context_max).unwrap_or(i64::MAX);
    match fields.integer("truncate_prompt_tokens", -1..=limit)? {
        None => Ok(None),
        Some(0) => Err(ApiError::invalid(
            "truncate_prompt_tokens",
            format!("`truncate_prompt_tokens` must be -1 or between 1 and {limit}, but 0 was given."),
        )),
        Some(keep) => Ok(Some(usize::try_from(keep).map_or(Truncate::ToContext, Truncate::To))),
    }
}

fn stream(fields: &mut Fields) -> Result<Option<StreamOptions>, ApiError> {
    let stream = fields.bool("stream")?.unwrap_or(false);
    let options = fields.take("stream_options");
    if options.is_some() && !stream {
        return Err(ApiError::invalid("stream_options", "`stream_options` is only allowed when `stream` is true."));
    }
    if !stream {
        return Ok(None);
    }
    let mut parsed = StreamOptions { include_usage: false, continuous_usage: false };
    if let Some(options) = options {
        let mut options = Fields::at(fields.path("stream_options"), options)?;
        parsed.include_usage = options.bool("include_usage")?.unwrap_or(false);
        parsed.continuous_usage = options.bool("continuous_usage_stats")?.unwrap_or(false);
        // Padding against traffic analysis; wick sends none, and the text is the same with or without.
        options.bool("include_obfuscation")?;
        options.finish()?;
    }
    Ok(Some(parsed))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(value: Value) -> Fields {
        Fields::at(String::new(), value).unwrap()
    }

    #[test]
    fn the_lists_do_not_overlap() {
        let mut names: Vec<&str> = HARMLESS.iter().map(|(name, _)| *name).collect();
        names.extend(UNSUPPORTED.iter().map(|(name, ..)| *name));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn ignored_fields_are_those_that_asked_for_something() {
        for value in [json!("flex"), json!(true), json!({}), json!("24h"), json!("me")] {
            assert!(asks(&value), "{value}");
        }
        for value in [json!(false), json!("auto"), json!("default")] {
            assert!(!asks(&value), "{value}");
        }
    }

    #[test]
    fn neutral_values_ask_for_nothing() {
        assert!(Neutral::OnlyText.accepts(&json!(["text"])));
        assert!(!Neutral::OnlyText.accepts(&json!(["text", "audio"])));
        assert!(Neutral::EmptyArray.accepts(&json!([])));
        assert!(!Neutral::EmptyArray.accepts(&json!({})));
        assert!(!Neutral::Text("none").accepts(&json!("auto")));
    }

    #[test]
    fn stops_are_bounded_and_never_empty() {
        assert_eq!(stops(&mut fields(json!({"stop": "a"}))), Ok(vec!["a".to_owned()]));
        assert_eq!(stops(&mut fields(json!({"stop": null}))), Ok(Vec::new()));
        assert_eq!(stops(&mut fields(json!({"stop": ["a", "b"]}))).unwrap().len(), 2);
        for bad in [json!(""), json!(["a", ""]), json!(vec!["a"; STOPS_MAX + 1]), json!(1), json!([1])] {
            assert!(stops(&mut fields(json!({ "stop": bad }))).is_err());
        }
    }

    #[test]
    fn seeds_are_any_64_bits() {
        assert_eq!(seed(&mut fields(json!({"seed": 7}))), Ok(Some(7)));
        assert_eq!(seed(&mut fields(json!({"seed": -1}))), Ok(Some(u64::MAX)));
        assert_eq!(seed(&mut fields(json!({"seed": u64::MAX}))), Ok(Some(u64::MAX)));
        assert!(seed(&mut fields(json!({"seed": 1.5}))).is_err());
    }

    #[test]
    fn biases_are_sorted_and_checked() {
        let mut good = fields(json!({"logit_bias": {"9": 1, "3": -100}}));
        assert_eq!(logit_bias(&mut good, 10), Ok(vec![(3, -100.0), (9, 1.0)]));
        for bad in [
            json!({"10": 1}),
            json!({"-1": 1}),
            json!({"03": 1}),
            json!({"x": 1}),
            json!({"3": 101}),
            json!({"3": "1"}),
        ] {
            assert!(logit_bias(&mut fields(json!({ "logit_bias": bad })), 10).is_err());
        }
    }

    #[test]
    fn stream_options_need_a_stream() {
        assert_eq!(stream(&mut fields(json!({}))), Ok(None));
        assert!(stream(&mut fields(json!({"stream_options": {}}))).is_err());
        let parsed = stream(&mut fields(json!({"stream": true, "stream_options": {"include_usage": true}})));
        assert_eq!(parsed, Ok(Some(StreamOptions { include_usage: true, continuous_usage: false })));
    }
}
