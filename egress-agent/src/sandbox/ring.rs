//! The reader of an event ring, for all sandboxes that report into it: one thread, from the first of them to the last.

use super::{error::Error, reporter::Reading, sleep::Sleep};
use crate::datapath::{
    records::{self, Records},
    tables::{TableError, Tables},
};
use nix::poll::PollTimeout;
use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

const THREAD: &str = "egressd-events";
/// How long a DNS event may wait for the ring's reader.
const TICK_MS: u16 = 100;
/// How often permits are swept.
const SWEEP: Duration = Duration::from_secs(5);

/// An event ring and who wants to hear of it.
pub(super) struct Ring {
    readings: Arc<Mutex<Readings>>,
    thread: Mutex<Option<Reader>>,
}

struct Readings {
    records: Records,
    tables: Arc<Tables>,
    each: Vec<Reading>,
}

struct Reader {
    stop: io::PipeWriter,
    thread: JoinHandle<()>,
}

impl Ring {
    pub(super) fn new(records: Records, tables: &Arc<Tables>) -> Self {
        let readings = Readings { records, tables: Arc::clone(tables), each: Vec::new() };
        Self { readings: Arc::new(Mutex::new(readings)), thread: Mutex::new(None) }
    }

    /// From here on, what is reported of the sandbox with that nonce is its.
    pub(super) fn join(&self, reading: Reading) -> Result<(), Error> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        let mut readings = lock(&self.readings);
        if thread.is_none() {
            let ring = readings.records.descriptor().map_err(Error::thread(THREAD))?;
            *thread = Some(start(&self.readings, ring).map_err(Error::thread(THREAD))?);
        }
        readings.each.push(reading);
        Ok(())
    }

    /// Reads what is left of the sandbox's, once. With the last one, the thread ends.
    pub(super) fn leave(&self, nonce: u64) {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        let mut readings = lock(&self.readings);
        readings.take_in();
        if let Some(at) = readings.each.iter().position(|reading| reading.nonce() == nonce) {
            readings.each.swap_remove(at).finish();
        }
        let idle = readings.each.is_empty();
        drop(readings);
        if let Some(Reader { stop, thread }) = thread.take_if(|_| idle) {
            drop(stop);
            if thread.join().is_err() {
                tracing::error!("the thread that reads events had panicked");
            }
        }
    }
}

fn start(readings: &Arc<Mutex<Readings>>, ring: OwnedFd) -> io::Result<Reader> {
    let (stopped, stop) = io::pipe()?;
    let readings = Arc::clone(readings);
    let thread = thread::Builder::new().name(THREAD.into()).spawn(move || read(&readings, &ring, &stopped))?;
    Ok(Reader { stop, thread })
}

fn read(readings: &Mutex<Readings>, ring: &OwnedFd, stopped: &io::PipeReader) {
    let mut swept = Instant::now();
    let mut sleep = Sleep::new();
    loop {
        match records::wait(ring.as_fd(), stopped.as_fd(), PollTimeout::from(TICK_MS)) {
            Ok(true) => return,
            Ok(false) => {}
            Err(errno) => {
                tracing::error!(%errno, "cannot wait for kernel events; no more will be shown");
                return;
            }
        }
        let mut readings = lock(readings);
        readings.take_in();
        let slept = sleep.slept();
        readings.each.iter_mut().for_each(|reading| reading.look_after(slept));
        if swept.elapsed() > SWEEP {
            swept = Instant::now();
            if let Err(error) = readings.sweep() {
                tracing::warn!(%error, "expired permits stay in the map");
            }
        }
    }
}

impl Readings {
    fn take_in(&mut self) {
        let Self { records, each, .. } = self;
        records.drain(|record| {
            // What a sandbox that is gone had reported is nobody's.
            if let Some(reading) = each.iter_mut().find(|reading| reading.nonce() == record.nonce) {
                reading.take(record);
            }
        });
        each.iter_mut().for_each(Reading::take_in);
    }

    /// One look at the map for all of them.
    fn sweep(&self) -> Result<(), TableError> {
        let horizon = super::permits::horizon_ns();
        let old = self.tables.permits_where(|_, permit| super::permits::has_expired(permit, horizon))?;
        self.each.iter().try_for_each(|reading| reading.sweep(&old, horizon))
    }
}

fn lock(readings: &Mutex<Readings>) -> MutexGuard<'_, Readings> {
    readings.lock().unwrap_or_else(PoisonError::into_inner)
}
