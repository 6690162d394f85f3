//! Changes of metadata from their arrival to their answers. Many of one connection may wait for the control core, which
//! takes them in the order in which they came; several then share an entry of the metadata log.
//!
//! Pure; on the shard core that the connection came to.

use std::collections::VecDeque;

use bytes::Bytes;
use highwater_shards::time::Instant;

use super::api::ApiKey;
use super::asking::Asking;
use super::messages::cluster::AlterConfigsResourceResponse;
use super::session::{Header, Kafka, Step};
use super::{admin, configs};
use crate::control::metadata::image::Image;
use crate::control::request::Reply;

/// Changes of one connection that wait at most; later ones are taken up when these are answered.
pub(super) const CHANGES_MAX: usize = 64;
/// Bytes of their frames from which on no more are taken up: an answer may be a hundred times as large.
pub(super) const CHANGES_BYTES_MAX: usize = 128 << 10;

/// Whether a request is a change that others of its connection need not be answered before.
pub(super) fn is_change(api: ApiKey) -> bool {
    matches!(
        api,
        ApiKey::CreateTopics
            | ApiKey::DeleteTopics
            | ApiKey::CreatePartitions
            | ApiKey::IncrementalAlterConfigs
    )
}

/// A change that the control core was asked for.
#[derive(Debug)]
pub(super) enum Asked {
    Topics(Box<admin::Waiting>),
    Configs(Box<Asking<AlterConfigsResourceResponse>>),
}

#[derive(Debug)]
enum Stage {
    Asked(Asked),
    /// The answer, which waits for those before it.
    Answered(Vec<Bytes>),
}

/// A change between its arrival and its answer.
#[derive(Debug)]
struct Change {
    header: Header,
    stage: Stage,
}

/// The changes of a connection that were taken up and are not answered, oldest first.
#[derive(Debug, Default)]
pub(super) struct Changes {
    changes: VecDeque<Change>,
    /// Of their frames.
    bytes: usize,
}

impl Changes {
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Whether no more are taken up until some of these are answered.
    pub fn is_full(&self) -> bool {
        self.changes.len() >= CHANGES_MAX || self.bytes >= CHANGES_BYTES_MAX
    }

    pub fn push_asked(&mut self, header: Header, asked: Asked) {
        self.push(header, Stage::Asked(asked));
    }

    pub fn push_answered(&mut self, header: Header, answer: Vec<Bytes>) {
        self.push(header, Stage::Answered(answer));
    }

    fn push(&mut self, header: Header, stage: Stage) {
        self.bytes += header.bytes;
        self.changes.push_back(Change { header, stage });
    }

    /// The control core answered the request of this number; `false` when none of them has it.
    pub fn on_reply(&mut self, kafka: &mut Kafka, image: &Image, number: u64, reply: Reply) -> bool {
        let asked_as = |change: &&mut Change| change.header.number == number;
        let Some(Change { header, stage }) = self.changes.iter_mut().find(asked_as) else { return false };
        let Stage::Asked(asked) = std::mem::replace(stage, Stage::Answered(Vec::new())) else {
            unreachable!("a request is answered once")
        };
        let step = match asked {
            Asked::Topics(waiting) => admin::on_reply(kafka, image, header, *waiting, reply),
            Asked::Configs(waiting) => configs::on_reply(kafka, header, *waiting, reply),
        };
        let Step::Answer(answer) = step else { unreachable!("nothing more is asked for a change") };
        *stage = Stage::Answered(answer);
        true
    }

    /// The answer to the oldest, when it has come.
    pub fn pop_answered(&mut self, kafka: &mut Kafka, now: Instant) -> Option<Vec<Bytes>> {
        let Change { header, stage: Stage::Answered(answer) } = self.changes.front_mut()? else {
            return None;
        };
        kafka.stats.answered(header.api, now - header.arrived);
        self.bytes -= header.bytes;
        let answer = std::mem::take(answer);
        self.changes.pop_front();
        Some(answer)
    }
}
