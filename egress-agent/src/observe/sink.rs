//! Where events go: a bounded file of JSON lines, and whoever subscribed. No reader can hold up enforcement, so what a slow
//! one misses is counted and told to it.

use super::event::Event;
use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    time::Duration,
};

/// Name of the file inside a sandbox's state directory; the one before it is `events.jsonl.1`.
pub const FILE_NAME: &str = "events.jsonl";
/// Size at which the file is rotated: with the one before it, twice this is kept.
pub const FILE_BYTES: u64 = 16 << 20;
/// Events that wait for one subscriber.
pub const QUEUE: usize = 1024;

/// Takes events from any thread. Clones share everything; the last one to go ends the subscribers' iterators.
#[derive(Clone, Debug, Default)]
pub struct EventSink(Arc<Mutex<Outlets>>);

#[derive(Debug, Default)]
struct Outlets {
    journal: Option<Journal>,
    subscribers: Vec<Subscriber>,
}

impl EventSink {
    /// A sink without a file.
    pub fn new() -> Self {
        Self::default()
    }

    /// A sink that also appends to `path`, which is rotated at `max_bytes` ([`FILE_BYTES`]). Errors if it cannot be opened, or is
    /// a symbolic link.
    pub fn with_file(path: &Path, max_bytes: u64) -> io::Result<Self> {
        let outlets = Outlets { journal: Some(Journal::open(path, max_bytes)?), subscribers: Vec::new() };
        Ok(Self(Arc::new(Mutex::new(outlets))))
    }

    /// Hands an event to everybody. Never blocks on a reader.
    pub fn emit(&self, event: &Event) {
        let mut outlets = self.outlets();
        if let Some(journal) = &mut outlets.journal {
            journal.write(event);
        }
        outlets.subscribers.retain(|subscriber| subscriber.offer(event));
    }

    /// Everything emitted from now on, of which `queue` ([`QUEUE`]) may wait.
    pub fn subscribe(&self, queue: usize) -> Events {
        let (sender, receiver) = sync_channel(queue);
        Events { receiver, missed: self.add(Queue::Blocking(sender)) }
    }

    /// The same for asynchronous code. `queue` is at least 1.
    pub fn subscribe_async(&self, queue: usize) -> AsyncEvents {
        let (sender, receiver) = tokio::sync::mpsc::channel(queue);
        AsyncEvents { receiver, missed: self.add(Queue::Async(sender)) }
    }

    fn add(&self, queue: Queue) -> Missed {
        let missed = Missed::default();
        self.outlets().subscribers.push(Subscriber { queue, missed: missed.clone() });
        missed
    }

    fn outlets(&self) -> MutexGuard<'_, Outlets> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The `lost` event that a subscriber is owed.
#[derive(Clone, Debug, Default)]
struct Missed(Arc<Mutex<Option<Event>>>);

impl Missed {
    fn add(&self, event: &Event) {
        let mut owed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *owed = Some(event.lost_with(owed.as_ref()));
    }

    fn take(&self) -> Option<Event> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[derive(Debug)]
struct Subscriber {
    queue: Queue,
    missed: Missed,
}

#[derive(Debug)]
enum Queue {
    Blocking(SyncSender<Event>),
    Async(tokio::sync::mpsc::Sender<Event>),
}

impl Subscriber {
    /// False once the reader is gone.
    fn offer(&self, event: &Event) -> bool {
        use tokio::sync::mpsc::error::TrySendError as AsyncError;
        let full = match &self.queue {
            Queue::Blocking(sender) => match sender.try_send(event.clone()) {
                Ok(()) => return true,
                Err(TrySendError::Full(event)) => event,
                Err(TrySendError::Disconnected(_)) => return false,
            },
            Queue::Async(sender) => match sender.try_send(event.clone()) {
                Ok(()) => return true,
                Err(AsyncError::Full(event)) => event,
                Err(AsyncError::Closed(_)) => return false,
            },
        };
        self.missed.add(&full);
        true
    }
}

/// Events as they come. The iterator blocks for the next one and ends with the sink. What did not fit the queue comes as one
/// `lost` event, as soon as the reader is back.
#[derive(Debug)]
pub struct Events {
    receiver: Receiver<Event>,
    missed: Missed,
}

impl Events {
    /// The next event if it comes within `wait`; `Err` once there will be none.
    pub fn next_within(&self, wait: Duration) -> Result<Option<Event>, Ended> {
        if let Some(lost) = self.missed.take() {
            return Ok(Some(lost));
        }
        match self.receiver.recv_timeout(wait) {
            Ok(event) => Ok(Some(event)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => self.missed.take().map(Some).ok_or(Ended),
        }
    }

    /// What is there already.
    pub fn ready(&self) -> impl Iterator<Item = Event> + '_ {
        std::iter::from_fn(|| self.missed.take().or_else(|| self.receiver.try_recv().ok()))
    }
}

impl Iterator for Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        self.missed.take().or_else(|| self.receiver.recv().ok()).or_else(|| self.missed.take())
    }
}

/// [`Events`] for asynchronous code. It needs no runtime of its own.
#[derive(Debug)]
pub struct AsyncEvents {
    receiver: tokio::sync::mpsc::Receiver<Event>,
    missed: Missed,
}

impl AsyncEvents {
    /// The next event; `None` once there will be none. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Event> {
        if let Some(lost) = self.missed.take() {
            return Some(lost);
        }
        match self.receiver.recv().await {
            Some(event) => Some(event),
            None => self.missed.take(),
        }
    }
}

/// The sink is gone: no event will follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the sandbox is gone, no event will follow")]
pub struct Ended;

/// The file, and what could not be written to it.
#[derive(Debug)]
struct Journal {
    path: PathBuf,
    file: File,
    written: u64,
    max_bytes: u64,
    owed: Option<Event>,
}

impl Journal {
    fn open(path: &Path, max_bytes: u64) -> io::Result<Self> {
        let file = append_to(path)?;
        let written = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, written, max_bytes, owed: None })
    }

    /// A full disk must not stop the sandbox; the first line that fits again says how many did not.
    fn write(&mut self, event: &Event) {
        let mut outcome = Ok(());
        if let Some(lost) = self.owed.take() {
            outcome = self.append(&lost).inspect_err(|_| self.owed = Some(lost));
        }
        if let Err(error) = outcome.and_then(|()| self.append(event)) {
            if self.owed.is_none() {
                tracing::warn!(path = %self.path.display(), %error, "cannot write events; they are counted until it works again");
            }
            self.owed = Some(event.lost_with(self.owed.as_ref()));
        }
    }

    fn append(&mut self, event: &Event) -> io::Result<()> {
        let mut line = event.to_json_line()?.into_bytes();
        line.push(b'\n');
        if self.written > 0 && self.written + line.len() as u64 > self.max_bytes {
            self.rotate()?;
        }
        // One write per line: a reader sees whole lines only, unless the disk is full.
        self.file.write_all(&line)?;
        self.written += line.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        std::fs::rename(&self.path, rotated(&self.path))?;
        self.file = append_to(&self.path)?;
        self.written = 0;
        Ok(())
    }
}

/// Where the file before this one lies.
pub fn rotated(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path)
}

#[cfg(test)]
#[path = "sink_tests.rs"]
mod tests;
