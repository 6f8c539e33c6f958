//! Responses that outlive their request: what a request names of them, what is kept of its own, and `GET` and `DELETE` of
//! `/v1/responses/{id}`. The server keeps none unless it is told to; [`super::responses_store`] is where they are.
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::AppState;
use super::auth::Tenant;
use super::body::JsonBody;
use super::error::ApiError;
use super::fields::{Fields, quoted};
use super::gate::RequestContext;
use super::responses::INCLUDES;
use super::responses_store::{Item, Kept, Store};
use super::types::new_id;

/// Most items of one page.
pub(crate) const PAGE_MAX: i64 = 100;
pub(crate) const PAGE_DEFAULT: i64 = 20;
pub(crate) const ORDERS: &[&str] = &["asc", "desc"];
/// Longest part of a client's id that is repeated in a message.
const ID_SHOWN_MAX: usize = 64;

/// The store of all tenants.
pub(crate) type Keeper = Arc<Mutex<Store>>;

fn locked(keeper: &Mutex<Store>) -> MutexGuard<'_, Store> {
    keeper.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many responses and bytes each tenant has in the store.
pub(crate) fn held(keeper: &Mutex<Store>) -> Vec<(String, usize, usize)> {
    locked(keeper).held().map(|(tenant, held)| (tenant.to_owned(), held.responses, held.bytes)).collect()
}

fn shown(id: &str) -> String {
    id.chars().take(ID_SHOWN_MAX).collect()
}

/// A tenant's part of the store.
#[derive(Clone)]
struct Place {
    keeper: Keeper,
    tenant: Tenant,
}

/// What a request has from earlier ones, and what later ones may have from it.
#[derive(Default)]
pub(crate) struct Earlier {
    /// `None`: the server keeps nothing.
    place: Option<Place>,
    /// Items that the input names by their id, or may have from an answer.
    known: HashMap<String, Item>,
    /// The conversation so far: for a start, what the previous response had.
    items: Vec<Item>,
    /// Their ids.
    ids: HashSet<Arc<str>>,
    /// The response is to be kept.
    pub(crate) keeps: bool,
}

impl Earlier {
    /// Finds what the request names. What it takes in of that counts as part of its body.
    pub(crate) async fn find(
        app: &AppState,
        context: &RequestContext,
        body: JsonBody,
    ) -> Result<(JsonBody, Self), ApiError> {
        let Some(keeper) = app.keeper() else { return Ok((body, Self::default())) };
        let place = Place { keeper: Arc::clone(keeper), tenant: context.tenant.clone() };
        body.find(app, move |fields| Self::of(place, fields)).await
    }

    fn of(place: Place, fields: &Fields) -> Result<(Self, usize), ApiError> {
        let mut earlier = Self::default();
        let mut bytes = 0;
        if let Some(id) = fields.peek("previous_response_id").and_then(Value::as_str) {
            let Some(kept) = locked(&place.keeper).get(place.tenant.label(), id) else {
                return Err(ApiError::PreviousResponseNotFound {
                    param: fields.path("previous_response_id"),
                    id: shown(id),
                });
            };
            bytes = kept.items.iter().map(|item| item.json.len()).sum();
            earlier.items = kept.items.to_vec();
            earlier.ids = kept.items.iter().map(|item| Arc::clone(&item.id)).collect();
        }
        for item in fields.peek("input").and_then(Value::as_array).into_iter().flatten() {
            let Some(id) = item["id"].as_str() else { continue };
            if !earlier.known.contains_key(id)
                && let Some(found) = locked(&place.keeper).item(place.tenant.label(), id)
            {
                earlier.known.insert(id.to_owned(), found);
            }
            // Each time, as if it stood there.
            if is_reference(item) {
                bytes += earlier.known.get(id).map_or(0, |found| found.json.len());
            }
        }
        earlier.place = Some(place);
        Ok((earlier, bytes))
    }

    /// The server keeps responses.
    pub(crate) fn is_possible(&self) -> bool {
        self.place.is_some()
    }

    /// The previous responses' items, to be read like those of the input.
    pub(crate) fn previous(&self) -> impl Iterator<Item = Fields> {
        self.items.iter().map(fields)
    }

    /// The item that this one names, if it does nothing but that.
    pub(crate) fn referenced(&mut self, path: &str, item: &Value) -> Result<Option<Fields>, ApiError> {
        if !self.is_possible() || !is_reference(item) {
            return Ok(None);
        }
        let mut reference = Fields::at(path.to_owned(), item.clone())?;
        reference.string("type")?;
        let id = reference.string("id")?.ok_or_else(|| ApiError::Missing { param: reference.path("id") })?;
        let param = reference.path("id");
        reference.finish()?;
        let Some(item) = self.known.get(&id) else { return Err(ApiError::ItemNotFound { param, id: shown(&id) }) };
        let item = item.clone();
        let found = fields(&item);
        self.push(item);
        Ok(Some(found))
    }

    /// Takes in an item of the input. An id that the server did not give to just this text is not its id.
    pub(crate) fn add(&mut self, item: Value) {
        let Some((given, item)) = complete(item) else { return };
        let json = item.to_string();
        let is_same = |known: &&Item| known.json.len() == json.len() && Value::from(parsed(known)) == item;
        let known = given.and_then(|id| self.known.get(&id)).filter(is_same);
        let item = known.cloned().unwrap_or_else(|| Item { id: new_id(prefix(&item)).into(), json: json.into() });
        self.push(item);
    }

    /// An item that comes again is another one: whoever reads a list page by page goes on after an id.
    fn push(&mut self, mut item: Item) {
        if self.ids.contains(&item.id) {
            let prefix = item.id.split('_').next().unwrap_or_default();
            item.id = new_id(prefix).into();
        }
        self.ids.insert(Arc::clone(&item.id));
        self.items.push(item);
    }

    /// What the answer needs to be kept.
    pub(crate) fn into_keep(self) -> Option<Keep> {
        let Self { place: Some(place), items, keeps: true, .. } = self else { return None };
        Some(Keep { place, items })
    }
}

/// An item that is but the name of one.
fn is_reference(item: &Value) -> bool {
    match &item["type"] {
        Value::String(kind) => kind == "item_reference",
        Value::Null => item["id"].is_string() && item["role"].is_null() && item["content"].is_null(),
        _ => false,
    }
}

fn parsed(item: &Item) -> Map<String, Value> {
    serde_json::from_str(&item.json).expect("a kept item that is no JSON object is a bug")
}

fn fields(item: &Item) -> Fields {
    Fields::made(parsed(item))
}

/// The item with what may be left out, as answers and lists show it; and without its id, which comes first.
fn complete(item: Value) -> Option<(Option<String>, Value)> {
    let Value::Object(mut item) = item else { return None };
    item.retain(|_, value| !value.is_null());
    let id = match item.shift_remove("id") {
        Some(Value::String(id)) => Some(id),
        _ => None,
    };
    let kind = item.entry("type").or_insert("message".into()).clone();
    if kind == "message" || kind == "function_call" || kind == "function_call_output" {
        item.entry("status").or_insert("completed".into());
    }
    if kind == "message" {
        let is_said = item.get("role").is_some_and(|role| role == "assistant");
        if let Some(content) = item.get_mut("content")
            && content.is_string()
        {
            let text = content.take();
            *content = if is_said {
                json!([{"type": "output_text", "text": text, "annotations": [], "logprobs": []}])
            } else {
                json!([{"type": "input_text", "text": text}])
            };
        }
    }
    Some((id, item.into()))
}

/// What an item's id begins with.
fn prefix(item: &Value) -> &'static str {
    match item["type"].as_str() {
        Some("reasoning") => "rs",
        Some("function_call") => "fc",
        Some("function_call_output") => "fco",
        Some("custom_tool_call") => "ctc",
        Some("custom_tool_call_output") => "ctco",
        _ => "msg",
    }
}

/// Where an answer is kept, and the conversation before it.
pub(crate) struct Keep {
    place: Place,
    items: Vec<Item>,
}

impl Keep {
    /// Keeps an answer that is complete: from now on requests may name it. False where it has no place.
    pub(crate) fn put(self, id: &str, response: &impl Serialize, output: &[impl Serialize]) -> bool {
        let Self { place, mut items } = self;
        let inputs = items.len();
        for item in output {
            let value = serde_json::to_value(item).expect("an item that is no JSON is a bug");
            if let Some((Some(id), value)) = complete(value) {
                items.push(Item { id: id.into(), json: value.to_string().into() });
            }
        }
        let body = serde_json::to_string(response).expect("a response that is no JSON is a bug").into();
        let kept = Kept { body, items: items.into(), inputs };
        let is_kept = locked(&place.keeper).keep(place.tenant.label(), id, kept);
        if !is_kept {
            tracing::info!(response = id, "not kept: larger than what the store has for it (see --responses-memory)");
        }
        is_kept
    }
}

type Ids = Result<Path<HashMap<String, String>>, PathRejection>;
type Pairs = Result<Query<Vec<(String, String)>>, QueryRejection>;

/// The id that the path has.
fn id_of(path: Ids) -> Result<String, ApiError> {
    // Bytes that are no text are no response's id.
    let Ok(Path(mut names)) = path else {
        return Err(ApiError::ResponseNotFound { id: char::REPLACEMENT_CHARACTER.into() });
    };
    Ok(names.remove("id").unwrap_or_default())
}

fn find(app: &AppState, context: &RequestContext, id: &str) -> Result<Kept, ApiError> {
    let Some(keeper) = app.keeper() else { return Err(ApiError::ResponsesNotKept { id: shown(id) }) };
    let found = locked(keeper).get(context.tenant.label(), id);
    found.ok_or_else(|| ApiError::ResponseNotFound { id: shown(id) })
}

/// The query as fields. What `include` may ask for is in every answer, or nowhere.
fn query(pairs: Pairs) -> Result<Fields, ApiError> {
    let Ok(Query(pairs)) = pairs else {
        return Err(ApiError::invalid("query", "The query is not valid; write it as `name=value&name=value`."));
    };
    let mut map = Map::new();
    for (name, text) in pairs {
        if name == "include" || (name.starts_with("include[") && name.ends_with(']')) {
            if !INCLUDES.contains(&text.as_str()) {
                return Err(ApiError::invalid("include", format!("`include` must be one of {}.", quoted(INCLUDES))));
            }
            continue;
        }
        let value = match (name.as_str(), text.as_str()) {
            ("limit", number) => number.parse::<i64>().map_or_else(|_| text.as_str().into(), Value::from),
            ("stream", "true") => true.into(),
            ("stream", "false") => false.into(),
            _ => text.into(),
        };
        if map.insert(name.clone(), value).is_some() {
            let message = "The query has a name more than once; give each only once.";
            return Err(ApiError::invalid(shown(&name), message));
        }
    }
    Ok(Fields::made(map))
}

/// `GET /v1/responses/{id}`.
pub(crate) async fn get(
    State(app): State<AppState>,
    Extension(context): Extension<RequestContext>,
    path: Ids,
    pairs: Pairs,
) -> Result<Response, ApiError> {
    let id = id_of(path)?;
    let mut query = query(pairs)?;
    if query.bool("stream")?.unwrap_or(false) {
        let hint = " as true here: a response that is kept is complete; leave it out";
        return Err(ApiError::Unsupported { param: "stream".to_owned(), hint });
    }
    query.finish()?;
    let kept = find(&app, &context, &id)?;
    Ok(([(header::CONTENT_TYPE, "application/json")], kept.body.to_string()).into_response())
}

/// The answer to `DELETE`.
#[derive(Serialize, JsonSchema)]
pub(crate) struct ResponseDeleted {
    id: String,
    object: &'static str,
    deleted: bool,
}

/// `DELETE /v1/responses/{id}`. Responses that went on from it keep what they have of it.
pub(crate) async fn delete(
    State(app): State<AppState>,
    Extension(context): Extension<RequestContext>,
    path: Ids,
) -> Result<Json<ResponseDeleted>, ApiError> {
    let id = id_of(path)?;
    let Some(keeper) = app.keeper() else { return Err(ApiError::ResponsesNotKept { id: shown(&id) }) };
    if !locked(keeper).delete(context.tenant.label(), &id) {
        return Err(ApiError::ResponseNotFound { id: shown(&id) });
    }
    Ok(Json(ResponseDeleted { id, object: "response", deleted: true }))
}

/// A page of the items that a response was made from.
#[derive(Serialize, JsonSchema)]
pub(crate) struct ResponseItems {
    object: &'static str,
    data: Vec<ListedItem>,
    first_id: Option<String>,
    last_id: Option<String>,
    has_more: bool,
}

/// An item as the request, or an earlier answer, had it.
#[derive(Serialize, JsonSchema)]
struct ListedItem {
    id: String,
    #[serde(flatten)]
    item: Map<String, Value>,
}

/// `GET /v1/responses/{id}/input_items`: the whole conversation before the response, the last item first.
pub(crate) async fn input_items(
    State(app): State<AppState>,
    Extension(context): Extension<RequestContext>,
    path: Ids,
    pairs: Pairs,
) -> Result<Json<ResponseItems>, ApiError> {
    let id = id_of(path)?;
    let mut query = query(pairs)?;
    let limit = query.integer("limit", 1..=PAGE_MAX)?.unwrap_or(PAGE_DEFAULT);
    let is_forward = query.choice("order", ORDERS)? == Some("asc");
    let after = query.string("after")?;
    query.finish()?;
    let kept = find(&app, &context, &id)?;
    let mut items: Vec<&Item> = kept.items[..kept.inputs].iter().collect();
    if !is_forward {
        items.reverse();
    }
    if let Some(after) = after {
        let Some(at) = items.iter().position(|item| *item.id == *after) else {
            let message = "`after` must be the id of an input item of this response: the `last_id` of the page before.";
            return Err(ApiError::invalid("after", message));
        };
        items.drain(..=at);
    }
    let has_more = items.len() > usize::try_from(limit).unwrap_or(usize::MAX);
    items.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    Ok(Json(ResponseItems {
        object: "list",
        first_id: items.first().map(|item| item.id.to_string()),
        last_id: items.last().map(|item| item.id.to_string()),
        has_more,
        data: items.into_iter().map(|item| ListedItem { id: item.id.to_string(), item: parsed(item) }).collect(),
    }))
}
