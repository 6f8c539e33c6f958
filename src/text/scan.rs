//! A light lexical scan of Jinja source: its string literals and plain text, and `{% generation %}` tags. No grammar:
//! the template engine checks that.

/// A part of a template's source.
#[derive(Debug, PartialEq, Eq)]
enum Part<'a> {
    Text(&'a str),
    /// Inside of `{% … %}` or `{{ … }}`, with the delimiters.
    Tag(&'a str),
    Comment(&'a str),
}

fn parts(source: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let mut rest = source;
    while !rest.is_empty() {
        let Some(open) = ["{{", "{%", "{#"].iter().filter_map(|open| rest.find(open)).min() else {
            parts.push(Part::Text(rest));
            break;
        };
        if open > 0 {
            parts.push(Part::Text(&rest[..open]));
        }
        let tag = &rest[open..];
        let end = if tag.starts_with("{#") {
            tag.find("#}").map_or(tag.len(), |at| at + 2)
        } else {
            tag_end(tag, if tag.starts_with("{{") { "}}" } else { "%}" })
        };
        parts.push(if tag.starts_with("{#") { Part::Comment(&tag[..end]) } else { Part::Tag(&tag[..end]) });
        rest = &tag[end..];
    }
    parts
}

/// The end of a tag: the closing delimiter outside of string literals.
fn tag_end(tag: &str, close: &str) -> usize {
    let mut at = 2;
    while at < tag.len() {
        let byte = tag.as_bytes()[at];
        if byte == b'\'' || byte == b'"' {
            at = literal_end(tag, at);
        } else if tag.as_bytes()[at..].starts_with(close.as_bytes()) {
            return at + close.len();
        } else {
            at += 1;
        }
    }
    tag.len()
}

/// The byte after the string literal that opens at `open`.
fn literal_end(tag: &str, open: usize) -> usize {
    let bytes = tag.as_bytes();
    let mut at = open + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            byte if byte == bytes[open] => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// All constant text a template can print: its plain text and its string literals.
pub(super) fn literals(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    for part in parts(source) {
        match part {
            Part::Text(text) => {
                found.push(text.to_owned());
                found.push(text.trim().to_owned());
            }
            Part::Tag(tag) => {
                let mut at = 2;
                while at < tag.len() {
                    if matches!(tag.as_bytes()[at], b'\'' | b'"') {
                        let end = literal_end(tag, at);
                        let inner = tag.get(at + 1..end.saturating_sub(1)).unwrap_or_default();
                        found.push(inner.replace("\\n", "\n"));
                        at = end;
                    } else {
                        at += 1;
                    }
                }
            }
            Part::Comment(_) => {}
        }
    }
    found.retain(|literal| !literal.is_empty());
    found
}

/// The source with `{% generation %}` blocks (the reference uses them to mark what the assistant said) turned into
/// blocks that always render.
pub(super) fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    for part in parts(source) {
        match part {
            Part::Tag(tag) if tag.starts_with("{%") => {
                let inner = tag.trim_start_matches("{%").trim_end_matches("%}");
                let word = inner.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
                let (open, close) = match word {
                    "generation" => (word, "if true"),
                    "endgeneration" => (word, "endif"),
                    _ => {
                        out.push_str(tag);
                        continue;
                    }
                };
                out.push_str(&tag.replacen(open, close, 1));
            }
            Part::Text(text) | Part::Tag(text) | Part::Comment(text) => out.push_str(text),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_literals_and_text() {
        let source = "A {# '<no>' #}{{- '<|' + role + \"|>\\n\" -}} B\n{% if x == 'it\\'s %}' %}C{% endif %}";
        assert_eq!(literals(source), ["A ", "A", "<|", "|>\n", " B\n", "B", "it\\'s %}", "C", "C"]);
    }

    #[test]
    fn generation_blocks_become_plain_blocks() {
        assert_eq!(
            without_generation_tags("{%- generation -%}x{% endgeneration %}{{ 'generation' }}"),
            "{%- if true -%}x{% endif %}{{ 'generation' }}"
        );
    }

    #[test]
    fn unfinished_tags_end_with_the_source() {
        for source in ["{{ 'a", "{%", "{# a", "{{ 'a\\", "{{ \"é"] {
            literals(source);
            without_generation_tags(source);
        }
    }
}
