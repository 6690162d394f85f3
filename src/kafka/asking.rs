//! Requests that ask the control core for one change to each topic or resource they name: what cannot be asked is
//! refused at once, the rest is filled in when the control core has answered.
//!
//! Pure; on the shard core that the connection came to.

use super::errors::refused;
use super::messages::admin::{CreatableTopicResult, CreatePartitionsTopicResult, DeletableTopicResult};
use super::messages::cluster::AlterConfigsResourceResponse;
use super::session::{Header, Kafka};
use crate::control::request::Refusal;

/// One topic or resource in an answer.
pub(super) trait Element {
    /// Its error and the words that go with it.
    fn error(&mut self) -> (&mut i16, &mut Option<String>);
}

macro_rules! elements {
    ($($element:ident,)*) => {$(
        impl Element for $element {
            fn error(&mut self) -> (&mut i16, &mut Option<String>) {
                (&mut self.error_code, &mut self.error_message)
            }
        }
    )*};
}

elements! {
    CreatableTopicResult,
    DeletableTopicResult,
    CreatePartitionsTopicResult,
    AlterConfigsResourceResponse,
}

/// The elements of an answer as far as they are known.
#[derive(Debug)]
pub(super) struct Asking<E> {
    elements: Vec<E>,
    /// Those that the control core is to fill in, in the order in which it was asked.
    asked: Vec<usize>,
}

impl<E: Element> Asking<E> {
    pub fn new() -> Self {
        Self { elements: Vec::new(), asked: Vec::new() }
    }

    /// Takes the next element, and adds what is to be asked for it to `questions`.
    pub fn put<Q>(
        &mut self,
        kafka: &mut Kafka,
        header: &Header,
        mut element: E,
        question: Result<Q, Refusal>,
        questions: &mut Vec<Q>,
    ) {
        match question {
            Ok(question) => {
                questions.push(question);
                self.asked.push(self.elements.len());
            }
            Err(refusal) => refuse(kafka, header, &mut element, refusal),
        }
        self.elements.push(element);
    }

    /// All elements, when the control core answered with `results`; `done` fills in what it did.
    pub fn fill<T>(
        mut self,
        kafka: &mut Kafka,
        header: &Header,
        results: Vec<Result<T, Refusal>>,
        mut done: impl FnMut(&Kafka, &mut E, T),
    ) -> Vec<E> {
        assert_eq!(self.asked.len(), results.len(), "one result for each topic or resource");
        for (at, result) in self.asked.into_iter().zip(results) {
            let element = &mut self.elements[at];
            match result {
                Ok(result) => done(kafka, element, result),
                Err(refusal) => refuse(kafka, header, element, refusal),
            }
        }
        self.elements
    }

    /// All elements, when there was nothing to ask.
    pub fn known(self) -> Vec<E> {
        assert!(self.asked.is_empty(), "what was asked is filled in by its answer");
        self.elements
    }
}

fn refuse(kafka: &mut Kafka, header: &Header, element: &mut impl Element, refusal: Refusal) {
    let (code, message) = refused(refusal);
    kafka.stats.error(header.api, code);
    let (error_code, error_message) = element.error();
    (*error_code, *error_message) = (code.wire(), message);
}
