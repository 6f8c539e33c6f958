//! Writes small GGUF files for tests: sound by default, and broken where a test says so.
#![allow(clippy::float_cmp, clippy::cast_precision_loss, clippy::cast_possible_truncation)]

/// A GGUF file under construction.
pub(crate) struct Writer {
    pub(crate) version: u32,
    pub(crate) alignment: usize,
    entries: Vec<u8>,
    entry_count: u64,
    tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
    /// Replaces the offset of a tensor.
    pub(crate) offset: Option<(usize, u64)>,
}

pub(crate) fn string(s: &str) -> Vec<u8> {
    [&(s.len() as u64).to_le_bytes(), s.as_bytes()].concat()
}

impl Writer {
    pub(crate) fn new() -> Self {
        Self { version: 3, alignment: 32, entries: Vec::new(), entry_count: 0, tensors: Vec::new(), offset: None }
    }

    /// An entry of any value type, `value` already encoded.
    pub(crate) fn raw(mut self, key: &str, ty: u32, value: &[u8]) -> Self {
        self.entries.extend(string(key));
        self.entries.extend(ty.to_le_bytes());
        self.entries.extend(value);
        self.entry_count += 1;
        self
    }

    pub(crate) fn u32(self, key: &str, v: u32) -> Self {
        self.raw(key, 4, &v.to_le_bytes())
    }

    pub(crate) fn f32(self, key: &str, v: f32) -> Self {
        self.raw(key, 6, &v.to_le_bytes())
    }

    pub(crate) fn str(self, key: &str, v: &str) -> Self {
        self.raw(key, 8, &string(v))
    }

    pub(crate) fn strs(self, key: &str, v: &[&str]) -> Self {
        let mut bytes = [8u32.to_le_bytes().as_slice(), &(v.len() as u64).to_le_bytes()].concat();
        for s in v {
            bytes.extend(string(s));
        }
        self.raw(key, 9, &bytes)
    }

    /// A tensor; `dims` as GGUF has them (fastest first), `ty` ggml's number.
    pub(crate) fn tensor(mut self, name: &str, dims: &[u64], ty: u32, bytes: Vec<u8>) -> Self {
        self.tensors.push((name.to_owned(), dims.to_vec(), ty, bytes));
        self
    }

    /// An F32 tensor whose values count from `first` up.
    pub(crate) fn f32_tensor(self, name: &str, dims: &[u64], first: f32) -> Self {
        let n: u64 = dims.iter().product();
        let bytes = (0..n).flat_map(|i| (first + i as f32).to_le_bytes()).collect();
        self.tensor(name, dims, 0, bytes)
    }

    /// The file, and where its tensor data begin.
    pub(crate) fn build(&self) -> (Vec<u8>, usize) {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend(self.entry_count.to_le_bytes());
        out.extend(&self.entries);
        let mut data: Vec<u8> = Vec::new();
        for (i, (name, dims, ty, bytes)) in self.tensors.iter().enumerate() {
            out.extend(string(name));
            out.extend((dims.len() as u32).to_le_bytes());
            for d in dims {
                out.extend(d.to_le_bytes());
            }
            out.extend(ty.to_le_bytes());
            let offset = self.offset.filter(|(which, _)| *which == i).map_or(data.len() as u64, |(_, o)| o);
            out.extend(offset.to_le_bytes());
            data.extend(bytes);
            data.resize(data.len().next_multiple_of(self.alignment), 0);
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        let start = out.len();
        out.extend(data);
        (out, start)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.build().0
    }
}

/// A llama of two layers: hidden 8, 2 heads of 4, 1 kv head, feed-forward 16, vocabulary 10; tied, dense f32.
pub(crate) fn tiny_llama() -> Writer {
    let mut w = Writer::new()
        .str("general.architecture", "llama")
        .u32("llama.block_count", 2)
        .u32("llama.context_length", 64)
        .u32("llama.embedding_length", 8)
        .u32("llama.feed_forward_length", 16)
        .u32("llama.attention.head_count", 2)
        .u32("llama.attention.head_count_kv", 1)
        .u32("llama.rope.dimension_count", 4)
        .f32("llama.rope.freq_base", 10_000.0)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .f32_tensor("token_embd.weight", &[8, 10], 0.0)
        .f32_tensor("output_norm.weight", &[8], 0.0);
    for i in 0..2 {
        for (name, dims) in [
            ("attn_norm", &[8][..]),
            ("ffn_norm", &[8]),
            ("attn_q", &[8, 8]),
            ("attn_k", &[8, 4]),
            ("attn_v", &[8, 4]),
            ("attn_output", &[8, 8]),
            ("ffn_gate", &[8, 16]),
            ("ffn_up", &[8, 16]),
            ("ffn_down", &[16, 8]),
        ] {
            w = w.f32_tensor(&format!("blk.{i}.{name}.weight"), dims, 100.0 * i as f32);
        }
    }
    w
}
