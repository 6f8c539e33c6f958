//! The grammar that an answer with tools must follow, as a text in the dialect of Lark that llguidance reads.
//!
//! With a required call the answer is constrained from its first token; else from where a call opens. A call's wrapper is
//! spelled exactly; its arguments are a `%json` block with the tool's own schema, so that references inside it still hold, or
//! for a custom tool with a grammar, that grammar as a `%lark` block inside the string that holds the tool's text.
use std::fmt::Write;

use serde_json::Value;

use super::{CallFormat, OutputFormat, THINK, THINK_END, Thinking, Tool, ToolChoice};

/// The grammar for these tools, or `None` where there is nothing to constrain: no tools, or calls that may not be made.
/// `parallel`: more than one call may be made.
#[must_use]
pub fn call_grammar(
    format: &OutputFormat,
    tools: &[Tool],
    choice: &ToolChoice,
    parallel: bool,
    thinking: Thinking,
) -> Option<String> {
    let named = |tool: &&Tool| !matches!(choice, ToolChoice::Named(name) if *name != tool.name);
    let tools: Vec<&Tool> = tools.iter().filter(named).collect();
    if tools.is_empty() || *choice == ToolChoice::None {
        return None;
    }
    let is_named = matches!(choice, ToolChoice::Named(_));
    let required = is_named || *choice == ToolChoice::Required;
    let several = parallel && !is_named;
    let mut grammar = Grammar { format, text: String::new() };
    grammar.answer(&tools, required, several, thinking);
    grammar.calls(&tools);
    Some(grammar.text)
}

struct Grammar<'f> {
    format: &'f OutputFormat,
    text: String,
}

impl Grammar<'_> {
    fn rule(&mut self, name: &str, body: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{name}: {body}");
    }

    /// A marker: the control token if it is one, else its text.
    fn marker(&self, text: &str) -> String {
        self.format.control(text).map_or_else(|| literal(text), |id| format!("<[{id}]>"))
    }

    /// The rules above `one_call`: thoughts, text and how many calls there are.
    fn answer(&mut self, tools: &[&Tool], required: bool, several: bool, thinking: Thinking) {
        let thought = match thinking {
            Thinking::Never => "",
            Thinking::MayOpen => "thought? ",
            Thinking::Open => "thought_rest ",
        };
        let (open, between, close) = match self.format.calls {
            CallFormat::Hermes => (self.marker("<tool_call>"), r#""\n""#, self.marker("</tool_call>")),
            CallFormat::Mistral => (self.marker("[TOOL_CALLS]"), "", String::new()),
            CallFormat::Llama | CallFormat::Generic => (String::new(), "", String::new()),
        };
        let more = if several { r#"("," " " one_call)*"# } else { "" };
        let framed = match self.format.calls {
            CallFormat::Hermes => format!("{between} one_call {between} {close}"),
            CallFormat::Mistral => format!(r#""[" one_call {more} "]""#),
            // The bracket and the first call's head are one literal: beside free text a lexer decides literal by literal.
            CallFormat::Generic if several => format!(r#"one_call | first_of_many {more} "]""#),
            CallFormat::Llama if several => r#"one_call (";" " "? one_call)*"#.to_owned(),
            CallFormat::Llama | CallFormat::Generic => "one_call".to_owned(),
        };
        let again = several && self.format.calls == CallFormat::Hermes;
        let start = match (required, open.as_str()) {
            (true, "") => "calls".to_owned(),
            (true, _) if again => format!(r#"{open} calls ("\n" {open} calls)*"#),
            (true, _) => format!("{open} calls"),
            // JSON that begins as a call goes on as one; any other text is free.
            (false, "") => "(calls | PLAIN)?".to_owned(),
            (false, _) if again => "(opened calls)* TEXT?".to_owned(),
            (false, _) => "opened calls | TEXT?".to_owned(),
        };
        self.rule("start", &format!("{thought}({start})"));
        self.rule("calls", &framed);
        if !required && !open.is_empty() {
            if open.starts_with('<') {
                self.rule("opened", &format!("TEXT? {open}"));
            } else {
                self.rule("opened[lazy]", &format!("TEXT {open}"));
            }
        }
        if !required && open.is_empty() {
            let names: Vec<String> = tools.iter().map(|tool| tool.name.replace('.', "\\.")).collect();
            let array = if framed.contains("first_of_many") { r"\[?" } else { "" };
            let call = format!(r#"{array}\{{"name": "({})"(.|\n)*"#, names.join("|"));
            self.rule("PLAIN", &format!(r"/(.|\n)+/ & ~/{call}/"));
        }
        self.thoughts(thinking);
        if self.text.contains("TEXT") {
            self.rule("TEXT", r"/(.|\n)*/");
        }
    }

    fn thoughts(&mut self, thinking: Thinking) {
        if thinking == Thinking::Never {
            return;
        }
        if thinking == Thinking::MayOpen {
            let open = self.marker(THINK);
            self.rule("thought", &format!("{open} thought_rest"));
        }
        let close = self.marker(THINK_END);
        if close.starts_with('<') {
            self.rule("thought_rest", &format!("TEXT? {close} SPACE?"));
        } else {
            self.rule("thought_end[lazy]", &format!("TEXT {close}"));
            self.rule("thought_rest", "thought_end SPACE?");
        }
        self.rule("SPACE", r"/\n{1,2}/");
    }

    /// `one_call`: one rule per tool, and its arguments' schema.
    fn calls(&mut self, tools: &[&Tool]) {
        let names = |prefix: &str| (0..tools.len()).map(|index| format!("{prefix}_{index}")).collect::<Vec<_>>();
        let (single, listed) = (names("call"), names("listed"));
        let has_lists = self.text.contains("first_of_many");
        self.rule("one_call", &single.join(" | "));
        if has_lists {
            self.rule("first_of_many", &listed.join(" | "));
        }
        let key = self.format.calls.arguments_key();
        for (index, tool) in tools.iter().enumerate() {
            let head = format!("{{\"name\": {}, \"{key}\": ", Value::from(tool.name.as_str()));
            self.rule(&single[index], &format!("{} arguments_{index} \"}}\"", literal(&head)));
            if has_lists {
                let head = format!("[{head}");
                self.rule(&listed[index], &format!("{} arguments_{index} \"}}\"", literal(&head)));
            }
            let arguments = match &tool.input {
                None => format!("%json {}", tool.arguments()),
                // A grammar of its own, so that its rules' names and what it ignores end with it.
                Some(input) => {
                    format!("{} %lark {{\n{input}\n}} {}", literal("{\"input\": \""), literal("\"}"))
                }
            };
            self.rule(&format!("arguments_{index}"), &arguments);
        }
    }
}

/// A string literal: Lark's escapes are JSON's.
fn literal(text: &str) -> String {
    Value::from(text).to_string()
}
