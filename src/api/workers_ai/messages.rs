//! Messages as Workers AI's clients write them, where that differs from OpenAI's: calls without ids whose arguments are objects, and
//! results that say the name of the function they are of, or nothing. What is wrong otherwise is left for a chat's own checks: each
//! message keeps its place, so that these name it rightly.
use std::collections::HashSet;

use serde_json::{Map, Value, json};

/// A call that has no result yet.
struct Open {
    id: String,
    name: String,
}

/// As a chat takes them.
pub(super) fn lower(value: Value) -> Value {
    let Value::Array(mut messages) = value else { return value };
    let mut open = Vec::new();
    let mut ids = Ids::of(&messages);
    for index in 0..messages.len() {
        match messages[index]["role"].as_str() {
            Some("assistant") => open = calls(&mut messages[index], &mut ids),
            Some("tool") => {
                if open.is_empty() && index > 0 && messages[index].get("tool_call_id").is_none() {
                    open = spoken(&mut messages[index - 1], &mut ids);
                }
                result(&mut messages[index], &mut open);
            }
            _ => open.clear(),
        }
    }
    Value::Array(messages)
}

/// Ids for calls that have none.
struct Ids {
    given: HashSet<String>,
    made: usize,
}

impl Ids {
    /// Any but those in the messages.
    fn of(messages: &[Value]) -> Self {
        let calls = messages.iter().filter_map(|message| message["tool_calls"].as_array()).flatten();
        Self { given: calls.filter_map(|call| call["id"].as_str()).map(str::to_owned).collect(), made: 0 }
    }

    /// Nine letters and digits: templates of Mistral take no other.
    fn next(&mut self) -> String {
        loop {
            self.made += 1;
            let id = format!("c{:08}", self.made);
            if !self.given.contains(&id) {
                return id;
            }
        }
    }
}

/// Brings an assistant's calls into OpenAI's form.
fn calls(message: &mut Value, ids: &mut Ids) -> Vec<Open> {
    let mut open = Vec::new();
    let Some(calls) = message.get_mut("tool_calls").and_then(Value::as_array_mut) else { return open };
    for call in calls.iter_mut() {
        let Some(fields) = call.as_object_mut() else { continue };
        if !fields.contains_key("function") && fields.contains_key("name") {
            let mut function = Map::new();
            for field in ["name", "arguments"] {
                function.extend(fields.remove(field).map(|value| (field.to_owned(), value)));
            }
            fields.insert("function".to_owned(), Value::Object(function));
        }
        let Some(function) = fields.get_mut("function").and_then(Value::as_object_mut) else { continue };
        let name = function.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        if let Some(arguments) = function.get_mut("arguments").filter(|arguments| arguments.is_object()) {
            *arguments = arguments.to_string().into();
        }
        let id = match fields.get("id") {
            Some(Value::String(id)) => id.clone(),
            Some(Value::Null) | None => {
                let id = ids.next();
                fields.insert("id".to_owned(), id.as_str().into());
                id
            }
            Some(_) => continue,
        };
        open.push(Open { id, name });
    }
    open
}

/// Some clients write the call that they got as the assistant's text: `{"name": …, "arguments": {…}}`, before its result.
fn spoken(message: &mut Value, ids: &mut Ids) -> Vec<Open> {
    let text = message["content"].as_str().filter(|_| message["role"] == "assistant");
    let call = text.and_then(|text| serde_json::from_str::<Map<String, Value>>(text).ok());
    let Some(call) = call.filter(|call| call.contains_key("name") && call.contains_key("arguments")) else {
        return Vec::new();
    };
    message["content"] = Value::Null;
    message["tool_calls"] = json!([call]);
    calls(message, ids)
}

/// Says which call a result is of, unless it does: the first open one of its name, or the first of all.
fn result(message: &mut Value, open: &mut Vec<Open>) {
    let Some(fields) = message.as_object_mut() else { return };
    match fields.get("tool_call_id") {
        None | Some(Value::Null) => {
            let name = fields.get("name").and_then(Value::as_str);
            if let Some(at) = open.iter().position(|call| name.is_none_or(|name| call.name == name)) {
                fields.insert("tool_call_id".to_owned(), open.remove(at).id.into());
            }
        }
        Some(given) => open.retain(|call| *given != call.id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::messages as chat;

    #[test]
    fn traditional_calls_and_results_find_each_other() {
        let lowered = chat::lower(lower(json!([
            {"role": "user", "content": "weather and time?"},
            {"role": "assistant", "content": "", "tool_calls": [
                {"name": "weather", "arguments": {"city": "Zürich"}}, {"name": "time", "arguments": "{}", "id": "t"}]},
            {"role": "tool", "name": "time", "content": "noon"},
            {"role": "tool", "content": "sun"},
        ])))
        .unwrap();
        let calls = lowered[1]["tool_calls"].as_array().unwrap();
        assert_eq!(calls[0]["function"], json!({"name": "weather", "arguments": {"city": "Zürich"}}));
        assert_eq!(calls[0]["id"].as_str().unwrap().len(), 9);
        assert_eq!(lowered[2]["tool_call_id"], "t");
        assert_eq!(lowered[3]["tool_call_id"], calls[0]["id"]);
    }

    #[test]
    fn made_ids_are_nobody_elses() {
        let many: Vec<Value> = (0..300).map(|_| json!({"name": "f", "arguments": {}})).collect();
        let lowered = lower(json!([
            {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {}, "id": "c00000002"}]},
            {"role": "assistant", "tool_calls": many},
            {"role": "assistant", "tool_calls": many},
        ]));
        let calls = lowered.as_array().unwrap().iter().flat_map(|message| message["tool_calls"].as_array().unwrap());
        let ids: HashSet<&str> = calls.map(|call| call["id"].as_str().unwrap()).collect();
        assert_eq!(ids.len(), 601);
    }

    #[test]
    fn a_call_may_stand_in_the_text() {
        let lowered = chat::lower(lower(json!([
            {"role": "user", "content": "sum?"},
            {"role": "assistant", "content": r#"{"name": "sum", "arguments": {"a": 1}}"#},
            {"role": "tool", "name": "sum", "content": "3"},
        ])))
        .unwrap();
        assert_eq!(lowered[1]["tool_calls"][0]["function"]["name"], "sum");
        assert_eq!(lowered[2]["tool_call_id"], lowered[1]["tool_calls"][0]["id"]);
    }

    #[test]
    fn what_is_wrong_stays_wrong() {
        let param = |messages: Value| chat::lower(lower(messages)).unwrap_err().body()["error"]["param"].clone();
        assert_eq!(param(json!("hi")), "messages");
        let stray = json!([{"role": "assistant", "content": "hi"}, {"role": "tool", "content": "x"}]);
        assert_eq!(param(stray), "messages[1].tool_call_id");
        let other = json!([{"role": "assistant", "tool_calls": [{"name": "f", "arguments": {}}]},
            {"role": "tool", "name": "g", "content": "x"}]);
        assert_eq!(param(other), "messages[1].tool_call_id");
        let odd = json!([{"role": "assistant", "tool_calls": [{"name": "f", "arguments": {}, "more": 1}]}]);
        assert_eq!(param(odd), "messages[0].tool_calls[0].more");
        assert_eq!(param(json!([{"role": "assistant", "tool_calls": [1]}])), "messages[0].tool_calls[0]");
        assert_eq!(param(json!([1])), "messages[0]");
    }
}
