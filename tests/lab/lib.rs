//! A small world on one machine, made for one test and gone with it.
//!
//! ```text
//!   box                    outer                      sink
//!   198.51.100.30 ─ eth0 ─ bridge 198.51.100.2 ─── eth0  .1 gateway  .10-.15 .21 names  .20 evil  .53 .54 DNS
//!   2001:db8::30           2001:db8::2                      .77 neighbour  .80 proxy  169.254.169.254  2001:db8::…
//! ```
//!
//! The box is where sandboxes live. egressd runs in the box (then that is "the host's network namespace" for it), or in
//! `outer` and enters the box (then the sandbox owns its namespace, and the bridge port is its host-side device). The
//! capture sits behind the bridge, so it sees exactly what left the sandbox's device and was let through.
//!
//! Nothing outside of these namespaces is ever sent to. Two labs share nothing, in one process or in two.

#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a lab that cannot be built or asked must fail its test at once, and say why"
)]

mod capture;
mod cgroup;
mod compiled;
mod dns;
mod frame;
mod gauge;
mod ground;
mod inside;
mod launch;
mod need;
mod netns;
mod process;
mod room;
mod sink;
mod snapshot;
mod squid;
mod tls;
mod wait;
mod wiring;
mod zone;

pub use crate::{
    capture::Capture,
    cgroup::Cgroup,
    frame::Frame,
    gauge::Gauge,
    inside::Inside,
    launch::{Launch, binary},
    need::{absent, need, skip, unpacked},
    netns::{Netns, PATH},
    process::{Output, Running},
    room::undisturbed,
    sink::{Hit, TCP_PORTS, UDP_PORTS},
    snapshot::Snapshot,
    squid::Squid,
    wait::until,
    wiring::{BOX, DNS, DNS2, EVIL, EVIL6, GATEWAY, METADATA, NEIGHBOUR, OK, OK6, PROXY},
    zone::{Entry, Query, Zone},
};

use std::{
    fs,
    io::{PipeWriter, Write as _},
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Once, OnceLock},
    time::Duration,
};

use nix::unistd::{Gid, Uid, chown};

use crate::{ground::Ground, room::Place, sink::Hits, tls::Tls, wait::Stop};

/// The system's Python: a shim in a caller's home would not be readable for the user of a sandbox.
pub const PYTHON: &str = "/usr/bin/python3";

const NOBODY: u32 = 65534;

/// In a line of its own, past the test runner, which keeps what a test says until all of them have ended.
fn tell_failures_at_once() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |failure| {
            let thread = std::thread::current();
            let _unread = writeln!(std::io::stderr(), "{}: {failure}", thread.name().unwrap_or("a thread"));
            usual(failure);
        }));
    });
}

/// The world of one test. See the crate's page.
#[derive(Debug)]
pub struct Lab {
    zone: Zone,
    hits: Hits,
    capture: Option<Capture>,
    tls: OnceLock<Tls>,
    caller: Cgroup,
    outside: Cgroup,
    boxed: Netns,
    outer: Netns,
    sink: Netns,
    stop: Stop,
    _stopper: PipeWriter,
    ground: Ground,
    _place: Place,
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

impl Lab {
    /// Builds a lab.
    #[track_caller]
    pub fn new() -> Self {
        let mut lab = Self::without_capture();
        let way = (&lab.outer, Ipv4Addr::new(198, 51, 100, 1));
        lab.capture = Some(Capture::start(&lab.sink, "eth0", way, lab.stop.clone()));
        lab
    }

    /// A lab without a capture, so frames cannot be asked for.
    #[track_caller]
    pub fn without_capture() -> Self {
        Self::at(Place::among_others())
    }

    /// A lab for measurements: without a capture, and no other lab of this process beside it.
    #[track_caller]
    pub fn alone() -> Self {
        Self::at(Place::alone())
    }

    #[track_caller]
    fn at(place: Place) -> Self {
        tell_failures_at_once();
        assert!(
            Uid::effective().is_root(),
            "these tests make network namespaces and load BPF: run them as root (`cargo xtask test`)"
        );
        ["ip", "curl", "setpriv", "unshare", "python3"].into_iter().for_each(need);
        let ground = Ground::new();
        let (stop, stopper) = Stop::new();
        let [boxed, outer, sink] = [Netns::new(), Netns::new(), Netns::new()];
        wiring::wire(&outer, &sink);
        let (zone, hits) = (Zone::default(), Hits::default());
        wiring::names(&zone);
        sink::start(&sink, &ground.directory.join("www"), &hits, &stop);
        dns::start(&sink, &wiring::dns_servers(), &zone, &stop);
        let (caller, outside) = (ground.cgroup.child("caller"), ground.cgroup.child("outside"));
        let lab = Self {
            zone,
            hits,
            capture: None,
            tls: OnceLock::new(),
            caller,
            outside,
            boxed,
            outer,
            sink,
            stop,
            _stopper: stopper,
            ground,
            _place: place,
        };
        let work = lab.work_dir();
        fs::create_dir(&work).expect("a work directory");
        chown(&work, Some(Uid::from_raw(NOBODY)), Some(Gid::from_raw(NOBODY))).expect("chown");
        fs::set_permissions(&work, fs::Permissions::from_mode(0o755)).expect("chmod");
        wiring::plug(&lab.outer, &lab.boxed, "box0", 30);
        lab
    }

    /// Another box on the same bridge: 198.51.100.`host` and 2001:db8::`host`.
    pub fn another_box(&self, host: u8) -> Netns {
        let netns = Netns::new();
        wiring::plug(&self.outer, &netns, &format!("box{host}"), host);
        netns
    }

    /// Where sandboxes live.
    pub fn box_ns(&self) -> &Netns {
        &self.boxed
    }

    /// Where egressd runs when it enters the box.
    pub fn outer_ns(&self) -> &Netns {
        &self.outer
    }

    /// Where the servers are.
    pub fn sink_ns(&self) -> &Netns {
        &self.sink
    }

    pub(crate) fn namespaces(&self) -> [(&'static str, &Netns); 3] {
        [("box", &self.boxed), ("outer", &self.outer), ("sink", &self.sink)]
    }

    /// What the DNS servers answer, and what they were asked.
    pub fn zone(&self) -> &Zone {
        &self.zone
    }

    /// A word that is this lab's alone, to be sent by a command and looked for at the sink.
    pub fn token(&self, name: &str) -> String {
        format!("{}-{name}", self.ground.prefix)
    }

    /// Every request that reached a server, in order.
    pub fn all_hits(&self) -> Vec<Hit> {
        self.hits.all()
    }

    /// The requests that carried `token`.
    pub fn hits(&self, token: &str) -> Vec<Hit> {
        self.hits.all().into_iter().filter(|hit| hit.carries(token)).collect()
    }

    /// Waits until `count` requests with `token` have reached a server, and panics unless it stays at that many.
    #[track_caller]
    pub fn expect_hits(&self, token: &str, count: usize) -> Vec<Hit> {
        until(Duration::from_secs(5), &format!("{count} hits of {token}"), || self.hits(token).len() >= count);
        let hits = self.hits(token);
        assert_eq!(hits.len(), count, "hits of {token}: {hits:?}");
        hits
    }

    /// Every frame that has arrived at the sink, in order, without the link's housekeeping (ARP, ND, MLD). Settled: no
    /// frame sent before this call is still under way.
    #[track_caller]
    pub fn frames(&self) -> Vec<Frame> {
        self.capture.as_ref().expect("a lab with a capture").frames()
    }

    /// ARP, discovery and reports of groups, which `frames` leaves out.
    #[track_caller]
    pub fn housekeeping(&self) -> Vec<Frame> {
        self.capture.as_ref().expect("a lab with a capture").housekeeping()
    }

    /// Starts a capture of what goes over the box's loopback device: what sandboxes there ask egressd.
    pub fn loopback(&self) -> Capture {
        Capture::start(&self.boxed, "lo", (&self.boxed, Ipv4Addr::LOCALHOST), self.stop.clone())
    }

    /// The frames to one address.
    #[track_caller]
    pub fn frames_to(&self, dst: impl Into<IpAddr>) -> Vec<Frame> {
        let dst = dst.into();
        self.frames().into_iter().filter(|frame| frame.dst == dst).collect()
    }

    /// Panics if a single frame has come to `dst`.
    #[track_caller]
    pub fn expect_silence(&self, dst: impl Into<IpAddr>) {
        let frames = self.frames_to(dst);
        assert!(frames.is_empty(), "{} frames where none may come: {frames:#?}", frames.len());
    }

    /// Starts HTTPS at every sink address, port 443, unless it runs already. Returns the certificate for `--cacert`.
    pub fn https(&self) -> &Path {
        let tls = self.tls.get_or_init(|| Tls::start(&self.sink, &self.outside, &self.ground.directory, &self.hits));
        &tls.certificate
    }

    /// The link address of the sink's device.
    pub fn sink_mac(&self) -> String {
        self.sink
            .sh("ip -o link show eth0")
            .stdout
            .split_whitespace()
            .skip_while(|word| *word != "link/ether")
            .nth(1)
            .expect("a link address")
            .to_owned()
    }

    /// Starts Squid at [`PROXY`]:3128, which lets through requests for `hosts` alone.
    pub fn squid(&self, hosts: &[&str]) -> Squid {
        Squid::start(&self.sink, &self.outside, &self.ground.directory, hosts)
    }

    /// The words that start a Squid of its own at `address`:3128, as root or as the user proxy, letting through `hosts`.
    pub fn squid_words(&self, name: &str, address: IpAddr, hosts: &[&str]) -> Vec<String> {
        squid::prepare(&self.ground.directory, name, address, hosts)
    }

    /// An egressd command of the given verb, with the lab's directories, DNS server and, for `run`, `--user nobody`.
    pub fn egressd(&self, verb: &str) -> Launch<'_> {
        Launch::new(self, verb)
    }

    /// `egressd run FLAGS -- CMD` in the box, which shares its namespace with egressd.
    #[track_caller]
    pub fn run(&self, flags: &str, program: &[&str]) -> Output {
        self.egressd("run").flags(flags).program(program).output()
    }

    /// `egressd run FLAGS -- sh -c SCRIPT` in the box.
    #[track_caller]
    pub fn sh(&self, flags: &str, script: &str) -> Output {
        self.egressd("run").flags(flags).sh(script).output()
    }

    /// `egressd run --netns BOX FLAGS -- sh -c SCRIPT` from outside: the sandbox owns its namespace.
    #[track_caller]
    pub fn sh_netns(&self, flags: &str, script: &str) -> Output {
        self.egressd("run").entering(&self.boxed).flags(flags).sh(script).output()
    }

    /// `egressd run` in its two shapes: in the box, and from outside with `--netns`.
    pub fn shapes(&self) -> [(&'static str, Launch<'_>); 2] {
        [("box", self.egressd("run")), ("netns", self.egressd("run").entering(&self.boxed))]
    }

    /// A shell script in the box, as nobody and outside of every sandbox: the control that shows what would arrive.
    #[track_caller]
    pub fn unconfined(&self, script: &str) -> Output {
        let mut command = self.boxed.command("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "sh", "-c", script]);
        command.current_dir(self.work_dir());
        self.outside.place(&mut command);
        Running::spawn(command).finish(Duration::from_secs(30))
    }

    /// The lab's cgroup. egressd's are below `caller` in it.
    pub fn cgroup(&self) -> &Cgroup {
        &self.ground.cgroup
    }

    /// The cgroup from which egressd is called.
    pub fn caller(&self) -> &Cgroup {
        &self.caller
    }

    /// The lab's directory.
    pub fn directory(&self) -> &Path {
        &self.ground.directory
    }

    /// Where sandboxed commands start and may write.
    pub fn work_dir(&self) -> PathBuf {
        self.ground.directory.join("work")
    }

    /// `--state-dir`.
    pub fn state_dir(&self) -> PathBuf {
        self.ground.directory.join("state")
    }

    /// `--pin-dir`.
    pub fn pin_dir(&self) -> PathBuf {
        self.ground.directory.join("pins")
    }

    /// What the servers serve below `/www/`. It does not exist until a test makes it.
    pub fn www_dir(&self) -> PathBuf {
        self.ground.directory.join("www")
    }

    /// Writes a file that sandboxed commands can read; returns its path.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.ground.directory.join(name);
        fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }

    /// Copies one of `tests/probes` to where sandboxed commands can read it; returns the words that run it.
    pub fn probe(&self, name: &str) -> String {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("probes").join(name);
        let text = fs::read_to_string(&source).unwrap_or_else(|error| panic!("{}: {error}", source.display()));
        format!("{PYTHON} -I -u {}", self.file(name, &text).display())
    }

    /// What there is of egressd's now: programs, links, cgroups, mounts, files, devices, filters.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::of(self)
    }
}
