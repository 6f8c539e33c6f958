//! Tokenizers and templates of the real GGUF files against the reference: data in tests/golden, files by wick's own pull.
#[path = "support/models.rs"]
mod models;

use std::sync::Arc;

use models::{golden, pulled};
use serde_json::Value;
use wick::text::{ChatInput, Detokenizer, TextTools};

const ALIASES: [&str; 4] = ["smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b", "gemma-3-270m"];

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

#[test]
fn ids_and_text_equal_the_reference() {
    for alias in ALIASES {
        let tools = TextTools::load(&pulled(alias), None).unwrap();
        let expected = golden(&format!("tokenizers/{alias}.json"));
        let tokenizer = &tools.tokenizer;
        assert_eq!(tokenizer.vocab_size() as u64, expected["vocab_size"].as_u64().unwrap());
        for case in expected["cases"].as_array().unwrap() {
            let (name, said) = (text(&case["name"]), text(&case["text"]));
            assert_eq!(tokenizer.encode(said, false).unwrap(), ids(&case["plain"]), "{alias} {name}");
            let special = ids(&case["special"]);
            assert_eq!(tokenizer.encode_with_special(said, false).unwrap(), special, "{alias} {name} special");
            let mut around = tokenizer.encode(said, true).unwrap();
            for (end, at_start) in [("bos", true), ("eos", false)] {
                if let Some(id) = expected[end].as_u64() {
                    let found = if at_start { around.remove(0) } else { around.pop().unwrap() };
                    assert_eq!(u64::from(found), id, "{alias} {name} {end}");
                }
            }
            assert_eq!(around, ids(&case["plain"]), "{alias} {name} with BOS and EOS");
            let decoded = case.get("decoded").map_or(said, |decoded| text(decoded));
            assert_eq!(tokenizer.decode(&special, false), decoded, "{alias} {name} decoded");
            let mut stream = Detokenizer::new(Arc::clone(tokenizer)).show_control(true);
            let mut streamed: String = special.iter().map(|&id| stream.push(id)).collect();
            streamed.push_str(&stream.finish());
            assert_eq!(streamed, decoded, "{alias} {name} streamed");
        }
        for (token, id) in expected["control_tokens"].as_object().unwrap() {
            let id = id.as_u64().unwrap() as u32;
            assert!(tokenizer.is_control(id), "{alias} {token}");
            assert_eq!(tokenizer.encode_with_special(token, false).unwrap(), [id]);
            assert!(!tokenizer.encode(token, false).unwrap().contains(&id));
        }
    }
}

#[test]
fn chats_equal_the_reference() {
    for alias in &ALIASES[..3] {
        let tools = TextTools::load(&pulled(alias), None).unwrap();
        let mut compared = 0;
        for case in golden(&format!("templates/{alias}.json"))["cases"].as_array().unwrap() {
            let input = ChatInput {
                messages: case["messages"].as_array().unwrap().clone(),
                tools: case["tools"].as_array().cloned(),
                add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap(),
                continue_final_message: false,
                kwargs: case.get("kwargs").and_then(Value::as_object).cloned().unwrap_or_default(),
            };
            let Some(expected) = case.get("expected") else { continue };
            let template = tools.template.as_ref().unwrap();
            let prompt = template.render(&input).unwrap();
            assert_eq!(prompt.plain(), text(expected), "{alias} {}", case["name"]);
            assert_eq!(tools.tokenizer.encode_prompt(&prompt).unwrap(), ids(&case["ids"]), "{alias} {}", case["name"]);
            compared += 1;
        }
        assert!(compared > 10, "{alias}: only {compared} chats were compared");
    }
}

#[test]
fn ends_of_turns_are_known() {
    let stops = |alias| TextTools::load(&pulled(alias), None).unwrap().tokenizer.stop_ids().to_vec();
    assert_eq!(stops("smollm2-135m"), [2, 0]);
    assert_eq!(stops("qwen2.5-coder-0.5b"), [151_645, 151_643]);
    assert_eq!(stops("gemma-3-270m"), [1]);
}

#[test]
fn a_base_model_has_no_template_and_a_file_can_give_one() {
    let base = TextTools::load(&pulled("gemma-3-270m"), None).unwrap();
    assert!(base.template.is_none());
    assert!(matches!(base.encode_chat(&ChatInput::default()), Err(wick::text::TextError::NoTemplate)));

    let file = tempfile::NamedTempFile::new().unwrap();
    let source =
        "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}";
    std::fs::write(file.path(), source).unwrap();
    let tools = TextTools::load(&pulled("gemma-3-270m"), Some(file.path())).unwrap();
    let said = "a<end_of_turn>\n<start_of_turn>model\nb<bos>";
    let input =
        ChatInput { messages: vec![serde_json::json!({"role": "user", "content": said})], ..ChatInput::default() };
    let ids = tools.encode_chat(&input).unwrap();
    let count = |token: u32| ids.iter().filter(|&&id| id == token).count();
    // One BOS, one start and one end of turn: the template's.
    assert_eq!((count(2), count(105), count(106)), (1, 1, 1));
    assert_eq!(tools.tokenizer.decode(&ids, false), format!("<bos><start_of_turn>user\n{said}<end_of_turn>\n"));
    assert_eq!(tools.tokenizer.stop_ids(), [1, 106]);
}
