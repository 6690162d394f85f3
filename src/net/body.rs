//! The envelope around every body that nodes send each other: the one of stored bodies, so that a body of another kind or
//! version is noticed and never misread. One frozen type for each (kind, schema); a new field is a new schema, and who
//! reads decodes the older ones too. Which schemas a peer reads follows from the cluster's feature level; what it speaks
//! below that stands in its hello ([`super::auth::PeerIdentity::version`]).
//!
//! Pure. The connection does not look into bodies.

pub use crate::control::metadata::envelope::{EnvelopeError, Schema, open, seal};

/// Calls of Raft.
pub const RAFT: std::ops::Range<u16> = 0x0100..0x0200;
/// Forming a cluster and joining it.
pub const FORMING: std::ops::Range<u16> = 0x0200..0x0300;
/// Proposals and administration.
pub const ADMIN: std::ops::Range<u16> = 0x0300..0x0400;

/// The schema of a body, for those who read several. Proves nothing: [`open`] checks.
pub fn schema_of(body: &[u8]) -> Option<u16> {
    let (_, rest) = body.split_first_chunk::<4>()?;
    rest.first_chunk().map(|schema| u16::from_le_bytes(*schema))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_says_its_schema_before_it_is_opened() {
        let schema = Schema { name: "vote", kind: RAFT.start, schema: 3 };
        let body = seal(schema, &7u64);
        assert_eq!(schema_of(&body), Some(3));
        assert_eq!(open::<u64>(schema, &body), Ok(7));
        assert_eq!(schema_of(&body[..5]), None);
    }
}
