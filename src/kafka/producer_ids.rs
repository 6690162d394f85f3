//! InitProducerId: a number of its own for each idempotent producer, from the control core.
//!
//! Pure; on the shard core that the connection came to.

use highwater_shards::front::Cx;

use super::api::ApiKey;
use super::errors::ErrorCode;
use super::messages::offsets::{InitProducerIdRequest, InitProducerIdResponse};
use super::session::{Header, Kafka, Other, Step};
use super::wire::{DecodeError, Reader};
use crate::control::request::{Refusal, Reply, Request, Why};

pub(super) fn start(
    kafka: &mut Kafka,
    cx: &mut Cx<'_, Kafka>,
    header: &Header,
    r: &mut Reader<'_>,
) -> Result<Step, DecodeError> {
    let request: InitProducerIdRequest = header.body(r)?;
    if request.transactional_id.is_some() {
        // There are no transactions. Of the codes that fit, this one makes every client give up at once: librdkafka
        // asks again for ever after most others.
        return Ok(refuse(kafka, header, ErrorCode::TransactionalIdAuthorizationFailed));
    }
    // A producer that names the id it had gets a fresh one too: it knows no records under that one any more.
    cx.ask(header.whole(), Request::NewProducerId);
    Ok(Step::Wait(Other::ProducerId))
}

pub(super) fn on_reply(kafka: &mut Kafka, header: &Header, reply: Reply) -> Step {
    let Reply::NewProducerId(result) = reply else { unreachable!("the reply is that of the request's name") };
    match result {
        Ok((id, epoch)) => header.answer(&InitProducerIdResponse {
            producer_id: i64::try_from(id.0).expect("producer ids are counted up from 0"),
            producer_epoch: i16::try_from(epoch.0).expect("a new producer is at epoch 0"),
            ..InitProducerIdResponse::default()
        }),
        // As Kafka says it while a broker waits for ids: every client asks again.
        Err(Refusal { why: Why::NoController, .. }) => {
            refuse(kafka, header, ErrorCode::CoordinatorLoadInProgress)
        }
        Err(refusal) => refuse(kafka, header, refusal.why.into()),
    }
}

fn refuse(kafka: &mut Kafka, header: &Header, code: ErrorCode) -> Step {
    kafka.stats.error(ApiKey::InitProducerId, code);
    header.answer(&InitProducerIdResponse {
        error_code: code.wire(),
        producer_epoch: -1,
        ..InitProducerIdResponse::default()
    })
}
