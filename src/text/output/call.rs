//! One call's JSON object: `{"name": …, "arguments": …}`, character by character.
use super::Tool;
use super::parser::Segment;

/// What a character did to the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    More,
    /// The call is complete with this character.
    Done,
    /// The call was complete before this character, which is no part of it.
    DoneBefore,
    /// The closing marker stands inside the arguments: they end before it.
    Closed,
    /// This is no call.
    Failed,
}

/// Where in the object the next character stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Before a key.
    Object,
    Key,
    Colon,
    Value,
    /// In the string that is the name.
    Name,
    /// In a string that does not matter.
    Other {
        escaped: bool,
    },
    /// After a value that stands before the arguments.
    Next,
    /// In an object or array that is the arguments.
    Arguments,
    /// In arguments that are a string (of JSON, if the model means well) or another literal.
    Literal {
        escaped: bool,
    },
    /// After the arguments.
    Tail,
    /// After the arguments and a comma: before a key.
    TailKey,
    /// In keys after the arguments.
    TailKeys,
}

/// Nesting of JSON text, whether or not it is valid.
#[derive(Debug, Default)]
struct Nesting {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Nesting {
    /// True when `c` closes the outermost bracket.
    fn step(&mut self, c: char) -> bool {
        if self.in_string {
            match c {
                _ if self.escaped => self.escaped = false,
                '\\' => self.escaped = true,
                '"' => self.in_string = false,
                _ => {}
            }
            return false;
        }
        match c {
            '"' => self.in_string = true,
            '{' | '[' => self.depth += 1,
            '}' | ']' => {
                self.depth = self.depth.saturating_sub(1);
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }
}

/// Reads one call. A call begins (its name is reported) with its arguments, or with the object's end if it has none.
#[derive(Debug)]
pub(super) struct CallScanner {
    at: At,
    /// The key or name that is being read.
    word: String,
    tool: Option<usize>,
    custom: bool,
    begun: bool,
    /// A second `{` at the start: some templates show the form with doubled braces, and models copy it.
    doubled: bool,
    /// There is no object around the arguments.
    naked: bool,
    /// What ends the calls' frame.
    closer: &'static str,
    nesting: Nesting,
    /// The beginning of `closer` inside the arguments.
    closing: String,
    /// Arguments that are reported as a whole: literals, and what is to become free text.
    buffer: String,
}

impl CallScanner {
    /// After the object's `{`.
    pub(super) fn object(closer: &'static str) -> Self {
        Self {
            at: At::Object,
            word: String::new(),
            tool: None,
            custom: false,
            begun: false,
            doubled: false,
            naked: false,
            closer,
            nesting: Nesting::default(),
            closing: String::new(),
            buffer: String::new(),
        }
    }

    /// A call whose name was read already; next comes the `{` of its arguments.
    pub(super) fn arguments(tool: usize, tools: &[Tool], out: &mut Vec<Segment>) -> Self {
        let mut scanner = Self { at: At::Arguments, tool: Some(tool), naked: true, ..Self::object("") };
        scanner.begin(tools, out);
        scanner
    }

    pub(super) fn begun(&self) -> bool {
        self.begun
    }

    pub(super) fn step(&mut self, c: char, tools: &[Tool], out: &mut Vec<Segment>) -> Step {
        match self.at {
            At::Arguments => return self.argument(c, out),
            At::Literal { escaped } => return self.literal(c, escaped),
            At::Tail => return self.tail(c),
            At::TailKey => return self.tail_key(c),
            At::TailKeys => return if self.nesting.step(c) { Step::Done } else { Step::More },
            At::Key | At::Name | At::Other { .. } => {}
            _ if c.is_whitespace() => return Step::More,
            _ => {}
        }
        match (self.at, c) {
            (At::Object, '"') => {
                self.word.clear();
                self.at = At::Key;
            }
            (At::Object | At::Next, '}') => {
                if self.tool.is_none() {
                    return Step::Failed;
                }
                self.begin(tools, out);
                self.buffer = "{}".into();
                return Step::Done;
            }
            (At::Object, '{') if !self.doubled && self.tool.is_none() && self.word.is_empty() => self.doubled = true,
            (At::Key, '"') => self.at = At::Colon,
            (At::Name, '"') => {
                self.tool = tools.iter().position(|tool| tool.name == self.word);
                if self.tool.is_none() {
                    return Step::Failed;
                }
                self.at = At::Next;
            }
            (At::Key | At::Name, '\\') => return Step::Failed,
            (At::Key | At::Name, c) => self.word.push(c),
            (At::Colon, ':') => self.at = At::Value,
            (At::Value, c) => return self.value(c, tools, out),
            (At::Other { escaped: false }, '"') => self.at = At::Next,
            (At::Other { escaped }, c) => self.at = At::Other { escaped: !escaped && c == '\\' },
            (At::Next, ',') => self.at = At::Object,
            _ => return Step::Failed,
        }
        Step::More
    }

    fn value(&mut self, c: char, tools: &[Tool], out: &mut Vec<Segment>) -> Step {
        match (self.word.as_str(), c) {
            ("name", '"') if self.tool.is_none() => {
                self.word.clear();
                self.at = At::Name;
            }
            ("id" | "type", '"') => self.at = At::Other { escaped: false },
            ("arguments" | "parameters", c) if self.tool.is_some() => {
                if !matches!(c, '{' | '[' | '"' | '-' | '0'..='9' | 't' | 'f' | 'n') {
                    return Step::Failed;
                }
                self.begin(tools, out);
                if matches!(c, '{' | '[') {
                    self.at = At::Arguments;
                    return self.argument(c, out);
                }
                self.at = At::Literal { escaped: false };
                self.buffer.push(c);
            }
            _ => return Step::Failed,
        }
        Step::More
    }

    fn begin(&mut self, tools: &[Tool], out: &mut Vec<Segment>) {
        let Some(tool) = self.tool.and_then(|index| tools.get(index)) else { return };
        self.begun = true;
        self.custom = tool.custom;
        out.push(Segment::CallBegin { name: tool.name.clone(), custom: tool.custom });
    }

    fn argument(&mut self, c: char, out: &mut Vec<Segment>) -> Step {
        let may_close = !self.nesting.in_string && (!self.closing.is_empty() || self.closer.starts_with(c));
        if !may_close {
            return self.nested(c, out);
        }
        self.closing.push(c);
        if self.closing == self.closer {
            self.closing.clear();
            return Step::Closed;
        }
        if self.closer.starts_with(&self.closing) {
            return Step::More;
        }
        // Not the marker after all; a marker that begins inside the beginning of one is not looked for.
        let text = std::mem::take(&mut self.closing);
        text.chars().map(|c| self.nested(c, out)).last().unwrap_or(Step::More)
    }

    /// Takes a character of the arguments.
    fn nested(&mut self, c: char, out: &mut Vec<Segment>) -> Step {
        if self.custom {
            self.buffer.push(c);
        } else {
            push_arguments(out, c.encode_utf8(&mut [0; 4]));
        }
        if !self.nesting.step(c) {
            return Step::More;
        }
        self.at = At::Tail;
        if self.naked { Step::Done } else { Step::More }
    }

    fn literal(&mut self, c: char, escaped: bool) -> Step {
        let is_string = self.buffer.starts_with('"');
        if !is_string && (c.is_whitespace() || matches!(c, ',' | '}')) {
            self.at = At::Tail;
            return self.tail(c);
        }
        self.buffer.push(c);
        self.at = if is_string && c == '"' && !escaped {
            At::Tail
        } else {
            At::Literal { escaped: is_string && !escaped && c == '\\' }
        };
        Step::More
    }

    fn tail(&mut self, c: char) -> Step {
        match c {
            c if c.is_whitespace() => Step::More,
            '}' => Step::Done,
            ',' => {
                self.at = At::TailKey;
                Step::More
            }
            _ => Step::DoneBefore,
        }
    }

    fn tail_key(&mut self, c: char) -> Step {
        match c {
            c if c.is_whitespace() => Step::More,
            '"' => {
                self.at = At::TailKeys;
                self.nesting = Nesting { depth: 1, in_string: true, escaped: false };
                Step::More
            }
            _ => Step::DoneBefore,
        }
    }

    /// Reports what is left of a call that has begun, and its end: after every step that ends it, and at the text's end.
    pub(super) fn end(&mut self, out: &mut Vec<Segment>) {
        let closing = std::mem::take(&mut self.closing);
        let buffer = std::mem::take(&mut self.buffer);
        if self.custom {
            push_arguments(out, &free_text(&(buffer + &closing)));
        } else {
            push_arguments(out, &literal_text(buffer));
            push_arguments(out, &closing);
        }
        out.push(Segment::CallEnd);
    }
}

fn push_arguments(out: &mut Vec<Segment>, text: &str) {
    if text.is_empty() {
        return;
    }
    match out.last_mut() {
        Some(Segment::CallArguments(last)) => last.push_str(text),
        _ => out.push(Segment::CallArguments(text.to_owned())),
    }
}

/// Arguments that are no object: a string holds them, and none at all are an empty object.
fn literal_text(buffer: String) -> String {
    if buffer == "null" {
        return "{}".into();
    }
    serde_json::from_str::<String>(&buffer).unwrap_or(buffer)
}

/// The free text in arguments `{"input": TEXT}`; any others are the text themselves.
fn free_text(arguments: &str) -> String {
    use serde_json::Value;
    match serde_json::from_str::<Value>(arguments) {
        Ok(Value::Object(fields)) if fields.len() <= 1 => match fields.get("input") {
            Some(Value::String(text)) => text.clone(),
            None if fields.is_empty() => String::new(),
            _ => arguments.to_owned(),
        },
        Ok(Value::String(text)) => text,
        _ => arguments.to_owned(),
    }
}
