//! The dialect of Cloudflare's Workers AI: `POST /client/v4/accounts/{account}/ai/run/{model}`, whose path names the model and whose
//! answers stand in an envelope, and OpenAI's endpoints below `…/ai/v1`. Translates, and nothing else.
//!
//! Any account is taken and means nothing: the key says who asks. Text has [`request`] (fields → a chat) and [`answer`] (events → a
//! result or a stream); [`encoders`] has embeddings and reranking, [`errors`] the envelope of what went wrong.
mod answer;
mod encoders;
mod errors;
mod messages;
mod request;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, State};
use axum::response::Response;
use axum::routing::{MethodRouter, get, post};
use axum::{Extension, Json};
use schemars::JsonSchema;
use serde::Serialize;

use super::body::JsonBody;
use super::encoders::Purpose;
use super::error::ApiError;
use super::fields::Fields;
use super::gate::RequestContext;
use super::{AppState, chat, completions, embeddings, models, responses, responses_kept};

pub(crate) use answer::{Piece, TextResult};
pub(crate) use encoders::{NO_EMBEDDING, NO_RERANKING, Ranking, Vectors};
pub(crate) use errors::{reshape, status, told};
pub(crate) use request::{MAX_TOKENS_DEFAULT, TEMPERATURE_DEFAULT, TEMPERATURE_MAX, TOP_P_MAX, UNSUPPORTED};

/// Where a client asks for an asynchronous batch.
const NO_BATCHES: &str =
    ": there are no asynchronous batches; send every request by itself, all at the same time: they share batches";

/// The routes of every account.
pub(crate) fn routes() -> Vec<(&'static str, MethodRouter<AppState>)> {
    vec![
        ("/client/v4/accounts/{account}/ai/run/{*model}", post(run)),
        ("/client/v4/accounts/{account}/ai/v1/chat/completions", post(chat::create)),
        ("/client/v4/accounts/{account}/ai/v1/completions", post(completions::create)),
        ("/client/v4/accounts/{account}/ai/v1/embeddings", post(embeddings::create)),
        ("/client/v4/accounts/{account}/ai/v1/responses", post(responses::create)),
        ("/client/v4/accounts/{account}/ai/v1/responses/{id}", get(responses_kept::get).delete(responses_kept::delete)),
        ("/client/v4/accounts/{account}/ai/v1/responses/{id}/input_items", get(responses_kept::input_items)),
        ("/client/v4/accounts/{account}/ai/v1/models", get(models::list)),
    ]
}

/// Whose words errors are told in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wording {
    /// The envelope.
    Native,
    /// The envelope, with OpenAI's `error` in it: below `/ai/v1` both kinds of client are at home.
    Both,
}

/// How errors on this path are to be told, if it belongs to this dialect.
pub(crate) fn speaks(path: &str) -> Option<Wording> {
    let rest = path.strip_prefix("/client/v4/")?;
    let mut below_account = rest.split('/').skip(2);
    let is_v1 = below_account.next() == Some("ai") && below_account.next() == Some("v1");
    Some(if is_v1 { Wording::Both } else { Wording::Native })
}

/// The envelope of a result.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "EnvelopeOf{T}")]
pub(crate) struct Envelope<T> {
    result: T,
    success: bool,
    errors: [(); 0],
    messages: [(); 0],
}

impl<T> Envelope<T> {
    fn of(result: T) -> Self {
        Self { result, success: true, errors: [], messages: [] }
    }
}

fn enveloped<T>(result: T) -> Json<Envelope<T>> {
    Json(Envelope::of(result))
}

/// `POST …/ai/run/{model}`: what the body means depends on the model.
async fn run(
    State(app): State<AppState>,
    Extension(context): Extension<RequestContext>,
    path: Result<Path<(String, String)>, PathRejection>,
    RawQuery(query): RawQuery,
    body: JsonBody,
) -> Result<Response, ApiError> {
    // Bytes that are no text cannot be a model's name.
    let Path((_, name)) = path.map_err(|_| ApiError::ModelNotFound { model: char::REPLACEMENT_CHARACTER.into() })?;
    if query.is_some_and(|query| query.split('&').any(|pair| pair == "queueRequest=true")) {
        return Err(ApiError::Unsupported { param: "queueRequest".to_owned(), hint: NO_BATCHES });
    }
    match app.every_encoder().find(|encoder| encoder.alias() == name).map(|encoder| encoder.purpose()) {
        Some(Purpose::Embed) => encoders::embed(&app, &context, name, body).await,
        Some(Purpose::Rerank) => encoders::rerank(&app, &context, name, body).await,
        None => {
            let model = app.find(&name)?;
            answer::text(&app, &context, model, body).await
        }
    }
}

/// A body may name the model, too, but no other than the path does.
fn take_model(fields: &mut Fields, name: &str) -> Result<(), ApiError> {
    match fields.string("model")? {
        Some(given) if given != name => {
            Err(ApiError::invalid("model", "`model` is another one than that of the path; leave it out of the body."))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_say_how_errors_are_told() {
        for (path, wording) in [
            ("/client/v4/accounts/abc/ai/run/@cf/meta/x", Some(Wording::Native)),
            ("/client/v4/accounts/abc/ai/v1/chat/completions", Some(Wording::Both)),
            ("/client/v4/accounts/abc/ai/run/a/ai/v1/b", Some(Wording::Native)),
            ("/client/v4/accounts/ai/v1/ai/run/b", Some(Wording::Native)),
            ("/client/v4/", Some(Wording::Native)),
            ("/client/v4", None),
            ("/v1/chat/completions", None),
        ] {
            assert_eq!(speaks(path), wording, "{path}");
        }
    }
}
