//! The secret that the nodes of a cluster share: read once at start, shown nowhere, wiped when dropped.
//!
//! Main thread, at start. Of what the process was given beside a file (an environment variable, a flag) the operating
//! system keeps copies that nobody can wipe, which is why a file is the better place.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use zeroize::{Zeroize as _, Zeroizing};

/// Fewer bytes could be guessed by whoever recorded one handshake.
pub const SECRET_BYTES_MIN: usize = 16;
pub const SECRET_BYTES_MAX: usize = 1024;

/// Bytes that prove to belong to the cluster: [`SECRET_BYTES_MIN`] to [`SECRET_BYTES_MAX`] of them.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Box<[u8]>);

impl Secret {
    /// `None` when the bytes are too few or too many.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        (SECRET_BYTES_MIN..=SECRET_BYTES_MAX).contains(&bytes.len()).then(|| Self(bytes.into()))
    }

    /// Reads a file that holds nothing else. Line ends behind the secret do not belong to it.
    ///
    /// # Errors
    /// What is wrong with the file, in words that do not repeat its content.
    pub fn read(path: &Path) -> Result<Self, String> {
        // Room for more than is accepted, so that nothing is moved and left behind unwiped.
        let mut bytes = Zeroizing::new(Vec::with_capacity(SECRET_BYTES_MAX + 8));
        let file = File::open(path).map_err(|e| format!("{} cannot be read: {e}", path.display()))?;
        let limit = u64::try_from(SECRET_BYTES_MAX + 3).unwrap_or(u64::MAX);
        file.take(limit)
            .read_to_end(&mut bytes)
            .map_err(|e| format!("{} cannot be read: {e}", path.display()))?;
        let len = bytes.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r')).map_or(0, |last| last + 1);
        Self::new(&bytes[..len]).ok_or_else(|| {
            format!(
                "{} must hold the secret alone, {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} bytes; make one with \
                 `head -c 32 /dev/urandom | base64`",
                path.display()
            )
        })
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_shown() {
        let secret = Secret::new(b"correct horse battery").unwrap();
        assert_eq!(
            format!("{secret:?} {:#?}", Some(&secret)),
            "Secret(hidden) Some(\n    Secret(hidden),\n)"
        );
    }

    #[test]
    fn secrets_have_bounds() {
        for (len, fits) in [(0, false), (15, false), (16, true), (1024, true), (1025, false)] {
            assert_eq!(Secret::new(&vec![7; len]).is_some(), fits, "{len}");
        }
    }

    #[test]
    fn a_secret_file_may_end_with_a_line_end_and_nothing_else() {
        let path = std::env::temp_dir().join(format!("highwater-secret-{}", std::process::id()));
        for (content, want) in [
            (b"0123456789abcdef\n".to_vec(), Some(&b"0123456789abcdef"[..])),
            (b"0123456789abcdef\r\n".to_vec(), Some(&b"0123456789abcdef"[..])),
            (b"0123456789abcde\n".to_vec(), None),
            (b"\n".to_vec(), None),
            (vec![b'x'; 1025], None),
            (vec![b'x'; 100_000], None),
        ] {
            std::fs::write(&path, &content).unwrap();
            let read = Secret::read(&path);
            assert_eq!(read.as_ref().ok().map(Secret::bytes), want, "{read:?}");
            if let Err(why) = read {
                assert!(!why.contains("0123"), "{why}");
            }
        }
        std::fs::remove_file(&path).unwrap();
        assert!(Secret::read(&path).unwrap_err().contains("cannot be read"));
    }
}
