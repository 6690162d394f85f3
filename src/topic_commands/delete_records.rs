//! `highwater topic delete-records`: the records before an offset, at the leaders of their partitions.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use serde_json::json;

use super::client::Client;
use super::table::printable;
use super::{Leader, Outcome, leaders, metadata, name_of, words_of};
use crate::cli::{Before, DeleteRecordsArgs};
use crate::error::Failure;
use crate::kafka::messages::metadata::MetadataResponse;
use crate::kafka::messages::offsets::{
    DeleteRecordsPartition, DeleteRecordsRequest, DeleteRecordsResponse, DeleteRecordsTopic,
};

/// The wire's stand-in offset for the high watermark.
const HIGH_WATERMARK: i64 = -1;
const UNKNOWN_PARTITION: i16 = 3;
const NO_LEADER: i16 = 5;

/// Asks one leader to delete.
pub(super) type AskDeletion<'a> =
    &'a mut dyn FnMut(&Leader, &DeleteRecordsRequest) -> Result<DeleteRecordsResponse, Failure>;

pub(super) fn delete_records<S: Read + Write>(
    client: &mut Client<S>,
    args: &DeleteRecordsArgs,
    ask: AskDeletion<'_>,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let mut names: Vec<String> = args.targets.iter().map(|target| target.topic.clone()).collect();
    names.sort_unstable();
    names.dedup();
    let answer = metadata(client, Some(&names))?;
    let mut outcome = Outcome::new(args.node.json);
    let mut asked = wanted(args, &answer, &mut outcome);
    for leader in leaders(&answer) {
        let led: Vec<_> =
            asked.iter().filter(|(_, id)| **id == leader.id).map(|(at, _)| at.clone()).collect();
        if led.is_empty() {
            continue;
        }
        // Each leader is tried: what one of them cannot do is no reason to leave the others' records.
        match ask(&leader, &request(args, &led)) {
            Ok(answer) => show(&answer, &mut asked, &mut outcome),
            Err(failure) => {
                for at in led {
                    asked.remove(&at);
                    outcome.failures.push(format!("{}: {}", shown(&at.0, at.1), failure.message));
                }
            }
        }
    }
    for (topic, partition) in asked.keys() {
        outcome
            .failures
            .push(format!("{}: the node did not say what became of it", shown(topic, *partition)));
    }
    outcome.finish(&[], 0, out)
}

/// The partitions to ask for, with the ids of their leaders. What there is nobody to ask for has failed.
fn wanted(
    args: &DeleteRecordsArgs,
    metadata: &MetadataResponse,
    outcome: &mut Outcome,
) -> BTreeMap<(String, i32), i32> {
    let mut asked = BTreeMap::new();
    for target in &args.targets {
        let known = metadata.topics.iter().find(|topic| name_of(topic) == target.topic);
        let (partitions, code) = match known {
            Some(topic) if topic.error_code == 0 => (topic.partitions.as_slice(), UNKNOWN_PARTITION),
            Some(topic) => (&[][..], topic.error_code),
            None => (&[][..], UNKNOWN_PARTITION),
        };
        let mut chosen = partitions
            .iter()
            .filter(|p| target.partition.is_none_or(|index| index == p.partition_index))
            .peekable();
        if chosen.peek().is_none() {
            match target.partition {
                Some(partition) if !partitions.is_empty() => {
                    let why = format!("the topic has {} partitions, counted from 0", partitions.len());
                    outcome.failed(&shown(&target.topic, partition), code, Some(&why));
                }
                _ => outcome.failed(&printable(&target.topic), code, None),
            }
        }
        for p in chosen {
            if p.leader_id < 0 {
                outcome.failed(&shown(&target.topic, p.partition_index), NO_LEADER, None);
            } else {
                asked.insert((target.topic.clone(), p.partition_index), p.leader_id);
            }
        }
    }
    asked
}

fn request(args: &DeleteRecordsArgs, partitions: &[(String, i32)]) -> DeleteRecordsRequest {
    let offset = match args.before {
        Before::Latest => HIGH_WATERMARK,
        Before::Offset(offset) => offset,
    };
    let mut topics: Vec<DeleteRecordsTopic> = Vec::new();
    for (name, partition_index) in partitions {
        if topics.last().is_none_or(|last| last.name != *name) {
            topics.push(DeleteRecordsTopic { name: name.clone(), ..DeleteRecordsTopic::default() });
        }
        let topic = topics.last_mut().expect("one was just put there");
        topic.partitions.push(DeleteRecordsPartition { partition_index: *partition_index, offset });
    }
    DeleteRecordsRequest { topics, timeout_ms: args.node.timeout_ms() }
}

fn show(answer: &DeleteRecordsResponse, asked: &mut BTreeMap<(String, i32), i32>, outcome: &mut Outcome) {
    for topic in &answer.topics {
        for p in &topic.partitions {
            if asked.remove(&(topic.name.clone(), p.partition_index)).is_none() {
                continue;
            }
            let name = shown(&topic.name, p.partition_index);
            match p.error_code {
                0 => outcome.done(
                    format!("{name} starts at {}", p.low_watermark),
                    json!({
                        "topic": topic.name, "partition": p.partition_index, "start_offset": p.low_watermark,
                    }),
                ),
                code => outcome.failed(&name, code, Some(&why(code))),
            }
        }
    }
}

fn why(code: i16) -> String {
    match code {
        1 => "there is no such offset: it lies beyond the last record that can be read".into(),
        44 => {
            "the topic is compacted and keeps the last record of every key; `cleanup.policy=compact,delete` \
               would allow it"
                .into()
        }
        _ => words_of(code),
    }
}

fn shown(topic: &str, partition: i32) -> String {
    format!("{}:{partition}", printable(topic))
}
