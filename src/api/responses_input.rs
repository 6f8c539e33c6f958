//! `instructions`, kept items and `input` of `/v1/responses` → chat messages, in the form that [`super::messages::lower`] gives them.
//!
//! A response's items are finer than a chat's messages: what the assistant thought, said and called in one turn are items of
//! their own there, and one message here.
use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::fields::{Fields, type_name};
use super::messages::{CACHE_HINTS, arguments_of};
use super::responses_kept::Earlier;
use super::responses_tools::{call_hints, full_name};

pub(crate) const ROLES: &[&str] = &["user", "assistant", "system", "developer"];
pub(crate) const STATUSES: &[&str] = &["in_progress", "completed", "incomplete"];

/// Takes `instructions` and `input`, with the conversation before it, which had instructions of its own.
pub(crate) fn take(fields: &mut Fields, earlier: &mut Earlier) -> Result<Vec<Value>, ApiError> {
    let mut chat = Conversation::default();
    if let Some(instructions) = fields.string("instructions")? {
        chat.system(instructions);
    }
    for item in earlier.previous() {
        chat.item(item)?;
    }
    let path = fields.path("input");
    match fields.require("input")? {
        Value::String(text) => {
            if earlier.keeps {
                earlier.add(json!({"role": "user", "content": text}));
            }
            chat.push("user", Value::String(text));
        }
        Value::Array(items) if items.is_empty() => {
            return Err(ApiError::invalid(&path, format!("`{path}` is empty; give at least one item.")));
        }
        Value::Array(items) => {
            for (index, item) in items.into_iter().enumerate() {
                let path = format!("{path}[{index}]");
                if let Some(named) = earlier.referenced(&path, &item)? {
                    chat.item(named)?;
                    continue;
                }
                let copy = earlier.keeps.then(|| item.clone());
                chat.item(Fields::at(path, item)?)?;
                copy.into_iter().for_each(|item| earlier.add(item));
            }
        }
        other => {
            let expected = "a string or an array of items";
            return Err(ApiError::WrongType { param: path, expected, found: type_name(&other) });
        }
    }
    Ok(chat.finish())
}

/// Messages so far, and the assistant's turn that items may still be added to.
#[derive(Default)]
struct Conversation {
    entries: Vec<Entry>,
    turn: Option<Turn>,
    /// Id of a call → the last entry that makes it.
    calls: HashMap<String, usize>,
}

/// A message, and the results of its calls.
struct Entry {
    role: &'static str,
    message: Value,
    results: Vec<Value>,
}

/// What an assistant's turn has so far.
#[derive(Default)]
struct Turn {
    reasoning: Option<String>,
    content: Option<String>,
    calls: Vec<Value>,
}

/// Text in several pieces is joined as chat templates without parts get it.
fn join(text: &mut Option<String>, more: &str) {
    match text {
        Some(text) => {
            text.push('\n');
            text.push_str(more);
        }
        None => *text = Some(more.to_owned()),
    }
}

impl Conversation {
    fn item(&mut self, mut item: Fields) -> Result<(), ApiError> {
        // The easy form of a message has no type.
        let kind = item.string("type")?.unwrap_or_else(|| "message".to_owned());
        // Ids and states that come back from earlier answers say nothing that the item itself does not.
        if kind != "item_reference" {
            item.string("id")?;
            item.choice("status", STATUSES)?;
        }
        match kind.as_str() {
            "message" => self.message(&mut item)?,
            "reasoning" => self.reasoning(&mut item)?,
            "function_call" => {
                let text =
                    item.string("arguments")?.ok_or_else(|| ApiError::Missing { param: item.path("arguments") })?;
                self.call(&mut item, arguments_of(text))?;
            }
            "custom_tool_call" => {
                // As the model wrote it: see `text::Tool::custom`.
                let text = item.string("input")?.ok_or_else(|| ApiError::Missing { param: item.path("input") })?;
                self.call(&mut item, json!({ "input": text }))?;
            }
            "function_call_output" | "custom_tool_call_output" => self.output(&mut item)?,
            "item_reference" => {
                let hint = ": wick keeps no items unless it is started with `--responses-store`; send the item itself";
                return Err(ApiError::Unsupported { param: item.path("type"), hint });
            }
            _ => {
                let hint = ", except `message`, `reasoning`, `function_call`, `function_call_output`, `custom_tool_call` and `custom_tool_call_output`";
                return Err(ApiError::Unsupported { param: item.path("type"), hint });
            }
        }
        item.finish()
    }

    fn message(&mut self, item: &mut Fields) -> Result<(), ApiError> {
        let role = item.choice("role", ROLES)?.ok_or_else(|| ApiError::Missing { param: item.path("role") })?;
        let path = item.path("content");
        let content = texts(&path, item.require("content")?, &["input_text", "output_text", "refusal"])?;
        // Whether the assistant meant it as a comment or as its answer: templates know no such thing.
        item.choice("phase", &["commentary", "final_answer"])?;
        match role {
            "assistant" => join(&mut self.turn().content, &content),
            "user" => self.push("user", content.into()),
            _ => self.system(content),
        }
        Ok(())
    }

    /// What an assistant thought, if the item says so in clear. `encrypted_content` can be read by none but its maker,
    /// which was not wick.
    fn reasoning(&mut self, item: &mut Fields) -> Result<(), ApiError> {
        item.string("encrypted_content")?;
        let mut take = |field: &str, kind: &str| match item.take(field) {
            None => Ok(None),
            Some(Value::Array(parts)) if parts.is_empty() => Ok(None),
            Some(parts @ Value::Array(_)) => texts(&item.path(field), parts, &[kind]).map(Some),
            Some(other) => Err(ApiError::WrongType {
                param: item.path(field),
                expected: "an array of parts",
                found: type_name(&other),
            }),
        };
        let (content, summary) = (take("content", "reasoning_text")?, take("summary", "summary_text")?);
        if let Some(text) = content.or(summary) {
            join(&mut self.turn().reasoning, &text);
        }
        Ok(())
    }

    fn call(&mut self, item: &mut Fields, arguments: Value) -> Result<(), ApiError> {
        let name = item.string("name")?.ok_or_else(|| ApiError::Missing { param: item.path("name") })?;
        let name = full_name(call_hints(item)?.as_deref(), name);
        let id = call_id(item)?;
        let function = json!({"name": name, "arguments": arguments});
        self.turn().calls.push(json!({"type": "function", "function": function, "id": id}));
        Ok(())
    }

    /// The result of a call, which must be there before it. It comes right after the call's message, even where other
    /// messages came between: templates want it so.
    fn output(&mut self, item: &mut Fields) -> Result<(), ApiError> {
        let id = call_id(item)?;
        let path = item.path("output");
        let output = texts(&path, item.require("output")?, &["input_text"])?;
        let namespace = call_hints(item)?;
        let name = item.string("name")?.map(|name| full_name(namespace.as_deref(), name));
        self.close();
        let Some(at) = self.calls.get(&id) else {
            let param = item.path("call_id");
            let message = format!("`{param}` names no call of an item before it; send the call, too.");
            return Err(ApiError::InvalidValue { param, message });
        };
        let mut message = json!({"role": "tool", "content": output, "tool_call_id": id});
        if let Some(name) = name {
            message["name"] = name.into();
        }
        self.entries[*at].results.push(message);
        Ok(())
    }

    /// Systems' messages at the beginning are one: most templates know but one, and only there.
    fn system(&mut self, text: String) {
        self.close();
        if let [Entry { role: "system", message, .. }] = self.entries.as_mut_slice()
            && let Some(Value::String(before)) = message.get_mut("content")
        {
            before.push_str("\n\n");
            before.push_str(&text);
        } else {
            self.push("system", text.into());
        }
    }

    fn push(&mut self, role: &'static str, content: Value) {
        self.close();
        let message = json!({"role": role, "content": content});
        self.entries.push(Entry { role, message, results: Vec::new() });
    }

    fn turn(&mut self) -> &mut Turn {
        self.turn.get_or_insert_default()
    }

    /// The assistant's turn is over.
    fn close(&mut self) {
        let Some(Turn { reasoning, content, calls }) = self.turn.take() else { return };
        let mut message = Map::new();
        message.insert("role".into(), "assistant".into());
        message.insert(
            "content".into(),
            content.map_or_else(|| if calls.is_empty() { "".into() } else { Value::Null }, Value::String),
        );
        for id in calls.iter().filter_map(|call| call["id"].as_str()) {
            self.calls.insert(id.to_owned(), self.entries.len());
        }
        if !calls.is_empty() {
            message.insert("tool_calls".into(), calls.into());
        }
        if let Some(reasoning) = reasoning {
            message.insert("reasoning_content".into(), reasoning.into());
        }
        self.entries.push(Entry { role: "assistant", message: message.into(), results: Vec::new() });
    }

    fn finish(mut self) -> Vec<Value> {
        self.close();
        let with_results = |entry: Entry| std::iter::once(entry.message).chain(entry.results);
        self.entries.into_iter().flat_map(with_results).collect()
    }
}

fn call_id(item: &mut Fields) -> Result<String, ApiError> {
    item.string("call_id")?.ok_or_else(|| ApiError::Missing { param: item.path("call_id") })
}

/// A string, or the text of parts of these kinds.
fn texts(path: &str, content: Value, kinds: &[&str]) -> Result<String, ApiError> {
    let parts = match content {
        Value::String(text) => return Ok(text),
        Value::Array(parts) if parts.is_empty() => {
            return Err(ApiError::invalid(path, format!("`{path}` is an empty array; give at least one part.")));
        }
        Value::Array(parts) => parts,
        other => {
            let expected = "a string or an array of text parts";
            return Err(ApiError::WrongType { param: path.to_owned(), expected, found: type_name(&other) });
        }
    };
    let mut text = None;
    for (index, part) in parts.into_iter().enumerate() {
        join(&mut text, &text_part(format!("{path}[{index}]"), part, kinds)?);
    }
    Ok(text.unwrap_or_default())
}

fn text_part(path: String, part: Value, kinds: &[&str]) -> Result<String, ApiError> {
    let mut part = Fields::at(path.clone(), part)?;
    let kind = part.string("type")?.ok_or_else(|| ApiError::Missing { param: part.path("type") })?;
    if !kinds.contains(&kind.as_str()) {
        return Err(ApiError::Unsupported { param: path, hint: " here: models here read text parts only" });
    }
    let field = if kind == "refusal" { "refusal" } else { "text" };
    let text = part.string(field)?.ok_or_else(|| ApiError::Missing { param: part.path(field) })?;
    // What came with an earlier answer; the conversation's text does not contain it.
    part.array("annotations")?;
    part.array("logprobs")?;
    for hint in CACHE_HINTS {
        part.take(hint);
    }
    part.finish()?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(body: Value) -> Value {
        take(&mut Fields::at(String::new(), body).unwrap(), &mut Earlier::default()).unwrap().into()
    }

    fn call(id: &str) -> Value {
        json!({"type": "function_call", "call_id": id, "name": "f", "arguments": "{}"})
    }

    fn result(id: &str, output: &str) -> Value {
        json!({"type": "function_call_output", "call_id": id, "output": output})
    }

    #[test]
    fn a_text_is_a_users_message() {
        let found = messages(json!({"input": "x", "instructions": "y"}));
        assert_eq!(found, json!([{"role": "system", "content": "y"}, {"role": "user", "content": "x"}]));
    }

    #[test]
    fn items_of_a_turn_are_one_message_and_results_follow_their_call() {
        let found = messages(json!({"input": [
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "short"}], "content": null},
            call("a"), result("a", "1"),
            {"role": "assistant", "content": "so"}, {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
            call("a"), call("b"),
            {"role": "user", "content": "u"}, {"role": "developer", "content": "d"},
            result("b", "2"), result("a", "3"),
        ]}));
        let calls = |ids: &[&str]| -> Value {
            ids.iter()
                .map(|id| json!({"type": "function", "function": {"name": "f", "arguments": {}}, "id": id}))
                .collect()
        };
        let tool = |id: &str, text: &str| json!({"role": "tool", "content": text, "tool_call_id": id});
        let expected = json!([
            {"role": "assistant", "content": null, "tool_calls": calls(&["a"]), "reasoning_content": "short"},
            tool("a", "1"),
            {"role": "assistant", "content": "so\nno", "tool_calls": calls(&["a", "b"])},
            tool("b", "2"), tool("a", "3"),
            {"role": "user", "content": "u"},
            {"role": "system", "content": "d"},
        ]);
        assert_eq!(found, expected);
    }

    /// Bodies have megabytes: what takes the square of their items would stall a thread.
    #[test]
    fn many_items_take_little_time() {
        let started = std::time::Instant::now();
        let mut items: Vec<Value> = (0..50_000).map(|_| json!({"role": "system", "content": "s"})).collect();
        items.extend((0..20_000).map(|id| call(&id.to_string())));
        items.extend((0..50_000).map(|id| result(&(id % 20_000).to_string(), "r")));
        assert_eq!(messages(json!({ "input": items })).as_array().unwrap().len(), 50_002);
        assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
    }
}
