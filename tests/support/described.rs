//! Answers against what `/openapi.json` says of them.
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use jsonschema::Validator;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::Server;

static DOCUMENT: OnceCell<Value> = OnceCell::const_new();

/// Validators by the schemas that they are made of: a stream has many events.
static VALIDATORS: LazyLock<Mutex<HashMap<String, Arc<Validator>>>> = LazyLock::new(Mutex::default);

impl Server {
    /// What the server says about itself: the same for all servers of a test crate, but for their keys and limits.
    pub async fn description(&self) -> &'static Value {
        let fetch = async || self.get("/openapi.json").send().await.unwrap().json().await.unwrap();
        DOCUMENT.get_or_init(fetch).await
    }

    /// Panics unless the answer is one that the document has for this operation.
    pub async fn assert_described(&self, method: &str, path: &str, status: u16, body: &Value) {
        let document = self.description().await;
        let path = described(document, path);
        let schema = match &document["paths"][path][method]["responses"][status.to_string()] {
            // No operation's answer: errors of paths and methods have a shape, too.
            Value::Null if document["paths"][path][method].is_null() => {
                let shapes = ["Error", "MessageError", "WorkersAiError"];
                json!({ "anyOf": shapes.map(|name| json!({"$ref": format!("#/components/schemas/{name}")})) })
            }
            answer => answer["content"]["application/json"]["schema"].clone(),
        };
        assert!(schema.is_object(), "{method} {path}: {status} is not described: {body}");
        assert_fits(document, &schema, body, &format!("{method} {path}: {status}"));
    }

    /// The same for the events of a stream.
    pub async fn assert_events_described(&self, path: &str, stream: &str) {
        let document = self.description().await;
        let path = described(document, path);
        let answer = &document["paths"][path]["post"]["responses"]["200"]["content"];
        let data = &answer["text/event-stream"]["schema"]["properties"]["data"];
        let of_json =
            data["anyOf"].as_array().and_then(|options| options.iter().find(|o| o["contentSchema"].is_object()));
        let schema = &of_json.unwrap_or(data)["contentSchema"];
        assert!(schema.is_object(), "{path}: its stream is not described");
        for line in stream.lines().filter_map(|line| line.strip_prefix("data: ")) {
            match serde_json::from_str(line) {
                Ok(body) => assert_fits(document, schema, &body, path),
                Err(_) => assert_eq!(line, data["anyOf"][0]["enum"][0], "{path}: an event's data"),
            }
        }
    }
}

/// The document's path for a client's; the client's own where there is none.
fn described<'p>(document: &'p Value, path: &'p str) -> &'p str {
    let path = path.split('?').next().unwrap_or_default();
    let paths = document["paths"].as_object().unwrap();
    let of = paths.keys().map(String::as_str).filter(|known| is_of(known, path));
    // The last part of a template stands for several only where no other template has them.
    if paths.contains_key(path) { path } else { of.max_by_key(|known| known.split('/').count()).unwrap_or(path) }
}

/// Whether a path is of this template, whose last part may stand for several.
fn is_of(template: &str, path: &str) -> bool {
    let (mut parts, mut given) = (template.split('/').peekable(), path.split('/'));
    loop {
        match (parts.next(), given.next()) {
            (None, None) => return true,
            (Some(part), Some(_)) if part.starts_with('{') && parts.peek().is_none() => return true,
            (Some(part), Some(word)) if part.starts_with('{') || part == word => {}
            _ => return false,
        }
    }
}

fn assert_fits(document: &Value, schema: &Value, body: &Value, what: &str) {
    let validator = {
        let mut known = VALIDATORS.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || {
            let mut whole = schema.clone();
            whole["components"] = document["components"].clone();
            Arc::new(jsonschema::options().build(&whole).unwrap())
        };
        Arc::clone(known.entry(schema.to_string()).or_insert_with(make))
    };
    if let Err(error) = validator.validate(body) {
        panic!("{what} is not as described: {error} (at {}): {body}", error.instance_path());
    }
}
