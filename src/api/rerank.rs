//! `POST /v1/rerank`, in the shape that Cohere and Jina share: scores of documents for a query, best first.
use std::sync::Arc;

use axum::extract::State;
use axum::{Extension, Json};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::AppState;
use super::body::{Claim, JsonBody};
use super::encoders::{self, Encoder, INPUTS_MAX, Purpose};
use super::error::ApiError;
use super::fields::{Fields, type_name};
use super::gate::RequestContext;
use super::params::unless_busy;
use crate::encoder::EncoderInput;

/// A validated request: what every dialect's comes down to.
pub(crate) struct RerankRequest {
    model: Arc<Encoder>,
    query: String,
    /// The field that holds the documents, for messages.
    documents_at: String,
    documents: Vec<String>,
    top_n: usize,
    return_documents: bool,
    /// Tokens of a pair that are kept: the document is cut off, never the query.
    truncate: Option<usize>,
    /// Tokens of a document that are kept.
    document_max: Option<usize>,
    unless_busy: bool,
    /// Fields that have no effect.
    ignored: Vec<String>,
}

/// The documents' scores, and the tokens of all pairs.
pub(crate) struct Ranked {
    request: RerankRequest,
    /// The wanted documents' indices with their scores, best first.
    pub(crate) order: Vec<(usize, f32)>,
    pub(crate) tokens: usize,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "RerankDocument")]
struct Document {
    text: String,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "RerankResult")]
struct Scored {
    index: usize,
    relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<Document>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "RerankUsage")]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Reranking")]
pub(crate) struct Reranked {
    id: String,
    model: String,
    usage: Usage,
    results: Vec<Scored>,
}

/// The handler.
pub(crate) async fn create(
    State(app): State<AppState>,
    Extension(context): Extension<RequestContext>,
    body: JsonBody,
) -> Result<Json<Reranked>, ApiError> {
    let (request, claim) = body.lower(&app, RerankRequest::lower).await?;
    Ok(Json(rank(&app, &context, request, claim).await?.answer()))
}

/// Scores the documents of a request.
pub(crate) async fn rank(
    app: &AppState,
    context: &RequestContext,
    mut request: RerankRequest,
    claim: Claim,
) -> Result<Ranked, ApiError> {
    context.notes.ignored(std::mem::take(&mut request.ignored));
    let encode = move || Ok((request.pairs()?, request));
    let (pairs, request): (Vec<EncoderInput>, RerankRequest) = claim.work(app, encode).await?;
    let tokens = pairs.iter().map(|pair| pair.ids.len()).sum();
    let scores = encoders::run(app, context, &request.model, pairs, request.unless_busy).await?;
    let mut order: Vec<(usize, f32)> =
        scores.iter().map(|score| score.first().copied().unwrap_or_default()).enumerate().collect();
    // Stable: of two that score the same, the one that came first.
    order.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    order.truncate(request.top_n);
    Ok(Ranked { request, order, tokens })
}

impl RerankRequest {
    pub(crate) fn lower(mut fields: Fields, app: &AppState) -> Result<Self, ApiError> {
        let model = app.encoder(&mut fields, Purpose::Rerank)?;
        let ignored = encoders::take_harmless(&mut fields)?;
        let unless_busy = unless_busy(&mut fields)?;
        let query = fields.string("query")?.ok_or_else(|| ApiError::Missing { param: "query".to_owned() })?;
        if query.is_empty() {
            return Err(ApiError::invalid("query", "`query` is empty; give a text."));
        }
        let documents_at = fields.path("documents");
        let documents = documents(&mut fields)?;
        let top_n = fields.count("top_n", 1..=u32::MAX)?.unwrap_or(documents.len());
        let return_documents = fields.bool("return_documents")?.unwrap_or(false);
        let special = model.served.text.tokenizer.frame_pair_len().unwrap_or_default();
        let truncate = encoders::truncate(&mut fields, model.limit(), special)?;
        let document_max = fields.count("max_tokens_per_doc", 1..=u32::MAX)?;
        fields.finish()?;
        Ok(Self {
            model,
            query,
            documents_at,
            documents,
            top_n,
            return_documents,
            truncate,
            document_max,
            unless_busy,
            ignored,
        })
    }

    /// The query with each document, as tokens.
    fn pairs(&self) -> Result<Vec<EncoderInput>, ApiError> {
        let tokenizer = &self.model.served.text.tokenizer;
        // A model without a form for pairs is refused when it is loaded.
        let special = tokenizer.frame_pair_len().ok_or(ApiError::Internal)?;
        let query = self.model.plain_tokens(&self.query, "query", false)?;
        let used = query.len() + special;
        if used >= self.truncate.unwrap_or(self.model.limit()) {
            let limit = self.truncate.unwrap_or(self.model.limit());
            let message = format!(
                "`query` leaves no room for a document: it has {} tokens, and with {special} special ones a pair may have {limit}. Shorten it.",
                query.len()
            );
            return Err(ApiError::invalid("query", message));
        }
        let pair = |(index, document): (usize, &String)| {
            let param = format!("{}[{index}]", self.documents_at);
            let cut = self.truncate.is_some() || self.document_max.is_some();
            let mut tokens = self.model.plain_tokens(document, &param, cut)?;
            tokens.truncate(self.document_max.unwrap_or(usize::MAX));
            tokens.truncate(self.truncate.map_or(usize::MAX, |keep| keep - used));
            let (ids, second) = tokenizer.frame_pair(&query, &tokens).ok_or(ApiError::Internal)?;
            if ids.len() > self.model.limit() {
                return Err(self.model.too_long(&param, format!("{} tokens together with the query", ids.len())));
            }
            Ok(EncoderInput { ids, second })
        };
        self.documents.iter().enumerate().map(pair).collect()
    }
}

impl Ranked {
    fn answer(self) -> Reranked {
        let Self { request, order, tokens } = self;
        let mut documents: Vec<Option<String>> = request.documents.into_iter().map(Some).collect();
        let scored = |(index, relevance_score): (usize, f32)| {
            let text = documents.get_mut(index).and_then(Option::take).filter(|_| request.return_documents);
            Scored { index, relevance_score, document: text.map(|text| Document { text }) }
        };
        Reranked {
            id: format!("rerank-{}", uuid::Uuid::new_v4().simple()),
            model: request.model.alias().to_owned(),
            usage: Usage { prompt_tokens: tokens, total_tokens: tokens },
            results: order.into_iter().map(scored).collect(),
        }
    }
}

/// Texts, or objects with a `text`.
fn documents(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let param = fields.path("documents");
    let items = fields.array("documents")?.ok_or_else(|| ApiError::Missing { param: param.clone() })?;
    if items.is_empty() || items.len() > INPUTS_MAX {
        let message = format!("`{param}` must have 1 to {INPUTS_MAX} documents, but {} were given.", items.len());
        return Err(ApiError::InvalidValue { param, message });
    }
    let document = |(index, item)| {
        let path = format!("{param}[{index}]");
        let text = match item {
            Value::String(text) => text,
            Value::Object(_) => {
                let mut inner = Fields::at(path.clone(), item)?;
                let param = inner.path("text");
                let text = inner.string("text")?.ok_or(ApiError::Missing { param })?;
                inner.finish()?;
                text
            }
            other => {
                let expected = "a string or an object with `text`";
                return Err(ApiError::WrongType { param: path, expected, found: type_name(&other) });
            }
        };
        if text.is_empty() {
            let message = format!("`{path}` is empty; give a text.");
            return Err(ApiError::InvalidValue { param: path, message });
        }
        Ok(text)
    };
    items.into_iter().enumerate().map(document).collect()
}
