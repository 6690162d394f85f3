//! The runtime that openraft runs on: tokio's, with lots drawn from a seed.
//!
//! Driver; control core. Where time is tokio's paused one, all that the group does follows from its seed, its network
//! and its disk. Election timeouts are all that is drawn, so the generator need not be strong, but nodes of one group
//! need different seeds.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use openraft::{AsyncRuntime, OptionalSend};
use openraft_rt_tokio::{TokioInstant, TokioMutex, TokioRuntime};
use rand_core::TryRng;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{RngCore as _, SeedableRng as _};

use super::watch::FairWatch;

thread_local! {
    static LOTS: RefCell<Option<Xoshiro256PlusPlus>> = const { RefCell::new(None) };
}

/// See the module.
#[derive(Debug)]
pub struct Runtime(TokioRuntime);

/// The generator of the thread.
#[derive(Debug)]
pub struct Lots(());

/// What this thread draws from now on follows from `seed`.
pub(super) fn seed(seed: u64) {
    LOTS.set(Some(Xoshiro256PlusPlus::seed_from_u64(seed)));
}

impl Lots {
    fn draw<T>(draw: impl FnOnce(&mut Xoshiro256PlusPlus) -> T) -> Result<T, Infallible> {
        LOTS.with_borrow_mut(|lots| {
            Ok(draw(lots.get_or_insert_with(|| Xoshiro256PlusPlus::seed_from_u64(0))))
        })
    }
}

impl TryRng for Lots {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Self::draw(|lots| lots.next_u32())
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Self::draw(|lots| lots.next_u64())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        Self::draw(|lots| lots.fill_bytes(bytes))
    }
}

impl AsyncRuntime for Runtime {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = TokioInstant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = Lots;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        TokioRuntime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: TokioInstant) -> Self::Sleep {
        TokioRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: TokioInstant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(error)
    }

    fn thread_rng() -> Lots {
        Lots(())
    }

    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = FairWatch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = TokioMutex<T>;

    fn new(threads: usize) -> Self {
        Self(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}
