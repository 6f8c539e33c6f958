//! What tools cost outside the forward pass: the parser per token, and a prompt with 20 tools.
//!
//! `cargo bench --bench tools`
use std::path::Path;
use std::sync::Arc;

use divan::Bencher;
use divan::counter::ItemsCount;
use serde_json::{Map, Value, json};
use wick::text::{CallFormat, ChatInput, OutputParser, TextTools, Thinking, Tool, call_grammar};

fn main() {
    divan::main();
}

fn tools(count: usize) -> Arc<[Tool]> {
    let schema = json!({"type": "object", "required": ["path"], "properties": {
        "path": {"type": "string", "description": "A file, relative to the repository"},
        "line": {"type": "integer", "minimum": 1, "description": "Where to begin"},
        "mode": {"type": "string", "enum": ["read", "write"]},
    }});
    let parameters: Map<String, Value> = schema.as_object().cloned().unwrap_or_default();
    let tool = |index| Tool {
        name: format!("tool_{index}"),
        description: Some("Reads or writes a file of the repository, from a line on.".into()),
        parameters: parameters.clone(),
        strict: false,
        custom: false,
        input: None,
    };
    (0..count).map(tool).collect()
}

/// Pieces of four characters, about a token each.
fn pieces(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    chars.chunks(4).map(|piece| piece.iter().collect()).collect()
}

fn parse(bencher: Bencher<'_, '_>, text: &str) {
    let (pieces, tools) = (pieces(text), tools(20));
    bencher.counter(ItemsCount::new(pieces.len())).bench_local(|| {
        let mut parser = OutputParser::new(Some((CallFormat::Hermes, Arc::clone(&tools))), Thinking::MayOpen);
        let segments: usize = pieces.iter().map(|piece| parser.push(piece).len()).sum();
        segments + parser.finish().len()
    });
}

/// Items are tokens.
#[divan::bench]
fn parse_prose(bencher: Bencher<'_, '_>) {
    parse(bencher, &"<think>\nA plan of some words.\n</think>\n\nPlain text, with a < and\nsome `code`. ".repeat(40));
}

#[divan::bench]
fn parse_calls(bencher: Bencher<'_, '_>) {
    let call = "<tool_call>\n{\"name\": \"tool_17\", \"arguments\": {\"path\": \"src/text/output/mod.rs\", \"line\": 12}}\n</tool_call>\n";
    parse(bencher, &call.repeat(20));
}

fn load(template: &str) -> TextTools {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let template = root.join("golden/templates/src").join(template);
    TextTools::load(&root.join("fixtures/tiny-tokenizer"), Some(&template)).expect("the fixtures load")
}

/// A template that knows tools, and one to which wick explains them.
#[divan::bench(args = ["qwen3.jinja", "chatml.jinja"])]
fn render_20_tools(bencher: Bencher<'_, '_>, template: &str) {
    let text = load(template);
    let input = ChatInput {
        messages: vec![json!({"role": "user", "content": "Read the file."})],
        tools: Some(tools(20).iter().map(Tool::for_template).collect()),
        add_generation_prompt: true,
        ..ChatInput::default()
    };
    bencher.bench_local(|| text.render_chat(&input).expect("the chat fits the template").text.len());
}

#[divan::bench]
fn grammar_of_20_tools(bencher: Bencher<'_, '_>) {
    let (text, tools) = (load("qwen3.jinja"), tools(20));
    let choice = wick::text::ToolChoice::Required;
    bencher.bench_local(|| call_grammar(&text.output, &tools, &choice, true, Thinking::MayOpen).map(|text| text.len()));
}
