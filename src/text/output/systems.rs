//! Systems' messages after a conversation's beginning, for templates that have no place for them there: agents send them.
use serde_json::{Value, json};

use super::generic::{joined, text_of};
use crate::text::{ChatInput, ChatTemplate};

/// Whether a template shows what a system says after the user.
pub(super) fn are_shown_late(template: &ChatTemplate) -> bool {
    let words = "What a system says later.";
    let say = |role: &str, text: &str| json!({"role": role, "content": text});
    // In an assistant's place and in a user's: some templates look only at whose turn it is.
    let messages =
        vec![say("user", "x"), say("system", "y"), say("assistant", "x"), say("system", words), say("user", "x")];
    let input = ChatInput { messages, add_generation_prompt: true, ..ChatInput::default() };
    template.render(&input).is_ok_and(|prompt| prompt.text.contains(words))
}

/// Makes one system's text of those at the beginning (such templates may read but its first part), and the user's words of
/// later ones: in one message with what the user says there, because many of these templates want user and assistant to take
/// turns. Right after a tool's result they join it: some take no user there.
pub(super) fn prepare(messages: &mut Vec<Value>) {
    let mut out: Vec<Value> = Vec::with_capacity(messages.len());
    // The last message is the user's and ends with a system's words: it takes in what the user says next.
    let mut is_open = false;
    for mut message in std::mem::take(messages) {
        let is_system = message["role"] == "system";
        let is_late = is_system && !out.is_empty();
        let takes = |last: &&mut Value| match last["role"].as_str() {
            Some("system" | "tool") => is_late,
            Some("user") => is_late || (is_open && message["role"] == "user"),
            _ => false,
        };
        if let Some(last) = out.last_mut().filter(takes) {
            last["content"] = joined(last, &message).into();
            is_open = last["role"] == "user";
            continue;
        }
        if is_system {
            message["content"] = text_of(message.get("content")).into();
        }
        if is_late {
            message["role"] = "user".into();
        }
        is_open = is_late;
        out.push(message);
    }
    *messages = out;
}
