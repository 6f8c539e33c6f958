//! The JSON that both endpoints send around their choices.
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use schemars::JsonSchema;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::gate::Tokens;
use super::logprobs::PromptLogprobs;

/// OpenAI's usage object; the details are always present.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[schemars(rename = "Usage")]
pub(crate) struct UsageBody {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: PromptDetails,
    completion_tokens_details: CompletionDetails,
}

#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[schemars(rename = "UsagePromptDetails")]
struct PromptDetails {
    cached_tokens: usize,
    audio_tokens: usize,
}

#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[schemars(rename = "UsageCompletionDetails")]
struct CompletionDetails {
    reasoning_tokens: usize,
    audio_tokens: usize,
    accepted_prediction_tokens: usize,
    rejected_prediction_tokens: usize,
}

impl From<Tokens> for UsageBody {
    fn from(tokens: Tokens) -> Self {
        Self {
            prompt_tokens: tokens.prompt,
            completion_tokens: tokens.completion,
            total_tokens: tokens.prompt + tokens.completion,
            prompt_tokens_details: PromptDetails { cached_tokens: tokens.cached, audio_tokens: 0 },
            completion_tokens_details: CompletionDetails {
                reasoning_tokens: tokens.reasoning,
                audio_tokens: 0,
                accepted_prediction_tokens: tokens.accepted,
                rejected_prediction_tokens: tokens.rejected,
            },
        }
    }
}

/// A new id of `/v1/responses`, as OpenAI writes them.
pub(crate) fn new_id(prefix: &str) -> String {
    format!("{prefix}_{}", uuid::Uuid::new_v4().simple())
}

/// What all chunks of a response, or the one body, have in common.
#[derive(Debug, Clone)]
pub(crate) struct Envelope {
    pub(crate) id: String,
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    /// The name that the client asked for.
    pub(crate) model: Arc<str>,
    pub(crate) fingerprint: Arc<str>,
}

impl Envelope {
    pub(crate) fn new(prefix: &str, object: &'static str, model: &super::Model) -> Self {
        Self {
            id: format!("{prefix}-{}", uuid::Uuid::new_v4().simple()),
            object,
            created: unix_now(),
            model: model.served.alias.as_str().into(),
            fingerprint: model.fingerprint.as_str().into(),
        }
    }

    /// A body or a chunk.
    pub(crate) fn wrap<C>(&self, choices: Vec<C>) -> Enveloped<'_, C> {
        Enveloped {
            id: &self.id,
            object: self.object,
            created: self.created,
            model: &self.model,
            choices,
            usage: None,
            service_tier: None,
            system_fingerprint: &self.fingerprint,
            prompt_logprobs: None,
            prompt_token_ids: None,
        }
    }
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "AnswerOf{C}")]
pub(crate) struct Enveloped<'e, C> {
    id: &'e str,
    object: &'static str,
    created: u64,
    model: &'e str,
    choices: Vec<C>,
    /// `Some(None)` is `null`: the usage will come in the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) usage: Option<Option<UsageBody>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) service_tier: Option<&'static str>,
    system_fingerprint: &'e str,
    /// vLLM's extensions, for chat.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_logprobs: Option<PromptLogprobs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_token_ids: Option<Vec<u32>>,
}

/// Unix time in seconds.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Changes with wick's version and the model.
pub(crate) fn fingerprint(alias: &str) -> String {
    let digest = Sha256::digest(format!("{} {alias}", env!("CARGO_PKG_VERSION")));
    digest.iter().take(5).fold("fp_".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}
