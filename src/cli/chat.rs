//! `wick chat`: a conversation in the terminal, on an engine in this process.
use std::io::{BufRead, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;

use serde_json::json;

use super::loading::plan_model;
use crate::config::ChatArgs;
use crate::engine::{EngineHandle, GenerationRequest, SeqEvent};
use crate::kv::CacheSalt;
use crate::sampling::SamplingParams;
use crate::scheduler::StopLimits;
use crate::text::{ChatInput, Detokenizer, TextTools};

pub(super) async fn run(args: ChatArgs) -> anyhow::Result<ExitCode> {
    anyhow::ensure!((0.0..=2.0).contains(&args.temperature), "--temperature must be between 0 and 2");
    let (engine, text) = plan_model(&args.model, &args.engine, &args.fetch).await?.start(None).await?;
    let mut chat = Chat { engine, text, args, messages: Vec::new() };
    if let Some(system) = &chat.args.system {
        chat.messages.push(json!({ "role": "system", "content": system }));
    }
    if let Some(question) = chat.args.prompt.clone() {
        chat.ask(&question).await?;
        return Ok(ExitCode::SUCCESS);
    }
    chat.converse().await?;
    Ok(ExitCode::SUCCESS)
}

struct Chat {
    engine: EngineHandle,
    text: Arc<TextTools>,
    args: ChatArgs,
    messages: Vec<serde_json::Value>,
}

impl Chat {
    /// Reads questions until the input ends.
    async fn converse(&mut self) -> anyhow::Result<()> {
        let prompt = std::io::stdin().is_terminal();
        if prompt {
            eprintln!("Type a message; end with Ctrl-D.");
        }
        loop {
            if prompt {
                eprint!("> ");
            }
            let mut line = String::new();
            let read =
                tokio::task::spawn_blocking(move || std::io::stdin().lock().read_line(&mut line).map(|n| (n, line)))
                    .await?;
            let (n, line) = read?;
            if n == 0 {
                return Ok(());
            }
            if !line.trim().is_empty() {
                self.ask(line.trim()).await?;
            }
        }
    }

    /// Asks, prints the answer as it comes, and remembers both.
    async fn ask(&mut self, question: &str) -> anyhow::Result<()> {
        self.messages.push(json!({ "role": "user", "content": question }));
        let input = ChatInput { messages: self.messages.clone(), add_generation_prompt: true, ..ChatInput::default() };
        let prompt = self.text.encode_chat(&input)?;
        let context = self.engine.info().context_max;
        let left = context.saturating_sub(prompt.len());
        anyhow::ensure!(left > 0, "the conversation has {} tokens and the context holds {context}", prompt.len());
        let request = GenerationRequest {
            prompt: prompt.into(),
            params: Arc::new(SamplingParams {
                temperature: self.args.temperature,
                seed: self.args.seed.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0),
                ..SamplingParams::default()
            }),
            limits: StopLimits {
                max_new_tokens: self.args.max_tokens.map_or(left, |m| m.get().min(left)),
                stop_tokens: self.text.tokenizer.stop_ids().into(),
            },
            salt: CacheSalt::default(),
            tenant: 0,
            prompt_logprobs: None,
            grammar: None,
            thoughts: None,
            explain: false,
            embed: None,
        };
        let answer = self.follow(request).await?;
        self.messages.push(json!({ "role": "assistant", "content": answer }));
        Ok(())
    }

    async fn follow(&self, request: GenerationRequest) -> anyhow::Result<String> {
        let stop_ids = request.limits.stop_tokens.clone();
        let mut streams = self.engine.submit(vec![request])?;
        let mut detokenizer = Detokenizer::new(self.text.tokenizer.clone());
        let mut answer = String::new();
        let mut show = |piece: &str| -> std::io::Result<()> {
            answer.push_str(piece);
            let mut out = std::io::stdout().lock();
            out.write_all(piece.as_bytes())?;
            out.flush()
        };
        for stream in &mut streams {
            while let Some(event) = stream.next().await {
                match event {
                    SeqEvent::Token(token, _) if !stop_ids.contains(&token.id) => show(&detokenizer.push(token.id))?,
                    SeqEvent::Failed(failure) => return Err(failure.into()),
                    _ => {}
                }
            }
        }
        show(&detokenizer.finish())?;
        show("\n")?;
        Ok(answer)
    }
}
