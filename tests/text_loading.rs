//! Tokenizers from GGUF metadata and from folders: what is read, and what is refused.
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use wick::text::{ChatInput, GgufVocabulary, TextError, TextTools, Tokenizer};

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const BYTE: i32 = 6;

fn tiny(family: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokenizers/tiny").join(family)
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// The metadata a GGUF converter writes for a byte-level tokenizer.json.
fn vocabulary(family: &str, pre: &str) -> GgufVocabulary {
    let file = read(&tiny(family).join("tokenizer.json"));
    let mut tokens: BTreeMap<u64, (String, i32)> = BTreeMap::new();
    for (token, id) in file["model"]["vocab"].as_object().unwrap() {
        tokens.insert(id.as_u64().unwrap(), (token.clone(), NORMAL));
    }
    for token in file["added_tokens"].as_array().unwrap() {
        let kind = if token["special"].as_bool().unwrap() { CONTROL } else { USER_DEFINED };
        tokens.insert(token["id"].as_u64().unwrap(), (token["content"].as_str().unwrap().to_owned(), kind));
    }
    assert_eq!(*tokens.last_key_value().unwrap().0, tokens.len() as u64 - 1);
    let merge = |merge: &Value| format!("{} {}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap());
    let (tokens, token_types) = tokens.into_values().unzip();
    GgufVocabulary {
        model: "gpt2".into(),
        pre: Some(pre.into()),
        tokens,
        token_types,
        merges: Some(file["model"]["merges"].as_array().unwrap().iter().map(merge).collect()),
        ..GgufVocabulary::default()
    }
}

fn build(vocabulary: GgufVocabulary) -> Result<Tokenizer, TextError> {
    vocabulary.tokenizer(Path::new("test.gguf"))
}

#[test]
fn gguf_families_equal_the_reference() {
    for (family, pre) in [("llama3", "llama-bpe"), ("qwen2", "qwen2"), ("qwen3", "qwen2"), ("smollm2", "smollm")] {
        let tokenizer = build(vocabulary(family, pre)).unwrap();
        for case in read(&tiny(family).join("expected.json"))["cases"].as_array().unwrap() {
            let said = case["text"].as_str().unwrap();
            assert_eq!(tokenizer.encode(said, false).unwrap(), ids(&case["plain"]), "{family} {}", case["name"]);
            let special = ids(&case["special"]);
            assert_eq!(tokenizer.encode_with_special(said, false).unwrap(), special, "{family} {}", case["name"]);
            let decoded = case.get("decoded").unwrap_or(&case["text"]).as_str().unwrap();
            assert_eq!(tokenizer.decode(&special, false), decoded, "{family} {}", case["name"]);
        }
    }
}

#[test]
fn bos_and_eos_are_added_as_the_file_says() {
    let bos = |add_bos, pre: &str| {
        let tokenizer = build(GgufVocabulary { bos: Some(5), add_bos, ..vocabulary("llama3", pre) }).unwrap();
        tokenizer.encode("a", true).unwrap().len() - tokenizer.encode("a", false).unwrap().len()
    };
    // Llama 3 and tekken add BOS unless the file says otherwise; GPT-2's kin do not.
    assert_eq!((bos(None, "llama-bpe"), bos(Some(false), "llama-bpe"), bos(None, "tekken")), (1, 0, 1));
    assert_eq!((bos(None, "gpt-2"), bos(Some(true), "gpt-2")), (0, 1));
    let both = GgufVocabulary {
        bos: Some(5),
        eos: Some(6),
        add_bos: Some(true),
        add_eos: Some(true),
        ..vocabulary("qwen2", "qwen2")
    };
    let ids = build(both).unwrap().encode("", true).unwrap();
    assert_eq!(ids, [5, 6]);
}

#[test]
fn tekken_splits_where_case_changes() {
    let pieces = |pre| {
        let tokenizer = build(vocabulary("llama3", pre)).unwrap();
        tokenizer.encode("don't HELLOworld 123", false).unwrap()
    };
    assert_ne!(pieces("tekken"), pieces("llama-bpe"));
}

fn scored(tokens: &[(&str, i32)], space: bool) -> GgufVocabulary {
    let bytes = (0..256).map(|byte| (format!("<0x{byte:02X}>"), BYTE));
    let (tokens, token_types): (Vec<String>, Vec<i32>) =
        tokens.iter().map(|&(token, kind)| (token.to_owned(), kind)).chain(bytes).unzip();
    GgufVocabulary {
        model: "llama".into(),
        scores: Some((0..tokens.len()).map(|rank| -(rank as f32)).collect()),
        tokens: tokens.into_iter().collect(),
        token_types,
        unknown: Some(0),
        bos: Some(1),
        add_space_prefix: Some(space),
        ..GgufVocabulary::default()
    }
}

#[test]
fn sentencepiece_prefix_and_bytes() {
    let tokens =
        [("<unk>", UNKNOWN), ("<s>", CONTROL), ("▁a", NORMAL), ("▁", NORMAL), ("a", NORMAL), ("  ", USER_DEFINED)];
    let llama2 = build(scored(&tokens, true)).unwrap();
    assert_eq!(llama2.encode("a a", true).unwrap(), [1, 2, 2]);
    // A space before every run of plain text, as Llama 2's tokenizer.json puts it.
    assert_eq!(llama2.encode_with_special("<s>a<s>a", false).unwrap(), [1, 2, 1, 2]);
    assert_eq!(llama2.decode(&[2, 2], false), "a a");
    assert_eq!(llama2.encode("é", false).unwrap(), [3, 6 + 0xc3, 6 + 0xa9]);
    assert_eq!(llama2.decode(&[3, 6 + 0xc3, 6 + 0xa9], false), "é");
    assert_eq!(llama2.decode(&[2, 6 + 0xc3, 6 + 0xff], false), "a\u{fffd}\u{fffd}");

    let gemma = build(scored(&tokens, false)).unwrap();
    assert_eq!(gemma.encode("a  a", false).unwrap(), [4, 5, 4]);
    assert_eq!(gemma.decode(&[2], false), " a");
    // The control token's text is not a piece.
    assert!(!gemma.encode("<s>", false).unwrap().contains(&1));
}

#[test]
fn malformed_metadata_is_named() {
    let refuse = |vocabulary: GgufVocabulary| build(vocabulary).err().expect("must fail").to_string();
    let good = || vocabulary("llama3", "llama-bpe");
    let merges = |line: &str| Some([line].into_iter().collect());
    assert!(
        refuse(GgufVocabulary { pre: Some("magic".into()), ..good() })
            .contains("unknown pre-tokenizer `magic`; wick knows: llama-bpe")
    );
    assert!(refuse(GgufVocabulary { pre: None, ..good() }).contains("`(none)`"));
    assert!(refuse(GgufVocabulary { pre: Some("default".into()), ..good() }).contains("`default`"));
    assert!(refuse(GgufVocabulary { model: "t5".into(), ..good() }).contains("`t5`; wick knows: gpt2, llama"));
    assert!(refuse(GgufVocabulary { token_types: vec![1], ..good() }).contains("token types"));
    assert!(refuse(GgufVocabulary { merges: None, ..good() }).contains("tokenizer.ggml.merges"));
    assert!(refuse(GgufVocabulary { merges: merges("zz yy"), ..good() }).contains("unknown token `zz`"));
    // Both halves known, the whole unknown and longer than any token.
    let long =
        good().tokens.iter().filter(|token| !token.contains(' ')).max_by_key(|token| token.len()).unwrap().to_owned();
    assert!(refuse(GgufVocabulary { merges: merges(&format!("{long} {long}")), ..good() }).contains("unknown token"));
    for merge in ["", "a", "a ", " a", "a b c"] {
        assert!(refuse(GgufVocabulary { merges: merges(merge), ..good() }).contains("not two tokens"), "{merge:?}");
    }
    assert!(refuse(GgufVocabulary { bos: Some(1 << 30), ..good() }).contains("bos token"));
    let sp = || scored(&[("<unk>", UNKNOWN), ("a", NORMAL)], true);
    assert!(refuse(GgufVocabulary { scores: None, ..sp() }).contains("tokenizer.ggml.scores"));
    assert!(refuse(GgufVocabulary { scores: Some(vec![0.0]), ..sp() }).contains("scores"));
    let empty = GgufVocabulary { model: "llama".into(), scores: Some(vec![]), ..GgufVocabulary::default() };
    assert!(refuse(empty).contains("byte tokens"));
}

fn folder(files: &[(&str, String)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(tiny("llama3").join("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    folder
}

fn chat(tools: &TextTools, with_tools: bool) -> String {
    let input = ChatInput {
        messages: vec![
            json!({"role": "user", "content": "hi", "tool_calls": [{"function": {"name": "f", "arguments": "{\"a\": 1}"}}]}),
        ],
        tools: with_tools.then(|| vec![json!({"type": "function"})]),
        ..ChatInput::default()
    };
    tools.render_chat(&input).unwrap().text
}

#[test]
fn folders_are_read_as_the_reference_reads_them() {
    let config = json!({
        "bos_token": {"content": "<|begin_of_text|>"}, "eos_token": "<|eot_id|>",
        "chat_template": [
            {"name": "default", "template": "{{ bos_token }}{{ messages[0].tool_calls[0].function.arguments.a }}<|eom_id|>"},
            {"name": "tool_use", "template": "tools<tool_call>"},
        ],
    });
    let config = ("tokenizer_config.json", config.to_string());
    let generation = ("generation_config.json", json!({"eos_token_id": [603, 606]}).to_string());
    let plain = folder(&[config.clone(), generation]);
    let tools = TextTools::load(plain.path(), None).unwrap();
    assert_eq!(chat(&tools, false), "<|begin_of_text|>1<|eom_id|>");
    assert_eq!(chat(&tools, true), "tools<tool_call>");
    let id = |token: &str| tools.tokenizer.added_token_id(token).unwrap();
    assert_eq!(tools.tokenizer.bos_id(), Some(id("<|begin_of_text|>")));
    let stops = tools.tokenizer.stop_ids();
    assert!([id("<|eot_id|>"), id("<|eom_id|>"), 603, 606].iter().all(|id| stops.contains(id)), "{stops:?}");
    // A weights file stands for its folder.
    assert!(TextTools::load(&plain.path().join("model.safetensors"), None).unwrap().template.is_some());

    let jinja = folder(&[
        config,
        ("chat_template.jinja", "main {{ eos_token }}".into()),
        ("additional_chat_templates/tool_use.jinja", "more<tool_call>".into()),
    ]);
    let tools = TextTools::load(jinja.path(), None).unwrap();
    assert_eq!((chat(&tools, false).as_str(), chat(&tools, true).as_str()), ("main <|eot_id|>", "more<tool_call>"));
    let other = jinja.path().join("other.jinja");
    std::fs::write(&other, "mine").unwrap();
    assert_eq!(chat(&TextTools::load(jinja.path(), Some(&other)).unwrap(), true), "mine");
    std::fs::write(&other, "{% if %}").unwrap();
    let error = TextTools::load(jinja.path(), Some(&other)).err().unwrap().to_string();
    assert!(error.contains("other.jinja") && error.contains("chat template"), "{error}");
}

#[test]
fn broken_folders_are_errors_that_name_the_file() {
    let empty = tempfile::tempdir().unwrap();
    let error = |folder: &Path| TextTools::load(folder, None).err().unwrap().to_string();
    assert!(error(empty.path()).contains("there is no tokenizer.json"));
    let bad = folder(&[("tokenizer_config.json", "{".into())]);
    assert!(error(bad.path()).contains("tokenizer_config.json: it is not JSON"));
    let bad = folder(&[("tokenizer_config.json", json!({"chat_template": [{"name": "x"}]}).to_string())]);
    assert!(error(bad.path()).contains("lacks `name` or `template`"));
    let bad = folder(&[("tokenizer.json", "[1]".into())]);
    assert!(error(bad.path()).contains("tokenizer.json: it is not a JSON object"));
    let none = folder(&[]);
    let tools = TextTools::load(none.path(), None).unwrap();
    assert!(matches!(tools.render_chat(&ChatInput::default()), Err(TextError::NoTemplate)));
}
