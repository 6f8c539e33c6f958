//! Normalisation, activations, rotary embedding: right, the same on every instruction set, and the same bits in any batch.

mod common;

use common::{Rng, bits, cpu, isas};
use wick_kernels::{
    Activation, Cpu, Heads, Isa, IsaError, Rotation, add_rms_norm, gated_activation, rms_norm, rotate_heads,
};

#[test]
fn rms_norm_is_right_and_rows_are_independent() {
    for d in [1, 7, 64, 576, 1536] {
        let mut rng = Rng(d as u64);
        let rows = 61;
        let (x, weight) = (rng.floats(rows * d), rng.floats(d));
        let mut first: Option<Vec<u32>> = None;
        for isa in isas() {
            for threads in [1, 3] {
                let cpu = cpu(isa, threads);
                let mut out = vec![f32::NAN; rows * d];
                rms_norm(&cpu, &x, &weight, 1e-5, &mut out);
                for (x, y) in x.chunks(d).zip(out.chunks(d)) {
                    let mean = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / d as f64;
                    for i in 0..d {
                        let want = f64::from(x[i]) / (mean + 1e-5).sqrt() * f64::from(weight[i]);
                        assert!(
                            (f64::from(y[i]) - want).abs() <= 1e-6 * want.abs().max(1e-3),
                            "{isa:?} d={d}: {} not {want}",
                            y[i]
                        );
                    }
                }
                let mut alone = vec![0.0; d];
                rms_norm(&cpu, &x[5 * d..6 * d], &weight, 1e-5, &mut alone);
                assert_eq!(bits(&alone), bits(&out[5 * d..6 * d]));
                // Adding nothing first changes nothing.
                let (mut residual, mut fused) = (x.clone(), vec![0.0; rows * d]);
                add_rms_norm(&cpu, &mut residual, &vec![0.0; rows * d], &weight, 1e-5, &mut fused);
                assert_eq!(bits(&fused), bits(&out));
                assert_eq!(*first.get_or_insert_with(|| bits(&out)), bits(&out), "{isa:?} d={d}");
            }
        }
    }
}

#[test]
fn add_rms_norm_adds_into_the_residual() {
    for isa in isas() {
        let cpu = cpu(isa, 2);
        let (mut residual, mut out) = (vec![1.0, 2.0, 3.0, 4.0], vec![0.0; 4]);
        add_rms_norm(&cpu, &mut residual, &[1.0, 0.0, -1.0, 0.0], &[1.0, 2.0], 0.0, &mut out);
        assert_eq!(residual, [2.0, 2.0, 2.0, 4.0]);
        let r = 10f32.sqrt();
        for (got, want) in out.iter().zip([1.0, 2.0, 2.0 / r, 8.0 / r]) {
            assert!((got - want).abs() < 1e-6);
        }
    }
}

#[test]
fn activations_do_not_depend_on_the_place_in_the_slice() {
    let n = 70_001;
    let mut rng = Rng(9);
    let (gate, up) = (rng.floats(n), rng.floats(n));
    for act in [Activation::Silu, Activation::GeluTanh] {
        let mut first: Option<Vec<u32>> = None;
        for isa in isas() {
            for threads in [1, 2] {
                let cpu = cpu(isa, threads);
                let mut out = vec![f32::NAN; n];
                gated_activation(&cpu, act, &gate, &up, &mut out);
                for i in 0..n {
                    let g = f64::from(gate[i]);
                    let activated = match act {
                        Activation::Silu => g / (1.0 + (-g).exp()),
                        Activation::GeluTanh => {
                            0.5 * g * (1.0 + (0.797_884_560_802_865_4 * (g + 0.044_715 * g.powi(3))).tanh())
                        }
                    };
                    let want = activated * f64::from(up[i]);
                    assert!(
                        (f64::from(out[i]) - want).abs() <= 4e-7 * (g * f64::from(up[i])).abs().max(1e-3),
                        "{act:?}({g})"
                    );
                }
                let mut tail = vec![0.0; 13];
                gated_activation(&cpu, act, &gate[n - 13..], &up[n - 13..], &mut tail);
                assert_eq!(bits(&tail), bits(&out[n - 13..]));
                assert_eq!(*first.get_or_insert_with(|| bits(&out)), bits(&out), "{isa:?}");
            }
        }
    }
}

#[test]
fn heads_are_rotated_in_half_split_pairs() {
    let (heads, head_dim, rotary_dim) = (3, 20, 16);
    let width = heads * head_dim;
    let positions = [0, 1, 17, 4096, 131_071, 3_000_000];
    let inv_freq: Vec<f32> = (0..rotary_dim / 2).map(|i| 1e6f32.powf(-(2.0 * i as f32) / rotary_dim as f32)).collect();
    let mscale = 1.25;
    let mut rng = Rng(4);
    let (q, k) = (rng.floats(positions.len() * width), rng.floats(positions.len() * head_dim));
    let weight = rng.floats(head_dim);
    let rotated = |cpu: &Cpu, q: &[f32], k: &[f32], positions: &[u32], norm| {
        let rotation = Rotation::new(cpu, positions, &inv_freq, mscale);
        let (mut q, mut k) = (q.to_vec(), k.to_vec());
        let mut parts = [Heads { x: &mut q, norm }, Heads { x: &mut k, norm: None }];
        rotate_heads(cpu, &mut parts, head_dim, positions.len(), &rotation);
        (q, k)
    };
    for norm in [None, Some((&weight[..], 1e-6))] {
        let mut first: Option<Vec<u32>> = None;
        for isa in isas() {
            for threads in [1, 2] {
                let cpu = cpu(isa, threads);
                let (got, got_k) = rotated(&cpu, &q, &k, &positions, norm);
                let mut x = q.clone();
                if let Some((weight, eps)) = norm {
                    rms_norm(&cpu, &q, weight, eps, &mut x);
                }
                for (t, &position) in positions.iter().enumerate() {
                    for (x, got, heads) in [(&x, &got, heads), (&k, &got_k, 1)] {
                        for i in 0..heads * head_dim {
                            let (at, j) = (t * heads * head_dim + i, i % head_dim);
                            if j >= rotary_dim {
                                assert_eq!(got[at], x[at], "values outside the rotated part stay");
                                continue;
                            }
                            let half = rotary_dim / 2;
                            let angle = f64::from(position as f32 * inv_freq[j % half]);
                            let (s, c) = (angle.sin() * f64::from(mscale), angle.cos() * f64::from(mscale));
                            let other = f64::from(if j < half { -x[at + half] } else { x[at - half] });
                            let want = f64::from(x[at]) * c + other * s;
                            assert!(
                                (f64::from(got[at]) - want).abs() < 1e-5,
                                "{isa:?} position {position} value {j}: {} not {want}",
                                got[at]
                            );
                        }
                    }
                }
                assert_eq!(*first.get_or_insert_with(|| bits(&got)), bits(&got), "{isa:?}");
                let (alone, _) = rotated(&cpu, &q[4 * width..5 * width], &k[..head_dim], &positions[4..5], norm);
                assert_eq!(bits(&alone), bits(&got[4 * width..5 * width]));
            }
        }
    }
}

#[test]
fn instruction_sets_have_names() {
    for isa in isas() {
        assert_eq!(Isa::from_name(isa.name()), Ok(isa));
    }
    assert!(Isa::detect().available());
    let error = Isa::from_name("mmx").unwrap_err();
    assert_eq!(error, IsaError::Unknown { name: "mmx".to_owned() });
    assert!(error.to_string().contains("choose one of: scalar"), "{error}");
}

#[test]
#[should_panic(expected = "no whole number of rows")]
fn part_rows_are_refused() {
    rms_norm(&cpu(Isa::Scalar, 1), &[0.0; 5], &[1.0; 4], 1e-5, &mut [0.0; 5]);
}
