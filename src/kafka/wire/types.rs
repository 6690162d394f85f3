//! The types that can stand in a message table, and how each is read and written.
//!
//! Pure; see [`super`] for the bounds that reading keeps.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use highwater_shards::ids::TopicId;

use super::{DecodeError, DecodeKind, Reader, Version, Writer};

type Result<T> = std::result::Result<T, DecodeError>;

/// What can stand in a message.
pub trait Wire: Sized {
    /// The fewest bytes that a value takes: bounds what a declared count can make the reader allocate.
    fn size_min(v: Version) -> usize;
    /// # Errors
    /// When the bytes are no such value; names the innermost field.
    fn decode(r: &mut Reader<'_>, v: Version) -> Result<Self>;
    fn encode(&self, w: &mut Writer, v: Version);
}

/// What can be null on the wire: `Option` of it is [`Wire`] too.
pub trait Nullable: Wire {
    /// # Errors
    /// As [`Wire::decode`].
    fn decode_nullable(r: &mut Reader<'_>, v: Version) -> Result<Option<Self>>;
    fn encode_null(w: &mut Writer, v: Version);
}

impl<T: Nullable> Wire for Option<T> {
    fn size_min(v: Version) -> usize {
        T::size_min(v)
    }

    fn decode(r: &mut Reader<'_>, v: Version) -> Result<Self> {
        T::decode_nullable(r, v)
    }

    fn encode(&self, w: &mut Writer, v: Version) {
        match self {
            Some(value) => value.encode(w, v),
            None => T::encode_null(w, v),
        }
    }
}

macro_rules! fixed {
    ($($ty:ty: $method:ident, $size:literal;)*) => {$(
        impl Wire for $ty {
            fn size_min(_: Version) -> usize {
                $size
            }

            fn decode(r: &mut Reader<'_>, _: Version) -> Result<Self> {
                r.$method()
            }

            fn encode(&self, w: &mut Writer, _: Version) {
                w.$method(*self);
            }
        }
    )*};
}

fixed! {
    i8: i8, 1;
    i16: i16, 2;
    i32: i32, 4;
    i64: i64, 8;
}

impl Wire for bool {
    fn size_min(_: Version) -> usize {
        1
    }

    fn decode(r: &mut Reader<'_>, _: Version) -> Result<Self> {
        Ok(r.i8()? != 0)
    }

    fn encode(&self, w: &mut Writer, _: Version) {
        w.i8(i8::from(*self));
    }
}

/// A UUID that is not a topic's; zero for none.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Uuid(pub u128);

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&TopicId(self.0), f)
    }
}

macro_rules! uuids {
    ($($ty:ident),*) => {$(
        impl Wire for $ty {
            fn size_min(_: Version) -> usize {
                16
            }

            fn decode(r: &mut Reader<'_>, _: Version) -> Result<Self> {
                r.u128().map($ty)
            }

            fn encode(&self, w: &mut Writer, _: Version) {
                w.u128(self.0);
            }
        }
    )*};
}

uuids!(Uuid, TopicId);

macro_rules! strings {
    ($($ty:ty),*) => {$(
        impl Wire for $ty {
            fn size_min(v: Version) -> usize {
                if v.flexible { 1 } else { 2 }
            }

            fn decode(r: &mut Reader<'_>, v: Version) -> Result<Self> {
                r.required_str(v).map(Into::into)
            }

            fn encode(&self, w: &mut Writer, v: Version) {
                w.str(Some(self), v);
            }
        }

        impl Nullable for $ty {
            fn decode_nullable(r: &mut Reader<'_>, v: Version) -> Result<Option<Self>> {
                Ok(r.str(v)?.map(Into::into))
            }

            fn encode_null(w: &mut Writer, v: Version) {
                w.str(None, v);
            }
        }
    )*};
}

strings!(String, Arc<str>);

impl Wire for Bytes {
    fn size_min(v: Version) -> usize {
        if v.flexible { 1 } else { 4 }
    }

    fn decode(r: &mut Reader<'_>, v: Version) -> Result<Self> {
        r.bytes(v)?.ok_or_else(|| r.error(DecodeKind::Null))
    }

    fn encode(&self, w: &mut Writer, v: Version) {
        w.long_len(Some(self.len()), v);
        w.raw(self);
    }
}

impl Nullable for Bytes {
    fn decode_nullable(r: &mut Reader<'_>, v: Version) -> Result<Option<Self>> {
        r.bytes(v)
    }

    fn encode_null(w: &mut Writer, v: Version) {
        w.long_len(None, v);
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn size_min(v: Version) -> usize {
        if v.flexible { 1 } else { 4 }
    }

    fn decode(r: &mut Reader<'_>, v: Version) -> Result<Self> {
        Self::decode_nullable(r, v)?.ok_or_else(|| r.error(DecodeKind::Null))
    }

    fn encode(&self, w: &mut Writer, v: Version) {
        w.long_len(Some(self.len()), v);
        for element in self {
            element.encode(w, v);
        }
    }
}

impl<T: Wire> Nullable for Vec<T> {
    fn decode_nullable(r: &mut Reader<'_>, v: Version) -> Result<Option<Self>> {
        let Some(count) = r.count(v, T::size_min(v))? else { return Ok(None) };
        let mut elements = Self::with_capacity(count);
        for _ in 0..count {
            elements.push(T::decode(r, v)?);
        }
        Ok(Some(elements))
    }

    fn encode_null(w: &mut Writer, v: Version) {
        w.long_len(None, v);
    }
}
