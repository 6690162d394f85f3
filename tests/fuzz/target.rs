//! What is fuzzed.

use highwater_sim::rng::Rng;

use crate::{checkpoint, journal, segment, stream, swim};

/// A decoder with its oracle. To fuzz another one, write one of these and name it in [`targets`].
pub trait Target {
    /// Of the folder of its corpus, too.
    fn name(&self) -> &'static str;

    /// The files of the corpus, with their names.
    fn generate(&self) -> Vec<(&'static str, Vec<u8>)>;

    /// Makes the CRCs in a damaged file right again, as far as its structure can still be made out.
    fn seal(&self, bytes: &mut [u8]);

    /// `bytes` are what became of `good`: nothing may be read from them that is not in `good`.
    fn damaged(&self, rng: &mut Rng, good: &[u8], bytes: &[u8]) -> Result<(), String>;

    /// `bytes` may be a lie under right CRCs: what is read must be sound in itself.
    fn hostile(&self, rng: &mut Rng, bytes: &[u8]) -> Result<(), String>;
}

pub fn targets() -> Vec<Box<dyn Target>> {
    vec![
        Box::new(journal::Recovered),
        Box::new(segment::Scanned),
        Box::new(segment::Indexed),
        Box::new(checkpoint::Parsed),
        Box::new(swim::Received),
        Box::new(stream::Spoken),
    ]
}

/// `Err` with a reason unless it holds.
pub fn hold(holds: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why()) }
}

/// Puts the right CRC-32C at `at` into `bytes`, with `before` in its place while it is computed; says the CRC.
pub fn put_crc(bytes: &mut [u8], at: usize, before: [u8; 4]) -> [u8; 4] {
    bytes[at..at + 4].copy_from_slice(&before);
    let crc = crc_fast::crc32_iscsi(bytes).to_be_bytes();
    bytes[at..at + 4].copy_from_slice(&crc);
    crc
}

/// The big-endian number at `at`, 0 where there is none.
pub fn u32_at(bytes: &[u8], at: usize) -> usize {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]) as usize)
}
