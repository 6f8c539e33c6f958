//! The state machine over a whole answer.
use std::sync::Arc;

use super::call::{CallScanner, Step};
use super::{CallFormat, THINK, THINK_END, Tool};

/// A part of an answer, in the order in which the model wrote them. Neighbours of one kind belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    Content(String),
    Reasoning(String),
    CallBegin {
        name: String,
        /// The call is of a tool that takes free text; the arguments that follow are that text.
        custom: bool,
    },
    CallArguments(String),
    CallEnd,
}

/// Whether the model thinks before it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thinking {
    Never,
    /// It may begin with `<think>`.
    MayOpen,
    /// The prompt ended with `<think>`.
    Open,
}

/// Spaces are held back up to this many bytes, as they may belong to what follows.
const SPACE_MAX: usize = 256;
/// A call's name must be known within this many bytes.
const HEAD_MAX: usize = 512;

/// What calls stand in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Frame {
    /// `<tool_call>` … `</tool_call>`.
    Tag,
    /// `[TOOL_CALLS]` …
    Mistral,
    /// `<|python_tag|>` …
    Python,
    /// Nothing: the JSON begins a line.
    Bare,
    /// A fence of three backticks.
    Fence,
}

impl Frame {
    /// What the format's marker opens.
    fn of(format: CallFormat) -> Self {
        match format {
            CallFormat::Hermes => Self::Tag,
            CallFormat::Mistral => Self::Mistral,
            CallFormat::Llama => Self::Python,
            CallFormat::Generic => Self::Bare,
        }
    }

    fn closer(self) -> &'static str {
        match self {
            Self::Tag => "</tool_call>",
            Self::Fence => "```",
            Self::Mistral | Self::Python | Self::Bare => "",
        }
    }
}

#[derive(Debug)]
enum State {
    /// Nothing but spaces so far, and thoughts may open.
    Start,
    Thought {
        begun: bool,
    },
    Content,
    /// In a frame, outside of its calls.
    Gap(Frame, Head),
    Call(Frame, Head, Box<CallScanner>),
    /// Python after `<|python_tag|>`; it goes on to the end.
    Python,
}

/// How a frame began.
#[derive(Debug, Clone, Copy)]
struct Head {
    /// Bytes of held text that open the frame.
    opening: usize,
    /// No call has stood in the frame yet.
    first: bool,
}

const LATER: Head = Head { opening: 0, first: false };

fn tools_of(calls: Option<&(CallFormat, Arc<[Tool]>)>) -> &[Tool] {
    calls.map_or(&[][..], |(_, tools)| &tools[..])
}

/// How far a text goes into a marker.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Match {
    No,
    Partly,
    Wholly,
}

fn matching(marker: &str, text: &str) -> Match {
    if text == marker {
        Match::Wholly
    } else if marker.starts_with(text) {
        Match::Partly
    } else {
        Match::No
    }
}

/// What may stand between a frame's calls: it is no text. A closing brace closes one that was opened twice.
fn is_spacing(c: char, head: Head) -> bool {
    c.is_whitespace() || matches!(c, ',' | ';' | ']') || !head.first && c == '}'
}

/// Takes an answer apart as it comes. See the module's documentation.
pub struct OutputParser {
    /// `None`: calls are not looked for.
    calls: Option<(CallFormat, Arc<[Tool]>)>,
    state: State,
    /// Text whose meaning is open.
    held: String,
    /// Spaces before the next content belong to the format.
    drop_space: bool,
    /// The content's last line is empty.
    fresh: bool,
    called: bool,
    out: Vec<Segment>,
}

impl OutputParser {
    /// `calls`: the format, and the tools that may be called; `None` leaves calls in the content.
    #[must_use]
    pub fn new(calls: Option<(CallFormat, Arc<[Tool]>)>, thinking: Thinking) -> Self {
        let state = match thinking {
            Thinking::Never => State::Content,
            Thinking::MayOpen => State::Start,
            Thinking::Open => State::Thought { begun: false },
        };
        Self { calls, state, held: String::new(), drop_space: false, fresh: true, called: false, out: Vec::new() }
    }

    /// Takes more text; gives what became certain with it.
    pub fn push(&mut self, text: &str) -> Vec<Segment> {
        if matches!(self.state, State::Content) && self.calls.is_none() {
            self.content(text);
        } else {
            text.chars().for_each(|c| self.step(c));
        }
        std::mem::take(&mut self.out)
    }

    /// The end of the text: what was held back.
    pub fn finish(&mut self) -> Vec<Segment> {
        loop {
            match std::mem::replace(&mut self.state, State::Content) {
                State::Gap(_, Head { opening, first: true }) => self.fail(opening),
                State::Call(_, Head { opening, .. }, scanner) if !scanner.begun() => self.fail(opening),
                State::Call(_, _, mut scanner) => {
                    scanner.end(&mut self.out);
                    break;
                }
                State::Python if self.python_call() => break,
                // Spacing and the beginning of a closing marker.
                State::Gap(..) => break,
                State::Thought { .. } => {
                    let held = std::mem::take(&mut self.held);
                    self.reasoning(held.trim_end());
                    break;
                }
                State::Start | State::Content | State::Python => {
                    let held = std::mem::take(&mut self.held);
                    self.content(&held);
                    break;
                }
            }
        }
        self.held.clear();
        std::mem::take(&mut self.out)
    }

    /// Whether the model is thinking.
    #[must_use]
    pub fn is_thinking(&self) -> bool {
        matches!(self.state, State::Thought { .. })
    }

    /// Whether a call has begun.
    #[must_use]
    pub fn has_called(&self) -> bool {
        self.called
    }

    fn step(&mut self, c: char) {
        match std::mem::replace(&mut self.state, State::Content) {
            State::Start => self.start(c),
            State::Thought { begun } => self.thought(c, begun),
            State::Content => self.text(c),
            State::Gap(frame, head) => self.gap(c, frame, head),
            State::Call(frame, head, scanner) => self.call(c, frame, head, scanner),
            State::Python => {
                self.held.push(c);
                self.state = State::Python;
            }
        }
    }

    /// The answer's beginning, where thoughts may open.
    fn start(&mut self, c: char) {
        self.held.push(c);
        let rest = self.held.trim_start();
        let found = if rest.is_empty() { Match::Partly } else { matching(THINK, rest) };
        match found {
            Match::Wholly => {
                self.held.clear();
                self.state = State::Thought { begun: false };
            }
            Match::Partly if self.held.len() <= SPACE_MAX => self.state = State::Start,
            _ => {
                let held = std::mem::take(&mut self.held);
                self.replay(&held);
            }
        }
    }

    fn thought(&mut self, c: char, mut begun: bool) {
        self.held.push(c);
        while !self.held.is_empty() {
            let rest = self.held.trim_start();
            if rest.is_empty() && !begun {
                self.held.clear();
                break;
            }
            if rest.is_empty() && self.held.len() <= SPACE_MAX {
                break;
            }
            match matching(THINK_END, rest) {
                Match::Wholly => {
                    self.held.clear();
                    self.drop_space = true;
                    self.state = State::Content;
                    return;
                }
                Match::Partly if !rest.is_empty() => break,
                _ => {}
            }
            let shown = self.take_one();
            self.reasoning(&shown);
            begun = true;
        }
        self.state = State::Thought { begun };
    }

    fn text(&mut self, c: char) {
        let Some((format, _)) = &self.calls else {
            return self.content(c.encode_utf8(&mut [0; 4]));
        };
        let format = *format;
        self.held.push(c);
        while !self.held.is_empty() {
            let rest = self.held.trim_start();
            let spaces = &self.held[..self.held.len() - rest.len()];
            if rest.is_empty() && spaces.len() <= SPACE_MAX {
                return;
            }
            if !rest.is_empty() {
                let head = Head { opening: self.held.len(), first: true };
                let marked = format.opening().map_or(Match::No, |marker| matching(marker, rest));
                if marked == Match::Wholly {
                    self.state = State::Gap(Frame::of(format), head);
                    return;
                }
                // JSON without a marker begins a line.
                let is_fresh = self.fresh || spaces.contains('\n');
                let (unmarked, frame) = if is_fresh { bare(rest) } else { (Match::No, Frame::Bare) };
                if unmarked == Match::Wholly {
                    self.state = State::Call(frame, head, Box::new(CallScanner::object(frame.closer())));
                    return;
                }
                if marked == Match::Partly || unmarked == Match::Partly {
                    return;
                }
            }
            let shown = self.take_one();
            self.content(&shown);
        }
    }

    /// Takes the held spaces and one character after them.
    fn take_one(&mut self) -> String {
        let rest = self.held.trim_start();
        let end = self.held.len() - rest.len() + rest.chars().next().map_or(0, char::len_utf8);
        self.held.drain(..end).collect()
    }

    fn gap(&mut self, c: char, frame: Frame, head: Head) {
        self.held.push(c);
        let rest = self.held[head.opening..].trim_start_matches(|c| c == '[' || is_spacing(c, head));
        let closer = frame.closer();
        if rest == "{" {
            self.state = State::Call(frame, head, Box::new(CallScanner::object(closer)));
            return;
        }
        let named = head.first && frame == Frame::Mistral;
        let found = if closer.is_empty() { Match::No } else { matching(closer, rest) };
        match found {
            Match::Wholly if !head.first => {
                self.held.clear();
                self.drop_space = true;
            }
            _ if self.held.len() > head.opening + HEAD_MAX => self.leave(head),
            _ if !head.first && self.opens_again() == Match::Partly => self.state = State::Gap(frame, head),
            _ if rest.is_empty() || found == Match::Partly => self.state = State::Gap(frame, head),
            _ if named && c != '{' => self.state = State::Gap(frame, head),
            _ if named => self.named_call(frame, head),
            _ if head.first && frame == Frame::Python => self.state = State::Python,
            _ => self.leave(head),
        }
    }

    /// Whether the next marker is written between calls.
    fn opens_again(&self) -> Match {
        let rest = self.held.trim_start_matches(|c| is_spacing(c, LATER));
        let marker = self.calls.as_ref().and_then(|(format, _)| format.opening());
        marker.map_or(Match::No, |marker| matching(marker, rest))
    }

    /// What stands here is no call: the frame ends, or never was one.
    fn leave(&mut self, head: Head) {
        if head.first {
            return self.fail(head.opening);
        }
        let held = std::mem::take(&mut self.held);
        self.drop_space = true;
        self.replay(held.trim_start_matches(|c| is_spacing(c, head)));
    }

    /// `NAME[ARGS]{` or `NAME{`, possibly with `[CALL_ID]ID` after the name.
    fn named_call(&mut self, frame: Frame, head: Head) {
        let text = self.held[head.opening..].trim_end_matches('{');
        let text = text.strip_suffix("[ARGS]").unwrap_or(text);
        let name = text.split("[CALL_ID]").next().unwrap_or(text).trim();
        let tools = tools_of(self.calls.as_ref());
        let Some(tool) = tools.iter().position(|tool| tool.name == name) else {
            return self.fail(head.opening);
        };
        let scanner = CallScanner::arguments(tool, tools, &mut self.out);
        self.called = true;
        self.held.clear();
        self.call('{', frame, head, Box::new(scanner));
    }

    fn call(&mut self, c: char, frame: Frame, head: Head, mut scanner: Box<CallScanner>) {
        let had_begun = scanner.begun();
        let tools = tools_of(self.calls.as_ref());
        let step = scanner.step(c, tools, &mut self.out);
        if !had_begun {
            self.held.push(c);
        }
        if scanner.begun() {
            self.called = true;
            self.held.clear();
        }
        match step {
            Step::More if !scanner.begun() && self.held.len() > head.opening + HEAD_MAX => self.fail(head.opening),
            Step::More => self.state = State::Call(frame, head, scanner),
            Step::Failed => self.fail(head.opening),
            Step::Done => {
                scanner.end(&mut self.out);
                self.state = State::Gap(frame, LATER);
            }
            Step::DoneBefore => {
                scanner.end(&mut self.out);
                self.gap(c, frame, LATER);
            }
            Step::Closed => {
                scanner.end(&mut self.out);
                self.drop_space = true;
            }
        }
    }

    /// What was held is no call. Its opening is content (of at least one character, so that this ends); the rest is read
    /// again.
    fn fail(&mut self, opening: usize) {
        let held = std::mem::take(&mut self.held);
        let (opening, rest) = held.split_at(opening);
        self.content(opening);
        self.replay(rest);
    }

    fn replay(&mut self, text: &str) {
        self.state = State::Content;
        text.chars().for_each(|c| self.step(c));
    }

    /// `NAME.call(KEY=VALUE, …)` after the marker, with JSON values.
    fn python_call(&mut self) -> bool {
        let code = self.held.trim_start().trim_start_matches("<|python_tag|>").trim();
        let Some((name, arguments)) = built_in(code) else { return false };
        let tools = tools_of(self.calls.as_ref());
        let Some(tool) = tools.iter().find(|tool| tool.name == name && !tool.custom) else { return false };
        let name = tool.name.clone();
        self.called = true;
        self.out.push(Segment::CallBegin { name, custom: false });
        self.out.push(Segment::CallArguments(arguments.to_string()));
        self.out.push(Segment::CallEnd);
        true
    }

    fn content(&mut self, text: &str) {
        let text = if self.drop_space { text.trim_start() } else { text };
        if text.is_empty() {
            return;
        }
        self.drop_space = false;
        self.fresh = text.ends_with('\n');
        match self.out.last_mut() {
            Some(Segment::Content(last)) => last.push_str(text),
            _ => self.out.push(Segment::Content(text.to_owned())),
        }
    }

    fn reasoning(&mut self, text: &str) {
        match self.out.last_mut() {
            _ if text.is_empty() => {}
            Some(Segment::Reasoning(last)) => last.push_str(text),
            _ => self.out.push(Segment::Reasoning(text.to_owned())),
        }
    }
}

/// Whether a text opens JSON that may be a call: `{`, `[{`, or either after a fence.
fn bare(text: &str) -> (Match, Frame) {
    let (json, frame) = match text.strip_prefix("```") {
        None if "```".starts_with(text) => return (Match::Partly, Frame::Fence),
        None => (text, Frame::Bare),
        Some(fenced) => match fenced.split_once('\n') {
            Some((language, json)) if is_language(language.trim_end()) => (json.trim_start(), Frame::Fence),
            Some(_) => return (Match::No, Frame::Fence),
            None if is_language(fenced.trim_end()) => return (Match::Partly, Frame::Fence),
            None => return (Match::No, Frame::Fence),
        },
    };
    let object = match json.strip_prefix('[') {
        Some(items) => items.trim_start(),
        None => json,
    };
    let found = match object {
        "" if text.len() <= SPACE_MAX => Match::Partly,
        "{" => Match::Wholly,
        _ => Match::No,
    };
    (found, frame)
}

/// What models write behind a fence that holds calls, or the beginning of it.
fn is_language(word: &str) -> bool {
    ["json", "tool_call", "tool_calls"].iter().any(|language| language.starts_with(word))
}

/// Name and arguments of `NAME.call(KEY=VALUE, …)`.
fn built_in(code: &str) -> Option<(&str, serde_json::Value)> {
    let (name, rest) = code.split_once(".call(")?;
    let mut rest = rest.trim_start();
    let mut arguments = serde_json::Map::new();
    while !rest.starts_with(')') {
        let (key, value) = rest.split_once('=')?;
        let mut values = serde_json::Deserializer::from_str(value).into_iter::<serde_json::Value>();
        let parsed = values.next()?.ok()?;
        arguments.insert(key.trim().to_owned(), parsed);
        let after = value[values.byte_offset()..].trim_start();
        rest = match after.strip_prefix(',') {
            Some(next) => next.trim_start(),
            None if after.starts_with(')') => after,
            None => return None,
        };
    }
    (rest.trim_end() == ")").then_some((name, serde_json::Value::Object(arguments)))
}
