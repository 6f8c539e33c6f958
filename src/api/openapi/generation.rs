//! What `/v1/chat/completions`, `/v1/completions` and `/tokenize` take, and what other dialects take of it.
use serde_json::{Value, json};

use super::schema::{
    Field, any_of, anything, count, default, flag, integer, list, list_of, map, null, number, object, one_of, optional,
    required, some_text, text, text_of, token, with, words,
};
use crate::api::chat::EFFORTS;
use crate::api::completions::{BEST_OF_MAX, LOGPROBS_MAX, MAX_TOKENS_DEFAULT};
use crate::api::messages::CACHE_HINTS;
use crate::api::params::{HARMLESS, N_MAX, Neutral, SHORT_TEXT_MAX, STOP_IDS_MAX, STOPS_MAX, Shape, UNSUPPORTED};
use crate::api::responses_tools::{HINTS, LEFT_OUT};
use crate::api::structured::{CHOICES_MAX, NAME_MAX};
use crate::api::tools::{self, Form, TOOLS_MAX};

const IGNORED: &str = "Checked, then ignored: it cannot change the answer.";

/// `model`, of an endpoint whose models do what `purpose` says.
pub(super) fn model(purpose: &str) -> Field {
    let about = format!("A name that `GET /v1/models` lists. Without it: the first model that {purpose}.");
    optional("model", text(), &about)
}

/// The fields of chat and completions alike, those without an effect included.
pub(super) fn shared() -> Vec<Field> {
    let mut fields: Vec<Field> =
        UNSUPPORTED.iter().map(|(name, neutral, hint)| neutral_only(name, *neutral, hint)).collect();
    fields.extend(HARMLESS.iter().map(|(name, shape)| optional(name, harmless(*shape), IGNORED)));
    fields.extend(sampling());
    fields.extend(ending());
    fields.extend(structured("guided_"));
    fields.extend([
        optional("response_format", response_format(), "The form that the answer must have."),
        optional("structured_outputs", structured_outputs(), "vLLM's way to give the form of the answer."),
        optional(
            "prompt_logprobs",
            integer(0..=20),
            "Log-probabilities of the prompt, with so many alternatives; not with `stream`.",
        ),
        optional(
            "cache_salt",
            text_of(1..=SHORT_TEXT_MAX),
            "Only requests with the same salt share cached prompts. Limited in bytes.",
        ),
        cache_key(),
        options(),
        optional(
            "truncate_prompt_tokens",
            integer(-1..=i64::MAX),
            "Keep so many tokens of the prompt's end; -1: as many as fit beside the completion. 0 is refused.",
        ),
        optional(
            "return_token_ids",
            default(flag(), false),
            "Answer with the ids of the prompt's and the completion's tokens, too.",
        ),
        optional("stream", default(flag(), false), "Answer with server-sent events."),
        optional("stream_options", stream_options(), "Only with `stream`."),
    ]);
    fields
}

fn cache_key() -> Field {
    optional(
        "prompt_cache_key",
        text(),
        "Names the conversation, as the header `x-session-affinity` does, which goes first.",
    )
}

/// `options`, which Workers AI has.
pub(super) fn options() -> Field {
    let refuses = "Answer with an error instead of having the request wait for others.";
    let options = object(vec![optional("rejectIfBusy", default(flag(), false), refuses)]);
    optional("options", options, "How the request is treated.")
}

/// Tokens of thoughts.
fn budget() -> Value {
    integer(-1..=i64::from(u32::MAX))
}

/// The names that the budget of thoughts has beside the conversation.
pub(super) fn thinking_budgets() -> Vec<Field> {
    let about = "Most tokens that the model may think; -1: any number.";
    vec![
        optional("thinking_budget", budget(), about),
        optional("thinking_token_budget", budget(), "The same under vLLM's name."),
    ]
}

/// `max_tokens` of `reasoning`.
pub(super) fn reasoning_budget() -> Field {
    optional("max_tokens", budget(), "As `thinking_budget`.")
}

fn sampling() -> Vec<Field> {
    let bias = json!({
        "type": "object",
        "propertyNames": {"pattern": "^(0|[1-9][0-9]*)$"},
        "additionalProperties": number(-100.0..=100.0),
    });
    let seed = json!({"type": "integer", "minimum": i64::MIN, "maximum": u64::MAX});
    let penalty = || default(number(-2.0..=2.0), 0.0);
    vec![
        optional("n", default(count(1..=N_MAX), 1), "Choices for each prompt."),
        optional("temperature", default(number(0.0..=2.0), 1.0), "0 always takes the most likely token."),
        optional(
            "top_p",
            default(number(0.0..=1.0), 1.0),
            "Sample from the most likely tokens that have this probability together.",
        ),
        optional(
            "top_k",
            default(integer(-1..=i64::from(u32::MAX)), 0),
            "Sample from so many tokens; 0 and -1: from all.",
        ),
        optional(
            "min_p",
            default(number(0.0..=1.0), 0.0),
            "Leave out tokens below this share of the most likely one's probability.",
        ),
        optional("presence_penalty", penalty(), "Taken off tokens that the completion has."),
        optional("frequency_penalty", penalty(), "Taken off a token for each time that the completion has it."),
        optional(
            "repetition_penalty",
            default(number(0.01..=100.0), 1.0),
            "Divides what tokens of the prompt and the completion have.",
        ),
        optional("logit_bias", bias, "Added to tokens, by their ids."),
        optional("seed", seed, "The same seed, request and model give the same answer."),
    ]
}

/// When a completion ends, and what of its end is shown.
fn ending() -> Vec<Field> {
    let stop = any_of(vec![some_text(), list_of(some_text(), 0..=STOPS_MAX)]);
    let about = format!("Texts that end the completion, each of at most {SHORT_TEXT_MAX} bytes.");
    vec![
        optional(
            "min_tokens",
            default(count(0..=u32::MAX), 0),
            "Nothing ends the completion before it has so many tokens.",
        ),
        optional("ignore_eos", default(flag(), false), "Go on after the model's end of text."),
        optional("stop", stop, &about),
        optional("stop_token_ids", list_of(token(), 0..=STOP_IDS_MAX), "Tokens that end the completion."),
        optional("include_stop_str_in_output", default(flag(), false), "Show the stop text that ended the completion."),
        optional("skip_special_tokens", default(flag(), true), "Leave control tokens out of the text."),
    ]
}

fn harmless(shape: Shape) -> Value {
    match shape {
        Shape::Text => text(),
        Shape::Flag => flag(),
        Shape::OneOf(all) => words(all),
        Shape::Object => map(),
        Shape::Metadata => json!({
            "type": "object",
            "maxProperties": 16,
            "propertyNames": {"maxLength": 64},
            "additionalProperties": {"type": "string", "maxLength": 512},
        }),
    }
}

/// A field whose effect there is not: what is accepted of it asks for nothing.
fn neutral_only(name: &str, neutral: Neutral, hint: &str) -> Field {
    let schema = match neutral {
        Neutral::Nothing => null(),
        Neutral::EmptyArray => list_of(anything(), 0..=0),
        Neutral::Text(word) => words(&[word]),
        Neutral::False => json!({"type": "boolean", "enum": [false]}),
        Neutral::True => json!({"type": "boolean", "enum": [true]}),
        Neutral::Zero => json!({"type": "number", "enum": [0]}),
        Neutral::One => json!({"type": "number", "enum": [1]}),
        Neutral::OnlyText => list_of(words(&["text"]), 1..=1),
    };
    optional(name, schema, &format!("Not supported{hint}."))
}

/// A field that is refused unless it is `null`.
pub(super) fn refused(name: &str, hint: &str) -> Field {
    neutral_only(name, Neutral::Nothing, hint)
}

fn stream_options() -> Value {
    object(vec![
        optional("include_usage", default(flag(), false), "A last chunk with the usage and no choices."),
        optional("continuous_usage_stats", default(flag(), false), "The usage so far in every chunk."),
        optional("include_obfuscation", flag(), "There is none; the text is the same with or without."),
    ])
}

fn response_format() -> Value {
    let kind = |kind: &str| required("type", words(&[kind]), "");
    let schema = object(vec![
        schema_name(),
        optional("description", text(), "For the reader."),
        optional("schema", map(), "A JSON schema. Without it: any JSON object."),
        optional("strict", flag(), "A schema is enforced whether `strict` or not."),
    ]);
    one_of(vec![
        object(vec![kind("text")]),
        object(vec![kind("json_object")]),
        object(vec![kind("json_schema"), required("json_schema", schema, "The answer is JSON that fits a schema.")]),
    ])
}

/// A schema's name.
pub(super) fn schema_name() -> Field {
    let name = json!({"type": "string", "pattern": format!("^[A-Za-z0-9_-]{{1,{NAME_MAX}}}$")});
    required("name", name, "Letters, digits, `_` and `-`.")
}

fn structured_outputs() -> Value {
    let mut fields = structured("");
    fields.extend([
        optional("json_object", flag(), "Any JSON object."),
        optional("disable_fallback", flag(), "There is one backend: nothing to fall back to."),
        optional("disable_any_whitespace", default(flag(), false), "JSON without white space between its parts."),
        optional(
            "disable_additional_properties",
            json!({"type": "boolean", "enum": [false]}),
            "Write it into the schema.",
        ),
        refused("structural_tag", ": use a schema or a grammar"),
        refused("whitespace_pattern", ": white space is bounded by the server"),
    ]);
    object(fields)
}

/// Forms of an answer, under vLLM's names after a prefix. At most one may be given.
fn structured(prefix: &str) -> Vec<Field> {
    let field = |name: &str, schema: Value, about: &str| optional(&format!("{prefix}{name}"), schema, about);
    vec![
        field("json", any_of(vec![map(), text()]), "A JSON schema, or its text."),
        field("regex", text(), "A regular expression for the whole answer."),
        field("choice", list_of(some_text(), 1..=CHOICES_MAX), "The answer is one of these texts."),
        field("grammar", text(), "A grammar in Lark's or GBNF's form."),
    ]
}

/// The body of `/v1/chat/completions`.
pub(super) fn chat() -> Value {
    let mut fields = chat_fields();
    fields.push(model("generates"));
    object(fields)
}

/// What is said of a chat and its answer.
pub(super) fn chat_fields() -> Vec<Field> {
    let mut fields = shared();
    fields.extend(conversation());
    fields.extend(thinking_budgets());
    let effort = || words(EFFORTS);
    let reasoning = object(vec![optional("effort", effort(), "As `reasoning_effort`."), reasoning_budget()]);
    fields.extend([
        optional("reasoning_effort", effort(), "How much a model thinks that can be told so; `none`: not at all."),
        optional("reasoning", reasoning, "Another form of `reasoning_effort` and `thinking_budget`."),
        optional("include_reasoning", default(flag(), true), "Whether the answer shows the thoughts."),
        optional(
            "max_completion_tokens",
            count(1..=u32::MAX),
            "Most tokens of a choice, thoughts included. Without it: what the context leaves.",
        ),
        optional("max_tokens", count(1..=u32::MAX), "The old name of `max_completion_tokens`."),
        optional("logprobs", default(flag(), false), "Log-probabilities of the answer's tokens."),
        optional("top_logprobs", integer(0..=20), "With so many alternatives; only with `logprobs`."),
    ]);
    fields
}

/// The body of `/v1/completions`.
pub(super) fn completion() -> Value {
    let mut fields = shared();
    fields.extend([
        model("generates"),
        required("prompt", prompts(), "One prompt or several, as texts or as token ids."),
        optional(
            "max_tokens",
            default(count(0..=u32::MAX), MAX_TOKENS_DEFAULT),
            "Most tokens of a choice; 0 only with `echo`.",
        ),
        optional("echo", default(flag(), false), "Repeat the prompt before the completion."),
        optional(
            "logprobs",
            integer(0..=i64::from(LOGPROBS_MAX)),
            "Log-probabilities of tokens, with so many alternatives.",
        ),
        optional(
            "best_of",
            count(0..=BEST_OF_MAX),
            "Generate so many choices and show the `n` most likely ones; not with `stream`. 0: `n`.",
        ),
        optional("add_special_tokens", default(flag(), true), "Add the tokens that the model expects at the start."),
    ]);
    object(fields)
}

/// A text, several, token ids, or several lists of those.
fn prompts() -> Value {
    any_of(vec![
        text(),
        list_of(text(), 1..=usize::MAX),
        list_of(token(), 1..=usize::MAX),
        list_of(list(token()), 1..=usize::MAX),
    ])
}

/// Whose tokenizer is asked where no model is named.
const GENERATES_OR_FIRST: &str = "generates, or else the first";

/// The body of `/tokenize`.
pub(super) fn tokenize() -> Value {
    let strings = || optional("return_token_strs", default(flag(), false), "Answer with the tokens' texts, too.");
    let prompt = object(vec![
        model(GENERATES_OR_FIRST),
        strings(),
        required(
            "prompt",
            text(),
            "A text, as `/v1/completions` takes it, or `/v1/embeddings` if the model is for those.",
        ),
        optional("add_special_tokens", default(flag(), true), "Add the tokens that the model expects around it."),
    ]);
    let mut chat = conversation();
    chat.extend([
        model("generates"),
        strings(),
        optional("add_special_tokens", json!({"type": "boolean", "enum": [false]}), "The chat template writes them."),
    ]);
    one_of(vec![prompt, object(chat)])
}

/// The body of `/detokenize`.
pub(super) fn detokenize() -> Value {
    object(vec![model(GENERATES_OR_FIRST), required("tokens", list(token()), "Ids of the model's tokens.")])
}

/// What a chat template sees.
fn conversation() -> Vec<Field> {
    let mut fields = tools(Form::Nested);
    fields.extend([
        required(
            "messages",
            list_of(message(Calls::OpenAi), 1..=usize::MAX),
            "The conversation. A tool's result must follow the call with its id.",
        ),
        optional(
            "continue_final_message",
            default(flag(), false),
            "Go on with the last message instead of answering it.",
        ),
        optional(
            "add_generation_prompt",
            flag(),
            "Begin the assistant's turn: true unless `continue_final_message` is.",
        ),
        template_kwargs(),
    ]);
    fields
}

pub(super) fn template_kwargs() -> Field {
    optional("chat_template_kwargs", map(), "Values for the model's chat template, such as `enable_thinking`.")
}

/// Hints about caching: any value.
pub(super) fn cache_hints() -> Vec<Field> {
    CACHE_HINTS
        .iter()
        .map(|name| optional(name, anything(), "A hint about caching, which cannot change the answer."))
        .collect()
}

/// How calls and their results may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Calls {
    OpenAi,
    /// Also as Workers AI has them: a name with its arguments, and a result that names no call.
    Traditional,
}

/// A message of a chat.
pub(super) fn message(calls: Calls) -> Value {
    let common = |roles: &[&str], content: Field| {
        let mut fields =
            vec![required("role", words(roles), "Who says it."), content, optional("name", text(), "Of the speaker.")];
        fields.extend(cache_hints());
        fields
    };
    let said = required("content", content(1), "A text, or its parts.");
    let spoken = common(&["system", "developer", "user"], said);
    let mut result = common(&["tool"], required("content", content(1), "What the tool says."));
    let about = "The call that it answers.";
    result.push(match calls {
        Calls::OpenAi => required("tool_call_id", text(), about),
        Calls::Traditional => optional("tool_call_id", text(), "The call that it answers. Without it: the next one."),
    });
    let mut made = vec![call("function"), call("custom")];
    if calls == Calls::Traditional {
        made.push(traditional_call());
    }
    let about = "Needed unless there are calls or a refusal.";
    let mut answer = common(&["assistant"], optional("content", content(0), about));
    answer.extend([
        optional("refusal", text(), "Stands for the content of an answer that has none."),
        optional("tool_calls", list(any_of(made)), "The calls that the assistant made."),
        optional("reasoning", text(), "What the assistant thought."),
        optional("reasoning_content", text(), "The same under its older name, which goes first."),
        optional("annotations", list(anything()), "Of an earlier answer; ignored."),
        optional("parsed", anything(), "What an SDK made of the content; ignored."),
        refused("audio", ""),
        refused("function_call", ": use `tool_calls`"),
    ]);
    one_of(vec![object(spoken), object(result), object(answer)])
}

/// A text, or at least so many parts of text.
fn content(parts_min: usize) -> Value {
    let part = |kind: &str| {
        let mut fields = vec![required("type", words(&[kind]), ""), required(kind, text(), "")];
        fields.extend(cache_hints());
        object(fields)
    };
    any_of(vec![text(), list_of(one_of(vec![part("text"), part("refusal")]), parts_min..=usize::MAX)])
}

/// A call that the assistant made.
fn call(kind: &str) -> Value {
    let said = if kind == "custom" { "input" } else { "arguments" };
    let made = object(vec![
        required("name", text(), "Of the tool."),
        optional(said, text(), "What it was called with, as the model wrote it."),
        optional("parsed_arguments", anything(), "What an SDK made of the arguments; ignored."),
    ]);
    let word = words(&[kind]);
    let word = if kind == "custom" { required("type", word, "") } else { optional("type", default(word, kind), "") };
    object(vec![
        optional("id", text(), "To be repeated by the tool's result."),
        word,
        optional("index", integer(0..=i64::MAX), "Where the call stood in a stream; ignored."),
        required(kind, made, "What is called."),
    ])
}

fn traditional_call() -> Value {
    object(vec![
        optional("id", text(), "To be repeated by the tool's result."),
        optional("index", integer(0..=i64::MAX), "Where the call stood in a stream; ignored."),
        required("name", text(), "Of the tool."),
        optional("arguments", any_of(vec![map(), text()]), "What it was called with."),
    ])
}

/// A tool's name.
pub(super) fn tool_name() -> Field {
    let pattern = format!("^[A-Za-z0-9_.-]{{1,{}}}$", tools::NAME_MAX);
    required(
        "name",
        json!({"type": "string", "pattern": pattern}),
        "Letters, digits, `_`, `-` and `.`; each tool has its own.",
    )
}

/// `tools`, `tool_choice` and `parallel_tool_calls`.
pub(super) fn tools(form: Form) -> Vec<Field> {
    let mut kinds = vec![tool(form, "function"), tool(form, "custom")];
    if form == Form::Responses {
        kinds.extend([namespace(list(one_of(kinds.clone()))), left_out()]);
    }
    tool_fields(list_of(one_of(kinds), 0..=TOOLS_MAX), tool_choice(form))
}

/// The same, of these tools and choices.
pub(super) fn tool_fields(tools: Value, choice: Value) -> Vec<Field> {
    let about = "Whether it may, must, or which one it must call. `auto` where there are tools.";
    vec![
        optional("tools", tools, "What the model may call."),
        optional("tool_choice", choice, about),
        optional("parallel_tool_calls", default(flag(), true), "More than one call may be made in an answer."),
    ]
}

/// What is said of a tool that is a function.
pub(super) fn function() -> Vec<Field> {
    vec![
        tool_name(),
        optional("description", text(), "What it does, for the model."),
        optional("parameters", map(), "A JSON schema of type `object`. Without it there are no arguments."),
        optional("strict", default(flag(), false), "Refuse a schema that cannot be enforced."),
    ]
}

/// What is said of a tool that takes a text.
fn custom(form: Form) -> Vec<Field> {
    let grammar = vec![
        required("syntax", words(&["lark", "regex"]), "How the definition is written."),
        required("definition", text(), "A grammar in Lark's form, or a regular expression for the whole text."),
    ];
    let kind = |kind: &str| required("type", words(&[kind]), "");
    let format = one_of(vec![object(vec![kind("text")]), placed(form, "grammar", grammar, Vec::new())]);
    vec![
        tool_name(),
        optional("description", text(), "What it does, for the model."),
        optional("format", format, "What the text must look like. Without it: any text."),
    ]
}

/// A tool's definition.
pub(super) fn tool(form: Form, kind: &str) -> Value {
    let about = if kind == "custom" { custom(form) } else { function() };
    let mut beside = vec![tool_hint()];
    if form == Form::Responses {
        let callers = json!({"type": "array", "contains": {"const": "direct"}});
        beside.extend([is_waited_for(), optional("allowed_callers", callers, "Only the model itself calls tools.")]);
        beside.extend(HINTS.map(|name| optional(name, anything(), "A hint; ignored.")));
    }
    placed(form, kind, about, beside)
}

pub(super) fn is_waited_for() -> Field {
    optional("async", json!({"type": "boolean", "enum": [false]}), "A model waits for the results of its calls.")
}

/// Tools that belong together.
fn namespace(tools: Value) -> Value {
    object(vec![
        required("type", words(&["namespace"]), ""),
        tool_name(),
        optional("description", text(), "What its tools are for, for the model."),
        required("tools", tools, "Calls of them have the `namespace` beside the `name`."),
    ])
}

/// A tool that the model is not shown.
fn left_out() -> Value {
    let tool = object(vec![required("type", words(&[LEFT_OUT]), "Has no effect: `x-ignored-params` names it.")]);
    with(tool, "additionalProperties", true)
}

pub(super) fn tool_hint() -> Field {
    optional("cache_control", anything(), "A hint about caching, which cannot change the answer.")
}

/// Whether a tool may or must be called, and which.
pub(super) fn tool_choice(form: Form) -> Value {
    let named = |kind: &str| {
        let mut about = vec![tool_name()];
        let more = ["description", "parameters", "strict", "format"];
        about.extend(more.map(|name| optional(name, anything(), "Ignored: the tool is the one in `tools`.")));
        placed(form, kind, about, Vec::new())
    };
    let allowed = vec![
        required("mode", words(&["auto", "required"]), "Whether one of them must be called."),
        required(
            "tools",
            list_of(one_of(vec![named("function"), named("custom")]), 1..=usize::MAX),
            "The tools that may be called.",
        ),
    ];
    one_of(vec![
        words(&["none", "auto", "required"]),
        named("function"),
        named("custom"),
        placed(form, "allowed_tools", allowed, Vec::new()),
    ])
}

/// A typed object: what it says stands under its type's name in chats, beside it in Responses.
fn placed(form: Form, kind: &str, about: Vec<Field>, mut beside: Vec<Field>) -> Value {
    beside.push(required("type", words(&[kind]), ""));
    match form {
        Form::Nested => beside.push(required(kind, object(about), "")),
        Form::Flat | Form::Responses => beside.extend(about),
    }
    object(beside)
}
