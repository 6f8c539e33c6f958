//! Elementary functions as branch-free plain Rust.
//!
//! They are always inlined and use no fused operation, so each instruction set vectorises them at its own width and all give the same bits.

/// Adding and subtracting 1.5 * 2^23 rounds to the nearest integer, ties to even, for |x| < 2^22.
pub const ROUND: f32 = 12_582_912.0;

/// e^x to about 1e-7 relative. Below -87 it is exactly 0; above 88.37 it stays at e^88.37; NaN stays NaN.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2, then the Taylor polynomial of degree 7 (next term: 5e-9) times 2^n.
#[inline(always)]
#[must_use]
pub fn exp(x: f32) -> f32 {
    // Written so that NaN takes the second branch and stays.
    let c = if x > 88.37 { 88.37 } else { x };
    let c = if c < -87.0 { -87.0 } else { c };
    let shifted = c * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln 2 in two parts; n times the first is exact.
    let r = (c - n * 0.693_359_4) - n * -2.121_944_4e-4;
    let mut p = 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * (r * r) + (r + 1.0);
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let y = p * f32::from_bits((n.wrapping_add(127) << 23) as u32);
    if x < -87.0 { 0.0 } else { y }
}

/// tanh x to about 2e-7 relative: by e^-2|x|, and by its series where that would cancel.
#[inline(always)]
#[must_use]
pub fn tanh(x: f32) -> f32 {
    let t = exp(-2.0 * x.abs());
    let large = ((1.0 - t) / (1.0 + t)).copysign(x);
    let s = x * x;
    let mut p = 62.0 / 2835.0;
    p = p * s - 17.0 / 315.0;
    p = p * s + 2.0 / 15.0;
    p = p * s - 1.0 / 3.0;
    let small = x + x * s * p;
    if x.abs() < 0.3 { small } else { large }
}

/// x / (1 + e^-x).
#[inline(always)]
#[must_use]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// The tanh form of GELU.
#[inline(always)]
#[must_use]
pub fn gelu_tanh(x: f32) -> f32 {
    let inner = 0.797_884_6 * (x + 0.044_715 * x * x * x);
    0.5 * x * (1.0 + tanh(inner))
}

/// The error function, to about 3e-7 absolute: formula 7.1.26 of Abramowitz and Stegun (1964).
#[inline(always)]
#[must_use]
pub fn erf(x: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.327_591_1 * x.abs());
    let mut p = 1.061_405_4;
    p = p * t - 1.453_152;
    p = p * t + 1.421_413_7;
    p = p * t - 0.284_496_74;
    p = p * t + 0.254_829_6;
    (1.0 - p * t * exp(-(x * x))).copysign(x)
}

/// GELU by the error function (Hendrycks and Gimpel 2016).
#[inline(always)]
#[must_use]
pub fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// Largest angle that [`sin_cos`] reduces exactly enough.
pub const MAX_ANGLE: f32 = 1_048_576.0;

/// (sin, cos) of an angle in radians, |angle| <= [`MAX_ANGLE`], computed in double precision and rounded once.
///
/// Reduction to |r| <= pi/4 with pi/2 in two parts of 33 and 53 bits, then the Taylor series (next terms below 1e-13).
#[inline(always)]
#[must_use]
pub fn sin_cos(angle: f32) -> (f32, f32) {
    const ROUND64: f64 = 6_755_399_441_055_744.0;
    let x = f64::from(angle);
    let shifted = x * std::f64::consts::FRAC_2_PI + ROUND64;
    let n = shifted - ROUND64;
    let r = (x - n * 1.570_796_326_734_125_6) - n * 6.077_100_506_506_192e-11;
    let s = r * r;
    let sin = r + r
        * s
        * (-1.0 / 6.0
            + s * (1.0 / 120.0
                + s * (-1.0 / 5040.0
                    + s * (1.0 / 362_880.0 + s * (-1.0 / 39_916_800.0 + s * (1.0 / 6_227_020_800.0))))));
    let cos = 1.0
        + s * (-0.5
            + s * (1.0 / 24.0
                + s * (-1.0 / 720.0
                    + s * (1.0 / 40_320.0
                        + s * (-1.0 / 3_628_800.0 + s * (1.0 / 479_001_600.0 + s * (-1.0 / 87_178_291_200.0)))))));
    let quadrant = shifted.to_bits();
    let swap = quadrant & 1 == 1;
    let (a, b) = if swap { (cos, sin) } else { (sin, cos) };
    let sin = if quadrant & 2 == 2 { -a } else { a };
    let cos = if quadrant.wrapping_add(1) & 2 == 2 { -b } else { b };
    (sin as f32, cos as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relative(got: f32, want: f64) -> f64 {
        (f64::from(got) - want).abs() / want.abs().max(1e-30)
    }

    #[test]
    fn exp_is_accurate_and_saturates() {
        for i in -86_000..88_000 {
            let x = i as f32 / 1000.0;
            assert!(relative(exp(x), f64::from(x).exp()) < 2e-7, "exp({x}) = {}", exp(x));
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1000.0), 0.0);
        assert!(exp(1000.0).is_finite() && exp(1000.0) > 2e38);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn tanh_and_activations_are_accurate() {
        for i in -9000..9000 {
            let x = i as f32 / 1000.0 + 0.000_1;
            let wide = f64::from(x);
            assert!(relative(tanh(x), wide.tanh()) < 4e-7, "tanh({x})");
            assert!(relative(silu(x), wide / (1.0 + (-wide).exp())) < 4e-7, "silu({x})");
            let gelu = 0.5 * wide * (1.0 + (0.797_884_560_802_865_4 * (wide + 0.044_715 * wide.powi(3))).tanh());
            assert!((f64::from(gelu_tanh(x)) - gelu).abs() < 3e-7 * wide.abs().max(1.0), "gelu({x})");
        }
        // From tables of the normal distribution: x * Phi(x).
        for (x, want) in [(-3.0, -0.004_049_694), (-1.0, -0.158_655_25), (-0.25, -0.100_323_4), (0.0, 0.0)] {
            assert!((gelu(x) - want).abs() < 4e-7, "gelu({x}) = {}", gelu(x));
            assert!((gelu(-x) - (want - x)).abs() < 4e-7 * (1.0 + x.abs()), "gelu({})", -x);
        }
        assert!(gelu(-50.0).abs() < 1e-6 && gelu(50.0) == 50.0 && gelu(f32::NAN).is_nan());
        assert!(silu(f32::NAN).is_nan() && tanh(f32::NAN).is_nan());
        assert!(silu(-1000.0).abs() < 1e-30);
    }

    #[test]
    fn sines_agree_with_double_precision() {
        for i in 0..200_000_u32 {
            let x = if i < 100_000 { i as f32 * 0.001 } else { (i as f32 - 99_999.5) * 10.485 };
            let (s, c) = sin_cos(x);
            assert!((f64::from(s) - f64::from(x).sin()).abs() < 6.1e-8, "sin({x})");
            assert!((f64::from(c) - f64::from(x).cos()).abs() < 6.1e-8, "cos({x})");
        }
    }
}
