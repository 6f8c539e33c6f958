//! The grammar of a text as the grammar of that text inside a JSON string, where some characters are escaped.
//!
//! A custom tool's input is free text for the tool's owner, but models write it as a string in a call's JSON. A grammar's
//! structure stays as it is; its literals and regular expressions are rewritten: a quotation mark, a backslash and the
//! control characters that have a short escape in JSON become that escape, all others stand for themselves.
//!
//! A lexer takes each lexeme as far as it goes and looks one byte ahead. After a backslash it would be too late to find out
//! that `.*` ends before a newline. So a repeated class of characters becomes a repetition of lexemes, each escape being one,
//! and other lexemes that may go on with an escape where another one begins are refused.
use regex_syntax::hir::{Class, ClassUnicode, ClassUnicodeRange, Hir, HirKind, Repetition};
use serde_json::Value;

use super::GrammarError;
use super::budget::{QuoteBudget, REGEX_BYTES_MAX};
use super::compiler::LARK_BYTES_MAX;

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
/// well formed, `TooLarge` where the `budget` is spent. (What else is wrong with it is found when it is compiled.)
pub fn json_quoted(lark: &str, budget: &mut QuoteBudget) -> Result<String, GrammarError> {
    budget.take_definition(lark, LARK_BYTES_MAX)?;
    let mut out = String::with_capacity(2 * lark.len());
    let mut source = Source { rest: lark, line: 1 };
    let mut lexemes = Lexemes::default();
    // The definition of a terminal, which is one lexeme: else what stands there is a lexeme by itself.
    let mut in_terminal = false;
    let mut at_line_start = true;
    while let Some(c) = source.rest.chars().next() {
        budget.check_quoted(&out)?;
        let before = source;
        if at_line_start && !c.is_whitespace() {
            at_line_start = false;
            if !matches!(c, '|' | '#' | '/') {
                let name = source.rest.trim_start_matches(['_', '!', '?']);
                in_terminal = c == '%' || name.starts_with(char::is_uppercase);
            }
        }
        at_line_start |= c == '\n';
        match c {
            '"' => {
                let first = source.literal()?;
                let hir = match source.range() {
                    None => literal(first, &before, budget)?,
                    Some(mut last) => {
                        let end = last.literal()?;
                        source = last;
                        range(first, end, &before)?
                    }
                };
                out.push_str(&lexemes.quoted(&hir, None, in_terminal, &before, budget)?);
            }
            '/' if source.rest.starts_with("//") => source.skip_line(),
            '#' => source.skip_line(),
            '/' => {
                let written = source.regex()?;
                let hir = parse(written, &before, budget)?;
                out.push_str(&lexemes.quoted(&hir, Some(written), in_terminal, &before, budget)?);
            }
            '%' => {
                let word = source.take(|c| c == '%' || c.is_ascii_alphabetic());
                match word {
                    "%ignore" => out.push_str(word),
                    "%import" => out.push_str(&lexemes.imported(source.take(|c| c != '\n'), &before, budget)?),
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
    lexemes.check()?;
    budget.take_quoted(&out)?;
    Ok(out)
}

/// A regular expression for a whole text as one for that text inside a JSON string.
///
/// # Errors
/// As [`json_quoted`].
pub fn json_quoted_regex(regex: &str, budget: &mut QuoteBudget) -> Result<String, GrammarError> {
    budget.take_definition(regex, REGEX_BYTES_MAX)?;
    let at = Source { rest: "", line: 1 };
    let written = slashed(super::compiler::without_anchors(regex));
    let hir = parse((&written, ""), &at, budget)?;
    let quoted = quoted_hir(&hir, &at)?;
    // Lark has no regular expression of several lines, and takes an empty one for a comment.
    let stays = quoted == hir && !written.is_empty() && !written.contains('\n');
    let out = if stays { format!("/{written}/") } else { regex_literal(&quoted, budget)? };
    budget.take_quoted(&out)?;
    Ok(out)
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

fn literal((literal, any_case): (&str, bool), at: &Source, budget: &mut QuoteBudget) -> Result<Hir, GrammarError> {
    let text = unescaped(literal, at)?;
    match any_case {
        true => parse((&regex_syntax::escape(&text), "i"), at, budget),
        false => Ok(Hir::literal(text.into_bytes())),
    }
}

fn range(first: (&str, bool), last: (&str, bool), at: &Source) -> Result<Hir, GrammarError> {
    let one = |(literal, any_case): (&str, bool)| {
        let text = unescaped(literal, at)?;
        let mut chars = text.chars();
        match (chars.next(), chars.next(), any_case) {
            (Some(c), None, false) => Ok(c),
            _ => Err(at.invalid("the range", "it must stand between two single characters")),
        }
    };
    let class = ClassUnicode::new([ClassUnicodeRange::new(one(first)?, one(last)?)]);
    Ok(Hir::class(Class::Unicode(class)))
}

/// A regular expression and its flags.
fn parse((body, flags): (&str, &str), at: &Source, budget: &mut QuoteBudget) -> Result<Hir, GrammarError> {
    let flags: String = flags.chars().filter(|flag| "imsx".contains(*flag)).collect();
    let pattern = if flags.is_empty() { body.to_owned() } else { format!("(?{flags}:{body})") };
    budget.parse(&pattern)?.map_err(|error| {
        let reason = error.to_string();
        at.invalid("the regular expression", reason.lines().last().unwrap_or_default())
    })
}

/// What is known of a grammar's lexemes: each with its line, as it was quoted.
#[derive(Default)]
struct Lexemes {
    /// Those that may begin with an escape.
    begin: Vec<String>,
    /// Those that may go on with an escape where they could end.
    go_on: Vec<(String, usize)>,
}

impl Lexemes {
    /// A literal, a range or a regular expression (as it was `written`) inside a JSON string.
    fn quoted(
        &mut self,
        hir: &Hir,
        written: Option<(&str, &str)>,
        in_terminal: bool,
        at: &Source,
        budget: &QuoteBudget,
    ) -> Result<String, GrammarError> {
        let quoted = quoted_hir(hir, at)?;
        if quoted == *hir {
            return Ok(match (written, hir.kind()) {
                (Some((body, flags)), _) => format!("/{body}/{flags}"),
                (None, HirKind::Literal(text)) => Value::from(String::from_utf8_lossy(&text.0)).to_string(),
                (None, HirKind::Empty) => "\"\"".to_owned(),
                (None, _) => regex_literal(hir, budget)?,
            });
        }
        if !in_terminal && let Some(repeated) = self.repeated_class(hir, at, budget)? {
            return Ok(repeated);
        }
        let text = match quoted.kind() {
            HirKind::Literal(text) => Value::from(String::from_utf8_lossy(&text.0)).to_string(),
            _ => regex_literal(&quoted, budget)?,
        };
        if begins(hir) {
            self.begin.push(text.clone());
        }
        if goes_on(hir) {
            self.go_on.push((text.clone(), at.line));
        }
        Ok(text)
    }

    /// A repeated class with characters that are escaped, as a repetition of lexemes.
    fn repeated_class(&mut self, hir: &Hir, at: &Source, budget: &QuoteBudget) -> Result<Option<String>, GrammarError> {
        let HirKind::Repetition(Repetition { min, max, sub, .. }) = within(hir).kind() else { return Ok(None) };
        let HirKind::Class(Class::Unicode(class)) = within(sub).kind() else { return Ok(None) };
        let (plain, escapes) = split(class, at)?;
        let escapes: Vec<String> = escapes.iter().map(|escape| Value::from(*escape).to_string()).collect();
        self.begin.extend(escapes.iter().cloned());
        let class = slashed(&budget.print(&Hir::class(Class::Unicode(plain.clone())))?);
        let one_of = |many: bool| {
            let plain = (!plain.ranges().is_empty()).then(|| format!("/{class}{}/", if many { "+" } else { "" }));
            format!("({})", plain.into_iter().chain(escapes.iter().cloned()).collect::<Vec<_>>().join(" | "))
        };
        Ok(Some(match (min, max) {
            (0, None) => format!("({}*)", one_of(true)),
            (1, None) => format!("({}+)", one_of(true)),
            (0, Some(1)) => format!("({}?)", one_of(false)),
            (min, Some(max)) => format!("({} ~ {min}..{max})", one_of(false)),
            (min, None) => format!("({} ~ {min} {}*)", one_of(false), one_of(true)),
        }))
    }

    /// `%import`: what Lark's `common` defines with escaped characters is defined here, quoted.
    fn imported(&mut self, path: &str, at: &Source, budget: &mut QuoteBudget) -> Result<String, GrammarError> {
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
        let mut lines = Vec::new();
        for name in names.split(',').map(str::trim) {
            let own = alias.unwrap_or(name);
            lines.push(match COMMON.iter().find(|(known, _)| *known == name) {
                Some((_, regex)) => {
                    let hir = parse((regex, ""), at, budget)?;
                    format!("{own}: {}", self.quoted(&hir, Some((&slashed(regex), "")), true, at, budget)?)
                }
                None => {
                    format!("%import common.{name}{}", alias.map(|own| format!(" -> {own}")).unwrap_or_default())
                }
            });
        }
        Ok(lines.join("\n"))
    }

    fn check(&self) -> Result<(), GrammarError> {
        let unclear = |lexeme: &String| self.begin.iter().any(|other| other != lexeme);
        match self.go_on.iter().find(|(lexeme, _)| unclear(lexeme)) {
            None => Ok(()),
            Some((lexeme, line)) => Err(GrammarError::Unsupported {
                keyword: lexeme.clone(),
                path: format!("line {line}"),
                hint: " in the grammar of a custom tool, as written in JSON: where it ends may be unclear; write it as a rule"
                    .to_owned(),
            }),
        }
    }
}

/// What a group holds.
fn within(hir: &Hir) -> &Hir {
    match hir.kind() {
        HirKind::Capture(capture) => within(&capture.sub),
        _ => hir,
    }
}

fn is_special(c: char) -> bool {
    c < ' ' || matches!(c, '"' | '\\')
}

fn may_be_empty(hir: &Hir) -> bool {
    hir.properties().minimum_len() == Some(0)
}

/// Whether a match may begin with a character that is escaped.
fn begins(hir: &Hir) -> bool {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => false,
        HirKind::Literal(text) => text.0.first().is_some_and(|byte| is_special(char::from(*byte))),
        HirKind::Class(Class::Unicode(class)) => class
            .iter()
            .any(|range| ('\0'..='\\').contains(&range.start()) && (range.start()..=range.end()).any(is_special)),
        HirKind::Class(Class::Bytes(_)) => true,
        HirKind::Repetition(repetition) => begins(&repetition.sub),
        HirKind::Capture(capture) => begins(&capture.sub),
        HirKind::Alternation(parts) => parts.iter().any(begins),
        HirKind::Concat(parts) => {
            let empty = parts.iter().take_while(|part| may_be_empty(part)).count();
            parts.iter().take(empty + 1).any(begins)
        }
    }
}

/// Whether a match may be longer than another one by what begins with a character that is escaped.
fn goes_on(hir: &Hir) -> bool {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) | HirKind::Literal(_) | HirKind::Class(_) => false,
        HirKind::Repetition(repetition) => {
            let is_fixed = repetition.max == Some(repetition.min);
            !is_fixed && begins(&repetition.sub) || goes_on(&repetition.sub)
        }
        HirKind::Capture(capture) => goes_on(&capture.sub),
        HirKind::Alternation(parts) => parts.iter().any(goes_on),
        HirKind::Concat(parts) => {
            let empty = parts.iter().rev().take_while(|part| may_be_empty(part)).count();
            parts.iter().rev().take(empty + 1).any(goes_on)
        }
    }
}

/// A character as JSON writes it inside a string.
fn quoted_char(c: char) -> String {
    let text = Value::from(c.to_string()).to_string();
    text[1..text.len() - 1].to_owned()
}

fn regex_literal(hir: &Hir, budget: &QuoteBudget) -> Result<String, GrammarError> {
    Ok(format!("/{}/", slashed(&budget.print(hir)?)))
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
    let (plain, escapes) = split(class, at)?;
    let mut parts: Vec<Hir> = escapes.into_iter().map(|escape| Hir::literal(escape.as_bytes())).collect();
    if !plain.ranges().is_empty() {
        parts.push(Hir::class(Class::Unicode(plain)));
    }
    Ok(Hir::alternation(parts))
}

/// The characters of a class that stand for themselves, and the escapes of the others.
fn split(class: &ClassUnicode, at: &Source) -> Result<(ClassUnicode, Vec<&'static str>), GrammarError> {
    let special = [('\0', '\u{1f}'), ('"', '"'), ('\\', '\\')];
    let special = ClassUnicode::new(special.map(|(first, last)| ClassUnicodeRange::new(first, last)));
    let mut plain = class.clone();
    plain.difference(&special);
    let has = |c: char| class.iter().any(|range| (range.start()..=range.end()).contains(&c));
    let escapes: Vec<&str> = ESCAPED.iter().filter(|(c, _)| has(*c)).map(|(_, escape)| *escape).collect();
    if plain.ranges().is_empty() && escapes.is_empty() {
        return Err(at.unsupported("a class of control characters alone"));
    }
    Ok((plain, escapes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json_quoted(lark: &str) -> Result<String, GrammarError> {
        super::json_quoted(lark, &mut QuoteBudget::default())
    }

    fn json_quoted_regex(regex: &str) -> Result<String, GrammarError> {
        super::json_quoted_regex(regex, &mut QuoteBudget::default())
    }

    #[test]
    fn what_costs_too_much_is_refused_at_once() {
        let classes = r"\w".repeat(2048);
        let many = "/a/ ".repeat(5000);
        for (outcome, reason) in [
            (json_quoted_regex(&classes), "classes"),
            (json_quoted_regex(&"a".repeat(5000)), "5000 bytes"),
            (json_quoted(&format!("start: /{classes}/")), "classes"),
            (json_quoted(&format!("start: {many}")), "bytes"),
            (json_quoted_regex(&r"\W".repeat(100)), "inside JSON"),
            (json_quoted(&format!("start: {}", r"/x\W/ ".repeat(100))), "inside JSON"),
        ] {
            let error = outcome.unwrap_err();
            assert!(matches!(&error, GrammarError::TooLarge { .. }) && error.to_string().contains(reason), "{error}");
        }
        let mut budget = QuoteBudget::default();
        let mut quote = || super::json_quoted_regex(&r"\w".repeat(100), &mut budget);
        assert!((0..5).all(|_| quote().is_ok()) && quote().is_err(), "all tools share a budget");
    }

    #[test]
    fn regular_expressions_without_escapes_stay_as_written() {
        assert_eq!(json_quoted_regex(r"^\w+@\w+\.\w+/$").unwrap(), r"/\w+@\w+\.\w+\//");
        assert_eq!(json_quoted_regex("").unwrap(), "/(?:)/");
        assert_eq!(json_quoted_regex("(?x)a\nb").unwrap(), "/(?:ab)/");
    }

    #[test]
    fn literals_are_escaped_as_json_does() {
        let rewritten =
            json_quoted("start: \"say \\\"hi\\\"\" \"a/b\" // a \"comment\"\n  | /x\\/y/ \"\\\\\" # {another}\n");
        assert_eq!(rewritten.unwrap(), "start: \"say \\\\\\\"hi\\\\\\\"\" \"a/b\" \n  | /x\\/y/ \"\\\\\\\\\" \n");
        assert_eq!(
            json_quoted("start: \"a\" ~ 2..3 [\"b\"] /[a-z]+/i").unwrap(),
            "start: \"a\" ~ 2..3 [\"b\"] /[a-z]+/i"
        );
    }

    #[test]
    fn classes_keep_what_stands_for_itself() {
        let regex = |text: &str| json_quoted(&format!("start: {text}")).unwrap().replace("start: ", "");
        assert_eq!(regex(r"/[a-f]+\w\//"), r"/[a-f]+\w\//");
        assert_eq!(regex(r"/[\n]/"), r#""\\n""#);
        assert_eq!(regex(r#"/(["a]*)/"#), r#"((/a+/ | "\\\"")*)"#);
        assert_eq!(regex(r#"/[\n"]{2,3}/"#), r#"(("\\\"" | "\\n") ~ 2..3)"#);
        assert!(regex("/./").contains(r"\\\\"), "{}", regex("/./"));
        assert_eq!(regex("\"0\"..\"9\""), "/[0-9]/");
    }

    #[test]
    fn lexemes_whose_end_would_be_unclear_are_refused() {
        assert!(json_quoted("start: (/.*/ LF)+\n%import common.LF").is_ok());
        assert!(json_quoted("start: STRING (LF STRING)*\nSTRING: /\"[^\"]*\"/\n%import common.LF").is_ok());
        assert!(json_quoted("start: X\nX: /x[^y]*/").is_ok(), "nothing follows it");
        let error = json_quoted("start: (X LF)+\nX: /x.*/\n%import common.LF").unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
        assert!(json_quoted("start: /a|b.*/ \"\\n\"").is_err());
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
