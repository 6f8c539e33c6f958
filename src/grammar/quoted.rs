//! The grammar of a text as the grammar of that text inside a JSON string, where some characters are escaped.
//!
//! A custom tool's input is free text for the tool's owner, but models write it as a string in a call's JSON. A grammar's
//! structure stays as it is; its literals and regular expressions are rewritten: a quotation mark, a backslash and the
//! control characters that have a short escape in JSON become that escape, all others stand for themselves.
use regex_syntax::hir::{Class, ClassUnicode, ClassUnicodeRange, Hir, HirKind, Repetition};
use serde_json::Value;

use super::GrammarError;

/// What Lark's `common` defines with characters that are escaped in JSON.
const COMMON: [(&str, &str); 10] = [
    ("CR", r"\r"),
    ("LF", r"\n"),
    ("NEWLINE", r"(\r?\n)+"),
    ("WS", r"[ \t\f\r\n]+"),
    ("WS_INLINE", r"[ \t]+"),
    ("ESCAPED_STRING", r#""([^"\\]|\\.)*""#),
    ("SH_COMMENT", r"#[^\n]*"),
    ("CPP_COMMENT", r"//[^\n]*"),
    ("SQL_COMMENT", r"--[^\n]*"),
    ("C_COMMENT", r"/\*[^*]*\*+([^/*][^*]*\*+)*/"),
];

/// What has a short escape in JSON. The other control characters do not occur in classes of characters.
const ESCAPED: [(char, &str); 7] =
    [('"', r#"\""#), ('\\', r"\\"), ('\n', r"\n"), ('\r', r"\r"), ('\t', r"\t"), ('\u{8}', r"\b"), ('\u{c}', r"\f")];

/// Rewrites a grammar in Lark, whose `start` is a text, into the grammar of that text inside a JSON string.
///
/// # Errors
/// `Unsupported` where the grammar has what cannot be rewritten, `Invalid` where a literal or a regular expression is not
/// well formed. (What else is wrong with it is found when it is compiled.)
pub fn json_quoted(lark: &str) -> Result<String, GrammarError> {
    let mut out = String::with_capacity(2 * lark.len());
    let mut source = Source { rest: lark, line: 1 };
    while let Some(c) = source.rest.chars().next() {
        let before = source;
        match c {
            '"' => {
                let first = source.literal()?;
                match source.range() {
                    None => out.push_str(&quoted_literal(first, &before)?),
                    Some(mut last) => {
                        let end = last.literal()?;
                        out.push_str(&quoted_range(first, end, &before)?);
                        source = last;
                    }
                }
            }
            '/' if source.rest.starts_with("//") => source.skip_line(),
            '#' => source.skip_line(),
            '/' => {
                let (body, flags) = source.regex()?;
                out.push_str(&quoted_regex(body, flags, &before)?);
            }
            '%' => {
                let word = source.take(|c| c == '%' || c.is_ascii_alphabetic());
                match word {
                    "%ignore" => out.push_str(word),
                    "%import" => out.push_str(&imported(source.take(|c| c != '\n'), &before)?),
                    _ => return Err(before.unsupported(word)),
                }
            }
            // Templates, intersections, control tokens, other grammars, attributes with a value.
            '{' | '}' | '&' | '<' | '@' | '=' => return Err(before.unsupported(source.take(|x| x == c))),
            '~' => {
                source.take(|x| x == '~');
                if !source.rest.trim_start().starts_with(|c: char| c.is_ascii_digit()) {
                    return Err(before.unsupported("~"));
                }
                out.push('~');
            }
            ':' if source.rest.starts_with("::") => return Err(before.unsupported("::")),
            _ => {
                source.rest = &source.rest[c.len_utf8()..];
                source.line += usize::from(c == '\n');
                out.push(c);
            }
        }
    }
    Ok(out)
}

/// A regular expression for a whole text as one for that text inside a JSON string.
///
/// # Errors
/// As [`json_quoted`].
pub fn json_quoted_regex(regex: &str) -> Result<String, GrammarError> {
    let regex = super::compiler::without_anchors(regex);
    quoted_regex(&slashed(regex), "", &Source { rest: "", line: 1 })
}

/// A slash ends a regular expression in Lark.
fn slashed(regex: &str) -> String {
    let mut out = String::with_capacity(regex.len());
    let mut escaped = false;
    for c in regex.chars() {
        if c == '/' && !escaped {
            out.push('\\');
        }
        escaped = c == '\\' && !escaped;
        out.push(c);
    }
    out
}

/// What is left of a grammar to read.
#[derive(Clone, Copy)]
struct Source<'t> {
    rest: &'t str,
    line: usize,
}

impl<'t> Source<'t> {
    fn unsupported(&self, what: &str) -> GrammarError {
        GrammarError::Unsupported {
            keyword: what.to_owned(),
            path: format!("line {}", self.line),
            hint: " in the grammar of a custom tool".to_owned(),
        }
    }

    fn invalid(&self, what: &str, reason: impl std::fmt::Display) -> GrammarError {
        GrammarError::invalid(format!("{what} in line {}: {reason}", self.line))
    }

    fn take(&mut self, belongs: impl Fn(char) -> bool) -> &'t str {
        let end = self.rest.find(|c| !belongs(c)).unwrap_or(self.rest.len());
        self.take_bytes(end)
    }

    fn take_bytes(&mut self, end: usize) -> &'t str {
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }

    fn skip_line(&mut self) {
        self.take(|c| c != '\n');
    }

    /// Up to the `delimiter` that is not escaped, both delimiters included.
    fn delimited(&mut self, delimiter: char, what: &str) -> Result<&'t str, GrammarError> {
        let mut escaped = false;
        for (at, c) in self.rest.char_indices().skip(1) {
            match c {
                '\n' => break,
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                _ if c == delimiter => return Ok(self.take_bytes(at + 1)),
                _ => {}
            }
        }
        Err(self.invalid(what, "it is not closed"))
    }

    /// A string, with the `i` for any case that may follow it.
    fn literal(&mut self) -> Result<(&'t str, bool), GrammarError> {
        let text = self.delimited('"', "the string")?;
        Ok((text, !self.take_flag().is_empty()))
    }

    fn take_flag(&mut self) -> &'t str {
        self.take_bytes(usize::from(self.rest.starts_with('i')))
    }

    /// What follows the `..` of a range of characters.
    fn range(&self) -> Option<Self> {
        let rest = self.rest.trim_start_matches([' ', '\t']).strip_prefix("..")?.trim_start_matches([' ', '\t']);
        rest.starts_with('"').then_some(Self { rest, line: self.line })
    }

    fn regex(&mut self) -> Result<(&'t str, &'t str), GrammarError> {
        let text = self.delimited('/', "the regular expression")?;
        Ok((&text[1..text.len() - 1], self.take(|c| "imslux".contains(c))))
    }
}

fn unescaped(literal: &str, at: &Source) -> Result<String, GrammarError> {
    serde_json::from_str(literal).map_err(|_| at.invalid("the string", "it has an escape that JSON does not know"))
}

fn quoted_literal((literal, any_case): (&str, bool), at: &Source) -> Result<String, GrammarError> {
    let text = unescaped(literal, at)?;
    let quoted: String = text.chars().map(quoted_char).collect();
    Ok(match (any_case, quoted == text) {
        (false, _) => Value::from(quoted).to_string(),
        (true, true) => format!("{literal}i"),
        (true, false) => quoted_regex(&slashed(&regex_syntax::escape(&text)), "i", at)?,
    })
}

fn quoted_range(first: (&str, bool), last: (&str, bool), at: &Source) -> Result<String, GrammarError> {
    let one = |(literal, any_case): (&str, bool)| {
        let text = unescaped(literal, at)?;
        let mut chars = text.chars();
        match (chars.next(), chars.next(), any_case) {
            (Some(c), None, false) => Ok(c),
            _ => Err(at.invalid("the range", "it must stand between two single characters")),
        }
    };
    let class = ClassUnicode::new([ClassUnicodeRange::new(one(first)?, one(last)?)]);
    Ok(regex_literal(&quoted_class(&class, at)?))
}

/// A character as JSON writes it inside a string.
fn quoted_char(c: char) -> String {
    let text = Value::from(c.to_string()).to_string();
    text[1..text.len() - 1].to_owned()
}

fn imported(path: &str, at: &Source) -> Result<String, GrammarError> {
    let invalid = || at.invalid("`%import`", "write `%import common.NAME`");
    let (path, alias) = match path.split_once("->") {
        None => (path.trim(), None),
        Some((path, alias)) => (path.trim(), Some(alias.trim())),
    };
    let (names, is_list) = match path.strip_prefix("common").map(str::trim_start) {
        Some(rest) if rest.starts_with('.') => (rest[1..].trim(), false),
        Some(rest) => (rest.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')).ok_or_else(invalid)?, true),
        None => return Err(invalid()),
    };
    if is_list && alias.is_some() {
        return Err(invalid());
    }
    let define = |name: &str| {
        let name = name.trim();
        let known = COMMON.iter().find(|(known, _)| *known == name);
        let own = alias.unwrap_or(name);
        match known {
            Some((_, regex)) => Ok(format!("{own}: {}", quoted_regex(&slashed(regex), "", at)?)),
            None => Ok(format!("%import common.{name}{}", alias.map(|own| format!(" -> {own}")).unwrap_or_default())),
        }
    };
    let lines: Result<Vec<String>, GrammarError> = names.split(',').map(define).collect();
    Ok(lines?.join("\n"))
}

/// A regular expression in Lark's notation.
fn quoted_regex(body: &str, flags: &str, at: &Source) -> Result<String, GrammarError> {
    let flags: String = flags.chars().filter(|flag| "imsx".contains(*flag)).collect();
    let pattern = if flags.is_empty() { body.to_owned() } else { format!("(?{flags}:{body})") };
    let parsed = regex_syntax::parse(&pattern);
    let hir = parsed.map_err(|error| {
        let reason = error.to_string();
        at.invalid("the regular expression", reason.lines().last().unwrap_or_default())
    })?;
    let quoted = quoted_hir(&hir, at)?;
    // As it was written, where nothing in it is escaped.
    if quoted == hir { Ok(format!("/{body}/{flags}")) } else { Ok(regex_literal(&quoted)) }
}

fn regex_literal(hir: &Hir) -> String {
    format!("/{}/", slashed(&hir.to_string()))
}

fn quoted_hir(hir: &Hir, at: &Source) -> Result<Hir, GrammarError> {
    let all = |parts: &[Hir]| parts.iter().map(|part| quoted_hir(part, at)).collect::<Result<Vec<Hir>, _>>();
    Ok(match hir.kind() {
        HirKind::Empty => Hir::empty(),
        HirKind::Literal(literal) => {
            let text = std::str::from_utf8(&literal.0).map_err(|_| at.unsupported("bytes that are no text"))?;
            Hir::literal(text.chars().map(quoted_char).collect::<String>().into_bytes())
        }
        HirKind::Class(Class::Unicode(class)) => quoted_class(class, at)?,
        HirKind::Class(Class::Bytes(_)) => return Err(at.unsupported("bytes that are no text")),
        HirKind::Look(_) => return Err(at.unsupported("an anchor inside a regular expression")),
        HirKind::Repetition(repetition) => {
            let sub = Box::new(quoted_hir(&repetition.sub, at)?);
            Hir::repetition(Repetition { sub, ..repetition.clone() })
        }
        // Groups capture nothing here, but they stay, so that what needs no escape stays the same.
        HirKind::Capture(capture) => {
            let mut capture = capture.clone();
            *capture.sub = quoted_hir(&capture.sub, at)?;
            Hir::capture(capture)
        }
        HirKind::Concat(parts) => Hir::concat(all(parts)?),
        HirKind::Alternation(parts) => Hir::alternation(all(parts)?),
    })
}

fn quoted_class(class: &ClassUnicode, at: &Source) -> Result<Hir, GrammarError> {
    let special = [('\0', '\u{1f}'), ('"', '"'), ('\\', '\\')];
    let special = ClassUnicode::new(special.map(|(first, last)| ClassUnicodeRange::new(first, last)));
    let mut plain = class.clone();
    plain.difference(&special);
    if plain == *class {
        return Ok(Hir::class(Class::Unicode(plain)));
    }
    let has = |c: char| class.iter().any(|range| (range.start()..=range.end()).contains(&c));
    let mut parts: Vec<Hir> =
        ESCAPED.iter().filter(|(c, _)| has(*c)).map(|(_, escape)| Hir::literal(escape.as_bytes())).collect();
    if !plain.ranges().is_empty() {
        parts.push(Hir::class(Class::Unicode(plain)));
    }
    if parts.is_empty() {
        return Err(at.unsupported("a class of control characters alone"));
    }
    Ok(Hir::alternation(parts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_are_escaped_as_json_does() {
        let rewritten =
            json_quoted("start: \"say \\\"hi\\\"\" \"a/b\"i // a \"comment\"\n  | /x\\/y/ \"\\\\\" # {another}\n");
        assert_eq!(rewritten.unwrap(), "start: \"say \\\\\\\"hi\\\\\\\"\" \"a/b\"i \n  | /x\\/y/ \"\\\\\\\\\" \n");
        assert_eq!(
            json_quoted("start: \"a\" ~ 2..3 [\"b\"] /[a-z]+/i").unwrap(),
            "start: \"a\" ~ 2..3 [\"b\"] /[a-z]+/i"
        );
    }

    #[test]
    fn classes_keep_what_stands_for_itself() {
        let regex = |text: &str| json_quoted(&format!("start: {text}")).unwrap().replace("start: ", "");
        assert_eq!(regex(r"/[a-f]+\w\//"), r"/[a-f]+\w\//");
        assert_eq!(regex(r"/[\n]/"), r"/\\n/");
        assert_eq!(regex(r#"/["a]x/"#), r#"/(?:(?:\\"|a)x)/"#);
        assert!(regex("/./").contains(r"\\\\"), "{}", regex("/./"));
        assert_eq!(regex("\"0\"..\"9\""), "/[0-9]/");
    }

    #[test]
    fn what_cannot_be_rewritten_is_named_with_its_line() {
        for (lark, keyword) in [
            ("start: a\na: %json {}", "%json"),
            ("start: x{\"a\"}", "{"),
            ("start: /a/ & /b/", "&"),
            ("start: <|im_end|>", "<"),
            ("start: @other", "@"),
            ("start[stop=\"x\"]: /a/", "="),
            ("start: ~/a/", "~"),
            ("start::_: \"a\"", "::"),
            ("%declare A", "%declare"),
            ("start: /a\\b/", "an anchor inside a regular expression"),
            ("start: /[\\x00-\\x02]/", "a class of control characters alone"),
        ] {
            let error = json_quoted(lark).unwrap_err();
            assert!(
                matches!(&error, GrammarError::Unsupported { keyword: found, .. } if found == keyword),
                "{lark}: {error}"
            );
        }
        for (lark, line) in [
            ("start: \"a", 1),
            ("start: a\na: /x", 2),
            ("\n\nstart: /(/", 3),
            ("start: \"\\x41\"", 1),
            ("%import other.X", 1),
        ] {
            let error = json_quoted(lark).unwrap_err().to_string();
            assert!(error.contains(&format!("in line {line}")), "{lark}: {error}");
        }
    }
}
