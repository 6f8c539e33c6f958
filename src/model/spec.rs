//! What a decoder is, as data. `decoder.rs` reads only this; it never asks for an architecture's name.
use std::fmt;

use super::embedding::EmbeddingSpec;

/// The whole model. Serialized by `wick inspect`.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct DecoderSpec {
    pub hidden: usize,
    pub vocab: usize,
    /// Positions the model was made for.
    pub max_context: usize,
    /// Factor on the token embeddings (Gemma: sqrt(hidden)); 1 = none.
    pub embed_scale: f32,
    /// The output matrix is the embedding matrix.
    pub tie_embeddings: bool,
    pub final_norm: Norm,
    /// Caps the final logits with cap·tanh(x/cap).
    pub final_softcap: Option<f32>,
    /// The normed rows are the result, to be pooled to a vector; there are no logits.
    pub embedding: Option<EmbeddingSpec>,
    pub layers: Vec<LayerSpec>,
}

#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct LayerSpec {
    pub attn: AttnSpec,
    pub ffn: FfnSpec,
    pub norms: NormPlacement,
    pub norm: Norm,
}

#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct AttnSpec {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Factor on q·k.
    pub scale: f32,
    pub bias: AttnBias,
    /// Per-head norm of q and k before rope.
    pub qk_norm: Option<Norm>,
    pub rope: RopeSpec,
    /// A query sees its own position and the `window - 1` before it.
    pub window: Option<usize>,
    pub softcap: Option<f32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum AttnBias {
    None,
    Qkv,
    Qkvo,
}

/// Rotary position embedding, half-split pairing. `inv_freq` is final: every scaling rule has been applied to it.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct RopeSpec {
    pub rotary_dim: usize,
    /// `rotary_dim / 2` inverse frequencies.
    pub inv_freq: Vec<f32>,
    /// Factor on cos and sin (yarn); 1 = none.
    pub mscale: f32,
}

#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Norm {
    pub eps: f32,
    pub weight: NormWeight,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum NormWeight {
    Plain,
    /// Multiplies with 1 + weight (Gemma).
    OnePlus,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum NormPlacement {
    /// Before attention and before the feed-forward.
    Pre,
    /// Before and after both (Gemma).
    Sandwich,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct FfnSpec {
    pub inner: usize,
    pub act: Act,
    pub bias: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum Act {
    Silu,
    GeluTanh,
}

impl DecoderSpec {
    /// Values of a row that the forward pass gives: logits, or of a model that embeds a hidden state.
    #[must_use]
    pub fn row_width(&self) -> usize {
        if self.embedding.is_some() { self.hidden } else { self.vocab }
    }
}

/// One page to review a model by: a line for the whole, then one for each run of equal layers.
impl fmt::Display for DecoderSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hidden {}, vocabulary {}, context {}", self.hidden, self.vocab, self.max_context)?;
        let output = match (self.embedding, self.tie_embeddings) {
            (Some(_), _) => "none",
            (None, true) => "tied",
            (None, false) => "own",
        };
        write!(f, ", embeddings × {}, output {output}", self.embed_scale)?;
        write!(f, ", final norm {}", self.final_norm)?;
        if let Some(cap) = self.final_softcap {
            write!(f, ", logits capped at {cap}")?;
        }
        if let Some(embedding) = self.embedding {
            write!(f, "; {embedding}")?;
        }
        let mut start = 0;
        for run in self.layers.chunk_by(|a, b| a == b) {
            let end = start + run.len() - 1;
            write!(f, "\nlayers {start}..={end}: {}", run[0])?;
            start = end + 1;
        }
        Ok(())
    }
}

impl fmt::Display for LayerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let a = &self.attn;
        write!(f, "{} query / {} key heads of {}, q·k × {}", a.heads, a.kv_heads, a.head_dim, a.scale)?;
        write!(f, "; rope {}", a.rope)?;
        match a.window {
            Some(window) => write!(f, "; window {window}")?,
            None => f.write_str("; sees all")?,
        }
        if a.bias != AttnBias::None {
            write!(f, "; bias {:?}", a.bias)?;
        }
        if let Some(norm) = a.qk_norm {
            write!(f, "; q and k normed ({norm})")?;
        }
        if let Some(cap) = a.softcap {
            write!(f, "; scores capped at {cap}")?;
        }
        let bias = if self.ffn.bias { " with bias" } else { "" };
        write!(f, "; {:?} feed-forward {}{bias}; {:?} norms {}", self.ffn.act, self.ffn.inner, self.norms, self.norm)
    }
}

impl fmt::Display for RopeSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = self.inv_freq.last().copied().unwrap_or(0.0);
        write!(f, "of {} ({} … {last:e})", self.rotary_dim, self.inv_freq.first().copied().unwrap_or(0.0))?;
        if (self.mscale - 1.0).abs() > 0.0 {
            write!(f, " × {}", self.mscale)?;
        }
        Ok(())
    }
}

impl fmt::Display for Norm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let weight = match self.weight {
            NormWeight::Plain => "",
            NormWeight::OnePlus => " (1 + weight)",
        };
        write!(f, "{:e}{weight}", self.eps)
    }
}
