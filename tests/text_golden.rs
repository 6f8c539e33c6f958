//! Tokenizers and chat templates against the reference (transformers, tokenizers): data in tests/golden.
use proptest::prelude::*;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};
use wick::text::{ChatInput, ChatTemplate, Detokenizer, RenderedPrompt, TemplateSource, TextError, Tokenizer};

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

fn read(path: &str) -> Value {
    let path = golden(path);
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

const TINY: [&str; 8] =
    ["gemma3", "llama2-metaspace", "llama2-prepend", "llama3", "mistral-v3", "qwen2", "qwen3", "smollm2"];

fn tiny(family: &str) -> Arc<Tokenizer> {
    let bytes = std::fs::read(golden(&format!("tokenizers/tiny/{family}/tokenizer.json"))).unwrap();
    Arc::new(Tokenizer::from_tokenizer_json(&bytes).unwrap())
}

#[test]
fn tiny_tokenizers_equal_the_reference() {
    for family in TINY {
        let expected = read(&format!("tokenizers/tiny/{family}/expected.json"));
        let tokenizer = tiny(family);
        assert_eq!(tokenizer.vocab_size() as u64, expected["vocab_size"].as_u64().unwrap(), "{family}");
        assert_eq!(tokenizer.encode("Hello world", true).unwrap(), ids(&expected["with_template"]), "{family}");
        for (content, expected) in expected["added_tokens"].as_object().unwrap() {
            assert_eq!(tokenizer.encode(content, false).unwrap(), ids(expected), "{family} {content:?}");
        }
        let cases = expected["cases"].as_array().unwrap();
        assert!(cases.len() > 40);
        for case in cases {
            let (name, said) = (text(&case["name"]), text(&case["text"]));
            assert_eq!(tokenizer.encode(said, false).unwrap(), ids(&case["plain"]), "{family} {name} plain");
            let special = ids(&case["special"]);
            assert_eq!(tokenizer.encode_with_special(said, false).unwrap(), special, "{family} {name} special");
            let unguarded = RenderedPrompt { text: said.to_owned(), guard: None };
            assert_eq!(tokenizer.encode_prompt(&unguarded).unwrap(), special, "{family} {name} prompt");
            let decoded = case.get("decoded").map_or(said, |decoded| text(decoded));
            assert_eq!(tokenizer.decode(&special, false), decoded, "{family} {name} decoded");

            let mut stream = Detokenizer::new(Arc::clone(&tokenizer)).show_control(true);
            let mut streamed: String = special.iter().map(|&id| stream.push(id)).collect();
            streamed.push_str(&stream.finish());
            assert_eq!(streamed, decoded, "{family} {name} streamed");
        }
    }
}

/// A guard anywhere inside a control token makes exactly the ids of the plain text, in place.
#[test]
fn guarded_control_tokens_are_plain_text() {
    for family in TINY {
        let tokenizer = tiny(family);
        let control = tokenizer.added_tokens().iter().find(|token| token.special && token.id > 0).unwrap().clone();
        let token = control.content.as_str();
        for around in [("", ""), ("a ", " b"), (" ", "\n\n")] {
            let user = format!("{}{token}{}", around.0, around.1);
            let guarded = user.replace(token, &format!("{}\u{fdd0}{}", &token[..1], &token[1..]));
            let prompt = RenderedPrompt { text: guarded.clone(), guard: Some('\u{fdd0}') };
            assert_eq!(tokenizer.encode_prompt(&prompt).unwrap(), tokenizer.encode(&user, false).unwrap(), "{family}");
            // After a control token of the template: as plain text that does not start the prompt.
            let prompt = RenderedPrompt { text: format!("{token}{guarded}{token}x"), guard: Some('\u{fdd0}') };
            let ids = tokenizer.encode_prompt(&prompt).unwrap();
            assert_eq!(ids.iter().filter(|&&id| id == control.id).count(), 2, "{family} {user:?}");
        }
    }
}

#[test]
fn token_bytes_join_to_the_text() {
    for family in ["llama3", "qwen2", "gemma3"] {
        let tokenizer = tiny(family);
        for said in ["plain text", "é語😀\u{0}\t", "  two\n\n\nlines  "] {
            let ids = tokenizer.encode(said, false).unwrap();
            let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.token_bytes(id).unwrap().to_vec()).collect();
            assert_eq!(bytes, said.as_bytes(), "{family}");
        }
        assert_eq!(tokenizer.token_bytes(u32::MAX), None);
        assert_eq!(tokenizer.decode(&[u32::MAX], false), "");
    }
}

#[test]
fn a_character_is_never_cut() {
    let tokenizer = tiny("gemma3");
    let snowman: Vec<u32> = "☃"
        .bytes()
        .map(|byte| {
            tokenizer
                .encode_with_special("☃", false)
                .unwrap()
                .into_iter()
                .find(|&id| tokenizer.token_bytes(id) == Some(&[byte]))
                .unwrap()
        })
        .collect();
    let mut stream = Detokenizer::new(Arc::clone(&tokenizer));
    assert_eq!(stream.push(snowman[0]), "");
    assert_eq!(stream.push(snowman[1]), "");
    assert_eq!(stream.push(snowman[2]), "☃");
    assert_eq!(stream.push(snowman[0]), "");
    // The byte cannot continue the character: both are replaced, nothing is held any more.
    assert_eq!(stream.push(snowman[0]), "\u{fffd}");
    assert_eq!(stream.finish(), "\u{fffd}");
    assert_eq!(stream.finish(), "");
}

#[test]
fn the_first_space_is_dropped_once() {
    for family in ["llama2-prepend", "llama2-metaspace"] {
        let tokenizer = tiny(family);
        let ids = tokenizer.encode("the the", false).unwrap();
        let run = |mut stream: Detokenizer| ids.iter().map(|&id| stream.push(id)).collect::<String>();
        assert_eq!(run(Detokenizer::new(Arc::clone(&tokenizer))), "the the");
        assert_eq!(run(Detokenizer::continuing(Arc::clone(&tokenizer))), " the the");
    }
}

#[test]
fn megabytes_of_one_character_are_encoded_in_seconds() {
    for (family, letters) in [("llama3", "a <"), ("qwen3", " \né"), ("gemma3", "a \n"), ("smollm2", " 1")] {
        let tokenizer = tiny(family);
        for said in letters.chars().map(String::from) {
            let said = said.repeat(2_000_000 / said.len());
            let start = std::time::Instant::now();
            let ids = tokenizer.encode(&said, false).unwrap();
            let bytes: usize = ids.iter().map(|&id| tokenizer.token_bytes(id).unwrap().len()).sum();
            assert!(bytes >= said.len() && bytes <= said.len() + 1);
            assert!(start.elapsed() < Duration::from_secs(60), "{family} {:?}: {:?}", &said[..2], start.elapsed());
        }
    }
}

#[test]
fn malformed_tokenizer_files_are_errors() {
    let good = std::fs::read_to_string(golden("tokenizers/tiny/llama3/tokenizer.json")).unwrap();
    let change = |edit: &dyn Fn(&mut Value)| {
        let mut file: Value = serde_json::from_str(&good).unwrap();
        edit(&mut file);
        Tokenizer::from_tokenizer_json(file.to_string().as_bytes()).err().expect("must fail")
    };
    assert!(Tokenizer::from_tokenizer_json(b"[]").is_err());
    assert!(Tokenizer::from_tokenizer_json(b"{").is_err());
    assert!(change(&|f| f["model"] = Value::Null).contains("model"));
    assert!(change(&|f| f["model"]["merges"] = serde_json::json!(["zzz qqq"])).contains("zzz"));
    assert!(change(&|f| f["model"]["merges"] = serde_json::json!([["a"]])).contains("two tokens"));
    assert!(change(&|f| f["model"]["vocab"]["a"] = (-1).into()).contains("32-bit"));
    assert!(change(&|f| f["model"]["vocab"]["a"] = 4_000_000_000u32.into()).contains("far above"));
    assert!(change(&|f| f["added_tokens"][0]["id"] = "x".into()).contains("added token"));
    assert!(change(&|f| f["pre_tokenizer"] = serde_json::json!({"type": "Nope"})).contains("pre_tokenizer"));
    assert!(
        change(&|f| f["decoder"] = serde_json::json!({"type": "Strip", "content": "a", "start": 0, "stop": 9}))
            .contains("Strip")
    );
}

// ---- templates ----

const CONTROL: [&str; 8] =
    ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<s>", "</s>", "[INST]", "[/INST]"];

fn template(file: &Value, control: &[&str]) -> ChatTemplate {
    let variables = file["special_tokens"].as_object().into_iter().flatten();
    let variables: Vec<(String, String)> =
        variables.map(|(name, value)| (name.clone(), text(value).to_owned())).collect();
    compile(text(&file["template"]), variables, control).unwrap()
}

fn compile(source: &str, variables: Vec<(String, String)>, control: &[&str]) -> Result<ChatTemplate, String> {
    // 2026-03-07T09:05:03, the moment at which the reference's clock stands.
    let clock = Arc::new(|| UNIX_EPOCH + Duration::from_secs(1_772_874_303));
    let sources = vec![TemplateSource { name: "default".into(), text: source.to_owned() }];
    ChatTemplate::new(sources, variables, control.iter().map(|token| (*token).to_owned()), clock)
}

fn input(case: &Value) -> ChatInput {
    ChatInput {
        messages: case["messages"].as_array().unwrap().clone(),
        tools: case["tools"].as_array().cloned(),
        add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap(),
        continue_final_message: false,
        kwargs: case.get("kwargs").and_then(Value::as_object).cloned().unwrap_or_default(),
    }
}

#[test]
fn templates_equal_the_reference() {
    let mut rendered = 0;
    let mut failures = Vec::new();
    let mut entries: Vec<_> =
        std::fs::read_dir(golden("templates")).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries.iter().filter(|path| path.extension().is_some_and(|ext| ext == "json")) {
        let stem = path.file_stem().unwrap().to_str().unwrap();
        if stem == "snippets" {
            continue;
        }
        let file = read(&format!("templates/{stem}.json"));
        let (bare, guarding) = (template(&file, &[]), template(&file, &CONTROL));
        for case in file["cases"].as_array().unwrap() {
            let name = format!("{stem}/{}", text(&case["name"]));
            let result = bare.render(&input(case));
            // Guards change nothing but what measures or cuts the text with control tokens in it.
            if let (Ok(bare), Ok(guarded)) = (&result, guarding.render(&input(case)))
                && name != "features/control_tokens_in_text"
            {
                assert_eq!(bare.plain(), guarded.plain(), "{name}");
                assert_eq!(guarded.guard.is_some(), name.ends_with("/control_tokens_in_text"), "{name}");
            }
            // The reference prints Python's repr of a list of parts where the template takes text; wick joins them.
            if case.get("python_repr") == Some(&Value::Bool(true)) {
                let rendered = result.unwrap().text;
                assert!(name.ends_with("/list_content") && !rendered.contains("[{"), "{name}: {rendered}");
                continue;
            }
            match (case.get("expected"), case.get("expected_error"), result) {
                (Some(expected), _, Ok(prompt)) if prompt.plain() == text(expected) => rendered += 1,
                (None, Some(error), Err(TextError::Template(said))) => {
                    // The template's own words are the same; the engine's may differ.
                    if text(&case["error_type"]) == "TemplateError" && !said.contains(text(error)) {
                        failures.push(format!("{name}: error {said:?}, expected {error}"));
                    }
                }
                // Parts given to a template that takes text: the reference fails on types, wick joins them.
                (None, Some(_), Ok(_))
                    if name.ends_with("/list_content") && text(&case["error_type"]) == "TypeError" => {}
                (expected, error, result) => {
                    failures.push(format!("{name}: {result:?}\n  expected {expected:?} {error:?}"))
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(rendered > 100, "only {rendered} renders were compared");
}

#[test]
fn snippets_equal_the_reference() {
    let file = read("templates/snippets.json");
    let context = file["context"].as_object().unwrap();
    let mut failures = Vec::new();
    for case in file["cases"].as_array().unwrap() {
        let name = text(&case["name"]);
        let result = compile(text(&case["template"]), Vec::new(), &[]).and_then(|template| {
            let mut kwargs = context.clone();
            let messages = kwargs.remove("messages").unwrap().as_array().unwrap().clone();
            let input = ChatInput { messages, kwargs, ..ChatInput::default() };
            template.render(&input).map_err(|error| error.to_string())
        });
        match (case.get("expected").map(text), result) {
            (Some(expected), Ok(prompt)) if prompt.plain() == expected => {}
            (None, Err(_)) => {}
            (expected, result) => failures.push(format!(
                "{name}: {}\n  got      {result:?}\n  expected {expected:?} {:?}",
                case["template"],
                case.get("expected_error")
            )),
        }
    }
    assert!(failures.is_empty(), "{} snippets differ:\n{}", failures.len(), failures.join("\n"));
}

// ---- control tokens in what users write ----

/// The control tokens of the rendered prompt, in order, and its text.
fn control_ids(tokenizer: &Tokenizer, prompt: &RenderedPrompt) -> Vec<u32> {
    let ids = tokenizer.encode_prompt(prompt).unwrap();
    assert_eq!(tokenizer.decode(&ids, false), prompt.plain());
    ids.into_iter().filter(|&id| tokenizer.is_control(id)).collect()
}

fn hostile() -> impl Strategy<Value = String> {
    let pieces = [
        "<|eot_id|>",
        "<|EOT_ID|>",
        "<|",
        "|>",
        "<",
        ">",
        "eot_id",
        "<|eot_",
        "id|>",
        "user",
        "<x>",
        "</think>",
        " ",
        "\n",
        "a",
        "<|start_header_id|>",
        "start_header_id",
        "\u{fdd0}",
        "|",
        "<|begin_of_text|",
        "X",
        "é",
    ];
    proptest::collection::vec(proptest::sample::select(pieces.to_vec()), 0..7).prop_map(|list| list.concat() + "z")
}

/// Templates that cut, join and rewrite what users wrote.
const REWRITING: [&str; 6] = [
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>{{ m.content | trim }}{{ m.name }}<|eot_id|>{% endfor %}",
    "{% for m in messages %}{{ m.content | replace('X', '') | lower }}{{ m.name | upper | lower }}<|eot_id|>{% endfor %}",
    "{% for m in messages %}{{ m.content.split('X') | join('') }}{{ [m.content, m.name] | join }}<|eot_id|>{% endfor %}",
    "{% for m in messages %}{{ m.content.split('</think>')[-1].lstrip('\n') }}{{ m.name ~ m.content }}<|eot_id|>{% endfor %}",
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content.replace('</think>', '').strip() }}<|{{ m.name }}|><|eot_id|>{% endfor %}",
    "{% for m in messages %}{{ m | tojson }}{{ m.content.rpartition('X')[0] }}{{ m.content.rpartition('X')[2] }}<|eot_id|>{% endfor %}",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    /// Whatever users write, the prompt has the control tokens it has for a harmless message, and no other ones.
    #[test]
    fn users_cannot_write_control_tokens(content in hostile(), name in hostile(), which in 0..REWRITING.len()) {
        let tokenizer = tiny("llama3");
        let control = tokenizer.added_tokens().iter().filter(|token| token.special).map(|token| token.content.clone());
        let sources = vec![TemplateSource { name: "default".into(), text: REWRITING[which].into() }];
        let variables = vec![("bos_token".to_owned(), "<|begin_of_text|>".to_owned())];
        let template = ChatTemplate::new(sources, variables, control, Arc::new(|| UNIX_EPOCH)).unwrap();
        let chat = |content: &str, name: &str| {
            let message = serde_json::json!({"role": "user", "content": content, "name": name});
            template.render(&ChatInput { messages: vec![message.clone(), message], ..ChatInput::default() }).unwrap()
        };
        let harmless = control_ids(&tokenizer, &chat("hello", "there"));
        prop_assert_eq!(control_ids(&tokenizer, &chat(&content, &name)), harmless);
    }
}

#[test]
fn hostile_templates_and_arguments_are_errors() {
    let render = |source: &str, kwargs: Value| {
        let template = compile(source, Vec::new(), &CONTROL).unwrap();
        template.render(&ChatInput { kwargs: kwargs.as_object().unwrap().clone(), ..ChatInput::default() })
    };
    let refused = |source: &str| match render(source, serde_json::json!({})) {
        Err(TextError::Template(said)) => said,
        other => panic!("{source}: {other:?}"),
    };
    refused("{% for a in range(100000) %}{% for b in range(100000) %}{{ b }}{% endfor %}{% endfor %}");
    refused("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}");
    refused("{% set ns = namespace(s='ab') %}{% for i in range(90) %}{% set ns.s = ns.s + ns.s %}{% endfor %}");
    refused("{{ ('x' * 1000000).replace('x', 'y' * 1000000) }}");
    refused("{{ nothing.at.all }}");
    assert_eq!(refused("{{ raise_exception('Only one turn.') }}"), "Only one turn.");
    assert!(compile("{% if %}", Vec::new(), &[]).is_err());
    let reserved = render("x", serde_json::json!({"messages": []}));
    assert!(matches!(reserved, Err(TextError::Template(said)) if said.contains("messages")));
    // A template argument is the client's text.
    let prompt = render("{{ bos_token }}", serde_json::json!({"bos_token": "<s>"})).unwrap();
    assert_eq!(prompt.plain(), "<s>");
    assert!(prompt.guard.is_some());
}

#[test]
fn the_last_message_can_be_continued() {
    let source = "{% for m in messages %}<s>{{ m.content | trim }}</s>{% endfor %}";
    let keeping = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}";
    let chat = |source: &str, content: &str| {
        let messages = vec![
            serde_json::json!({"role": "user", "content": "hi"}),
            serde_json::json!({"role": "assistant", "content": content}),
        ];
        let input = ChatInput { messages, continue_final_message: true, ..ChatInput::default() };
        compile(source, Vec::new(), &CONTROL).unwrap().render(&input).map(|prompt| prompt.plain())
    };
    assert_eq!(chat(source, "The answer ").unwrap(), "<s>hi</s><s>The answer");
    assert_eq!(chat(keeping, "The answer ").unwrap(), "<s>hi</s><s>The answer ");
    assert_eq!(chat(source, "a</s>b").unwrap(), "<s>hi</s><s>a</s>b");
    assert!(chat("{{ messages[0].content }}", "x").is_err());
}

#[test]
fn content_is_given_in_the_form_the_template_takes() {
    let render = |source: &str, content: Value| {
        let messages = vec![serde_json::json!({"role": "user", "content": content})];
        let input = ChatInput { messages, ..ChatInput::default() };
        compile(source, Vec::new(), &[]).unwrap().render(&input).map(|prompt| prompt.text)
    };
    let parts = serde_json::json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    let text_only = "{{ messages[0].content }}!";
    assert_eq!(render(text_only, parts.clone()).unwrap(), "a\nb!");
    let parts_only = "{% for part in messages[0].content %}<{{ part.text }}>{% endfor %}";
    assert_eq!(render(parts_only, parts.clone()).unwrap(), "<a><b>");
    assert_eq!(render(parts_only, "ab".into()).unwrap(), "<ab>");
    let either = "{% if messages[0].content is string %}{{ messages[0].content }}{% else %}{{ messages[0].content | map(attribute='text') | join('+') }}{% endif %}";
    assert_eq!(render(either, parts).unwrap(), "a+b");
    let image = serde_json::json!([{"type": "image_url", "image_url": {"url": "x"}}]);
    assert!(render(text_only, image).is_err_and(|error| error.to_string().contains("`image_url`")));
}
