//! The template environment: what `transformers` gives to a chat template, on minijinja.
use super::guard::Guard;
use super::python::{self, JsonStyle};
use super::template::Clock;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State};
use std::sync::Arc;

/// Work one render may do: minijinja takes about one per instruction and one per 64 bytes made, so this is well under
/// a second and at most 320 MB. A chat of 1,000 messages takes some 100,000.
const FUEL: u64 = 5_000_000;
/// Frames a template may nest.
const RECURSION_MAX: usize = 200;
/// The context variable that holds the guard character.
pub(super) const MARK: &str = "_wick_mark";

pub(super) fn environment(guard: Arc<Guard>, clock: Clock) -> Result<Environment<'static>, Error> {
    let mut env = Environment::new();
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_fuel(Some(FUEL));
    env.set_recursion_limit(RECURSION_MAX);
    env.set_formatter(|out, _, value| Ok(out.write_str(&python::str_of(value)?)?));

    env.add_function("raise_exception", |message: Value| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, python::str_of(&message)?))
    });
    env.add_function("strftime_now", move |format: String| python::strftime(&format, clock()));

    env.add_filter("tojson", tojson);
    env.add_filter("string", |value: &Value| python::str_of(value));
    env.add_filter("trim", |text: &Value, chars: Option<String>| -> Result<String, Error> {
        Ok(strip(&python::str_of(text)?, chars.as_deref(), true, true).to_owned())
    });
    env.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String)
    });
    env.add_test("iterable", |value: &Value| {
        let kinds = [ValueKind::Seq, ValueKind::Map, ValueKind::String, ValueKind::Iterable, ValueKind::Undefined];
        kinds.contains(&value.kind())
    });

    env.add_filter("int", |value: &Value, default: Option<Value>, base: Option<u32>, kwargs: Kwargs| {
        let default = default.or(kwargs.get("default")?).unwrap_or_else(|| Value::from(0));
        let base = base.or(kwargs.get("base")?).unwrap_or(10);
        kwargs.assert_all_used()?;
        Ok::<_, Error>(to_int(value, base).unwrap_or(default))
    });
    env.add_filter("float", |value: &Value, default: Option<Value>, kwargs: Kwargs| {
        let default = default.or(kwargs.get("default")?).unwrap_or_else(|| Value::from(0.0));
        kwargs.assert_all_used()?;
        Ok::<_, Error>(to_float(value).map_or(default, Value::from))
    });
    env.add_filter("wordcount", |text: &Value| -> Result<usize, Error> {
        let text = python::str_of(text)?;
        let word = |c: char| c.is_alphanumeric() || c == '_';
        Ok(text.split(|c| !word(c)).filter(|piece| !piece.is_empty()).count())
    });

    // Filters that rewrite text could put a control token together from harmless parts.
    let again = Arc::clone(&guard);
    env.add_filter("lower", move |state: &State, text: &Value| {
        again.rewritten(state, &[text], python::str_of(text)?.to_lowercase())
    });
    let again = Arc::clone(&guard);
    env.add_filter("upper", move |state: &State, text: &Value| {
        again.rewritten(state, &[text], python::str_of(text)?.to_uppercase())
    });
    let again = Arc::clone(&guard);
    env.add_filter("capitalize", move |state: &State, text: &Value| {
        again.rewritten(state, &[text], capitalize(&python::str_of(text)?))
    });
    let again = Arc::clone(&guard);
    env.add_filter("title", move |state: &State, text: &Value| {
        again.rewritten(state, &[text], title(&python::str_of(text)?))
    });
    let again = Arc::clone(&guard);
    env.add_filter("replace", move |state: &State, text: &Value, old: &Value, new: &Value, count: Option<i64>| {
        let done = replace(&python::str_of(text)?, &python::str_of(old)?, &python::str_of(new)?, count);
        again.rewritten(state, &[text, new], done)
    });
    let again = Arc::clone(&guard);
    env.add_filter("join", move |state: &State, items: &Value, separator: Option<String>, kwargs: Kwargs| {
        let attribute: Option<String> = kwargs.get("attribute")?;
        let separator = match separator {
            Some(separator) => separator,
            None => kwargs.get::<Option<String>>("d")?.unwrap_or_default(),
        };
        kwargs.assert_all_used()?;
        let mut parts = Vec::new();
        for item in items.try_iter()? {
            parts.push(match &attribute {
                Some(name) => item.get_attr(name)?,
                None => item,
            });
        }
        join(&again, state, &separator, &parts)
    });

    let again = Arc::clone(&guard);
    env.add_filter("truncate", move |state: &State, text: &Value, args: Rest<Value>, kwargs: Kwargs| {
        let shorter = truncate(&python::str_of(text)?, &args, &kwargs)?;
        again.rewritten(state, &[text], shorter)
    });

    env.set_unknown_method_callback(move |state, value, method, args| match (value.as_str(), method) {
        (Some(text), _) => string_method(&guard, state, text, value, method, args),
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
    });
    Ok(env)
}

impl Guard {
    /// The result of rewriting text. It is guarded unless the template itself brought a control token into it.
    fn rewritten(&self, state: &State, inputs: &[&Value], result: String) -> Result<Value, Error> {
        state.consume_fuel(result.len() as u64 / 64)?;
        let Some(mark) = current_mark(state) else { return Ok(Value::from(result)) };
        let brought = inputs.iter().filter_map(|input| input.as_str()).any(|text| self.has_control_token(text));
        let needed = !brought && self.has_control_token(&result);
        Ok(Value::from(if needed { self.text(&result, mark) } else { result }))
    }
}

/// `json.dumps` as `transformers` offers it to templates.
fn tojson(value: &Value, ensure_ascii: Option<bool>, kwargs: Kwargs) -> Result<Value, Error> {
    let flag = |name: &str| kwargs.get::<Option<bool>>(name).map(Option::unwrap_or_default);
    let ensure_ascii = ensure_ascii.unwrap_or(false) || flag("ensure_ascii")?;
    let sort_keys = flag("sort_keys")?;
    let indent: Option<Value> = kwargs.get("indent")?;
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    kwargs.assert_all_used()?;
    let indent = match indent.filter(|indent| !indent.is_none() && !indent.is_undefined()) {
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(indent.as_usize().filter(|&n| n <= 64).ok_or_else(|| {
                Error::new(ErrorKind::InvalidOperation, "tojson: indent must be a string or a number up to 64")
            })?),
        }),
        None => None,
    };
    let (item_separator, key_separator) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "tojson: separators must be two strings")),
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let style = JsonStyle { ensure_ascii, indent, item_separator, key_separator, sort_keys };
    python::json(value, &style).map(Value::from)
}

/// Jinja's `int`: as Python's `int`, then through `float`; `None` where both fail.
fn to_int(value: &Value, base: u32) -> Option<Value> {
    if let Some(text) = value.as_str() {
        let digits = text.trim().replace('_', "");
        let prefix = match base {
            2 => "0b",
            8 => "0o",
            16 => "0x",
            _ => "",
        };
        let bare = digits.strip_prefix(prefix).unwrap_or(&digits);
        if (2..=36).contains(&base)
            && let Ok(number) = i64::from_str_radix(bare, base)
        {
            return Some(Value::from(number));
        }
    } else if value.is_integer() {
        return Some(value.clone());
    }
    let number = to_float(value)?.trunc();
    // Beyond 2^63 floats are whole anyway; the engine has no wider integers from floats.
    (number.abs() < 9.2e18).then(|| Value::from(number as i64))
}

fn to_float(value: &Value) -> Option<f64> {
    match value.kind() {
        ValueKind::String => value.as_str()?.trim().replace('_', "").parse().ok(),
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => f64::try_from(value.clone()).ok(),
        _ => None,
    }
}

/// Jinja's `truncate(length=255, killwords=false, end='...', leeway=5)`.
fn truncate(text: &str, args: &[Value], kwargs: &Kwargs) -> Result<String, Error> {
    let get = |index: usize, name: &str| -> Result<Option<Value>, Error> {
        Ok(args.get(index).cloned().or(kwargs.get::<Option<Value>>(name)?))
    };
    let (length, leeway) = (get(0, "length")?, get(3, "leeway")?);
    let (killwords, end) = (get(1, "killwords")?, get(2, "end")?);
    kwargs.assert_all_used()?;
    let length = length.and_then(|length| length.as_usize()).unwrap_or(255);
    let leeway = leeway.and_then(|leeway| leeway.as_usize()).unwrap_or(5);
    let end = match &end {
        Some(end) => python::str_of(end)?,
        None => "...".to_owned(),
    };
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text.to_owned());
    }
    let kept: String = text.chars().take(length.saturating_sub(end.chars().count())).collect();
    let whole_words = !killwords.is_some_and(|kill| kill.is_true());
    let kept = if whole_words { kept.rsplit_once(' ').map_or(kept.as_str(), |(before, _)| before) } else { &kept };
    Ok(kept.to_owned() + &end)
}

/// Methods of Python's `str` that need its idea of white space, are missing in minijinja, or rewrite text.
fn string_method(
    guard: &Guard,
    state: &mut State,
    text: &str,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let arg = |index: usize| args.get(index).and_then(|arg: &Value| arg.as_str());
    let needs = |what: &str| Error::new(ErrorKind::InvalidOperation, format!("str.{method} needs {what}"));
    match method {
        "strip" => Ok(strip(text, arg(0), true, true).into()),
        "lstrip" => Ok(strip(text, arg(0), true, false).into()),
        "rstrip" => Ok(strip(text, arg(0), false, true).into()),
        "removeprefix" => Ok(text.strip_prefix(arg(0).ok_or_else(|| needs("a string"))?).unwrap_or(text).into()),
        "removesuffix" => Ok(text.strip_suffix(arg(0).ok_or_else(|| needs("a string"))?).unwrap_or(text).into()),
        "lower" | "casefold" => guard.rewritten(state, &[value], text.to_lowercase()),
        "upper" => guard.rewritten(state, &[value], text.to_uppercase()),
        "title" => guard.rewritten(state, &[value], title(text)),
        "capitalize" => guard.rewritten(state, &[value], capitalize(text)),
        "replace" => {
            let (Some(old), Some(new)) = (arg(0), arg(1)) else { return Err(needs("two strings")) };
            let count = args.get(2).and_then(Value::as_i64);
            let grown = text.len().saturating_mul(new.len().max(1)) / old.len().max(1);
            state.consume_fuel(grown as u64 / 64)?;
            guard.rewritten(state, &[value, &args[1]], replace(text, old, new, count))
        }
        "join" => {
            let items: Vec<Value> = args.first().ok_or_else(|| needs("a list"))?.try_iter()?.collect();
            join(guard, state, text, &items)
        }
        "split" => {
            let list = minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)?;
            let items: Vec<Value> = list.try_iter()?.collect();
            pieces_of(guard, state, items.iter().filter_map(|item| item.as_str()).collect())
        }
        "rsplit" => {
            let separator = arg(0).filter(|separator| !separator.is_empty()).ok_or_else(|| needs("a separator"))?;
            let limit = args.get(1).and_then(Value::as_usize).unwrap_or(usize::MAX - 1);
            let mut pieces: Vec<&str> = text.rsplitn(limit.saturating_add(1), separator).collect();
            pieces.reverse();
            pieces_of(guard, state, pieces)
        }
        "partition" | "rpartition" => {
            let separator = arg(0).filter(|separator| !separator.is_empty()).ok_or_else(|| needs("a separator"))?;
            let cut = if method == "partition" { text.split_once(separator) } else { text.rsplit_once(separator) };
            Ok(match (cut, method) {
                (Some((before, after)), _) => return pieces_of(guard, state, vec![before, separator, after]),
                (None, "partition") => [text, "", ""].into_iter().map(Value::from).collect(),
                (None, _) => ["", "", text].into_iter().map(Value::from).collect(),
            })
        }
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
    }
}

/// What a split gives. The cuts are new seams: each piece is guarded on its own, unless it is a control token that the
/// template itself brought.
fn pieces_of(guard: &Guard, state: &State, pieces: Vec<&str>) -> Result<Value, Error> {
    state.consume_fuel(pieces.len() as u64)?;
    let mark = current_mark(state).filter(|_| pieces.len() > 1);
    Ok(pieces
        .into_iter()
        .map(|piece| match mark {
            Some(mark) if !guard.has_control_token(piece) => Value::from(guard.text(piece, mark)),
            _ => Value::from(piece),
        })
        .collect())
}

fn current_mark(state: &State) -> Option<char> {
    state.lookup(MARK)?.as_str()?.chars().next()
}

fn join(guard: &Guard, state: &State, separator: &str, items: &[Value]) -> Result<Value, Error> {
    let mut out = String::new();
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push_str(separator);
        }
        out.push_str(&python::str_of(item)?);
        state.consume_fuel(1 + separator.len() as u64 / 64)?;
    }
    let separator = Value::from(separator);
    let inputs: Vec<&Value> = items.iter().chain([&separator]).collect();
    guard.rewritten(state, &inputs, out)
}

/// `str.replace`; a negative count means all.
fn replace(text: &str, old: &str, new: &str, count: Option<i64>) -> String {
    match count.and_then(|count| usize::try_from(count).ok()) {
        Some(count) => text.replacen(old, new, count),
        None => text.replace(old, new),
    }
}

fn strip<'a>(text: &'a str, chars: Option<&str>, left: bool, right: bool) -> &'a str {
    let drop = |c: char| match chars {
        Some(chars) => chars.contains(c),
        // Python also calls the separators U+001C to U+001F white space.
        None => c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c),
    };
    let text = if left { text.trim_start_matches(drop) } else { text };
    if right { text.trim_end_matches(drop) } else { text }
}

/// `str.capitalize`.
fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(chars.as_str().to_lowercase().chars()).collect())
}

/// `str.title`: every run of letters starts with a capital.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        inside = c.is_alphabetic();
    }
    out
}
