//! Strings ↔ token ids. No tensors, no HTTP.
//!
//! A chat request takes this way: [`ChatTemplate::render`] guards the control tokens in what users wrote and renders;
//! [`Tokenizer::encode_prompt`] reads control tokens only where the template wrote them. Generated ids come back
//! through [`Detokenizer`] and [`StopMatcher`].
use std::path::{Path, PathBuf};

mod added;
mod detokenizer;
mod gguf;
mod guard;
mod hf;
mod jinja;
mod merges;
mod names;
mod neighbours;
mod output;
mod pretokenize;
mod python;
mod scan;
mod spm;
mod stop;
mod template;
mod tokenizer;

pub use added::AddedToken;
pub use detokenizer::Detokenizer;
pub use gguf::GgufVocabulary;
pub use output::{
    CallFormat, OutputFormat, OutputParser, Segment, THOUGHT_MARKS, Thinking, Tool, ToolChoice, call_grammar,
};
pub use stop::{StopMatcher, StopStep, StopStrings};
pub use template::{ChatTemplate, Clock, TemplateSource};
pub use tokenizer::Tokenizer;

/// Why a model's text tools cannot be built or a text cannot be processed.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    #[error("{path}: {reason}")]
    Load { path: PathBuf, reason: String },
    #[error("unknown pre-tokenizer `{found}`; wick knows: {}", known.join(", "))]
    UnknownPreTokenizer { found: String, known: Vec<&'static str> },
    #[error("unknown tokenizer model `{found}`; wick knows: {}", known.join(", "))]
    UnknownTokenizerModel { found: String, known: Vec<&'static str> },
    #[error("tokenizing failed: {0}")]
    Encode(String),
    #[error("the model has no chat template; use /v1/completions, or give one with --chat-template")]
    NoTemplate,
    /// The template itself refused (`raise_exception`) or failed: the client's messages do not fit it.
    #[error("the model's chat template refused the messages: {0}")]
    Template(String),
}

impl TextError {
    fn load(path: &Path, reason: impl Into<String>) -> Self {
        Self::Load { path: path.to_owned(), reason: reason.into() }
    }
}

/// A rendered chat: its text, and the character that keeps users' control tokens plain text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenderedPrompt {
    /// The template's output. Control tokens written by users carry `guard` inside, so that they stay plain text.
    pub text: String,
    /// The character that guards; removed before tokenizing. `None` when nothing needed guarding.
    pub guard: Option<char>,
}

impl RenderedPrompt {
    /// Ends the thoughts that the prompt has begun, as templates do that leave them out: the answer comes next.
    pub fn end_thoughts(&mut self) -> Thinking {
        self.text.push('\n');
        self.text.push_str(THOUGHT_MARKS.1);
        self.text.push_str("\n\n");
        Thinking::Never
    }

    /// The text without guards, as the reference renders it.
    #[must_use]
    pub fn plain(&self) -> String {
        match self.guard {
            Some(guard) => self.text.replace(guard, ""),
            None => self.text.clone(),
        }
    }
}

/// Everything between strings and ids for one model.
pub struct TextTools {
    pub tokenizer: std::sync::Arc<Tokenizer>,
    /// `None`: the model has no template (a base model).
    pub template: Option<ChatTemplate>,
    /// How the model writes calls and thoughts.
    pub output: OutputFormat,
}

impl TextTools {
    /// From a GGUF file's metadata, or a folder with tokenizer.json, tokenizer_config.json (and chat_template.jinja).
    /// A file of another kind (`model.safetensors`) stands for its folder. `chat_template` replaces the model's own.
    ///
    /// # Errors
    /// `Load`, `UnknownPreTokenizer`, `UnknownTokenizerModel`.
    pub fn load(model_path: &Path, chat_template: Option<&Path>) -> Result<Self, TextError> {
        let is_gguf = model_path.extension().is_some_and(|ext| ext.eq_ignore_ascii_case("gguf"));
        let parts = if model_path.is_dir() {
            hf::load(model_path)?
        } else if is_gguf {
            let file = crate::weights::gguf::GgufFile::open(model_path)
                .map_err(|error| TextError::load(model_path, error.to_string()))?;
            gguf::load(&file)?
        } else {
            hf::load(model_path.parent().unwrap_or(Path::new(".")))?
        };
        Self::assemble(parts, model_path, chat_template)
    }

    /// From the metadata of a GGUF file that is already open.
    ///
    /// # Errors
    /// See `load`.
    pub fn from_gguf(file: &crate::weights::gguf::GgufFile, chat_template: Option<&Path>) -> Result<Self, TextError> {
        Self::assemble(gguf::load(file)?, file.path(), chat_template)
    }

    fn assemble(loaded: Loaded, path: &Path, chat_template: Option<&Path>) -> Result<Self, TextError> {
        let Loaded { mut tokenizer, mut sources, variables } = loaded;
        let mut origin = path;
        if let Some(file) = chat_template {
            let text = std::fs::read_to_string(file).map_err(|error| TextError::load(file, error.to_string()))?;
            sources = vec![TemplateSource { name: "default".into(), text }];
            origin = file;
        }
        if sources.is_empty() {
            return Ok(Self { tokenizer: tokenizer.into(), template: None, output: OutputFormat::default() });
        }
        let ends = template::turn_ends(&sources, tokenizer.added_tokens());
        tokenizer.add_stop_ids(ends);
        let control = tokenizer.added_tokens().iter().filter(|token| token.special).map(|token| token.content.clone());
        let template = ChatTemplate::new(sources.clone(), variables, control, template::system_clock())
            .map_err(|reason| TextError::load(origin, format!("chat template: {reason}")))?;
        let output = OutputFormat::of(&sources, &template, &tokenizer);
        Ok(Self { tokenizer: tokenizer.into(), template: Some(template), output })
    }

    /// Renders messages (OpenAI shape, as JSON): string-encoded tool-call arguments become objects first, because
    /// that is what templates expect, and tools take the form that this model's template knows.
    ///
    /// # Errors
    /// `NoTemplate`, `Template`.
    pub fn render_chat(&self, input: &ChatInput) -> Result<RenderedPrompt, TextError> {
        let template = self.template.as_ref().ok_or(TextError::NoTemplate)?;
        let mut input = input.clone();
        input.messages.iter_mut().for_each(template::parse_arguments);
        self.output.prepare(&mut input);
        template.render(&input)
    }

    /// Renders messages (OpenAI shape, as JSON) and tokenizes the result; control tokens only where the template wrote them.
    ///
    /// # Errors
    /// `NoTemplate`, `Template`, `Encode`.
    pub fn encode_chat(&self, input: &ChatInput) -> Result<Vec<u32>, TextError> {
        self.tokenizer.encode_prompt(&self.render_chat(input)?)
    }
}

/// What `hf` and `gguf` read.
struct Loaded {
    tokenizer: Tokenizer,
    sources: Vec<TemplateSource>,
    /// `bos_token`, `eos_token` …: what templates may print.
    variables: Vec<(String, String)>,
}

/// What a chat template sees.
#[derive(Debug, Clone, Default)]
pub struct ChatInput {
    /// Objects with role, content, name, tool_calls …
    pub messages: Vec<serde_json::Value>,
    pub tools: Option<Vec<serde_json::Value>>,
    pub add_generation_prompt: bool,
    /// The last message is continued rather than closed (vLLM's `continue_final_message`).
    pub continue_final_message: bool,
    /// `chat_template_kwargs`.
    pub kwargs: serde_json::Map<String, serde_json::Value>,
}
