//! Chat templates: messages → prompt text, as `transformers`' `apply_chat_template` renders them.
use super::added::AddedToken;
use super::guard::{self, Guard};
use super::{ChatInput, RenderedPrompt, TextError, jinja, scan};
use minijinja::{Environment, Value as Jinja};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

/// What `strftime_now` reads.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

pub(super) fn system_clock() -> Clock {
    Arc::new(SystemTime::now)
}

/// A template's name (`default`, `tool_use` …) and text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateSource {
    pub name: String,
    pub text: String,
}

/// Control tokens that end a turn or the text, if the template or the tokenizer has them.
const TURN_ENDS: [&str; 10] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<|end|>",
    "<|endofturn|>",
    "<|end_of_turn|>",
    "<turn|>",
    "<|eot|>",
    "<｜end▁of▁sentence｜>",
];

/// Variables of a render that kwargs may not replace.
const RESERVED: [&str; 4] = ["messages", "tools", "add_generation_prompt", jinja::MARK];

/// Compiled chat templates of one model.
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// Name → how it takes message content.
    formats: BTreeMap<String, ContentFormat>,
    variables: Vec<(String, String)>,
    guard: Arc<Guard>,
}

/// How a template takes a message's content. Found by rendering a message of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ContentFormat {
    /// Text: lists of parts are joined by newlines.
    Text,
    /// Lists of parts, and text too.
    Either,
    /// Lists of parts only: text is wrapped into one.
    Parts,
}

impl ChatTemplate {
    /// `variables`: `bos_token` and the like; `control`: the texts of all control tokens.
    ///
    /// # Errors
    /// The template engine's message, with the line, if a source is no valid template.
    pub fn new(
        sources: Vec<TemplateSource>,
        variables: Vec<(String, String)>,
        control: impl Iterator<Item = String>,
        clock: Clock,
    ) -> Result<Self, String> {
        let mut literals: Vec<String> = sources.iter().flat_map(|source| scan::literals(&source.text)).collect();
        literals.extend(variables.iter().map(|(_, text)| text.clone()));
        let guard = Arc::new(Guard::new(control, &literals)?);
        let describe = |error: &minijinja::Error| describe(error);
        let mut environment = jinja::environment(Arc::clone(&guard), clock).map_err(|error| describe(&error))?;
        let mut formats = BTreeMap::new();
        for TemplateSource { name, text } in sources {
            formats.insert(name.clone(), ContentFormat::Text);
            environment
                .add_template_owned(name, scan::without_generation_tags(&text))
                .map_err(|error| describe(&error))?;
        }
        let mut template = Self { environment, formats, variables, guard };
        let names: Vec<String> = template.formats.keys().cloned().collect();
        for name in names {
            let format = template.probe(&name);
            template.formats.insert(name, format);
        }
        Ok(template)
    }

    /// Renders a chat. What users wrote is guarded: see `guard.rs`.
    ///
    /// # Errors
    /// `Template` with the template's own message (`raise_exception`) or the engine's.
    pub fn render(&self, input: &ChatInput) -> Result<RenderedPrompt, TextError> {
        let refuse = |reason: String| TextError::Template(reason);
        if let Some(name) = input.kwargs.keys().find(|name| RESERVED.contains(&name.as_str())) {
            return Err(refuse(format!("`{name}` cannot be given as a template argument")));
        }
        let name = match &input.tools {
            Some(_) if self.formats.contains_key("tool_use") => "tool_use",
            _ => "default",
        };
        let Some(&format) = self.formats.get(name) else {
            let names: Vec<&str> = self.formats.keys().map(String::as_str).collect();
            return Err(refuse(format!("the model names its templates {} and none is `default`", names.join(", "))));
        };

        let mut messages = Value::Array(input.messages.clone());
        let tools = input.tools.clone().map_or(Value::Null, Value::Array);
        let kwargs = Value::Object(input.kwargs.clone());
        let [mark, end] = guard::unused_marks(&[&messages, &tools, &kwargs]).map_err(refuse)?;
        messages = self.guard.json(messages, "", mark);
        if let Value::Array(list) = &mut messages {
            for message in list.iter_mut() {
                drop_nulls(message);
                adapt_content(message, format).map_err(refuse)?;
                alias_reasoning(message);
            }
            if input.continue_final_message {
                if input.add_generation_prompt {
                    let both = "continue_final_message and add_generation_prompt exclude each other";
                    return Err(refuse(both.into()));
                }
                mark_end(list.last_mut(), end).map_err(refuse)?;
            }
        }

        let tools = self.guard.json(tools, "", mark);
        let kwargs = self.guard.json(kwargs, "", mark);
        let mut text = self
            .run(name, messages, tools, kwargs, input.add_generation_prompt, mark)
            .map_err(|error| refuse(describe(&error).replace(mark, "")))?;
        if input.continue_final_message {
            text = cut_at_end(&text, end).map_err(refuse)?;
        }
        let guard = text.contains(mark).then_some(mark);
        Ok(RenderedPrompt { text, guard })
    }

    fn run(
        &self,
        name: &str,
        messages: Value,
        tools: Value,
        kwargs: Value,
        add_generation_prompt: bool,
        mark: char,
    ) -> Result<String, minijinja::Error> {
        let mut context: BTreeMap<String, Jinja> =
            self.variables.iter().map(|(name, text)| (name.clone(), Jinja::from(text.as_str()))).collect();
        context.insert("documents".into(), Jinja::from(()));
        if let Value::Object(kwargs) = kwargs {
            context.extend(kwargs.into_iter().map(|(name, value)| (name, to_jinja(value))));
        }
        context.insert("messages".into(), to_jinja(messages));
        context.insert("tools".into(), to_jinja(tools));
        context.insert("add_generation_prompt".into(), Jinja::from(add_generation_prompt));
        context.insert(jinja::MARK.into(), Jinja::from(mark.to_string()));
        self.environment.get_template(name)?.render(Jinja::from_pairs(context))
    }

    /// What the template makes of a message's text, given as text and as a list of parts: it takes a form if the words
    /// come out, and not the list's own spelling.
    fn probe(&self, name: &str) -> ContentFormat {
        const WORDS: &str = "wick asks";
        let takes = |content: Value| {
            let messages = serde_json::json!([{"role": "user", "content": content}]);
            let rendered = self.run(name, messages, Value::Null, Value::Null, true, '\u{fdd0}');
            rendered.is_ok_and(|text| text.contains(WORDS) && !text.contains("'type'") && !text.contains("\"type\""))
        };
        match (takes(WORDS.into()), takes(serde_json::json!([{"type": "text", "text": WORDS}]))) {
            (true, true) => ContentFormat::Either,
            (false, true) => ContentFormat::Parts,
            (_, false) => ContentFormat::Text,
        }
    }
}

/// Ids of control tokens that end a turn in these templates.
pub(super) fn turn_ends(sources: &[TemplateSource], tokens: &[AddedToken]) -> Vec<u32> {
    let used = |content: &str| sources.iter().any(|source| source.text.contains(content));
    let ends = tokens.iter().filter(|token| token.special && TURN_ENDS.contains(&token.content.as_str()));
    ends.filter(|token| used(&token.content)).map(|token| token.id).collect()
}

/// Turns string-encoded arguments of a message's tool calls into objects.
pub(super) fn parse_arguments(message: &mut Value) {
    let Some(calls) = message.get_mut("tool_calls").and_then(Value::as_array_mut) else { return };
    for call in calls {
        let Some(arguments) = call.pointer_mut("/function/arguments") else { continue };
        if let Some(Ok(parsed @ Value::Object(_))) = arguments.as_str().map(serde_json::from_str) {
            *arguments = parsed;
        }
    }
}

fn adapt_content(message: &mut Value, format: ContentFormat) -> Result<(), String> {
    let Some(content) = message.get_mut("content") else { return Ok(()) };
    match (&*content, format) {
        (Value::Array(parts), ContentFormat::Text) => {
            let texts = parts
                .iter()
                .map(|part| {
                    part.as_str().or_else(|| part.get("text")?.as_str()).ok_or_else(|| {
                        let kind = part.get("type").and_then(Value::as_str).unwrap_or("unknown");
                        format!("content parts of type `{kind}` are not supported: this model reads text only")
                    })
                })
                .collect::<Result<Vec<&str>, String>>()?;
            *content = Value::String(texts.join("\n"));
        }
        (Value::String(text), ContentFormat::Parts) => {
            *content = serde_json::json!([{"type": "text", "text": text}]);
        }
        _ => {}
    }
    Ok(())
}

/// A field that is null counts as absent, as in `transformers`: many templates would print `None`.
fn drop_nulls(message: &mut Value) {
    if let Some(fields) = message.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
}

/// Reasoning has had several names; templates read `reasoning_content` or `thinking` (as `transformers` does it).
fn alias_reasoning(message: &mut Value) {
    let Some(fields) = message.as_object_mut() else { return };
    let names = ["reasoning_content", "thinking", "reasoning"];
    let Some(reasoning) = names.iter().find_map(|name| fields.get(*name)) else {
        return;
    };
    let reasoning = reasoning.clone();
    if !fields.contains_key("thinking") {
        fields.insert("thinking".into(), reasoning.clone());
    }
    fields.insert("reasoning_content".into(), reasoning);
}

/// Writes `end` and a space after the last message's text. The space tells if the template trims.
fn mark_end(message: Option<&mut Value>, end: char) -> Result<(), String> {
    let nothing = "continue_final_message is set, but the last message has no text to continue";
    let content = message.and_then(|message| message.get_mut("content")).ok_or(nothing)?;
    let text = match content {
        Value::Array(parts) => parts.iter_mut().rev().find_map(|part| part.get_mut("text")),
        text => Some(text),
    };
    let Some(Value::String(text)) = text else { return Err(nothing.into()) };
    text.push(end);
    text.push(' ');
    Ok(())
}

fn cut_at_end(text: &str, end: char) -> Result<String, String> {
    let at = text.rfind(end).ok_or("continue_final_message is set, but the template leaves the last message out")?;
    let kept = &text[..at];
    let trimmed = !text[at + end.len_utf8()..].starts_with(' ');
    Ok(if trimmed { kept.trim_end() } else { kept }.to_owned())
}

fn to_jinja(value: Value) -> Jinja {
    match value {
        Value::Null => Jinja::from(()),
        Value::Bool(flag) => Jinja::from(flag),
        Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(number), _, _) => Jinja::from(number),
            (_, Some(number), _) => Jinja::from(number),
            (_, _, Some(number)) => Jinja::from(number),
            _ => Jinja::from(number.to_string()),
        },
        Value::String(text) => Jinja::from(text),
        Value::Array(items) => Jinja::from(items.into_iter().map(to_jinja).collect::<Vec<_>>()),
        Value::Object(fields) => to_jinja_map(fields),
    }
}

fn to_jinja_map(fields: Map<String, Value>) -> Jinja {
    Jinja::from_pairs(fields.into_iter().map(|(key, value)| (key, to_jinja(value))))
}

/// The innermost message of an engine error, with its line. `raise_exception` gives its own words alone.
fn describe(error: &minijinja::Error) -> String {
    let mut deepest: &dyn std::error::Error = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    match deepest.downcast_ref::<minijinja::Error>() {
        Some(inner) => {
            let what = inner.detail().map_or_else(|| inner.kind().to_string(), str::to_owned);
            match inner.line() {
                Some(line) if inner.kind() != minijinja::ErrorKind::InvalidOperation => format!("{what} (line {line})"),
                _ => what,
            }
        }
        None => deepest.to_string(),
    }
}
