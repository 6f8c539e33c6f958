//! Where the bits of a group's quants are, among its lines: what packing and the scalar reference work from, and the other instruction sets
//! have written out.

/// Some bits of each value of a step: bits `to..` of the value are bits `at..` of the bytes of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub step: usize,
    pub line: usize,
    /// The first of the bits in a byte of the line.
    pub at: usize,
    /// How many.
    pub bits: usize,
    /// Which bit of the value it is.
    pub to: usize,
}

impl Piece {
    const fn new(step: usize, line: usize, at: usize, bits: usize, to: usize) -> Piece {
        Piece { step, line, at, bits, to }
    }

    /// Its bits, from bit 0 of each byte of a word.
    pub fn mask(self) -> u32 {
        0x0101_0101 * ((1 << self.bits) - 1)
    }
}

/// Half of the steps in the low nibbles of four lines, the others in the high ones.
pub const FOUR_BITS: &[Piece] = &[
    Piece::new(0, 0, 0, 4, 0),
    Piece::new(1, 1, 0, 4, 0),
    Piece::new(2, 2, 0, 4, 0),
    Piece::new(3, 3, 0, 4, 0),
    Piece::new(4, 0, 4, 4, 0),
    Piece::new(5, 1, 4, 4, 0),
    Piece::new(6, 2, 4, 4, 0),
    Piece::new(7, 3, 4, 4, 0),
];

/// Five steps in the low bits of five lines. Of the 15 bits above them two steps take 3 of one line and 2 of the next, and the last one 3 of
/// the last line and the 2 that are left over.
pub const FIVE_BITS: &[Piece] = &[
    Piece::new(0, 0, 0, 5, 0),
    Piece::new(1, 1, 0, 5, 0),
    Piece::new(2, 2, 0, 5, 0),
    Piece::new(3, 3, 0, 5, 0),
    Piece::new(4, 4, 0, 5, 0),
    Piece::new(5, 0, 5, 3, 0),
    Piece::new(5, 1, 5, 2, 3),
    Piece::new(6, 2, 5, 3, 0),
    Piece::new(6, 3, 5, 2, 3),
    Piece::new(7, 4, 5, 3, 0),
    Piece::new(7, 1, 7, 1, 3),
    Piece::new(7, 3, 7, 1, 4),
];

/// Three steps of each half of a group in the low bits of three lines, the fourth above them.
pub const SIX_BITS: &[Piece] = &[
    Piece::new(0, 0, 0, 6, 0),
    Piece::new(1, 1, 0, 6, 0),
    Piece::new(2, 2, 0, 6, 0),
    Piece::new(3, 0, 6, 2, 0),
    Piece::new(3, 1, 6, 2, 2),
    Piece::new(3, 2, 6, 2, 4),
    Piece::new(4, 3, 0, 6, 0),
    Piece::new(5, 4, 0, 6, 0),
    Piece::new(6, 5, 0, 6, 0),
    Piece::new(7, 3, 6, 2, 0),
    Piece::new(7, 4, 6, 2, 2),
    Piece::new(7, 5, 6, 2, 4),
];

/// A line for each step.
pub const EIGHT_BITS: &[Piece] = &[
    Piece::new(0, 0, 0, 8, 0),
    Piece::new(1, 1, 0, 8, 0),
    Piece::new(2, 2, 0, 8, 0),
    Piece::new(3, 3, 0, 8, 0),
    Piece::new(4, 4, 0, 8, 0),
    Piece::new(5, 5, 0, 8, 0),
    Piece::new(6, 6, 0, 8, 0),
    Piece::new(7, 7, 0, 8, 0),
];
