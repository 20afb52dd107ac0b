//! The server's thread, and the handle that the sandbox holds.

use super::{
    ahead::ALL_ATTEMPTS,
    config::{Config, DnsError, Listeners, Unresolved},
    counters::Counts,
    datagrams::Datagrams,
    event::{Clients, DnsEvents},
    name::Name,
    permits::Permits,
    responder::{Responder, State},
    serve::{self, Alarm},
    stream,
    upstream::Schedule,
};
use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Condvar, Mutex, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};
use tokio::{
    net::TcpListener,
    runtime::{Builder, Handle, Runtime},
    sync::Notify,
    task::JoinSet,
};

/// At most 15 octets (`TASK_COMM_LEN`).
const THREAD: &str = "egressd-dns";

/// The name service of one sandbox, on a thread of its own. Dropping it stops the thread; the listeners' other descriptors
/// stay open.
pub struct Server {
    pub(super) responder: Arc<Responder>,
    pub(super) runtime: Handle,
    listeners: Listeners,
    schedule: Schedule,
    stop: Arc<Notify>,
    failure: Arc<Failure>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Failure {
    error: Mutex<Option<Arc<DnsError>>>,
    happened: Condvar,
}

impl Failure {
    fn set(&self, error: DnsError) {
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(error));
        self.happened.notify_all();
    }
}

/// Records a failure when the thread unwinds.
struct Watch(Arc<Failure>);

impl Drop for Watch {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.set(DnsError::Panicked);
        }
    }
}

impl Server {
    /// Serves on sockets that were opened in the sandbox's network namespace. Upstreams are asked from the namespace of the
    /// calling thread, which must be the agent's own.
    pub fn start(
        listeners: Listeners,
        config: Config,
        permits: Arc<dyn Permits>,
        clients: Arc<dyn Clients>,
        events: Arc<dyn DnsEvents>,
    ) -> Result<Self, DnsError> {
        Self::start_with(listeners, config, permits, clients, events, Schedule::default())
    }

    pub(super) fn start_with(
        listeners: Listeners,
        config: Config,
        permits: Arc<dyn Permits>,
        clients: Arc<dyn Clients>,
        events: Arc<dyn DnsEvents>,
        schedule: Schedule,
    ) -> Result<Self, DnsError> {
        config.check(&listeners)?;
        if listeners.udp.is_empty() || listeners.tcp.is_empty() {
            return Err(DnsError::NoListeners);
        }
        let runtime =
            Builder::new_current_thread().enable_all().build().map_err(|source| DnsError::Start { source })?;
        let sockets = Sockets::register(&listeners, &runtime).map_err(|source| DnsError::Listener { source })?;
        let responder = Arc::new(Responder::new(State::new(config, schedule, None)?, permits, clients, events));
        let handle = runtime.handle().clone();
        let stop = Arc::new(Notify::new());
        let failure = Arc::new(Failure::default());
        let thread = {
            let (responder, stop) = (Arc::clone(&responder), Arc::clone(&stop));
            let watch = Watch(Arc::clone(&failure));
            let body = move || {
                if let Some(error) = runtime.block_on(serve_all(responder, sockets, &stop)) {
                    watch.0.set(error);
                }
            };
            thread::Builder::new().name(THREAD.into()).spawn(body).map_err(|source| DnsError::Start { source })?
        };
        Ok(Self { responder, runtime: handle, listeners, schedule, stop, failure, thread: Some(thread) })
    }

    /// Puts another policy in force. When it returns, no permit is written any more for a question that was judged by the
    /// old one: such a question is judged again.
    pub fn update(&self, config: Config) -> Result<(), DnsError> {
        config.check(&self.listeners)?;
        let previous = self.responder.current();
        self.responder.replace(State::new(config, self.schedule, Some(&previous))?);
        Ok(())
    }

    /// Resolves names that the policy spells out into the cache; nothing is permitted before the sandbox asks. Waits for
    /// all of them, at most 10 s.
    ///
    /// # Errors
    /// [`DnsError::Unresolved`] with every name that has no address.
    pub fn require(&self, names: Vec<Name>) -> Result<(), DnsError> {
        let (done, wait) = mpsc::sync_channel(1);
        let alarm = Alarm(Arc::clone(&self.responder));
        self.runtime.spawn(async move {
            // Nobody waits any more where this fails.
            drop(done.send(Arc::clone(&alarm.0).resolve_ahead(names).await));
        });
        all_resolved(wait.recv_timeout(2 * ALL_ATTEMPTS).map_err(|_| DnsError::Panicked)?)
    }

    /// As [`Server::require`], in the background and with a warning in the log for the names that have no address.
    pub fn warm(&self, names: Vec<Name>) {
        let alarm = Alarm(Arc::clone(&self.responder));
        self.runtime.spawn(async move {
            for unresolved in Arc::clone(&alarm.0).resolve_ahead(names).await {
                tracing::warn!("the policy's name {unresolved} does not resolve yet");
            }
        });
    }

    /// The listeners under new descriptors, for whoever keeps them over a restart.
    pub fn listeners(&self) -> Result<Listeners, DnsError> {
        self.listeners.try_clone().map_err(|source| DnsError::Listener { source })
    }

    /// What was done since the start.
    pub fn counts(&self) -> Counts {
        self.responder.counters.read()
    }

    /// Waits at most `patience` for the server to fail. It does not recover: whoever gets an error ends the sandbox's name
    /// service loudly. `None` while it serves.
    pub fn wait_failure(&self, patience: Duration) -> Option<Arc<DnsError>> {
        let error = self.failure.error.lock().unwrap_or_else(PoisonError::into_inner);
        let (error, _) = self
            .failure
            .happened
            .wait_timeout_while(error, patience, |error| error.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        error.clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the DNS server's thread had panicked");
        }
    }
}

/// Resolves names that a policy spells out and forgets what they lead to: nobody is served, and nothing is permitted. For
/// whoever wants to know before the policy is in force. Upstreams are asked from the namespace of the calling thread. Waits at
/// most 10 s.
///
/// # Errors
/// [`DnsError::Unresolved`] with every name that has no address.
pub fn rehearse(
    config: Config,
    permits: Arc<dyn Permits>,
    clients: Arc<dyn Clients>,
    events: Arc<dyn DnsEvents>,
    names: Vec<Name>,
) -> Result<(), DnsError> {
    config.check(&Listeners::default())?;
    let runtime = Builder::new_current_thread().enable_all().build().map_err(|source| DnsError::Start { source })?;
    let responder = Arc::new(Responder::new(State::new(config, Schedule::default(), None)?, permits, clients, events));
    // The caller may be a runtime's thread, which must neither wait for another runtime nor drop one.
    let body = move || runtime.block_on(responder.resolve_ahead(names));
    let thread = thread::Builder::new().name(THREAD.into()).spawn(body).map_err(|source| DnsError::Start { source })?;
    all_resolved(thread.join().map_err(|_| DnsError::Panicked)?)
}

fn all_resolved(names: Vec<Unresolved>) -> Result<(), DnsError> {
    if names.is_empty() { Ok(()) } else { Err(DnsError::Unresolved { names }) }
}

struct Sockets {
    udp: Vec<(Datagrams, SocketAddr)>,
    tcp: Vec<(TcpListener, SocketAddr)>,
}

impl Sockets {
    fn register(listeners: &Listeners, runtime: &Runtime) -> io::Result<Self> {
        let _entered = runtime.enter();
        let Listeners { udp, tcp, every_address } = listeners.try_clone()?;
        let udp = udp.into_iter().map(|socket| {
            let address = socket.local_addr()?;
            socket.set_nonblocking(true)?;
            Ok((Datagrams::new(socket, every_address)?, address))
        });
        let tcp = tcp.into_iter().map(|socket| {
            let address = socket.local_addr()?;
            socket.set_nonblocking(true)?;
            Ok((TcpListener::from_std(socket)?, address))
        });
        Ok(Self { udp: udp.collect::<io::Result<_>>()?, tcp: tcp.collect::<io::Result<_>>()? })
    }
}

/// Serves every socket until it is told to stop (`None`) or one of them fails.
async fn serve_all(responder: Arc<Responder>, sockets: Sockets, stop: &Notify) -> Option<DnsError> {
    let mut tasks = JoinSet::new();
    for (socket, address) in sockets.udp {
        tasks.spawn(serve::datagrams(Arc::clone(&responder), socket, address));
    }
    for (socket, address) in sockets.tcp {
        tasks.spawn(stream::connections(Arc::clone(&responder), socket, address));
    }
    tokio::select! {
        () = stop.notified() => None,
        () = responder.defect.notified() => Some(DnsError::Panicked),
        ended = tasks.join_next() => Some(ended.and_then(Result::ok).unwrap_or(DnsError::Panicked)),
    }
}
