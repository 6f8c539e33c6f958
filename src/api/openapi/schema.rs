//! The words of which schemas of requests are made: JSON Schema 2020-12, which OpenAPI 3.1 speaks.
use std::ops::RangeInclusive;

use serde_json::{Map, Value, json};

/// A field of an object.
pub(super) struct Field {
    name: String,
    schema: Value,
    required: bool,
}

impl Field {
    /// The same field where it may be left out.
    pub(super) fn or_absent(self) -> Self {
        Self { schema: or_null(self.schema), required: false, ..self }
    }
}

/// A field that must be there.
pub(super) fn required(name: &str, schema: Value, about: &str) -> Field {
    Field { name: name.to_owned(), schema: described(schema, about), required: true }
}

/// A field that may be left out, or be `null`, which is the same.
pub(super) fn optional(name: &str, schema: Value, about: &str) -> Field {
    Field { name: name.to_owned(), schema: described(or_null(schema), about), required: false }
}

fn described(schema: Value, about: &str) -> Value {
    if about.is_empty() { schema } else { with(schema, "description", about) }
}

/// An object of these fields and no others. Of two with the same name the later one counts.
pub(super) fn object(fields: Vec<Field>) -> Value {
    let mut properties = Map::new();
    let mut needed: Vec<String> = Vec::new();
    for Field { name, schema, required } in fields {
        needed.retain(|known| *known != name);
        if required {
            needed.push(name.clone());
        }
        properties.insert(name, schema);
    }
    let mut object = json!({"type": "object", "properties": properties, "additionalProperties": false});
    if !needed.is_empty() {
        object["required"] = needed.into();
    }
    object
}

/// The schema with one word more.
pub(super) fn with(mut schema: Value, word: &str, value: impl Into<Value>) -> Value {
    if let Value::Object(words) = &mut schema {
        words.insert(word.to_owned(), value.into());
    }
    schema
}

/// The schema with what counts if the field is left out.
pub(super) fn default(schema: Value, value: impl Into<Value>) -> Value {
    with(schema, "default", value)
}

/// What the schema allows, or `null`.
pub(super) fn or_null(mut schema: Value) -> Value {
    let Value::Object(words) = &mut schema else { return schema };
    if let Some(kind) = words.get_mut("type") {
        match kind {
            Value::String(word) if word != "null" => *kind = json!([word, "null"]),
            Value::Array(kinds) if !kinds.contains(&json!("null")) => kinds.push("null".into()),
            _ => {}
        }
        if let Some(Value::Array(values)) = words.get_mut("enum") {
            values.push(Value::Null);
        }
        return schema;
    }
    for choice in ["oneOf", "anyOf"] {
        if let Some(Value::Array(schemas)) = words.get_mut(choice) {
            schemas.push(null());
            return schema;
        }
    }
    if words.is_empty() { schema } else { any_of(vec![schema, null()]) }
}

pub(super) fn null() -> Value {
    json!({"type": "null"})
}

/// Any value.
pub(super) fn anything() -> Value {
    json!({})
}

pub(super) fn flag() -> Value {
    json!({"type": "boolean"})
}

pub(super) fn text() -> Value {
    json!({"type": "string"})
}

/// A text of so many characters.
pub(super) fn text_of(length: RangeInclusive<usize>) -> Value {
    json!({"type": "string", "minLength": length.start(), "maxLength": length.end()})
}

/// A text that is not empty.
pub(super) fn some_text() -> Value {
    json!({"type": "string", "minLength": 1})
}

pub(super) fn words(words: &[&str]) -> Value {
    json!({"type": "string", "enum": words})
}

pub(super) fn number(range: RangeInclusive<f64>) -> Value {
    json!({"type": "number", "minimum": range.start(), "maximum": range.end()})
}

/// A whole number; without an upper bound if that is `i64::MAX`.
pub(super) fn integer(range: RangeInclusive<i64>) -> Value {
    let schema = json!({"type": "integer", "minimum": range.start()});
    if *range.end() == i64::MAX { schema } else { with(schema, "maximum", *range.end()) }
}

/// A whole number, as `Fields::count` takes it.
pub(super) fn count(range: RangeInclusive<u32>) -> Value {
    integer(i64::from(*range.start())..=i64::from(*range.end()))
}

/// A token's id.
pub(super) fn token() -> Value {
    integer(0..=i64::MAX)
}

pub(super) fn list(items: Value) -> Value {
    json!({"type": "array", "items": items})
}

/// A list of so many items.
pub(super) fn list_of(items: Value, length: RangeInclusive<usize>) -> Value {
    let schema = json!({"type": "array", "items": items, "minItems": length.start()});
    if *length.end() == usize::MAX { schema } else { with(schema, "maxItems", *length.end()) }
}

/// Any object.
pub(super) fn map() -> Value {
    json!({"type": "object"})
}

/// A value that fits exactly one of these.
pub(super) fn one_of(schemas: Vec<Value>) -> Value {
    json!({ "oneOf": schemas })
}

/// A value that fits at least one of these.
pub(super) fn any_of(schemas: Vec<Value>) -> Value {
    json!({ "anyOf": schemas })
}

/// A schema among the document's components.
pub(super) fn component(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}
