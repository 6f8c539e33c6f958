//! Log-probabilities in the shapes of the two endpoints.
use std::borrow::Cow;
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};

use super::choice::{PromptText, TokenEntry, prompt_entries};
use crate::sampling::TokenLogprobs;
use crate::text::Tokenizer;

/// Chat: `{"content": [...], "refusal": null}`.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ChatCompletionLogprobs")]
pub(crate) struct ChatLogprobs {
    content: Vec<ChatToken>,
    refusal: Option<()>,
}

/// A token of an answer, in chats and in Responses.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "TokenLogprob")]
pub(crate) struct ChatToken {
    #[serde(flatten)]
    token: ChatAlternative,
    top_logprobs: Vec<ChatAlternative>,
}

/// `token` is text, with U+FFFD where it is not UTF-8; `bytes` is exact.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "TokenAlternative")]
struct ChatAlternative {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

fn bytes(tokenizer: &Tokenizer, id: u32) -> &[u8] {
    tokenizer.token_bytes(id).unwrap_or_default()
}

/// JSON has no infinity; a token that cannot occur gets what OpenAI sends for those.
fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { -9999.0 }
}

fn alternative(tokenizer: &Tokenizer, id: u32, logprob: f32) -> ChatAlternative {
    let bytes = bytes(tokenizer, id).to_vec();
    ChatAlternative { token: String::from_utf8_lossy(&bytes).into_owned(), logprob: finite(logprob), bytes }
}

pub(crate) fn chat(tokenizer: &Tokenizer, entries: &[TokenEntry]) -> ChatLogprobs {
    ChatLogprobs { content: chat_tokens(tokenizer, entries), refusal: None }
}

pub(crate) fn chat_tokens(tokenizer: &Tokenizer, entries: &[TokenEntry]) -> Vec<ChatToken> {
    let token = |entry: &TokenEntry| ChatToken {
        token: alternative(tokenizer, entry.id, entry.logprob.unwrap_or(0.0)),
        top_logprobs: entry.top.iter().map(|(id, logprob)| alternative(tokenizer, *id, *logprob)).collect(),
    };
    entries.iter().map(token).collect()
}

/// Completions: four parallel arrays.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub(crate) struct CompletionLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    /// Token → log-probability: the alternatives asked for, and the token itself.
    top_logprobs: Vec<Option<Ordered<f32>>>,
    text_offset: Vec<usize>,
}

impl CompletionLogprobs {
    /// Moves `other`'s tokens behind these.
    pub(crate) fn append(&mut self, other: &mut Self) {
        self.tokens.append(&mut other.tokens);
        self.token_logprobs.append(&mut other.token_logprobs);
        self.top_logprobs.append(&mut other.top_logprobs);
        self.text_offset.append(&mut other.text_offset);
    }
}

/// This shape has no field for bytes, so a token that is not UTF-8 is written as OpenAI writes it: `bytes:\xe2\x80`.
/// Thus different tokens keep different keys.
fn name(tokenizer: &Tokenizer, id: u32) -> String {
    let bytes = bytes(tokenizer, id);
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |name, byte| format!("{name}\\x{byte:02x}")),
    }
}

/// `base`: characters of text before these entries' own (an echoed prompt).
pub(crate) fn completion(tokenizer: &Tokenizer, entries: &[TokenEntry], base: usize) -> CompletionLogprobs {
    let mut out = CompletionLogprobs::default();
    for entry in entries {
        let top = entry.logprob.map(|logprob| {
            let mut top = Ordered(Vec::new());
            // Should two tokens have the same text, the likelier one, which comes first, stays.
            for (id, logprob) in entry.top.iter().copied().chain([(entry.id, logprob)]) {
                top.insert(name(tokenizer, id), finite(logprob));
            }
            top
        });
        out.tokens.push(name(tokenizer, entry.id));
        out.token_logprobs.push(entry.logprob.map(finite));
        out.top_logprobs.push(top);
        out.text_offset.push(base + entry.offset);
    }
    out
}

/// A JSON object in the order of its entries. (`serde_json::Value` would widen the numbers: -3.6 to -3.5999999046325684.)
#[derive(Debug)]
pub(crate) struct Ordered<V>(Vec<(String, V)>);

impl<V> Ordered<V> {
    /// The first value of a key stays.
    fn insert(&mut self, key: String, value: V) {
        if self.0.iter().all(|(known, _)| *known != key) {
            self.0.push((key, value));
        }
    }
}

/// An object of `V`s.
impl<V: JsonSchema> JsonSchema for Ordered<V> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("MapOf{}", V::schema_name()).into()
    }

    fn json_schema(types: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "object", "additionalProperties": types.subschema_for::<V>()})
    }
}

impl<V: Serialize> Serialize for Ordered<V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

/// One object per prompt token, `null` for the first.
pub(crate) type PromptLogprobs = Vec<Option<Ordered<Ranked>>>;

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "RankedToken")]
pub(crate) struct Ranked {
    logprob: f32,
    rank: Option<usize>,
    decoded_token: String,
}

/// vLLM's `prompt_logprobs`: for each prompt token `{id: {logprob, rank, decoded_token}}`, `null` for the first.
/// `rank` (from 1) is `null` for a token that is not among the alternatives asked for. `entries` starts at the second token.
pub(crate) fn prompt(tokenizer: &Arc<Tokenizer>, ids: &[u32], entries: &[TokenLogprobs]) -> PromptLogprobs {
    let position = |entry: &TokenEntry| {
        let logprob = entry.logprob?;
        let mut map = Ordered(Vec::new());
        for (rank, (id, logprob)) in (1_usize..).zip(&entry.top) {
            map.insert(id.to_string(), ranked(tokenizer, *id, *logprob, Some(rank)));
        }
        map.insert(entry.id.to_string(), ranked(tokenizer, entry.id, logprob, None));
        Some(map)
    };
    prompt_entries(tokenizer, ids, entries, PromptText::default()).iter().map(position).collect()
}

fn ranked(tokenizer: &Tokenizer, id: u32, logprob: f32, rank: Option<usize>) -> Ranked {
    let decoded_token = String::from_utf8_lossy(bytes(tokenizer, id)).into_owned();
    Ranked { logprob: finite(logprob), rank, decoded_token }
}
