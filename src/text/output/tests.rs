use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::text::TextTools;

fn tool(name: &str) -> Tool {
    let schema = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
    let Value::Object(parameters) = schema else { panic!() };
    Tool { name: name.into(), description: None, parameters, strict: false, custom: false, input: None }
}

fn tools() -> Arc<[Tool]> {
    vec![tool("weather"), tool("time"), Tool::custom("patch".into(), None)].into()
}

/// Content, reasoning, calls.
type Read = (String, String, Vec<(String, String)>);

fn fold(segments: Vec<Segment>) -> Read {
    let (mut content, mut reasoning, mut calls, mut open) = (String::new(), String::new(), Vec::new(), false);
    for segment in segments {
        match segment {
            Segment::Content(text) => content.push_str(&text),
            Segment::Reasoning(text) => reasoning.push_str(&text),
            Segment::CallBegin { name, .. } => {
                assert!(!open, "a call inside a call");
                open = true;
                calls.push((name, String::new()));
            }
            Segment::CallArguments(text) => {
                assert!(open && !text.is_empty());
                calls.last_mut().unwrap().1.push_str(&text);
            }
            Segment::CallEnd => {
                assert!(open, "an end without a call");
                open = false;
            }
        }
    }
    assert!(!open, "a call without an end");
    (content, reasoning, calls)
}

fn pieces<'t>(format: Option<CallFormat>, thinking: Thinking, pieces: impl IntoIterator<Item = &'t str>) -> Read {
    let mut parser = OutputParser::new(format.map(|format| (format, tools())), thinking);
    let mut segments: Vec<Segment> = pieces.into_iter().flat_map(|piece| parser.push(piece)).collect();
    segments.extend(parser.finish());
    fold(segments)
}

fn read(format: CallFormat, text: &str) -> Read {
    pieces(Some(format), Thinking::MayOpen, [text])
}

fn calls(format: CallFormat, text: &str) -> Vec<(String, String)> {
    let (content, reasoning, calls) = read(format, text);
    assert_eq!((content.as_str(), reasoning.as_str()), ("", ""), "{text}");
    calls
}

fn pair(name: &str, arguments: &str) -> (String, String) {
    (name.into(), arguments.into())
}

#[test]
fn calls_of_every_format() {
    let weather = vec![pair("weather", r#"{"city": "Bern"}"#)];
    let both = vec![pair("weather", r#"{"city": "Bern"}"#), pair("time", "{}")];
    use CallFormat::{Generic, Hermes, Llama, Mistral};
    for (format, text, expected) in [
        (Hermes, "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Bern\"}}\n</tool_call>", &weather),
        (Hermes, "<tool_call>{\"arguments\":1}</tool_call>", &vec![]),
        (
            Hermes,
            "\n<tool_call>{\"name\":\"weather\",\"arguments\":{\"city\": \"Bern\"}}</tool_call>\n<tool_call>{\"name\":\"time\"}</tool_call>\n",
            &both,
        ),
        // Missing braces and markers, doubled braces, several calls in one frame.
        (Hermes, "<tool_call>{\"name\":\"weather\",\"arguments\":{\"city\": \"Bern\"}</tool_call>", &weather),
        (Hermes, "<tool_call>{{\"name\":\"weather\",\"arguments\":{\"city\": \"Bern\"}}}</tool_call>", &weather),
        (Hermes, "<tool_call>{\"name\":\"weather\",\"arguments\":{\"city\": \"Bern\"}}", &weather),
        (
            Hermes,
            "<tool_call>{\"name\":\"weather\",\"arguments\":{\"city\": \"Bern\"}}\n<tool_call>{\"name\":\"time\",\"arguments\":{}}",
            &both,
        ),
        (
            Hermes,
            "<tool_call>[{\"name\":\"weather\",\"arguments\":{\"city\": \"Bern\"}}, {\"name\":\"time\",\"arguments\":null}]</tool_call>",
            &both,
        ),
        // Without the marker, and in a fence.
        (Hermes, "{\"name\":\"weather\",\"arguments\":{\"city\": \"Bern\"}}", &weather),
        (Hermes, "```json\n{\"name\":\"weather\",\"arguments\":{\"city\": \"Bern\"}}\n```", &weather),
        (Generic, "[{\"name\":\"weather\",\"arguments\":{\"city\": \"Bern\"}},\n {\"name\":\"time\"}]", &both),
        (
            Generic,
            "{\"type\": \"function\", \"name\":\"weather\",\"arguments\": \"{\\\"city\\\": \\\"Bern\\\"}\"}",
            &weather,
        ),
        (Llama, "{\"name\": \"weather\", \"parameters\": {\"city\": \"Bern\"}}", &weather),
        (
            Llama,
            "<|python_tag|>{\"name\": \"weather\", \"parameters\": {\"city\": \"Bern\"}}; {\"name\": \"time\", \"parameters\": {}}",
            &both,
        ),
        (Llama, "<|python_tag|>weather.call(city=\"Bern\")", &vec![pair("weather", r#"{"city":"Bern"}"#)]),
        (
            Mistral,
            "[TOOL_CALLS] [{\"name\": \"weather\", \"arguments\": {\"city\": \"Bern\"}, \"id\": \"abc\"}, {\"name\": \"time\", \"arguments\": {}}]",
            &both,
        ),
        (Mistral, "[TOOL_CALLS]weather[ARGS]{\"city\": \"Bern\"}[TOOL_CALLS]time[CALL_ID]x1[ARGS]{}", &both),
        (Mistral, "[TOOL_CALLS]weather{\"city\": \"Bern\"}", &weather),
    ] {
        let (content, _, found) = read(format, text);
        if expected.is_empty() {
            assert_eq!((content.as_str(), found.as_slice()), (text, &[][..]));
        } else {
            assert_eq!((content.as_str(), &found), ("", expected), "{text}");
        }
    }
}

#[test]
fn text_around_calls_is_content_and_spaces_are_not() {
    let call = "<tool_call>\n{\"name\": \"time\", \"arguments\": {}}\n</tool_call>";
    let (content, _, calls) = read(CallFormat::Hermes, &format!(" Let me look.\n\n{call}\n{call}\n"));
    assert_eq!((content.as_str(), calls.len()), (" Let me look.", 2));
    let (content, _, calls) = read(CallFormat::Hermes, &format!("{call}\nDone. [1] x"));
    assert_eq!((content.as_str(), calls.len()), ("Done. [1] x", 1));
    // JSON without a marker may follow text, on a line of its own.
    for json in ["{\"name\": \"time\"}", "```json\n{\n  \"name\": \"time\"\n}\n```", "[{\"name\": \"time\"}]"] {
        let (content, _, calls) = read(CallFormat::Hermes, &format!("Let me check.\n{json}\n"));
        assert_eq!((content.as_str(), calls.len()), ("Let me check.", 1), "{json}");
        let inline = format!("Say {json}");
        assert_eq!(read(CallFormat::Hermes, &inline.replace('\n', " ")).2.len(), 0, "{json}");
    }
    let (content, _, calls) = read(CallFormat::Hermes, "{\"name\": \"time\"} [1] is the source");
    assert_eq!((content.as_str(), calls.len()), ("[1] is the source", 1));
}

#[test]
fn nothing_is_lost() {
    for text in [
        "",
        " \n ",
        "plain < text <tool_cal",
        "<tool_call>\nnot json</tool_call> more",
        "<tool_call>",
        "<tool_call></tool_call>",
        "<tool_call>{\"name\": \"weather\", \"arg",
        "<tool_call>{\"name\": \"unknown\", \"arguments\": {}}</tool_call>",
        "<tool_call>{'name': 'weather'}</tool_call>",
        "{\"city\": \"Bern\"}",
        "{\"name\": \"Bern\", \"arguments\": 1}",
        "[1, 2, 3]",
        "[{\"x\": 1}]",
        "```json\n{\"name\": \"Bern\"}\n```",
        "```rust\nfn main() {}\n```",
        "```",
        "<think",
        "x <think>y</think>",
        "Like this:\n```json\n{\"name\": \"x\"}\n```\nand\n[{\"a\": 1}]\n{\n{\n{ \n[ {",
        "{\"name\": \"weather\", \"x\": {\n{\"name\": 1",
    ] {
        let (content, reasoning, calls) = read(CallFormat::Hermes, text);
        assert_eq!((content.as_str(), reasoning.as_str(), calls.len()), (text, "", 0));
    }
    for text in ["<|python_tag|>print(1)\n", "<|python_tag|>weather.call(city=Bern)", "<|python_tag|>"] {
        assert_eq!(read(CallFormat::Llama, text).0, text);
    }
    for text in ["[TOOL_CALLS] nothing", "[TOOL_CALLS]unknown[ARGS]{}", &format!("[TOOL_CALLS]{}", " x".repeat(600))] {
        assert_eq!(read(CallFormat::Mistral, text).0, text);
    }
    // A frame that fails does not hide the next.
    let (content, _, calls) = read(CallFormat::Hermes, "<tool_call>oops <tool_call>{\"name\": \"time\"}</tool_call>");
    assert_eq!((content.as_str(), calls.len()), ("<tool_call>oops", 1));
}

/// Arguments that have begun are what the model wrote, whole or not.
#[test]
fn broken_arguments_stay_arguments() {
    let head = "<tool_call>{\"name\": \"weather\", \"arguments\": ";
    for arguments in
        ["{\"city\": \"Be", "{'city': Bern}", "{\"city\": \"a\nb\\\"</tool_call>\"}", "[1]", "{\"a\": {\"b\": [}"]
    {
        assert_eq!(calls(CallFormat::Hermes, &format!("{head}{arguments}")), [pair("weather", arguments)]);
    }
    assert_eq!(calls(CallFormat::Hermes, &format!("{head}\"half")), [pair("weather", "\"half")]);
    assert_eq!(calls(CallFormat::Hermes, &format!("{head}{{\"a\": 1</tool_call>")), [pair("weather", "{\"a\": 1")]);
}

#[test]
fn custom_tools_get_their_text() {
    let head = "{\"name\": \"patch\", \"arguments\": ";
    for (arguments, text) in [
        ("{\"input\": \"*** a\\n\\u00e9\"}}", "*** a\né"),
        ("\"plain\"}", "plain"),
        ("{\"diff\": \"x\"}}", "{\"diff\": \"x\"}"),
        ("{\"input\": \"cut", "{\"input\": \"cut"),
    ] {
        assert_eq!(calls(CallFormat::Generic, &format!("{head}{arguments}")), [pair("patch", text)]);
    }
    assert_eq!(
        calls(CallFormat::Generic, "{\"name\": \"patch\"}"),
        [pair("patch", "")].map(|(name, _)| (name, String::new()))
    );
}

#[test]
fn thoughts_are_told_apart() {
    let read = |thinking, text: &str| {
        let (content, reasoning, calls) = pieces(Some(CallFormat::Hermes), thinking, [text]);
        (content, reasoning, calls.len())
    };
    let expect = |content: &str, reasoning: &str, calls| (content.to_owned(), reasoning.to_owned(), calls);
    use Thinking::{MayOpen, Never, Open};
    assert_eq!(read(MayOpen, "<think>\nplan\n\nmore\n</think>\n\nHi."), expect("Hi.", "plan\n\nmore", 0));
    assert_eq!(read(MayOpen, " <think>\n\n</think>\n\nHi."), expect("Hi.", "", 0));
    assert_eq!(read(Open, "\nplan</think>Hi."), expect("Hi.", "plan", 0));
    assert_eq!(read(Open, "plan </thin"), expect("", "plan </thin", 0));
    assert_eq!(read(Open, "plan\n"), expect("", "plan", 0));
    assert_eq!(read(Never, "<think>x</think>"), expect("<think>x</think>", "", 0));
    let call = "<tool_call>{\"name\": \"time\"}</tool_call>";
    assert_eq!(read(MayOpen, &format!("<think>use {call}</think>\n{call}")), expect("", &format!("use {call}"), 1));
    assert_eq!(read(Open, "</think>\n{\"name\": \"time\"}"), expect("", "", 1));
    let without_tools = pieces(None, Open, ["a\n", "</thi", "nk>\n\nb ", " <think>"]);
    assert_eq!(without_tools, ("b  <think>".into(), "a".into(), vec![]));
}

/// A client sees a call's name before its arguments are complete, and the arguments as they come.
#[test]
fn calls_are_streamed() {
    let mut parser = OutputParser::new(Some((CallFormat::Hermes, tools())), Thinking::Never);
    assert_eq!(parser.push("Hi <tool"), [Segment::Content("Hi".into())]);
    assert_eq!(parser.push("_call>{\"name\": \"weather\","), []);
    assert!(!parser.has_called());
    let begin = Segment::CallBegin { name: "weather".into(), custom: false };
    assert_eq!(parser.push(" \"arguments\": {\"ci"), [begin, Segment::CallArguments("{\"ci".into())]);
    assert!(parser.has_called());
    assert_eq!(parser.push("ty\": 1}"), [Segment::CallArguments("ty\": 1}".into())]);
    assert_eq!(parser.push("}"), [Segment::CallEnd]);
    assert_eq!(parser.push("\n</tool_call>\n"), []);
    assert_eq!(parser.finish(), []);
}

#[test]
fn endless_spaces_and_false_starts_are_linear() {
    for unit in [
        " ",
        "<tool_call>",
        "<tool_call>{\"id\": \"",
        "{",
        "[",
        "\n{\"id\": ",
        "\n{",
        "{\"name\": \"time\"}, ",
        "```json\n",
        "<tool_call>{\"name\": \"time\", \"arguments\": {",
    ] {
        let text = unit.repeat(200_000 / unit.len());
        let begun = std::time::Instant::now();
        let (content, _, calls) = read(CallFormat::Hermes, &text);
        assert!(begun.elapsed().as_secs() < 5, "{unit:?}");
        assert_eq!(content.is_empty(), !calls.is_empty(), "{unit:?}");
    }
}

fn fragments() -> impl Strategy<Value = String> {
    let parts = vec![
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        "<|python_tag|>",
        "<think>",
        "</think>",
        "[ARGS]",
        "```json\n",
        "```",
        "{\"name\": \"weather\", \"arguments\": {\"city\": \"Zürich 😀\"}}",
        "{\"name\": \"time\"",
        "{\"name\": \"patch\", \"arguments\": ",
        "{\"input\": \"a\\nb\"}}",
        "{",
        "}",
        "[",
        "]",
        "\"",
        "\\",
        ",",
        ";",
        ":",
        "\n",
        "  ",
        "weather",
        ".call(city=\"x\")",
        "é😀",
        "x",
        "null",
        "\"parameters\": ",
        "\"id\": \"1\"",
        "</think>\n\n",
    ];
    proptest::collection::vec(proptest::sample::select(parts), 0..14).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// The answer is the fold of the stream, whatever the pieces are; characters are the detokenizer's smallest ones.
    #[test]
    fn every_split_gives_the_same(
        text in fragments(),
        format in proptest::sample::select(vec![None, Some(CallFormat::Hermes), Some(CallFormat::Llama), Some(CallFormat::Mistral), Some(CallFormat::Generic)]),
        thinking in proptest::sample::select(vec![Thinking::Never, Thinking::MayOpen, Thinking::Open]),
        cuts in proptest::collection::vec(0usize..400, 0..12),
    ) {
        let whole = pieces(format, thinking, [text.as_str()]);
        let mut cuts: Vec<usize> = cuts.into_iter().filter(|&cut| cut <= text.len() && text.is_char_boundary(cut)).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let split = pieces(format, thinking, cuts.windows(2).map(|ends| &text[ends[0]..ends[1]]));
        prop_assert_eq!(&split, &whole);
        let chars: Vec<String> = text.chars().map(String::from).collect();
        prop_assert_eq!(&pieces(format, thinking, chars.iter().map(String::as_str)), &whole);
        // Every character that is no marker or spacing is somewhere.
        let (content, reasoning, calls) = whole;
        let kept: String = [content, reasoning].into_iter().chain(calls.into_iter().map(|(_, arguments)| arguments)).collect();
        for c in ['é', 'x'] {
            let has = |text: &str| text.matches(c).count();
            prop_assert!(has(&kept) <= has(&text));
        }
        if format.is_none() && thinking == Thinking::Never {
            prop_assert_eq!(kept, text);
        }
    }
}

fn source(name: &str) -> TextTools {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let template = root.join("golden/templates/src").join(name);
    TextTools::load(&root.join("fixtures/tiny-tokenizer"), Some(&template)).unwrap()
}

/// Agents send them after the user's message. Templates that have no place for them refuse the chat otherwise.
#[test]
fn late_systems_are_users_where_the_template_takes_none() {
    let say = |role: &str, text: &str| json!({"role": role, "content": text});
    let first = json!([{"type": "text", "text": "First"}, {"type": "text", "text": "and more."}]);
    let messages = vec![
        json!({"role": "system", "content": first}),
        say("system", "Second."),
        say("user", "a"),
        say("system", "Later."),
        say("user", "b"),
        say("assistant", "c"),
        say("system", "Last."),
    ];
    let input = ChatInput { messages, add_generation_prompt: true, ..ChatInput::default() };
    let render = |name: &str| source(name).render_chat(&input).unwrap().plain();
    let gemma = "<start_of_turn>user\nFirst\nand more.\n\nSecond.\n\na\n\nLater.\n\nb<end_of_turn>\n\
        <start_of_turn>model\nc<end_of_turn>\n<start_of_turn>user\nLast.<end_of_turn>\n<start_of_turn>model\n";
    assert_eq!(render("gemma3.jinja"), gemma);
    let mistral = "[INST] a\n\nLater.\n\nb[/INST] c<|im_end|>[INST] First\nand more.\n\nSecond.\n\nLast.[/INST]";
    assert_eq!(render("mistral-v0.3.jinja"), mistral);
    // It prints a `bos_token`, which the fixture lacks.
    let mut with_bos = input.clone();
    with_bos.kwargs.insert("bos_token".into(), "<s>".into());
    let llama = "<s>[INST] <<SYS>>\nFirst\nand more.\n\nSecond.\n<</SYS>>\n\na\n\nLater.\n\nb [/INST] c <|im_end|>\
        <s>[INST] Last. [/INST]";
    assert_eq!(source("llama2.jinja").render_chat(&with_bos).unwrap().plain(), llama);
    // Where the template takes them, they stay what they are.
    for (name, turn) in
        [("qwen3.jinja", "system\nLater.<|im_end|>"), ("llama3.1.jinja", "system<|end_header_id|>\n\nLater.")]
    {
        let text = render(name);
        assert!(source(name).output.late_systems && text.contains(turn), "{name}: {text}");
    }
}

/// Between a tool's results and what the user says next, too.
#[test]
fn late_systems_come_after_results() {
    let mut input = rounds();
    let say = |role: &str, text: &str| json!({"role": role, "content": text});
    input.messages.splice(4..4, [say("system", "Be quick.")]);
    let render = |name: &str, input: &ChatInput| source(name).render_chat(input).unwrap().plain();
    let gemma = "user\nResults of the tools:\nweather: sun\nweather: rain\n\nBe quick.<end_of_turn>";
    let text = render("gemma3.jinja", &input);
    assert!(text.contains(gemma), "{text}");
    let text = render("mistral-v0.3.jinja", &input);
    assert!(text.contains("{\"content\": rain\n\nBe quick., \"call_id\": \"0000000c2\"}"), "{text}");
    // What the user says after a result needs no system to be taken in.
    input.messages[4] = say("user", "Hurry.");
    let text = render("gemma3.jinja", &input);
    assert!(text.contains(&gemma.replace("Be quick.", "Hurry.")), "{text}");
}

#[test]
fn formats_are_read_from_the_template() {
    for (name, calls, thinks) in [
        ("qwen3.jinja", CallFormat::Hermes, true),
        ("llama3.1.jinja", CallFormat::Llama, false),
        ("mistral-v0.3.jinja", CallFormat::Mistral, false),
        ("chatml.jinja", CallFormat::Generic, false),
        ("gemma3.jinja", CallFormat::Generic, false),
    ] {
        let output = source(name).output;
        assert_eq!((output.calls, output.thinks, output.thinking_switch), (calls, thinks, thinks), "{name}");
    }
    // The same marker around another language.
    assert_eq!(CallFormat::of("<tool_call>\n<function=name>"), CallFormat::Generic);
    let format = OutputFormat { thinks: true, ..OutputFormat::default() };
    let prompt = |text: &str| RenderedPrompt { text: text.into(), guard: None };
    assert_eq!(format.thinking(&prompt("assistant\n<think>\n"), None), Thinking::Open);
    assert_eq!(format.thinking(&prompt("assistant\n<think>\n\n</think>\n\n"), None), Thinking::MayOpen);
    assert_eq!(format.thinking(&prompt("x"), Some("<think>so")), Thinking::Open);
    assert_eq!(format.thinking(&prompt("x"), Some("<think>so</think> Hi")), Thinking::Never);
    assert_eq!(OutputFormat::default().thinking(&prompt("<think>"), None), Thinking::Never);
}

fn rounds() -> ChatInput {
    let call = |id: &str, city: &str| json!({"type": "function", "id": id, "function": {"name": "weather", "arguments": {"city": city}}});
    ChatInput {
        messages: vec![
            json!({"role": "user", "content": "Weather?"}),
            json!({"role": "assistant", "content": null, "tool_calls": [call("call_0123456789ab", "Bern"), call("c2", "Basel")]}),
            json!({"role": "tool", "content": "sun", "tool_call_id": "call_0123456789ab"}),
            json!({"role": "tool", "content": [{"type": "text", "text": "rain"}], "tool_call_id": "c2"}),
            json!({"role": "assistant", "content": "Sun and rain."}),
            json!({"role": "user", "content": "And Chur?"}),
        ],
        tools: Some(tools().iter().map(Tool::for_template).collect()),
        add_generation_prompt: true,
        ..ChatInput::default()
    }
}

#[test]
fn rounds_become_text_where_the_template_knows_no_tools() {
    let text = source("chatml.jinja").render_chat(&rounds()).unwrap().plain();
    assert!(text.starts_with("<|im_start|>system\nYou can use these tools."), "{text}");
    assert!(text.contains("{\"name\":\"weather\",\"parameters\":{\"type\":\"object\""), "{text}");
    let expected = "<|im_start|>assistant\n[{\"name\": \"weather\", \"arguments\": {\"city\":\"Bern\"}}, \
        {\"name\": \"weather\", \"arguments\": {\"city\":\"Basel\"}}]<|im_end|>\n\
        <|im_start|>user\nResults of the tools:\nweather: sun\nweather: rain<|im_end|>\n\
        <|im_start|>assistant\nSun and rain.<|im_end|>\n";
    assert!(text.contains(expected), "{text}");
    // The calls in the prompt are calls to the parser.
    let written = "[{\"name\": \"weather\", \"arguments\": {\"city\":\"Bern\"}}, {\"name\": \"weather\", \"arguments\": {\"city\":\"Basel\"}}]";
    assert_eq!(calls(CallFormat::Generic, written).len(), 2);
    // Templates that insist on turns, and on a system message that is there already.
    let mut input = rounds();
    input.messages.insert(0, json!({"role": "system", "content": "Be brief."}));
    let text = source("gemma3.jinja").render_chat(&input).unwrap().plain();
    assert!(text.contains("Be brief.\n\nYou can use these tools."), "{text}");
}

#[test]
fn rounds_keep_their_form_where_the_template_knows_tools() {
    let text = source("qwen3.jinja").render_chat(&rounds()).unwrap().plain();
    for part in [
        "<tools>\n{\"type\": \"function\", \"function\": {\"name\": \"weather\"",
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Bern\"}}\n</tool_call>\n<tool_call>\n",
        "<tool_response>\nsun\n</tool_response>\n<tool_response>\nrain",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let text = source("mistral-v0.3.jinja").render_chat(&rounds()).unwrap().plain();
    for part in [
        "\"id\": \"3456789ab\"}",
        "\"id\": \"0000000c2\"}]",
        "\"call_id\": \"3456789ab\"}",
        "\"call_id\": \"0000000c2\"}",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let text = source("llama3.1.jinja").render_chat(&rounds()).unwrap().plain();
    let call = |city: &str| format!("{{\"name\": \"weather\", \"parameters\": {{\"city\": \"{city}\"}}}}<|eot_id|>");
    let parts = [call("Bern"), "sun<|eot_id|>".into(), call("Basel"), "rain".into(), "Sun and rain.".into()];
    let places: Vec<usize> =
        parts.iter().map(|part| text.find(part).unwrap_or_else(|| panic!("{part} in {text}"))).collect();
    assert!(places.is_sorted(), "{text}");
}

#[test]
fn grammars() {
    let format = |calls, markers: &[(&'static str, u32)]| OutputFormat {
        calls,
        markers: markers.to_vec(),
        ..OutputFormat::default()
    };
    let hermes = format(CallFormat::Hermes, &[]);
    let one = [tool("weather")];
    let grammar = |format: &OutputFormat, choice: ToolChoice, parallel, thinking| {
        call_grammar(format, &one, &choice, parallel, thinking).unwrap()
    };
    let schema = r#"%json {"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}"#;
    let call = |key: &str| {
        format!(
            "one_call: call_0\ncall_0: \"{{\\\"name\\\": \\\"weather\\\", \\\"{key}\\\": \" arguments_0 \"}}\"\narguments_0: {schema}\n"
        )
    };
    assert_eq!(
        grammar(&hermes, ToolChoice::Required, false, Thinking::Never),
        format!(
            "start: (\"<tool_call>\" calls)\ncalls: \"\\n\" one_call \"\\n\" \"</tool_call>\"\n{}",
            call("arguments")
        )
    );
    let several = grammar(&hermes, ToolChoice::Required, true, Thinking::Never);
    assert!(several.starts_with("start: (\"<tool_call>\" calls (\"\\n\" \"<tool_call>\" calls)*)\n"), "{several}");
    let auto = grammar(&hermes, ToolChoice::Auto, true, Thinking::Never);
    assert!(auto.starts_with("start: ((opened calls)* TEXT?)\n"), "{auto}");
    assert!(auto.contains("opened[lazy]: TEXT \"<tool_call>\"\nTEXT: /(.|\\n)*/\n"), "{auto}");
    let control = format(CallFormat::Mistral, &[("[TOOL_CALLS]", 5)]);
    let auto = grammar(&control, ToolChoice::Auto, true, Thinking::Never);
    assert!(
        auto.starts_with(
            "start: (opened calls | TEXT?)\ncalls: \"[\" one_call (\",\" \" \" one_call)* \"]\"\nopened: TEXT? <[5]>\n"
        ),
        "{auto}"
    );
    let llama = format(CallFormat::Llama, &[]);
    let named = ToolChoice::Named("weather".into());
    assert_eq!(
        grammar(&llama, named, true, Thinking::Never),
        format!("start: (calls)\ncalls: one_call\n{}", call("parameters"))
    );
    let auto = grammar(&format(CallFormat::Generic, &[]), ToolChoice::Auto, true, Thinking::Never);
    assert!(
        auto.starts_with("start: ((calls | PLAIN)?)\ncalls: one_call | first_of_many (\",\" \" \" one_call)* \"]\"\n"),
        "{auto}"
    );
    let plain = r#"PLAIN: /(.|\n)+/ & ~/\[?\{"name": "(weather)"(.|\n)*/"#;
    assert!(auto.contains(plain), "{auto}");
    assert!(auto.contains(r#"listed_0: "[{\"name\": \"weather\", \"arguments\": " arguments_0 "}""#), "{auto}");
    let thinks = format(CallFormat::Hermes, &[("<think>", 7), ("</think>", 8)]);
    let open = grammar(&thinks, ToolChoice::Required, false, Thinking::Open);
    assert!(open.starts_with("start: thought_rest (\"<tool_call>\" calls)\n"), "{open}");
    assert!(open.contains("thought_rest: TEXT? <[8]> SPACE?\n"), "{open}");
    let may = grammar(&hermes, ToolChoice::Required, false, Thinking::MayOpen);
    assert!(may.contains("thought: \"<think>\" thought_rest\nthought_end[lazy]: TEXT \"</think>\"\n"), "{may}");
    assert_eq!(call_grammar(&hermes, &one, &ToolChoice::None, true, Thinking::Never), None);
    assert_eq!(call_grammar(&hermes, &[], &ToolChoice::Auto, true, Thinking::Never), None);
    // Names choose tools; a tool that describes no arguments takes none.
    let bare = Tool { parameters: Map::new(), ..tool("bare") };
    let two = [tool("weather"), bare];
    let text = call_grammar(&hermes, &two, &ToolChoice::Named("bare".into()), true, Thinking::Never).unwrap();
    assert!(!text.contains("weather") && text.contains("\"additionalProperties\":false"), "{text}");
    assert!(
        call_grammar(&hermes, &two, &ToolChoice::Auto, true, Thinking::Never)
            .unwrap()
            .contains("one_call: call_0 | call_1\n")
    );
}
