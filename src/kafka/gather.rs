//! Requests that ask one thing of each partition they name, and are answered when every partition's shard has spoken.
//!
//! Pure; on the shard core that the connection came to. What is asked and told is the business of the APIs that
//! implement [`Gather`].

use std::fmt::Debug;

use bytes::Bytes;
use highwater_shards::front::Cx;
use highwater_shards::mail::{Answer, Op};

use super::api::{Call, response_frame};
use super::errors::ErrorCode;
use super::route::route;
use super::session::{Header, Kafka, Other, Step};
use super::wire::{DecodeError, Reader};
use crate::control::metadata::image::{Image, Topic};

/// A request of this kind.
pub(super) trait Gather: Call {
    /// A partition of the request.
    type Asked;
    /// A partition of the answer.
    type Told: Debug;

    /// How the session remembers that it waits for the answers.
    const WAIT: fn(Box<Gathering<Self>>) -> Other;

    /// Takes the partitions out, by the names of their topics.
    fn take_topics(&mut self) -> impl Iterator<Item = (String, Vec<Self::Asked>)>;

    fn index(asked: &Self::Asked) -> i32;

    /// What to ask of the partition's shard. None when there is nothing to ask, which is no error.
    fn question(&self, at: Place<'_>, asked: &Self::Asked) -> Result<Option<Op>, ErrorCode>;

    /// A partition of which nothing is known but its index and perhaps an error.
    fn told(index: i32) -> Self::Told;

    fn error_code(told: &mut Self::Told) -> &mut i16;

    /// Puts the shard's answer in.
    fn fill(told: &mut Self::Told, header: &Header, answer: Answer) -> Result<(), ErrorCode>;

    fn response(topics: impl Iterator<Item = (String, Vec<Self::Told>)>) -> Self::Response;
}

/// Where a question comes from and where it goes.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub kafka: &'a Kafka,
    pub image: &'a Image,
    pub header: &'a Header,
    pub topic: &'a Topic,
}

/// The answer as it fills up.
#[derive(Debug)]
pub(super) struct Gathering<G: Gather> {
    /// Each with the number of its partitions, which stand one after the other in `told`.
    topics: Vec<(String, usize)>,
    /// By part of the request.
    told: Vec<G::Told>,
    /// Parts without an answer.
    waiting: usize,
}

impl<G: Gather> Gathering<G> {
    pub fn start(
        kafka: &mut Kafka,
        cx: &mut Cx<'_, Kafka>,
        header: &Header,
        r: &mut Reader<'_>,
    ) -> Result<Step, DecodeError> {
        let mut request: G = header.body(r)?;
        let mut gathering = Self { topics: Vec::new(), told: Vec::new(), waiting: 0 };
        let topics: Vec<_> = request.take_topics().collect();
        for (name, partitions) in topics {
            gathering.topics.push((name, partitions.len()));
            gathering.told.reserve(partitions.len());
            for asked in partitions {
                let mut told = G::told(G::index(&asked));
                if let Err(code) = gathering.ask(kafka, cx, header, &request, &asked) {
                    kafka.stats.error(G::API, code);
                    *G::error_code(&mut told) = code.wire();
                }
                gathering.told.push(told);
            }
        }
        Ok(if gathering.waiting == 0 {
            header.answer(&gathering.finish())
        } else {
            Step::Wait(G::WAIT(Box::new(gathering)))
        })
    }

    /// Sends the question to the shard of the partition that the newest topic has it for.
    fn ask(
        &mut self,
        kafka: &Kafka,
        cx: &mut Cx<'_, Kafka>,
        header: &Header,
        request: &G,
        asked: &G::Asked,
    ) -> Result<(), ErrorCode> {
        let image: &Image = cx.view;
        let (name, _) = self.topics.last().expect("the caller has put the topic there");
        let topic = image.topic(name).ok_or(ErrorCode::UnknownTopicOrPartition)?;
        let (shard, partition) = route(image, kafka.config.node, topic, G::index(asked))?;
        if let Some(op) = request.question(Place { kafka, image, header, topic }, asked)? {
            cx.submit(shard, partition, header.token(self.told.len()), op);
            self.waiting += 1;
        }
        Ok(())
    }

    /// One more part is answered; the whole answer when it was the last.
    pub fn on_answer(
        &mut self,
        kafka: &mut Kafka,
        header: &Header,
        part: usize,
        answer: Answer,
    ) -> Option<Vec<Bytes>> {
        let told = &mut self.told[part];
        if let Err(code) = G::fill(told, header, answer) {
            kafka.stats.error(G::API, code);
            *G::error_code(told) = code.wire();
        }
        self.waiting -= 1;
        (self.waiting == 0)
            .then(|| vec![response_frame(header.api, header.v, header.correlation, &self.finish())])
    }

    fn finish(&mut self) -> G::Response {
        let mut told = std::mem::take(&mut self.told).into_iter();
        let topics = std::mem::take(&mut self.topics).into_iter();
        G::response(topics.map(|(name, count)| (name, told.by_ref().take(count).collect())))
    }
}
