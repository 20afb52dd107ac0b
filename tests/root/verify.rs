//! `egressd verify`: a closed sandbox is shown to be closed, one that is not is found out, and nothing leaves on the way.

use crate::job::{Job, end, judges_foreign};
use lab::{Lab, Launch, OK, need};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::{collections::BTreeMap, fs, process::Command, time::Duration};

const SOON: Duration = Duration::from_secs(10);

/// Exit code and rows of `egressd verify`, each row by where it was stopped and what it is.
struct Verified {
    code: Option<i32>,
    rows: BTreeMap<(String, String), Value>,
    said: String,
}

impl Verified {
    fn of(launch: Launch<'_>, job: &Job<'_>) -> Self {
        let output = launch.flags(&format!("--json --cgroup {}", job.path())).output();
        let report: Value = serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output}"));
        let word = |row: &Value, key: &str| row[key].as_str().unwrap().to_owned();
        let rows = report["rows"].as_array().unwrap().iter();
        let rows = rows.map(|row| ((word(row, "at"), word(row, "technique")), row.clone())).collect();
        Self { code: output.code, rows, said: output.to_string() }
    }

    #[track_caller]
    fn is(&self, at: &str, technique: &str, outcome: &str, proof: &str) {
        let row = self.rows.get(&(at.to_owned(), technique.to_owned()));
        let row = row.unwrap_or_else(|| panic!("{technique} at {at}: {}", self.said));
        assert_eq!((&row["outcome"], &row["proof"]), (&outcome.into(), &proof.into()), "{}", self.said);
    }

    /// Techniques with this outcome.
    fn with(&self, outcome: &str) -> Vec<&str> {
        let found = self.rows.iter().filter(|(_, row)| row["outcome"] == outcome);
        found.map(|((_, technique), _)| technique.as_str()).collect()
    }
}

fn verify(job: &Job<'_>) -> Verified {
    Verified::of(job.lab().egressd("verify"), job)
}

/// What a cgroup's hooks stop, each shown by its sink.
const AT_CGROUP: [&str; 26] = [
    "tcp_v4",
    "tcp_v6",
    "tcp_mapped",
    "tcp_fast_open",
    "mptcp",
    "udp_v4",
    "udp_v6",
    "udp_mapped",
    "udp_connected_v4",
    "udp_connected_v6",
    "dns_udp_v4",
    "dns_udp_v6",
    "dns_tcp_v4",
    "dns_tcp_v6",
    "metadata",
    "multicast_v4",
    "multicast_v6",
    "broadcast",
    "icmp_v4",
    "icmp_v6",
    "raw_v4",
    "raw_v6",
    "source_route",
    "destination_header",
    "fragments",
    "loopback_led_out",
];
/// What only a device stops, or hooks that follow the calling task.
const BENEATH: [&str; 3] = ["socket_from_outside", "packet_socket", "odd_ethertype"];

#[test]
fn a_closed_sandbox_is_shown_to_be_closed() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let before = lab.snapshot();
    job.lab().egressd("verify").flags(&format!("--cgroup {}", job.path())).output().exits(2).says("no sandbox");

    // In the host's network namespace, with somebody who lives in it.
    let attach = job.attached(&format!("--allow {OK} --allow ok.test"));
    let tenant = job.spawn("exec sleep 600");
    let found = verify(&job);
    assert_eq!(found.code, Some(0), "{}", found.said);
    for technique in AT_CGROUP {
        found.is("cgroup", technique, "contained", "sink");
    }
    found.is("cgroup", "permitted", "permitted", "sink");
    found.is("cgroup", "hooks_in_force", "contained", "listing");
    found.is("cgroup", "sockets_from_outside", "contained", "listing");
    found.is("cgroup", "rights_to_packet_sockets", "contained", "listing");
    found.is("dns", "dns_tunnel", "contained", "answer");
    let judged = judges_foreign(&lab);
    for technique in BENEATH {
        if judged {
            found.is("cgroup", technique, "contained", "sink");
        }
    }
    let not_applicable: &[&str] = if judged { &[] } else { &["odd_ethertype", "packet_socket", "socket_from_outside"] };
    assert_eq!(found.with("not_applicable"), not_applicable, "{}", found.said);
    assert!(tenant_alone(&job, &tenant), "the probers are gone");
    drop(tenant);
    end(attach, Signal::SIGINT).exits(0);

    // In one of its own, where the device's program is run on the same frames.
    let attach = crate::job::ready(job.attach(&format!("--allow {OK} --allow ok.test")).entering(lab.box_ns()));
    let found = Verified::of(lab.egressd("verify").inside(lab.outer_ns()), &job);
    assert_eq!(found.code, Some(0), "{}", found.said);
    for technique in AT_CGROUP {
        found.is("cgroup", technique, "contained", "sink");
        found.is("box0", technique, "contained", "test_run");
    }
    for technique in BENEATH {
        found.is("box0", technique, "contained", "test_run");
    }
    assert_eq!(found.with("permitted"), ["permitted"], "{}", found.said);
    end(attach, Signal::SIGINT).exits(0);

    // Not a packet of all that left the lab's box, no name was asked for, nothing stays.
    let strangers: Vec<_> =
        lab.frames().into_iter().filter(|frame| frame.dst_port != 53 && frame.src_port != 53).collect();
    assert!(strangers.is_empty(), "{strangers:#?}");
    assert!(lab.zone().queries().iter().all(|query| !query.name.contains("egressd-verify")));
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
}

fn tenant_alone(job: &Job<'_>, tenant: &lab::Running) -> bool {
    let procs = fs::read_to_string(job.cgroup().path().join("cgroup.procs")).unwrap();
    procs.lines().collect::<Vec<_>>() == [tenant.pid().to_string()] && job.cgroup().below().is_empty()
}

#[test]
fn a_hook_that_is_gone_is_found_out_by_what_leaks() {
    need("bpftool");
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    job.attach(&format!("--allow {OK} --pin")).output().exits(0);
    let whole = verify(&job);
    assert_eq!((whole.code, whole.with("leaked")), (Some(0), Vec::new()), "{}", whole.said);
    assert_eq!(whole.rows[&("dns".into(), "dns_tunnel".into())]["outcome"], "not_applicable", "nobody answers");
    let detach = |hook: &str| {
        let pins = fs::read_dir(lab.pin_dir()).unwrap().map(|entry| entry.unwrap().path().join("links").join(hook));
        let pin = pins.filter(|pin| pin.exists()).last().unwrap();
        lab.outer_ns().sh(&format!("bpftool link detach pinned {}", pin.display())).exits(0);
    };
    // The packet hook: what no socket hook stops gets out, the rest does not.
    detach("egress");
    let broken = verify(&job);
    assert_eq!(broken.code, Some(5), "{}", broken.said);
    broken.is("cgroup", "hooks_in_force", "leaked", "listing");
    broken.is("cgroup", "loopback_led_out", "leaked", "sink");
    broken.is("cgroup", "source_route", "leaked", "sink");
    for technique in ["tcp_v4", "udp_v6", "udp_connected_v4", "raw_v4", "icmp_v4"] {
        broken.is("cgroup", technique, "contained", "sink");
    }
    // With the socket hooks gone as well, everything does.
    for hook in ["connect4", "connect6", "sendmsg4", "sendmsg6", "sock_create"] {
        detach(hook);
    }
    let open = verify(&job);
    assert_eq!(open.code, Some(5), "{}", open.said);
    for technique in AT_CGROUP {
        open.is("cgroup", technique, "leaked", "sink");
    }
    lab.egressd("verify").flags(&format!("--cgroup {}", job.path())).output().exits(5).says("LEAKED");
    job.detach().exits(0);
}

#[test]
fn a_device_whose_program_is_gone_is_found_out() {
    need("bpftool");
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    job.attach(&format!("--allow {OK} --pin")).entering(lab.box_ns()).output().exits(0);
    let found = |lab: &Lab| Verified::of(lab.egressd("verify").inside(lab.outer_ns()), &job);
    found(&lab).is("box0", "packet_socket", "contained", "test_run");
    let links = fs::read_dir(lab.pin_dir()).unwrap().map(|entry| entry.unwrap().path().join("links"));
    let pins = links.filter_map(|links| fs::read_dir(links).ok()).flatten().map(|pin| pin.unwrap().path());
    let pin = pins.filter(|pin| pin.to_string_lossy().contains("device_egress-")).last().unwrap();
    lab.outer_ns().sh(&format!("bpftool link detach pinned {}", pin.display())).exits(0);
    let broken = found(&lab);
    assert_eq!(broken.code, Some(5), "{}", broken.said);
    broken.is("box0", "frames", "leaked", "listing");
    broken.is("cgroup", "udp_v4", "contained", "sink");
    job.detach().exits(0);
}

#[test]
fn what_only_observes_and_what_was_brought_along_is_found_out() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let attach = job.attached("--allow ok.test --observe");
    let observed = verify(&job);
    assert_eq!(observed.code, Some(5), "{}", observed.said);
    for technique in AT_CGROUP {
        // Port 53 is led to egressd all the same.
        if !technique.starts_with("dns_") {
            observed.is("cgroup", technique, "leaked", "sink");
        }
    }
    assert!(lab.zone().queries().iter().all(|query| !query.name.contains("egressd-verify")), "no name is asked for");
    end(attach, Signal::SIGINT).exits(0);

    let attach = crate::job::ready(job.attach(&format!("--allow {OK} --observe")).entering(lab.box_ns()));
    let observed = Verified::of(lab.egressd("verify").inside(lab.outer_ns()), &job);
    assert_eq!(observed.code, Some(5), "{}", observed.said);
    for technique in AT_CGROUP.into_iter().chain(BENEATH) {
        observed.is("box0", technique, "leaked", "test_run");
    }
    end(attach, Signal::SIGINT).exits(0);

    // A policy that permits every address leaves nothing to aim at; metadata is closed all the same.
    let attach = job.attached("--allow 0.0.0.0/0 --allow ::/0");
    let wide = verify(&job);
    assert_eq!(wide.rows[&("cgroup".into(), "tcp_v4".into())]["outcome"], "not_applicable", "{}", wide.said);
    wide.is("cgroup", "permitted", "permitted", "sink");
    end(attach, Signal::SIGINT).exits(0);

    let mut drip = job.outside(&format!("exec {} --wait {} {OK}", lab.probe("drip.py"), lab.token("drip")));
    drip.says("open", SOON);
    job.admit(&drip);
    job.attach(&format!("--allow {OK} --pin")).output().exits(0);
    let foreign = verify(&job);
    let judged = judges_foreign(&lab);
    let (code, outcome) = if judged { (0, "contained") } else { (5, "leaked") };
    assert_eq!(foreign.code, Some(code), "{}", foreign.said);
    foreign.is("cgroup", "sockets_from_outside", outcome, "listing");
    drop(drip);
    // Root of the host's user namespace makes packet sockets, which no cgroup hook sees.
    let mut root = Command::new("sleep");
    job.cgroup().place(root.arg("600"));
    let root = lab::Running::spawn(root);
    verify(&job).is("cgroup", "rights_to_packet_sockets", outcome, "listing");
    drop(root);
    assert_eq!(verify(&job).code, Some(0));
    job.detach().exits(0);
}

/// Whoever verifies from within another sandbox sees nothing arrive, and says so.
#[test]
fn silence_without_a_control_shows_nothing() {
    let lab = Lab::new();
    let [job, other] = ["job", "other"].map(|name| Job::new(&lab, name));
    for job in [&job, &other] {
        job.attach(&format!("--allow {OK} --pin")).output().exits(0);
    }
    let enter = format!("echo 0 > {}/cgroup.procs && exec \"$@\"", other.path());
    let blind = Verified::of(lab.egressd("verify").through(&["sh", "-c", &enter, "sh"]), &job);
    assert_eq!(blind.code, Some(3), "{}", blind.said);
    let unknown = blind.with("not_shown");
    assert!(AT_CGROUP.iter().all(|technique| unknown.contains(technique)), "{}", blind.said);
    assert_eq!(verify(&job).code, Some(0));
    for job in [&job, &other] {
        job.detach().exits(0);
    }
}

#[test]
fn run_starts_nothing_that_is_not_closed() {
    let lab = Lab::new();
    for (shape, launch) in lab.shapes() {
        let token = lab.token(shape);
        let script = format!("curl -fsS -m3 http://ok.test/{token}");
        let closed = launch.flags("--verify --allow ok.test").sh(&script).output();
        closed.exits(0);
        lab.expect_hits(&token, 1);
        assert!(!closed.stderr.contains("denied"), "what was tried is no denial of the command's: {closed}");
    }
    for (shape, launch) in lab.shapes() {
        let token = lab.token(&format!("{shape}-observed"));
        let script = format!("curl -fsS -m3 http://ok.test/{token}");
        let refused = launch.flags("--verify --observe --allow ok.test").sh(&script).output();
        refused.exits(125).says("--verify").says("udp_v4 at cgroup: LEAKED");
        lab.expect_hits(&token, 0);
    }
}
