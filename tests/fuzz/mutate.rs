//! What can become of a file.

use highwater_sim::rng::Rng;

/// No file grows beyond this.
const BYTES_MAX: usize = 1 << 20;
/// What a disk writes or loses at once.
const SECTORS: [usize; 2] = [512, 4096];

/// Damages `bytes` in one to six places; `other` is another file of the kind.
pub fn mutate(rng: &mut Rng, bytes: &mut Vec<u8>, other: &[u8]) {
    // Mostly one: the more there are, the sooner the first of them ends the reading.
    let times = if rng.chance(600) { 1 } else { 2 + rng.below(5) };
    for _ in 0..times {
        one(rng, bytes, other);
        bytes.truncate(BYTES_MAX);
    }
}

fn one(rng: &mut Rng, bytes: &mut Vec<u8>, other: &[u8]) {
    if bytes.is_empty() {
        bytes.push(rng.draw() as u8);
        return;
    }
    let at = rng.index(bytes.len());
    match rng.below(12) {
        0..=2 => bytes[at] ^= 1 << rng.below(8),
        3 => bytes[at] = rng.draw() as u8,
        4 => overwrite_number(rng, bytes, at),
        5 => bytes.truncate(at),
        6 => {
            let len = rng.index(200);
            bytes.resize(bytes.len() + len, if rng.flip() { 0 } else { rng.draw() as u8 });
        }
        7 => {
            let range = range(rng, bytes.len());
            bytes.drain(range);
        }
        8 => {
            let range = range(rng, bytes.len());
            let copy = bytes[range].to_vec();
            bytes.splice(at..at, copy);
        }
        9 => {
            // A write that was lost, or one that went to another place.
            let sector = *rng.pick(&SECTORS);
            let from = at / sector * sector;
            let upto = (from + sector).min(bytes.len());
            let source = other.get(from..upto).filter(|_| rng.flip());
            match source {
                Some(source) => bytes[from..upto].copy_from_slice(source),
                None => bytes[from..upto].fill(0),
            }
        }
        10 => {
            let range = range(rng, other.len());
            let source = &other[range];
            let upto = (at + source.len()).min(bytes.len());
            bytes[at..upto].copy_from_slice(&source[..upto - at]);
        }
        _ => {
            let cut = at.min(other.len());
            bytes.truncate(cut);
            bytes.extend_from_slice(&other[cut..]);
        }
    }
}

/// A number of a kind that breaks things.
fn overwrite_number(rng: &mut Rng, bytes: &mut [u8], at: usize) {
    let odd =
        [0, 1, 7, 8, 20, 61, 127, 128, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, u64::MAX, i64::MAX as u64];
    let value = if rng.flip() { *rng.pick(&odd) } else { rng.draw() >> rng.below(64) };
    let value = value.to_be_bytes();
    let len = *rng.pick(&[1, 2, 4, 8]);
    let upto = (at + len).min(bytes.len());
    bytes[at..upto].copy_from_slice(&value[8 - (upto - at)..]);
}

fn range(rng: &mut Rng, len: usize) -> std::ops::Range<usize> {
    let a = rng.index(len.max(1));
    let b = if rng.flip() { a + rng.index(40) } else { rng.index(len + 1) };
    let (a, b) = (a.min(b).min(len), a.max(b).min(len));
    a..b
}
