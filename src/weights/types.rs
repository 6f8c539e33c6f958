//! Element types of stored tensors: what a file may hold, and how many bytes it takes.
use candle_core::quantized::GgmlDType;
use wick_kernels::QuantType;

/// A type wick loads, with its layout: `block` elements stored in `bytes` bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TypeInfo {
    pub(crate) ty: QuantType,
    /// ggml's name.
    pub(crate) name: &'static str,
    /// ggml's number, as GGUF files store it.
    pub(crate) number: u32,
    pub(crate) block: usize,
    pub(crate) bytes: usize,
}

/// Block sizes are those of ggml's `type_traits` table.
pub(crate) const TYPES: [TypeInfo; 14] = [
    TypeInfo { ty: QuantType::F32, name: "F32", number: 0, block: 1, bytes: 4 },
    TypeInfo { ty: QuantType::F16, name: "F16", number: 1, block: 1, bytes: 2 },
    TypeInfo { ty: QuantType::Q4_0, name: "Q4_0", number: 2, block: 32, bytes: 18 },
    TypeInfo { ty: QuantType::Q4_1, name: "Q4_1", number: 3, block: 32, bytes: 20 },
    TypeInfo { ty: QuantType::Q5_0, name: "Q5_0", number: 6, block: 32, bytes: 22 },
    TypeInfo { ty: QuantType::Q5_1, name: "Q5_1", number: 7, block: 32, bytes: 24 },
    TypeInfo { ty: QuantType::Q8_0, name: "Q8_0", number: 8, block: 32, bytes: 34 },
    TypeInfo { ty: QuantType::Q2K, name: "Q2_K", number: 10, block: 256, bytes: 84 },
    TypeInfo { ty: QuantType::Q3K, name: "Q3_K", number: 11, block: 256, bytes: 110 },
    TypeInfo { ty: QuantType::Q4K, name: "Q4_K", number: 12, block: 256, bytes: 144 },
    TypeInfo { ty: QuantType::Q5K, name: "Q5_K", number: 13, block: 256, bytes: 176 },
    TypeInfo { ty: QuantType::Q6K, name: "Q6_K", number: 14, block: 256, bytes: 210 },
    TypeInfo { ty: QuantType::Q8K, name: "Q8_K", number: 15, block: 256, bytes: 292 },
    TypeInfo { ty: QuantType::BF16, name: "BF16", number: 30, block: 1, bytes: 2 },
];

/// Types ggml has (or had) and wick does not load, so that the error can name them.
const FOREIGN: [(u32, &str); 24] = [
    (4, "Q4_2"),
    (5, "Q4_3"),
    (9, "Q8_1"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
];

impl TypeInfo {
    /// The layout of `ty`.
    pub(crate) fn of(ty: QuantType) -> Self {
        *TYPES.iter().find(|t| t.ty == ty).expect("a type without a layout is a bug")
    }

    /// The type GGUF calls `number`; `Err` holds a name for the message.
    pub(crate) fn from_ggml(number: u32) -> Result<Self, String> {
        TYPES.iter().find(|t| t.number == number).copied().ok_or_else(|| {
            FOREIGN
                .iter()
                .find(|(n, _)| *n == number)
                .map_or_else(|| format!("ggml type {number}"), |(_, name)| (*name).to_owned())
        })
    }

    /// Bytes of a row of `cols` elements; `None` if the row is not a whole number of blocks or the size overflows.
    pub(crate) fn row_bytes(self, cols: usize) -> Option<usize> {
        if cols.is_multiple_of(self.block) { (cols / self.block).checked_mul(self.bytes) } else { None }
    }

    /// Bytes of a tensor whose rows hold `cols` elements; `None` as for `row_bytes`.
    pub(crate) fn tensor_bytes(self, rows: usize, cols: usize) -> Option<usize> {
        self.row_bytes(cols)?.checked_mul(rows)
    }

    /// Candle's name of the type.
    pub(crate) fn candle(self) -> GgmlDType {
        match self.ty {
            QuantType::F32 => GgmlDType::F32,
            QuantType::F16 => GgmlDType::F16,
            QuantType::BF16 => GgmlDType::BF16,
            QuantType::Q4_0 => GgmlDType::Q4_0,
            QuantType::Q4_1 => GgmlDType::Q4_1,
            QuantType::Q5_0 => GgmlDType::Q5_0,
            QuantType::Q5_1 => GgmlDType::Q5_1,
            QuantType::Q8_0 => GgmlDType::Q8_0,
            QuantType::Q2K => GgmlDType::Q2K,
            QuantType::Q3K => GgmlDType::Q3K,
            QuantType::Q4K => GgmlDType::Q4K,
            QuantType::Q5K => GgmlDType::Q5K,
            QuantType::Q6K => GgmlDType::Q6K,
            QuantType::Q8K => GgmlDType::Q8K,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_agree_with_candle() {
        for t in TYPES {
            assert_eq!((t.block, t.bytes), (t.candle().block_size(), t.candle().type_size()), "{}", t.name);
            assert_eq!(TypeInfo::from_ggml(t.number), Ok(t));
            assert_eq!(TypeInfo::of(t.ty), t);
        }
    }

    #[test]
    fn foreign_types_have_names() {
        assert_eq!(TypeInfo::from_ggml(23), Err("IQ4_XS".to_owned()));
        assert_eq!(TypeInfo::from_ggml(7000), Err("ggml type 7000".to_owned()));
    }

    #[test]
    fn sizes_are_whole_blocks_and_never_overflow() {
        let q4_1 = TypeInfo::of(QuantType::Q4_1);
        assert_eq!(q4_1.tensor_bytes(3, 64), Some(3 * 2 * 20));
        assert_eq!(q4_1.tensor_bytes(3, 65), None);
        assert_eq!(q4_1.tensor_bytes(usize::MAX, 64), None);
    }
}
