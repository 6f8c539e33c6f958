//! Custom tools whose text follows a grammar, and errors that name the tool at fault.
use serde_json::{Value, json};

use super::support::{Server, Setup, chat};
use super::{CHAT, ok};

/// A small form of the patches that coding agents write.
const PATCH: &str = "start: begin line+ end\nbegin: \"*** Begin\" LF\nend: \"*** End\"\nline: (\"+\" | \"-\") /(.*)/ LF\n\n%import common.LF\n";

async fn says(script: &'static str) -> Server {
    let setup = Setup { script: Some(script), template: Some("qwen3.jinja"), context_max: 8192, ..Setup::default() };
    Server::start(setup).await
}

fn custom(syntax: &str, definition: &str) -> Value {
    let grammar = json!({"syntax": syntax, "definition": definition});
    json!({"type": "custom", "custom": {"name": "patch", "format": {"type": "grammar", "grammar": grammar}}})
}

/// The input of the call that the model makes of the tool, which is forced: what does not follow the grammar cannot come.
async fn input(server: &Server, tool: &Value) -> String {
    let choice = json!({"type": "custom", "custom": {"name": "patch"}});
    let answer = ok(server, CHAT, chat(json!({"tools": [tool], "tool_choice": choice, "max_tokens": 120}))).await;
    let call = &answer["choices"][0]["message"]["tool_calls"][0];
    assert_eq!(call["type"], "custom", "{answer}");
    call["custom"]["input"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn texts_that_follow_their_grammar_come_through_unchanged() {
    const SAID: &str = "<tool_call>\n{\"name\": \"patch\", \"arguments\": {\"input\": \"*** Begin\\n+say(\\\"hi\\\\n\\\")\\n-x\\t= 'é'\\n*** End\"}}\n</tool_call>";
    let server = says(SAID).await;
    let text = "*** Begin\n+say(\"hi\\n\")\n-x\t= 'é'\n*** End";
    assert_eq!(input(&server, &custom("lark", PATCH)).await, text);
    assert_eq!(input(&server, &custom("regex", r#"^\*\*\* Begin\n([+-](.*)\n)+\*\*\* End$"#)).await, text);
    let flat = json!([{"type": "custom", "name": "patch", "format": {"type": "grammar", "syntax": "lark", "definition": PATCH}}]);
    let body = json!({"model": "acme/tiny", "input": "x", "tools": flat, "temperature": 0});
    let answer = ok(&server, "/v1/responses", body).await;
    assert_eq!(answer["output"][0]["type"], "custom_tool_call", "{answer}");
    assert_eq!(answer["output"][0]["input"], text);
}

#[tokio::test]
async fn texts_that_would_not_follow_it_are_made_to() {
    // It would say something else after the head of a call.
    let server =
        says("<tool_call>\n{\"name\": \"patch\", \"arguments\": {\"input\": \"nothing of the kind\"}}\n</tool_call>")
            .await;
    let written = input(&server, &custom("lark", "start: \"set \" /[a-c]/ \" = \\\"\" /[0-9]{2}/ \"\\\"\"")).await;
    let number =
        written.strip_prefix("set ").and_then(|rest| rest.get(1..)).and_then(|rest| rest.strip_prefix(" = \""));
    let digits = number.and_then(|rest| rest.strip_suffix('"')).unwrap();
    assert!(digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit()), "{written}");
    let written = input(&server, &custom("regex", "(up|down) [1-9]")).await;
    assert!(written.starts_with("up ") || written.starts_with("down "), "{written}");
}

#[tokio::test]
async fn errors_name_the_tool_at_fault() {
    let server = says("x").await;
    let function = |name: &str, strict: bool, parameters: Value| json!({"type": "function", "function": {"name": name, "strict": strict, "parameters": parameters}});
    let good = json!({"type": "object", "properties": {"x": {"type": "integer"}}});
    let bad = json!({"type": "object", "properties": {"x": {"not": {}}}});
    let refused = async |extra: Value| {
        let (status, body) = server.ask(CHAT, chat(extra)).await;
        assert_eq!(status, 400, "{body}");
        (body["error"]["param"].as_str().unwrap().to_owned(), body["error"]["code"].as_str().unwrap().to_owned())
    };
    let at = |place: &str, code: &str| (place.to_owned(), code.to_owned());
    let tools = json!([function("a", true, good.clone()), function("b", true, bad.clone())]);
    assert_eq!(refused(json!({"tools": tools})).await, at("tools[1].function.parameters", "unsupported_schema"));
    let tools = json!([function("a", true, good.clone()), custom("lark", "start: other")]);
    assert_eq!(
        refused(json!({"tools": tools})).await,
        at("tools[1].custom.format.grammar.definition", "invalid_schema")
    );
    // What is not strict is not to blame.
    let tools = json!([function("a", false, bad), custom("regex", "a(?=b)")]);
    assert_eq!(
        refused(json!({"tools": tools})).await,
        at("tools[1].custom.format.grammar.definition", "invalid_schema")
    );
    let format = json!({"type": "json_schema", "json_schema": {"name": "f", "schema": {"not": {}}}});
    let tools = json!([function("a", true, good)]);
    assert_eq!(
        refused(json!({"tools": tools, "response_format": format})).await,
        at("response_format", "unsupported_schema")
    );
    let tools =
        json!([{"name": "a", "strict": true, "input_schema": {"type": "object", "properties": {"x": {"not": {}}}}}]);
    let messages =
        json!({"model": "acme/tiny", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}], "tools": tools});
    let (status, body) = server.ask("/v1/messages", messages).await;
    assert_eq!(status, 400);
    assert!(body["error"]["message"].as_str().unwrap().contains("`tools[0].input_schema`"), "{body}");
}
