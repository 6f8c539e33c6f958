//! Stop strings in a stream of text.
//!
//! One Aho-Corasick automaton over the bytes of all stop strings (Aho and Corasick 1975). After each byte its depth is
//! the length of the longest end of the text that is the beginning of a stop string: exactly what must be held back.
use std::collections::HashMap;
use std::sync::Arc;

/// The stop strings of a request, ready to be looked for. Built once, shared by its choices.
#[derive(Debug)]
pub struct StopStrings {
    nodes: Vec<Node>,
    stops: Vec<String>,
}

/// Finds stop strings in a stream of text, holding back what may become one.
///
/// The stop string that is complete first wins; of several that are complete at the same byte, the longest. So the
/// result does not depend on how the text was cut into pushes.
pub struct StopMatcher {
    strings: Arc<StopStrings>,
    state: usize,
    held: String,
    done: bool,
}

#[derive(Debug, Default)]
struct Node {
    next: HashMap<u8, usize>,
    /// The node of the longest proper end of this node's text that is also in the trie.
    fallback: usize,
    depth: usize,
    /// The longest stop string that ends here.
    ends: Option<usize>,
}

/// What `StopMatcher::push` found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopStep {
    /// Text that may be shown now.
    pub text: String,
    /// The stop string that was found: nothing follows.
    pub matched: Option<String>,
}

impl Default for StopStrings {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl StopStrings {
    /// Empty stop strings are ignored (the API refuses them).
    #[must_use]
    pub fn new(stops: Vec<String>) -> Self {
        let mut nodes = vec![Node::default()];
        for (index, stop) in stops.iter().enumerate().filter(|(_, stop)| !stop.is_empty()) {
            let mut at = 0;
            for byte in stop.bytes() {
                let fresh = nodes.len();
                let next = *nodes[at].next.entry(byte).or_insert(fresh);
                if next == fresh {
                    nodes.push(Node { depth: nodes[at].depth + 1, ..Node::default() });
                }
                at = next;
            }
            nodes[at].ends.get_or_insert(index);
        }
        // Breadth first: a fallback is always shallower, so it is complete when it is needed.
        let mut queue: Vec<usize> = nodes[0].next.values().copied().collect();
        let mut at = 0;
        while at < queue.len() {
            let parent = queue[at];
            at += 1;
            let children: Vec<(u8, usize)> = nodes[parent].next.iter().map(|(&byte, &child)| (byte, child)).collect();
            for (byte, child) in children {
                let fallback = step(&nodes, nodes[parent].fallback, byte);
                nodes[child].fallback = fallback;
                if nodes[child].ends.is_none() {
                    nodes[child].ends = nodes[fallback].ends;
                }
                queue.push(child);
            }
        }
        Self { nodes, stops }
    }
}

impl StopMatcher {
    /// Looks for `strings` in one choice's text.
    #[must_use]
    pub fn new(strings: Arc<StopStrings>) -> Self {
        Self { strings, state: 0, held: String::new(), done: false }
    }

    /// Takes more text. After a match nothing is shown any more.
    pub fn push(&mut self, text: &str) -> StopStep {
        if self.done {
            return StopStep { text: String::new(), matched: None };
        }
        for (index, byte) in text.bytes().enumerate() {
            self.state = step(&self.strings.nodes, self.state, byte);
            if let Some(stop) = self.strings.nodes[self.state].ends {
                let matched = self.strings.stops[stop].clone();
                let mut shown = std::mem::take(&mut self.held);
                shown.push_str(&text[..=index]);
                shown.truncate(shown.len() - matched.len());
                self.done = true;
                return StopStep { text: shown, matched: Some(matched) };
            }
        }
        let mut shown = std::mem::take(&mut self.held);
        shown.push_str(text);
        self.held = shown.split_off(shown.len() - self.strings.nodes[self.state].depth);
        StopStep { text: shown, matched: None }
    }

    /// The end of the text: what was held back.
    pub fn finish(&mut self) -> String {
        self.state = 0;
        std::mem::take(&mut self.held)
    }
}

fn step(nodes: &[Node], mut at: usize, byte: u8) -> usize {
    loop {
        if let Some(&next) = nodes[at].next.get(&byte) {
            return next;
        }
        if at == 0 {
            return 0;
        }
        at = nodes[at].fallback;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matcher(stops: &[&str]) -> StopMatcher {
        StopMatcher::new(Arc::new(StopStrings::new(stops.iter().map(|s| (*s).to_owned()).collect())))
    }

    fn run(stops: &[&str], pushes: &[&str]) -> (String, Option<String>) {
        let mut matcher = matcher(stops);
        let mut shown = String::new();
        for push in pushes {
            let step = matcher.push(push);
            shown.push_str(&step.text);
            if step.matched.is_some() {
                assert_eq!(matcher.finish(), "");
                return (shown, step.matched);
            }
        }
        shown.push_str(&matcher.finish());
        (shown, None)
    }

    /// The definition, by brute force.
    fn expected(stops: &[String], text: &str) -> (String, Option<String>) {
        for end in (0..=text.len()).filter(|&end| text.is_char_boundary(end)) {
            let here = stops.iter().filter(|s| !s.is_empty() && text[..end].ends_with(s.as_str()));
            if let Some(stop) = here.max_by_key(|s| s.len()) {
                return (text[..end - stop.len()].to_owned(), Some(stop.clone()));
            }
        }
        (text.to_owned(), None)
    }

    #[test]
    fn holds_back_only_what_may_match() {
        let mut matcher = matcher(&["</s>", "\n\nUser"]);
        assert_eq!(matcher.push("hi <").text, "hi ");
        assert_eq!(matcher.push("b>\n").text, "<b>");
        assert_eq!(matcher.push("\n").text, "");
        assert_eq!(matcher.push("\n").text, "\n");
        assert_eq!(matcher.push("Usedé").text, "\n\nUsedé");
        assert_eq!(matcher.push("</s").text, "");
        assert_eq!(matcher.finish(), "</s");
    }

    #[test]
    fn a_stop_never_leaks_across_tokens() {
        assert_eq!(run(&["STOP"], &["aS", "T", "O", "P b"]), ("a".into(), Some("STOP".into())));
        assert_eq!(run(&["abcd", "bc"], &["xab", "c"]), ("xa".into(), Some("bc".into())));
        assert_eq!(run(&["c", "abc"], &["ab", "c"]), (String::new(), Some("abc".into())));
        assert_eq!(run(&["aab"], &["aaaab"]), ("aa".into(), Some("aab".into())));
        assert_eq!(run(&[""], &["text"]), ("text".into(), None));
        assert_eq!(run(&["é語"], &["xé", "é", "語y"]), ("xé".into(), Some("é語".into())));
    }

    #[test]
    fn a_long_near_miss_is_linear() {
        let mut matcher = matcher(&[&format!("{}b", "a".repeat(2000))]);
        let text = "a".repeat(1_000_000);
        let shown: usize =
            text.as_bytes().chunks(7).map(|c| matcher.push(std::str::from_utf8(c).unwrap()).text.len()).sum();
        assert_eq!(shown + matcher.finish().len(), text.len());
    }

    proptest! {
        #[test]
        fn every_split_gives_the_same(
            stops in proptest::collection::vec("[abé]{0,4}", 0..4),
            text in "[abcé]{0,30}",
            cuts in proptest::collection::vec(0usize..40, 0..8),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|&c| c <= text.len() && text.is_char_boundary(c)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pushes: Vec<&str> = cuts.windows(2).map(|w| &text[w[0]..w[1]]).collect();
            let list: Vec<&str> = stops.iter().map(String::as_str).collect();
            prop_assert_eq!(run(&list, &pushes), expected(&stops, &text));
        }
    }
}
