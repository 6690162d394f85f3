//! The envelope around every stored body, so that damage and bodies of another kind or version are noticed.
//!
//! Pure. Bytes, little endian:
//!
//! | at | size | what |
//! |---|---|---|
//! | 0 | 2 | magic, 0x4857 |
//! | 2 | 2 | kind: what the body is |
//! | 4 | 2 | schema: the version of the kind; a new field is a new schema |
//! | 6 | 2 | flags, 0 |
//! | 8 | 4 | length of the body |
//! | 12 | 4 | CRC-32C of bytes 0..12 and the body |
//! | 16 | | body, in postcard's encoding |

use crc_fast::{CrcAlgorithm, Digest};
use serde::Serialize;
use serde::de::DeserializeOwned;

const MAGIC: u16 = 0x4857;
const HEADER_LEN: usize = 16;

/// A kind of body in its current version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Schema {
    /// As messages call it.
    pub name: &'static str,
    pub kind: u16,
    pub schema: u16,
}

/// Why stored bytes cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnvelopeError {
    #[error("{what}: {len} bytes are too few for an envelope")]
    TooShort { what: &'static str, len: usize },
    #[error("{what}: not an envelope of Highwater")]
    Magic { what: &'static str },
    #[error("{what}: holds something else (kind {found})")]
    Kind { what: &'static str, found: u16 },
    #[error("{what}: written by a newer version of Highwater (schema {found}, this one reads up to {known})")]
    Newer { what: &'static str, found: u16, known: u16 },
    #[error("{what}: damaged (the checksum or the length does not match)")]
    Damaged { what: &'static str },
    #[error("{what}: the body cannot be read: {error}")]
    Body { what: &'static str, error: String },
}

/// Puts `body` in an envelope.
pub fn seal<T: Serialize>(schema: Schema, body: &T) -> Vec<u8> {
    let bytes = vec![0; HEADER_LEN];
    let mut bytes =
        postcard::to_extend(body, bytes).expect("stored types have lengths and plain values only");
    let len = u32::try_from(bytes.len() - HEADER_LEN).expect("bodies are bounded far below 4 GiB");
    bytes[0..2].copy_from_slice(&MAGIC.to_le_bytes());
    bytes[2..4].copy_from_slice(&schema.kind.to_le_bytes());
    bytes[4..6].copy_from_slice(&schema.schema.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    let crc = checksum(&bytes);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Takes a body out of its envelope. All of the bytes must be used.
pub fn open<T: DeserializeOwned>(schema: Schema, bytes: &[u8]) -> Result<T, EnvelopeError> {
    let what = schema.name;
    match check(schema, bytes)? {
        (found, body) if found == schema.schema => read(what, body),
        (found, _) => Err(EnvelopeError::Newer { what, found, known: schema.schema }),
    }
}

/// As [`open`], for a kind that has an older schema, from whose body `upgrade` makes one of today.
pub fn open_or_upgrade<T: DeserializeOwned, Old: DeserializeOwned>(
    schema: Schema,
    old: u16,
    upgrade: impl FnOnce(Old) -> T,
    bytes: &[u8],
) -> Result<T, EnvelopeError> {
    let what = schema.name;
    match check(schema, bytes)? {
        (found, body) if found == schema.schema => read(what, body),
        (found, body) if found == old => read(what, body).map(upgrade),
        (found, _) => Err(EnvelopeError::Newer { what, found, known: schema.schema }),
    }
}

/// The schema and the body, once the envelope is known to be whole and of this kind.
fn check(schema: Schema, bytes: &[u8]) -> Result<(u16, &[u8]), EnvelopeError> {
    let what = schema.name;
    let Some((header, body)) = bytes.split_at_checked(HEADER_LEN) else {
        return Err(EnvelopeError::TooShort { what, len: bytes.len() });
    };
    let u16_at = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let u32_at = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if u16_at(0) != MAGIC {
        return Err(EnvelopeError::Magic { what });
    }
    if usize::try_from(u32_at(8)) != Ok(body.len()) || u32_at(12) != checksum(bytes) {
        return Err(EnvelopeError::Damaged { what });
    }
    if u16_at(2) != schema.kind {
        return Err(EnvelopeError::Kind { what, found: u16_at(2) });
    }
    Ok((u16_at(4), body))
}

fn read<T: DeserializeOwned>(what: &'static str, body: &[u8]) -> Result<T, EnvelopeError> {
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(EnvelopeError::Body { what, error: format!("{} bytes too many", rest.len()) }),
        Err(error) => Err(EnvelopeError::Body { what, error: error.to_string() }),
    }
}

fn checksum(bytes: &[u8]) -> u32 {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    digest.update(&bytes[..12]);
    digest.update(&bytes[HEADER_LEN..]);
    u32::try_from(digest.finalize()).expect("a CRC-32 has 32 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    const THING: Schema = Schema { name: "thing", kind: 7, schema: 1 };

    #[test]
    fn a_body_comes_back_from_its_envelope() {
        let body = (5u64, "text".to_owned());
        let bytes = seal(THING, &body);
        assert_eq!(open::<(u64, String)>(THING, &bytes), Ok(body));
        assert_eq!(bytes[..8], [0x57, 0x48, 7, 0, 1, 0, 0, 0]);
    }

    #[test]
    fn any_changed_bit_and_any_cut_is_noticed() {
        let bytes = seal(THING, &(5u64, "text".to_owned()));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(open::<(u64, String)>(THING, &bad).is_err(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(open::<(u64, String)>(THING, &bytes[..len]).is_err(), "length {len}");
        }
    }

    #[test]
    fn another_kind_or_a_newer_schema_is_refused_by_name() {
        let bytes = seal(Schema { kind: 8, ..THING }, &1u64);
        assert_eq!(open::<u64>(THING, &bytes), Err(EnvelopeError::Kind { what: "thing", found: 8 }));
        let bytes = seal(Schema { schema: 2, ..THING }, &1u64);
        let newer = EnvelopeError::Newer { what: "thing", found: 2, known: 1 };
        assert_eq!(open::<u64>(THING, &bytes), Err(newer));
        let bytes = seal(THING, &(1u64, 2u64));
        assert!(matches!(open::<u64>(THING, &bytes), Err(EnvelopeError::Body { .. })));
    }
}
