//! The APIs that this node answers, the versions it advertises, and the headers around their messages.
//!
//! Pure. Only what works is advertised; a new API is a line in the table and an arm in the session's dispatch.

use bytes::Bytes;

use super::wire::{DecodeError, Reader, Version, Wire, Writer};

macro_rules! apis {
    ($($(#[$doc:meta])* $name:ident = $key:literal, versions $min:literal..=$max:literal, flexible from $flexible:literal;)*) => {
        /// An API by its key on the wire.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum ApiKey {
            $($(#[$doc])* $name,)*
        }

        impl ApiKey {
            /// All of them in the order of their keys.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            pub fn from_wire(key: i16) -> Option<Self> {
                match key {
                    $($key => Some(Self::$name),)*
                    _ => None,
                }
            }

            pub const fn wire(self) -> i16 {
                match self { $(Self::$name => $key,)* }
            }

            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            pub const fn version_min(self) -> i16 {
                match self { $(Self::$name => $min,)* }
            }

            pub const fn version_max(self) -> i16 {
                match self { $(Self::$name => $max,)* }
            }

            const fn flexible_from(self) -> i16 {
                match self { $(Self::$name => $flexible,)* }
            }
        }
    };
}

apis! {
    /// Versions 0-2 are advertised and refused: librdkafka compresses only for brokers that list them.
    Produce = 0, versions 0..=13, flexible from 9;
    Fetch = 1, versions 4..=18, flexible from 12;
    ListOffsets = 2, versions 1..=10, flexible from 6;
    Metadata = 3, versions 0..=13, flexible from 9;
    FindCoordinator = 10, versions 0..=6, flexible from 3;
    ApiVersions = 18, versions 0..=4, flexible from 3;
    CreateTopics = 19, versions 0..=7, flexible from 5;
    DeleteTopics = 20, versions 0..=6, flexible from 4;
    DeleteRecords = 21, versions 0..=2, flexible from 2;
    InitProducerId = 22, versions 0..=5, flexible from 2;
    OffsetForLeaderEpoch = 23, versions 2..=4, flexible from 4;
    DescribeConfigs = 32, versions 1..=4, flexible from 4;
    CreatePartitions = 37, versions 0..=3, flexible from 2;
    ElectLeaders = 43, versions 0..=2, flexible from 2;
    IncrementalAlterConfigs = 44, versions 0..=1, flexible from 1;
    AlterPartitionReassignments = 45, versions 0..=1, flexible from 0;
    ListPartitionReassignments = 46, versions 0..=0, flexible from 0;
    DescribeCluster = 60, versions 0..=2, flexible from 0;
}

impl ApiKey {
    pub const fn version(self, number: i16) -> Version {
        Version { number, flexible: number >= self.flexible_from() }
    }

    pub const fn supports(self, version: i16) -> bool {
        self.version_min() <= version && version <= self.version_max()
    }
}

/// The oldest version of Produce that carries record batches of format 2.
pub const PRODUCE_VERSION_MIN: i16 = 3;

/// A request and the message that answers it.
pub trait Call: Wire + Default {
    const API: ApiKey;
    type Response: Wire + Default;
}

/// The part of a request's header whose place never changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    pub api_key: i16,
    pub version: i16,
    pub correlation: i32,
}

impl Head {
    /// # Errors
    /// When the frame is shorter than the eight bytes that every request has.
    pub fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut read = || Ok(Self { api_key: r.i16()?, version: r.i16()?, correlation: r.i32()? });
        read().map_err(|e: DecodeError| e.within("RequestHeader"))
    }

    /// The rest of the header: who the client says it is, and tagged fields.
    ///
    /// # Errors
    /// When it cannot be read as such.
    pub fn decode_rest(r: &mut Reader<'_>, v: Version) -> Result<(), DecodeError> {
        // The client id kept its 16-bit length in flexible versions.
        r.str(Version { flexible: false, ..v }).map_err(|e| e.within("RequestHeader.client_id"))?;
        r.skip_tags(v).map_err(|e| e.within("RequestHeader.tags"))
    }
}

/// Begins the answer to a request; [`Writer::finish_frame`] ends it.
pub fn begin_response(api: ApiKey, v: Version, correlation: i32, capacity: usize) -> Writer {
    let mut w = Writer::frame(capacity + 5);
    w.i32(correlation);
    // A client learns from this answer which versions there are, so its header must not depend on one.
    if api != ApiKey::ApiVersions {
        w.no_tags(v);
    }
    w
}

/// A whole answer, with the length in front.
pub fn response_frame<M: Wire>(api: ApiKey, v: Version, correlation: i32, body: &M) -> Bytes {
    let mut w = begin_response(api, v, correlation, 256);
    body.encode(&mut w, v);
    w.finish_frame(0)
}

/// The client's side: a whole request, with the length in front.
pub fn request_frame<C: Call>(version: i16, correlation: i32, client_id: &str, body: &C) -> Bytes {
    let v = C::API.version(version);
    let mut w = Writer::frame(256);
    w.i16(C::API.wire());
    w.i16(version);
    w.i32(correlation);
    w.str(Some(client_id), Version { flexible: false, ..v });
    w.no_tags(v);
    body.encode(&mut w, v);
    w.finish_frame(0)
}

/// Array elements that a client accepts in one answer: a cluster's whole metadata fits.
const ANSWER_ELEMENTS_MAX: usize = 1 << 24;

/// The client's side: an answer without its length, as the correlation id and the message.
///
/// # Errors
/// When the frame is not such an answer.
pub fn decode_response<C: Call>(version: i16, frame: &Bytes) -> Result<(i32, C::Response), DecodeError> {
    let v = C::API.version(version);
    let mut r = Reader::with_elements_max(frame, ANSWER_ELEMENTS_MAX);
    let correlation = r.i32().map_err(|e| e.within("ResponseHeader"))?;
    if C::API != ApiKey::ApiVersions {
        r.skip_tags(v).map_err(|e| e.within("ResponseHeader"))?;
    }
    Ok((correlation, C::Response::decode(&mut r, v)?))
}
