//! Command line and environment, parsed once into immutable values.
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use crate::telemetry::LogFormat;

/// Serves open-weight language models over an OpenAI-compatible API.
#[derive(Debug, Parser)]
#[command(name = "wick", version, about, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// What is logged, to stderr: error, warn, info, debug, trace, or a tracing filter
    #[arg(long, global = true, env = "WICK_LOG", default_value = "info")]
    pub log: String,
    /// How it is logged
    #[arg(long, global = true, env = "WICK_LOG_FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve models over HTTP
    Serve(ServeArgs),
    /// Fetch models into the cache
    Pull(PullArgs),
    /// List the models of the catalogue and which are in the cache
    Models(FetchArgs),
    /// Talk to a model in the terminal
    Chat(ChatArgs),
    /// Show what a model is: format, tensors, and the decoder it becomes
    Inspect(InspectArgs),
    /// Measure the engine alone, or load any OpenAI-compatible server (--url)
    Bench(Box<BenchArgs>),
    /// Make an API key: prints the key once, and the lines for the keys file
    Key(KeyArgs),
}

/// Where model files come from.
#[derive(Debug, Clone, Args)]
pub struct FetchArgs {
    /// Make no connection: use only what is in the cache
    #[arg(long, env = "WICK_OFFLINE", value_parser = clap::builder::FalseyValueParser::new())]
    pub offline: bool,
    /// Where fetched models live [default: the platform's cache folder + wick]
    #[arg(long, env = "WICK_CACHE", value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// A file like models.toml whose entries are added to the catalogue
    #[arg(long, env = "WICK_CATALOGUE", value_name = "FILE")]
    pub catalogue: Option<PathBuf>,
}

impl FetchArgs {
    #[must_use]
    pub fn options(&self) -> crate::hub::FetchOptions {
        crate::hub::FetchOptions {
            offline: self.offline,
            cache_dir: self.cache_dir.clone(),
            catalogue: self.catalogue.clone(),
        }
    }
}

#[derive(Debug, Clone, Args)]
pub struct PullArgs {
    /// Names of the catalogue, or hf:ORG/REPO:FILE
    #[arg(required = true, value_name = "MODEL")]
    pub models: Vec<String>,
    /// Print only the paths of the files, one a line, to stdout
    #[arg(long)]
    pub print_path: bool,
    #[command(flatten)]
    pub fetch: FetchArgs,
}

/// How the engine runs a model.
#[derive(Debug, Clone, Args)]
pub struct EngineArgs {
    /// auto, cpu, cuda, cuda:N or metal
    #[arg(long, env = "WICK_DEVICE", default_value = "auto")]
    pub device: String,
    /// Threads that compute on the CPU [default: the machine's cores]
    #[arg(long, env = "WICK_THREADS", value_name = "N")]
    pub threads: Option<NonZeroUsize>,
    /// CPU instruction set [default: the best this machine has]
    #[arg(long, env = "WICK_ISA", value_name = "NAME")]
    pub isa: Option<String>,
    /// Memory for the KV cache, e.g. 2GiB [default: a share of what is available]
    #[arg(long, env = "WICK_KV_MEMORY", value_name = "SIZE", value_parser = parse_bytes)]
    pub kv_memory: Option<u64>,
    /// Number format of the KV cache
    #[arg(long, env = "WICK_KV_DTYPE", value_enum, default_value = "auto")]
    pub kv_dtype: KvDtypeArg,
    /// How the CPU rounds activations where it multiplies packed weights
    #[arg(long, env = "WICK_ACTIVATIONS", value_enum, default_value = "int8")]
    pub activations: ActivationsArg,
    /// Tokens a KV block holds
    #[arg(long, env = "WICK_BLOCK_SIZE", value_name = "TOKENS", default_value = "16", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub block_size: u16,
    /// Tokens of one request, prompt and output [default: the model's context]
    #[arg(long, env = "WICK_CONTEXT", value_name = "TOKENS")]
    pub context: Option<NonZeroUsize>,
    /// Tokens computed in one step, over all requests
    #[arg(long, env = "WICK_BATCHED_TOKENS", value_name = "TOKENS", default_value = "512")]
    pub batched_tokens: NonZeroUsize,
    /// Most prompt tokens computed in one step while other requests are generating; fewer where they would make it last
    /// more than twice as long
    #[arg(long, env = "WICK_PREFILL_CHUNK", value_name = "TOKENS", default_value = "128")]
    pub prefill_chunk: NonZeroUsize,
    /// Requests that generate at once; more wait
    #[arg(long, env = "WICK_MAX_RUNNING", value_name = "N", default_value = "64")]
    pub max_running: NonZeroUsize,
    /// Requests admitted and not finished; more are refused with 503
    #[arg(long, env = "WICK_QUEUE_REQUESTS", value_name = "N", default_value = "1024")]
    pub queue_requests: NonZeroUsize,
    /// Prompt tokens admitted and not computed; more are refused with 503
    #[arg(long, env = "WICK_QUEUE_TOKENS", value_name = "TOKENS", default_value = "2000000")]
    pub queue_tokens: NonZeroUsize,
    /// Do not share the KV of equal prompt beginnings
    #[arg(long, env = "WICK_NO_PREFIX_CACHE", value_parser = clap::builder::FalseyValueParser::new())]
    pub no_prefix_cache: bool,
    /// Guess next tokens from what the request has seen before, and compute several in one step where that is faster
    #[arg(long, env = "WICK_SPECULATION", value_enum, default_value = "ngram")]
    pub speculation: SpeculationArg,
    /// A chat template (Jinja) to use instead of the model's
    #[arg(long, env = "WICK_CHAT_TEMPLATE", value_name = "FILE")]
    pub chat_template: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ActivationsArg {
    /// To 8 bits; to 16 where some of 32 values stand far out of their row, and for the output matrix
    Int8,
    /// To 16 bits: about half the speed of prefill, and the results of a float32 engine but for the last digits
    Exact,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SpeculationArg {
    /// What followed the last tokens before is guessed to follow again; the output is the same
    Ngram,
    /// One token a step
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KvDtypeArg {
    /// int16 where the CPU multiplies it (AVX-512 VNNI), f16 elsewhere
    Auto,
    F16,
    /// For GPUs only
    Bf16,
    F32,
    /// 16-bit integers with a scale for each head: as exact as f16, fastest where the CPU multiplies them; CPU only
    Int16,
    /// A byte and a scale for each 32 values: 56% of f16's memory, less exact; with AVX-512 VNNI long contexts decode faster, elsewhere slower; CPU only
    Int8,
}

#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// Names of the catalogue, hf:ORG/REPO:FILE, or paths; the first is also what an unnamed model means
    #[arg(value_name = "MODEL", default_value = "smollm2-135m")]
    pub models: Vec<String>,
    /// Address to listen on
    #[arg(long, env = "WICK_HOST", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub host: IpAddr,
    /// Port to listen on; 0 = any free one
    #[arg(long, env = "WICK_PORT", default_value_t = 8080)]
    pub port: u16,
    /// The name clients use, instead of the model's own (one model only)
    #[arg(long, env = "WICK_ALIAS", value_name = "NAME")]
    pub alias: Option<String>,
    /// A further name for a model (for the first, without MODEL), which answers by it, e.g. @cf/meta/llama-3.1-8b-instruct; may
    /// be repeated
    #[arg(long, env = "WICK_ALSO", value_name = "NAME[=MODEL]", value_delimiter = ',')]
    pub also: Vec<String>,
    /// Keys file: with it, every route but /livez, /readyz and /openapi.json wants a key (see `wick key`)
    #[arg(long, env = "WICK_KEYS", value_name = "FILE")]
    pub keys: Option<PathBuf>,
    /// Listen on a non-loopback address without keys
    #[arg(long, env = "WICK_ALLOW_PUBLIC", value_parser = clap::builder::FalseyValueParser::new())]
    pub allow_public_without_keys: bool,
    /// Largest request body
    #[arg(long, env = "WICK_BODY_LIMIT", value_name = "SIZE", default_value = "8MiB", value_parser = parse_bytes)]
    pub body_limit: u64,
    /// Responses of /v1/responses that are kept for `previous_response_id`, item references and retrieval, in this process'
    /// memory; 0 = none
    #[arg(long, env = "WICK_RESPONSES_STORE", value_name = "N", default_value = "0")]
    pub responses_store: usize,
    /// Memory for kept responses; the least recently used go first
    #[arg(long, env = "WICK_RESPONSES_MEMORY", value_name = "SIZE", default_value = "64MiB", value_parser = parse_bytes)]
    pub responses_memory: u64,
    /// Seconds between comments that keep an idle stream open
    #[arg(long, env = "WICK_KEEP_ALIVE", value_name = "SECONDS", default_value = "10", value_parser = clap::value_parser!(u64).range(1..))]
    pub keep_alive: u64,
    /// Seconds that running requests get to finish after SIGTERM
    #[arg(long, env = "WICK_DRAIN", value_name = "SECONDS", default_value = "30")]
    pub drain: u64,
    /// Print the configuration and the memory plan, and stop
    #[arg(long)]
    pub print_config: bool,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub fetch: FetchArgs,
}

#[derive(Debug, Clone, Args)]
pub struct ChatArgs {
    #[arg(value_name = "MODEL", default_value = "smollm2-135m")]
    pub model: String,
    /// Ask this one question, print the answer, and stop
    #[arg(long, short)]
    pub prompt: Option<String>,
    /// System message
    #[arg(long)]
    pub system: Option<String>,
    /// 0 = always the likeliest token
    #[arg(long, default_value = "0.7")]
    pub temperature: f32,
    /// Tokens an answer may have [default: what the context leaves]
    #[arg(long, value_name = "TOKENS")]
    pub max_tokens: Option<NonZeroUsize>,
    /// Seed of the random draw
    #[arg(long)]
    pub seed: Option<u64>,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub fetch: FetchArgs,
}

#[derive(Debug, Clone, Args)]
pub struct InspectArgs {
    #[arg(value_name = "MODEL")]
    pub model: String,
    /// As JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub fetch: FetchArgs,
}

#[derive(Debug, Clone, Args)]
pub struct KeyArgs {
    /// The key's name: its tenant in metrics and the prefix cache
    pub name: String,
    /// Append the lines to this keys file (made if missing, readable by its owner only)
    #[arg(long, value_name = "FILE")]
    pub append: Option<PathBuf>,
}

/// `wick bench`: without --url, the engine alone; with it, HTTP load.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    #[arg(value_name = "MODEL", default_value = "smollm2-135m")]
    pub model: String,
    /// Batch sizes of the engine benchmark
    #[arg(long, value_delimiter = ',', default_value = "1,4,8,16,32")]
    pub batch: Vec<usize>,
    /// Prompt tokens of the engine benchmark's prefill
    #[arg(long, value_name = "TOKENS", default_value = "512")]
    pub prefill: usize,
    /// Tokens each sequence decodes in the engine benchmark
    #[arg(long, value_name = "TOKENS", default_value = "64")]
    pub decode: usize,
    /// Repetitions; medians are reported
    #[arg(long, default_value = "3")]
    pub repeat: NonZeroUsize,
    /// Write the results as JSON to this file (`-`: stdout)
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    #[command(flatten)]
    pub load: LoadArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub fetch: FetchArgs,
}

/// HTTP load on a server.
#[derive(Debug, Clone, Args)]
pub struct LoadArgs {
    /// Base URL of an OpenAI-compatible server, e.g. http://127.0.0.1:8080/v1
    #[arg(long)]
    pub url: Option<String>,
    /// Bearer token for --url
    #[arg(long, env = "WICK_BENCH_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// What the clients do
    #[arg(long, value_enum, default_value = "random")]
    pub workload: Workload,
    /// Clients at once (closed loop)
    #[arg(long, default_value = "8")]
    pub clients: NonZeroUsize,
    /// Requests a second, Poisson arrivals (open loop; instead of --clients)
    #[arg(long, value_name = "PER_SECOND")]
    pub rate: Option<f64>,
    /// Requests in all (agents: conversations)
    #[arg(long, default_value = "32")]
    pub requests: NonZeroUsize,
    /// Prompt tokens of a request, about
    #[arg(long, value_name = "TOKENS", default_value = "256")]
    pub input: usize,
    /// Tokens asked for
    #[arg(long, value_name = "TOKENS", default_value = "128")]
    pub output: usize,
    /// Tokens that all prompts begin with
    #[arg(long, value_name = "TOKENS", default_value = "0")]
    pub shared_prefix: usize,
    /// Turns of an agent's conversation
    #[arg(long, default_value = "6")]
    pub turns: NonZeroUsize,
    /// Context the agent workload is scaled to [default: what the server's /models says, else the catalogue]
    #[arg(long, value_name = "TOKENS")]
    pub scale_context: Option<NonZeroUsize>,
    /// Where the random workload's prompts are sent (agents always chat)
    #[arg(long, value_enum, default_value = "completions")]
    pub endpoint: BenchEndpoint,
    /// Do not ask for `ignore_eos`, which strict servers refuse: answers may be shorter than --output
    #[arg(long)]
    pub no_ignore_eos: bool,
    /// Seed of prompts and arrivals
    #[arg(long, default_value = "1")]
    pub seed: u64,
    /// Seconds a request may take
    #[arg(long, value_name = "SECONDS", default_value = "600")]
    pub timeout: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BenchEndpoint {
    Completions,
    Chat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Workload {
    /// Independent prompts of --input tokens, --output tokens each
    Random,
    /// Conversations that grow turn by turn: about 142 input tokens for each output token, 85% seen before
    Agent,
}

/// `2GiB`, `512M`, `1000000`: a number of bytes; K/M/G are powers of 1024.
///
/// # Errors
/// Not a number with such a unit, or too large.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => return Err(format!("`{unit}` is no unit of memory: use KiB, MiB or GiB")),
    };
    let number: f64 = number.parse().map_err(|_| format!("`{text}` is not a size such as 2GiB"))?;
    let bytes = number * factor as f64;
    if bytes < 1.0 || bytes > (1u64 << 50) as f64 {
        return Err(format!("`{text}` is out of range: 1 byte to 1024 TiB"));
    }
    Ok(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_bytes("2GiB"), Ok(2 << 30));
        assert_eq!(parse_bytes("1.5M"), Ok(3 << 19));
        assert_eq!(parse_bytes("42"), Ok(42));
        for bad in ["", "x", "-1", "1X", "1e3", "0", "99999999999T"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn defaults_serve_the_small_model_on_loopback() {
        let cli = Cli::try_parse_from(["wick", "serve"]).unwrap();
        let Command::Serve(s) = cli.command else { panic!("serve") };
        assert_eq!((s.models, s.port), (vec!["smollm2-135m".to_owned()], 8080));
        assert!(s.host.is_loopback());
    }

    #[test]
    fn zero_threads_are_refused() {
        assert!(Cli::try_parse_from(["wick", "serve", "--threads", "0"]).is_err());
    }
}
