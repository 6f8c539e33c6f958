//! Rotary embeddings: parameters in all their spellings → final inverse frequencies.
//!
//! Everything is computed in f32, in the order of transformers' `modeling_rope_utils`, so that angles agree to the last bits.
use serde_json::Value;

use crate::model::config::{HfConfig, bad, shown};
use crate::model::spec::RopeSpec;
use crate::weights::LoadError;

/// `rope_theta` where nothing says otherwise (Llama's and everybody's default).
const THETA_DEFAULT: f64 = 10_000.0;

/// One kind of rope, before it meets a head size.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RopeParameters {
    pub(crate) theta: f64,
    pub(crate) scaling: Scaling,
}

/// Changes to the plain frequencies.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Scaling {
    None,
    /// Every frequency divided by the factor.
    Linear(f64),
    /// Llama 3.1: low frequencies divided, high ones kept, a ramp between.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_context: f64,
    },
    /// A divisor for each frequency: what GGUF keeps of `Llama3`.
    Factors(Vec<f32>),
}

impl RopeParameters {
    /// The parameters of a model with one kind of rope: `rope_parameters` (transformers 5), else `rope_theta` and `rope_scaling`.
    pub(crate) fn read(config: &HfConfig) -> Result<Self, LoadError> {
        refuse_partial(config.value("partial_rotary_factor"))?;
        let theta = config.f64("rope_theta")?.unwrap_or(THETA_DEFAULT);
        let mut rope = if let Some(parameters) = config.value("rope_parameters") {
            Self::from_object(config, "rope_parameters", parameters, theta)?
        } else if let Some(scaling) = config.value("rope_scaling") {
            Self::from_object(config, "rope_scaling", scaling, theta)?
        } else {
            Self::plain(theta)?
        };
        if let Some(factors) = config.value("rope_freq_factors") {
            if rope.scaling != Scaling::None {
                return Err(bad("rope_scaling", "comes together with rope_freqs.weight; a model has one or the other"));
            }
            let factors = factors.as_array().map(|a| a.iter().filter_map(Value::as_f64).map(narrow).collect());
            rope.scaling = Scaling::Factors(factors.ok_or_else(|| bad("rope_freq_factors", "is no list"))?);
        }
        Ok(rope)
    }

    /// No scaling.
    pub(crate) fn plain(theta: f64) -> Result<Self, LoadError> {
        Ok(Self { theta: checked("rope_theta", theta)?, scaling: Scaling::None })
    }

    /// Reads one `rope_parameters` or `rope_scaling` object; `theta` holds if the object has none.
    #[expect(clippy::cast_precision_loss)]
    pub(crate) fn from_object(config: &HfConfig, key: &str, object: &Value, theta: f64) -> Result<Self, LoadError> {
        let Some(fields) = object.as_object() else {
            return Err(bad(key, &format!("is {}, but must be an object", shown(object))));
        };
        let get = |name: &str| fields.get(name).filter(|v| !v.is_null());
        let number = |name: &str| match get(name) {
            None => Ok(None),
            Some(v) => match v.as_f64() {
                Some(n) => checked(&format!("{key}.{name}"), n).map(Some),
                None => Err(bad(&format!("{key}.{name}"), &format!("is {}, but must be a number", shown(v)))),
            },
        };
        let needed = |name: &str| number(name)?.ok_or_else(|| bad(&format!("{key}.{name}"), "is missing"));
        refuse_partial(get("partial_rotary_factor"))?;
        // `type` is the older spelling; Llama 3.1's first files have both.
        let kind = get("rope_type").or_else(|| get("type"));
        let scaling = match kind
            .map(|k| k.as_str().ok_or_else(|| bad(&format!("{key}.rope_type"), &format!("is {}", shown(k)))))
        {
            None => Scaling::None,
            Some(kind) => match kind? {
                "default" => Scaling::None,
                "linear" => Scaling::Linear(needed("factor")?),
                "llama3" => {
                    let original = match number("original_max_position_embeddings")? {
                        Some(n) => n,
                        None => config
                            .f64("original_max_position_embeddings")?
                            .unwrap_or(config.max_position_embeddings as f64),
                    };
                    let (low, high) = (needed("low_freq_factor")?, needed("high_freq_factor")?);
                    if high <= low {
                        return Err(bad(
                            &format!("{key}.high_freq_factor"),
                            &format!("is {high}, but must exceed low_freq_factor {low}"),
                        ));
                    }
                    Scaling::Llama3 {
                        factor: needed("factor")?,
                        low_freq_factor: low,
                        high_freq_factor: high,
                        original_context: checked("original_max_position_embeddings", original)?,
                    }
                }
                other => {
                    return Err(bad(
                        &format!("{key}.rope_type"),
                        &format!("is {}; wick computes default, linear and llama3", shown(&other.into())),
                    ));
                }
            },
        };
        let theta = number("rope_theta")?.unwrap_or(theta);
        Ok(Self { theta: checked("rope_theta", theta)?, scaling })
    }
}

/// The final frequencies for the model's head size.
pub(crate) fn spec(config: &HfConfig, rope: &RopeParameters) -> Result<RopeSpec, LoadError> {
    let inv_freq = frequencies(config.head_dim, rope)?;
    Ok(RopeSpec { rotary_dim: config.head_dim, inv_freq, mscale: 1.0 })
}

fn frequencies(dim: usize, rope: &RopeParameters) -> Result<Vec<f32>, LoadError> {
    let mut freqs: Vec<f32> = (0..dim).step_by(2).map(|i| 1.0 / power(rope.theta, i, dim)).collect();
    match &rope.scaling {
        Scaling::None => {}
        Scaling::Linear(factor) => freqs.iter_mut().for_each(|f| *f /= narrow(*factor)),
        Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            for f in &mut freqs {
                *f = llama3(*f, *factor, *low_freq_factor, *high_freq_factor, *original_context);
            }
        }
        Scaling::Factors(factors) => {
            if factors.len() != freqs.len() {
                return Err(bad(
                    "rope_freq_factors",
                    &format!("has {} entries for {} frequencies", factors.len(), freqs.len()),
                ));
            }
            freqs.iter_mut().zip(factors).for_each(|(f, factor)| *f /= factor);
        }
    }
    Ok(freqs)
}

/// theta^(i/dim), the exponent an f32 as in transformers, the power correctly rounded.
#[expect(clippy::cast_precision_loss)]
fn power(theta: f64, i: usize, dim: usize) -> f32 {
    let exponent = i as f32 / dim as f32;
    narrow(f64::from(narrow(theta)).powf(f64::from(exponent)))
}

/// The rule of transformers' `_compute_llama3_parameters`, for one frequency. `PyTorch` divides a number by a tensor as number × reciprocal,
/// and so does this: the difference of nearly equal values below would show it.
fn llama3(freq: f32, factor: f64, low: f64, high: f64, original_context: f64) -> f32 {
    let wavelength = freq.recip() * narrow(std::f64::consts::TAU);
    let (longest, shortest) = (narrow(original_context / low), narrow(original_context / high));
    if wavelength > longest {
        freq / narrow(factor)
    } else if wavelength < shortest {
        freq
    } else {
        let smooth = (wavelength.recip() * narrow(original_context) - narrow(low)) / narrow(high - low);
        (1.0 - smooth) * freq / narrow(factor) + smooth * freq
    }
}

/// A positive, finite number that is one in f32 too.
fn checked(key: &str, n: f64) -> Result<f64, LoadError> {
    let f = narrow(n);
    if f.is_finite() && f > 0.0 { Ok(n) } else { Err(bad(key, &format!("is {n}, but must be a positive number"))) }
}

fn refuse_partial(factor: Option<&Value>) -> Result<(), LoadError> {
    match factor {
        Some(f) if f.as_f64() != Some(1.0) => {
            Err(bad("partial_rotary_factor", &format!("is {}; wick rotates whole heads only", shown(f))))
        }
        _ => Ok(()),
    }
}

#[expect(clippy::cast_possible_truncation)]
fn narrow(v: f64) -> f32 {
    v as f32
}
