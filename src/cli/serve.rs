//! `wick serve`: loads the models, then answers over HTTP until told to stop.
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use futures_util::FutureExt;
use tokio::net::TcpSocket;
use tokio::signal::unix::{SignalKind, signal};

use super::loading::{Planned, PlannedEncoder, PlannedModel, plan_models};
use super::say;
use crate::api::auth::{KeyStore, Scope, generate_key};
use crate::api::{AppState, Backend, DecoderBackend, ServedEncoder, ServedModel, ServerOptions};
use crate::config::{KeyArgs, ServeArgs};
use crate::encoder::EmbeddingSpec;
use crate::engine::EngineHandle;
use crate::hub::catalogue::is_alias;
use crate::server;
use crate::telemetry::StepMetrics;

/// Connections the system may hold before they are accepted.
const BACKLOG: u32 = 1024;

pub(super) async fn run(args: ServeArgs) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let keys = args.keys.as_deref().map(KeyStore::load).transpose()?;
    check(&args, keys.is_some())?;
    if args.print_config {
        further_names(&args, &plan_all(&args).await?)?;
        say(format_args!("{args:#?}"))?;
        return Ok(ExitCode::SUCCESS);
    }
    // Taken before loading, so that a port in use is known at once; connections are refused until the models are ready.
    let address = SocketAddr::new(args.host, args.port);
    let socket = bind(address)?;
    let planned = plan_all(&args).await?;
    let names: Vec<String> = planned.iter().map(|p| p.alias().to_owned()).collect();
    let also = further_names(&args, &planned)?;
    let (mut models, mut encoders) = (Vec::new(), Vec::new());
    for p in planned {
        match p {
            PlannedModel::Decoder(planned) => match planned.embedding() {
                None => models.push(start(*planned).await?),
                Some(embedding) => encoders.push(start_embedder(*planned, embedding).await?),
            },
            PlannedModel::Encoder(planned) => encoders.push(start_encoder(*planned).await?),
        }
    }
    let handles =
        (models.iter().map(|m| m.engine.clone()).collect(), encoders.iter().map(|e| e.backend.clone()).collect());
    let options = ServerOptions {
        auth: keys,
        body_bytes_max: usize::try_from(args.body_limit).unwrap_or(usize::MAX),
        keep_alive: Duration::from_secs(args.keep_alive),
        also,
        responses_max: args.responses_store,
        responses_bytes_max: usize::try_from(args.responses_memory).unwrap_or(usize::MAX),
        ..ServerOptions::default()
    };
    let state = AppState::with_encoders(models, encoders, options);
    // Before the server says that it serves: who reads that may send a signal at once.
    let (failed, shutdown) = stop_conditions(handles)?;
    let listener = socket.listen(BACKLOG).with_context(|| format!("cannot listen on {address}"))?;
    say(format_args!("wick serves {} at http://{}/v1", names.join(", "), listener.local_addr()?))?;
    tracing::info!(milliseconds = started.elapsed().as_millis() as u64, "ready");

    let report = server::run(listener, state, shutdown, Duration::from_secs(args.drain)).await?;
    tracing::info!(
        running = report.running,
        cut_off = report.cut_off,
        milliseconds = report.elapsed.as_millis() as u64,
        "stopped"
    );
    if failed.load(std::sync::atomic::Ordering::Acquire) {
        bail!("the engine broke an invariant and stopped (see the log): restart the server, and please report it");
    }
    Ok(ExitCode::SUCCESS)
}

fn bind(address: SocketAddr) -> anyhow::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket
        .bind(address)
        .with_context(|| format!("cannot listen on {address}: choose another --port, or stop what uses it"))?;
    Ok(socket)
}

/// What can be refused before anything is fetched or loaded.
fn check(args: &ServeArgs, keys: bool) -> anyhow::Result<()> {
    ensure!(
        args.host.is_loopback() || keys || args.allow_public_without_keys,
        "{} is reachable from other machines, and without --keys everyone there could use the server: \
         give a keys file (see `wick key`), or --allow-public-without-keys",
        args.host
    );
    ensure!(
        args.models.len() == 1 || args.alias.is_none(),
        "--alias names one model, but {} are to be served",
        args.models.len()
    );
    ensure!(
        args.models.len() == 1 || args.engine.chat_template.is_none(),
        "--chat-template belongs to one model, but {} are to be served",
        args.models.len()
    );
    Ok(())
}

async fn plan_all(args: &ServeArgs) -> anyhow::Result<Vec<PlannedModel>> {
    let mut planned = plan_models(&args.models, &args.engine, &args.fetch).await?;
    if let (Some(alias), [only]) = (&args.alias, planned.as_mut_slice()) {
        only.rename(alias);
    }
    for (i, p) in planned.iter().enumerate() {
        let taken = planned[..i].iter().any(|q| q.alias() == p.alias());
        ensure!(!taken, "two models would both be named `{}`", p.alias());
        say(format_args!("{}\n{}", p.alias(), p.plan()))?;
    }
    Ok(planned)
}

/// The further names of models, from the catalogue and from `--also`, each with the alias that its model is served by.
fn further_names(args: &ServeArgs, planned: &[PlannedModel]) -> anyhow::Result<Vec<(String, String)>> {
    let of_catalogue = |p: &PlannedModel| {
        let alias = p.alias().to_owned();
        p.also().iter().map(move |name| (name.clone(), alias.clone())).collect::<Vec<_>>()
    };
    let mut names: Vec<(String, String)> = planned.iter().flat_map(of_catalogue).collect();
    for also in &args.also {
        let (name, of) = also.split_once('=').unwrap_or((also.as_str(), planned[0].alias()));
        ensure!(is_alias(name), "--also {also}: a name has no spaces or control characters");
        let served = planned.iter().any(|p| p.alias() == of);
        ensure!(served, "--also {also}: no model is served as `{of}`; give NAME=MODEL with the name of one that is");
        names.push((name.to_owned(), of.to_owned()));
    }
    for (i, (name, of)) in names.iter().enumerate() {
        let taken = planned.iter().any(|p| p.alias() == name) || names[..i].iter().any(|(other, _)| other == name);
        ensure!(!taken, "`{name}` would be a further name of `{of}`, but it is a name already: leave one of them out");
    }
    Ok(names)
}

async fn start(planned: Planned) -> anyhow::Result<ServedModel> {
    let alias = planned.alias.clone();
    let context_max = planned.scheduler.context_max;
    let steps = Arc::new(StepMetrics::default());
    let (engine, text) = planned.start(Some(steps.clone())).await?;
    let owned_by = "wick".to_owned();
    Ok(ServedModel { alias, engine, text, created: now(), context_max, owned_by, steps: Some(steps) })
}

async fn start_encoder(planned: PlannedEncoder) -> anyhow::Result<ServedEncoder> {
    let alias = planned.alias.clone();
    let (encoder, text) = planned.start().await?;
    Ok(ServedEncoder { alias, backend: encoder.into(), text, created: now(), owned_by: "wick".to_owned() })
}

async fn start_embedder(planned: Planned, embedding: EmbeddingSpec) -> anyhow::Result<ServedEncoder> {
    let alias = planned.alias.clone();
    let steps = Arc::new(StepMetrics::default());
    let (engine, text) = planned.start(Some(steps.clone())).await?;
    let backend = Backend::Decoder(DecoderBackend { engine, embedding, steps: Some(steps) });
    Ok(ServedEncoder { alias, backend, text, created: now(), owned_by: "wick".to_owned() })
}

/// Unix time in seconds.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// A future that resolves on SIGTERM, SIGINT or a broken engine, and a flag that says whether it was the last. A second
/// signal ends the process at once.
fn stop_conditions(
    (engines, encoders): (Vec<EngineHandle>, Vec<Backend>),
) -> anyhow::Result<(Arc<std::sync::atomic::AtomicBool>, impl Future<Output = ()>)> {
    let failed = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let flag = failed.clone();
    let future = async move {
        let engines = engines.iter().map(|e| e.failed().boxed());
        let broken = futures_util::future::select_all(engines.chain(encoders.iter().map(|e| e.failed().boxed())));
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = broken => flag.store(true, std::sync::atomic::Ordering::Release),
        }
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::warn!("second signal: stopping at once");
            std::process::exit(130);
        });
    };
    Ok((failed, future))
}

/// `wick key NAME`: prints the key once, and what belongs into the keys file.
pub(super) fn new_key(args: &KeyArgs) -> anyhow::Result<ExitCode> {
    let key = generate_key(&args.name, &[Scope::Infer])
        .with_context(|| format!("`{}` cannot be a key's name: use letters, digits, `-`, `_` and `.`", args.name))?;
    eprintln!("The key, shown only now (clients send it as `Authorization: Bearer KEY`):");
    say(&key.plaintext)?;
    eprintln!("Append to the keys file that `wick serve --keys FILE` reads:\n");
    match &args.append {
        Some(path) => append(path, &key.toml)?,
        None => eprint!("{}", key.toml),
    }
    Ok(ExitCode::SUCCESS)
}

fn append(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    let file = options.create(true).append(true).mode(0o600).open(path);
    file.and_then(|mut f| f.write_all(text.as_bytes())).with_context(|| format!("writing {}", path.display()))?;
    eprintln!("(appended to {})", path.display());
    Ok(())
}
