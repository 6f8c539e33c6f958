//! What Responses says of tools and calls that a chat does not: namespaces, hints, and what a model is not shown.
use std::collections::HashMap;

use serde_json::Value;

use super::error::ApiError;
use super::fields::Fields;
use super::tools::name;
use crate::text::Tool;

/// Tools of OpenAI's own that a model may use and is not shown here. Codex sends them always, and works without: refusing
/// them would refuse Codex. `x-ignored-params` names them.
pub(crate) const LEFT_OUT: &str = "web_search";

/// Between a namespace's name and a tool's, in the one name by which a model knows the tool.
const DOT: char = '.';

/// Hints of a tool's definition that say how it is loaded and what it returns: here a model sees all tools from the start.
pub(crate) const HINTS: [&str; 2] = ["defer_loading", "output_schema"];

/// The tools that stand in namespaces: full name → length of its namespace's name.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Namespaces(HashMap<String, usize>);

impl Namespaces {
    /// A called tool's namespace, if it has one, and its name there.
    pub(crate) fn split(&self, called: String) -> (Option<String>, String) {
        match self.0.get(&called) {
            Some(length) => (Some(called[..*length].to_owned()), called[length + DOT.len_utf8()..].to_owned()),
            None => (None, called),
        }
    }

    /// Notes a tool that stands in a namespace.
    pub(crate) fn add(&mut self, tool: &Tool, namespace: &Namespace) {
        self.0.insert(tool.name.clone(), namespace.name.len());
    }
}

/// The one name by which a model knows a tool.
pub(crate) fn full_name(namespace: Option<&str>, name: String) -> String {
    namespace.map_or(name.clone(), |namespace| format!("{namespace}{DOT}{name}"))
}

/// Tools that belong together.
pub(crate) struct Namespace {
    name: String,
    description: Option<String>,
}

impl Namespace {
    /// Reads a tool of the type `namespace`; with it come the tools within and their paths.
    pub(crate) fn take(path: String, item: Value) -> Result<(Self, Vec<(String, Value)>), ApiError> {
        let mut fields = Fields::at(path, item)?;
        fields.string("type")?;
        let name = name(&mut fields)?;
        let description = fields.string("description")?.filter(|text| !text.is_empty());
        let path = fields.path("tools");
        let tools = fields.array("tools")?.ok_or_else(|| ApiError::Missing { param: path.clone() })?;
        fields.finish()?;
        let tools = tools.into_iter().enumerate().map(|(index, tool)| (format!("{path}[{index}]"), tool));
        Ok((Self { name, description }, tools.collect()))
    }

    /// A tool within, as a model sees it. What the namespace is for is said once, with its first tool.
    pub(crate) fn around(&self, tool: Tool, index: usize) -> Tool {
        let about = self.description.iter().filter(|_| index == 0).cloned();
        let texts: Vec<String> = about.chain(tool.description).collect();
        Tool {
            name: full_name(Some(&self.name), tool.name),
            description: (!texts.is_empty()).then(|| texts.join("\n\n")),
            ..tool
        }
    }
}

/// What a tool's definition says of how it is called and loaded.
pub(crate) fn hints(tool: &mut Fields) -> Result<(), ApiError> {
    waited_for(tool)?;
    let path = tool.path("allowed_callers");
    if let Some(callers) = tool.array("allowed_callers")?
        && !callers.iter().any(|caller| caller == "direct")
    {
        return Err(ApiError::Unsupported {
            param: path,
            hint: " without `direct`: only the model itself calls tools",
        });
    }
    for hint in HINTS {
        tool.take(hint);
    }
    Ok(())
}

/// What an item says of a call beside what was called: the tool's namespace is given.
pub(crate) fn call_hints(item: &mut Fields) -> Result<Option<String>, ApiError> {
    waited_for(item)?;
    if let Some(caller) = item.take("caller") {
        let mut caller = Fields::at(item.path("caller"), caller)?;
        if caller.string("type")?.is_none_or(|kind| kind != "direct") {
            let hint = ", except `direct`: only the model itself calls tools";
            return Err(ApiError::Unsupported { param: caller.path("type"), hint });
        }
        caller.finish()?;
    }
    item.string("namespace")
}

fn waited_for(fields: &mut Fields) -> Result<(), ApiError> {
    if fields.bool("async")?.unwrap_or(false) {
        let hint = " as true: a model here waits for the results of its calls";
        return Err(ApiError::Unsupported { param: fields.path("async"), hint });
    }
    Ok(())
}
