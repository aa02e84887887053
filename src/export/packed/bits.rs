//! Codes of 1 to 8 bits side by side without gaps, and ternary codes five to a byte.
//!
//! Both work on groups that begin at whole bytes, many groups to a thread.

use anyhow::{Result, ensure};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Codes that one thread takes at a time: a multiple of 8 and of 5.
const CODES_PER_TASK: usize = 40 << 10;
/// Codes in a byte of base 3.
const TRITS: usize = 5;
/// Values of a byte of base 3.
const NUM_BYTES_BASE3: usize = 243;

/// How codes lie in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Coding {
    /// So many bits each, 1 to 8, across the borders of bytes.
    Bits(u32),
    /// Codes 0, 1 and 2, five to a byte: 1.6 bits each.
    Base3,
}

impl Coding {
    /// Bytes that `num_codes` codes take; `None` when that is not a size, or the width is not 1 to 8.
    pub fn num_bytes(self, num_codes: usize) -> Option<usize> {
        match self {
            Self::Bits(bits @ 1..=8) => {
                let bits = bits as usize;
                // whole groups of 8 codes first: the number of bits may overflow where the bytes do not
                let whole = (num_codes / 8).checked_mul(bits)?;
                whole.checked_add((num_codes % 8 * bits).div_ceil(8))
            }
            Self::Bits(_) => None,
            Self::Base3 => Some(num_codes.div_ceil(TRITS)),
        }
    }

    /// Codes that can be written: those below this number.
    pub fn num_values(self) -> u32 {
        match self {
            Self::Bits(bits) => 1 << bits.min(8),
            Self::Base3 => 3,
        }
    }

    /// Bits of one code, on average.
    pub fn bits(self) -> f64 {
        match self {
            Self::Bits(bits) => f64::from(bits),
            Self::Base3 => 1.6,
        }
    }
}

/// Packs codes.
///
/// # Errors
/// If a code is too large for the coding, or its width is not 1 to 8.
pub fn pack(codes: &[u8], coding: Coding) -> Result<Vec<u8>> {
    let num_bytes = coding.num_bytes(codes.len());
    let Some(num_bytes) = num_bytes else {
        anyhow::bail!("{coding:?} is not a width of 1 to 8 bits")
    };
    let most = largest(codes);
    ensure!(
        u32::from(most) < coding.num_values(),
        "code {most} does not fit {coding:?}, which has {} values",
        coding.num_values()
    );
    let mut bytes = vec![0; num_bytes];
    let (task_bytes, task): (usize, Conversion) = match coding {
        Coding::Bits(bits) => (CODES_PER_TASK / 8 * bits as usize, BIT_PACKERS[bits as usize - 1]),
        Coding::Base3 => (CODES_PER_TASK / TRITS, pack_base3),
    };
    bytes
        .par_chunks_mut(task_bytes)
        .zip(codes.par_chunks(CODES_PER_TASK))
        .for_each(|(bytes, codes)| task(codes, bytes));
    Ok(bytes)
}

/// Undoes [`pack`]: `num_codes` codes, each below [`Coding::num_values`].
///
/// # Errors
/// If there are not just the bytes that many codes take, or what is left over in the last byte is not 0.
pub fn unpack(bytes: &[u8], coding: Coding, num_codes: usize) -> Result<Vec<u8>> {
    let expected = coding.num_bytes(num_codes);
    ensure!(
        expected == Some(bytes.len()),
        "{num_codes} codes as {coding:?} do not take {} bytes",
        bytes.len()
    );
    let (task_bytes, task): (usize, Conversion) = match coding {
        Coding::Bits(bits) => {
            (CODES_PER_TASK / 8 * bits as usize, BIT_UNPACKERS[bits as usize - 1])
        }
        Coding::Base3 => {
            let most = largest(bytes);
            ensure!(
                usize::from(most) < NUM_BYTES_BASE3,
                "a byte of five ternary codes is {most}, expected below {NUM_BYTES_BASE3}"
            );
            (CODES_PER_TASK / TRITS, unpack_base3)
        }
    };
    let mut codes = vec![0; num_codes];
    codes
        .par_chunks_mut(CODES_PER_TASK)
        .zip(bytes.par_chunks(task_bytes))
        .for_each(|(codes, bytes)| task(bytes, codes));
    ensure!(rest_is_zero(bytes, coding, num_codes), "the last byte of the codes has stray bits");
    Ok(codes)
}

/// The largest code; 0 when there is none.
pub(super) fn largest(codes: &[u8]) -> u8 {
    let parts = codes.par_chunks(CODES_PER_TASK);
    parts.map(|part| part.iter().fold(0, |most, &c| c.max(most))).max().unwrap_or(0)
}

fn rest_is_zero(bytes: &[u8], coding: Coding, num_codes: usize) -> bool {
    let Some(&last) = bytes.last() else { return true };
    match coding {
        Coding::Bits(bits) => {
            let used = num_codes % 8 * bits as usize % 8;
            used == 0 || last >> used == 0
        }
        Coding::Base3 => {
            let used = num_codes % TRITS;
            used == 0 || usize::from(last) < 3_usize.pow(used as u32)
        }
    }
}

/// From the bytes of one form to those of the other.
type Conversion = fn(&[u8], &mut [u8]);

const BIT_PACKERS: [Conversion; 8] = [
    pack_bits::<1>,
    pack_bits::<2>,
    pack_bits::<3>,
    pack_bits::<4>,
    pack_bits::<5>,
    pack_bits::<6>,
    pack_bits::<7>,
    pack_bits::<8>,
];

const BIT_UNPACKERS: [Conversion; 8] = [
    unpack_bits::<1>,
    unpack_bits::<2>,
    unpack_bits::<3>,
    unpack_bits::<4>,
    unpack_bits::<5>,
    unpack_bits::<6>,
    unpack_bits::<7>,
    unpack_bits::<8>,
];

/// Eight codes of B bits are B bytes: one 64-bit word, whatever the machine's byte order.
fn pack_bits<const B: usize>(codes: &[u8], bytes: &mut [u8]) {
    let join = |group: &[u8]| {
        let shifted = group.iter().enumerate().map(|(i, &code)| u64::from(code) << (i * B));
        shifted.fold(0, |word, code| word | code).to_le_bytes()
    };
    let num_groups = codes.len() / 8;
    let (groups, last) = codes.split_at(num_groups * 8);
    let (places, last_place) = bytes.split_at_mut(num_groups * B);
    for (group, place) in groups.chunks_exact(8).zip(places.chunks_exact_mut(B)) {
        place.copy_from_slice(&join(group)[..B]);
    }
    let num_bytes = last_place.len();
    last_place.copy_from_slice(&join(last)[..num_bytes]);
}

fn unpack_bits<const B: usize>(bytes: &[u8], codes: &mut [u8]) {
    let mask = ((1_u16 << B) - 1) as u8;
    let split = |place: &[u8], group: &mut [u8]| {
        let mut word = [0; 8];
        word[..place.len()].copy_from_slice(place);
        let word = u64::from_le_bytes(word);
        for (i, code) in group.iter_mut().enumerate() {
            *code = (word >> (i * B)) as u8 & mask;
        }
    };
    let num_groups = codes.len() / 8;
    let (groups, last) = codes.split_at_mut(num_groups * 8);
    let (places, last_place) = bytes.split_at(num_groups * B);
    for (group, place) in groups.chunks_exact_mut(8).zip(places.chunks_exact(B)) {
        split(place, group);
    }
    split(last_place, last);
}

fn pack_base3(codes: &[u8], bytes: &mut [u8]) {
    for (group, byte) in codes.chunks(TRITS).zip(bytes) {
        *byte = group.iter().rev().fold(0, |sum, &code| sum * 3 + code);
    }
}

/// The five codes of each byte.
static TRITS_OF: [[u8; TRITS]; NUM_BYTES_BASE3] = trits_of();

const fn trits_of() -> [[u8; TRITS]; NUM_BYTES_BASE3] {
    let mut table = [[0; TRITS]; NUM_BYTES_BASE3];
    let mut byte = 0;
    while byte < NUM_BYTES_BASE3 {
        let (mut i, mut rest) = (0, byte);
        while i < TRITS {
            table[byte][i] = (rest % 3) as u8;
            rest /= 3;
            i += 1;
        }
        byte += 1;
    }
    table
}

fn unpack_base3(bytes: &[u8], codes: &mut [u8]) {
    for (group, &byte) in codes.chunks_mut(TRITS).zip(bytes) {
        group.copy_from_slice(&TRITS_OF[usize::from(byte)][..group.len()]);
    }
}

#[cfg(test)]
mod tests {
    use rand::Rng;

    use super::*;
    use crate::seed;

    fn codes(num: usize, below: u32) -> Vec<u8> {
        let mut rng = seed::stream(num as u64, &[u64::from(below)]);
        (0..num).map(|_| rng.random_range(0..below) as u8).collect()
    }

    fn codings() -> impl Iterator<Item = Coding> {
        (1..=8).map(Coding::Bits).chain([Coding::Base3])
    }

    #[test]
    fn every_width_and_length_comes_back() {
        let lengths = (0..=67).chain([1000, CODES_PER_TASK - 1, CODES_PER_TASK, 100_003]);
        for num in lengths {
            for coding in codings() {
                let codes = codes(num, coding.num_values());
                let bytes = pack(&codes, coding).unwrap();
                assert_eq!(bytes.len(), coding.num_bytes(num).unwrap());
                assert_eq!(bytes.len(), (num as f64 * coding.bits() / 8.0).ceil() as usize);
                assert_eq!(unpack(&bytes, coding, num).unwrap(), codes, "{coding:?} {num}");
            }
        }
    }

    #[test]
    fn bits_begin_with_the_lowest_of_the_first_byte() {
        // 3 bits: 1, 2, 7 | 5 -> 0b11_010_001, then the third bit of 7 and 5 = 0b101 above it
        assert_eq!(pack(&[1, 2, 7, 5], Coding::Bits(3)).unwrap(), [0b1101_0001, 0b0000_1011]);
        assert_eq!(pack(&[1, 0, 1], Coding::Bits(1)).unwrap(), [0b101]);
        assert_eq!(pack(&[2, 1, 0, 0, 1, 2], Coding::Base3).unwrap(), [2 + 3 + 81, 2]);
    }

    #[test]
    fn codes_that_do_not_fit_and_stray_bits_are_refused() {
        for coding in codings().filter(|c| *c != Coding::Bits(8)) {
            let text = pack(&[0, coding.num_values() as u8], coding).unwrap_err().to_string();
            assert!(text.contains("does not fit"), "{text}");
        }
        assert!(pack(&[0], Coding::Bits(9)).is_err() && pack(&[0], Coding::Bits(0)).is_err());
        assert!(unpack(&[0b1000], Coding::Bits(3), 1).unwrap_err().to_string().contains("stray"));
        assert!(unpack(&[3], Coding::Base3, 1).unwrap_err().to_string().contains("stray"));
        assert!(unpack(&[243], Coding::Base3, 5).unwrap_err().to_string().contains("243"));
        for num in [7, 11] {
            assert!(unpack(&[0, 0], Coding::Bits(2), num + 10).is_err());
        }
        assert_eq!(Coding::Bits(8).num_bytes(usize::MAX), Some(usize::MAX));
        assert_eq!(Coding::Bits(9).num_bytes(1), None);
    }
}
