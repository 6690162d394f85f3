//! Makes batches: for the simulator, the benches and tests. A broker never builds one.

use bytes::{BufMut, Bytes, BytesMut};

use super::rebuild::set_crc;
use super::record::put_varint;
use super::{Attributes, BatchProducer, Compression, HEADER_BYTES, MAGIC};

/// Builds one valid batch, as a producer sends it: base offset 0, leader epoch -1, a right CRC.
#[derive(Clone, Debug)]
pub struct BatchBuilder {
    attributes: u16,
    producer: Option<BatchProducer>,
    timestamps_ms: Option<(i64, i64)>,
    records: u32,
    body: BytesMut,
    /// One record's bytes, before their length is known.
    scratch: BytesMut,
}

impl Default for BatchBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl BatchBuilder {
    pub fn new() -> Self {
        Self {
            attributes: 0,
            producer: None,
            timestamps_ms: None,
            records: 0,
            body: BytesMut::new(),
            scratch: BytesMut::new(),
        }
    }

    /// Makes it a batch of an idempotent producer.
    #[must_use]
    pub fn producer(mut self, producer: BatchProducer) -> Self {
        self.producer = Some(producer);
        self
    }

    /// Sets attribute bits as they are, legal or not.
    #[must_use]
    pub fn attributes(mut self, attributes: Attributes) -> Self {
        self.attributes = attributes.0;
        self
    }

    /// Adds a record without headers.
    #[must_use]
    pub fn record(self, timestamp_ms: i64, key: Option<&[u8]>, value: Option<&[u8]>) -> Self {
        self.record_with_headers(timestamp_ms, key, value, &[])
    }

    /// Adds a record.
    #[must_use]
    pub fn record_with_headers(
        mut self,
        timestamp_ms: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&[u8], Option<&[u8]>)],
    ) -> Self {
        let (base_ms, max_ms) = self.timestamps_ms.unwrap_or((timestamp_ms, timestamp_ms));
        self.timestamps_ms = Some((base_ms, max_ms.max(timestamp_ms)));
        let r = &mut self.scratch;
        r.clear();
        r.put_u8(0);
        put_varint(r, timestamp_ms - base_ms);
        put_varint(r, i64::from(self.records));
        put_nullable(r, key);
        put_nullable(r, value);
        put_varint(r, headers.len() as i64);
        for (key, value) in headers {
            put_nullable(r, Some(key));
            put_nullable(r, *value);
        }
        put_varint(&mut self.body, r.len() as i64);
        self.body.put_slice(r);
        self.records += 1;
        self
    }

    /// Takes `body` for `records` records that `codec` compressed. Its content is never looked at.
    #[must_use]
    pub fn compressed(mut self, codec: Compression, timestamp_ms: i64, records: u32, body: &[u8]) -> Self {
        self.attributes = (self.attributes & !Attributes::CODEC) | codec as u16;
        self.timestamps_ms = Some((timestamp_ms, timestamp_ms));
        self.records = records;
        self.body = BytesMut::from(body);
        self
    }

    /// Compresses the records added so far; it is the last to be called.
    ///
    /// # Panics
    /// If the codec fails, which it does without memory only.
    #[must_use]
    pub fn packed(mut self, codec: Compression) -> Self {
        let mut body = Vec::new();
        super::codec::compress(codec, &self.body, &mut body).expect("the codec packs what fits in memory");
        self.attributes = (self.attributes & !Attributes::CODEC) | codec as u16;
        self.body = BytesMut::from(&body[..]);
        self
    }

    /// The batch. Without records it is one that every validation refuses.
    pub fn build(&self) -> Bytes {
        let (base_ms, max_ms) = self.timestamps_ms.unwrap_or((-1, -1));
        let count = i32::try_from(self.records).expect("a test batch is small");
        let len = i32::try_from(HEADER_BYTES - super::PREFIX_BYTES + self.body.len())
            .expect("a test batch is small");
        let mut b = BytesMut::with_capacity(HEADER_BYTES + self.body.len());
        b.put_i64(0);
        b.put_i32(len);
        b.put_i32(-1);
        b.put_u8(MAGIC);
        b.put_u32(0);
        b.put_u16(self.attributes);
        b.put_i32(count - 1);
        b.put_i64(base_ms);
        b.put_i64(max_ms);
        match self.producer {
            Some(p) => {
                b.put_u64(p.id.0);
                b.put_u16(p.epoch.0);
                b.put_u32(p.base_sequence.0);
            }
            None => {
                b.put_i64(-1);
                b.put_i16(-1);
                b.put_i32(-1);
            }
        }
        b.put_i32(count);
        b.put_slice(&self.body);
        set_crc(&mut b);
        b.freeze()
    }
}

fn put_nullable(out: &mut BytesMut, bytes: Option<&[u8]>) {
    match bytes {
        Some(bytes) => {
            put_varint(out, bytes.len() as i64);
            out.put_slice(bytes);
        }
        None => put_varint(out, -1),
    }
}
