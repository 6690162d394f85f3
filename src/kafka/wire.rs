//! The primitive types of the Kafka protocol: a bounded [`Reader`], a [`Writer`], and [`Wire`], which a type
//! implements to stand in a message table.
//!
//! Pure; used on every shard core and by clients of the protocol (the command line, tests). A declared length or
//! count is compared with the bytes that remain before anything is allocated for it, and one message may hold at
//! most [`ELEMENTS_MAX`] array elements, so that a frame cannot unfold into many times its size.
//!
//! Source: the Kafka protocol guide, "Protocol Primitive Types", and KIP-482 (flexible versions).

mod types;

use bytes::{BufMut, Bytes, BytesMut};

pub use types::{Nullable, Uuid, Wire};

/// Array elements in one request, nested ones counted too.
pub const ELEMENTS_MAX: usize = 1 << 18;

/// Tagged fields in one structure. No schema has more than four of its own.
const TAGS_MAX: u32 = 64;

/// The version of an API that a message is read or written in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Version {
    pub number: i16,
    /// Compact lengths and tagged fields (KIP-482).
    pub flexible: bool,
}

/// Why bytes are not the message that they were read as.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{what}: {kind} at byte {at} of the frame")]
pub struct DecodeError {
    /// The structure and field that was being read.
    pub what: &'static str,
    pub at: usize,
    pub kind: DecodeKind,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeKind {
    #[error("the message ends early")]
    Short,
    #[error("a declared length or count of {0} does not fit into the bytes that follow")]
    Length(i64),
    #[error("null stands where a value is needed")]
    Null,
    #[error("a string is not UTF-8")]
    NotUtf8,
    #[error("a variable-length number has more than 32 bits")]
    Varint,
    #[error("more than {ELEMENTS_MAX} array elements")]
    Elements,
    #[error("too many tagged fields, or one whose size is not that of its content")]
    Tag,
}

impl DecodeError {
    /// Names the field, unless a field further in was named already.
    #[must_use]
    pub fn within(mut self, what: &'static str) -> Self {
        if self.what.is_empty() {
            self.what = what;
        }
        self
    }
}

type Result<T> = std::result::Result<T, DecodeError>;

/// Reads one frame from front to back. Byte strings are slices of the frame, not copies.
#[derive(Debug)]
pub struct Reader<'a> {
    frame: &'a Bytes,
    at: usize,
    /// `at <= end <= frame.len()`; less than the frame while a tagged field is read.
    end: usize,
    elements_left: usize,
}

impl<'a> Reader<'a> {
    pub fn new(frame: &'a Bytes) -> Self {
        Self::with_elements_max(frame, ELEMENTS_MAX)
    }

    /// For answers of a trusted server, which may list more than a request may.
    pub fn with_elements_max(frame: &'a Bytes, elements_max: usize) -> Self {
        Self { frame, at: 0, end: frame.len(), elements_left: elements_max }
    }

    pub fn remaining(&self) -> usize {
        self.end - self.at
    }

    fn error(&self, kind: DecodeKind) -> DecodeError {
        DecodeError { what: "", at: self.at, kind }
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let Some(bytes) = self.frame[self.at..self.end].first_chunk::<N>() else {
            return Err(self.error(DecodeKind::Short));
        };
        self.at += N;
        Ok(*bytes)
    }

    #[inline]
    pub fn i8(&mut self) -> Result<i8> {
        self.array().map(i8::from_be_bytes)
    }

    #[inline]
    pub fn i16(&mut self) -> Result<i16> {
        self.array().map(i16::from_be_bytes)
    }

    #[inline]
    pub fn i32(&mut self) -> Result<i32> {
        self.array().map(i32::from_be_bytes)
    }

    #[inline]
    pub fn i64(&mut self) -> Result<i64> {
        self.array().map(i64::from_be_bytes)
    }

    pub fn u128(&mut self) -> Result<u128> {
        self.array().map(u128::from_be_bytes)
    }

    /// An unsigned variable-length number of at most 32 bits: seven bits a byte, the lowest first.
    #[inline]
    pub fn varint(&mut self) -> Result<u32> {
        // Nearly all of them are lengths and counts below 128.
        let [first] = self.array()?;
        if first & 0x80 == 0 {
            return Ok(first.into());
        }
        let mut value = u64::from(first & 0x7f);
        for shift in [7, 14, 21, 28] {
            let [byte] = self.array()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return u32::try_from(value).map_err(|_| self.error(DecodeKind::Varint));
            }
        }
        Err(self.error(DecodeKind::Varint))
    }

    /// The length of a string (16 bits before KIP-482), bounded by what remains; `None` for null.
    fn string_len(&mut self, v: Version) -> Result<Option<usize>> {
        let declared = if v.flexible { self.compact_len()? } else { i64::from(self.i16()?) };
        self.bounded(declared, 1)
    }

    /// The length of a byte string or the count of an array (32 bits before KIP-482), bounded by what remains.
    fn long_len(&mut self, v: Version, element_min: usize) -> Result<Option<usize>> {
        let declared = if v.flexible { self.compact_len()? } else { i64::from(self.i32()?) };
        self.bounded(declared, element_min)
    }

    fn compact_len(&mut self) -> Result<i64> {
        Ok(i64::from(self.varint()?) - 1)
    }

    fn bounded(&self, declared: i64, element_min: usize) -> Result<Option<usize>> {
        if declared == -1 {
            return Ok(None);
        }
        match usize::try_from(declared) {
            Ok(n) if n <= self.remaining() / element_min.max(1) => Ok(Some(n)),
            _ => Err(self.error(DecodeKind::Length(declared))),
        }
    }

    /// The count of an array whose elements take at least `element_min` bytes each; `None` for null.
    pub fn count(&mut self, v: Version, element_min: usize) -> Result<Option<usize>> {
        let Some(n) = self.long_len(v, element_min)? else { return Ok(None) };
        let Some(left) = self.elements_left.checked_sub(n) else {
            return Err(self.error(DecodeKind::Elements));
        };
        self.elements_left = left;
        Ok(Some(n))
    }

    /// The count of an array that cannot be null; see [`Self::count`].
    pub fn array_len(&mut self, v: Version, element_min: usize) -> Result<usize> {
        self.count(v, element_min)?.ok_or_else(|| self.error(DecodeKind::Null))
    }

    fn take(&mut self, n: usize) -> &'a [u8] {
        let bytes = &self.frame[self.at..self.at + n];
        self.at += n;
        bytes
    }

    /// A string, or `None` for null.
    pub fn str(&mut self, v: Version) -> Result<Option<&'a str>> {
        let Some(n) = self.string_len(v)? else { return Ok(None) };
        let at = self.at;
        match std::str::from_utf8(self.take(n)) {
            Ok(s) => Ok(Some(s)),
            Err(_) => Err(DecodeError { what: "", at, kind: DecodeKind::NotUtf8 }),
        }
    }

    /// A string that cannot be null.
    pub fn required_str(&mut self, v: Version) -> Result<&'a str> {
        self.str(v)?.ok_or_else(|| self.error(DecodeKind::Null))
    }

    /// A byte string as a slice of the frame, or `None` for null.
    pub fn bytes(&mut self, v: Version) -> Result<Option<Bytes>> {
        let Some(n) = self.long_len(v, 1)? else { return Ok(None) };
        let slice = self.frame.slice(self.at..self.at + n);
        self.at += n;
        Ok(Some(slice))
    }

    /// The tagged fields at the end of a structure, none of which the caller knows.
    #[inline]
    pub fn skip_tags(&mut self, v: Version) -> Result<()> {
        self.tags(v, |_, _| Ok(false))
    }

    /// The tagged fields at the end of a structure. `known` reads the content of a tag, or returns false to have
    /// it skipped.
    pub fn tags(&mut self, v: Version, mut known: impl FnMut(&mut Self, u32) -> Result<bool>) -> Result<()> {
        if !v.flexible {
            return Ok(());
        }
        let count = self.varint()?;
        if count > TAGS_MAX {
            return Err(self.error(DecodeKind::Tag));
        }
        for _ in 0..count {
            let tag = self.varint()?;
            let declared = i64::from(self.varint()?);
            let Some(size) = self.bounded(declared, 1)? else { return Err(self.error(DecodeKind::Tag)) };
            let outer_end = self.end;
            self.end = self.at + size;
            if !known(self, tag)? {
                self.at = self.end;
            }
            if self.at != self.end {
                return Err(self.error(DecodeKind::Tag));
            }
            self.end = outer_end;
        }
        Ok(())
    }
}

/// Writes one frame, or a piece of one.
#[derive(Debug, Default)]
pub struct Writer {
    out: BytesMut,
}

impl Writer {
    pub fn with_capacity(capacity: usize) -> Self {
        Self { out: BytesMut::with_capacity(capacity) }
    }

    /// Begins a frame: the length stands in front and is put in by [`Self::finish_frame`].
    pub fn frame(capacity: usize) -> Self {
        let mut writer = Self::with_capacity(capacity + 4);
        writer.i32(0);
        writer
    }

    /// Ends what [`Self::frame`] began; `beside` bytes of the frame are sent apart from these.
    pub fn finish_frame(mut self, beside: usize) -> Bytes {
        let len = i32::try_from(self.out.len() - 4 + beside).expect("an answer is bounded far below 2 GiB");
        self.out[..4].copy_from_slice(&len.to_be_bytes());
        self.out.freeze()
    }

    pub fn len(&self) -> usize {
        self.out.len()
    }

    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    #[inline]
    pub fn i8(&mut self, value: i8) {
        self.out.put_i8(value);
    }

    #[inline]
    pub fn i16(&mut self, value: i16) {
        self.out.put_i16(value);
    }

    #[inline]
    pub fn i32(&mut self, value: i32) {
        self.out.put_i32(value);
    }

    #[inline]
    pub fn i64(&mut self, value: i64) {
        self.out.put_i64(value);
    }

    pub fn u128(&mut self, value: u128) {
        self.out.put_u128(value);
    }

    #[inline]
    pub fn varint(&mut self, mut value: u32) {
        while value >= 0x80 {
            self.out.put_u8(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        self.out.put_u8(value.to_le_bytes()[0]);
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.out.put_slice(bytes);
    }

    /// The length of a byte string or the count of an array; `None` for null.
    pub fn long_len(&mut self, len: Option<usize>, v: Version) {
        let len = len.map(|n| i32::try_from(n).expect("a message is bounded far below 2 GiB"));
        if v.flexible {
            self.varint(len.map_or(0, |n| n.unsigned_abs() + 1));
        } else {
            self.i32(len.unwrap_or(-1));
        }
    }

    /// A string or null. Before KIP-482 the wire has 16 bits for the length: a longer string, which only words for
    /// people can be, is cut at a character.
    pub fn str(&mut self, value: Option<&str>, v: Version) {
        if v.flexible {
            self.long_len(value.map(str::len), v);
            self.raw(value.unwrap_or_default().as_bytes());
            return;
        }
        let cut = value.map(|s| {
            let fits = s.len().min(i16::MAX.unsigned_abs().into());
            let boundary = (0..=fits).rev().find(|&at| s.is_char_boundary(at)).unwrap_or(0);
            &s[..boundary]
        });
        self.i16(cut.map_or(-1, |s| i16::try_from(s.len()).expect("cut to fit")));
        self.raw(cut.unwrap_or_default().as_bytes());
    }

    #[inline]
    pub fn no_tags(&mut self, v: Version) {
        if v.flexible {
            self.out.put_u8(0);
        }
    }

    /// One tagged field, after their count was written.
    pub fn tag(&mut self, tag: u32, content: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        content(&mut inner);
        self.varint(tag);
        self.varint(u32::try_from(inner.len()).expect("a message is bounded far below 2 GiB"));
        self.raw(&inner.out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Version = Version { number: 0, flexible: false };
    const FLEXIBLE: Version = Version { number: 9, flexible: true };

    fn decoded<T: Wire>(bytes: &[u8], v: Version) -> Result<T> {
        T::decode(&mut Reader::new(&Bytes::copy_from_slice(bytes)), v)
    }

    #[test]
    fn varints_have_at_most_32_bits() {
        for value in [0, 1, 127, 128, 16_383, 16_384, u32::MAX] {
            let mut w = Writer::default();
            w.varint(value);
            let bytes = w.out.freeze();
            assert_eq!(Reader::new(&bytes).varint(), Ok(value));
        }
        let too_wide = Bytes::from_static(&[0xff, 0xff, 0xff, 0xff, 0x1f]);
        assert_eq!(Reader::new(&too_wide).varint().unwrap_err().kind, DecodeKind::Varint);
        let too_long = Bytes::from_static(&[0x80, 0x80, 0x80, 0x80, 0x80, 0x00]);
        assert_eq!(Reader::new(&too_long).varint().unwrap_err().kind, DecodeKind::Varint);
    }

    #[test]
    fn a_declared_length_beyond_the_frame_is_refused_before_allocation() {
        let huge = [0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0];
        assert_eq!(decoded::<Vec<i64>>(&huge, OLD).unwrap_err().kind, DecodeKind::Length(0x7fff_ffff));
        assert_eq!(decoded::<Bytes>(&huge, OLD).unwrap_err().kind, DecodeKind::Length(0x7fff_ffff));
        assert_eq!(decoded::<String>(&huge, OLD).unwrap_err().kind, DecodeKind::Length(0x7fff));
        let compact = [0xff, 0xff, 0xff, 0xff, 0x0f, 0];
        assert_eq!(decoded::<Vec<i8>>(&compact, FLEXIBLE).unwrap_err().kind, DecodeKind::Length(0xffff_fffe));
        let negative = (-2i32).to_be_bytes();
        assert_eq!(decoded::<Option<Bytes>>(&negative, OLD).unwrap_err().kind, DecodeKind::Length(-2));
        // Four bytes remain, enough for four elements of one byte, not for four of eight.
        assert!(decoded::<Vec<i8>>(&[0, 0, 0, 4, 1, 2, 3, 4], OLD).is_ok());
        assert_eq!(
            decoded::<Vec<i64>>(&[0, 0, 0, 4, 1, 2, 3, 4], OLD).unwrap_err().kind,
            DecodeKind::Length(4)
        );
    }

    #[test]
    fn null_is_read_only_where_it_may_stand() {
        for v in [OLD, FLEXIBLE] {
            let mut w = Writer::default();
            None::<Vec<i32>>.encode(&mut w, v);
            None::<Bytes>.encode(&mut w, v);
            None::<String>.encode(&mut w, v);
            let bytes = w.out.freeze();
            let mut r = Reader::new(&bytes);
            assert_eq!(Option::<Vec<i32>>::decode(&mut r, v), Ok(None));
            assert_eq!(Option::<Bytes>::decode(&mut r, v), Ok(None));
            assert_eq!(Option::<String>::decode(&mut r, v), Ok(None));
            assert_eq!(Vec::<i32>::decode(&mut Reader::new(&bytes), v).unwrap_err().kind, DecodeKind::Null);
        }
    }

    #[test]
    fn the_elements_of_one_message_are_bounded_in_sum() {
        let mut w = Writer::default();
        vec![vec![1i8; 600]; 2].encode(&mut w, OLD);
        let bytes = w.out.freeze();
        assert!(Vec::<Vec<i8>>::decode(&mut Reader::with_elements_max(&bytes, 1202), OLD).is_ok());
        let refused = Vec::<Vec<i8>>::decode(&mut Reader::with_elements_max(&bytes, 1201), OLD);
        assert_eq!(refused.unwrap_err().kind, DecodeKind::Elements);
    }

    #[test]
    fn a_tagged_field_ends_where_its_size_says() {
        let read = |bytes: &'static [u8]| {
            let bytes = Bytes::from_static(bytes);
            let mut seen = None;
            let mut r = Reader::new(&bytes);
            let result = r.tags(FLEXIBLE, |r, tag| {
                if tag != 7 {
                    return Ok(false);
                }
                seen = Some(r.i16()?);
                Ok(true)
            });
            result.map(|()| (seen, r.remaining())).map_err(|e| e.kind)
        };
        assert_eq!(read(&[2, 3, 1, 0xaa, 7, 2, 0, 5, 9]), Ok((Some(5), 1)));
        assert_eq!(read(&[1, 7, 3, 0, 5, 9]), Err(DecodeKind::Tag));
        assert_eq!(read(&[1, 7, 1, 0, 5, 9]), Err(DecodeKind::Short));
        assert_eq!(read(&[1, 3, 9, 0]), Err(DecodeKind::Length(9)));
        assert_eq!(read(&[65, 0, 0]), Err(DecodeKind::Tag));
    }

    #[test]
    fn a_string_too_long_for_its_version_is_cut_at_a_character() {
        let long = "ü".repeat(20_000);
        let mut w = Writer::default();
        w.str(Some(&long), OLD);
        let bytes = w.out.freeze();
        assert_eq!(decoded::<String>(&bytes, OLD), Ok("ü".repeat(16_383)));
    }
}
