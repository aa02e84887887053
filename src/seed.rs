//! Random streams that are a function of where they are used, never of who ran before, and the one hash that names and
//! fingerprints are made with.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// The random stream of a seed and a place (epoch, index, purpose ...): equal arguments give equal streams, so
/// thread count, order and resuming never change a result.
pub fn stream(seed: u64, place: &[u64]) -> ChaCha8Rng {
    let mut state = splitmix64(seed ^ 0x6d71_6174);
    for &p in place {
        state = splitmix64(state ^ splitmix64(p));
    }
    ChaCha8Rng::seed_from_u64(state)
}

/// One step of the SplitMix64 generator (Steele, Lea, Flood 2014): a bijective mix of 64 bits.
pub fn splitmix64(x: u64) -> u64 {
    let z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// 64-bit FNV-1a (Fowler, Noll, Vo): the same in every version of the program, of Rust and on every machine. Initial
/// values depend on it, and checkpoints and folders of trials hold it. No protection against forgery.
pub fn fnv1a(bytes: &[u8]) -> u64 {
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    bytes.iter().fold(BASIS, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    #[test]
    fn the_hash_is_the_published_one() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn a_stream_depends_on_every_part_of_its_place() {
        let draw = |seed, place: &[u64]| stream(seed, place).random::<u64>();
        assert_eq!(draw(1, &[2, 3]), draw(1, &[2, 3]));
        let others = [draw(2, &[2, 3]), draw(1, &[3, 2]), draw(1, &[2]), draw(1, &[2, 3, 0])];
        assert!(others.iter().all(|&o| o != draw(1, &[2, 3])));
    }
}
