//! llama.cpp's grammar notation (GBNF) as Lark.
use std::collections::HashMap;
use std::fmt::Write as _;

use super::GrammarError;

/// Deepest nesting of parentheses.
const DEPTH_MAX: usize = 64;
/// Most repetitions that may be counted.
const REPEAT_MAX: usize = 10_000;

/// Whether a line begins as a rule of GBNF does; in Lark a rule's name is followed by a single colon.
pub(super) fn is_gbnf(text: &str) -> bool {
    text.lines().any(|line| {
        let name = line.trim_start();
        let rest = name.trim_start_matches(is_name);
        rest.len() < name.len() && rest.trim_start().starts_with("::=")
    })
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-' || c == '_'
}

/// The same language as Lark, with `root` as its start.
pub(super) fn to_lark(text: &str) -> Result<String, GrammarError> {
    let mut parser = Parser { text, at: 0, names: HashMap::new(), defined: Vec::new(), depth: 0 };
    let mut lark = String::new();
    parser.space(true);
    while !parser.rest().is_empty() {
        parser.rule(&mut lark)?;
        parser.space(true);
    }
    if !parser.defined.contains(&"root") {
        return Err(GrammarError::invalid("it has no rule named `root`, where a GBNF grammar starts"));
    }
    let undefined = parser.names.keys().filter(|name| !parser.defined.contains(name)).min();
    match undefined {
        Some(name) => Err(GrammarError::invalid(format!("the rule `{name}` is used but not defined"))),
        None => Ok(lark),
    }
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
    /// Each rule's name in Lark, where names are lower case and `start` is special.
    names: HashMap<&'t str, String>,
    defined: Vec<&'t str>,
    depth: usize,
}

impl<'t> Parser<'t> {
    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    fn error(&self, what: &str) -> GrammarError {
        let before = &self.text[..self.at];
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|&c| c != '\n').count() + 1;
        GrammarError::invalid(format!("line {line}, column {column}: {what}"))
    }

    /// Skips spaces and comments, and the ends of lines if `lines`.
    fn space(&mut self, lines: bool) {
        loop {
            let rest = self.rest();
            match rest.chars().next() {
                Some('#') => self.at += rest.find('\n').unwrap_or(rest.len()),
                Some('\n' | '\r') if !lines => return,
                Some(c) if c.is_ascii_whitespace() => self.at += 1,
                _ => return,
            }
        }
    }

    fn take(&mut self, text: &str) -> bool {
        let found = self.rest().starts_with(text);
        self.at += if found { text.len() } else { 0 };
        found
    }

    fn name(&mut self) -> Result<&'t str, GrammarError> {
        let rest = self.rest();
        let name = &rest[..rest.find(|c| !is_name(c)).unwrap_or(rest.len())];
        if name.is_empty() {
            return Err(self.error("a rule's name is expected here"));
        }
        self.at += name.len();
        Ok(name)
    }

    fn lark_name(&mut self, name: &'t str) -> &str {
        let next = self.names.len();
        self.names.entry(name).or_insert_with(|| if name == "root" { "start".to_owned() } else { format!("r{next}") })
    }

    fn rule(&mut self, out: &mut String) -> Result<(), GrammarError> {
        let name = self.name()?;
        if self.defined.contains(&name) {
            return Err(self.error(&format!("the rule `{name}` is defined twice")));
        }
        self.defined.push(name);
        self.space(false);
        if !self.take("::=") {
            return Err(self.error("`::=` is expected after a rule's name"));
        }
        let _ = write!(out, "{}:", self.lark_name(name));
        self.alternatives(out, false)?;
        out.push('\n');
        match self.rest().chars().next() {
            None | Some('\n' | '\r') => Ok(()),
            Some(c) => Err(self.error(&format!("`{c}` is not expected here"))),
        }
    }

    fn alternatives(&mut self, out: &mut String, nested: bool) -> Result<(), GrammarError> {
        // After `::=`, `(` and `|` the line may end.
        self.space(true);
        loop {
            self.sequence(out, nested)?;
            // A rule goes on in the next line if that begins with `|`.
            let end = self.at;
            self.space(true);
            if !self.take("|") {
                self.at = if nested { self.at } else { end };
                return Ok(());
            }
            out.push_str(" |");
            self.space(true);
        }
    }

    fn sequence(&mut self, out: &mut String, nested: bool) -> Result<(), GrammarError> {
        let mut empty = true;
        loop {
            self.space(nested);
            let start = out.len();
            out.push(' ');
            match self.rest().chars().next() {
                Some('"') => self.literal(out)?,
                Some('[') => self.class(out)?,
                Some('.') => {
                    self.at += 1;
                    out.push_str("/(?s:.)/");
                }
                Some('(') => self.group(out)?,
                Some('<' | '!') => return Err(self.error("tokens by name or number are not supported")),
                Some(c) if is_name(c) => {
                    let name = self.name()?;
                    let name = self.lark_name(name).to_owned();
                    out.push_str(&name);
                }
                _ => {
                    out.truncate(start);
                    out.push_str(if empty { " \"\"" } else { "" });
                    return Ok(());
                }
            }
            empty = false;
            self.repetition(out, start)?;
        }
    }

    fn group(&mut self, out: &mut String) -> Result<(), GrammarError> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(GrammarError::too_large(format!("its parentheses are nested more than {DEPTH_MAX} deep")));
        }
        self.at += 1;
        out.push('(');
        self.alternatives(out, true)?;
        if !self.take(")") {
            return Err(self.error("`)` is expected here"));
        }
        out.push(')');
        self.depth -= 1;
        Ok(())
    }

    /// What follows an item, which stands in `out` from `start` on.
    fn repetition(&mut self, out: &mut String, start: usize) -> Result<(), GrammarError> {
        let mut repeated = false;
        loop {
            self.space(false);
            let rest = self.rest();
            let suffix = match rest.chars().next() {
                Some(c @ ('*' | '+' | '?')) => {
                    self.at += 1;
                    c.to_string()
                }
                Some('{') => {
                    let end = rest.find('}').ok_or_else(|| self.error("this `{` is not closed"))?;
                    let suffix = self.count(&rest[1..end])?;
                    self.at += end + 1;
                    suffix
                }
                _ => return Ok(()),
            };
            if repeated {
                out.insert(start + 1, '(');
                out.push(')');
            }
            repeated = true;
            if suffix == "{0,0}" {
                out.truncate(start);
                out.push_str(" \"\"");
            } else {
                out.push_str(&suffix);
            }
        }
    }

    fn count(&self, text: &str) -> Result<String, GrammarError> {
        let number = |text: &str| {
            let number =
                text.trim().parse::<usize>().map_err(|_| self.error("counts are numbers: {2}, {2,} or {2,5}"))?;
            if number > REPEAT_MAX {
                return Err(GrammarError::too_large(format!(
                    "it counts to {number}, more than the limit of {REPEAT_MAX}"
                )));
            }
            Ok(number)
        };
        match text.split_once(',') {
            None => number(text).map(|n| format!("{{{n},{n}}}")),
            Some((low, "")) => number(low).map(|low| format!("{{{low},}}")),
            Some((low, high)) => {
                let (low, high) = (number(low)?, number(high)?);
                if low > high {
                    return Err(self.error(&format!("the count {{{low},{high}}} is empty")));
                }
                Ok(format!("{{{low},{high}}}"))
            }
        }
    }

    fn literal(&mut self, out: &mut String) -> Result<(), GrammarError> {
        self.at += 1;
        let mut text = String::new();
        while !self.take("\"") {
            text.push(self.character()?.0);
        }
        // JSON's notation, in which Lark writes strings; DEL may not stand there as itself.
        let quoted = serde_json::Value::from(text).to_string();
        out.push_str(&quoted.replace('\u{7f}', "\\u007f"));
        Ok(())
    }

    fn class(&mut self, out: &mut String) -> Result<(), GrammarError> {
        self.at += 1;
        let negated = self.take("^");
        out.push_str(if negated { "/[^" } else { "/[" });
        let mut empty = true;
        while !self.take("]") {
            let (low, _) = self.character()?;
            let mut high = low;
            if self.rest().starts_with('-') && !self.rest().starts_with("-]") {
                self.at += 1;
                high = self.character()?.0;
            }
            if low > high {
                return Err(self.error(&format!("the range from `{low}` to `{high}` is empty")));
            }
            let _ = write!(out, "\\u{{{:X}}}-\\u{{{:X}}}", u32::from(low), u32::from(high));
            empty = false;
        }
        if empty {
            return Err(self.error("this class has no characters"));
        }
        out.push_str("]/");
        Ok(())
    }

    /// A character of a literal or a class, and whether it was escaped.
    fn character(&mut self) -> Result<(char, bool), GrammarError> {
        let mut chars = self.rest().chars();
        let first = chars
            .next()
            .filter(|&c| c != '\n')
            .ok_or_else(|| self.error("this line ends inside of a literal or a class"))?;
        self.at += first.len_utf8();
        if first != '\\' {
            return Ok((first, false));
        }
        let escaped = chars.next().ok_or_else(|| self.error("there is nothing after the backslash"))?;
        self.at += escaped.len_utf8();
        let digits = match escaped {
            'n' => return Ok(('\n', true)),
            'r' => return Ok(('\r', true)),
            't' => return Ok(('\t', true)),
            '"' | '\\' | '[' | ']' | '-' | '^' | '/' | '.' => return Ok((escaped, true)),
            'x' => 2,
            'u' => 4,
            'U' => 8,
            other => return Err(self.error(&format!("the escape `\\{other}` is not known"))),
        };
        let code = self.rest().get(..digits).and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let found = code.and_then(char::from_u32);
        let found = found
            .ok_or_else(|| self.error(&format!("{digits} hexadecimal digits of a character are expected here")))?;
        self.at += digits;
        Ok((found, true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_notation_is_told_from_lark() {
        assert!(is_gbnf("# a comment\nroot ::= \"a\""));
        assert!(is_gbnf("  my-rule_1::="));
        assert!(!is_gbnf("start: \"a ::= b\"\nRULE: /::=/"));
        assert!(!is_gbnf("::="));
    }

    #[test]
    fn rules_become_rules_of_lark() {
        let text = "root ::= item (\",\" item)* # more\n  | \"\\\"x\\n\\x7f\"\nitem ::=\n [a-z\\]_-]+ | [^\"\\u00e9] {2,3} .?\n";
        let lark = to_lark(text).unwrap();
        assert_eq!(
            lark,
            "start: r1 ( \",\" r1)* | \"\\\"x\\n\\u007f\"\n\
             r1: /[\\u{61}-\\u{7A}\\u{5D}-\\u{5D}\\u{5F}-\\u{5F}\\u{2D}-\\u{2D}]/+ | /[^\\u{22}-\\u{22}\\u{E9}-\\u{E9}]/{2,3} /(?s:.)/?\n"
        );
        assert_eq!(to_lark("root ::= \"a\"{2}{3} | \"b\"{0}").unwrap(), "start: (\"a\"{2,2}){3,3} | \"\"\n");
        assert_eq!(to_lark("root ::= ( | \"a\")").unwrap(), "start: ( \"\" | \"a\")\n");
    }

    #[test]
    fn errors_say_where() {
        let error = |text: &str| to_lark(text).unwrap_err().to_string();
        assert_eq!(error("root ::= \"a\"\nx y"), "line 2, column 3: `::=` is expected after a rule's name");
        assert_eq!(error("x ::= \"a\""), "it has no rule named `root`, where a GBNF grammar starts");
        assert_eq!(error("root ::= x"), "the rule `x` is used but not defined");
        for bad in [
            "root ::= \"a",
            "root ::= [a",
            "root ::= [",
            "root ::= (\"a\"",
            "root ::= \"a\")",
            "root ::= []",
            "root ::= [z-a]",
            "root ::= \"\\q\"",
            "root ::= \"\\x4\"",
            "root ::= \"\\",
            "root ::= \"a\"{",
            "root ::= \"a\"{x}",
            "root ::= \"a\"{3,1}",
            "root ::= <1>",
            "root ::= \"a\"\nroot ::= \"b\"",
            "root ::= \"\\uD800\"",
            "root ::= $",
        ] {
            assert!(matches!(to_lark(bad), Err(GrammarError::Invalid { .. })), "{bad}");
        }
        for large in [format!("root ::= {}", "(".repeat(100_000)), "root ::= \"a\"{100000000}".to_owned()] {
            assert!(matches!(to_lark(&large), Err(GrammarError::TooLarge { .. })));
        }
    }
}
