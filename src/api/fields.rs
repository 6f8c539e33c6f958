//! Takes a JSON object apart field by field: every error names the field's path, `null` means absent, and what nobody
//! took is an error.
use std::ops::RangeInclusive;

use serde_json::{Map, Number, Value};

use super::error::ApiError;

/// Longest part of a client's own field name that is repeated in a message.
const NAME_SHOWN_MAX: usize = 64;

/// What a parser wants of a field.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind {
    Any,
    Text,
    Flag,
    Array,
    Object,
    Integer(RangeInclusive<i64>),
    Number(RangeInclusive<f64>),
    OneOf(Vec<&'static str>),
}

/// The fields that parsers asked for on this thread, in tests: the API's description is compared with them.
#[cfg(test)]
pub(crate) mod known {
    use std::cell::RefCell;

    use super::Kind;

    thread_local! {
        static KNOWN: RefCell<Vec<(String, Kind)>> = const { RefCell::new(Vec::new()) };
    }

    pub(super) fn note(path: String, kind: Kind) {
        KNOWN.with_borrow_mut(|known| known.push((path, kind)));
    }

    /// What was asked for since the last call: paths such as `messages[2].content`.
    pub(crate) fn take() -> Vec<(String, Kind)> {
        KNOWN.take()
    }
}

/// A JSON object and where it stands in the request (`""` for the body itself).
#[derive(Debug)]
pub(crate) struct Fields {
    path: String,
    map: Map<String, Value>,
    /// Fields that the client wrote elsewhere: (name, path).
    moved: Vec<(&'static str, String)>,
    /// The server made this object: its fields' names are not a client's.
    #[cfg_attr(not(test), expect(dead_code, reason = "read by what notes the fields that parsers know"))]
    made: bool,
    /// Fields that are gone: whoever asks for one of them again asks for what the server may have put there.
    #[cfg(test)]
    gone: Vec<String>,
}

/// A value's JSON type, for messages.
pub(crate) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn wrong(param: String, expected: &'static str, value: &Value) -> ApiError {
    ApiError::WrongType { param, expected, found: type_name(value) }
}

/// The number as an integer; `16.0` is one, as JSON has no other way to tell them apart.
fn whole(number: &Number) -> Option<i128> {
    if let Some(value) = number.as_i64() {
        return Some(value.into());
    }
    if let Some(value) = number.as_u64() {
        return Some(value.into());
    }
    let float = number.as_f64()?;
    // Beyond 2^53 a float no longer says which integer was meant.
    #[expect(clippy::cast_possible_truncation, reason = "checked to be a small whole number")]
    (float.fract() == 0.0 && float.abs() <= 9_007_199_254_740_992.0).then_some(float as i128)
}

impl Fields {
    /// The request's body.
    pub(crate) fn body(map: Map<String, Value>) -> Self {
        Self {
            path: String::new(),
            map,
            moved: Vec::new(),
            made: false,
            #[cfg(test)]
            gone: Vec::new(),
        }
    }

    /// Fields under the names of another dialect, made of a client's.
    pub(crate) fn made(map: Map<String, Value>) -> Self {
        Self { made: true, ..Self::body(map) }
    }

    /// An object inside the body, at `path`.
    pub(crate) fn at(path: String, value: Value) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Self { path, ..Self::body(map) }),
            other => Err(wrong(path, "an object", &other)),
        }
    }

    /// The path of one of this object's fields.
    pub(crate) fn path(&self, name: &str) -> String {
        if let Some((_, path)) = self.moved.iter().find(|(moved, _)| *moved == name) {
            return path.clone();
        }
        let mut shown: String = name.chars().take(NAME_SHOWN_MAX).collect();
        if shown.len() < name.len() {
            shown.push('…');
        }
        if self.path.is_empty() { shown } else { format!("{}.{shown}", self.path) }
    }

    /// Puts a value where another dialect has it. Errors go on naming the `path` at which the client wrote it.
    pub(crate) fn put(&mut self, name: &'static str, value: Value, path: String) {
        #[cfg(test)]
        self.gone.push(name.to_owned());
        self.map.insert(name.to_owned(), value);
        self.moved.push((name, path));
    }

    /// Refuses each of these fields that is given; with the name goes what the message says after it.
    pub(crate) fn refuse<'l>(
        &mut self,
        unsupported: impl IntoIterator<Item = &'l (&'l str, &'static str)>,
    ) -> Result<(), ApiError> {
        for (name, hint) in unsupported {
            if self.take(name).is_some() {
                return Err(ApiError::Unsupported { param: self.path(name), hint });
            }
        }
        Ok(())
    }

    /// Takes a field; absent and `null` are the same.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.note(name, || Kind::Any);
        #[cfg(test)]
        self.gone.push(name.to_owned());
        self.map.remove(name).filter(|value| !value.is_null())
    }

    /// Tells the test that listens, if there is one, that a parser knows this field.
    #[cfg_attr(not(test), expect(unused_variables, reason = "only tests listen"))]
    fn note(&self, name: &str, kind: impl FnOnce() -> Kind) {
        #[cfg(test)]
        if !self.made && !self.gone.iter().any(|gone| gone == name) {
            known::note(self.path(name), kind());
        }
    }

    /// Looks at a field without taking it.
    pub(crate) fn peek(&self, name: &str) -> Option<&Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// Takes a field that must be there.
    pub(crate) fn require(&mut self, name: &str) -> Result<Value, ApiError> {
        self.take(name).ok_or_else(|| ApiError::Missing { param: self.path(name) })
    }

    pub(crate) fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        self.note(name, || Kind::Text);
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(self.path(name), "a string", &other)),
        }
    }

    pub(crate) fn bool(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        self.note(name, || Kind::Flag);
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(wrong(self.path(name), "a boolean", &other)),
        }
    }

    pub(crate) fn array(&mut self, name: &str) -> Result<Option<Vec<Value>>, ApiError> {
        self.note(name, || Kind::Array);
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(other) => Err(wrong(self.path(name), "an array", &other)),
        }
    }

    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Map<String, Value>>, ApiError> {
        self.note(name, || Kind::Object);
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(other) => Err(wrong(self.path(name), "an object", &other)),
        }
    }

    /// A whole number within `range`.
    pub(crate) fn integer(&mut self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, ApiError> {
        self.note(name, || Kind::Integer(range.clone()));
        self.take(name).map(|value| integer_at(|| self.path(name), &value, range)).transpose()
    }

    /// A whole number within `range`, for counts.
    pub(crate) fn count(&mut self, name: &str, range: RangeInclusive<u32>) -> Result<Option<usize>, ApiError> {
        let range = i64::from(*range.start())..=i64::from(*range.end());
        let value = self.integer(name, range)?;
        Ok(value.map(|count| usize::try_from(count).expect("a count outside u32 is a bug")))
    }

    /// A finite number within `range`.
    pub(crate) fn number(&mut self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, ApiError> {
        self.note(name, || Kind::Number(range.clone()));
        let Some(value) = self.take(name) else { return Ok(None) };
        let param = self.path(name);
        let Value::Number(number) = &value else { return Err(wrong(param, "a number", &value)) };
        match number.as_f64() {
            Some(float) if range.contains(&float) => Ok(Some(float)),
            _ => {
                let message =
                    format!("`{param}` must be between {} and {}, but {number} was given.", range.start(), range.end());
                Err(ApiError::InvalidValue { param, message })
            }
        }
    }

    /// One of a few words.
    pub(crate) fn choice(&mut self, name: &str, allowed: &[&'static str]) -> Result<Option<&'static str>, ApiError> {
        self.note(name, || Kind::OneOf(allowed.to_vec()));
        let Some(text) = self.string(name)? else { return Ok(None) };
        match allowed.iter().find(|word| **word == text) {
            Some(word) => Ok(Some(word)),
            None => {
                let param = self.path(name);
                let message = format!("`{param}` must be one of {}.", quoted(allowed));
                Err(ApiError::InvalidValue { param, message })
            }
        }
    }

    /// Ends the object: a field that is left is one that nobody knows (unless it is `null`, which means absent).
    pub(crate) fn finish(self) -> Result<(), ApiError> {
        match self.map.iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((name, _)) => Err(ApiError::UnknownParameter { param: self.path(name) }),
        }
    }
}

/// A whole number within `range`, found at `path` (which is only spelt out in an error: prompts have many ids).
pub(crate) fn integer_at(
    path: impl FnOnce() -> String,
    value: &Value,
    range: RangeInclusive<i64>,
) -> Result<i64, ApiError> {
    let Value::Number(number) = value else { return Err(wrong(path(), "an integer", value)) };
    let Some(found) = whole(number) else {
        let param = path();
        let message = format!("`{param}` must be an integer, but {number} was given.");
        return Err(ApiError::InvalidValue { param, message });
    };
    match i64::try_from(found) {
        Ok(found) if range.contains(&found) => Ok(found),
        _ => {
            let param = path();
            let message = format!("`{param}` must be {}, but {number} was given.", bounds(&range));
            Err(ApiError::InvalidValue { param, message })
        }
    }
}

fn bounds(range: &RangeInclusive<i64>) -> String {
    match (*range.start(), *range.end()) {
        (low, i64::MAX) => format!("at least {low}"),
        (low, high) => format!("between {low} and {high}"),
    }
}

/// Words as a list in backticks.
pub(crate) fn quoted(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(value: Value) -> Fields {
        Fields::at(String::new(), value).unwrap()
    }

    #[test]
    fn null_is_absent() {
        assert_eq!(fields(json!({"a": null})).bool("a"), Ok(None));
        assert_eq!(fields(json!({})).require("a"), Err(ApiError::Missing { param: "a".into() }));
    }

    #[test]
    fn whole_floats_are_integers_and_others_are_not() {
        assert_eq!(fields(json!({"n": 16.0})).integer("n", 0..=20), Ok(Some(16)));
        for bad in [json!(1.5), json!(-1), json!(21), json!(u64::MAX), json!(1e300)] {
            let error = fields(json!({ "n": bad })).integer("n", 0..=20).unwrap_err();
            assert!(matches!(error, ApiError::InvalidValue { ref param, .. } if param == "n"), "{error}");
        }
        let error = fields(json!({"n": "3"})).integer("n", 0..=20).unwrap_err();
        assert_eq!(error.to_string(), "`n` must be an integer, but it is a string.");
    }

    #[test]
    fn ranges_are_named_with_the_value() {
        let error = fields(json!({"temperature": 3})).number("temperature", 0.0..=2.0).unwrap_err();
        assert_eq!(error.to_string(), "`temperature` must be between 0 and 2, but 3 was given.");
    }

    #[test]
    fn what_is_left_is_an_error_with_its_path() {
        let mut outer = fields(json!({"stream_options": {"include_usge": true}}));
        let inner = Fields::at(outer.path("stream_options"), outer.take("stream_options").unwrap()).unwrap();
        assert_eq!(inner.finish(), Err(ApiError::UnknownParameter { param: "stream_options.include_usge".into() }));
        assert_eq!(outer.finish(), Ok(()));
    }

    #[test]
    fn moved_fields_keep_their_path() {
        let mut moved = fields(json!({}));
        moved.put("response_format", json!("x"), "text.format".into());
        assert_eq!(moved.object("response_format").unwrap_err().body()["error"]["param"], "text.format");
    }

    #[test]
    fn long_names_are_cut() {
        let error = fields(json!({ "x".repeat(10_000): 1 })).finish().unwrap_err();
        assert!(error.to_string().len() < 200);
    }
}
