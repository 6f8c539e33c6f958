//! Prompts that become vectors.
use super::*;
use crate::kv::CacheSalt;
use crate::runner::Pooling;
use crate::testing::{FakeOptions, FakeRunner};

const DIMENSIONS: usize = 8;
const POOLINGS: [Pooling; 4] = [Pooling::Last, Pooling::Mean, Pooling::Cls, Pooling::Max];

fn embedder(config: SchedulerConfig) -> EngineHandle {
    let options = FakeOptions { dimensions: Some(DIMENSIONS), fail_on_token: Some(POISONED), ..FakeOptions::default() };
    let runner = FakeRunner::with_options(VOCAB, config.block_size, config.num_blocks, options);
    EngineHandle::spawn(Box::new(runner), config, WIDE).unwrap()
}

/// A step with this token fails.
const POISONED: u32 = 47;

/// Texts of all lengths, some with a common beginning, by every pooling.
fn requests(count: usize) -> Vec<GenerationRequest> {
    let mut dice = Dice(3);
    let one = |i: usize| {
        let mut prompt: Vec<u32> = if i.is_multiple_of(3) { (0..20).collect() } else { Vec::new() };
        prompt.extend((0..=dice.below(90)).map(|_| dice.below(POISONED as usize) as u32));
        GenerationRequest::embedding(prompt, POOLINGS[i % 4], CacheSalt((i % 2) as u64), (i % 3) as u64)
    };
    (0..count).map(one).collect()
}

/// The vector's bits, or how it failed.
async fn vector(mut stream: GenerationStream) -> Result<Vec<u32>, EngineFailure> {
    let mut vector = None;
    loop {
        match stream.next().await.expect("the last event is Finished or Failed") {
            SeqEvent::Started { .. } => {}
            SeqEvent::Embedding(values) => {
                assert_eq!(values.len(), DIMENSIONS);
                assert!(vector.replace(values.iter().map(|v| v.to_bits()).collect()).is_none());
            }
            SeqEvent::Finished { usage, reason } => {
                assert_eq!((usage.completion_tokens, reason), (0, FinishReason::Length));
                assert!(stream.next().await.is_none());
                return Ok(vector.expect("the vector comes before the end"));
            }
            SeqEvent::Failed(failure) => return Err(failure),
            other => panic!("{other:?}"),
        }
    }
}

async fn together(engine: &EngineHandle, requests: &[GenerationRequest]) -> Vec<Vec<u32>> {
    let streams: Vec<_> = requests.iter().map(|r| submit_one(engine, r.clone())).collect();
    let mut vectors = Vec::new();
    for stream in streams {
        vectors.push(vector(stream).await.unwrap());
    }
    vectors
}

#[tokio::test]
async fn the_same_bits_in_any_company() {
    let requests = requests(80);
    let mut alone = Vec::new();
    for request in &requests {
        let engine = embedder(SchedulerConfig { prefix_cache: false, batched_tokens_max: 4096, ..config() });
        alone.extend(together(&engine, std::slice::from_ref(request)).await);
    }
    for shape in [
        config(),
        SchedulerConfig { prefix_cache: false, ..config() },
        SchedulerConfig { batched_tokens_max: 7, prefill_chunk_max: 3, logit_rows_max: 2, running_max: 5, ..config() },
        // The longest has 110 tokens.
        SchedulerConfig { num_blocks: 28, ..config() },
        SchedulerConfig { num_blocks: 28, batched_tokens_max: 13, logit_rows_max: 5, ..config() },
    ] {
        let engine = embedder(shape);
        for heat in ["cold", "warm"] {
            assert!(together(&engine, &requests).await == alone, "cache {heat}, {shape:?}");
        }
        let stats = engine.stats();
        assert_eq!((stats.gauges.blocks_used, stats.failed, stats.finished), (0, 0, 160));
        assert_eq!((stats.generation_tokens, stats.queued_tokens), (0, 0));
        assert_eq!(stats.prompt_tokens, 2 * requests.iter().map(|r| r.prompt.len() as u64).sum::<u64>());
        assert_eq!(stats.scheduler.prefix_hit_tokens > 0, shape.prefix_cache);
    }
}

#[tokio::test]
async fn a_failed_step_fails_its_texts_and_who_leaves_leaves_nothing() {
    let engine = embedder(config());
    let embed = |prompt: &[u32]| GenerationRequest::embedding(prompt.to_vec(), Pooling::Mean, CacheSalt(0), 0);
    let failed = vector(submit_one(&engine, embed(&[1, POISONED]))).await;
    assert!(matches!(failed, Err(EngineFailure::Step { .. })), "{failed:?}");
    vector(submit_one(&engine, embed(&[1, 2]))).await.unwrap();
    for request in requests(50) {
        drop(submit_one(&engine, request));
    }
    engine.wait_idle().await;
    assert_eq!((engine.stats().gauges.blocks_used, engine.stats().queued_sequences), (0, 0));
}

#[tokio::test]
async fn each_engine_does_what_its_model_can() {
    let embed = GenerationRequest::embedding(vec![1; 128], Pooling::Last, CacheSalt(0), 0);
    assert_eq!(engine(config()).submit(vec![embed.clone()]).unwrap_err(), SubmitError::WrongTask { embeds: false });
    let embedder = embedder(config());
    assert_eq!(embedder.submit(vec![request(&[1], 1)]).unwrap_err(), SubmitError::WrongTask { embeds: true });
    // A text may fill the context, since nothing follows it.
    vector(submit_one(&embedder, embed.clone())).await.unwrap();
    let longer = GenerationRequest { prompt: [1; 129].into(), ..embed };
    assert_eq!(embedder.submit(vec![longer]).unwrap_err(), SubmitError::TooLong { needed: 129, context_max: 128 });
}
