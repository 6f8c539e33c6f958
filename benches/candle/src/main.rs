//! Candle's own quantized models: seconds of one prefill and of one greedy decode, as a line of JSON.
//!
//! `candle-bench FILE.gguf PROMPT_TOKENS NEW_TOKENS`; the prompt is random, as in `wick bench`. `../candle.py` runs both.
use std::fs::File;
use std::time::Instant;

use anyhow::{Context, bail};
use candle_core::quantized::gguf_file;
use candle_core::{D, Device, Result, Tensor};
use candle_transformers::models::{quantized_gemma3, quantized_llama, quantized_qwen2};

enum Model {
    Llama(quantized_llama::ModelWeights),
    Qwen2(quantized_qwen2::ModelWeights),
    Gemma3(quantized_gemma3::ModelWeights),
}

impl Model {
    fn forward(&mut self, x: &Tensor, position: usize) -> Result<Tensor> {
        match self {
            Self::Llama(m) => m.forward(x, position),
            Self::Qwen2(m) => m.forward(x, position),
            Self::Gemma3(m) => m.forward(x, position),
        }
    }
}

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, path, prompt, new] = args.as_slice() else {
        bail!("usage: candle-bench FILE.gguf PROMPT_TOKENS NEW_TOKENS")
    };
    let (prompt, new): (usize, usize) = (prompt.parse()?, new.parse()?);
    let mut file = File::open(path).with_context(|| format!("opening {path}"))?;
    let content = gguf_file::Content::read(&mut file)?;
    let architecture = content.metadata.get("general.architecture").context("no architecture")?.to_string()?.clone();
    let device = Device::Cpu;
    let mut model = match architecture.as_str() {
        "llama" => Model::Llama(quantized_llama::ModelWeights::from_gguf(content, &mut file, &device)?),
        "qwen2" => Model::Qwen2(quantized_qwen2::ModelWeights::from_gguf(content, &mut file, &device)?),
        "gemma3" => Model::Gemma3(quantized_gemma3::ModelWeights::from_gguf(content, &mut file, &device)?),
        other => bail!("no Candle model for the architecture `{other}` here"),
    };
    // Candle packs weights on first use: one token first, so that neither figure pays for it.
    model.forward(&Tensor::new(&[[1u32]], &device)?, 0)?;
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let ids: Vec<u32> = (0..prompt)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % 30_000) as u32
        })
        .collect();
    let argmax = |logits: Tensor| logits.flatten_all()?.argmax(D::Minus1)?.to_scalar::<u32>();
    let started = Instant::now();
    let mut token = argmax(model.forward(&Tensor::new(ids, &device)?.unsqueeze(0)?, 0)?)?;
    let prefill = started.elapsed().as_secs_f64();
    let started = Instant::now();
    for i in 0..new - 1 {
        token = argmax(model.forward(&Tensor::new(&[[token]], &device)?, prompt + i)?)?;
    }
    let decode = started.elapsed().as_secs_f64();
    println!(
        "{{\"prefill_tokens_per_second\": {:.2}, \"decode_tokens_per_second\": {:.2}}}",
        prompt as f64 / prefill,
        (new - 1) as f64 / decode
    );
    Ok(())
}
