//! The keys of one connection, and the tag at the end of each of its frames.
//!
//! Pure. A tag is the first [`TAG_LEN`] bytes of HMAC-SHA256 over the frame's number (8 bytes, little endian, counted from
//! 0 in each direction) and its bytes. So a frame that was changed, left out, repeated or moved does not pass, and nor
//! does one of another connection or of the other direction.

use hmac::{Hmac, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::{EXTRACT, HELLO_LEN, KEY_OF_ACCEPTOR, KEY_OF_DIALER, Label, Secret, keyed};

pub const TAG_LEN: usize = 16;

/// The key of one direction and the number of its next frame. Wiped when it is dropped; it can be neither copied nor
/// printed.
pub struct FrameKey {
    keyed: Box<Hmac<Sha256>>,
    next: u64,
}

/// A frame is not what its sender made, or not the next one: the connection is worth nothing any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a frame was changed on its way, or is out of order")]
pub struct BadTag;

impl FrameKey {
    /// The tag of the next frame to be sent, with these bytes.
    pub fn sign(&mut self, frame: &[u8]) -> [u8; TAG_LEN] {
        let full = self.mac(frame).finalize().into_bytes();
        self.next += 1;
        let mut tag = [0; TAG_LEN];
        tag.copy_from_slice(&full[..TAG_LEN]);
        tag
    }

    /// Whether this is the next frame as its sender made it. In constant time for one length.
    pub fn verify(&mut self, frame: &[u8], tag: &[u8]) -> Result<(), BadTag> {
        if tag.len() != TAG_LEN {
            return Err(BadTag);
        }
        self.mac(frame).verify_truncated_left(tag).map_err(|_| BadTag)?;
        self.next += 1;
        Ok(())
    }

    fn mac(&self, frame: &[u8]) -> Hmac<Sha256> {
        let mut mac = (*self.keyed).clone();
        mac.update(&self.next.to_le_bytes());
        mac.update(frame);
        mac
    }
}

/// Both directions of one connection, from one end's view.
pub struct Keys {
    pub send: FrameKey,
    pub receive: FrameKey,
}

/// The keys as the dialer and the acceptor derive them, from everything that was said.
pub(super) fn keys(
    secret: &Secret,
    dialer: &[u8; HELLO_LEN],
    acceptor: &[u8; HELLO_LEN],
    dialer_proof: &[u8],
    acceptor_proof: &[u8],
    is_dialer: bool,
) -> Keys {
    let mut extract = secret.over(EXTRACT, dialer, acceptor);
    extract.update(dialer_proof);
    extract.update(acceptor_proof);
    let root: Zeroizing<[u8; 32]> = Zeroizing::new(extract.finalize().into_bytes().into());
    let root = keyed(&root[..]);
    let expand = |label: &Label| {
        let mut mac = (*root).clone();
        mac.update(label);
        let key: Zeroizing<[u8; 32]> = Zeroizing::new(mac.finalize().into_bytes().into());
        FrameKey { keyed: keyed(&key[..]), next: 0 }
    };
    let (from_dialer, from_acceptor) = (expand(KEY_OF_DIALER), expand(KEY_OF_ACCEPTOR));
    if is_dialer {
        Keys { send: from_dialer, receive: from_acceptor }
    } else {
        Keys { send: from_acceptor, receive: from_dialer }
    }
}

#[cfg(test)]
pub(in crate::net) mod tests {
    use super::*;

    /// The keys of both ends of one connection; the same at each call.
    pub(in crate::net) fn pair() -> (Keys, Keys) {
        let secret = Secret::new(b"the secret of this cluster").expect("it is long enough");
        let end = |is_dialer| keys(&secret, &[1; HELLO_LEN], &[2; HELLO_LEN], b"proof", b"proof", is_dialer);
        (end(true), end(false))
    }

    #[test]
    fn a_tag_of_another_length_does_not_pass() {
        let (mut a, mut b) = pair();
        let tag = a.send.sign(b"frame");
        for len in 0..TAG_LEN {
            assert_eq!(b.receive.verify(b"frame", &tag[..len]), Err(BadTag));
        }
        assert_eq!(b.receive.verify(b"frame", &tag), Ok(()));
    }
}
