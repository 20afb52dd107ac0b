//! What the kernel and the DNS half report of one sandbox, as events.

use super::{Directories, bandwidth::Told, error::Error, permits::Permits, record::Record as Stored, seat::Set};
use crate::{
    datapath::tables::{TableError, Tables},
    dns::{self, DnsEvent},
    observe::{
        EventSink,
        event::{Event, Kind, Resolver, Subject},
        fold::Fold,
        permits_file,
        sink::{FILE_BYTES, FILE_NAME},
    },
    policy::Mode,
};
use egress_common::{
    destination::Protocols,
    event::{ClientKey, Counters, Hook, Record},
    permit::{Permit, PermitKey},
    sandbox::Identity,
    verdict::Reason,
};
use std::{
    fs, io,
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::mpsc;

/// DNS events that wait for the reader; more are counted as lost. Room is made as they come: that of std is made at once.
const QUEUE: usize = 4096;
/// Names are written whole: doing so may take one part in so many of the time.
const NAMES_PART: u32 = 100;

/// Whatever an event needs to know of its sandbox.
pub(super) struct Scene {
    pub(super) slot: u32,
    pub(super) nonce: u64,
    pub(super) subject: Mutex<Subject>,
    pub(super) permits: Arc<Permits>,
    pub(super) tables: Arc<Tables>,
    /// Where the sandbox's record and its events are.
    pub(super) directory: PathBuf,
    /// Who answers DNS, until that ends.
    pub(super) server: Mutex<Weak<dns::Server>>,
    /// The process that was looked up last in this pass of the reader, and its executable.
    looked_up: Mutex<Option<(u32, Option<String>)>>,
}

impl Scene {
    pub(super) fn subject(&self) -> Subject {
        self.subject.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Scene {
    /// Has the reader say it when the server fails.
    pub(super) fn watch(&self, server: &Arc<dns::Server>) {
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(server);
    }

    /// Processes may have executed something else since.
    fn look_again(&self) {
        *self.looked_up.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// What the server failed by, told once.
    fn failure(&self) -> Option<Arc<dns::DnsError>> {
        let mut watched = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        let failure = watched.upgrade()?.wait_failure(Duration::ZERO)?;
        *watched = Weak::new();
        Some(failure)
    }
}

impl Resolver for Scene {
    fn rule(&self, tag: u32, addr: IpAddr, protocol: u8, port: Option<u16>) -> Option<String> {
        let in_force = self.permits.in_force();
        in_force.image.explain(tag, addr, Protocols::of(protocol), port).map(|origin| origin.text.clone())
    }

    fn name(&self, addr: IpAddr) -> Option<String> {
        self.permits.name_of(addr)
    }

    fn exe(&self, pid: u32) -> Option<String> {
        // Whoever is denied is often denied again and again, and asking the kernel is the dearest part of an event.
        let mut looked_up = self.looked_up.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, exe) = looked_up.take_if(|(known, _)| *known == pid).unwrap_or_else(|| {
            let path = fs::read_link(format!("/proc/{pid}/exe")).ok();
            (pid, path.map(|path| path.to_string_lossy().into_owned()))
        });
        *looked_up = Some((pid, exe.clone()));
        exe
    }

    fn wall_clock(&self, monotonic_ns: u64) -> SystemTime {
        let age = super::permits::now_ns().saturating_sub(monotonic_ns);
        let now = SystemTime::now();
        now.checked_sub(Duration::from_nanos(age)).unwrap_or(now)
    }
}

impl dns::Clients for Scene {
    fn client(&self, protocol: u8, peer_port: u16) -> Option<dns::Client> {
        let key = ClientKey { slot: self.slot, port: peer_port, protocol: u16::from(protocol) };
        let client = self.tables.client(key).ok().flatten()?;
        let comm: Vec<u8> = client.comm.iter().copied().take_while(|byte| *byte != 0).collect();
        Some(dns::Client { pid: client.pid, uid: client.uid, comm: String::from_utf8_lossy(&comm).into_owned() })
    }
}

/// Takes events of the DNS half without ever blocking it.
pub(super) struct DnsInbox {
    sender: mpsc::Sender<DnsEvent>,
    lost: Arc<AtomicU64>,
}

impl dns::DnsEvents for DnsInbox {
    fn dns_event(&self, event: DnsEvent) {
        if self.sender.try_send(event).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Reads what the kernel says of one sandbox. Dropping it reads what is left, once.
pub(super) struct Reporter {
    set: Arc<Set>,
    nonce: u64,
}

/// All that makes a sandbox heard.
pub(super) struct Reporting {
    pub(super) scene: Arc<Scene>,
    pub(super) sink: EventSink,
    pub(super) reporter: Reporter,
    /// For the DNS server.
    pub(super) inbox: Arc<DnsInbox>,
}

impl Reporting {
    /// Opens the file of events, and reads from now on.
    pub(super) fn begin(
        set: &Arc<Set>,
        identity: Identity,
        subject: Subject,
        permits: Permits,
        directories: &Directories,
    ) -> Result<Self, Error> {
        let directory = Stored::directory(directories, &subject.sandbox);
        let events = directory.join(FILE_NAME);
        let sink = EventSink::with_file(&events, FILE_BYTES).map_err(Error::file(&events, "open"))?;
        let Identity { slot, nonce, .. } = identity;
        let scene = Arc::new(Scene {
            slot,
            nonce,
            subject: Mutex::new(subject),
            permits: Arc::new(permits),
            tables: Arc::clone(&set.tables),
            directory,
            server: Mutex::new(Weak::new()),
            looked_up: Mutex::default(),
        });
        let (sender, queue) = mpsc::channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let inbox = Arc::new(DnsInbox { sender, lost: Arc::clone(&lost) });
        set.ring.join(Reading {
            scene: Arc::clone(&scene),
            records: Vec::new(),
            inbox: queue,
            lost,
            sink: sink.clone(),
            fold: Fold::default(),
            told: Told::default(),
            names_due: Instant::now(),
        })?;
        Ok(Self { scene, sink, reporter: Reporter { set: Arc::clone(set), nonce }, inbox })
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.set.ring.leave(self.nonce);
    }
}

/// One sandbox's part of what is read.
pub(super) struct Reading {
    scene: Arc<Scene>,
    /// Of the kernel, not yet told.
    records: Vec<Record>,
    inbox: mpsc::Receiver<DnsEvent>,
    lost: Arc<AtomicU64>,
    sink: EventSink,
    fold: Fold,
    told: Told,
    /// When the names are written again, where there are others.
    names_due: Instant,
}

impl Reading {
    pub(super) fn nonce(&self) -> u64 {
        self.scene.nonce
    }

    pub(super) fn take(&mut self, record: &Record) {
        self.records.push(*record);
    }

    /// Tells what came since the last time.
    pub(super) fn take_in(&mut self) {
        let (scene, sink, fold) = (&self.scene, &self.sink, &mut self.fold);
        let subject = scene.subject();
        scene.look_again();
        for record in self.records.drain(..) {
            for event in Event::from_record(&record, &subject, scene.as_ref()) {
                sink.emit(&event);
            }
        }
        let now = Instant::now();
        // Those that wait by now: a flood must not keep the kernel's own records waiting. None is of a later policy.
        let waiting = self.inbox.len();
        let policy = Arc::clone(&scene.permits.in_force().policy);
        for _ in 0..waiting {
            let Ok(event) = self.inbox.try_recv() else { break };
            for event in Event::from_dns(&event, SystemTime::now(), &subject, &policy, scene.as_ref()) {
                for event in fold.push(event, now) {
                    sink.emit(&event);
                }
            }
        }
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            sink.emit(&Event::lost(SystemTime::now(), &subject, lost));
        }
        for event in fold.due(now) {
            sink.emit(&event);
        }
        if let Err(error) = self.note_budget(&subject) {
            tracing::warn!(%error, "what is left of the budget is not known; it holds all the same");
        }
    }

    fn note_budget(&mut self, subject: &Subject) -> Result<(), TableError> {
        let in_force = self.scene.permits.in_force();
        let (limits, mode) = (in_force.image.settings.limits, in_force.policy.mode);
        drop(in_force);
        if limits.budget > 0 {
            let (tables, slot) = (&self.scene.tables, self.scene.slot);
            let refused = || {
                let denied = |cpu: &Counters| cpu.denied.get(Reason::Budget as usize).is_some_and(|count| *count > 0);
                tables.counters(slot).is_ok_and(|cpus| cpus.iter().any(denied))
            };
            if let Some(news) = self.told.news(&limits, &tables.meters(slot)?, refused) {
                self.sink.emit(&news.event(subject, mode == Mode::Observe));
            }
        }
        Ok(())
    }

    /// What is due now and then. `slept`: how long the machine did since the last time.
    pub(super) fn look_after(&mut self, slept: Option<Duration>) {
        self.note_names();
        if let Some(slept) = slept
            && let Err(error) = self.scene.permits.age(slept)
        {
            tracing::error!(%error, ?slept, "permits outlive the answers that they rest on, by what was slept");
        }
        if let Some(failure) = self.scene.failure() {
            tracing::error!(
                error = &*failure as &dyn std::error::Error,
                sandbox = self.scene.subject().sandbox,
                "nobody answers the sandbox's DNS any more; what is permitted stays as it is, and nothing new opens"
            );
        }
    }

    /// Forgets what ended by the horizon. `old`: permits of whatever sandbox that have something of the kind.
    pub(super) fn sweep(&self, old: &[(PermitKey, Permit)], horizon: u64) -> Result<(), TableError> {
        let ours = old.iter().map(|(key, _)| key).filter(|key| key.slot == self.scene.slot);
        self.scene.permits.sweep(ours, horizon)
    }

    /// For `explain`, which another process asks, and for whoever adopts the sandbox.
    fn note_names(&mut self) {
        let started = Instant::now();
        if started < self.names_due {
            return;
        }
        let Some(learned) = self.scene.permits.news() else { return };
        match permits_file::write(&self.scene.directory, &learned) {
            // Detached by another process.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(%error, "explain will not know the latest names"),
            Ok(()) => {}
        }
        self.names_due = started + NAMES_PART * started.elapsed();
    }

    /// The last word: folded counts that no later denial would carry any more.
    pub(super) fn finish(mut self) {
        self.names_due = Instant::now();
        self.note_names();
        let subject = self.scene.subject();
        for event in self.fold.flush() {
            self.sink.emit(&event);
        }
        let observed = self.scene.permits.in_force().policy.mode == Mode::Observe;
        let pending = match self.scene.tables.denials(self.scene.slot) {
            Ok(pending) => pending,
            Err(error) => {
                tracing::warn!(%error, "counts of repeated denials are lost");
                return;
            }
        };
        for (key, denial) in pending {
            let record = Record {
                time_ns: super::permits::now_ns(),
                nonce: self.scene.nonce,
                addr: key.addr,
                comm: [0; 16],
                rule_tag: 0,
                pid: 0,
                uid: u32::MAX,
                count: u32::try_from(denial.count).unwrap_or(u32::MAX),
                lost: 0,
                dst_port: key.port,
                src_port: 0,
                protocol: key.protocol,
                hook: Hook::Egress as u8,
                reason: key.reason,
                observed: u8::from(observed),
                reserved: 0,
            };
            for event in Event::from_record(&record, &subject, self.scene.as_ref()) {
                self.sink.emit(&event);
            }
        }
    }
}

/// An event about the sandbox itself.
pub(super) fn about(kind: Kind, subject: &Subject) -> Event {
    Event::new(kind, SystemTime::now(), subject)
}
