//! The auditor comes when the faults are over and the cluster has come to rest: it appends a last batch to every partition,
//! then reads the whole log of every replica, and hands each to the judge.

use std::time::Duration;

use highwater_shards::ids::{NodeId, Offset, PartitionId};
use highwater_shards::mail::{Acks, Locate};

use super::client::{Move, Open, Scene};
use super::{index_of, node_id};
use crate::checkers::{Verdict, broken, liveness};
use crate::records::Uid;
use crate::rng::Rng;
use crate::shadow::Wanted;
use crate::wire::{Call, ReadCall, Said};

const READ_BYTES: u32 = 1 << 20;

#[derive(Debug, Default)]
pub struct Auditor {
    todo: Vec<PartitionId>,
    begun: bool,
    stage: Stage,
    log: Vec<(u64, Uid)>,
    lanes: u64,
    /// Records that it read, over all replicas.
    pub records: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
enum Stage {
    #[default]
    Append,
    /// The last batch ends here, so the high watermark is not below it.
    Locate { end: u64 },
    /// The last one of the replicas.
    Read { replicas: Vec<NodeId>, at: u64, end: u64 },
}

impl Auditor {
    pub fn is_done(&self) -> bool {
        self.begun && self.todo.is_empty()
    }

    /// The partition that it is at, for a message.
    pub fn place(&self) -> String {
        format!("{:?} of {:?}", self.stage, self.todo.last())
    }

    pub fn lost(&mut self) {}

    pub fn next_move(&mut self, scene: &mut Scene<'_>, rng: &mut Rng, open: usize) -> Move {
        if !self.begun {
            self.begun = true;
            self.todo = scene.partitions.to_vec();
        }
        let Some(&partition) = self.todo.last() else { return Move::Rest(Duration::from_secs(1)) };
        if open > 0 {
            return Move::Rest(Duration::from_millis(2));
        }
        let leader = scene.leader(partition, rng);
        match &self.stage {
            Stage::Append => {
                self.lanes += 1;
                let wanted = Wanted::last(partition, self.lanes, 1);
                let (uid, records) = scene.judge.shadow.make(&wanted);
                let timeout = Duration::from_secs(2);
                Move::Call(leader, Call::Append { partition, acks: Acks::All, timeout, records }, Some(uid))
            }
            Stage::Locate { .. } => Move::Call(leader, Call::Locate { partition, at: Locate::Latest }, None),
            Stage::Read { replicas, at, .. } => {
                let read = ReadCall {
                    partition,
                    offset: Offset(*at),
                    bytes_max: READ_BYTES,
                    bytes_min: 1,
                    wait: Duration::from_millis(20),
                    from_follower: true,
                };
                let replica = *replicas.last().expect("one is left");
                Move::Call(index_of(replica), Call::Read(read), None)
            }
        }
    }

    /// An error leaves the stage as it is, so that it is tried again; the bound on the whole audit ends that.
    pub fn hear(&mut self, open: &Open, said: Said, scene: &mut Scene<'_>) -> Verdict {
        let partition = *self.todo.last().expect("a call is open");
        match (&mut self.stage, said) {
            (Stage::Append, Said::Appended(Ok(base))) => {
                let uid = open.uid.expect("an append has a batch");
                scene.judge.on_acked(uid, base.0, true)?;
                self.stage = Stage::Locate { end: base.0 + 1 };
            }
            (Stage::Locate { end }, Said::Located(Ok(Some(latest)))) => {
                scene.judge.on_latest(partition, latest.0, open.floor)?;
                if latest.0 < *end {
                    let what = format!("{partition}: the end is {latest}, though {end} was acknowledged");
                    return Err(broken(liveness::NAME, what));
                }
                let replicas = scene.truth[&partition].replicas.clone();
                self.stage = Stage::Read { replicas, at: 0, end: latest.0 };
            }
            (Stage::Read { replicas, at, end }, Said::Read(Ok(said))) => {
                let Call::Read(read) = &open.call else { return Err(broken("wire", "a read nobody sent")) };
                let (batches, next) = scene.judge.on_read(open, read, &said, scene.now)?;
                self.log.extend(batches.iter().map(|b| (b.base_offset, b.uid)));
                *at = next;
                if next >= *end {
                    scene.judge.audit(partition, node_id(open.node), &self.log, next)?;
                    self.records += next;
                    self.log.clear();
                    *at = 0;
                    replicas.pop();
                    if replicas.is_empty() {
                        self.todo.pop();
                        self.stage = Stage::Append;
                    }
                }
            }
            (_, Said::Appended(Err(_)) | Said::Located(Err(_)) | Said::Read(Err(_))) => {}
            (stage, said) => return Err(broken("wire", format!("at {stage:?} the auditor heard {said:?}"))),
        }
        Ok(())
    }
}
