//! The keys of gossip in the data directory, so that a node that starts again has those it was given while it ran.
//!
//! Driver; control core. There is no file until keys are changed: a node begins with the key of the cluster's secret.
//! From then on the file says which keys there are, in the order of the ring, the one in use first; a key that was
//! removed does not come back at the next start. The file is written whole beside its place and then renamed, and only
//! its owner can read it. Between changes no key is kept in memory by this module, except the first one until there
//! is a file.
//!
//! | line | |
//! |---|---|
//! | `highwater-gossip-keys 1` | the format |
//! | `secret HEX` | SHA-256 of the key of the cluster's secret when this was written |
//! | `key NUMBER HEX` | 32 bytes; one line for each key |
//! | `end` | a file without it was cut |
//!
//! Who changes the cluster's secret in the configuration means that one: unless its key is among those of the file, the
//! file is out of date and is removed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::control::swim::{KeyError, Keyring};

pub(in crate::runtime) const FILE_NAME: &str = "gossip-keys";
const FORMAT: &str = "highwater-gossip-keys 1";
const END: &str = "\nend\n";
/// Longer than any file of at most four keys.
const FILE_BYTES_MAX: u64 = 4096;

type Secret = Zeroizing<[u8; 32]>;

/// A key by its number.
pub(super) struct Key {
    pub number: u8,
    pub secret: Secret,
}

/// See the module.
pub(super) struct KeyFile {
    path: PathBuf,
    /// SHA-256 of the key of the cluster's secret.
    origin: [u8; 32],
    /// The key of the cluster's secret, until there is a file.
    only: Option<Box<Key>>,
}

/// What stands in the file.
struct Contents {
    origin: [u8; 32],
    keys: Vec<Key>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum KeysError {
    #[error("the file of gossip keys {}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error(
        "the file of gossip keys {} is damaged in line {line}: restore it, or remove it to begin with the key of \
         `security.cluster_secret` alone",
        path.display()
    )]
    Damaged { path: PathBuf, line: usize },
    #[error(transparent)]
    Refused(#[from] KeyError),
}

impl KeyFile {
    /// The keys to begin with: those of the file at `path`, or else `first`, that of the cluster's secret.
    pub(super) fn open(path: PathBuf, cluster: &str, first: Key) -> Result<(Self, Keyring), KeysError> {
        let origin: [u8; 32] = Sha256::digest(*first.secret).into();
        let mut file = Self { path, origin, only: None };
        let Some(contents) = file.read()? else {
            let ring = Keyring::new(cluster, first.number, &*first.secret)?;
            file.only = Some(Box::new(first));
            return Ok((file, ring));
        };
        let has_first = contents.keys.iter().any(|key| *key.secret == *first.secret);
        if contents.origin != origin && !has_first {
            tracing::warn!(
                "the cluster's secret was changed since gossip keys were: the {} of {} are forgotten, and key {} of the \
                 secret is in use",
                contents.keys.len(),
                file.path.display(),
                first.number
            );
            fs::remove_file(&file.path).map_err(|error| file.failed(error))?;
            let ring = Keyring::new(cluster, first.number, &*first.secret)?;
            file.only = Some(Box::new(first));
            return Ok((file, ring));
        }
        if contents.origin != origin {
            file.write(&contents.keys)?;
        }
        let [in_use, others @ ..] = &contents.keys[..] else { return Err(file.damaged(2)) };
        let mut ring = Keyring::new(cluster, in_use.number, &*in_use.secret)?;
        for key in others {
            ring.install(key.number, &*key.secret)?;
        }
        tracing::info!(
            "gossip: {} keys of {}, key {} in use",
            contents.keys.len(),
            file.path.display(),
            in_use.number
        );
        Ok((file, ring))
    }

    #[cfg(test)]
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the file what `ring` is; `new` is a key that was just installed.
    pub(super) fn keep(&mut self, ring: &Keyring, new: Option<Key>) -> Result<(), KeysError> {
        let mut known = match &self.only {
            Some(only) => vec![Key { number: only.number, secret: only.secret.clone() }],
            None => self.read()?.map(|contents| contents.keys).unwrap_or_default(),
        };
        known.extend(new);
        let mut keys = Vec::with_capacity(known.len());
        for (number, _) in ring.received() {
            let at = known.iter().position(|key| key.number == number);
            let gone =
                || self.failed(io::Error::other(format!("key {number} is not in it: someone changed it")));
            keys.push(known.swap_remove(at.ok_or_else(gone)?));
        }
        self.write(&keys)?;
        self.only = None;
        Ok(())
    }

    fn failed(&self, error: io::Error) -> KeysError {
        KeysError::Io { path: self.path.clone(), error }
    }

    fn damaged(&self, line: usize) -> KeysError {
        KeysError::Damaged { path: self.path.clone(), line }
    }

    fn read(&self) -> Result<Option<Contents>, KeysError> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failed(error)),
        };
        // Room for all of it at once: growing would leave copies behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(FILE_BYTES_MAX as usize + 1));
        file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(|error| self.failed(error))?;
        parse(&bytes).map(Some).map_err(|line| self.damaged(line))
    }

    fn write(&self, keys: &[Key]) -> Result<(), KeysError> {
        let text = render(&self.origin, keys);
        let beside = self.path.with_extension("new");
        replace(&self.path, &beside, text.as_bytes()).map_err(|error| self.failed(error))
    }
}

fn replace(path: &Path, beside: &Path, bytes: &[u8]) -> io::Result<()> {
    // One that a crash left behind may have another mode.
    match fs::remove_file(beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(beside, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

fn render(origin: &[u8; 32], keys: &[Key]) -> Zeroizing<String> {
    let mut out = Zeroizing::new(String::with_capacity(FILE_BYTES_MAX as usize));
    out.push_str(FORMAT);
    out.push_str("\nsecret ");
    put_hex(&mut out, origin);
    for key in keys {
        out.push_str("\nkey ");
        out.push_str(&key.number.to_string());
        out.push(' ');
        put_hex(&mut out, &key.secret);
    }
    out.push_str(END);
    out
}

fn put_hex(out: &mut String, bytes: &[u8; 32]) {
    for byte in bytes {
        for half in [byte >> 4, byte & 15] {
            out.push(char::from_digit(u32::from(half), 16).expect("half a byte is a digit"));
        }
    }
}

/// Fails with the number of the line that is wrong, the first being 1.
fn parse(bytes: &[u8]) -> Result<Contents, usize> {
    let text = std::str::from_utf8(bytes).map_err(|_| 1_usize)?;
    let text = text.strip_suffix(END).ok_or(text.lines().count().max(1))?;
    let mut lines = text.split('\n').zip(1_usize..);
    lines.next().filter(|(line, _)| *line == FORMAT).ok_or(1_usize)?;
    let origin = lines.next().and_then(|(line, _)| hex(line.strip_prefix("secret ")?)).ok_or(2_usize)?;
    let mut keys: Vec<Key> = Vec::new();
    for (line, at) in lines {
        let key = || {
            let (number, secret) = line.strip_prefix("key ")?.split_once(' ')?;
            let number = number.parse().ok()?;
            Some(Key { number, secret: hex(secret)? })
        };
        keys.push(key().ok_or(at)?);
    }
    if keys.is_empty() {
        return Err(3);
    }
    Ok(Contents { origin: *origin, keys })
}

fn hex(text: &str) -> Option<Secret> {
    let text: &[u8; 64] = text.as_bytes().try_into().ok()?;
    let mut bytes = Zeroizing::new([0; 32]);
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16);
        *byte = u8::try_from(digit(0)? << 4 | digit(1)?).expect("two digits are a byte");
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("highwater-keys-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn open(&self, first: u8) -> Result<(KeyFile, Keyring), KeysError> {
            KeyFile::open(self.file(), "tests", key(first))
        }

        fn file(&self) -> PathBuf {
            self.0.join(FILE_NAME)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn key(byte: u8) -> Key {
        Key { number: byte, secret: Zeroizing::new([byte; 32]) }
    }

    fn numbers(ring: &Keyring) -> Vec<u8> {
        ring.received().map(|(number, _)| number).collect()
    }

    fn install(file: &mut KeyFile, ring: &mut Keyring, byte: u8) {
        ring.install(byte, &[byte; 32]).unwrap();
        file.keep(ring, Some(key(byte))).unwrap();
    }

    #[test]
    fn a_ring_is_the_same_after_a_restart_and_what_was_removed_stays_away() {
        let folder = Folder::new("restart");
        let (mut file, mut ring) = folder.open(1).unwrap();
        assert!(numbers(&ring) == [1] && !folder.file().exists(), "nothing was changed");
        install(&mut file, &mut ring, 2);
        assert_eq!(fs::metadata(folder.file()).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(numbers(&folder.open(1).unwrap().1), [1, 2]);
        ring.use_key(2).unwrap();
        file.keep(&ring, None).unwrap();
        let (mut file, mut ring) = folder.open(1).unwrap();
        assert_eq!(numbers(&ring), [2, 1]);
        ring.remove(1).unwrap();
        file.keep(&ring, None).unwrap();
        assert_eq!(numbers(&folder.open(1).unwrap().1), [2], "the secret's own key was removed");
        // Its bytes are those that were installed: both seal alike.
        let (again, _) = folder.open(1).unwrap();
        let contents = again.read().unwrap().unwrap();
        assert!(contents.keys.len() == 1 && *contents.keys[0].secret == [2; 32]);
        let names: Vec<_> =
            fs::read_dir(&folder.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, [FILE_NAME], "nothing lies beside it");
    }

    #[test]
    fn another_secret_in_the_configuration_is_meant_and_one_that_was_installed_before_keeps_the_ring() {
        let folder = Folder::new("secret");
        let (mut file, mut ring) = folder.open(1).unwrap();
        install(&mut file, &mut ring, 2);
        ring.use_key(2).unwrap();
        file.keep(&ring, None).unwrap();
        // The secret of key 2 comes into the configuration, then key 2 is rotated away, too.
        let (mut file, mut ring) = folder.open(2).unwrap();
        assert_eq!(numbers(&ring), [2, 1]);
        install(&mut file, &mut ring, 3);
        ring.use_key(3).unwrap();
        ring.remove(2).unwrap();
        ring.remove(1).unwrap();
        file.keep(&ring, None).unwrap();
        assert_eq!(numbers(&folder.open(2).unwrap().1), [3], "the secret is the one of before");
        assert_eq!(numbers(&folder.open(9).unwrap().1), [9], "the secret is another one");
        assert!(!folder.file().exists());
    }

    #[test]
    fn a_file_that_is_damaged_is_named_and_never_half_taken() {
        let folder = Folder::new("damaged");
        let (mut file, mut ring) = folder.open(1).unwrap();
        install(&mut file, &mut ring, 2);
        let whole = fs::read(folder.file()).unwrap();
        for len in 0..whole.len() {
            fs::write(folder.file(), &whole[..len]).unwrap();
            let refused = folder.open(1).err().map(|error| error.to_string());
            assert!(
                refused.as_ref().is_some_and(|why| why.contains("is damaged in line")),
                "{len}: {refused:?}"
            );
        }
        let mut other = whole.clone();
        other[0] ^= 1;
        fs::write(folder.file(), &other).unwrap();
        assert!(matches!(folder.open(1), Err(KeysError::Damaged { line: 1, .. })));
        let text = String::from_utf8(whole.clone()).unwrap();
        fs::write(folder.file(), text.replace("end", "key 300 00\nend")).unwrap();
        assert!(matches!(folder.open(1), Err(KeysError::Damaged { line: 5, .. })));
        // Twice the same number.
        fs::write(folder.file(), text.replace("key 2", "key 1")).unwrap();
        assert!(matches!(folder.open(1), Err(KeysError::Refused(KeyError::Twice(1)))));
    }

    #[test]
    fn a_change_that_cannot_be_kept_is_an_error() {
        let folder = Folder::new("lost");
        let (mut file, mut ring) = folder.open(1).unwrap();
        fs::remove_dir_all(&folder.0).unwrap();
        ring.install(2, &[2; 32]).unwrap();
        assert!(matches!(file.keep(&ring, Some(key(2))), Err(KeysError::Io { .. })));
        fs::create_dir_all(&folder.0).unwrap();
        file.keep(&ring, Some(key(2))).unwrap();
        // Someone takes a key out of the file.
        let text = fs::read_to_string(folder.file()).unwrap();
        let cut: String =
            text.lines().filter(|line| !line.starts_with("key 2")).map(|line| format!("{line}\n")).collect();
        fs::write(folder.file(), cut).unwrap();
        let refused = file.keep(&ring, None).unwrap_err().to_string();
        assert!(refused.contains("key 2 is not in it"), "{refused}");
    }
}
