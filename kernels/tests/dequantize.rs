//! Unpacking of ggml's formats against values read by ggml's own Python package (`tests/data/make.py`).

use wick_kernels::{QuantType, dequantize};

fn u32_at(data: &[u8], at: usize) -> usize {
    u32::from_le_bytes(data[at..at + 4].try_into().unwrap()) as usize
}

#[test]
fn every_format_matches_ggml_to_the_bit() {
    let golden = include_bytes!("data/golden.bin");
    let mut seen = Vec::new();
    let mut at = 0;
    while at < golden.len() {
        let ty = QuantType::from_ggml_id(u32_at(golden, at) as u32).unwrap();
        let (bytes, values) = (u32_at(golden, at + 4), u32_at(golden, at + 8));
        let blocks = &golden[at + 12..at + 12 + bytes];
        let want = &golden[at + 12 + bytes..at + 12 + bytes + 4 * values];
        // Once more at every alignment: files map tensors anywhere.
        for shift in 0..3 {
            let mut moved = vec![0; shift];
            moved.extend_from_slice(blocks);
            let mut got = vec![f32::NAN; values];
            dequantize(ty, &moved[shift..], &mut got);
            for (i, (got, want)) in got.iter().zip(want.chunks_exact(4)).enumerate() {
                let want = f32::from_le_bytes(want.try_into().unwrap());
                assert_eq!(*got, want, "{} value {i}", ty.name());
            }
        }
        seen.push(ty);
        at += 12 + bytes + 4 * values;
    }
    for ty in QuantType::ALL {
        assert!(seen.contains(&ty), "no golden blocks of {}", ty.name());
    }
}

#[test]
fn row_bytes_refuses_broken_blocks_and_overflow() {
    assert_eq!(QuantType::Q4K.row_bytes(512), Some(288));
    assert_eq!(QuantType::Q4K.row_bytes(511), None);
    assert_eq!(QuantType::Q8_0.row_bytes(576), Some(612));
    assert_eq!(QuantType::F32.row_bytes(usize::MAX), None);
    assert_eq!(QuantType::Q8_0.row_bytes(usize::MAX - 31), None);
    assert_eq!(QuantType::from_ggml_id(9), None);
}

#[test]
#[should_panic(expected = "do not hold")]
fn wrong_length_is_refused() {
    dequantize(QuantType::Q8_0, &[0; 33], &mut [0.0; 32]);
}
