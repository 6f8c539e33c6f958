//! Compiling and following grammars, over tokens of single bytes and some longer ones.
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::text::Tokenizer;

const END: u32 = 257;

fn tokenizer() -> Arc<Tokenizer> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tiny-tokenizer");
    Arc::clone(&crate::text::TextTools::load(std::path::Path::new(path), None).unwrap().tokenizer)
}

fn compiler() -> GrammarCompiler {
    // More logits than tokens, as models have.
    GrammarCompiler::new(&tokenizer(), 300).unwrap()
}

fn schema(value: &Value) -> GrammarSource {
    GrammarSource::JsonSchema { schema: value.to_string(), compact: false }
}

fn allowed(constraint: &mut Constraint) -> Vec<u32> {
    let words = constraint.allowed().unwrap();
    (0..300).filter(|&id| words[id as usize / 32] >> (id % 32) & 1 == 1).collect()
}

/// Whether the grammar takes the text, byte by byte, and may end there.
fn takes(grammar: &Arc<Grammar>, text: &str) -> bool {
    let mut constraint = Constraint::new(grammar.clone(), [END].into());
    for (at, byte) in text.bytes().enumerate() {
        if !allowed(&mut constraint).contains(&u32::from(byte)) {
            return false;
        }
        if constraint.accept(u32::from(byte)).unwrap() {
            return at + 1 == text.len();
        }
    }
    allowed(&mut constraint).contains(&END)
}

#[test]
fn sources_of_every_kind() {
    let compiler = compiler();
    let cases: [(GrammarSource, &[&str], &[&str]); 9] = [
        (GrammarSource::Regex("^[a-c]+x?$".into()), &["a", "abcx"], &["", "x", "ad", "axx"]),
        (GrammarSource::Regex(r"a/b\$".into()), &["a/b$"], &["a/b", r"a/b\"]),
        (
            GrammarSource::Choice(vec!["yes".into(), "yes!".into(), "né (\"x\")\n".into()]),
            &["yes", "yes!", "né (\"x\")\n"],
            &["y", "no", "yes?"],
        ),
        (
            GrammarSource::Lark("start: \"<\" x+ \">\"\nx: \"a\" | \"(\" x \")\"".into()),
            &["<a>", "<a((a))>"],
            &["<>", "<(a>"],
        ),
        (
            GrammarSource::of_grammar("root ::= \"<\" x+ \">\"\nx ::= \"a\" | \"(\" x \")\"".into()),
            &["<a>", "<a((a))>"],
            &["<>", "<(a>"],
        ),
        (GrammarSource::json_object(), &["{}", r#"{"a": [1, null, "é"]}"#], &["[]", "1", "{", "{} "]),
        (
            schema(
                &json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": false}),
            ),
            &[r#"{"a":-12}"#, "{\n  \"a\": 3\n}"],
            &["{}", r#"{"a":1.5}"#, r#"{"a":1,"b":2}"#],
        ),
        (
            GrammarSource::Lark(
                "start: \"call \" %json {\"type\": \"array\", \"items\": {\"enum\": [1, \"x\"]}}".into(),
            ),
            &["call []", "call [1, \"x\"]"],
            &["call", "call [2]"],
        ),
        (
            GrammarSource::JsonSchema {
                schema: r#"{"type":"array","items":{"type":"boolean"}}"#.into(),
                compact: true,
            },
            &["[]", "[true,false]"],
            &["[true, false]", "[ ]"],
        ),
    ];
    for (source, good, bad) in cases {
        let grammar = compiler.compile(&source).unwrap_or_else(|error| panic!("{source:?}: {error}"));
        for text in good {
            assert!(takes(&grammar, text), "{source:?} takes {text:?}");
        }
        for text in bad {
            assert!(!takes(&grammar, text), "{source:?} does not take {text:?}");
        }
    }
}

/// A text follows a grammar exactly if the text as JSON writes it follows the quoted grammar.
#[test]
fn quoted_grammars_are_of_the_text_as_json_writes_it() {
    let compiler = compiler();
    let texts = [
        "",
        "a",
        "\"",
        "\\",
        "a\"b",
        "a\\n",
        "a\n",
        "a\nb\n",
        "\t x",
        "é\n",
        "n",
        "/a/",
        "x=\"\\\"\"\n",
        "*** a\n+b\n",
    ];
    let larks = [
        "start: /(.|\\n)+/",
        "start: /[^\"]+/",
        "start: /.*/",
        "start: word (LF word)* LF?\nword: /[a-z]+/\n%import common.LF",
        "start: \"a\" [REST]\nREST: \"\\\"b\" | \"\\\\n\" | \"\\n\"",
        "start: item+\nitem: \"x=\" ESCAPED_STRING\n%import common (ESCAPED_STRING, LF)\n%ignore LF",
        "start: \"A\\n\"i",
        "start: /[\\/a]+/",
        "start: \"*** \" /(.+)/ LF (\"+\" /(.*)/ LF)* // a patch\n\n%import common.LF",
    ];
    let mut both = 0;
    for lark in larks {
        let plain = compiler.compile(&GrammarSource::Lark(lark.to_owned())).unwrap();
        let quoted = format!(
            "start: \"\\\"\" %lark {{\n{}\n}} \"\\\"\"",
            json_quoted(lark, &mut QuoteBudget::default()).unwrap()
        );
        let quoted = compiler.compile(&GrammarSource::Lark(quoted)).unwrap_or_else(|error| panic!("{lark}: {error}"));
        for text in texts {
            let written = json!(text).to_string();
            let follows = takes(&plain, text);
            assert_eq!(takes(&quoted, &written), follows, "{lark:?} and {text:?}");
            both += usize::from(follows);
        }
    }
    assert!(both > 20, "{both} texts follow a grammar");
}

#[test]
fn white_space_is_bounded() {
    let grammar = compiler().compile(&GrammarSource::json_object()).unwrap();
    assert!(takes(&grammar, &format!("{{{}\"a\":1}}", " ".repeat(24))));
    assert!(!takes(&grammar, &format!("{{{}\"a\":1}}", " ".repeat(25))));
}

#[test]
fn control_tokens_are_no_text_and_a_grammar_may_name_them() {
    let compiler = compiler();
    let any = compiler.compile(&GrammarSource::Regex("(?s:.*)".into())).unwrap();
    let mut constraint = Constraint::new(any.clone(), [END].into());
    let start = allowed(&mut constraint);
    assert!(start.contains(&END) && start.contains(&u32::from(b'<')));
    assert!(!start.contains(&256) && !start.iter().any(|&id| id > END), "{start:?}");
    // Ends that the sequence ignores do not come while anything else can.
    let mut ignoring = Constraint::new(any, [].into());
    assert!(!allowed(&mut ignoring).contains(&END));
    let named = compiler.compile(&GrammarSource::Lark("start: <|im_start|> \"a\"".into())).unwrap();
    let mut constraint = Constraint::new(named, [END].into());
    assert_eq!(allowed(&mut constraint), [256]);
    assert!(!constraint.accept(256).unwrap());
    assert_eq!(allowed(&mut constraint), [u32::from(b'a')]);
    assert!(constraint.accept(u32::from(b'a')).unwrap());
}

#[test]
fn what_cannot_be_enforced_is_named() {
    let compiler = compiler();
    let error = |source: &Value| compiler.compile(&schema(source)).unwrap_err();
    let keyword = |source: &Value| match error(source) {
        GrammarError::Unsupported { keyword, .. } => keyword,
        other => panic!("{source}: {other}"),
    };
    assert_eq!(keyword(&json!({"not": {}})), "not");
    assert_eq!(keyword(&json!({"type": "string", "format": "magic"})), "format");
    let overlap = json!({"oneOf": [{"type": "integer"}, {"type": "number"}]});
    assert_eq!(keyword(&overlap), "oneOf");
    for bad in [
        json!({"type": "strange"}),
        json!({"$ref": "#/$defs/missing"}),
        json!({"type": "string", "pattern": "("}),
        json!({"enum": []}),
        json!({"allOf": [{"type": "string"}, {"type": "integer"}]}),
        json!({"minimum": 3, "maximum": 1, "type": "integer"}),
        json!({"$ref": "#"}),
    ] {
        assert!(matches!(error(&bad), GrammarError::Invalid { .. }), "{bad}: {:?}", error(&bad));
    }
    for bad in ["(", "a{2,1}", "[z-a]", "(?=a)", r"(a)\1"] {
        let outcome = compiler.compile(&GrammarSource::Regex(bad.into()));
        assert!(
            matches!(outcome, Err(GrammarError::Invalid { .. } | GrammarError::Unsupported { .. })),
            "{bad}: {outcome:?}"
        );
    }
    for bad in
        ["", "start: ", "start: x", "strt: \"a\"", "start: /(/", "start: <|nothing|>", "start: %json {\"type\": 3}"]
    {
        let outcome = compiler.compile(&GrammarSource::Lark(bad.into()));
        assert!(matches!(outcome, Err(GrammarError::Invalid { .. })), "{bad}: {outcome:?}");
    }
}

/// Everything here must be answered soon, whatever the answer is, and none may take the process down.
#[test]
fn hostile_sources_end_soon() {
    let compiler = compiler();
    let nested = |open: &str, close: &str, n: usize| format!("{}{}", open.repeat(n), close.repeat(n));
    let options = |n: usize, of: &dyn Fn(usize) -> Value| (0..n).map(of).collect::<Vec<Value>>();
    let any_of = options(
        8,
        &|i| json!({"anyOf": options(8, &|j| json!({"properties": {format!("p{i}_{j}"): {"type": "integer"}}}))}),
    );
    let cases = [
        schema(&json!({ "title": "x".repeat(10 << 20) })),
        GrammarSource::JsonSchema { schema: nested("{\"items\":", "}", 10_000), compact: false },
        GrammarSource::JsonSchema { schema: nested("[", "]", 10_000), compact: false },
        schema(&json!({"$ref": "#"})),
        schema(&json!({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"})),
        schema(&json!({"allOf": [{"$ref": "#"}, {"$ref": "#"}]})),
        schema(&json!({"anyOf": [{"$ref": "#"}, {"allOf": [{"$ref": "#"}, {"properties": {"a": {"$ref": "#"}}}]}]})),
        schema(&json!({ "allOf": any_of })),
        schema(&json!({ "oneOf": options(3000, &|i| json!({"properties": {"a": {"const": i}}, "required": ["a"]})) })),
        schema(
            &json!({ "anyOf": options(3000, &|i| json!({"type": "string", "pattern": format!("(a|b)*{i}(a|b)*")})) }),
        ),
        schema(&json!({"type": "string", "maxLength": 100_000})),
        schema(&json!({"type": "string", "minLength": 10_000})),
        schema(&json!({"type": "array", "items": {"type": "string", "maxLength": 1000}, "maxItems": 10_000})),
        schema(
            &json!({"type": "array", "items": {"type": "array", "items": {"type": "array", "minItems": 1000}, "minItems": 1000}, "minItems": 1000}),
        ),
        schema(&json!({"type": "object", "additionalProperties": {"type": "string"}, "maxProperties": 10_000})),
        schema(&json!({"type": "string", "pattern": "(((a{1,1000}){1,1000}){1,1000}){1,1000}"})),
        schema(&json!({"type": "string", "pattern": "^(a+)+$", "minLength": 9000})),
        schema(&json!({"type": "number", "multipleOf": 1e-300, "minimum": -1e300, "maximum": 1e300})),
        schema(&json!({"type": "integer", "multipleOf": 982_451_653, "minimum": 1})),
        schema(&json!({ "enum": (0..19_000).map(|i| format!("{i}x")).collect::<Vec<_>>() })),
        GrammarSource::Regex("(((a{1,1000}){1,1000}){1,1000}){1,1000}".into()),
        GrammarSource::Regex("(a|b|ab)*c(a|b){1,60}(a|c){1,60}".into()),
        GrammarSource::Regex("(.*a){64}".into()),
        GrammarSource::Regex("(?i:.*(a|b)[^c]{500}.*(b|c)[^d]{500})*".into()),
        GrammarSource::Regex(nested("(", ")", 32_000)),
        GrammarSource::Regex(format!("{}a", "(a|".repeat(190)) + &")".repeat(190)),
        GrammarSource::Regex("a".repeat(16 << 10)),
        GrammarSource::Regex("a|".repeat(8000) + "a"),
        GrammarSource::Regex("a?".repeat(8000)),
        schema(
            &json!({"type": "array", "items": {"anyOf": options(16, &|i| json!({"type": "string", "pattern": "a?".repeat(2000) + &i.to_string()}))}}),
        ),
        GrammarSource::Lark(format!("start: /{}/", "a?".repeat(8000))),
        GrammarSource::Lark(format!("start: A\nA: {}", "\"a\"?".repeat(3900))),
        GrammarSource::Regex(r"\p{L}{1,1000}\p{N}{1,1000}".repeat(50)),
        GrammarSource::Choice((0..1000).map(|i| format!("{i}{}", "é".repeat(25))).collect()),
        GrammarSource::Lark(format!("start: {}", nested("(", ")", 100_000))),
        GrammarSource::Lark(format!("start: {}\"a\"{}", "(".repeat(190), ")".repeat(190))),
        GrammarSource::Lark("start: \"a\"{1,1000000000}".into()),
        GrammarSource::Lark("start: a{1000}\na: b{1000}\nb: c{1000}\nc: \"x\"{1000}".into()),
        GrammarSource::Lark("start: A\nA: B{1000}\nB: C{1000}\nC: \"x\"{1000}".into()),
        GrammarSource::Lark("start: start start | \"a\" | ".into()),
        GrammarSource::Lark("start: a\na: a".into()),
        GrammarSource::Lark(format!(
            "start: r0\n{}r9999: \"a\"",
            (0..9999).map(|i| format!("r{i}: r{} | \"{i}\"\n", i + 1)).collect::<String>()
        )),
        GrammarSource::Lark("start: %json {\"minItems\": 1e9, \"items\": {}}".into()),
        GrammarSource::Lark(format!("start: {}", "\"a\" ".repeat(4000))),
        GrammarSource::Lark(format!("start: {}", "\"a\" ".repeat(60_000))),
        GrammarSource::Gbnf("root ::= root root | \"a\"".into()),
    ];
    for source in cases {
        let begin = std::time::Instant::now();
        let outcome = compiler.compile(&source);
        let shown: String = format!("{source:?}").chars().take(120).collect();
        let said = outcome.as_ref().map(|_| ()).map_err(ToString::to_string);
        println!("{:>6} ms {shown} {said:?}", begin.elapsed().as_millis());
        // Ten times what a free machine needs.
        assert!(begin.elapsed().as_secs() < 15, "{shown} took {:?}", begin.elapsed());
        // Following it is bounded, too: a few dozen bytes, as far as the grammar lets them.
        let Ok(grammar) = outcome else { continue };
        let mut constraint = Constraint::new(grammar, [END].into());
        for _ in 0..40 {
            let begin = std::time::Instant::now();
            let Ok(words) = constraint.allowed() else { break };
            let bit = |id: u32| words[id as usize / 32] >> (id % 32) & 1 == 1;
            let Some(next) = [b'a', b'"', b'[', b'{'].map(u32::from).into_iter().chain(0..256).find(|&id| bit(id))
            else {
                break;
            };
            if !matches!(constraint.accept(next), Ok(false)) {
                break;
            }
            assert!(begin.elapsed().as_millis() < 500, "a step of {shown} took {:?}", begin.elapsed());
        }
    }
}

#[test]
fn matchers_are_used_again_from_the_start() {
    let grammar = compiler().compile(&GrammarSource::Regex("a(b|c){3}".into())).unwrap();
    for _ in 0..3 {
        assert!(takes(&grammar, "abcb"));
        let mut left = Constraint::new(grammar.clone(), [END].into());
        assert!(!left.accept(u32::from(b'a')).unwrap());
        assert!(left.accept(u32::from(b'x')).is_err(), "not allowed");
        assert!(left.allowed().is_err(), "it stays broken");
    }
    assert!(takes(&grammar, "accc"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any walk along allowed tokens that may end is a text of the language: here of decimal lists.
    #[test]
    fn every_walk_ends_in_the_language(choices in prop::collection::vec(any::<u32>(), 1..60)) {
        static GRAMMAR: std::sync::OnceLock<Arc<Grammar>> = std::sync::OnceLock::new();
        let schema = schema(&json!({"type": "array", "items": {"type": "integer", "minimum": -50, "maximum": 120}}));
        let grammar = GRAMMAR.get_or_init(|| compiler().compile(&schema).unwrap());
        let mut constraint = Constraint::new(grammar.clone(), [END].into());
        let mut text = Vec::new();
        let mut complete = false;
        for choice in choices {
            let tokens = allowed(&mut constraint);
            let token = tokens[choice as usize % tokens.len()];
            if token == END {
                complete = true;
                break;
            }
            text.push(u8::try_from(token).unwrap());
            complete = constraint.accept(token).unwrap();
            if complete {
                break;
            }
        }
        prop_assume!(complete);
        // `-0` and `3.0` are integers, too.
        let numbers: Vec<f64> = serde_json::from_slice(&text).unwrap();
        prop_assert!(numbers.iter().all(|n| n.fract() == 0.0 && (-50.0..=120.0).contains(n)));
    }
}
