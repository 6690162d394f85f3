//! The frame of every datagram: who sent it, to whom, its number, and the tag that proves all of that.
//!
//! Control core, pure.
//!
//! | bytes | |
//! |---|---|
//! | 1 | version and addressing: `0x11` to one boot of one member, `0x12` to whoever listens (joins only) |
//! | 1 | key |
//! | 8 | sender's id |
//! | 8 | sender's boot |
//! | 8 | number among the sender's datagrams to this boot of the receiver |
//! | ... | body |
//! | 16 | HMAC-SHA256 of cluster, receiver's id and boot (neither is sent), and all bytes before |
//!
//! Numbers are little endian.

use super::keyring::{Keyring, TAG_BYTES};
use super::member::Id;

pub(super) const HEADER_BYTES: usize = 26;
/// What a datagram has beside its body.
pub(super) const FRAME_BYTES: usize = HEADER_BYTES + TAG_BYTES;

const TO_ONE: u8 = 0x11;
pub(super) const TO_ANY: u8 = 0x12;

/// Why a datagram was not taken in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[non_exhaustive]
pub enum Reject {
    /// Too short or too long.
    Size,
    Version,
    /// Sealed with a key that is not installed.
    Key,
    /// Not authentic, from another cluster, or for another member or boot.
    Tag,
    /// It came before, or is too old to tell.
    Replay,
    /// From a life of a member that has not proven itself.
    UnknownBoot,
    /// Authentic, and still not understood.
    Malformed,
    /// A challenge or an echo that nobody waits for.
    Unasked,
    /// An indirect probe beyond the bounds, or from or for a stranger.
    Relay,
}

pub(super) const REJECTS: usize = Reject::ALL.len();

impl Reject {
    pub const ALL: [Self; 9] = [
        Self::Size,
        Self::Version,
        Self::Key,
        Self::Tag,
        Self::Replay,
        Self::UnknownBoot,
        Self::Malformed,
        Self::Unasked,
        Self::Relay,
    ];
}

/// An authentic datagram.
#[derive(Debug)]
pub(super) struct Opened<'a> {
    pub from: Id,
    pub from_boot: u64,
    pub number: u64,
    pub to_any: bool,
    pub body: &'a [u8],
}

/// Checks in this order: size, version, key, tag. At most one MAC is computed.
pub(super) fn open<'a>(
    keys: &mut Keyring,
    own: Id,
    own_boot: u64,
    bytes_max: usize,
    datagram: &'a [u8],
) -> Result<Opened<'a>, Reject> {
    if datagram.len() <= FRAME_BYTES || datagram.len() > bytes_max {
        return Err(Reject::Size);
    }
    let to_any = match datagram[0] {
        TO_ONE => false,
        TO_ANY => true,
        _ => return Err(Reject::Version),
    };
    let key = keys.find(datagram[1]).ok_or(Reject::Key)?;
    let (sealed, tag) = datagram.split_at(datagram.len() - TAG_BYTES);
    let (to, to_boot) = if to_any { (Id::NOBODY, 0) } else { (own, own_boot) };
    if !keys.verify(key, to.0, to_boot, sealed, tag) {
        return Err(Reject::Tag);
    }
    let number = |at: usize| {
        u64::from_le_bytes(
            sealed[at..at + 8].try_into().expect("the length was checked: the header is whole"),
        )
    };
    Ok(Opened {
        from: Id(number(2)),
        from_boot: number(10),
        number: number(18),
        to_any,
        body: &sealed[HEADER_BYTES..],
    })
}

/// Where a datagram goes, for its tag.
#[derive(Clone, Copy, Debug)]
pub(super) enum To {
    One { id: Id, boot: u64, number: u64 },
    Any,
}

/// Room for the header, before the body is written.
pub(super) fn begin(datagram: &mut Vec<u8>) {
    datagram.clear();
    datagram.resize(HEADER_BYTES, 0);
}

/// Fills in the header and adds the tag.
pub(super) fn seal(keys: &Keyring, own: Id, own_boot: u64, to: To, datagram: &mut Vec<u8>) {
    let (version, to, to_boot, number) = match to {
        To::One { id, boot, number } => (TO_ONE, id, boot, number),
        To::Any => (TO_ANY, Id::NOBODY, 0, 0),
    };
    datagram[0] = version;
    datagram[1] = keys.primary();
    datagram[2..10].copy_from_slice(&own.0.to_le_bytes());
    datagram[10..18].copy_from_slice(&own_boot.to_le_bytes());
    datagram[18..26].copy_from_slice(&number.to_le_bytes());
    let tag = keys.tag(to.0, to_boot, datagram);
    datagram.extend_from_slice(&tag);
}

/// Which numbers of a peer's datagrams have come: the highest one and the 128 up to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Window {
    highest: u64,
    /// Bit `n`: the number `highest - n` has come.
    seen: u128,
}

impl Window {
    /// Everything up to this number counts as having come.
    pub(super) fn from(number: u64) -> Self {
        Self { highest: number, seen: u128::MAX }
    }

    /// Whether this number comes for the first time; from then on it does not.
    pub(super) fn accept(&mut self, number: u64) -> bool {
        if number > self.highest {
            let ahead = number - self.highest;
            self.seen = if ahead < 128 { self.seen << ahead | 1 } else { 1 };
            self.highest = number;
            return true;
        }
        let behind = self.highest - number;
        if number == 0 || behind >= 128 || self.seen >> behind & 1 == 1 {
            return false;
        }
        self.seen |= 1 << behind;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_takes_every_number_once_in_any_order_within_128() {
        let mut window = Window::default();
        for number in [1, 5, 3, 4, 2, 130, 129, 6] {
            assert!(window.accept(number), "{number}");
            assert!(!window.accept(number), "{number} again");
        }
        assert!(!window.accept(2), "too old to tell");
        assert!(!window.accept(0));
        assert!(window.accept(u64::MAX) && !window.accept(u64::MAX) && window.accept(u64::MAX - 127));
        let mut window = Window::from(9);
        assert!(!window.accept(9) && !window.accept(3) && window.accept(10));
    }
}
