//! The fields that constrain an answer's form: OpenAI's `response_format`, vLLM's `structured_outputs` and its older
//! `guided_*` fields. At most one of them may ask for something.
use serde_json::Value;

use super::error::ApiError;
use super::fields::{Fields, type_name};
use crate::grammar::GrammarSource;

/// Most entries of a list of choices.
pub(crate) const CHOICES_MAX: usize = 1024;
/// Longest name of a schema.
pub(crate) const NAME_MAX: usize = 64;

/// What an answer is constrained to, and the field that says so.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Asked {
    pub(crate) source: GrammarSource,
    pub(crate) param: String,
}

/// Takes the fields out of the body.
pub(crate) fn take(fields: &mut Fields) -> Result<Option<Asked>, ApiError> {
    let mut asked = Vec::new();
    asked.extend(response_format(fields)?);
    asked.extend(structured_outputs(fields)?);
    asked.extend(constraints(fields, "guided_")?);
    if let [first, second, ..] = asked.as_slice() {
        let message =
            format!("`{}` and `{}` both constrain the answer; give only one of them.", first.param, second.param);
        return Err(ApiError::invalid(second.param.clone(), message));
    }
    Ok(asked.pop())
}

fn response_format(fields: &mut Fields) -> Result<Option<Asked>, ApiError> {
    const TYPES: &[&str] = &["text", "json_object", "json_schema", "structural_tag"];
    let param = fields.path("response_format");
    let Some(format) = fields.take("response_format") else { return Ok(None) };
    let mut format = Fields::at(param.clone(), format)?;
    let kind = format.choice("type", TYPES)?.ok_or_else(|| ApiError::Missing { param: format.path("type") })?;
    let source = match kind {
        "json_object" => Some(GrammarSource::json_object()),
        "json_schema" => Some(json_schema(&mut format)?),
        "structural_tag" => return Err(structural_tag(&format.path("type"))),
        _ => None,
    };
    format.finish()?;
    Ok(source.map(|source| Asked { source, param }))
}

/// `{name, description, schema, strict}`. A schema is enforced whether `strict` or not.
fn json_schema(format: &mut Fields) -> Result<GrammarSource, ApiError> {
    let path = format.path("json_schema");
    let mut inner = Fields::at(path, format.require("json_schema")?)?;
    let name = inner.string("name")?.ok_or_else(|| ApiError::Missing { param: inner.path("name") })?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(is_name) {
        let param = inner.path("name");
        let message = format!("`{param}` must have 1 to {NAME_MAX} characters: letters, digits, `_` and `-`.");
        return Err(ApiError::InvalidValue { param, message });
    }
    inner.string("description")?;
    inner.bool("strict")?;
    let schema = inner.object("schema")?;
    inner.finish()?;
    Ok(schema.map_or_else(GrammarSource::json_object, |schema| GrammarSource::JsonSchema {
        schema: Value::Object(schema).to_string(),
        compact: false,
    }))
}

fn structural_tag(param: &str) -> ApiError {
    ApiError::Unsupported { param: param.to_owned(), hint: ": structural tags; use a schema or a grammar" }
}

fn structured_outputs(fields: &mut Fields) -> Result<Option<Asked>, ApiError> {
    let path = fields.path("structured_outputs");
    let Some(outputs) = fields.take("structured_outputs") else { return Ok(None) };
    let mut outputs = Fields::at(path, outputs)?;
    if outputs.take("structural_tag").is_some() {
        return Err(structural_tag(&outputs.path("structural_tag")));
    }
    let mut asked = constraints(&mut outputs, "")?;
    if outputs.bool("json_object")?.unwrap_or(false) {
        if let Some(other) = &asked {
            let param = outputs.path("json_object");
            let message = format!("`{}` and `{param}` both constrain the answer; give only one of them.", other.param);
            return Err(ApiError::InvalidValue { param, message });
        }
        asked = Some(Asked { source: GrammarSource::json_object(), param: outputs.path("json_object") });
    }
    // There is one backend, so nothing to fall back to.
    outputs.bool("disable_fallback")?;
    if outputs.bool("disable_any_whitespace")?.unwrap_or(false)
        && let Some(Asked { source: GrammarSource::JsonSchema { compact, .. }, .. }) = &mut asked
    {
        *compact = true;
    }
    if outputs.bool("disable_additional_properties")?.unwrap_or(false) {
        let param = outputs.path("disable_additional_properties");
        return Err(ApiError::Unsupported { param, hint: "; write `\"additionalProperties\": false` into the schema" });
    }
    if outputs.take("whitespace_pattern").is_some() {
        let param = outputs.path("whitespace_pattern");
        return Err(ApiError::Unsupported { param, hint: ": white space is bounded by the server" });
    }
    outputs.finish()?;
    Ok(asked)
}

/// `json`, `regex`, `choice` and `grammar`, each after a prefix; at most one of them.
fn constraints(fields: &mut Fields, prefix: &str) -> Result<Option<Asked>, ApiError> {
    let mut asked: Option<Asked> = None;
    let mut found = |param: String, source: GrammarSource| match &asked {
        Some(other) => {
            let message = format!("`{}` and `{param}` both constrain the answer; give only one of them.", other.param);
            Err(ApiError::InvalidValue { param, message })
        }
        None => {
            asked = Some(Asked { source, param });
            Ok(())
        }
    };
    let name = |kind: &str| format!("{prefix}{kind}");
    let json = name("json");
    if let Some(schema) = fields.take(&json) {
        let param = fields.path(&json);
        // vLLM takes a schema or its text.
        let schema = match schema {
            Value::String(text) => text,
            Value::Object(_) => schema.to_string(),
            other => {
                return Err(ApiError::WrongType { param, expected: "an object or a string", found: type_name(&other) });
            }
        };
        found(param, GrammarSource::JsonSchema { schema, compact: false })?;
    }
    let regex = name("regex");
    if let Some(text) = fields.string(&regex)? {
        found(fields.path(&regex), GrammarSource::Regex(text))?;
    }
    let choice = name("choice");
    if let Some(items) = fields.array(&choice)? {
        let param = fields.path(&choice);
        let choices = choices(&param, items)?;
        found(param, GrammarSource::Choice(choices))?;
    }
    let grammar = name("grammar");
    if let Some(text) = fields.string(&grammar)? {
        found(fields.path(&grammar), GrammarSource::of_grammar(text))?;
    }
    Ok(asked)
}

fn choices(param: &str, items: Vec<Value>) -> Result<Vec<String>, ApiError> {
    if items.is_empty() || items.len() > CHOICES_MAX {
        let message = format!("`{param}` must have 1 to {CHOICES_MAX} strings, but {} were given.", items.len());
        return Err(ApiError::invalid(param, message));
    }
    let text = |item| match item {
        Value::String(text) if text.is_empty() => {
            Err(ApiError::invalid(param, format!("`{param}` must not have an empty string.")))
        }
        Value::String(text) => Ok(text),
        other => {
            let found = type_name(&other);
            Err(ApiError::WrongType { param: param.to_owned(), expected: "an array of strings", found })
        }
    };
    items.into_iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn asked(body: Value) -> Result<Option<Asked>, ApiError> {
        let mut fields = Fields::at(String::new(), body).unwrap();
        let asked = take(&mut fields)?;
        fields.finish()?;
        Ok(asked)
    }

    fn schema(text: &str) -> GrammarSource {
        GrammarSource::JsonSchema { schema: text.to_owned(), compact: false }
    }

    #[test]
    fn every_way_to_ask() {
        let format = json!({"type": "json_schema", "json_schema": {"name": "a", "description": "b", "strict": false,
            "schema": {"type": "string"}}});
        let cases = [
            (json!({"response_format": {"type": "json_object"}}), GrammarSource::json_object()),
            (json!({ "response_format": format }), schema(r#"{"type":"string"}"#)),
            (json!({"structured_outputs": {"json": {"type": "null"}}}), schema(r#"{"type":"null"}"#)),
            (json!({"structured_outputs": {"json_object": true}}), GrammarSource::json_object()),
            (json!({"structured_outputs": {"regex": "a+"}}), GrammarSource::Regex("a+".into())),
            (json!({"guided_json": r#"{"type":"null"}"#}), schema(r#"{"type":"null"}"#)),
            (json!({"guided_regex": "a"}), GrammarSource::Regex("a".into())),
            (json!({"guided_choice": ["a", "b"]}), GrammarSource::Choice(vec!["a".into(), "b".into()])),
            (json!({"guided_grammar": "start: \"a\""}), GrammarSource::Lark("start: \"a\"".into())),
            (json!({"guided_grammar": "root ::= \"a\""}), GrammarSource::Gbnf("root ::= \"a\"".into())),
        ];
        for (body, source) in cases {
            assert_eq!(asked(body.clone()).unwrap().unwrap().source, source, "{body}");
        }
        let compact = asked(json!({"structured_outputs": {"json": {}, "disable_any_whitespace": true}})).unwrap();
        assert_eq!(compact.unwrap().source, GrammarSource::JsonSchema { schema: "{}".into(), compact: true });
    }

    #[test]
    fn nothing_is_asked() {
        for body in [
            json!({}),
            json!({"response_format": null, "guided_json": null}),
            json!({"response_format": {"type": "text"}, "structured_outputs": {}}),
            json!({"structured_outputs": {"json_object": false, "disable_fallback": true}}),
        ] {
            assert_eq!(asked(body), Ok(None));
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            (json!({"response_format": "json_object"}), "`response_format` must be an object, but it is a string."),
            (json!({"response_format": {}}), "Missing required parameter: `response_format.type`."),
            (
                json!({"response_format": {"type": "json_schema"}}),
                "Missing required parameter: `response_format.json_schema`.",
            ),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}),
                "Missing required parameter: `response_format.json_schema.name`.",
            ),
            (
                json!({"response_format": {"type": "text", "schema": {}}}),
                "Unknown parameter: `response_format.schema`. Check its spelling: this server ignores nothing silently.",
            ),
            (
                json!({"response_format": {"type": "json_object"}, "guided_regex": "a"}),
                "`response_format` and `guided_regex` both constrain the answer; give only one of them.",
            ),
            (
                json!({"structured_outputs": {"regex": "a", "choice": ["b"]}}),
                "`structured_outputs.regex` and `structured_outputs.choice` both constrain the answer; give only one of them.",
            ),
            (
                json!({"structured_outputs": {"regex": "a", "json_object": true}}),
                "`structured_outputs.regex` and `structured_outputs.json_object` both constrain the answer; give only one of them.",
            ),
            (json!({"guided_choice": []}), "`guided_choice` must have 1 to 1024 strings, but 0 were given."),
            (json!({"guided_choice": ["a", ""]}), "`guided_choice` must not have an empty string."),
            (json!({"guided_json": 1}), "`guided_json` must be an object or a string, but it is a number."),
            (
                json!({"structured_outputs": {"structural_tag": "x"}}),
                "`structured_outputs.structural_tag` is not supported by this server: structural tags; use a schema or a grammar.",
            ),
        ];
        for (body, message) in cases {
            assert_eq!(asked(body).unwrap_err().to_string(), message);
        }
    }
}
