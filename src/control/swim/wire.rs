//! The bodies of datagrams: one message, and news of members after it.
//!
//! Control core, pure. Reading borrows from the datagram and allocates nothing; whatever does not read to its end is
//! malformed. Numbers are little endian.
//!
//! | message | bytes after its kind |
//! |---|---|
//! | 1 ping, 2 ack | nonce 4, view 4 |
//! | 3 ask for a probe | nonce 4, target 8 |
//! | 4 nack | nonce 4 |
//! | 5 gossip | |
//! | 6 join | nonce 16 |
//! | 7 challenge | challenge 16 |
//! | 8 challenge to a join | its nonce 16, challenge 16 |
//! | 9 echo | challenge 16 |
//! | 10 hashes | 64 times 4 |
//! | 11 page | mask of buckets 8, entries 2, and for each: id 8, incarnation 8 |
//! | 12 pull | ids 2, and for each 8 |
//! | 13 records | |
//!
//! | news | bytes after its kind |
//! |---|---|
//! | 0 padding | |
//! | 1 alive, 2 suspect record, 3 left record | name 1 + n, incarnation 8, boot 8, address 1 + 4 or 16 + 2, metadata 2 + n |
//! | 4 suspect, 5 dead | id 8, incarnation 8, accuser 8 |
//! | 6 left | id 8, incarnation 8 |

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::auth::FRAME_BYTES;
use super::member::{Id, Incarnation, Member, Status};
use super::{METADATA_BYTES_MAX, NAME_BYTES_MAX};

/// Parts in which tables are compared.
pub(super) const BUCKETS: usize = 64;
/// A whole ping without news.
pub(super) const PING_BYTES: usize = FRAME_BYTES + 9;
/// A record without name and metadata.
pub(super) const ALIVE_FIXED_BYTES: usize = 1 + 1 + 8 + 8 + 19 + 2;
/// What a challenge takes as a whole: what asks for one has at least this many bytes.
pub(super) const CHALLENGE_BYTES: usize = FRAME_BYTES + 17;
/// The same with the nonce of the join that it answers.
pub(super) const JOIN_BYTES: usize = FRAME_BYTES + 33;
pub(super) const PAGE_FIXED_BYTES: usize = FRAME_BYTES + 11;
pub(super) const PAGE_ENTRY_BYTES: usize = 16;
pub(super) const PULL_FIXED_BYTES: usize = FRAME_BYTES + 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message<'a> {
    Ping { nonce: u32, view: u32 },
    Ack { nonce: u32, view: u32 },
    PingRequest { nonce: u32, target: Id },
    Nack { nonce: u32 },
    Gossip,
    Join { nonce: u128 },
    Challenge { answers: Option<u128>, challenge: u128 },
    Echo { challenge: u128 },
    Hashes(Numbers<'a, 4>),
    Page { buckets: u64, entries: Numbers<'a, 16> },
    Pull(Numbers<'a, 8>),
    Records,
}

/// Bytes in pieces of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Numbers<'a, const N: usize>(&'a [u8]);

impl<'a, const N: usize> Numbers<'a, N> {
    fn pieces(self) -> impl Iterator<Item = &'a [u8; N]> {
        self.0.chunks_exact(N).map(|piece| piece.try_into().expect("pieces of N bytes"))
    }
}

impl<'a> Numbers<'a, 4> {
    pub(super) fn hashes(self) -> impl Iterator<Item = u32> + 'a {
        self.pieces().map(|piece| u32::from_le_bytes(*piece))
    }
}

impl<'a> Numbers<'a, 8> {
    pub(super) fn ids(self) -> impl Iterator<Item = Id> + 'a {
        self.pieces().map(|piece| Id(u64::from_le_bytes(*piece)))
    }
}

impl<'a> Numbers<'a, 16> {
    pub(super) fn entries(self) -> impl Iterator<Item = (Id, Incarnation)> + 'a {
        self.pieces().map(|piece| {
            let both = u128::from_le_bytes(*piece);
            (Id(both as u64), Incarnation::unpack((both >> 64) as u64))
        })
    }
}

/// What is said of one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News<'a> {
    Record(Record<'a>),
    Suspect { id: Id, incarnation: Incarnation, accuser: Id },
    Dead { id: Id, incarnation: Incarnation, accuser: Id },
    Left { id: Id, incarnation: Incarnation },
}

/// All that a member says of itself, with how it stands with the one that passes it on: alive, suspect or left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub name: &'a str,
    pub incarnation: Incarnation,
    pub boot: u64,
    pub addr: SocketAddr,
    pub metadata: &'a [u8],
    pub status: Status,
}

/// Reads from the front.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (front, rest) = self.0.split_at_checked(len).ok_or(Malformed)?;
        self.0 = rest;
        Ok(front)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        Ok(self.take(N)?.try_into().expect("as many bytes as were taken"))
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    fn u16(&mut self) -> Result<usize, Malformed> {
        self.array().map(|bytes| usize::from(u16::from_le_bytes(bytes)))
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    fn u128(&mut self) -> Result<u128, Malformed> {
        self.array().map(u128::from_le_bytes)
    }

    fn id(&mut self) -> Result<Id, Malformed> {
        self.u64().map(Id)
    }

    fn incarnation(&mut self) -> Result<Incarnation, Malformed> {
        self.u64().map(Incarnation::unpack)
    }

    fn addr(&mut self) -> Result<SocketAddr, Malformed> {
        let ip: IpAddr = match self.u8()? {
            4 => Ipv4Addr::from(self.array::<4>()?).into(),
            6 => Ipv6Addr::from(self.array::<16>()?).into(),
            _ => return Err(Malformed),
        };
        let port = u16::from_le_bytes(self.array()?);
        if ip.is_unspecified() || port == 0 { Err(Malformed) } else { Ok((ip, port).into()) }
    }

    fn record(&mut self, status: Status) -> Result<Record<'a>, Malformed> {
        let len = usize::from(self.u8()?);
        if len == 0 || len > NAME_BYTES_MAX {
            return Err(Malformed);
        }
        let name = std::str::from_utf8(self.take(len)?).map_err(|_| Malformed)?;
        let (incarnation, boot, addr) = (self.incarnation()?, self.u64()?, self.addr()?);
        let len = self.u16()?;
        if len > METADATA_BYTES_MAX {
            return Err(Malformed);
        }
        Ok(Record { name, incarnation, boot, addr, metadata: self.take(len)?, status })
    }

    fn message(&mut self) -> Result<Message<'a>, Malformed> {
        Ok(match self.u8()? {
            1 => Message::Ping { nonce: self.u32()?, view: self.u32()? },
            2 => Message::Ack { nonce: self.u32()?, view: self.u32()? },
            3 => Message::PingRequest { nonce: self.u32()?, target: self.id()? },
            4 => Message::Nack { nonce: self.u32()? },
            5 => Message::Gossip,
            6 => Message::Join { nonce: self.u128()? },
            7 => Message::Challenge { answers: None, challenge: self.u128()? },
            8 => Message::Challenge { answers: Some(self.u128()?), challenge: self.u128()? },
            9 => Message::Echo { challenge: self.u128()? },
            10 => Message::Hashes(Numbers(self.take(BUCKETS * 4)?)),
            11 => {
                let (buckets, entries) = (self.u64()?, self.u16()?);
                Message::Page { buckets, entries: Numbers(self.take(entries * PAGE_ENTRY_BYTES)?) }
            }
            12 => {
                let ids = self.u16()?;
                Message::Pull(Numbers(self.take(ids * 8)?))
            }
            13 => Message::Records,
            _ => return Err(Malformed),
        })
    }
}

/// The message of a body, and a reader that stands at the news after it.
pub(super) fn read(body: &[u8]) -> Result<(Message<'_>, Reader<'_>), Malformed> {
    let mut reader = Reader(body);
    let message = reader.message()?;
    Ok((message, reader))
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<News<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        while let [0, rest @ ..] = self.0 {
            self.0 = rest;
        }
        if self.0.is_empty() {
            return None;
        }
        let news = self.news();
        if news.is_err() {
            self.0 = &[];
        }
        Some(news)
    }
}

impl<'a> Reader<'a> {
    fn news(&mut self) -> Result<News<'a>, Malformed> {
        Ok(match self.u8()? {
            1 => News::Record(self.record(Status::Alive)?),
            2 => News::Record(self.record(Status::Suspect)?),
            3 => News::Record(self.record(Status::Left)?),
            4 => News::Suspect { id: self.id()?, incarnation: self.incarnation()?, accuser: self.id()? },
            5 => News::Dead { id: self.id()?, incarnation: self.incarnation()?, accuser: self.id()? },
            6 => News::Left { id: self.id()?, incarnation: self.incarnation()? },
            _ => return Err(Malformed),
        })
    }
}

impl Message<'_> {
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        match *self {
            Message::Ping { nonce, view } => {
                out.push(1);
                out.extend_from_slice(&nonce.to_le_bytes());
                out.extend_from_slice(&view.to_le_bytes());
            }
            Message::Ack { nonce, view } => {
                out.push(2);
                out.extend_from_slice(&nonce.to_le_bytes());
                out.extend_from_slice(&view.to_le_bytes());
            }
            Message::PingRequest { nonce, target } => {
                out.push(3);
                out.extend_from_slice(&nonce.to_le_bytes());
                out.extend_from_slice(&target.0.to_le_bytes());
            }
            Message::Nack { nonce } => {
                out.push(4);
                out.extend_from_slice(&nonce.to_le_bytes());
            }
            Message::Gossip => out.push(5),
            Message::Join { nonce } => {
                out.push(6);
                out.extend_from_slice(&nonce.to_le_bytes());
            }
            Message::Challenge { answers, challenge } => {
                out.push(if answers.is_some() { 8 } else { 7 });
                if let Some(nonce) = answers {
                    out.extend_from_slice(&nonce.to_le_bytes());
                }
                out.extend_from_slice(&challenge.to_le_bytes());
            }
            Message::Echo { challenge } => {
                out.push(9);
                out.extend_from_slice(&challenge.to_le_bytes());
            }
            Message::Hashes(Numbers(bytes)) => {
                out.push(10);
                out.extend_from_slice(bytes);
            }
            Message::Page { buckets, entries: Numbers(bytes) } => {
                out.push(11);
                out.extend_from_slice(&buckets.to_le_bytes());
                put_count(out, bytes.len() / PAGE_ENTRY_BYTES);
                out.extend_from_slice(bytes);
            }
            Message::Pull(Numbers(bytes)) => {
                out.push(12);
                put_count(out, bytes.len() / 8);
                out.extend_from_slice(bytes);
            }
            Message::Records => out.push(13),
        }
    }
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    let count = u16::try_from(count).expect("what fits a datagram is counted in 16 bits");
    out.extend_from_slice(&count.to_le_bytes());
}

/// Bytes that the messages with lists are made from.
pub(super) fn hashes_bytes(hashes: impl Iterator<Item = u32>, out: &mut Vec<u8>) {
    out.clear();
    hashes.for_each(|hash| out.extend_from_slice(&hash.to_le_bytes()));
}

pub(super) fn put_entry(out: &mut Vec<u8>, id: Id, incarnation: Incarnation) {
    out.extend_from_slice(&id.0.to_le_bytes());
    out.extend_from_slice(&incarnation.packed().to_le_bytes());
}

/// The list of a message, from bytes that were made for it.
pub(super) fn list<const N: usize>(bytes: &[u8]) -> Numbers<'_, N> {
    assert!(bytes.len().is_multiple_of(N), "a list has whole pieces");
    Numbers(bytes)
}

/// A record of the member with this status, which is not dead: nobody passes a death on as a record.
pub(super) fn put_record(out: &mut Vec<u8>, member: &Member, status: Status) {
    out.push(match status {
        Status::Alive => 1,
        Status::Suspect => 2,
        Status::Left => 3,
        Status::Dead => unreachable!("a death is told, not recorded"),
    });
    out.push(u8::try_from(member.name.len()).expect("names are bounded"));
    out.extend_from_slice(member.name.as_bytes());
    out.extend_from_slice(&member.incarnation.packed().to_le_bytes());
    out.extend_from_slice(&member.boot.to_le_bytes());
    match member.addr.ip() {
        IpAddr::V4(ip) => {
            out.push(4);
            out.extend_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out.push(6);
            out.extend_from_slice(&ip.octets());
        }
    }
    out.extend_from_slice(&member.addr.port().to_le_bytes());
    out.extend_from_slice(&u16::try_from(member.metadata.len()).expect("metadata is bounded").to_le_bytes());
    out.extend_from_slice(&member.metadata);
}

pub(super) fn put_suspect(out: &mut Vec<u8>, member: &Member, accuser: Id) {
    put_claim(out, 4, member);
    out.extend_from_slice(&accuser.0.to_le_bytes());
}

pub(super) fn put_dead(out: &mut Vec<u8>, member: &Member, accuser: Id) {
    put_claim(out, 5, member);
    out.extend_from_slice(&accuser.0.to_le_bytes());
}

pub(super) fn put_left(out: &mut Vec<u8>, member: &Member) {
    put_claim(out, 6, member);
}

fn put_claim(out: &mut Vec<u8>, kind: u8, member: &Member) {
    out.push(kind);
    out.extend_from_slice(&member.id.0.to_le_bytes());
    out.extend_from_slice(&member.incarnation.packed().to_le_bytes());
}
