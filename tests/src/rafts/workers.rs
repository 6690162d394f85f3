//! Those who wait for the disk, as tasks of the node: each piece of work is done at one moment, some time after it was
//! asked for.

use std::any::Any;
use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use highwater::raft::host::{LogWriter, Work, Workers};
use tokio::time::sleep;

use super::disk::{Disk, Lies};
use super::saboteur::Sabotage;
use crate::rng::Rng;

pub struct Slow {
    pub disk: Disk,
    pub rng: Rc<RefCell<Rng>>,
    /// How long the disk mostly takes.
    pub usual: Range<Duration>,
    pub sabotage: Option<Sabotage>,
}

impl Slow {
    fn pause(&self) -> Duration {
        self.rng.borrow_mut().tailed(&self.usual)
    }
}

impl Workers for Slow {
    fn start_log(&self, mut writer: LogWriter) -> io::Result<Box<dyn Any>> {
        let slow =
            Self { disk: self.disk.clone(), rng: Rc::clone(&self.rng), usual: self.usual.clone(), ..*self };
        tokio::task::spawn_local(async move {
            let folder = slow.sabotage == Some(Sabotage::NoFolderSync);
            while writer.next().await {
                sleep(slow.pause()).await;
                let contents = writer.contents();
                let files = match slow.sabotage {
                    Some(Sabotage::VoteBeforeSync) => contents.votes > 0,
                    Some(Sabotage::AppendBeforeSync) => contents.entries > 0 && contents.votes == 0,
                    _ => false,
                };
                slow.disk.set_lies(Lies { files, folder });
                while let Some(pause) = writer.write() {
                    sleep(pause).await;
                }
                slow.disk.set_lies(Lies { files: false, folder });
            }
            writer.end();
        });
        Ok(Box::new(()))
    }

    fn run(&self, work: Work) {
        let pause = self.pause();
        tokio::task::spawn_local(async move {
            sleep(pause).await;
            work();
        });
    }
}
