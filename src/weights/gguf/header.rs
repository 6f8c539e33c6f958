//! Reads a GGUF header from bytes, trusting nothing in it.
use std::collections::{BTreeMap, BTreeSet};

use super::value::{GgufArray, GgufValue, Strings};
use super::{GgufTensor, TypeInfo};

/// Deepest nesting of metadata arrays (no known file nests at all).
const ARRAY_DEPTH_MAX: usize = 4;
/// ggml's limit on the rank of a tensor.
const RANK_MAX: u32 = 4;
/// Longest metadata key (the specification's limit) and tensor name, in bytes.
const KEY_BYTES_MAX: usize = 65_535;
/// Alignment of tensor data when `general.alignment` is absent, in bytes.
const ALIGNMENT_DEFAULT: u64 = 32;
/// Largest alignment that makes sense, in bytes.
const ALIGNMENT_MAX: u64 = 1 << 20;
/// Longest header read, in bytes: a hundred times that of a large vocabulary.
const HEADER_BYTES_MAX: usize = 256 << 20;
/// Most metadata entries and tensors. Each takes more memory than bytes in the file, so their number is bounded by itself.
const ENTRIES_MAX: usize = 1 << 16;
const TENSORS_MAX: usize = 1 << 17;
/// Fewest bytes a metadata entry takes: key length, value type, one-byte value.
const ENTRY_BYTES_MIN: usize = 8 + 4 + 1;
/// Fewest bytes a tensor's description takes: name length, rank, one dimension, type, offset.
const TENSOR_BYTES_MIN: usize = 8 + 4 + 8 + 4 + 8;

/// What a header says.
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) metadata: BTreeMap<String, GgufValue>,
    pub(super) tensors: Vec<GgufTensor>,
}

/// Why a header is refused.
#[derive(Debug)]
pub(super) enum HeaderError {
    Malformed(String),
    UnknownType { name: String, found: String },
}

impl From<String> for HeaderError {
    fn from(reason: String) -> Self {
        Self::Malformed(reason)
    }
}

/// Reads the header of the file that `bytes` is the whole of.
pub(super) fn parse(bytes: &[u8]) -> Result<Header, HeaderError> {
    let mut r = Reader { bytes: &bytes[..bytes.len().min(HEADER_BYTES_MAX)], at: 0 };
    if r.take(4, "the magic number").ok() != Some(b"GGUF") {
        return Err("not a GGUF file: it does not begin with `GGUF`".to_owned().into());
    }
    let version = r.u32("the version")?;
    match version {
        2 | 3 => {}
        1 => {
            return Err("GGUF version 1 is not read; convert the model again with a current llama.cpp"
                .to_owned()
                .into());
        }
        v if v.trailing_zeros() >= 16 && v != 0 => {
            return Err("a big-endian GGUF file; convert it with gguf-convert-endian".to_owned().into());
        }
        v => return Err(format!("GGUF version {v} is unknown; wick reads versions 2 and 3").into()),
    }
    let tensor_count = r.count("the number of tensors", TENSOR_BYTES_MIN)?;
    let entry_count = r.count("the number of metadata entries", ENTRY_BYTES_MIN)?;
    for (what, count, max) in [("tensors", tensor_count, TENSORS_MAX), ("metadata entries", entry_count, ENTRIES_MAX)] {
        if count > max {
            return Err(format!("the header has {count} {what}; wick reads at most {max}").into());
        }
    }

    let mut metadata = BTreeMap::new();
    for i in 0..entry_count {
        let key = r.string(&format!("the key of metadata entry {i}"), KEY_BYTES_MAX)?;
        let what = format!("metadata key `{key}`");
        let ty = r.u32(&what)?;
        let value = r.value(ty, &what)?;
        if metadata.insert(key, value).is_some() {
            return Err(format!("{what} is there twice").into());
        }
    }
    let alignment = alignment(&metadata)?;

    let mut tensors = Vec::new();
    let mut names = BTreeSet::new();
    for i in 0..tensor_count {
        let tensor = r.tensor(i, alignment)?;
        if !names.insert(tensor.name.clone()) {
            return Err(format!("tensor `{}` is there twice", tensor.name).into());
        }
        tensors.push(tensor);
    }
    place(&mut tensors, r.at, bytes.len(), alignment)?;
    Ok(Header { version, metadata, tensors })
}

fn alignment(metadata: &BTreeMap<String, GgufValue>) -> Result<u64, String> {
    let Some(value) = metadata.get("general.alignment") else { return Ok(ALIGNMENT_DEFAULT) };
    match value.as_u64() {
        Some(a) if a.is_power_of_two() && (8..=ALIGNMENT_MAX).contains(&a) => Ok(a),
        _ => Err(format!(
            "metadata key `general.alignment` is {}, but must be a power of two from 8 to {ALIGNMENT_MAX}",
            value.summary()
        )),
    }
}

/// Turns offsets within the data section into offsets within the file, and checks bounds and overlaps.
fn place(tensors: &mut [GgufTensor], header_end: usize, file_len: usize, alignment: u64) -> Result<(), String> {
    if tensors.is_empty() {
        return Ok(());
    }
    let alignment = usize::try_from(alignment).map_err(|_| "alignment too large".to_owned())?;
    let data = header_end.checked_next_multiple_of(alignment).ok_or("the header's end overflows")?;
    for t in tensors.iter_mut() {
        let end = data.checked_add(t.start).and_then(|s| Some((s, s.checked_add(t.len)?)));
        match end {
            Some((start, end)) if end <= file_len => t.start = start,
            _ => {
                return Err(format!(
                    "tensor `{}` ({} bytes at offset {} of the data section, which begins at byte {data}) reaches beyond the \
                     end of the file ({file_len} bytes); the file is truncated or damaged, fetch it again",
                    t.name, t.len, t.start
                ));
            }
        }
    }
    let mut by_start: Vec<&GgufTensor> = tensors.iter().collect();
    by_start.sort_by_key(|t| t.start);
    for pair in by_start.windows(2) {
        let [a, b] = pair else { continue };
        if a.start + a.len > b.start {
            return Err(format!("tensors `{}` and `{}` overlap at byte {}", a.name, b.name, b.start));
        }
    }
    Ok(())
}

/// A cursor over the file's bytes.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

macro_rules! scalars {
    ($($name:ident: $ty:ty),*) => {$(
        fn $name(&mut self, what: &str) -> Result<$ty, String> {
            Ok(<$ty>::from_le_bytes(self.array(what)?))
        }
    )*};
}

impl<'a> Reader<'a> {
    scalars!(u8: u8, i8: i8, u16: u16, i16: i16, u32: u32, i32: i32, u64: u64, i64: i64, f32: f32, f64: f64);

    /// Bytes of the header that may still follow.
    fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, len: usize, what: &str) -> Result<&'a [u8], String> {
        if len > self.remaining() {
            return Err(format!(
                "the file ends inside {what} (byte {}: {len} bytes needed, {} left); fetch it again",
                self.at,
                self.remaining()
            ));
        }
        let slice = &self.bytes[self.at..self.at + len];
        self.at += len;
        Ok(slice)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], String> {
        let slice = self.take(N, what)?;
        Ok(slice.try_into().expect("take returned another length: that is a bug"))
    }

    /// A 64-bit count of things that take at least `bytes_min` bytes each: more than the file can hold is an error.
    fn count(&mut self, what: &str, bytes_min: usize) -> Result<usize, String> {
        let at = self.at;
        let count = self.u64(what)?;
        match usize::try_from(count) {
            Ok(n) if n <= self.remaining() / bytes_min => Ok(n),
            _ => Err(format!("{what} (byte {at}) is {count}, more than the rest of the file can hold")),
        }
    }

    fn string(&mut self, what: &str, bytes_max: usize) -> Result<String, String> {
        self.str(what, bytes_max).map(str::to_owned)
    }

    fn str(&mut self, what: &str, bytes_max: usize) -> Result<&'a str, String> {
        let at = self.at;
        let len = self.count(what, 1)?;
        if len > bytes_max {
            return Err(format!("{what} (byte {at}) has {len} bytes, more than {bytes_max}"));
        }
        let bytes = self.take(len, what)?;
        std::str::from_utf8(bytes).map_err(|e| format!("{what} (byte {at}) is not UTF-8: {e}"))
    }

    fn bool(&mut self, what: &str) -> Result<bool, String> {
        match self.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            b => Err(format!("{what} is a boolean of value {b}")),
        }
    }

    fn value(&mut self, ty: u32, what: &str) -> Result<GgufValue, String> {
        Ok(match ty {
            0 => GgufValue::U8(self.u8(what)?),
            1 => GgufValue::I8(self.i8(what)?),
            2 => GgufValue::U16(self.u16(what)?),
            3 => GgufValue::I16(self.i16(what)?),
            4 => GgufValue::U32(self.u32(what)?),
            5 => GgufValue::I32(self.i32(what)?),
            6 => GgufValue::F32(self.f32(what)?),
            7 => GgufValue::Bool(self.bool(what)?),
            8 => GgufValue::Str(self.string(what, usize::MAX)?),
            9 => GgufValue::Array(self.values(what, 1)?),
            10 => GgufValue::U64(self.u64(what)?),
            11 => GgufValue::I64(self.i64(what)?),
            12 => GgufValue::F64(self.f64(what)?),
            _ => return Err(format!("{what} has the unknown value type {ty}")),
        })
    }

    fn values(&mut self, what: &str, depth: usize) -> Result<GgufArray, String> {
        if depth > ARRAY_DEPTH_MAX {
            return Err(format!("{what} nests arrays more than {ARRAY_DEPTH_MAX} deep"));
        }
        let ty = self.u32(what)?;
        Ok(match ty {
            0 => GgufArray::U8(self.list(1, what, Self::u8)?),
            1 => GgufArray::I8(self.list(1, what, Self::i8)?),
            2 => GgufArray::U16(self.list(2, what, Self::u16)?),
            3 => GgufArray::I16(self.list(2, what, Self::i16)?),
            4 => GgufArray::U32(self.list(4, what, Self::u32)?),
            5 => GgufArray::I32(self.list(4, what, Self::i32)?),
            6 => GgufArray::F32(self.list(4, what, Self::f32)?),
            7 => GgufArray::Bool(self.list(1, what, Self::bool)?),
            8 => GgufArray::Str(self.strings(what)?),
            9 => GgufArray::Array(self.list(12, what, |r, w| r.values(w, depth + 1))?),
            10 => GgufArray::U64(self.list(8, what, Self::u64)?),
            11 => GgufArray::I64(self.list(8, what, Self::i64)?),
            12 => GgufArray::F64(self.list(8, what, Self::f64)?),
            _ => return Err(format!("{what} is an array of the unknown type {ty}")),
        })
    }

    /// An array of elements of at least `bytes_min` bytes each. The count has been checked against the rest of the file before
    /// the vector is made; it is not reserved at once, so that what is allocated follows what has been read.
    fn list<T>(
        &mut self,
        bytes_min: usize,
        what: &str,
        mut read: impl FnMut(&mut Self, &str) -> Result<T, String>,
    ) -> Result<Vec<T>, String> {
        let count = self.count(what, bytes_min)?;
        let mut list = Vec::new();
        for _ in 0..count {
            list.push(read(self, what)?);
        }
        Ok(list)
    }

    fn strings(&mut self, what: &str) -> Result<Strings, String> {
        let count = self.count(what, 8)?;
        let mut strings = Strings::default();
        for _ in 0..count {
            strings.push(self.str(what, usize::MAX)?);
        }
        Ok(strings)
    }

    /// One tensor's description; `start` is still relative to the data section.
    fn tensor(&mut self, index: usize, alignment: u64) -> Result<GgufTensor, HeaderError> {
        let name = self.string(&format!("the name of tensor {index}"), KEY_BYTES_MAX)?;
        let what = format!("tensor `{name}`");
        let rank = self.u32(&what)?;
        if rank == 0 || rank > RANK_MAX {
            return Err(format!("{what} has {rank} dimensions; 1 to {RANK_MAX} are possible").into());
        }
        let mut shape = Vec::new();
        for _ in 0..rank {
            let d = self.u64(&what)?;
            match usize::try_from(d) {
                Ok(d) if d > 0 => shape.push(d),
                _ => return Err(format!("{what} has a dimension of size {d}").into()),
            }
        }
        shape.reverse();
        let number = self.u32(&what)?;
        let ty = TypeInfo::from_ggml(number).map_err(|found| HeaderError::UnknownType { name: name.clone(), found })?;
        let start = self.u64(&what)?;
        if start % alignment != 0 {
            return Err(
                format!("{what} begins at offset {start}, which is no multiple of the alignment {alignment}").into()
            );
        }
        let cols = shape.last().copied().unwrap_or(1);
        let rows = shape[..shape.len() - 1].iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let len = rows.and_then(|rows| ty.tensor_bytes(rows, cols)).ok_or_else(|| {
            format!("{what} of shape {shape:?} is too large, or its rows are no whole {} blocks", ty.name)
        })?;
        let start = usize::try_from(start).map_err(|_| format!("{what} begins at offset {start}: too far"))?;
        Ok(GgufTensor { name, shape, ty, start, len })
    }
}
