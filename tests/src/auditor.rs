//! The auditor comes when the faults are over: it appends a last batch to every partition, then reads every log
//! from its first to its last record, and hands it to the checkers.

use std::time::Duration;

use highwater_shards::ids::{Offset, PartitionId};
use highwater_shards::mail::{Acks, Locate};

use crate::checkers::{ReadSeen, Verdict, broken, liveness, order};
use crate::client::{Move, Open, Scene, Tag};
use crate::records::Uid;
use crate::shadow::{Boot, Wanted};
use crate::wire::{Call, ReadCall, Said};

const READ_BYTES: u32 = 1 << 20;

#[derive(Debug, Default)]
pub struct Auditor {
    todo: Vec<PartitionId>,
    begun: bool,
    stage: Stage,
    log: Vec<(u64, Uid)>,
    lanes: u64,
    /// Records that it read, over all partitions.
    pub records: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Stage {
    #[default]
    Append,
    /// The last batch ends here, so the high watermark is not below it.
    Locate {
        end: u64,
    },
    Read {
        at: u64,
        end: u64,
    },
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

    pub fn next_move(&mut self, scene: &mut Scene<'_>, open: usize) -> Move {
        if !self.begun {
            self.begun = true;
            self.todo = scene.partitions.to_vec();
        }
        let Some(&partition) = self.todo.last() else { return Move::Rest(Duration::from_secs(1)) };
        if open > 0 {
            return Move::Rest(Duration::from_millis(2));
        }
        match self.stage {
            Stage::Append => {
                self.lanes += 1;
                let wanted = Wanted::last(partition, self.lanes, scene.checkers.boot);
                let (uid, records) = scene.checkers.shadow.make(&wanted);
                let timeout = Duration::from_secs(2);
                let call = Call::Append { partition, acks: Acks::All, timeout, records };
                Move::Call(call, Tag { uids: vec![uid] })
            }
            Stage::Locate { .. } => {
                Move::Call(Call::Locate { partition, at: Locate::Latest }, Tag::default())
            }
            Stage::Read { at, .. } => {
                let read = ReadCall {
                    partition,
                    offset: Offset(at),
                    bytes_max: READ_BYTES,
                    bytes_min: 1,
                    wait: Duration::from_millis(100),
                    from_follower: false,
                };
                Move::Call(Call::Read(read), Tag::default())
            }
        }
    }

    /// An error leaves the stage as it is, so that it is tried again; the bound on the whole audit ends that.
    pub fn hear(&mut self, open: &Open, said: Said, boot: Boot, scene: &mut Scene<'_>) -> Verdict {
        let partition = *self.todo.last().expect("a call is open");
        match (self.stage, said) {
            (Stage::Append, Said::Appended(Ok(base))) => {
                let uid = open.tag.uids[0];
                scene.checkers.on_acked(uid, base.0, true, boot, scene.now)?;
                self.stage = Stage::Locate { end: base.0 + 1 };
            }
            (Stage::Locate { end }, Said::Located(Ok(Some(latest)))) => {
                if latest.0 < end {
                    let what = format!("{partition}: the end is {latest}, though {end} was acknowledged");
                    return Err(broken(liveness::NAME, what));
                }
                self.stage = Stage::Read { at: 0, end: latest.0 };
            }
            (Stage::Read { at, end }, Said::Read(Ok(said))) => {
                let seen = ReadSeen { partition, offset: at, boot, floor: open.floor, now: scene.now };
                let (batches, next) = scene.checkers.on_read(&seen, &said)?;
                self.log.extend(batches.iter().map(|b| (b.base_offset, b.uid)));
                self.stage = Stage::Read { at: next, end };
                if next >= end {
                    self.finish(partition, next, scene)?;
                }
            }
            (_, Said::Appended(Err(_)) | Said::Located(Err(_)) | Said::Read(Err(_))) => {}
            (stage, said) => return Err(broken("wire", format!("at {stage:?} the auditor heard {said:?}"))),
        }
        Ok(())
    }

    fn finish(&mut self, partition: PartitionId, end: u64, scene: &mut Scene<'_>) -> Verdict {
        scene.checkers.acked.audit(partition, &self.log, end, scene.checkers.boot)?;
        order::audit(&scene.checkers.shadow, partition, &self.log)?;
        self.records += end;
        self.log.clear();
        self.todo.pop();
        self.stage = Stage::Append;
        Ok(())
    }
}
