//! How two nodes prove to each other that they know the cluster's secret, and how each frame after that is bound to
//! the proof. Pure: no socket, no clock; entropy is an argument.
//!
//! The dialer speaks first. All messages have a fixed size:
//!
//! | from | bytes | what |
//! |---|---|---|
//! | dialer | [`HELLO_LEN`] | hello: version, identity, whom it means to reach, a nonce of 256 bits |
//! | acceptor | [`HELLO_LEN`] | hello: the same fields, a nonce of its own |
//! | dialer | [`PROOF_LEN`] | HMAC-SHA256(secret, "dialer" , both hellos) |
//! | acceptor | [`VERDICT_LEN`] | welcome or the code of a [`Refusal`], and HMAC-SHA256(secret, "acceptor", both hellos, the dialer's proof, the code) |
//! | dialer | [`OPEN_LEN`] | welcome or the code of a refusal, with the first frame's tag |
//!
//! So each proof covers both nonces, both identities and roles: a message that was changed on its way, replayed from
//! another connection or sent back to its author proves nothing. The acceptor says nothing about its reasons before the
//! dialer has proven the secret. Each direction then has a key of its own, derived from the secret and the whole exchange
//! (extract and expand as in RFC 5869), and each frame ends with a tag over its number and its bytes
//! ([`session::FrameKey`]).
//!
//! The dialer's hello says what the connection is for ([`Purpose`]). One for calls goes on in such frames. One for a stream
//! between two shards ends here as far as this protocol goes: the bytes behind the handshake are the shards' own, without
//! tags, in both directions. Messages have fixed sizes and are read to their last byte and no further, so none of the
//! shards' bytes is ever taken for one of them. Such a connection asks more of both ends: each has to know the other from
//! the cluster's committed metadata, in its present life (node and incarnation), and thereby knows its registration.
//! What a stream promises: whom it was opened with. What it does not: that nobody on the way reads or changes it
//! afterwards; records have their CRC-32C, which finds damage and stops nobody who means it.
//!
//! It authenticates, it does not hide: who listens can read. That, and secrecy after the loss of the secret, is TLS's work.

mod handshake;
mod hello;
pub mod session;
#[cfg(test)]
pub(in crate::net) mod tests;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

pub use handshake::{
    Acceptor, Dialer, HandshakeError, Judged, Known, Knows, OPEN_LEN, PROOF_LEN, Refusal, VERDICT_LEN,
};
pub use hello::{ClusterId, DiskId, HELLO_LEN, NONCE_LEN, PeerIdentity, Purpose, VERSION};

/// Bytes of a secret at least; 32 random ones are better.
pub const SECRET_LEN_MIN: usize = 16;

const LABEL_LEN: usize = 24;
/// What a MAC is for. All have one length, so that no label with data is another label with other data.
type Label = [u8; LABEL_LEN];
const PROOF_OF_DIALER: &Label = b"highwater peers: dialer ";
const PROOF_OF_ACCEPTOR: &Label = b"highwater peers: accept ";
const EXTRACT: &Label = b"highwater peers: session";
const KEY_OF_DIALER: &Label = b"highwater peers: from d ";
const GOSSIP_KEY: &Label = b"highwater gossip: secret";
const GOSSIP_NUMBER: &Label = b"highwater gossip: number";
const KEY_OF_ACCEPTOR: &Label = b"highwater peers: from a ";

/// What all nodes of a cluster know and nobody else. Wiped when it is dropped; it can be neither copied nor printed.
pub struct Secret {
    /// Keyed with the secret; wipes itself when dropped. Boxed, so that a move leaves no copy behind.
    keyed: Box<Hmac<Sha256>>,
}

/// The secret is too short to be one.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "the cluster's secret has {len} bytes, and needs {SECRET_LEN_MIN} at least: `head -c 32 /dev/urandom | base64`"
)]
pub struct WeakSecret {
    pub len: usize,
}

impl Secret {
    /// The caller wipes `bytes`.
    pub fn new(bytes: &[u8]) -> Result<Self, WeakSecret> {
        if bytes.len() < SECRET_LEN_MIN {
            return Err(WeakSecret { len: bytes.len() });
        }
        Ok(Self { keyed: keyed(bytes) })
    }

    /// The key of gossip that this secret yields, with its number, so that all nodes call it the same. Whoever learns
    /// one of them learns nothing of the secret.
    pub fn gossip_key(&self) -> (u8, Zeroizing<[u8; 32]>) {
        let labelled = |label: &Label| {
            let mut mac = (*self.keyed).clone();
            mac.update(label);
            Zeroizing::new(<[u8; 32]>::from(mac.finalize().into_bytes()))
        };
        (labelled(GOSSIP_NUMBER)[0], labelled(GOSSIP_KEY))
    }

    /// A MAC that has taken `label` and both hellos.
    fn over(&self, label: &Label, dialer: &[u8; HELLO_LEN], acceptor: &[u8; HELLO_LEN]) -> Hmac<Sha256> {
        let mut mac = (*self.keyed).clone();
        mac.update(label);
        mac.update(dialer);
        mac.update(acceptor);
        mac
    }
}

fn keyed(key: &[u8]) -> Box<Hmac<Sha256>> {
    Box::new(Hmac::new_from_slice(key).expect("HMAC takes keys of any length"))
}
