//! The request's side of tools: which ones a model is shown, and whether it may or must call them.
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::fields::{Fields, quoted, type_name};
use super::responses_tools::{LEFT_OUT, Namespace, Namespaces, hints};
use super::structured::Asked;
use crate::grammar::{GrammarSource, QuoteBudget, json_quoted, json_quoted_regex};
use crate::text::{OutputFormat, Thinking, Tool, ToolChoice, call_grammar};

/// More tools than this are refused, as at OpenAI.
pub(crate) const TOOLS_MAX: usize = 128;
/// Longest name of a tool.
pub(crate) const NAME_MAX: usize = 64;
/// Schemas nested more deeply are refused.
const SCHEMA_DEPTH_MAX: usize = 64;
const TYPES: &[&str] = &["string", "number", "integer", "boolean", "object", "array", "null"];

/// How a definition of a tool, and a choice of one, is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// `{"type": "function", "function": {"name": …}}`: chats.
    Nested,
    /// `{"type": "function", "name": …}`: Workers AI.
    Flat,
    /// The same, with what is only there: Responses.
    Responses,
}

impl Form {
    /// Reads what belongs to `kind`.
    fn within<T>(
        self,
        fields: &mut Fields,
        kind: &str,
        read: impl FnOnce(&mut Fields) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        if self != Self::Nested {
            return read(fields);
        }
        let mut inner = Fields::at(fields.path(kind), fields.require(kind)?)?;
        let found = read(&mut inner)?;
        inner.finish()?;
        Ok(found)
    }
}

/// The tools of a request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ToolUse {
    /// What the model sees and may call: none if it may not call at all.
    pub(crate) tools: Arc<[Tool]>,
    /// The field with each tool's schema or grammar, by the tool's name.
    pub(crate) places: Arc<HashMap<String, String>>,
    pub(crate) choice: ToolChoice,
    /// More than one call may be made.
    pub(crate) parallel: bool,
    /// Which of them stand in namespaces.
    pub(crate) namespaces: Arc<Namespaces>,
    /// Fields with tools that the model is not shown: they could do nothing.
    pub(crate) ignored: Vec<String>,
}

impl ToolUse {
    /// Takes `tools`, `tool_choice` and `parallel_tool_calls`.
    pub(crate) fn take(fields: &mut Fields, form: Form) -> Result<Self, ApiError> {
        let (all, namespaces, ignored) = tools(fields, form)?;
        let (mut tools, places) = all.tools();
        let param = fields.path("tool_choice");
        let choice = match fields.take("tool_choice") {
            None if tools.is_empty() => ToolChoice::None,
            None => ToolChoice::Auto,
            // Clients of Responses send it always.
            Some(auto) if form == Form::Responses && tools.is_empty() && auto == "auto" => ToolChoice::None,
            Some(value) => choice(&param, value, form, &mut tools)?,
        };
        if tools.is_empty() && choice != ToolChoice::None {
            let message = format!("`{param}` is only allowed with `tools`; give at least one tool, or leave it out.");
            return Err(ApiError::InvalidValue { param, message });
        }
        if choice == ToolChoice::None {
            // A model that sees no tools calls none.
            tools.clear();
        }
        let parallel = fields.bool("parallel_tool_calls")?.unwrap_or(true);
        let namespaces = Arc::new(namespaces);
        Ok(Self { tools: tools.into(), places: Arc::new(places), choice, parallel, namespaces, ignored })
    }

    /// The tools that may be called: a named one alone.
    pub(crate) fn callable(&self) -> Arc<[Tool]> {
        match &self.choice {
            ToolChoice::Named(name) => self.tools.iter().filter(|tool| tool.name == *name).cloned().collect(),
            _ => Arc::clone(&self.tools),
        }
    }

    /// What an answer must look like: calls as `format` writes them, with arguments of the tools' schemas; where there need
    /// not be a call, also any text, or what `form` asks for. A call that must be made leaves no room for another form.
    pub(crate) fn form(
        &self,
        format: &OutputFormat,
        thinking: Thinking,
        form: Option<Asked>,
    ) -> Result<Option<Asked>, ApiError> {
        let grammar = |choice: &ToolChoice| call_grammar(format, &self.tools, choice, self.parallel, thinking);
        let lark = |text: String| Asked { source: GrammarSource::Calls(text), param: "tools".to_owned() };
        let Some(form) = form.filter(|_| matches!(self.choice, ToolChoice::Auto | ToolChoice::None)) else {
            return Ok(grammar(&self.choice).map(lark));
        };
        let Some(calls) =
            grammar(&if self.choice == ToolChoice::Auto { ToolChoice::Required } else { ToolChoice::None })
        else {
            return Ok(Some(form));
        };
        let (GrammarSource::JsonSchema { schema, .. }, Some(calls)) = (&form.source, calls.strip_prefix("start: "))
        else {
            let hint = " beside `tools`, unless it is a JSON schema or the tools are not to be called";
            return Err(ApiError::Unsupported { param: form.param, hint });
        };
        Ok(Some(lark(format!("start: called | answered\nanswered: %json {schema}\ncalled: {calls}"))))
    }

    /// The same tools, with arguments that may be any object, if that makes a difference and none of them is strict: for
    /// schemas with words that cannot be enforced.
    pub(crate) fn relaxed(&self) -> Option<Self> {
        if self.tools.is_empty() || self.tools.iter().any(|tool| tool.strict) {
            return None;
        }
        let any =
            Map::from_iter([("type".to_owned(), json!("object")), ("additionalProperties".to_owned(), json!(true))]);
        let relax = |tool: &Tool| match tool.custom {
            true => tool.clone(),
            false => Tool { parameters: any.clone(), ..tool.clone() },
        };
        Some(Self { tools: self.tools.iter().map(relax).collect(), ..self.clone() })
    }

    /// What each tool asks for by itself: to find the one that cannot be had.
    pub(crate) fn parts(&self) -> impl Iterator<Item = Asked> {
        self.callable().to_vec().into_iter().map(|tool| {
            let param = self.places.get(&tool.name).cloned().unwrap_or_else(|| "tools".to_owned());
            let source = match &tool.input {
                Some(input) => GrammarSource::Calls(input.clone()),
                None => GrammarSource::JsonSchema { schema: tool.arguments().to_string(), compact: false },
            };
            Asked { source, param }
        })
    }

    /// As templates take them.
    pub(crate) fn for_template(&self) -> Option<Vec<Value>> {
        (!self.tools.is_empty()).then(|| self.tools.iter().map(Tool::for_template).collect())
    }
}

/// Tools of different names, as many as may be.
pub(crate) struct Distinct {
    places: HashMap<String, String>,
    tools: Vec<Tool>,
}

impl Distinct {
    /// For the `count` tools that the field `param` holds.
    pub(crate) fn new(param: &str, count: usize) -> Result<Self, ApiError> {
        if count > TOOLS_MAX {
            let message = format!("`{param}` must have at most {TOOLS_MAX} tools, but {count} were given.");
            return Err(ApiError::invalid(param, message));
        }
        Ok(Self { places: HashMap::new(), tools: Vec::with_capacity(count) })
    }

    /// Adds a tool, whose name stands at `name_param`, and its schema or grammar at `place`.
    pub(crate) fn add(&mut self, tool: Tool, name_param: String, place: String) -> Result<(), ApiError> {
        if self.places.insert(tool.name.clone(), place).is_some() {
            let message = format!("Two tools are named `{}`; give each tool a name of its own.", tool.name);
            return Err(ApiError::InvalidValue { param: name_param, message });
        }
        self.tools.push(tool);
        Ok(())
    }

    /// The tools, and the field with each one's schema or grammar.
    pub(crate) fn tools(self) -> (Vec<Tool>, HashMap<String, String>) {
        (self.tools, self.places)
    }
}

fn tools(fields: &mut Fields, form: Form) -> Result<(Distinct, Namespaces, Vec<String>), ApiError> {
    let param = fields.path("tools");
    let items = fields.array("tools")?.unwrap_or_default();
    // Of a namespace those within count.
    let count = |item: &Value| item["tools"].as_array().filter(|_| form == Form::Responses).map_or(1, Vec::len);
    let mut all = Distinct::new(&param, items.iter().map(count).sum())?;
    let (mut namespaces, mut ignored) = (Namespaces::default(), Vec::new());
    let mut budget = QuoteBudget::default();
    for (index, item) in items.into_iter().enumerate() {
        let path = format!("{param}[{index}]");
        match item["type"].as_str().filter(|_| form == Form::Responses) {
            Some("namespace") => {
                let (namespace, within) = Namespace::take(path, item)?;
                for (index, (path, item)) in within.into_iter().enumerate() {
                    let tool = namespace.around(tool(path.clone(), item, form, &mut budget)?, index);
                    namespaces.add(&tool, &namespace);
                    place(&mut all, tool, &path, form)?;
                }
            }
            Some(LEFT_OUT) => ignored.push(path),
            _ => place(&mut all, tool(path.clone(), item, form, &mut budget)?, &path, form)?,
        }
    }
    Ok((all, namespaces, ignored))
}

/// Adds the tool that stands at `path`.
fn place(all: &mut Distinct, tool: Tool, path: &str, form: Form) -> Result<(), ApiError> {
    let (kind, place) = match (form, tool.custom) {
        (Form::Nested, true) => (".custom", "format.grammar.definition"),
        (Form::Nested, false) => (".function", "parameters"),
        (_, true) => ("", "format.definition"),
        (_, false) => ("", "parameters"),
    };
    all.add(tool, format!("{path}{kind}.name"), format!("{path}{kind}.{place}"))
}

fn tool(path: String, item: Value, form: Form, budget: &mut QuoteBudget) -> Result<Tool, ApiError> {
    let mut fields = Fields::at(path, item)?;
    let kind = fields.string("type")?.ok_or_else(|| ApiError::Missing { param: fields.path("type") })?;
    let tool = match kind.as_str() {
        "function" => form.within(&mut fields, &kind, function)?,
        "custom" => form.within(&mut fields, &kind, |inner| custom(inner, form, budget))?,
        _ => {
            return Err(ApiError::Unsupported {
                param: fields.path("type"),
                hint: ", except `function` and `custom`: tools run at the client, not here",
            });
        }
    };
    if form == Form::Responses {
        hints(&mut fields)?;
    }
    // A hint about caching, as on messages.
    fields.take("cache_control");
    fields.finish()?;
    Ok(tool)
}

fn function(function: &mut Fields) -> Result<Tool, ApiError> {
    let name = name(function)?;
    let description = function.string("description")?;
    let parameters = parameters(function, "parameters")?;
    let strict = function.bool("strict")?.unwrap_or(false);
    Ok(Tool { name, description, parameters, strict, custom: false, input: None })
}

/// The schema of a function's arguments; without one it takes none.
pub(crate) fn parameters(function: &mut Fields, field: &str) -> Result<Map<String, Value>, ApiError> {
    let path = function.path(field);
    let parameters = match function.object(field)? {
        Some(parameters) => parameters,
        None => Map::from_iter([("type".to_owned(), json!("object")), ("properties".to_owned(), json!({}))]),
    };
    if parameters.get("type").is_some_and(|kind| kind != "object") {
        let param = format!("{path}.type");
        let message = format!("`{param}` must be `object`: arguments are an object's fields.");
        return Err(ApiError::InvalidValue { param, message });
    }
    let schema = Value::Object(parameters);
    check_schema(&path, &schema, 0)?;
    let Value::Object(parameters) = schema else { unreachable!("made of an object above") };
    Ok(parameters)
}

fn custom(custom: &mut Fields, form: Form, budget: &mut QuoteBudget) -> Result<Tool, ApiError> {
    let name = name(custom)?;
    let tool = Tool::custom(name, custom.string("description")?);
    let Some(format) = custom.take("format") else { return Ok(tool) };
    let mut format = Fields::at(custom.path("format"), format)?;
    let kind = format.choice("type", &["text", "grammar"])?;
    let kind = kind.ok_or_else(|| ApiError::Missing { param: format.path("type") })?;
    let tool =
        if kind == "text" { tool } else { form.within(&mut format, kind, |inner| constrained(tool, inner, budget))? };
    format.finish()?;
    Ok(tool)
}

/// A custom tool whose text follows a grammar or a regular expression.
fn constrained(tool: Tool, grammar: &mut Fields, budget: &mut QuoteBudget) -> Result<Tool, ApiError> {
    let syntax = grammar.choice("syntax", &["lark", "regex"])?;
    let syntax = syntax.ok_or_else(|| ApiError::Missing { param: grammar.path("syntax") })?;
    let param = grammar.path("definition");
    let definition = grammar.string("definition")?.ok_or_else(|| ApiError::Missing { param: param.clone() })?;
    let (kind, quoted) = match syntax {
        "lark" => ("grammar in Lark", json_quoted(&definition, budget)),
        _ => ("regular expression", json_quoted_regex(&definition, budget).map(|regex| format!("start: {regex}"))),
    };
    let quoted = quoted.map_err(|error| ApiError::schema(param, kind, &error))?;
    Ok(tool.with_input(quoted, format!("Text that follows this {kind}:\n{definition}")))
}

pub(crate) fn name(fields: &mut Fields) -> Result<String, ApiError> {
    let param = fields.path("name");
    let name = fields.string("name")?.ok_or_else(|| ApiError::Missing { param: param.clone() })?;
    let fits = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(fits) {
        let message = format!("`{param}` must have 1 to {NAME_MAX} letters, digits, `_`, `-` or `.`.");
        return Err(ApiError::InvalidValue { param, message });
    }
    Ok(name)
}

/// Checks what is said in the words of JSON Schema; words that it does not have are left alone.
fn check_schema(path: &str, schema: &Value, depth: usize) -> Result<(), ApiError> {
    let fields = match schema {
        Value::Object(fields) => fields,
        Value::Bool(_) => return Ok(()),
        other => {
            let (param, found) = (path.to_owned(), type_name(other));
            return Err(ApiError::WrongType { param, expected: "a JSON schema (an object)", found });
        }
    };
    if depth > SCHEMA_DEPTH_MAX {
        let message = format!("The schema is nested more than {SCHEMA_DEPTH_MAX} levels deep.");
        return Err(ApiError::invalid(path, message));
    }
    let is_type = |kind: &Value| kind.as_str().is_some_and(|kind| TYPES.contains(&kind));
    let wrong = |name: &str, expected, value: &Value| {
        Err(ApiError::WrongType { param: format!("{path}.{name}"), expected, found: type_name(value) })
    };
    for (name, value) in fields {
        let below = format!("{path}.{name}");
        match (name.as_str(), value) {
            ("type", Value::Array(kinds)) if kinds.iter().all(is_type) => {}
            ("type", kind) if is_type(kind) => {}
            ("type", _) => {
                let message = format!("`{below}` must be one of {}, or an array of these.", quoted(TYPES));
                return Err(ApiError::InvalidValue { param: below, message });
            }
            ("properties" | "$defs" | "definitions" | "patternProperties", Value::Object(schemas)) => {
                for (key, schema) in schemas {
                    let key: String = key.chars().take(NAME_MAX).collect();
                    check_schema(&format!("{below}.{key}"), schema, depth + 1)?;
                }
            }
            ("properties" | "$defs" | "definitions" | "patternProperties", other) => {
                return wrong(name, "an object", other);
            }
            ("items" | "additionalProperties" | "not", schema) if !schema.is_array() => {
                check_schema(&below, schema, depth + 1)?;
            }
            ("items" | "prefixItems" | "anyOf" | "oneOf" | "allOf", Value::Array(schemas)) => {
                for (index, schema) in schemas.iter().enumerate() {
                    check_schema(&format!("{below}[{index}]"), schema, depth + 1)?;
                }
            }
            ("prefixItems" | "anyOf" | "oneOf" | "allOf" | "enum", other) if !other.is_array() => {
                return wrong(name, "an array", other);
            }
            ("required", required) => {
                let names = required.as_array().is_some_and(|names| names.iter().all(Value::is_string));
                if !names {
                    return wrong(name, "an array of strings", required);
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Reads `tool_choice`; allowed tools leave the others out.
fn choice(param: &str, value: Value, form: Form, tools: &mut Vec<Tool>) -> Result<ToolChoice, ApiError> {
    const WORDS: &str = "`none`, `auto`, `required`, or an object of type `function`, `custom` or `allowed_tools`";
    match &value {
        Value::String(word) => match word.as_str() {
            "none" => Ok(ToolChoice::None),
            "auto" => Ok(ToolChoice::Auto),
            "required" => Ok(ToolChoice::Required),
            _ => Err(ApiError::invalid(param, format!("`{param}` must be {WORDS}."))),
        },
        Value::Object(_) => {
            let mut fields = Fields::at(param.to_owned(), value)?;
            let kind = fields.string("type")?.ok_or_else(|| ApiError::Missing { param: fields.path("type") })?;
            let choice = match kind.as_str() {
                "function" | "custom" => ToolChoice::Named(named(&mut fields, &kind, form, tools)?),
                "allowed_tools" => form.within(&mut fields, &kind, |inner| allowed(inner, form, tools))?,
                _ => {
                    let message = format!("`{param}` must be {WORDS}.");
                    return Err(ApiError::InvalidValue { param: fields.path("type"), message });
                }
            };
            fields.finish()?;
            Ok(choice)
        }
        other => Err(ApiError::WrongType {
            param: param.to_owned(),
            expected: "a string or an object",
            found: type_name(other),
        }),
    }
}

/// The name of a chosen tool, which must be in `tools`.
fn named(fields: &mut Fields, kind: &str, form: Form, tools: &[Tool]) -> Result<String, ApiError> {
    let (param, name) = form.within(fields, kind, |inner| {
        let named = (inner.path("name"), name(inner)?);
        // A whole definition may stand here, too; the tool is the one in `tools`.
        for more in ["description", "parameters", "strict", "format"] {
            inner.take(more);
        }
        Ok(named)
    })?;
    if !tools.iter().any(|tool| tool.name == name && tool.custom == (kind == "custom")) {
        let message = format!("`{param}` is `{name}`, but no {kind} tool of this name is in `tools`.");
        return Err(ApiError::InvalidValue { param, message });
    }
    Ok(name)
}

fn allowed(inner: &mut Fields, form: Form, tools: &mut Vec<Tool>) -> Result<ToolChoice, ApiError> {
    let mode = inner.choice("mode", &["auto", "required"])?;
    let mode = mode.ok_or_else(|| ApiError::Missing { param: inner.path("mode") })?;
    let path = inner.path("tools");
    let items = inner.array("tools")?.ok_or_else(|| ApiError::Missing { param: path.clone() })?;
    if items.is_empty() {
        return Err(ApiError::invalid(&path, format!("`{path}` is empty; give at least one tool, or `none`.")));
    }
    let mut names = HashSet::new();
    for (index, item) in items.into_iter().enumerate() {
        let mut item = Fields::at(format!("{path}[{index}]"), item)?;
        let kind = item.choice("type", &["function", "custom"])?;
        let kind = kind.ok_or_else(|| ApiError::Missing { param: item.path("type") })?;
        names.insert(named(&mut item, kind, form, tools)?);
        item.finish()?;
    }
    tools.retain(|tool| names.contains(&tool.name));
    Ok(if mode == "required" { ToolChoice::Required } else { ToolChoice::Auto })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(body: Value) -> Result<ToolUse, ApiError> {
        let mut fields = Fields::at(String::new(), body)?;
        let used = ToolUse::take(&mut fields, Form::Nested)?;
        fields.finish()?;
        Ok(used)
    }

    fn param(body: Value) -> Value {
        take(body).unwrap_err().body()["error"]["param"].clone()
    }

    fn weather(parameters: Value) -> Value {
        json!({"tools": [{"type": "function", "function": {"name": "weather", "parameters": parameters}}]})
    }

    #[test]
    fn tools_are_read_and_chosen() {
        let tools = json!([
            {"type": "function", "function": {"name": "a", "description": "A", "strict": null}, "cache_control": {}},
            {"type": "function", "function": {"name": "b.c-d_e", "parameters": {"type": "object", "properties": {"x": {"type": ["string", "null"]}}}}},
            {"type": "custom", "custom": {"name": "patch", "description": "P", "format": {"type": "text"}}},
        ]);
        let with = |choice: Value| take(json!({"tools": tools, "tool_choice": choice, "parallel_tool_calls": false}));
        let auto = with(Value::Null).unwrap();
        assert_eq!((auto.tools.len(), &auto.choice, auto.parallel), (3, &ToolChoice::Auto, false));
        assert!(auto.tools[2].custom && auto.callable().len() == 3);
        let shown = auto.for_template().unwrap();
        assert_eq!(
            shown[0],
            json!({"type": "function", "function": {"name": "a", "description": "A", "parameters": {"type": "object", "properties": {}}}})
        );
        assert_eq!(shown[2]["function"]["parameters"]["required"], json!(["input"]));
        let none = with(json!("none")).unwrap();
        assert_eq!((none.tools.len(), none.for_template()), (0, None));
        assert_eq!(with(json!("required")).unwrap().choice, ToolChoice::Required);
        let named = with(json!({"type": "custom", "custom": {"name": "patch"}})).unwrap();
        assert_eq!(named.choice, ToolChoice::Named("patch".into()));
        assert_eq!((named.callable().len(), named.callable()[0].name.as_str()), (1, "patch"));
        let allowed = json!({"mode": "auto", "tools": [{"type": "function", "function": {"name": "a"}}]});
        let allowed = with(json!({"type": "allowed_tools", "allowed_tools": allowed})).unwrap();
        assert_eq!((allowed.tools.len(), allowed.tools[0].name.as_str(), allowed.choice), (1, "a", ToolChoice::Auto));
        let nothing = take(json!({})).unwrap();
        assert_eq!((nothing.choice, nothing.parallel), (ToolChoice::None, true));
        assert!(take(json!({"tools": [], "tool_choice": "none"})).is_ok());
        let strict = json!({"tools": [{"type": "function", "function": {"name": "f", "strict": true}}]});
        assert!(take(strict).unwrap().relaxed().is_none());
        let relaxed = auto.relaxed().unwrap();
        assert_eq!(relaxed.tools[1].parameters["additionalProperties"], true);
        assert_eq!(relaxed.tools[2], auto.tools[2]);
    }

    #[test]
    fn forms_and_calls_share_an_answer_where_both_may_be() {
        let weather = weather(json!({"type": "object", "properties": {"city": {"type": "string"}}}));
        let form = |choice: Value, form: Option<GrammarSource>| {
            let mut body = weather.clone();
            body["tool_choice"] = choice;
            let form = form.map(|source| Asked { source, param: "response_format".into() });
            let asked = take(body).unwrap().form(&OutputFormat::default(), Thinking::Never, form);
            asked.map(|asked| asked.map(|asked| (asked.source, asked.param)))
        };
        let json = || Some(GrammarSource::JsonSchema { schema: r#"{"enum":[1]}"#.into(), compact: false });
        let Ok(Some((GrammarSource::Calls(auto), param))) = form(Value::Null, json()) else { panic!("both may be") };
        assert!(
            auto.starts_with("start: called | answered\nanswered: %json {\"enum\":[1]}\ncalled: (calls)\n"),
            "{auto}"
        );
        assert_eq!(param, "tools");
        let Ok(Some((GrammarSource::Calls(required), _))) = form(json!("required"), json()) else {
            panic!("a call must be")
        };
        assert!(required.starts_with("start: (calls)\n"), "{required}");
        assert_eq!(form(json!("none"), json()).unwrap().unwrap().1, "response_format");
        let error = form(Value::Null, Some(GrammarSource::Regex("a".into()))).unwrap_err();
        assert_eq!(error.body()["error"]["param"], "response_format");
        assert_eq!(form(json!("none"), None), Ok(None));
    }

    #[test]
    fn errors_name_the_place() {
        assert_eq!(param(json!({"tools": {}})), "tools");
        assert_eq!(param(json!({"tools": [1]})), "tools[0]");
        assert_eq!(param(json!({"tools": [{"function": {"name": "f"}}]})), "tools[0].type");
        assert_eq!(param(json!({"tools": [{"type": "web_search"}]})), "tools[0].type");
        assert_eq!(param(json!({"tools": [{"type": "function"}]})), "tools[0].function");
        assert_eq!(param(json!({"tools": [{"type": "function", "function": {}}]})), "tools[0].function.name");
        for name in ["", "a b", "ä", &"x".repeat(65)] {
            let tools = json!([{"type": "function", "function": {"name": name}}]);
            assert_eq!(param(json!({ "tools": tools })), "tools[0].function.name");
        }
        let one = json!({"type": "function", "function": {"name": "f"}});
        let same = json!({"type": "custom", "custom": {"name": "f"}});
        assert_eq!(param(json!({"tools": [one, same]})), "tools[1].custom.name");
        assert_eq!(param(json!({"tools": vec![one.clone(); 129]})), "tools");
        assert_eq!(param(json!({"tool_choice": "auto"})), "tool_choice");
        assert_eq!(param(json!({"tools": [one], "tool_choice": "any"})), "tool_choice");
        assert_eq!(param(json!({"tools": [one], "tool_choice": {"type": "tool"}})), "tool_choice.type");
        let absent = json!({"type": "function", "function": {"name": "g"}});
        assert_eq!(param(json!({"tools": [one], "tool_choice": absent})), "tool_choice.function.name");
        let allowed = json!({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [absent]}});
        assert_eq!(
            param(json!({"tools": [one], "tool_choice": allowed})),
            "tool_choice.allowed_tools.tools[0].function.name"
        );
        let format =
            |format: Value| param(json!({"tools": [{"type": "custom", "custom": {"name": "f", "format": format}}]}));
        assert_eq!(format(json!({"type": "xml"})), "tools[0].custom.format.type");
        assert_eq!(format(json!({"type": "grammar"})), "tools[0].custom.format.grammar");
        let grammar = |grammar: Value| format(json!({"type": "grammar", "grammar": grammar}));
        assert_eq!(grammar(json!({"definition": "a"})), "tools[0].custom.format.grammar.syntax");
        assert_eq!(grammar(json!({"syntax": "gbnf"})), "tools[0].custom.format.grammar.syntax");
        assert_eq!(grammar(json!({"syntax": "lark"})), "tools[0].custom.format.grammar.definition");
        for (syntax, definition) in [("lark", "start: %json {}"), ("regex", "("), ("regex", &"a".repeat(5000))] {
            let grammar = grammar(json!({"syntax": syntax, "definition": definition}));
            assert_eq!(grammar, "tools[0].custom.format.grammar.definition");
        }
    }

    #[test]
    fn schemas_are_checked() {
        let at = |parameters: Value| {
            let param = param(weather(parameters));
            param.as_str().unwrap().trim_start_matches("tools[0].function.parameters").to_owned()
        };
        assert_eq!(at(json!([])), "");
        assert_eq!(at(json!({"type": "string"})), ".type");
        assert_eq!(at(json!({"properties": {"x": {"type": "text"}}})), ".properties.x.type");
        assert_eq!(at(json!({"properties": {"x": {"type": ["string", 1]}}})), ".properties.x.type");
        assert_eq!(at(json!({"properties": ["x"]})), ".properties");
        assert_eq!(at(json!({"properties": {"x": "string"}})), ".properties.x");
        assert_eq!(at(json!({"properties": {"x": {"items": {"type": "any"}}}})), ".properties.x.items.type");
        assert_eq!(at(json!({"anyOf": [{"type": "object"}, {"type": "x"}]})), ".anyOf[1].type");
        assert_eq!(at(json!({"required": "x"})), ".required");
        assert_eq!(at(json!({"properties": {"x": {"enum": "a"}}})), ".properties.x.enum");
        let mut deep = json!({"type": "string"});
        for _ in 0..100 {
            deep = json!({"type": "array", "items": deep});
        }
        assert!(at(json!({"properties": {"x": deep}})).ends_with(".items"));
        let good = json!({"type": "object", "properties": {"type": {"type": "string"}, "x": true}, "additionalProperties": false,
            "$defs": {"y": {"enum": [1]}}, "required": ["x"], "x-more": 1});
        assert!(take(weather(good)).is_ok());
    }
}
