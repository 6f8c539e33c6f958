//! How much a model may think before it answers.
use std::sync::Arc;

use serde_json::{Map, Value};

use super::Model;
use super::error::ApiError;
use super::fields::{Fields, integer_at};
use crate::grammar::ThoughtBudget;
use crate::text::{THOUGHT_MARKS, Thinking};

/// The names that clients have for it: in the body, or for the template.
const FIELDS: [&str; 2] = ["thinking_budget", "thinking_token_budget"];
const KWARG: &str = "thinking_budget";

/// Takes the budget's fields: how many tokens of thoughts there may be; -1 stands for any number. `reasoning`: the value of
/// `reasoning.max_tokens`, with its path. Where several are given, they must agree.
pub(crate) fn budget(
    fields: &mut Fields,
    reasoning: Option<(String, Value)>,
    kwargs: &Map<String, Value>,
    model: &Model,
) -> Result<Option<usize>, ApiError> {
    let mut given: Vec<(String, Value)> = reasoning.into_iter().collect();
    given.extend(FIELDS.into_iter().filter_map(|name| fields.take(name).map(|value| (fields.path(name), value))));
    // The template gets it, too: a few read it.
    let kwarg = kwargs.get(KWARG).filter(|value| !value.is_null());
    given.extend(kwarg.map(|value| (format!("{}.{KWARG}", fields.path("chat_template_kwargs")), value.clone())));
    let budget = agreed(&given)?;
    match given.into_iter().next() {
        Some((param, _)) if budget.is_some() && !model.served.text.output.thinks => {
            Err(ApiError::Unsupported { param, hint: ": this model does not think" })
        }
        _ => Ok(budget),
    }
}

fn agreed(given: &[(String, Value)]) -> Result<Option<usize>, ApiError> {
    let mut agreed: Option<(&str, i64)> = None;
    for (path, value) in given {
        let tokens = integer_at(|| path.clone(), value, -1..=i64::from(u32::MAX))?;
        match agreed {
            Some((other, known)) if known != tokens => {
                let message = format!("`{other}` and `{path}` differ; give one of them.");
                return Err(ApiError::invalid(path.clone(), message));
            }
            _ => agreed = Some((path, tokens)),
        }
    }
    Ok(agreed.and_then(|(_, tokens)| usize::try_from(tokens).ok()))
}

/// What keeps an answer to its budget, if there may be thoughts.
pub(crate) fn bound(model: &Model, tokens: usize, thinking: Thinking) -> Result<Option<Arc<ThoughtBudget>>, ApiError> {
    if thinking == Thinking::Never {
        return Ok(None);
    }
    let tokenizer = Arc::clone(&model.served.text.tokenizer);
    let budget = ThoughtBudget::new(tokens, thinking == Thinking::Open, THOUGHT_MARKS, tokenizer)?;
    Ok(Some(Arc::new(budget)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn budgets_must_agree() {
        let of = |values: &[Value]| {
            let given: Vec<_> = ["a", "b", "c"].into_iter().map(str::to_owned).zip(values.iter().cloned()).collect();
            agreed(&given).map_err(|error| error.body()["error"]["param"].clone())
        };
        assert_eq!(of(&[]), Ok(None));
        assert_eq!(of(&[json!(0)]), Ok(Some(0)));
        assert_eq!(of(&[json!(-1)]), Ok(None));
        assert_eq!(of(&[json!(7), json!(7.0), json!(7)]), Ok(Some(7)));
        assert_eq!(of(&[json!(7), json!(8)]), Err(json!("b")));
        assert_eq!(of(&[json!(7), json!(-1)]), Err(json!("b")));
        for bad in [json!(-2), json!(1.5), json!("7"), json!(1e12)] {
            assert_eq!(of(&[json!(1), bad]), Err(json!("b")));
        }
    }
}
