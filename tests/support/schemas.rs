//! JSON schemas as clients send them, and an independent validator.
#![allow(dead_code, reason = "each test crate uses its own part")]
use serde_json::{Value, json};

/// A record with all kinds of values; what a form in a program asks for.
pub fn person() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 40},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 10}, "maxItems": 3},
            "note": {"anyOf": [{"type": "string", "maxLength": 30}, {"type": "null"}]}
        },
        "required": ["name", "age", "tags", "note"],
        "additionalProperties": false
    })
}

/// Schemas by name. Those with free strings bound them, so that answers end.
pub fn all() -> Vec<(&'static str, Value)> {
    vec![
        ("person", person()),
        ("choice", json!({"type": "string", "enum": ["red", "green", "a \"quoted\" one", "日本"]})),
        ("constants", json!({"enum": [1, "1", null, true, {"a": [1, 2]}, -2.5]})),
        (
            "references",
            json!({
                "$defs": {"node": {
                    "type": "object",
                    "properties": {
                        "value": {"type": "integer", "minimum": 0, "maximum": 99},
                        "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}
                    },
                    "required": ["value", "next"],
                    "additionalProperties": false
                }},
                "$ref": "#/$defs/node"
            }),
        ),
        (
            "findings",
            json!({
                "type": "object",
                "properties": {"findings": {"type": "array", "minItems": 1, "maxItems": 2, "items": {
                    "type": "object",
                    "properties": {
                        "file": {"type": "string", "pattern": "^[a-z]{1,8}\\.rs$"},
                        "line": {"type": "integer", "exclusiveMinimum": 0, "maximum": 9999},
                        "severity": {"enum": ["low", "high"]},
                        "text": {"type": "string", "minLength": 1, "maxLength": 60}
                    },
                    "required": ["file", "line", "severity"],
                    "additionalProperties": false
                }}},
                "required": ["findings"],
                "additionalProperties": false
            }),
        ),
        (
            "union",
            json!({"oneOf": [
                {
                    "type": "object",
                    "properties": {"kind": {"const": "move"}, "x": {"type": "number", "minimum": -5, "maximum": 5}},
                    "required": ["kind", "x"], "additionalProperties": false
                },
                {
                    "type": "object",
                    "properties": {"kind": {"const": "say"}, "text": {"type": "string", "maxLength": 20}},
                    "required": ["kind", "text"], "additionalProperties": false
                }
            ]}),
        ),
        (
            "formats",
            json!({
                "type": "object",
                "properties": {
                    "day": {"type": "string", "format": "date"},
                    "id": {"type": "string", "format": "uuid"},
                    "even": {"type": "integer", "multipleOf": 2, "minimum": 0, "maximum": 1000}
                },
                "required": ["day", "id", "even"],
                "additionalProperties": false
            }),
        ),
        ("map", json!({"type": "object", "additionalProperties": {"type": "boolean"}, "maxProperties": 3})),
        (
            "tuple",
            json!({"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "null"}], "items": false, "minItems": 2}),
        ),
        (
            "merged",
            json!({"allOf": [
                {"type": "object", "properties": {"a": {"type": "integer", "maximum": 10}}, "required": ["a"]},
                {"properties": {"a": {"minimum": 5}, "b": {"type": ["null", "boolean"]}}, "required": ["b"], "additionalProperties": false}
            ]}),
        ),
    ]
}

pub fn assert_valid(schema: &Value, text: &str, what: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{what}: {error}: {text:?}"));
    let validator = jsonschema::options().should_validate_formats(true).build(schema).unwrap();
    if let Err(error) = validator.validate(&value) {
        panic!("{what}: {error}: {text}");
    }
}
