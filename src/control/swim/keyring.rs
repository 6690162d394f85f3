//! The secrets of a cluster, one of them in use, and how they are changed while everything runs.
//!
//! Control core, pure. A rotation is: install the new secret everywhere, use it everywhere, and remove the old one
//! when no datagram arrives under it any more, as [`Keyring::received`] shows.
//!
//! A secret is kept only as the state of its MAC, which is overwritten when it is dropped; there is neither a copy nor
//! a way to print it.

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// Secrets at a time.
const KEYS_MAX: usize = 4;
/// The shortest secret, in bytes.
const SECRET_BYTES_MIN: usize = 16;
/// The longest name of a cluster, in bytes.
const CLUSTER_BYTES_MAX: usize = 255;

/// Bytes of a datagram's tag: half of what HMAC-SHA256 yields, as RFC 2104 allows.
pub(super) const TAG_BYTES: usize = 16;

/// See the module.
pub struct Keyring {
    cluster: Box<[u8]>,
    /// The first is the one in use.
    keys: Vec<Key>,
}

struct Key {
    id: u8,
    /// Boxed, so that moving the keyring leaves no copy behind. The name of the cluster is in it already.
    mac: Box<Hmac<Sha256>>,
    received: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    #[error("a secret needs at least {SECRET_BYTES_MIN} bytes, not {0}")]
    TooShort(usize),
    #[error("the name of a cluster has at most {CLUSTER_BYTES_MAX} bytes, not {0}")]
    Cluster(usize),
    #[error("there are {KEYS_MAX} keys already: remove one first")]
    Full,
    #[error("key {0} is installed already: give the new one another number")]
    Twice(u8),
    #[error("key {0} is not installed")]
    Unknown(u8),
    #[error("key {0} is in use: use another one first")]
    InUse(u8),
}

impl Keyring {
    /// A keyring with one key, which is in use.
    pub fn new(cluster: &str, id: u8, secret: &[u8]) -> Result<Self, KeyError> {
        if cluster.len() > CLUSTER_BYTES_MAX {
            return Err(KeyError::Cluster(cluster.len()));
        }
        let mut ring = Self { cluster: cluster.as_bytes().into(), keys: Vec::with_capacity(KEYS_MAX) };
        ring.install(id, secret)?;
        Ok(ring)
    }

    /// Accepts datagrams under one more key.
    pub fn install(&mut self, id: u8, secret: &[u8]) -> Result<(), KeyError> {
        if secret.len() < SECRET_BYTES_MIN {
            return Err(KeyError::TooShort(secret.len()));
        }
        if self.find(id).is_some() {
            return Err(KeyError::Twice(id));
        }
        if self.keys.len() >= KEYS_MAX {
            return Err(KeyError::Full);
        }
        let mut mac =
            Box::new(Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes secrets of any length"));
        mac.update(&[self.cluster.len() as u8]);
        mac.update(&self.cluster);
        self.keys.push(Key { id, mac, received: 0 });
        Ok(())
    }

    /// Seals with this key from now on.
    pub fn use_key(&mut self, id: u8) -> Result<(), KeyError> {
        let place = self.find(id).ok_or(KeyError::Unknown(id))?;
        self.keys.swap(0, place);
        Ok(())
    }

    /// Forgets a key. The one in use stays.
    pub fn remove(&mut self, id: u8) -> Result<(), KeyError> {
        match self.find(id) {
            None => Err(KeyError::Unknown(id)),
            Some(0) => Err(KeyError::InUse(id)),
            Some(place) => {
                self.keys.remove(place);
                Ok(())
            }
        }
    }

    /// The key in use.
    pub fn primary(&self) -> u8 {
        self.keys[0].id
    }

    /// Each key with the number of authentic datagrams that arrived under it.
    pub fn received(&self) -> impl Iterator<Item = (u8, u64)> + '_ {
        self.keys.iter().map(|key| (key.id, key.received))
    }

    pub(super) fn find(&self, id: u8) -> Option<usize> {
        self.keys.iter().position(|key| key.id == id)
    }

    /// The tag of `datagram` (without room for it) on its way to a boot of a member.
    pub(super) fn tag(&self, to: u64, to_boot: u64, datagram: &[u8]) -> [u8; TAG_BYTES] {
        let full = self.mac(0, to, to_boot, datagram).finalize().into_bytes();
        let mut tag = [0; TAG_BYTES];
        tag.copy_from_slice(&full[..TAG_BYTES]);
        tag
    }

    /// Whether the tag is right, compared in constant time.
    pub(super) fn verify(&mut self, key: usize, to: u64, to_boot: u64, datagram: &[u8], tag: &[u8]) -> bool {
        let authentic = self.mac(key, to, to_boot, datagram).verify_truncated_left(tag).is_ok();
        self.keys[key].received += u64::from(authentic);
        authentic
    }

    fn mac(&self, key: usize, to: u64, to_boot: u64, datagram: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::clone(&self.keys[key].mac);
        mac.update(&to.to_le_bytes());
        mac.update(&to_boot.to_le_bytes());
        mac.update(datagram);
        mac
    }
}
