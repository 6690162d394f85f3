//! Kafka's messages as tables that read like their schemas (Apache Kafka 4.1, `common/message/*.json`).
//!
//! Pure. A table line is `name: Type [versions] = default, tag N;`: the field stands on the wire in those versions
//! (all, when left out), otherwise it has its default (the type's, when left out). With a tag it is one of the
//! tagged fields of flexible versions and is sent only when it differs from its default. `Option` is what may be
//! null. [`messages!`] makes of each table a structure with both directions of the codec.

pub mod admin;
pub mod api_versions;
pub mod cluster;
pub mod coordinator;
pub mod fetch;
pub mod metadata;
pub mod offsets;
pub mod produce;
pub mod replicas;
#[cfg(test)]
pub(crate) mod tests;

/// The default of a field.
macro_rules! default_of {
    () => {
        Default::default()
    };
    ($default:expr) => {
        $default
    };
}

/// Whether a field stands on the wire in a version.
macro_rules! present {
    ($v:ident) => {
        true
    };
    ($v:ident, $versions:expr) => {
        std::ops::RangeBounds::<i16>::contains(&($versions), &$v.number)
    };
}

macro_rules! if_tagged {
    ({$($body:tt)*}) => {};
    ({$($body:tt)*} $tag:literal) => { $($body)* };
}

macro_rules! if_untagged {
    ({$($body:tt)*}) => { $($body)* };
    ({$($body:tt)*} $tag:literal) => {};
}

macro_rules! messages {
    ($(
        $(#[$meta:meta])*
        struct $name:ident {
            $($(#[$field_meta:meta])* $field:ident: $ty:ty $([$versions:expr])? $(= $default:expr)? $(, tag $tag:literal)?;)*
        }
    )*) => {$(
        $(#[$meta])*
        #[derive(Clone, PartialEq, Debug)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $ty,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: default_of!($($default)?),)* }
            }
        }

        impl $crate::kafka::wire::Wire for $name {
            #[allow(unused_variables, reason = "a table may have no field that depends on the version")]
            fn size_min(v: $crate::kafka::wire::Version) -> usize {
                let mut size = usize::from(v.flexible);
                $(if_untagged!({
                    if present!(v $(, $versions)?) {
                        size += <$ty as $crate::kafka::wire::Wire>::size_min(v);
                    }
                } $($tag)?);)*
                size
            }

            fn decode(
                r: &mut $crate::kafka::wire::Reader<'_>,
                v: $crate::kafka::wire::Version,
            ) -> Result<Self, $crate::kafka::wire::DecodeError> {
                #[allow(unused_mut, reason = "a table may be empty")]
                let mut m = Self::default();
                $(if_untagged!({
                    if present!(v $(, $versions)?) {
                        m.$field = $crate::kafka::wire::Wire::decode(r, v)
                            .map_err(|e| e.within(concat!(stringify!($name), ".", stringify!($field))))?;
                    }
                } $($tag)?);)*
                #[allow(unused_variables, reason = "most tables have no tagged fields")]
                r.tags(v, |r, tag| {
                    $(if_tagged!({
                        if tag == $($tag)? && present!(v $(, $versions)?) {
                            m.$field = $crate::kafka::wire::Wire::decode(r, v)?;
                            return Ok(true);
                        }
                    } $($tag)?);)*
                    Ok(false)
                })
                .map_err(|e| e.within(concat!(stringify!($name), ".tags")))?;
                Ok(m)
            }

            fn encode(&self, w: &mut $crate::kafka::wire::Writer, v: $crate::kafka::wire::Version) {
                $(if_untagged!({
                    if present!(v $(, $versions)?) {
                        $crate::kafka::wire::Wire::encode(&self.$field, w, v);
                    }
                } $($tag)?);)*
                if v.flexible {
                    #[allow(unused_mut, reason = "most tables have no tagged fields")]
                    let mut count = 0;
                    $(if_tagged!({
                        let $field: $ty = default_of!($($default)?);
                        let $field = present!(v $(, $versions)?) && self.$field != $field;
                        count += u32::from($field);
                    } $($tag)?);)*
                    w.varint(count);
                    $(if_tagged!({
                        if $field {
                            w.tag($($tag)?, |w| $crate::kafka::wire::Wire::encode(&self.$field, w, v));
                        }
                    } $($tag)?);)*
                }
            }
        }

        #[cfg(test)]
        impl $crate::kafka::messages::tests::Arbitrary for $name {
            #[allow(unused_variables, reason = "a table may be empty")]
            fn arbitrary(
                random: &mut $crate::kafka::messages::tests::Random,
                v: $crate::kafka::wire::Version,
            ) -> Self {
                Self {
                    $($field: if present!(v $(, $versions)?) {
                        $crate::kafka::messages::tests::Arbitrary::arbitrary(random, v)
                    } else {
                        default_of!($($default)?)
                    },)*
                }
            }
        }
    )*};
}

/// Which API a request belongs to, and which message answers it.
macro_rules! calls {
    ($($api:ident: $request:ident => $response:ident;)*) => {$(
        impl $crate::kafka::api::Call for $request {
            const API: $crate::kafka::api::ApiKey = $crate::kafka::api::ApiKey::$api;
            type Response = $response;
        }
    )*};
}

use {calls, default_of, if_tagged, if_untagged, messages, present};
