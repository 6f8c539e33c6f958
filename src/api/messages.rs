//! Checks chat messages and brings them into the form that chat templates read: text content, tool arguments as objects.
use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::fields::{Fields, type_name};

const ROLES: &[&str] = &["system", "developer", "user", "assistant", "tool"];

/// Hints about caching on messages and parts; they cannot change the answer.
pub(crate) const CACHE_HINTS: &[&str] = &["cache_control", "prompt_cache_breakpoint"];

/// Validates `messages`; the result has the keys role, content, name, `tool_calls`, `tool_call_id`, `reasoning_content`.
///
/// `developer` becomes `system` (templates know only that word), parts of other kinds than text are refused (the template
/// says whether it takes text parts or joined text), and the arguments of tool calls, JSON in a string on the wire, become
/// objects, as templates written for `transformers` expect.
pub(crate) fn lower(value: Value) -> Result<Vec<Value>, ApiError> {
    let Value::Array(items) = value else {
        return Err(ApiError::WrongType { param: "messages".into(), expected: "an array", found: type_name(&value) });
    };
    if items.is_empty() {
        return Err(ApiError::invalid("messages", "`messages` is empty; give at least one message."));
    }
    let messages: Result<Vec<Value>, ApiError> = items
        .into_iter()
        .enumerate()
        .map(|(index, item)| message(Fields::at(format!("messages[{index}]"), item)?))
        .collect();
    let messages = messages?;
    check_results(&messages)?;
    Ok(messages)
}

/// Every result of a tool must answer a call of the assistant's message before it (with other results between).
fn check_results(messages: &[Value]) -> Result<(), ApiError> {
    let mut calls: &[Value] = &[];
    for (index, message) in messages.iter().enumerate() {
        if message["role"] != "tool" {
            calls = message.get("tool_calls").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            continue;
        }
        // Calls without an id leave open which of them is answered.
        let answers = |call: &Value| call.get("id").is_none_or(|id| *id == message["tool_call_id"]);
        if !calls.iter().any(answers) {
            let param = format!("messages[{index}].tool_call_id");
            let message = format!(
                "`{param}` names no call of the assistant's message before it. A message with the role `tool` must follow a message with `tool_calls`, and give the id of one of them."
            );
            return Err(ApiError::InvalidValue { param, message });
        }
    }
    Ok(())
}

fn message(mut fields: Fields) -> Result<Value, ApiError> {
    let role = fields.choice("role", ROLES)?.ok_or_else(|| ApiError::Missing { param: fields.path("role") })?;
    let mut out = Map::new();
    out.insert("role".into(), if role == "developer" { "system" } else { role }.into());
    let calls = if role == "assistant" { tool_calls(&mut fields)? } else { None };
    let mut text = content(&mut fields, calls.is_some())?;
    if role == "assistant" {
        let refusal = fields.string("refusal")?;
        text = text.or(refusal.map(Value::String));
    }
    if text.is_none() && calls.is_none() {
        return Err(ApiError::Missing { param: fields.path("content") });
    }
    out.insert("content".into(), text.unwrap_or_default());
    if let Some(name) = fields.string("name")? {
        out.insert("name".into(), name.into());
    }
    match role {
        "assistant" => {
            if let Some(calls) = calls {
                out.insert("tool_calls".into(), calls);
            }
            let reasoning = fields.string("reasoning")?;
            if let Some(reasoning) = fields.string("reasoning_content")?.or(reasoning) {
                out.insert("reasoning_content".into(), reasoning.into());
            }
            for unsupported in ["audio", "function_call"] {
                if fields.take(unsupported).is_some() {
                    return Err(ApiError::Unsupported { param: fields.path(unsupported), hint: "" });
                }
            }
            // Citations that came with an earlier answer; the conversation's text does not contain them.
            fields.array("annotations")?;
            // What the SDK's `parse` made of the content; it stays on a message that is sent back.
            fields.take("parsed");
        }
        "tool" => {
            let id = fields.string("tool_call_id")?;
            let id = id.ok_or_else(|| ApiError::Missing { param: fields.path("tool_call_id") })?;
            out.insert("tool_call_id".into(), id.into());
        }
        _ => {}
    }
    for hint in CACHE_HINTS {
        fields.take(hint);
    }
    fields.finish()?;
    Ok(Value::Object(out))
}

/// A string, or text parts. No parts at all are no content, where there may be none.
fn content(fields: &mut Fields, optional: bool) -> Result<Option<Value>, ApiError> {
    let path = fields.path("content");
    let parts = match fields.take("content") {
        None => return Ok(None),
        Some(text @ Value::String(_)) => return Ok(Some(text)),
        Some(Value::Array(parts)) => parts,
        Some(other) => {
            let expected = "a string or an array of text parts";
            return Err(ApiError::WrongType { param: path, expected, found: type_name(&other) });
        }
    };
    if parts.is_empty() && optional {
        return Ok(None);
    }
    if parts.is_empty() {
        return Err(ApiError::invalid(&path, format!("`{path}` is an empty array; give at least one part.")));
    }
    let texts: Result<Vec<Value>, ApiError> =
        parts.into_iter().enumerate().map(|(index, part)| text_part(format!("{path}[{index}]"), part)).collect();
    Ok(Some(Value::Array(texts?)))
}

fn text_part(path: String, part: Value) -> Result<Value, ApiError> {
    let mut part = Fields::at(path.clone(), part)?;
    let kind = part.string("type")?.ok_or_else(|| ApiError::Missing { param: part.path("type") })?;
    let field = match kind.as_str() {
        "text" => "text",
        "refusal" => "refusal",
        _ => return Err(ApiError::Unsupported { param: path, hint: ": models here read text parts only" }),
    };
    let text = part.string(field)?.ok_or_else(|| ApiError::Missing { param: part.path(field) })?;
    for hint in CACHE_HINTS {
        part.take(hint);
    }
    part.finish()?;
    Ok(json!({"type": "text", "text": text}))
}

/// An assistant's earlier calls; an empty array is none.
fn tool_calls(fields: &mut Fields) -> Result<Option<Value>, ApiError> {
    let path = fields.path("tool_calls");
    let calls = fields.array("tool_calls")?.unwrap_or_default();
    let lowered: Result<Vec<Value>, ApiError> =
        calls.into_iter().enumerate().map(|(index, call)| tool_call(format!("{path}[{index}]"), call)).collect();
    let lowered = lowered?;
    Ok((!lowered.is_empty()).then_some(Value::Array(lowered)))
}

fn tool_call(path: String, call: Value) -> Result<Value, ApiError> {
    let mut call = Fields::at(path, call)?;
    let id = call.string("id")?;
    let kind = call.choice("type", &["function", "custom"])?.unwrap_or("function");
    // Where a call stood in a stream; the array's order says it already.
    call.integer("index", 0..=i64::MAX)?;
    let mut function = Fields::at(call.path(kind), call.require(kind)?)?;
    let name = function.string("name")?.ok_or_else(|| ApiError::Missing { param: function.path("name") })?;
    // What the SDK's `parse` made of the arguments.
    function.take("parsed_arguments");
    let arguments = if kind == "custom" {
        // As the model wrote it: see `text::Tool::custom`.
        json!({"input": function.string("input")?.unwrap_or_default()})
    } else {
        arguments(&mut function)?
    };
    function.finish()?;
    call.finish()?;
    let mut lowered = json!({"type": "function", "function": {"name": name, "arguments": arguments}});
    if let Some(id) = id {
        lowered["id"] = id.into();
    }
    Ok(lowered)
}

fn arguments(function: &mut Fields) -> Result<Value, ApiError> {
    Ok(arguments_of(function.string("arguments")?.unwrap_or_default()))
}

/// A call's arguments as templates take them. Models do not always write valid JSON, and an agent sends back what it got:
/// text that is no object stays text.
pub(crate) fn arguments_of(text: String) -> Value {
    if text.trim().is_empty() {
        return Value::Object(Map::new());
    }
    match serde_json::from_str(&text) {
        Ok(arguments @ Value::Object(_)) => arguments,
        _ => Value::String(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversations_with_parts_and_tools_are_lowered() {
        let lowered = lower(json!([
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache_control": {}}]},
            {"role": "assistant", "content": null, "refusal": null, "audio": null, "annotations": [],
             "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
            {"role": "tool", "tool_call_id": "c1", "content": "ok"},
            {"role": "assistant", "content": "{}", "parsed": {}, "tool_calls": [
                {"id": "c3", "type": "function", "function": {"name": "f", "arguments": "{}", "parsed_arguments": {"x": 1}}}]},
            {"role": "assistant", "content": [], "tool_calls": [{"function": {"name": "f", "arguments": "{\"x"}}]},
            {"role": "assistant", "tool_calls": [{"id": "c2", "type": "custom", "custom": {"name": "p", "input": "x\"y"}}]},
        ]));
        let expected = json!([
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": null,
             "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}, "id": "c1"}]},
            {"role": "tool", "content": "ok", "tool_call_id": "c1"},
            {"role": "assistant", "content": "{}",
             "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}, "id": "c3"}]},
            {"role": "assistant", "content": null,
             "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{\"x"}}]},
            {"role": "assistant", "content": null,
             "tool_calls": [{"type": "function", "function": {"name": "p", "arguments": {"input": "x\"y"}}, "id": "c2"}]},
        ]);
        assert_eq!(Value::Array(lowered.unwrap()), expected);
    }

    #[test]
    fn errors_name_the_place() {
        let param = |messages: Value| lower(messages).unwrap_err().body()["error"]["param"].clone();
        assert_eq!(param(json!([])), "messages");
        assert_eq!(param(json!("hi")), "messages");
        assert_eq!(param(json!(["hi"])), "messages[0]");
        assert_eq!(param(json!([{"content": "x"}])), "messages[0].role");
        assert_eq!(param(json!([{"role": "king", "content": "x"}])), "messages[0].role");
        assert_eq!(param(json!([{"role": "user"}])), "messages[0].content");
        assert_eq!(param(json!([{"role": "user", "content": 1}])), "messages[0].content");
        assert_eq!(param(json!([{"role": "user", "content": []}])), "messages[0].content");
        assert_eq!(param(json!([{"role": "user", "content": "x", "nmae": "y"}])), "messages[0].nmae");
        assert_eq!(param(json!([{"role": "user", "content": "x", "tool_calls": []}])), "messages[0].tool_calls");
        assert_eq!(param(json!([{"role": "tool", "content": "x"}])), "messages[0].tool_call_id");
        let image = json!([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}]}]);
        assert_eq!(param(image), "messages[0].content[1]");
        let call = json!([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}]);
        assert_eq!(param(call), "messages[0].tool_calls[0].function.arguments");
        let kind = json!([{"role": "assistant", "tool_calls": [{"type": "shell", "shell": {}}]}]);
        assert_eq!(param(kind), "messages[0].tool_calls[0].type");
    }
    #[test]
    fn results_answer_a_call_before_them() {
        let user = json!({"role": "user", "content": "x"});
        let calls = |ids: &[&str]| {
            let calls: Vec<Value> =
                ids.iter().map(|id| json!({"id": id, "function": {"name": "f", "arguments": "{}"}})).collect();
            json!({"role": "assistant", "tool_calls": calls})
        };
        let result = |id: &str| json!({"role": "tool", "tool_call_id": id, "content": "r"});
        let good = json!([user, calls(&["a", "b"]), result("b"), result("a"), user, calls(&["c"]), result("c")]);
        assert_eq!(lower(good).unwrap().len(), 7);
        let no_id = json!({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]});
        assert!(lower(json!([user, no_id, result("any")])).is_ok());
        for (bad, at) in [
            (json!([user, result("a")]), 1),
            (json!([result("a")]), 0),
            (json!([user, calls(&["a"]), result("b")]), 2),
            (json!([user, calls(&["a"]), user, result("a")]), 3),
            (json!([user, calls(&["a"]), result("a"), calls(&["b"]), result("a")]), 4),
        ] {
            let param = lower(bad).unwrap_err().body()["error"]["param"].clone();
            assert_eq!(param, format!("messages[{at}].tool_call_id"));
        }
    }
}
