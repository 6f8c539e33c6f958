//! Tools for models whose chat template knows none: they are explained in a system text, calls and results of earlier
//! rounds become text, and so every template can take them.
use std::collections::HashMap;

use serde_json::{Map, Value, json};

use crate::text::ChatInput;

/// Rewrites a chat with tools into one without.
pub(super) fn prepare(input: &mut ChatInput) {
    let has_rounds =
        input.messages.iter().any(|message| message["role"] == "tool" || message.get("tool_calls").is_some());
    if has_rounds {
        input.messages = plain_rounds(std::mem::take(&mut input.messages));
    }
    if let Some(tools) = input.tools.take().filter(|tools| !tools.is_empty()) {
        explain(&mut input.messages, &explanation(&tools));
    }
}

fn explanation(tools: &[Value]) -> String {
    let mut text =
        "You can use these tools. Each line is one tool, with the JSON schema of its arguments:\n".to_owned();
    for tool in tools {
        text.push_str(&tool.get("function").unwrap_or(tool).to_string());
        text.push('\n');
    }
    text.push_str(
        "When a tool helps to answer, reply with nothing but the call, as JSON of this form:\n\
         {\"name\": \"TOOL\", \"arguments\": {\"ARGUMENT\": VALUE}}\n\
         For several calls at once, reply with a JSON array of them. The results come with the next message. \
         When no tool is needed, answer in plain words.",
    );
    text
}

/// Puts the text behind the system message, or makes one.
fn explain(messages: &mut Vec<Value>, text: &str) {
    let system = messages.first_mut().filter(|message| message["role"] == "system");
    let Some(content) = system.and_then(|message| message.get_mut("content")) else {
        messages.insert(0, json!({"role": "system", "content": text}));
        return;
    };
    match content {
        Value::Array(parts) => parts.push(json!({"type": "text", "text": text})),
        Value::String(said) if !said.is_empty() => {
            said.push_str("\n\n");
            said.push_str(text);
        }
        other => *other = text.into(),
    }
}

/// Calls as the text that the model would have written, and results as the user's words: consecutive ones in one message,
/// with what the user says next, because many templates want user and assistant to take turns.
fn plain_rounds(messages: Vec<Value>) -> Vec<Value> {
    let mut names: HashMap<String, String> = HashMap::new();
    let mut out: Vec<Value> = Vec::with_capacity(messages.len());
    let mut after_result = false;
    for mut message in messages {
        let is_result = message["role"] == "tool";
        if is_result {
            let line = result(&message, &names);
            match out.last_mut().filter(|_| after_result).and_then(|last| last["content"].as_str().map(str::to_owned)) {
                Some(said) => {
                    let last = out.len() - 1;
                    out[last]["content"] = format!("{said}\n{line}").into();
                }
                None => out.push(json!({"role": "user", "content": format!("Results of the tools:\n{line}")})),
            }
        } else if let Some(last) = out.last_mut().filter(|_| after_result && message["role"] == "user") {
            last["content"] = joined(last, &message).into();
        } else {
            if let Some(fields) = message.as_object_mut()
                && let Some(Value::Array(calls)) = fields.remove("tool_calls")
            {
                let text = said(fields, &calls, &mut names);
                fields.insert("content".into(), text.into());
            }
            out.push(message);
        }
        after_result = is_result;
    }
    out
}

fn said(message: &Map<String, Value>, calls: &[Value], names: &mut HashMap<String, String>) -> String {
    let written = calls.iter().map(|call| {
        let function = &call["function"];
        if let (Some(id), Some(name)) = (call["id"].as_str(), function["name"].as_str()) {
            names.insert(id.to_owned(), name.to_owned());
        }
        // Spaced as in the explanation, and as `grammar.rs` has it.
        format!("{{\"name\": {}, \"arguments\": {}}}", function["name"], function["arguments"])
    });
    let mut written: Vec<String> = written.collect();
    let calls = if written.len() == 1 { written.remove(0) } else { format!("[{}]", written.join(", ")) };
    match text_of(message.get("content")) {
        text if text.is_empty() => calls,
        text => format!("{text}\n{calls}"),
    }
}

fn result(message: &Value, names: &HashMap<String, String>) -> String {
    let known = message["tool_call_id"].as_str().and_then(|id| names.get(id));
    let name = message["name"].as_str().or(known.map(String::as_str)).unwrap_or("tool");
    format!("{name}: {}", text_of(message.get("content")))
}

/// Content as one text.
pub(super) fn text_of(content: Option<&Value>) -> String {
    match content {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            parts.iter().filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().join("\n")
        }
        _ => String::new(),
    }
}

/// What two messages say.
pub(super) fn joined(first: &Value, second: &Value) -> String {
    let texts = [first, second].map(|message| text_of(message.get("content")));
    texts.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n\n")
}
