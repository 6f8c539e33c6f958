//! Keeps control tokens that users write plain text.
//!
//! A *guard* is a noncharacter that occurs in none of the request's strings. It is put inside every control token a
//! user's string contains, before the template sees the string, and removed after control tokens have been read from
//! the rendered prompt. So a request without such text is rendered exactly as the reference renders it, and in any
//! other one the user's control token cannot be read, whatever the template does around it.
//!
//! Three more ways to a control token are closed:
//! * *Seams*: a string that begins or ends with a part of a control token gets a guard there, so that neither template
//!   text nor the next string can complete it, also after the template has trimmed spaces.
//! * *Holes*: where the template writes a control token around a value (`'<|' + role + '|>'`), other strings than a
//!   message's role are guarded if they would fit.
//! * *Filters* that rewrite text (`replace`, `lower`, `join` …) are guarded again, see `jinja.rs`.
use aho_corasick::{AhoCorasick, AhoCorasickBuilder, MatchKind};
use serde_json::{Map, Value};
use std::collections::HashSet;

/// Roles that may fill a hole: they name a kind of turn, not text.
const ROLES: [&str; 11] = [
    "system",
    "developer",
    "user",
    "assistant",
    "tool",
    "function",
    "model",
    "ipython",
    "observation",
    "environment",
    "context",
];

/// Nesting deeper than this is refused (the JSON parser of the API allows 128).
const DEPTH_MAX: usize = 200;

/// Knows the control tokens of a model and the holes of its template.
pub(super) struct Guard {
    /// All occurrences, ignoring ASCII case (a template may change it).
    whole: Option<AhoCorasick>,
    /// Proper beginnings and ends of control tokens, in lower case.
    beginnings: HashSet<String>,
    ends: HashSet<String>,
    longest: usize,
    /// What would complete a control token between two pieces of template text, in lower case.
    holes: Vec<String>,
}

impl Guard {
    /// `literals`: all constant text of the template. Control tokens of one character are left out: no guard fits
    /// inside them.
    pub(super) fn new(control: impl Iterator<Item = String>, literals: &[String]) -> Result<Self, String> {
        let tokens: Vec<String> =
            control.map(|token| token.to_ascii_lowercase()).filter(|token| token.chars().count() > 1).collect();
        let whole = if tokens.is_empty() {
            None
        } else {
            let automaton = AhoCorasickBuilder::new()
                .match_kind(MatchKind::Standard)
                .ascii_case_insensitive(true)
                .build(&tokens)
                .map_err(|error| format!("control tokens: {error}"))?;
            Some(automaton)
        };
        let (mut beginnings, mut ends) = (HashSet::new(), HashSet::new());
        for token in &tokens {
            for (cut, _) in token.char_indices().skip(1) {
                beginnings.insert(token[..cut].to_owned());
                ends.insert(token[cut..].to_owned());
            }
        }
        let longest = tokens.iter().map(String::len).max().unwrap_or(0);
        let mut guard = Self { whole, beginnings, ends, longest, holes: Vec::new() };
        guard.holes = guard.find_holes(&tokens, literals);
        Ok(guard)
    }

    fn find_holes(&self, tokens: &[String], literals: &[String]) -> Vec<String> {
        let literals: Vec<String> = literals.iter().map(|literal| literal.to_ascii_lowercase()).collect();
        let opening: HashSet<&str> = literals.iter().flat_map(|literal| self.tails(literal)).collect();
        let closing: HashSet<&str> = literals.iter().flat_map(|literal| self.heads(literal)).collect();
        let mut holes = HashSet::new();
        for token in tokens {
            for open in opening.iter().filter(|open| token.starts_with(**open)) {
                let rest = &token[open.len()..];
                for close in closing.iter().filter(|close| rest.len() > close.len() && rest.ends_with(**close)) {
                    holes.insert(rest[..rest.len() - close.len()].to_owned());
                }
            }
        }
        holes.into_iter().collect()
    }

    /// Ends of `text` that are proper beginnings of a control token, shortest first.
    fn tails<'a>(&self, text: &'a str) -> Vec<&'a str> {
        let from = text.char_indices().rev().map(|(at, _)| &text[at..]);
        from.take_while(|tail| tail.len() < self.longest).filter(|tail| self.beginnings.contains(*tail)).collect()
    }

    /// Beginnings of `text` that are proper ends of a control token, shortest first.
    fn heads<'a>(&self, text: &'a str) -> Vec<&'a str> {
        let to = text.char_indices().map(|(at, c)| &text[..at + c.len_utf8()]);
        to.take_while(|head| head.len() < self.longest).filter(|head| self.ends.contains(*head)).collect()
    }

    /// Whether a control token stands in `text`.
    pub(super) fn has_control_token(&self, text: &str) -> bool {
        self.whole.as_ref().is_some_and(|whole| whole.is_match(text))
    }

    /// The text with `mark` where it must not be read as, or become, a control token.
    pub(super) fn text(&self, text: &str, mark: char) -> String {
        self.marked(text, mark, false).unwrap_or_else(|| text.to_owned())
    }

    /// `None`: the text needs no mark.
    fn marked(&self, text: &str, mark: char, is_role: bool) -> Option<String> {
        let whole = self.whole.as_ref()?;
        let mut places: Vec<usize> = whole
            .find_overlapping_iter(text)
            .map(|found| found.start() + text[found.start()..].chars().next().map_or(0, char::len_utf8))
            .collect();
        let trimmed_start = text.trim_start().len();
        let trimmed_end = text.trim_end().len();
        // Seams, of the text itself and of what is left when the template trims it.
        for (start, end) in [(0, text.len()), (text.len() - trimmed_start, trimmed_end)] {
            if start >= end {
                continue;
            }
            let core = &text[start..end];
            self.seams(core, start, &mut places);
            let is_known_role = is_role && ROLES.contains(&core);
            if !is_known_role && !self.holes.is_empty() && core.len() < self.longest {
                let lower = core.to_ascii_lowercase();
                if self.holes.iter().any(|hole| hole.contains(&lower)) {
                    places.push(start + core.chars().next().map_or(0, char::len_utf8));
                }
            }
        }
        if places.is_empty() {
            return None;
        }
        places.sort_unstable();
        places.dedup();
        let mut out = String::with_capacity(text.len() + places.len() * mark.len_utf8());
        let mut done = 0;
        for place in places {
            out.push_str(&text[done..place]);
            out.push(mark);
            done = place;
        }
        out.push_str(&text[done..]);
        Some(out)
    }

    /// Places for marks at the beginning and the end of `core`, which starts at byte `base` of its text.
    fn seams(&self, core: &str, base: usize, places: &mut Vec<usize>) {
        let len_of = |c: Option<char>| c.map_or(0, char::len_utf8);
        let first = len_of(core.chars().next());
        let last = len_of(core.chars().next_back());
        // The parts of interest are shorter than the longest token: look at no more of a long text.
        let near = core.char_indices().map(|(at, _)| at).take_while(|&at| at <= self.longest).last().unwrap_or(0);
        let head = core[..near].to_ascii_lowercase()
            + &core[near..near + len_of(core[near..].chars().next())].to_ascii_lowercase();
        let far = core.char_indices().rev().map(|(at, _)| at).take_while(|&at| core.len() - at <= self.longest).last();
        let tail = core[far.unwrap_or(core.len())..].to_ascii_lowercase();
        for part in self.heads(&head) {
            places.push(if part.len() == first { base } else { base + first });
        }
        for part in self.tails(&tail) {
            places.push(if part.len() == last { base + core.len() } else { base + core.len() - last });
        }
    }

    /// Guards every string in a JSON value, keys included. `key`: the key the value stands under.
    pub(super) fn json(&self, value: Value, key: &str, mark: char) -> Value {
        match value {
            Value::String(text) => Value::String(self.marked(&text, mark, key == "role").unwrap_or(text)),
            Value::Array(items) => Value::Array(items.into_iter().map(|item| self.json(item, key, mark)).collect()),
            Value::Object(fields) => {
                let fields = fields.into_iter().map(|(key, item)| {
                    let item = self.json(item, &key, mark);
                    (if self.has_control_token(&key) { self.text(&key, mark) } else { key }, item)
                });
                Value::Object(fields.collect::<Map<String, Value>>())
            }
            other => other,
        }
    }
}

/// Characters that Unicode reserves as noncharacters: no text has a reason to contain them.
fn noncharacters() -> impl Iterator<Item = char> {
    let planes = (0..=0x10u32).flat_map(|plane| [plane << 16 | 0xfffe, plane << 16 | 0xffff]);
    (0xfdd0..=0xfdefu32).chain(planes).filter_map(char::from_u32)
}

pub(super) fn is_noncharacter(c: char) -> bool {
    let code = u32::from(c);
    (0xfdd0..=0xfdef).contains(&code) || code & 0xfffe == 0xfffe
}

/// `N` noncharacters that occur in none of the values.
pub(super) fn unused_marks<const N: usize>(values: &[&Value]) -> Result<[char; N], String> {
    let mut used = HashSet::new();
    values.iter().try_for_each(|value| collect(value, 0, &mut used))?;
    let mut free = noncharacters().filter(|c| !used.contains(c));
    let mut marks = ['\0'; N];
    for mark in &mut marks {
        *mark = free.next().ok_or("the messages use every Unicode noncharacter; remove some of them")?;
    }
    Ok(marks)
}

fn collect(value: &Value, depth: usize, used: &mut HashSet<char>) -> Result<(), String> {
    if depth > DEPTH_MAX {
        return Err(format!("the messages or tools are nested more than {DEPTH_MAX} levels deep"));
    }
    match value {
        Value::String(text) => used.extend(text.chars().filter(|&c| is_noncharacter(c))),
        Value::Array(items) => items.iter().try_for_each(|item| collect(item, depth + 1, used))?,
        Value::Object(fields) => fields.iter().try_for_each(|(key, item)| {
            used.extend(key.chars().filter(|&c| is_noncharacter(c)));
            collect(item, depth + 1, used)
        })?,
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MARK: char = '\u{fdd0}';
    const TOKENS: [&str; 5] = ["<|im_start|>", "<|im_end|>", "<|user|>", "<s>", "[INST]"];

    fn guard(literals: &[&str]) -> Guard {
        let literals: Vec<String> = literals.iter().map(|s| (*s).to_owned()).collect();
        Guard::new(TOKENS.iter().map(|s| (*s).to_owned()), &literals).unwrap()
    }

    fn show(text: &str) -> String {
        guard(&[]).text(text, MARK).replace(MARK, "#")
    }

    #[test]
    fn marks_tokens_and_seams_only() {
        assert_eq!(show("hello <b> </s> [x] <|x|> ok"), "hello <b> </s> [x] <|x|> ok");
        assert_eq!(show("a<|im_end|>b<S>c"), "a<#|im_end|>b<#S>c");
        assert_eq!(show("text <|im_"), "text <|im#_");
        assert_eq!(show("end|> text"), "e#nd|> text");
        assert_eq!(show("less <"), "less <#");
        assert_eq!(show("> quote"), "#> quote");
        assert_eq!(show("x <|i \n"), "x <|#i \n");
        assert_eq!(show(""), "");
    }

    #[test]
    fn holes_are_closed_to_all_but_roles() {
        let guard = guard(&["<|", "|>\n"]);
        let value = serde_json::json!({"role": "user", "content": "user", "name": " IM_END ", "type": "text"});
        let marked = guard.json(value, "", MARK);
        assert_eq!(marked["role"], "user");
        assert_eq!(marked["content"], format!("u{MARK}ser"));
        assert_eq!(marked["name"], format!(" I{MARK}M_END "));
        assert_eq!(marked["type"], "text");
        assert_eq!(guard.json(serde_json::json!({"role": "im_end"}), "", MARK)["role"], format!("i{MARK}m_end"));
    }

    #[test]
    fn marks_avoid_the_request() {
        let value = serde_json::json!({"a\u{fdd0}": ["\u{fdd1}"]});
        assert_eq!(unused_marks::<2>(&[&value]).unwrap(), ['\u{fdd2}', '\u{fdd3}']);
        let all: String = noncharacters().collect();
        assert!(unused_marks::<1>(&[&Value::String(all)]).is_err());
        let deep = (0..1000).fold(Value::Null, |inner, _| Value::Array(vec![inner]));
        assert!(unused_marks::<1>(&[&deep]).is_err_and(|e| e.contains("nested")));
    }

    /// Pieces that make control tokens likely.
    fn hostile() -> impl Strategy<Value = String> {
        let pieces = [
            "<", "|", ">", "im_", "end", "start", "<|", "|>", "<s", "s>", "[INST", "]", "user", " ", "\n", "é",
            "IM_END",
        ];
        proptest::collection::vec(proptest::sample::select(pieces.to_vec()), 0..8).prop_map(|list| list.concat())
    }

    proptest! {
        /// User strings in a row, trimmed or not, between any template text, never show a control token that the
        /// template text alone does not.
        #[test]
        fn no_token_is_assembled(
            said in proptest::collection::vec(hostile(), 1..4),
            around in proptest::collection::vec(proptest::sample::select(vec!["", "<", "<|", "|>", ">", "\n", "<|im_end|>", "<s>", "<|im_start|>"]), 5),
            trim in any::<bool>(),
        ) {
            let guard = guard(&around);
            let mut prompt = around[0].to_owned();
            for (index, text) in said.iter().enumerate() {
                let marked = guard.text(text, MARK);
                prop_assert_eq!(marked.replace(MARK, ""), text.as_str());
                prompt.push_str(if trim { marked.trim() } else { &marked });
                prompt.push_str(around[index + 1]);
            }
            let count = |text: &str| TOKENS.iter().map(|token| text.matches(token).count()).sum::<usize>();
            let written: usize = around[..=said.len()].iter().map(|text| count(text)).sum();
            // Empty strings leave template text side by side: what it forms then is its own.
            let own = {
                let mut bare = around[0].to_owned();
                for (index, text) in said.iter().enumerate() {
                    if !(if trim { text.trim() } else { text }).is_empty() { bare.push('\0'); }
                    bare.push_str(around[index + 1]);
                }
                count(&bare)
            };
            prop_assert_eq!(count(&prompt), own.max(written), "{:?}", prompt);
        }
    }
}
