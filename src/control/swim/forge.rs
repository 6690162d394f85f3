//! What a key holder could do to datagrams, for those who test a [`Membership`] from outside.
//!
//! Control core, pure. Production code has no use for it.

use super::Membership;
use super::auth::{FRAME_BYTES, TO_ANY};
use super::keyring::{Keyring, TAG_BYTES};
use super::member::Id;
use super::wire;

/// Makes the tag of a datagram to this member right again, whatever else stands in it, under the key in use. One that
/// is too short for a tag stays as it is.
pub fn reseal(keys: &Keyring, to: &Membership, datagram: &mut [u8]) {
    if datagram.len() <= FRAME_BYTES {
        return;
    }
    datagram[1] = keys.primary();
    let (id, boot) = if datagram[0] == TO_ANY { (Id::NOBODY, 0) } else { (to.id, to.boot) };
    let (sealed, tag) = datagram.split_at_mut(datagram.len() - TAG_BYTES);
    tag.copy_from_slice(&keys.tag(id.0, boot, sealed));
}

/// How many news the body of a datagram holds; `None` when it cannot be read to its end.
pub fn news_in(datagram: &[u8]) -> Option<usize> {
    let body = datagram.get(FRAME_BYTES - TAG_BYTES..datagram.len().checked_sub(TAG_BYTES)?)?;
    let (_, news) = wire::read(body).ok()?;
    let mut count = 0;
    for item in news {
        item.ok()?;
        count += 1;
    }
    Some(count)
}
