//! Every message in every version against the `kafka-protocol` crate, which is generated from Kafka's schemas.

use std::fmt::Debug;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use highwater_shards::ids::TopicId;
use kafka_protocol::messages as theirs;
use kafka_protocol::protocol::{Decodable, Encodable, Message};

use super::{admin, api_versions, cluster, coordinator, fetch, metadata, offsets, produce, replicas};
use crate::kafka::api::{ApiKey, Call};
use crate::kafka::wire::{Nullable, Reader, Uuid, Version, Wire, Writer};

/// A small seeded generator (splitmix64), so that a failure repeats.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }
}

/// A random value whose fields that a version lacks have their defaults.
pub trait Arbitrary {
    fn arbitrary(random: &mut Random, v: Version) -> Self;
}

macro_rules! numbers {
    ($($ty:ty),*) => {$(
        impl Arbitrary for $ty {
            fn arbitrary(random: &mut Random, _: Version) -> Self {
                let all = random.next() as $ty;
                [all, all % 100, 0, -1, <$ty>::MAX, <$ty>::MIN][random.below(6)]
            }
        }
    )*};
}

numbers!(i8, i16, i32, i64);

impl Arbitrary for bool {
    fn arbitrary(random: &mut Random, _: Version) -> Self {
        random.below(2) == 1
    }
}

impl Arbitrary for Uuid {
    fn arbitrary(random: &mut Random, _: Version) -> Self {
        Self(u128::from(random.next()) << 64 | u128::from(random.next()))
    }
}

impl Arbitrary for TopicId {
    fn arbitrary(random: &mut Random, v: Version) -> Self {
        Self(Uuid::arbitrary(random, v).0)
    }
}

impl Arbitrary for String {
    fn arbitrary(random: &mut Random, _: Version) -> Self {
        let len = [0, 1, 3, 200][random.below(4)];
        (0..len).map(|_| ['a', 'Z', '.', '-', 'ü', '漢'][random.below(6)]).collect()
    }
}

impl Arbitrary for Arc<str> {
    fn arbitrary(random: &mut Random, v: Version) -> Self {
        String::arbitrary(random, v).into()
    }
}

impl Arbitrary for Bytes {
    fn arbitrary(random: &mut Random, _: Version) -> Self {
        let len = [0, 1, 61, 300][random.below(4)];
        (0..len).map(|_| random.next() as u8).collect()
    }
}

impl<T: Arbitrary> Arbitrary for Vec<T> {
    fn arbitrary(random: &mut Random, v: Version) -> Self {
        (0..random.below(4)).map(|_| T::arbitrary(random, v)).collect()
    }
}

impl<T: Arbitrary + Nullable> Arbitrary for Option<T> {
    fn arbitrary(random: &mut Random, v: Version) -> Self {
        (random.below(4) != 0).then(|| T::arbitrary(random, v))
    }
}

/// What only they print: tagged fields that nobody knows, and fields of versions that are not advertised.
const NOT_OURS: [&str; 5] = [
    "unknown_tagged_fields: {}",
    "enable_2_pc: false",
    "keep_prepared_txn: false",
    "ongoing_txn_producer_id: -1",
    "ongoing_txn_producer_epoch: -1",
];

/// The fields of a value by name, as both sides print them.
fn fields(value: &impl Debug) -> String {
    NOT_OURS.iter().fold(format!("{value:?}"), |text, extra| text.replace(&format!(", {extra}"), ""))
}

fn same<Ours, Theirs>(api: ApiKey, versions: std::ops::RangeInclusive<i16>)
where
    Ours: Wire + Arbitrary + Default + PartialEq + Debug,
    Theirs: Encodable + Decodable + Message + Debug,
{
    for number in versions.clone() {
        let mut compared = 0;
        let v = api.version(number);
        let mut random = Random(number.unsigned_abs().into());
        for round in 0..300 {
            let value = if round == 0 { Ours::default() } else { Ours::arbitrary(&mut random, v) };
            let mut w = Writer::frame(0);
            value.encode(&mut w, v);
            let ours = w.finish_frame(0).slice(4..);
            assert!(ours.len() >= Ours::size_min(v), "{api:?} {number}: size_min of {value:?}");

            let mut rest = ours.clone();
            let read = match Theirs::decode(&mut rest, number) {
                Ok(read) => read,
                // Some fields may be null only in later versions; in the last one all of them may.
                Err(_) if number < *versions.end() && fields(&value).contains("None") => continue,
                Err(e) => panic!("{api:?} {number}: they cannot read {value:?}: {e}"),
            };
            compared += 1;
            assert_eq!(rest.remaining(), 0, "{api:?} {number}: they read less of {value:?}");
            assert_eq!(fields(&read), fields(&value), "{api:?} {number}");

            let mut encoded = BytesMut::new();
            read.encode(&mut encoded, number).unwrap();
            let encoded = encoded.freeze();
            assert_eq!(encoded, ours, "{api:?} {number}: {value:?}");

            let mut r = Reader::new(&encoded);
            let back = Ours::decode(&mut r, v).unwrap();
            assert_eq!(r.remaining(), 0);
            assert_eq!(back, value, "{api:?} {number}");

            for cut in (0..encoded.len()).filter(|_| round < 20) {
                let short = encoded.slice(..cut);
                assert!(Ours::decode(&mut Reader::new(&short), v).is_err(), "{api:?} {number} cut at {cut}");
            }
        }
        assert!(compared >= 30, "{api:?} {number}: only {compared} rounds were compared");
    }
}

fn same_call<C, Request, Response>()
where
    C: Call + Arbitrary + PartialEq + Debug,
    C::Response: Arbitrary + PartialEq + Debug,
    Request: Encodable + Decodable + Message + Debug,
    Response: Encodable + Decodable + Message + Debug,
{
    let known = |range: kafka_protocol::protocol::VersionRange| {
        range.min.max(C::API.version_min())..=C::API.version_max()
    };
    same::<C, Request>(C::API, known(Request::VERSIONS));
    same::<C::Response, Response>(C::API, known(Response::VERSIONS));
}

#[test]
fn every_message_of_every_version_is_kafkas_in_both_directions() {
    use theirs::*;
    same_call::<api_versions::ApiVersionsRequest, ApiVersionsRequest, ApiVersionsResponse>();
    same_call::<coordinator::FindCoordinatorRequest, FindCoordinatorRequest, FindCoordinatorResponse>();
    same_call::<metadata::MetadataRequest, MetadataRequest, MetadataResponse>();
    same_call::<produce::ProduceRequest, ProduceRequest, ProduceResponse>();
    same_call::<fetch::FetchRequest, FetchRequest, FetchResponse>();
    same_call::<offsets::ListOffsetsRequest, ListOffsetsRequest, ListOffsetsResponse>();
    same_call::<
        offsets::OffsetForLeaderEpochRequest,
        OffsetForLeaderEpochRequest,
        OffsetForLeaderEpochResponse,
    >();
    same_call::<offsets::DeleteRecordsRequest, DeleteRecordsRequest, DeleteRecordsResponse>();
    same_call::<offsets::InitProducerIdRequest, InitProducerIdRequest, InitProducerIdResponse>();
    same_call::<admin::CreateTopicsRequest, CreateTopicsRequest, CreateTopicsResponse>();
    same_call::<admin::DeleteTopicsRequest, DeleteTopicsRequest, DeleteTopicsResponse>();
    same_call::<admin::CreatePartitionsRequest, CreatePartitionsRequest, CreatePartitionsResponse>();
    same_call::<replicas::ElectLeadersRequest, ElectLeadersRequest, ElectLeadersResponse>();
    same_call::<
        replicas::AlterPartitionReassignmentsRequest,
        AlterPartitionReassignmentsRequest,
        AlterPartitionReassignmentsResponse,
    >();
    same_call::<
        replicas::ListPartitionReassignmentsRequest,
        ListPartitionReassignmentsRequest,
        ListPartitionReassignmentsResponse,
    >();
    same_call::<cluster::DescribeClusterRequest, DescribeClusterRequest, DescribeClusterResponse>();
    same_call::<cluster::DescribeConfigsRequest, DescribeConfigsRequest, DescribeConfigsResponse>();
    same_call::<
        cluster::IncrementalAlterConfigsRequest,
        IncrementalAlterConfigsRequest,
        IncrementalAlterConfigsResponse,
    >();
}
