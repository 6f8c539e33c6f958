//! Drives a runner by hand, as a scheduler would, and collects every row of logits.
use std::num::NonZeroUsize;

use candle_core::Device;
use wick::kv::BlockId;
use wick::model::spec::DecoderSpec;
use wick::ops::{ExecContext, KvDtype};
use wick::runner::testing::SeededWeights;
use wick::runner::{ModelRunner, Runner, RunnerError, RunnerOptions};
use wick::scheduler::{LogitRows, ScheduledSeq, SchedulerOutput, SeqId};
use wick::weights::{LoadError, WeightSource};
use wick_kernels::{Isa, Precision, QuantType};

const SEED: u64 = 1;
const BLOCK_SIZE: usize = 8;
/// Enough for 32 sequences of the tests; small enough that every block is reused.
const NUM_BLOCKS: usize = 160;

/// Logits of consecutive positions.
pub type Rows = Vec<Vec<f32>>;

/// A tiny model and how to run it. By default on one thread, the machine's best kernels and an f32 cache.
#[derive(Clone)]
pub struct Model {
    spec: DecoderSpec,
    stored_as: QuantType,
    reference: bool,
    options: RunnerOptions,
}

impl Model {
    pub fn new(spec: DecoderSpec, stored_as: QuantType) -> Self {
        let options = options();
        Self { spec, stored_as, reference: false, options }
    }

    pub fn activations(mut self, activations: Precision) -> Self {
        self.options.activations = activations;
        self
    }

    pub fn isa(mut self, isa: Isa) -> Self {
        self.options.isa = Some(isa);
        self
    }

    pub fn threads(mut self, threads: usize) -> Self {
        self.options.threads = NonZeroUsize::new(threads).unwrap();
        self
    }

    /// With a cache of this format, in blocks that it can have; `None` if it cannot hold the model's heads.
    pub fn holding(mut self, dtype: KvDtype) -> Option<Self> {
        self.options.kv_dtype = dtype;
        if dtype == KvDtype::I16 {
            self.options.block_size = 16;
        }
        let holds = self.spec.layers.iter().all(|layer| dtype.holds(layer.attn.head_dim, self.options.block_size));
        holds.then_some(self)
    }

    /// Through candle's generic operations instead of the kernels.
    pub fn reference(mut self) -> Self {
        self.reference = true;
        self
    }

    pub fn runner(&self) -> Driver {
        self.load(&SeededWeights::new(&self.spec, SEED, self.stored_as)).unwrap()
    }

    pub fn load(&self, weights: &dyn WeightSource) -> Result<Driver, LoadError> {
        let cx = if self.reference { ExecContext::reference(Device::Cpu) } else { self.options.context() };
        Ok(Driver::new(ModelRunner::new(cx, self.spec.clone(), weights, &self.options)?, &self.options))
    }
}

/// One thread, f32 cache, small blocks.
pub fn options() -> RunnerOptions {
    RunnerOptions {
        device: Device::Cpu,
        threads: NonZeroUsize::MIN,
        isa: None,
        activations: Precision::Exact,
        kv_dtype: KvDtype::F32,
        block_size: BLOCK_SIZE,
        num_blocks: NUM_BLOCKS,
    }
}

/// A runner and a pool of blocks that is handed out in a scattered order.
pub struct Driver {
    runner: ModelRunner,
    block_size: usize,
    free: Vec<u32>,
}

impl Driver {
    pub fn new(runner: ModelRunner, options: &RunnerOptions) -> Self {
        let total = options.num_blocks as u32;
        let stride =
            (total / 3..).find(|s| (2..=*s).all(|d| !s.is_multiple_of(d) || !total.is_multiple_of(d))).unwrap();
        Self { runner, block_size: options.block_size, free: (0..total).map(|i| i * stride % total).collect() }
    }

    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Takes blocks for `tokens` tokens.
    pub fn blocks_for(&mut self, tokens: usize) -> Vec<u32> {
        let left = self.free.len().checked_sub(tokens.div_ceil(self.block_size)).expect("the test's pool is too small");
        self.free.split_off(left)
    }

    /// Computes `tokens[start..end]` of each sequence in one step; every row of each.
    pub fn step(&mut self, seqs: &[(&[u32], usize, usize, &[u32])]) -> Vec<Rows> {
        let scheduled =
            seqs.iter().map(|&(tokens, start, end, blocks)| seq(tokens, start, end, blocks, LogitRows::All));
        let mut rows = self.execute(scheduled.collect()).into_iter();
        seqs.iter().map(|&(_, start, end, _)| rows.by_ref().take(end - start).collect()).collect()
    }

    /// Computes `tokens[start..end]` of one sequence.
    pub fn compute(&mut self, tokens: &[u32], start: usize, end: usize, blocks: &[u32]) -> Rows {
        self.step(&[(tokens, start, end, blocks)]).remove(0)
    }

    /// All rows of a new sequence, computed in chunks of the given lengths.
    pub fn rows_of(&mut self, tokens: &[u32], chunks: &[usize]) -> Rows {
        assert_eq!(chunks.iter().sum::<usize>(), tokens.len());
        let blocks = self.blocks_for(tokens.len());
        let mut start = 0;
        let mut rows = Vec::new();
        for chunk in chunks {
            rows.extend(self.compute(tokens, start, start + chunk, &blocks));
            start += chunk;
        }
        self.free.extend(blocks);
        rows
    }

    /// All rows of several sequences that run together, sequence `i` in chunks of `chunk(i)`, until each is done.
    pub fn rows_together(&mut self, prompts: &[Vec<u32>], chunk: impl Fn(usize) -> usize) -> Vec<Rows> {
        let tables: Vec<_> = prompts.iter().map(|p| self.blocks_for(p.len())).collect();
        let mut rows = vec![Vec::new(); prompts.len()];
        loop {
            let running: Vec<usize> = (0..prompts.len()).filter(|&i| rows[i].len() < prompts[i].len()).collect();
            if running.is_empty() {
                return rows;
            }
            let chunks = running.iter().map(|&i| {
                let start = rows[i].len();
                let end = (start + chunk(i)).min(prompts[i].len());
                (prompts[i].as_slice(), start, end, tables[i].as_slice())
            });
            let step: Vec<_> = chunks.collect();
            for (i, computed) in running.iter().zip(self.step(&step)) {
                rows[*i].extend(computed);
            }
        }
    }

    /// The last row of a new sequence, asked for alone.
    pub fn last_row_of(&mut self, tokens: &[u32]) -> Vec<f32> {
        let blocks = self.blocks_for(tokens.len());
        let mut rows = self.execute(vec![seq(tokens, 0, tokens.len(), &blocks, LogitRows::Last)]);
        assert_eq!(rows.len(), 1);
        rows.remove(0)
    }

    pub fn rows_without_logits(&mut self, tokens: &[u32]) -> Rows {
        let blocks = self.blocks_for(tokens.len());
        self.execute(vec![seq(tokens, 0, tokens.len(), &blocks, LogitRows::None)])
    }

    /// `count` tokens, each the likeliest after the ones before.
    pub fn greedy(&mut self, tokens: &[u32], count: usize) -> Vec<u32> {
        let blocks = self.blocks_for(tokens.len() + count);
        let mut all = tokens.to_vec();
        let mut start = 0;
        for _ in 0..count {
            let row = self.execute(vec![seq(&all, start, all.len(), &blocks, LogitRows::Last)]).remove(0);
            start = all.len();
            let best = (0..row.len()).rev().max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
            all.push(best as u32);
        }
        self.free.extend(blocks);
        all.split_off(tokens.len())
    }

    fn execute(&mut self, seqs: Vec<ScheduledSeq>) -> Rows {
        let logits = self.runner.execute(&SchedulerOutput { seqs, preempted: vec![] }).unwrap();
        assert_eq!(logits.width, self.runner.vocab());
        logits.data.chunks_exact(logits.width).map(<[f32]>::to_vec).collect()
    }

    pub fn assert_bad_steps_are_refused(&mut self) {
        let vocab = self.runner.vocab() as u32;
        let bad = [
            seq(&[], 0, 0, &[0], LogitRows::Last),
            seq(&[vocab], 0, 1, &[0], LogitRows::Last),
            seq(&[1; 9], 0, 9, &[0], LogitRows::Last),
            seq(&[1], 0, 1, &[NUM_BLOCKS as u32], LogitRows::Last),
        ];
        for seq in bad {
            let step = SchedulerOutput { seqs: vec![seq], preempted: vec![] };
            assert!(matches!(self.runner.execute(&step), Err(RunnerError::BadStep(_))), "{step:?}");
        }
        assert!(self.runner.execute(&SchedulerOutput::default()).unwrap().data.is_empty());
    }
}

fn seq(tokens: &[u32], start: usize, end: usize, blocks: &[u32], logits: LogitRows) -> ScheduledSeq {
    ScheduledSeq {
        id: SeqId(1),
        start,
        tokens: tokens[start..end].to_vec(),
        drafts: 0,
        blocks: blocks.iter().map(|&b| BlockId(b)).collect(),
        logits,
        sample: false,
        cached_tokens: None,
    }
}

/// `len` tokens that depend on `which`.
pub fn prompt(which: usize, len: usize) -> Vec<u32> {
    (0..len).map(|i| ((i * i * 31 + i * 17 + which * 101 + 3) % 250) as u32).collect()
}

/// Panics at the first row and value whose bits differ.
pub fn assert_same_bits(a: &[Vec<f32>], b: &[Vec<f32>], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}: number of rows");
    for (row, (x, y)) in a.iter().zip(b).enumerate() {
        assert_eq!(x.len(), y.len(), "{what}: width of row {row}");
        for (i, (u, v)) in x.iter().zip(y).enumerate() {
            assert!(u.is_finite(), "{what}: row {row}, value {i} is {u}");
            assert_eq!(u.to_bits(), v.to_bits(), "{what}: row {row}, value {i}: {u} and {v}");
        }
    }
}

/// Largest |a - b| / (1 + |b|) over all values; both must be finite.
pub fn worst_difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!(a.len(), b.len());
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    pairs.map(|(x, y)| if x.is_finite() { (x - y).abs() / (1.0 + y.abs()) } else { f32::INFINITY }).fold(0.0, f32::max)
}
