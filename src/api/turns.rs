//! Shortens a chat that is too long for the context, by whole turns.
use super::Model;
use super::error::ApiError;
use crate::text::ChatInput;

/// Drops the oldest turns until the prompt leaves `room` tokens of the context: as few as possible, never the system's
/// messages at the beginning, never the last turn. A chat whose last turn is too long by itself keeps only that, and is
/// refused later.
pub(crate) fn fit(input: &mut ChatInput, model: &Model, room: usize) -> Result<(), ApiError> {
    let text = &model.served.text;
    let fits = |input: &ChatInput| {
        let rendered = text.render_chat(input)?;
        if text.tokenizer.is_far_longer_than(&rendered.text, model.context_max)? {
            return Ok(false);
        }
        let prompt = text.tokenizer.encode_prompt(&rendered)?;
        Ok(prompt.len().saturating_add(room) <= model.context_max)
    };
    drop_until(input, fits)
}

/// `fits` must hold for a chat if it holds for a longer one.
fn drop_until(input: &mut ChatInput, fits: impl Fn(&ChatInput) -> Result<bool, ApiError>) -> Result<(), ApiError> {
    if fits(input)? {
        return Ok(());
    }
    let role = |index: usize| input.messages[index]["role"].as_str();
    let kept = (0..input.messages.len()).take_while(|index| role(*index) == Some("system")).count();
    // What stands before the first user's message belongs to the first turn.
    let turns: Vec<usize> =
        (kept..input.messages.len()).filter(|index| *index > kept && role(*index) == Some("user")).collect();
    let from = |turn: usize| {
        let mut shorter = input.clone();
        shorter.messages.drain(kept..turns[turn]);
        shorter
    };
    // The first turn in `low..high` from which on the chat fits; the last one is taken whether it fits or not.
    let (mut low, mut high) = (0, turns.len().saturating_sub(1));
    while low < high {
        let middle = usize::midpoint(low, high);
        if fits(&from(middle))? {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    if !turns.is_empty() {
        *input = from(low);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn roles(input: &ChatInput) -> String {
        input.messages.iter().map(|message| message["content"].as_str().unwrap()).collect()
    }

    #[test]
    fn as_few_turns_as_possible_are_dropped() {
        let messages =
            ["system S", "assistant a", "user 1", "assistant b", "tool c", "user 2", "assistant d", "user 3"];
        let message = |text: &str| {
            let (role, content) = text.split_once(' ').unwrap();
            json!({"role": role, "content": content})
        };
        let chat = ChatInput { messages: messages.into_iter().map(message).collect(), ..ChatInput::default() };
        let expected = ["S3", "S3", "S3", "S3", "S2d3", "S2d3", "S2d3", "S1bc2d3", "Sa1bc2d3"];
        for (most, expected) in expected.into_iter().enumerate() {
            let mut input = chat.clone();
            drop_until(&mut input, |input| Ok(input.messages.len() <= most)).unwrap();
            assert_eq!(roles(&input), expected, "at most {most}");
        }
        let mut only = ChatInput { messages: vec![json!({"role": "user", "content": "x"})], ..ChatInput::default() };
        drop_until(&mut only, |_| Ok(false)).unwrap();
        assert_eq!(roles(&only), "x");
    }
}
