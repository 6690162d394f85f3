//! What the group needs of the machine it runs on: a folder for its files, and somebody who waits for the disk.
//!
//! Driver. The simulator puts a disk and workers of its own in their place.

use std::any::Any;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::oneshot;

pub use super::log::LogWriter;
pub use crate::store::folder::{Backend, File, Folder};

/// Between attempts on a full disk.
const SPACE_EVERY: Duration = Duration::from_millis(500);

/// Something that waits for the disk.
pub type Work = Box<dyn FnOnce() + Send>;

/// Those who wait for the disk, so that the control core does not.
pub trait Workers: 'static {
    /// Runs the writer of the log. What is returned waits for its end when it is dropped, which is after the
    /// writer's queue is closed.
    fn start_log(&self, writer: LogWriter) -> io::Result<Box<dyn Any>>;
    /// Runs something. Several may run at once.
    fn run(&self, work: Work);
}

/// Runs what waits for the disk elsewhere, and waits for what comes of it.
pub(super) async fn blocking<T: Send + 'static>(
    workers: &Rc<dyn Workers>,
    f: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (done, result) = oneshot::channel();
    // Who asked may have been dropped.
    workers.run(Box::new(move || drop(done.send(f()))));
    result.await.map_err(|_| io::Error::other("what waited for the disk has panicked"))?
}

/// As [`blocking`], again and again for as long as there is no space for it.
pub(super) async fn patiently<T: Send + 'static>(
    workers: &Rc<dyn Workers>,
    f: impl Fn() -> io::Result<T> + Clone + Send + 'static,
) -> io::Result<T> {
    let mut waits = false;
    loop {
        let result = blocking(workers, f.clone()).await;
        let full = |error: &io::Error| {
            matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        };
        if !result.as_ref().is_err_and(full) {
            return result;
        }
        if !waits {
            tracing::warn!("no space left for a snapshot of the metadata: it waits until there is");
            waits = true;
        }
        tokio::time::sleep(SPACE_EVERY).await;
    }
}

/// A thread for the log, and those of the runtime for the rest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Threads;

impl Workers for Threads {
    fn start_log(&self, writer: LogWriter) -> io::Result<Box<dyn Any>> {
        let thread = std::thread::Builder::new().name("hw-raft-log".into()).spawn(move || writer.run())?;
        Ok(Box::new(LogThread(Some(thread))))
    }

    fn run(&self, work: Work) {
        drop(tokio::task::spawn_blocking(work));
    }
}

/// Waits for the thread when it is dropped.
struct LogThread(Option<std::thread::JoinHandle<()>>);

impl Drop for LogThread {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            // A thread that panicked has ended too, and said why.
            let _ = thread.join();
        }
    }
}
