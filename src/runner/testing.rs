//! Tiny seeded models, made in code: one per thing that a [`DecoderSpec`] can say. For tests and benches.
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use wick_kernels::QuantType;

use crate::model::spec::{
    Act, AttnBias, AttnSpec, DecoderSpec, FfnSpec, LayerSpec, Norm, NormPlacement, NormWeight, RopeSpec,
};
use crate::weights::{LoadError, MappedBytes, MappedMatrix, Matrix, WeightForm, WeightMemory, WeightSource};

const PLAIN: Norm = Norm { eps: 1e-5, weight: NormWeight::Plain };
const ONE_PLUS: Norm = Norm { eps: 1e-6, weight: NormWeight::OnePlus };

/// Two layers of grouped-query attention: hidden 64, 4 heads of 16 over 2 KV heads, feed-forward 96, 250 tokens.
#[must_use]
pub fn base_spec() -> DecoderSpec {
    let layer = LayerSpec {
        attn: AttnSpec {
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            scale: 0.25,
            bias: AttnBias::None,
            qk_norm: None,
            rope: rope(16, 10_000.0),
            window: None,
            softcap: None,
        },
        ffn: FfnSpec { inner: 96, act: Act::Silu, bias: false },
        norms: NormPlacement::Pre,
        norm: PLAIN,
    };
    DecoderSpec {
        hidden: 64,
        vocab: 250,
        max_context: 256,
        embed_scale: 1.0,
        tie_embeddings: false,
        final_norm: PLAIN,
        final_softcap: None,
        embedding: None,
        layers: vec![layer.clone(), layer],
    }
}

/// Every variant by name; each differs from [`base_spec`] in what its name says.
#[must_use]
pub fn variants() -> Vec<(&'static str, DecoderSpec)> {
    let layers = |change: &dyn Fn(usize, &mut LayerSpec)| {
        let mut spec = base_spec();
        spec.layers.iter_mut().enumerate().for_each(|(i, layer)| change(i, layer));
        spec
    };
    vec![
        ("grouped-query", base_spec()),
        ("tied", DecoderSpec { tie_embeddings: true, ..base_spec() }),
        ("window", layers(&|_, l| l.attn.window = Some(9))),
        ("attention-softcap", layers(&|_, l| l.attn.softcap = Some(2.0))),
        ("final-softcap", DecoderSpec { final_softcap: Some(3.0), ..base_spec() }),
        ("sandwich", layers(&|_, l| l.norms = NormPlacement::Sandwich)),
        ("qk-norm", layers(&|_, l| l.attn.qk_norm = Some(PLAIN))),
        ("qkv-bias", layers(&|_, l| l.attn.bias = AttnBias::Qkv)),
        ("every-bias", layers(&|_, l| (l.attn.bias, l.ffn.bias) = (AttnBias::Qkvo, true))),
        ("two-rope-bases", layers(&|i, l| l.attn.rope = rope(16, if i == 0 { 10_000.0 } else { 1_000_000.0 }))),
        ("partial-rope", layers(&|_, l| l.attn.rope = RopeSpec { mscale: 1.1, ..rope(8, 10_000.0) })),
        ("gemma-like", gemma_like()),
    ]
}

fn gemma_like() -> DecoderSpec {
    let mut spec = base_spec();
    for (i, layer) in spec.layers.iter_mut().enumerate() {
        layer.norms = NormPlacement::Sandwich;
        layer.norm = ONE_PLUS;
        layer.ffn.act = Act::GeluTanh;
        layer.attn.kv_heads = 1;
        layer.attn.qk_norm = Some(ONE_PLUS);
        if i == 0 {
            layer.attn.window = Some(7);
        } else {
            layer.attn.rope = rope(16, 1_000_000.0);
        }
    }
    DecoderSpec { embed_scale: 8.0, tie_embeddings: true, final_norm: ONE_PLUS, ..spec }
}

fn rope(rotary_dim: usize, base: f64) -> RopeSpec {
    let inv_freq = (0..rotary_dim / 2).map(|i| base.powf(-(2.0 * i as f64) / rotary_dim as f64) as f32);
    RopeSpec { rotary_dim, inv_freq: inv_freq.collect(), mscale: 1.0 }
}

/// Weights in memory; the same for equal `spec` and `seed`, on every machine.
pub struct SeededWeights {
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    matrix_type: QuantType,
    taken: RefCell<BTreeSet<String>>,
}

impl SeededWeights {
    /// All tensors of `spec`; matrices are stored as `matrix_type`.
    #[must_use]
    pub fn new(spec: &DecoderSpec, seed: u64, matrix_type: QuantType) -> Self {
        let tensors = tensors_of(spec).into_iter().map(|(name, shape)| {
            let values = seeded_values(&name, &shape, seed);
            (name, (shape, values))
        });
        Self { tensors: tensors.collect(), matrix_type, taken: RefCell::default() }
    }

    /// Adds a tensor of zeroes, or replaces one.
    pub fn insert(&mut self, name: &str, shape: &[usize]) {
        self.tensors.insert(name.to_owned(), (shape.to_vec(), vec![0.0; shape.iter().product()]));
    }

    /// Removes a tensor.
    pub fn remove(&mut self, name: &str) {
        self.tensors.remove(name);
    }

    fn take(&self, name: &str, expected: &[usize]) -> Result<&[f32], LoadError> {
        let missing = || LoadError::MissingTensor { name: name.to_owned() };
        let (shape, values) = self.tensors.get(name).ok_or_else(missing)?;
        if shape != expected {
            return Err(LoadError::Shape { name: name.to_owned(), found: shape.clone(), expected: expected.to_vec() });
        }
        self.taken.borrow_mut().insert(name.to_owned());
        Ok(values)
    }
}

impl WeightSource for SeededWeights {
    fn matrix(&self, name: &str, rows: usize, cols: usize, device: &Device) -> Result<Matrix, LoadError> {
        let values = Tensor::from_slice(self.take(name, &[rows, cols])?, (rows, cols), &Device::Cpu)?;
        if !device.is_cpu() {
            return Ok(Matrix::Dense(values.to_device(device)?));
        }
        let stored = QTensor::quantize(&values, ggml_type(self.matrix_type)?)?;
        let bytes = MappedBytes::Owned(stored.data()?.as_ref().into());
        Ok(Matrix::Mapped(MappedMatrix { ty: self.matrix_type, rows, cols, bytes }))
    }

    fn vector(&self, name: &str, len: usize, device: &Device) -> Result<Tensor, LoadError> {
        Ok(Tensor::from_slice(self.take(name, &[len])?, len, device)?)
    }

    fn norm(&self, name: &str, len: usize, kind: NormWeight, device: &Device) -> Result<Tensor, LoadError> {
        let stored = self.vector(name, len, device)?;
        Ok(match kind {
            NormWeight::Plain => stored,
            NormWeight::OnePlus => (stored + 1.0)?,
        })
    }

    fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn memory(&self, _: bool) -> WeightMemory {
        let bytes = self.tensors.values().map(|(_, values)| 4 * values.len() as u64).sum();
        WeightMemory { bytes, form: WeightForm::Mapped { copied: 0 } }
    }

    fn finish(&self) -> Result<(), LoadError> {
        let taken = self.taken.borrow();
        let names: Vec<_> = self.tensors.keys().filter(|name| !taken.contains(*name)).cloned().collect();
        if names.is_empty() { Ok(()) } else { Err(LoadError::LeftOver { names }) }
    }
}

/// Names and shapes of a model's tensors, as Hugging Face names them.
fn tensors_of(spec: &DecoderSpec) -> Vec<(String, Vec<usize>)> {
    let hidden = spec.hidden;
    let mut all = vec![
        ("model.embed_tokens.weight".to_owned(), vec![spec.vocab, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    if !spec.tie_embeddings {
        all.push(("lm_head.weight".to_owned(), vec![spec.vocab, hidden]));
    }
    for (i, layer) in spec.layers.iter().enumerate() {
        let mut add = |part: &str, shape: &[usize]| all.push((format!("model.layers.{i}.{part}"), shape.to_vec()));
        let (attn, ffn) = (&layer.attn, &layer.ffn);
        let (q, kv) = (attn.heads * attn.head_dim, attn.kv_heads * attn.head_dim);
        let qkv_bias = attn.bias != AttnBias::None;
        let linears = [
            ("self_attn.q_proj", q, hidden, qkv_bias),
            ("self_attn.k_proj", kv, hidden, qkv_bias),
            ("self_attn.v_proj", kv, hidden, qkv_bias),
            ("self_attn.o_proj", hidden, q, attn.bias == AttnBias::Qkvo),
            ("mlp.gate_proj", ffn.inner, hidden, ffn.bias),
            ("mlp.up_proj", ffn.inner, hidden, ffn.bias),
            ("mlp.down_proj", hidden, ffn.inner, ffn.bias),
        ];
        for (name, rows, cols, bias) in linears {
            add(&format!("{name}.weight"), &[rows, cols]);
            if bias {
                add(&format!("{name}.bias"), &[rows]);
            }
        }
        add("input_layernorm.weight", &[hidden]);
        add("post_attention_layernorm.weight", &[hidden]);
        if layer.norms == NormPlacement::Sandwich {
            add("pre_feedforward_layernorm.weight", &[hidden]);
            add("post_feedforward_layernorm.weight", &[hidden]);
        }
        if attn.qk_norm.is_some() {
            add("self_attn.q_norm.weight", &[attn.head_dim]);
            add("self_attn.k_norm.weight", &[attn.head_dim]);
        }
    }
    all
}

/// Uniform values: matrices of unit gain, norms around one half, biases up to one half.
fn seeded_values(name: &str, shape: &[usize], seed: u64) -> Vec<f32> {
    let mut state =
        name.bytes().fold(seed ^ 0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let (low, high) = match shape {
        [_, cols] => {
            let bound = (3.0 / *cols as f32).sqrt();
            if name.contains("embed") { (-1.0, 1.0) } else { (-bound, bound) }
        }
        _ if name.ends_with("bias") => (-0.5, 0.5),
        _ => (0.1, 1.0),
    };
    let count = shape.iter().product();
    (0..count).map(|_| low + (high - low) * unit(&mut state)).collect()
}

/// Uniform in [0, 1): splitmix64 (Steele, Lea and Flood, 2014).
fn unit(state: &mut u64) -> f32 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 40) as f32 / (1_u64 << 24) as f32
}

fn ggml_type(ty: QuantType) -> candle_core::Result<GgmlDType> {
    Ok(match ty {
        QuantType::F32 => GgmlDType::F32,
        QuantType::F16 => GgmlDType::F16,
        QuantType::BF16 => GgmlDType::BF16,
        QuantType::Q4_0 => GgmlDType::Q4_0,
        QuantType::Q4_1 => GgmlDType::Q4_1,
        QuantType::Q5_0 => GgmlDType::Q5_0,
        QuantType::Q5_1 => GgmlDType::Q5_1,
        QuantType::Q8_0 => GgmlDType::Q8_0,
        other => candle_core::bail!("tiny models are not made in {other:?}"),
    })
}
