//! JSON schemas before they are compiled: their bounds, what cannot be enforced, and how the JSON is spaced.
use serde_json::{Map, Value, json};

use super::GrammarError;

/// Longest schema, in bytes of JSON.
pub(super) const BYTES_MAX: usize = 256 << 10;
/// Deepest nesting of objects and arrays in a schema.
const DEPTH_MAX: usize = 64;
/// Most values in a schema, of all kinds.
const VALUES_MAX: usize = 20_000;
/// Longest regular expression in a schema, and all of them together, in bytes.
const PATTERN_BYTES_MAX: usize = 4 << 10;
const PATTERNS_BYTES_MAX: usize = 64 << 10;
/// Largest `multipleOf`, without its decimal point: each remainder is a state.
const MULTIPLE_MAX: u64 = 10_000;
/// Longest path in a message.
const PATH_SHOWN_MAX: usize = 200;

/// White space where JSON allows it: enough for deeply indented JSON, and never without end.
const WHITESPACE: &str = r"[\x20\x0A\x0D\x09]{1,24}";

/// Keywords that restrict a value and cannot be enforced token by token, with what to do instead.
const UNSUPPORTED: [(&str, &str); 17] = [
    ("not", ""),
    ("if", "; use `anyOf`"),
    ("then", "; use `anyOf`"),
    ("else", "; use `anyOf`"),
    ("uniqueItems", ""),
    ("contains", ""),
    ("minContains", ""),
    ("maxContains", ""),
    ("propertyNames", "; use `patternProperties`"),
    ("dependencies", "; use `anyOf`"),
    ("dependentRequired", "; use `anyOf`"),
    ("dependentSchemas", "; use `anyOf`"),
    ("unevaluatedItems", "; use `items`"),
    ("unevaluatedProperties", "; use `additionalProperties`"),
    ("$dynamicRef", "; use `$ref`"),
    ("$recursiveRef", "; use `$ref`"),
    ("contentSchema", ""),
];

/// Keywords that count something, and the most they may say: each step of a count may take a state of its own.
const COUNTS: [(&str, u64); 6] = [
    ("minItems", 1000),
    ("maxItems", 10_000),
    ("minProperties", 1000),
    ("maxProperties", 10_000),
    ("minLength", 10_000),
    ("maxLength", 100_000),
];

/// Keywords whose value is a schema or a list of schemas.
const NESTED: [&str; 7] =
    ["items", "additionalItems", "additionalProperties", "prefixItems", "allOf", "anyOf", "oneOf"];
/// Keywords whose value has a schema under each key.
const NAMED: [&str; 4] = ["properties", "patternProperties", "$defs", "definitions"];

/// Reads a schema, refuses what cannot be enforced, and says how the JSON is spaced.
pub(super) fn prepare(text: &str, compact: bool) -> Result<Value, GrammarError> {
    if text.len() > BYTES_MAX {
        return Err(GrammarError::too_large(format!(
            "it has {} bytes, more than the limit of {BYTES_MAX}",
            text.len()
        )));
    }
    let mut schema: Value = serde_json::from_str(text).map_err(|error| {
        if error.to_string().starts_with("recursion limit") {
            too_deep()
        } else {
            GrammarError::invalid(format!("it is not JSON: {error}"))
        }
    })?;
    check_size(&schema)?;
    schema = match schema {
        Value::Bool(true) => json!({}),
        Value::Object(_) => schema,
        _ => return Err(GrammarError::invalid("it must be a JSON object")),
    };
    let mut walk = Walk { path: String::new(), pattern_bytes: 0 };
    walk.schema(&mut schema)?;
    if let Value::Object(map) = &mut schema {
        // Whatever the client wrote there: it could switch checks off.
        let spacing =
            if compact { json!({"whitespace_flexible": false}) } else { json!({"whitespace_pattern": WHITESPACE}) };
        map.insert("x-guidance".to_owned(), spacing);
    }
    Ok(schema)
}

/// Does the same to every `%json {…}` block of a Lark grammar.
/// `bytes_max` bounds what is around them.
pub(super) fn prepare_blocks(lark: &str, bytes_max: usize) -> Result<String, GrammarError> {
    let mut prepared = String::with_capacity(lark.len());
    let mut rest = lark;
    let mut around = lark.len();
    while let Some(at) = rest.find("%json") {
        let (before, after) = rest.split_at(at + "%json".len());
        prepared.push_str(before);
        rest = after;
        let mut values = serde_json::Deserializer::from_str(after).into_iter::<Value>();
        // What is no object is no schema: for instance, the word stands in a comment. Else the parser says so.
        if let Some(Ok(schema @ Value::Object(_))) = values.next() {
            prepared.push(' ');
            prepared.push_str(&prepare(&schema.to_string(), false)?.to_string());
            rest = &after[values.byte_offset()..];
            around -= values.byte_offset();
        }
    }
    if around > bytes_max {
        let reason = format!("it has {around} bytes besides its schemas, more than the limit of {bytes_max}");
        return Err(GrammarError::too_large(reason));
    }
    prepared.push_str(rest);
    Ok(prepared)
}

fn too_deep() -> GrammarError {
    GrammarError::too_large(format!("it is nested more than {DEPTH_MAX} levels deep"))
}

fn check_size(schema: &Value) -> Result<(), GrammarError> {
    let mut values = 0;
    let mut waiting = vec![(schema, 0)];
    while let Some((value, depth)) = waiting.pop() {
        values += 1;
        if values > VALUES_MAX {
            return Err(GrammarError::too_large(format!("it has more than {VALUES_MAX} values")));
        }
        if depth > DEPTH_MAX {
            return Err(too_deep());
        }
        match value {
            Value::Array(items) => waiting.extend(items.iter().map(|item| (item, depth + 1))),
            Value::Object(map) => waiting.extend(map.values().map(|value| (value, depth + 1))),
            _ => {}
        }
    }
    Ok(())
}

/// A walk through a schema and all below it.
struct Walk {
    /// Where it is, as a JSON pointer.
    path: String,
    pattern_bytes: usize,
}

impl Walk {
    /// Checks the keywords of a schema and of all below it. What asks for nothing is removed (`"uniqueItems": false`).
    fn schema(&mut self, schema: &mut Value) -> Result<(), GrammarError> {
        let Value::Object(map) = schema else { return Ok(()) };
        for (keyword, hint) in UNSUPPORTED {
            match map.get(keyword) {
                None => {}
                Some(Value::Bool(false)) if keyword == "uniqueItems" => _ = map.shift_remove(keyword),
                // Without further restrictions these say what is true anyway.
                Some(Value::Bool(true)) if keyword.starts_with("unevaluated") => _ = map.shift_remove(keyword),
                Some(_) => return Err(self.unsupported(keyword, hint)),
            }
        }
        self.numbers(map)?;
        self.patterns(map)?;
        if let Some(Value::String(target)) = map.get("$ref")
            && !target.starts_with('#')
        {
            return Err(self.unsupported("$ref", " to another document; put the schema under `$defs`"));
        }
        let length = self.path.len();
        for (keyword, value) in map.iter_mut() {
            let named = NAMED.contains(&keyword.as_str());
            if !named && !NESTED.contains(&keyword.as_str()) {
                continue;
            }
            enter(&mut self.path, keyword);
            match value {
                Value::Object(below) if named => {
                    for (name, schema) in below {
                        self.below(name, schema)?;
                    }
                }
                Value::Array(below) if !named => {
                    for (index, schema) in below.iter_mut().enumerate() {
                        self.below(&index.to_string(), schema)?;
                    }
                }
                schema if !named => self.schema(schema)?,
                _ => {}
            }
            self.path.truncate(length);
        }
        Ok(())
    }

    fn below(&mut self, step: &str, schema: &mut Value) -> Result<(), GrammarError> {
        let length = self.path.len();
        enter(&mut self.path, step);
        self.schema(schema)?;
        self.path.truncate(length);
        Ok(())
    }

    fn numbers(&mut self, map: &Map<String, Value>) -> Result<(), GrammarError> {
        for (keyword, most) in COUNTS {
            let Some(value) = map.get(keyword) else { continue };
            if value.as_f64().is_some_and(|count| count > most as f64) {
                return Err(self.too_large(keyword, &format!("is {value}, more than the limit of {most}")));
            }
        }
        if let Some(Value::Number(step)) = map.get("multipleOf") {
            let text = step.to_string();
            let digits: String = text.chars().filter(char::is_ascii_digit).collect();
            let fits = digits.parse::<u64>().is_ok_and(|digits| digits <= MULTIPLE_MAX) && !text.contains(['e', 'E']);
            if !fits {
                let what = format!("is {step}: without its decimal point it may be at most {MULTIPLE_MAX}");
                return Err(self.too_large("multipleOf", &what));
            }
        }
        Ok(())
    }

    fn patterns(&mut self, map: &Map<String, Value>) -> Result<(), GrammarError> {
        let pattern = map.get("pattern").and_then(Value::as_str).map(|pattern| ("pattern", pattern));
        let names = map.get("patternProperties").and_then(Value::as_object);
        let names = names.into_iter().flat_map(|names| names.keys().map(|name| ("patternProperties", name.as_str())));
        for (keyword, pattern) in pattern.into_iter().chain(names) {
            self.pattern_bytes += pattern.len();
            if pattern.len() > PATTERN_BYTES_MAX {
                let what = format!("has {} bytes, more than the limit of {PATTERN_BYTES_MAX}", pattern.len());
                return Err(self.too_large(keyword, &what));
            }
            if self.pattern_bytes > PATTERNS_BYTES_MAX {
                return Err(
                    self.too_large(keyword, &format!("and those before it have more than {PATTERNS_BYTES_MAX} bytes"))
                );
            }
        }
        Ok(())
    }

    fn too_large(&mut self, keyword: &str, what: &str) -> GrammarError {
        enter(&mut self.path, keyword);
        GrammarError::too_large(format!("`{keyword}` (at `{}`) {what}", shown(&self.path)))
    }

    fn unsupported(&mut self, keyword: &str, hint: &str) -> GrammarError {
        enter(&mut self.path, keyword);
        let path = shown(&self.path);
        GrammarError::Unsupported { keyword: keyword.to_owned(), path, hint: hint.to_owned() }
    }
}

/// Adds a step to a JSON pointer.
fn enter(path: &mut String, step: &str) {
    path.push('/');
    path.push_str(&step.replace('~', "~0").replace('/', "~1"));
}

fn shown(path: &str) -> String {
    let mut shown: String = path.chars().take(PATH_SHOWN_MAX).collect();
    if shown.len() < path.len() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(schema: &Value) -> GrammarError {
        prepare(&schema.to_string(), false).unwrap_err()
    }

    #[test]
    fn unsupported_keywords_are_named_with_their_place() {
        let error = refused(&json!({"type": "object", "properties": {"a/b": {"items": [{"uniqueItems": true}]}}}));
        assert_eq!(
            error,
            GrammarError::Unsupported {
                keyword: "uniqueItems".into(),
                path: "/properties/a~1b/items/0/uniqueItems".into(),
                hint: String::new()
            }
        );
        let error = refused(&json!({"$defs": {"x": {"anyOf": [{"if": {}}]}}}));
        assert_eq!(error.to_string(), "`if` (at `/$defs/x/anyOf/0/if`) is not supported; use `anyOf`");
        assert!(
            matches!(refused(&json!({"$ref": "other.json#/a"})), GrammarError::Unsupported { keyword, .. } if keyword == "$ref")
        );
    }

    #[test]
    fn names_and_values_are_not_keywords() {
        let fine = json!({
            "properties": {"not": {"const": {"if": 1}}, "uniqueItems": {"enum": [{"contains": 2}]}},
            "uniqueItems": false,
            "unevaluatedProperties": true,
            "default": {"not": 1}
        });
        let prepared = prepare(&fine.to_string(), true).unwrap();
        assert!(prepared.get("uniqueItems").is_none() && prepared.get("unevaluatedProperties").is_none());
        assert_eq!(prepared["properties"], fine["properties"]);
    }

    #[test]
    fn the_client_does_not_set_options() {
        let schema = json!({"x-guidance": {"lenient": true}, "type": "string"});
        assert_eq!(prepare(&schema.to_string(), true).unwrap()["x-guidance"], json!({"whitespace_flexible": false}));
        let lark = format!("start: \"%json\" a // %json x\na: %json {schema} | %json{{\"type\":\"null\"}}\n");
        let prepared = prepare_blocks(&lark, 1000).unwrap();
        assert!(!prepared.contains("lenient"));
        assert_eq!(prepared.matches("whitespace_pattern").count(), 2);
        assert!(prepared.starts_with("start: \"%json\" a // %json x\na: %json {") && prepared.ends_with("}}\n"));
        assert!(prepare_blocks("a: %json {\"minItems\": 1e9}", 1000).is_err());
    }

    #[test]
    fn size_depth_and_counts_are_bounded() {
        let mut deep = json!({});
        for _ in 0..DEPTH_MAX {
            deep = json!({ "items": deep });
        }
        assert!(prepare(&deep.to_string(), false).is_ok());
        assert!(refused(&json!({ "items": deep })).to_string().contains("levels deep"));
        let deepest = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(matches!(prepare(&deepest, false), Err(GrammarError::TooLarge { .. })));
        let many: Vec<usize> = (0..VALUES_MAX).collect();
        assert!(refused(&json!({ "enum": many })).to_string().contains("values"));
        let long = "x".repeat(BYTES_MAX);
        assert!(refused(&json!({ "title": long })).to_string().contains("bytes"));
        let error = refused(&json!({"properties": {"a": {"minItems": 1e12}}}));
        assert!(error.to_string().contains("`minItems` (at `/properties/a/minItems`) is"), "{error}");
        assert!(prepare_blocks(&"x".repeat(1001), 1000).is_err());
        assert!(
            refused(&json!({"pattern": "a?".repeat(2049)})).to_string().contains("`pattern` (at `/pattern`) has 4098")
        );
        let patterns: Vec<Value> = (0..17).map(|_| json!({"pattern": "a".repeat(4000)})).collect();
        assert!(refused(&json!({ "anyOf": patterns })).to_string().contains("and those before it"));
        for (step, fits) in [
            (json!(7), true),
            (json!(0.01), true),
            (json!(12.5), true),
            (json!(982_451_653), false),
            (json!(1e-9), false),
        ] {
            assert_eq!(prepare(&json!({ "multipleOf": step }).to_string(), false).is_ok(), fits, "{step}");
        }
        for bad in [json!(null), json!(3), json!("x"), json!([])] {
            assert!(matches!(refused(&bad), GrammarError::Invalid { .. }));
        }
        assert!(prepare("true", false).is_ok());
    }
}
