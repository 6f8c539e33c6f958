//! From Anthropic's fields to a chat. Errors name Anthropic's own fields.
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::api::chat::ChatRequest;
use crate::api::error::ApiError;
use crate::api::fields::{Fields, type_name};
use crate::api::params::Common;
use crate::api::tools::{self, ToolUse};
use crate::api::{AppState, Model};
use crate::text::{ChatInput, Tool, ToolChoice};

/// Fields of features that wick does not have.
pub(crate) const UNSUPPORTED: &[(&str, &str)] = &[
    ("container", ""),
    ("mcp_servers", ": call MCP servers from the client, as tools"),
    ("inference_geo", ""),
    ("diagnostics", ""),
];

/// The edit of a conversation that has no effect here, where it keeps `all`.
pub(crate) const KEEP_THOUGHTS: &str = "clear_thinking_20251015";

/// Fields that have no effect here.
const HARMLESS: [&str; 5] = ["metadata", "service_tier", "speed", "user_profile_id", "cache_control"];

pub(crate) const EFFORTS: &[&str] = &["low", "medium", "high", "xhigh", "max"];

/// Turns a request into a chat.
pub(super) fn lower(mut fields: Fields, app: &AppState) -> Result<ChatRequest, ApiError> {
    let model = app.named(&mut fields)?;
    let max_tokens = fields.count("max_tokens", 1..=u32::MAX)?;
    let max_tokens = max_tokens.ok_or_else(|| ApiError::Missing { param: fields.path("max_tokens") })?;
    let (mut input, tools) = input(&mut fields)?;
    let hide_reasoning = fields.peek("thinking").is_some_and(|thinking| thinking["display"] == "omitted");
    let thinking_budget = thinking(&mut fields, &model, &mut input.kwargs)?;
    effort(&fields, &model, &mut input.kwargs);
    let mut common = common(&mut fields, &model)?;
    common.ignored.extend(rest(fields)?);
    // Clients ask for all that a model can say, without knowing how long their prompt is: `Answer::stop` tells them.
    common.ends_with_context = true;
    Ok(ChatRequest {
        model,
        input,
        tools,
        common,
        max_tokens: Some(max_tokens),
        logprobs: None,
        thinking_budget,
        hide_reasoning,
    })
}

/// What of a chat its prompt is made of.
pub(super) struct Counted {
    pub(super) model: Arc<Model>,
    pub(super) input: ChatInput,
}

/// As [`lower`], for a request that asks for nothing but the number of its tokens.
pub(super) fn lower_count(mut fields: Fields, app: &AppState) -> Result<Counted, ApiError> {
    let model = app.named(&mut fields)?;
    let (mut input, _) = input(&mut fields)?;
    thinking(&mut fields, &model, &mut input.kwargs)?;
    effort(&fields, &model, &mut input.kwargs);
    // Whoever counts sends the request it will make.
    fields.count("max_tokens", 1..=u32::MAX)?;
    common(&mut fields, &model)?;
    rest(fields)?;
    Ok(Counted { model, input })
}

/// What is harmless, what is not there, and what nobody knows. Names the harmless fields that had asked for something.
fn rest(mut fields: Fields) -> Result<Vec<String>, ApiError> {
    let asking = |name: &&&str| fields.peek(name).is_some_and(|value| value != "auto");
    let ignored = HARMLESS.iter().filter(asking).map(|name| fields.path(name)).collect();
    fields.refuse(UNSUPPORTED)?;
    context_management(&mut fields)?;
    if let Some(metadata) = fields.take("metadata") {
        let mut metadata = Fields::at(fields.path("metadata"), metadata)?;
        metadata.string("user_id")?;
        metadata.finish()?;
    }
    fields.choice("service_tier", &["auto", "standard_only"])?;
    fields.choice("speed", &["standard"])?;
    fields.string("user_profile_id")?;
    // Hints about caching: wick's cache is always on.
    fields.take("cache_control");
    fields.finish()?;
    Ok(ignored)
}

/// `context_management`: wick edits no conversation. What asks for nothing is taken: Claude Code has all thoughts kept, always.
fn context_management(fields: &mut Fields) -> Result<(), ApiError> {
    let Some(management) = fields.take("context_management") else { return Ok(()) };
    let mut management = Fields::at(fields.path("context_management"), management)?;
    let path = management.path("edits");
    for (index, edit) in management.array("edits")?.unwrap_or_default().into_iter().enumerate() {
        let mut edit = Fields::at(format!("{path}[{index}]"), edit)?;
        if edit.string("type")?.ok_or_else(|| ApiError::Missing { param: edit.path("type") })? != KEEP_THOUGHTS {
            let hint =
                ", except `clear_thinking_20251015` that keeps `all`: send the conversation as the model is to see it";
            return Err(ApiError::Unsupported { param: edit.path("type"), hint });
        }
        if edit.take("keep").is_none_or(|keep| keep != "all") {
            let hint = ", except `all`: send the conversation as the model is to see it";
            return Err(ApiError::Unsupported { param: edit.path("keep"), hint });
        }
        edit.finish()?;
    }
    management.finish()
}

/// Sampling, stop strings and streaming, under the names that chat has for them.
fn common(fields: &mut Fields, model: &Model) -> Result<Common, ApiError> {
    let mut chat = Map::new();
    if let Some(temperature) = fields.number("temperature", 0.0..=1.0)? {
        chat.insert("temperature".into(), temperature.into());
    }
    if let Some(top_p) = fields.number("top_p", 0.0..=1.0)? {
        chat.insert("top_p".into(), top_p.into());
    }
    if let Some(top_k) = fields.integer("top_k", 0..=i64::from(u32::MAX))? {
        chat.insert("top_k".into(), top_k.into());
    }
    let stops = fields.path("stop_sequences");
    if let Some(sequences) = fields.array("stop_sequences")? {
        chat.insert("stop".into(), sequences.into());
    }
    chat.insert("stream".into(), fields.bool("stream")?.unwrap_or(false).into());
    let mut chat = Fields::made(chat);
    if let Some(options) = fields.take("options") {
        chat.put("options", options, fields.path("options"));
    }
    output_config(fields, &mut chat)?;
    Common::take(&mut chat, model).map_err(|error| match error {
        // The only one of them that has another name, and was not checked above.
        ApiError::InvalidValue { param, message } if param == "stop" => {
            ApiError::InvalidValue { message: message.replace("`stop`", &format!("`{stops}`")), param: stops }
        }
        ApiError::WrongType { param, found, .. } if param == "stop" => {
            ApiError::WrongType { param: stops, expected: "an array of strings", found }
        }
        error => error,
    })
}

/// `output_config.effort`, where the model's template reads one: other models know no more or less.
fn effort(fields: &Fields, model: &Model, kwargs: &mut Map<String, Value>) {
    if let Some(effort) = fields.peek("output_config").and_then(|config| config["effort"].as_str())
        && model.served.text.output.effort
    {
        kwargs.insert("reasoning_effort".into(), effort.into());
    }
}

/// `output_config`: the schema of an answer goes where a chat has it.
fn output_config(fields: &mut Fields, chat: &mut Fields) -> Result<(), ApiError> {
    let Some(config) = fields.take("output_config") else { return Ok(()) };
    let mut config = Fields::at(fields.path("output_config"), config)?;
    if let Some(format) = config.take("format") {
        let path = config.path("format");
        let mut format = Fields::at(path.clone(), format)?;
        let kind = format.choice("type", &["json_schema"])?;
        kind.ok_or_else(|| ApiError::Missing { param: format.path("type") })?;
        let schema = format.require("schema")?;
        format.finish()?;
        let moved = json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}});
        chat.put("response_format", moved, path);
    }
    // Read by `effort`.
    config.choice("effort", EFFORTS)?;
    config.finish()
}

fn input(fields: &mut Fields) -> Result<(ChatInput, ToolUse), ApiError> {
    let tools = tool_use(fields)?;
    let mut messages = Vec::new();
    if let Some(given) = fields.take("system") {
        let path = fields.path("system");
        add_system(&mut messages, system(&path, blocks(path.clone(), given)?)?);
    }
    let path = fields.path("messages");
    let items = fields.array("messages")?.ok_or_else(|| ApiError::Missing { param: path.clone() })?;
    if items.is_empty() {
        return Err(ApiError::invalid(&path, format!("`{path}` is empty; give at least one message.")));
    }
    let mut calls = Vec::new();
    let mut last_is_answer = false;
    for (index, item) in items.into_iter().enumerate() {
        let mut message = Fields::at(format!("{path}[{index}]"), item)?;
        let role = message.choice("role", &["user", "assistant", "system"])?;
        let role = role.ok_or_else(|| ApiError::Missing { param: message.path("role") })?;
        let content = message.path("content");
        let given = blocks(content.clone(), message.require("content")?)?;
        message.finish()?;
        last_is_answer = role == "assistant";
        match role {
            "assistant" => messages.push(assistant(&content, given, &mut calls)?),
            "system" => add_system(&mut messages, system(&content, given)?),
            _ => user(&content, given, &mut calls, &mut messages)?,
        }
    }
    let shown = tools.for_template();
    let input = ChatInput {
        messages,
        tools: shown,
        // A conversation that ends with the assistant's own words is continued from there.
        add_generation_prompt: !last_is_answer,
        continue_final_message: last_is_answer,
        kwargs: Map::new(),
    };
    Ok((input, tools))
}

/// A system's text, of which a conversation may have more after its beginning.
fn system(path: &str, given: Vec<Value>) -> Result<Vec<Value>, ApiError> {
    given.into_iter().enumerate().map(|(i, block)| text_block(format!("{path}[{i}]"), block)).collect()
}

/// Systems' messages at the beginning are one: most templates know but one there.
fn add_system(messages: &mut Vec<Value>, texts: Vec<Value>) {
    if let [Value::Object(first)] = messages.as_mut_slice()
        && first["role"] == "system"
        && let Some(Value::Array(before)) = first.get_mut("content")
    {
        before.extend(texts);
    } else {
        messages.push(json!({"role": "system", "content": texts}));
    }
}

/// Content: a text stands for one block of it.
fn blocks(path: String, content: Value) -> Result<Vec<Value>, ApiError> {
    match content {
        Value::String(text) => Ok(vec![json!({"type": "text", "text": text})]),
        Value::Array(blocks) => Ok(blocks),
        other => Err(ApiError::WrongType {
            param: path,
            expected: "a string or an array of blocks",
            found: type_name(&other),
        }),
    }
}

/// A block and its type. Hints about caching are taken.
fn block(path: String, value: Value) -> Result<(Fields, String), ApiError> {
    let mut block = Fields::at(path, value)?;
    let kind = block.string("type")?.ok_or_else(|| ApiError::Missing { param: block.path("type") })?;
    block.take("cache_control");
    Ok((block, kind))
}

/// A text block, as templates take it.
fn text_block(path: String, value: Value) -> Result<Value, ApiError> {
    let (block, kind) = block(path.clone(), value)?;
    if kind != "text" {
        return Err(ApiError::Unsupported { param: path, hint: ": models here read text blocks only" });
    }
    text(block)
}

fn text(mut block: Fields) -> Result<Value, ApiError> {
    let text = block.string("text")?.ok_or_else(|| ApiError::Missing { param: block.path("text") })?;
    // Of an earlier answer; the conversation's text does not contain them.
    block.array("citations")?;
    block.finish()?;
    Ok(json!({"type": "text", "text": text}))
}

/// An assistant's turn. `calls` are left to be answered by the user's turn after it.
fn assistant(path: &str, given: Vec<Value>, calls: &mut Vec<String>) -> Result<Value, ApiError> {
    calls.clear();
    let (mut texts, mut thoughts, mut uses) = (Vec::new(), String::new(), Vec::new());
    for (index, value) in given.into_iter().enumerate() {
        let path = format!("{path}[{index}]");
        let (mut block, kind) = block(path.clone(), value)?;
        match kind.as_str() {
            "text" => texts.push(text(block)?),
            "thinking" => {
                thoughts.push_str(&block.string("thinking")?.unwrap_or_default());
                block.string("signature")?;
                block.finish()?;
            }
            // Encrypted for Anthropic's servers: no model here can read it.
            "redacted_thinking" => {}
            "tool_use" => {
                let id = block.string("id")?.ok_or_else(|| ApiError::Missing { param: block.path("id") })?;
                let name = block.string("name")?.ok_or_else(|| ApiError::Missing { param: block.path("name") })?;
                // Text where a model wrote no object; see `answer`.
                let input = block.take("input").unwrap_or_else(|| json!({}));
                if !input.is_object() && !input.is_string() {
                    let (param, found) = (block.path("input"), type_name(&input));
                    return Err(ApiError::WrongType { param, expected: "an object", found });
                }
                block.take("caller");
                block.finish()?;
                uses.push(json!({"type": "function", "function": {"name": name, "arguments": input}, "id": id}));
                calls.push(id);
            }
            _ => {
                return Err(ApiError::Unsupported {
                    param: path,
                    hint: ": not a kind of block that models here write",
                });
            }
        }
    }
    if texts.is_empty() && uses.is_empty() && thoughts.is_empty() {
        return Err(ApiError::invalid(path, format!("`{path}` is empty; give at least one block of text.")));
    }
    // One text is a text: the end of a conversation that is continued has to be one.
    let content = match <[Value; 1]>::try_from(texts) {
        Ok([text]) => text["text"].clone(),
        Err(texts) if texts.is_empty() => Value::Null,
        Err(texts) => Value::Array(texts),
    };
    let mut message = json!({"role": "assistant", "content": content});
    if !uses.is_empty() {
        message["tool_calls"] = Value::Array(uses);
    }
    if !thoughts.is_empty() {
        message["reasoning_content"] = thoughts.into();
    }
    Ok(message)
}

/// A user's turn: results of tools become messages of their own, before the user's text.
fn user(path: &str, given: Vec<Value>, calls: &mut Vec<String>, messages: &mut Vec<Value>) -> Result<(), ApiError> {
    let (mut texts, mut results) = (Vec::new(), 0);
    for (index, value) in given.into_iter().enumerate() {
        let path = format!("{path}[{index}]");
        let (block, kind) = block(path.clone(), value)?;
        match kind.as_str() {
            "text" => texts.push(text(block)?),
            "tool_result" => {
                messages.push(result(block, calls)?);
                results += 1;
            }
            _ => {
                return Err(ApiError::Unsupported {
                    param: path,
                    hint: ": models here read text and tool results only",
                });
            }
        }
    }
    if texts.is_empty() && results == 0 {
        return Err(ApiError::invalid(path, format!("`{path}` is empty; give at least one block.")));
    }
    if !texts.is_empty() {
        messages.push(json!({"role": "user", "content": texts}));
    }
    calls.clear();
    Ok(())
}

fn result(mut block: Fields, calls: &[String]) -> Result<Value, ApiError> {
    let param = block.path("tool_use_id");
    let id = block.string("tool_use_id")?.ok_or_else(|| ApiError::Missing { param: param.clone() })?;
    if !calls.contains(&id) {
        let message = format!(
            "`{param}` names no `tool_use` of the assistant's message before it. A tool's result must follow the message with its call, and give its id."
        );
        return Err(ApiError::InvalidValue { param, message });
    }
    let path = block.path("content");
    let content = match block.take("content") {
        None => Vec::new(),
        Some(content) => blocks(path.clone(), content)?,
    };
    let texts = content.into_iter().enumerate().map(|(i, value)| text_block(format!("{path}[{i}]"), value));
    let texts = texts.collect::<Result<Vec<_>, _>>()?;
    let mut text: String = texts.iter().filter_map(|text| text["text"].as_str()).collect::<Vec<_>>().join("\n");
    // Templates have no field for it, and a model must know.
    if block.bool("is_error")?.unwrap_or(false) {
        text = format!("Error: {text}");
    }
    block.finish()?;
    Ok(json!({"role": "tool", "content": text, "tool_call_id": id}))
}

fn tool_use(fields: &mut Fields) -> Result<ToolUse, ApiError> {
    let path = fields.path("tools");
    let items = fields.array("tools")?.unwrap_or_default();
    let mut all = tools::Distinct::new(&path, items.len())?;
    for (index, item) in items.into_iter().enumerate() {
        let mut tool = Fields::at(format!("{path}[{index}]"), item)?;
        if tool.string("type")?.is_some_and(|kind| kind != "custom") {
            let hint = ", except `custom`: tools run at the client, not here";
            return Err(ApiError::Unsupported { param: tool.path("type"), hint });
        }
        let name = tools::name(&mut tool)?;
        let description = tool.string("description")?;
        let schema = tool.path("input_schema");
        if tool.peek("input_schema").is_none() {
            return Err(ApiError::Missing { param: schema });
        }
        let parameters = tools::parameters(&mut tool, "input_schema")?;
        let strict = tool.bool("strict")?.unwrap_or(false);
        for hint in ["cache_control", "defer_loading", "allowed_callers", "input_examples", "eager_input_streaming"] {
            tool.take(hint);
        }
        let param = tool.path("name");
        tool.finish()?;
        all.add(Tool { name, description, parameters, strict, custom: false, input: None }, param, schema)?;
    }
    let (mut all, places) = all.tools();
    let (mut choice, mut parallel) = if all.is_empty() { (ToolChoice::None, true) } else { (ToolChoice::Auto, true) };
    let param = fields.path("tool_choice");
    if let Some(given) = fields.take("tool_choice") {
        let mut given = Fields::at(param.clone(), given)?;
        let kind = given.choice("type", &["auto", "any", "tool", "none"])?;
        let name = given.string("name")?;
        parallel = !given.bool("disable_parallel_tool_use")?.unwrap_or(false);
        choice = match kind.ok_or_else(|| ApiError::Missing { param: given.path("type") })? {
            "any" => ToolChoice::Required,
            "none" => ToolChoice::None,
            "tool" => {
                let name = name.ok_or_else(|| ApiError::Missing { param: given.path("name") })?;
                if !all.iter().any(|tool| tool.name == name) {
                    let message = format!("`{param}.name` is `{name}`, but no tool of this name is in `tools`.");
                    return Err(ApiError::InvalidValue { param: given.path("name"), message });
                }
                ToolChoice::Named(name)
            }
            _ => ToolChoice::Auto,
        };
        given.finish()?;
        if all.is_empty() && choice != ToolChoice::None {
            let message = format!("`{param}` is only allowed with `tools`; give at least one tool, or leave it out.");
            return Err(ApiError::InvalidValue { param, message });
        }
    }
    if choice == ToolChoice::None {
        all.clear();
    }
    let (namespaces, ignored) = (Arc::default(), Vec::new());
    Ok(ToolUse { tools: all.into(), places: Arc::new(places), choice, parallel, namespaces, ignored })
}

/// `thinking`: what of it the model's template can say. Gives the budget of thoughts.
fn thinking(fields: &mut Fields, model: &Model, kwargs: &mut Map<String, Value>) -> Result<Option<usize>, ApiError> {
    let Some(thinking) = fields.take("thinking") else { return Ok(None) };
    let mut thinking = Fields::at(fields.path("thinking"), thinking)?;
    let param = thinking.path("type");
    let kind = thinking.choice("type", &["enabled", "disabled", "adaptive", "between_tools"])?;
    let kind = kind.ok_or_else(|| ApiError::Missing { param: param.clone() })?;
    let budget = thinking.count("budget_tokens", 1..=u32::MAX)?;
    thinking.choice("display", &["summarized", "omitted"])?;
    let budget_at = thinking.path("budget_tokens");
    thinking.finish()?;
    let output = &model.served.text.output;
    if output.thinking_switch {
        kwargs.insert("enable_thinking".into(), (kind != "disabled").into());
    }
    match (kind, output.thinks, output.thinking_switch) {
        ("enabled", false, _) => Err(ApiError::Unsupported { param, hint: " as `enabled`: this model does not think" }),
        ("disabled", true, false) => {
            Err(ApiError::Unsupported { param, hint: " as `disabled`: this model always thinks" })
        }
        ("disabled", ..) => Ok(None),
        (_, false, _) if budget.is_some() => {
            Err(ApiError::Unsupported { param: budget_at, hint: ": this model does not think" })
        }
        _ => Ok(budget),
    }
}
