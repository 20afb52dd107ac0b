//! T30 to T35 and T37: the acceptance tests on names; T29 is in `matching`, T36 in `channel`.

use super::{events, resolving};
use crate::job::{Job, end};
use hickory_proto::rr::RecordType;
use lab::{DNS, EVIL, Entry, GATEWAY, Inside, Lab, METADATA, OK, Running, need, until};
use nix::sys::signal::Signal;
use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

const SOON: Duration = Duration::from_secs(10);

#[test]
fn t30_resolution_fails_for_a_while() {
    let lab = Lab::new();
    lab.zone().put("ok.test", Entry::at(&["198.51.100.10"]).fails(2));
    let token = lab.token("flaky");
    let run = resolving(&lab, lab.egressd("run"), "nameserver 203.0.113.8\noptions attempts:3\n");
    let output = run
        .flags("--pre-resolve=off --allow ok.test --allow nx.test")
        .sh(&format!(
            "curl -4 -fsS -m9 http://ok.test/{token}; echo ok=$?
            curl -4 -sS -m9 http://nx.test/{token}; echo nx=$?"
        ))
        .output();
    assert_eq!((output.step("ok"), output.step("nx")), (0, 6), "{output}");
    lab.expect_hits(&token, 1);
    assert_eq!(lab.zone().queries_for("ok.test").len(), 3, "{:?}", lab.zone().queries());
    assert_eq!(lab.zone().queries_for("nx.test").len(), 1, "a name that does not exist is asked for once");
    let mut inside = Inside::start(lab.egressd("run").flags("--pre-resolve=off --allow nx.test"));
    assert_eq!(inside.ask("curl -4 -sS -m9 http://nx.test/").code, Some(6));
    let nowhere = |event: &serde_json::Value| event["dst_name"] == "nx.test" && event["reason"] == "upstream_no_name";
    until(SOON, "the name that is not there is told", || events(&lab).iter().any(nowhere));
    inside.end().exits(0);
}

/// Cases 2 to 4: a name that has to resolve before the start, and does not.
#[test]
fn t30_what_is_required_and_does_not_resolve_is_not_run() {
    let lab = Lab::new();
    let everything = usize::MAX;
    lab.zone().put("bad.test", Entry::at(&["198.51.100.80"]).fails(everything));
    lab.zone().put("empty.test", Entry::at(&[]));
    let (refused, allowed) = (lab.token("refused"), lab.token("allowed"));
    let before = lab.snapshot();
    for (shape, flags, cause) in [
        ("box", "--allow ok.test --allow bad.test:3128", &["bad.test (answered with error code 2)"][..]),
        (
            "box",
            "--allow ok.test --allow a.test:80 --allow b.test:80 --allow nx.invalid:80",
            &["nx.invalid (no such name)"],
        ),
        (
            "netns",
            "--allow ok.test --allow nx.test --allow bad.test --allow empty.test",
            &["nx.test", "bad.test", "empty.test"],
        ),
        // Proxies and gateways are addresses.
        ("box", "--allow ok.test --proxy bad.test:3128", &["bad.test:3128"]),
        ("box", "--allow ok.test --gateway a.test:80 --gateway nx.invalid:80", &["a.test:80"]),
    ] {
        let (_, run) = lab.shapes().into_iter().find(|(name, _)| *name == shape).unwrap();
        let output =
            run.flags("--pre-resolve=require").flags(flags).sh(&format!("curl -m5 ok.test/{refused}")).output();
        assert_eq!(output.code, Some(125), "{flags}: {output}");
        assert!(cause.iter().all(|cause| output.stderr.contains(cause)), "{flags} does not name {cause:?}: {output}");
        assert!(output.took < SOON, "{flags}: {output}");
        assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new(), "{flags} left something");
    }
    assert_eq!(lab.hits(&refused), [], "nothing was run");
    let asked = lab.zone().queries_for("bad.test").into_iter().filter(|query| query.kind == RecordType::A).count();
    assert_eq!(asked, 2 * 4, "four attempts each time");
    for (_, run) in lab.shapes() {
        let required = run.flags("--pre-resolve=require --allow ok.test --allow a.test:80");
        required.sh(&format!("curl -fsS -m5 http://ok.test/{allowed}")).output().exits(0);
    }
    lab.expect_hits(&allowed, 2);
}

/// An upstream that is silent about one name holds up nobody else.
#[test]
fn t31_silent_dns() {
    const NAMES: usize = 20;
    let lab = Lab::new();
    let mut flags = "--pre-resolve=off --allow slow.test --allow ok.test:9/udp".to_owned();
    for number in 0..NAMES {
        lab.zone().put(&format!("n{number}.test"), Entry::at(&["198.51.100.11"]));
        flags += &format!(" --allow n{number}.test");
    }
    lab.zone().put("slow.test", Entry::at(&["198.51.100.12"]).silent());
    let token = lab.token("n");
    let tick = lab.probe("drip.py");
    let mut inside = Inside::start(lab.egressd("run").flags(&flags));
    inside.ask("getent hosts ok.test").exits(0);
    let ticks = inside.begin(&format!("{tick} {OK} 2>/dev/null"));
    let slow = inside.begin("curl -4 -sS -m15 http://slow.test/");
    until(SOON, "slow.test is being asked for", || !lab.zone().queries_for("slow.test").is_empty());
    let started = Instant::now();
    let others: String =
        (0..NAMES).map(|number| format!("curl -4 -fsS -m5 http://n{number}.test/{token}-{number};\n")).collect();
    inside.ask(&format!("set -e; {others}")).exits(0);
    let took = started.elapsed();
    assert!(took < Duration::from_secs(3), "{NAMES} other names took {took:?} beside a silent one");
    let slow = inside.answer(slow);
    assert_eq!(slow.code, Some(6), "{slow}");
    assert!(slow.took < SOON, "{slow}");
    lab.expect_hits(&token, NAMES);
    let asked: Vec<_> = lab.zone().queries_for("slow.test").iter().map(|query| query.at).collect();
    // At once, after 0.8 s and after 1.6 s, for each of the client's two attempts.
    let gaps: Vec<_> = asked.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(asked.len(), 6, "{gaps:?}");
    assert!(gaps.iter().all(|gap| *gap > Duration::from_millis(500)), "{gaps:?}");
    inside.ask("pkill -f drip.py; true");
    inside.answer(ticks);
    inside.end();
}

#[test]
fn t32_no_names_no_look_ups() {
    let lab = Lab::new();
    for (_, run) in lab.shapes() {
        run.flags(&format!("--proxy {}:3128 --gateway {GATEWAY}:8080 --allow 198.51.100.10", lab::PROXY))
            .program(&["true"])
            .output()
            .exits(0);
    }
    // Nor where a wildcard spells no name out.
    lab.egressd("run").flags("--allow 198.51.100.10 --allow *.ok.test").program(&["true"]).output().exits(0);
    assert!(lab.zone().queries().is_empty(), "{:?}", lab.zone().queries());
    let dns: Vec<_> = lab.frames().into_iter().filter(|frame| frame.is_udp(53) || frame.is_tcp(53)).collect();
    assert!(dns.is_empty(), "{dns:?}");
    lab.sh("--pre-resolve=off --allow ok.test", "getent hosts ok.test").exits(0);
    assert!(!lab.zone().queries().is_empty(), "the control");
}

#[test]
fn t33_ttl() {
    let lab = Lab::new();
    lab.zone().put("ok.test", Entry::at(&["198.51.100.10"]).ttl(2));
    let policy = lab
        .file("ttl.toml", "version = 1\n[allow]\nnames = [\"ok.test\"]\n[dns]\npermit_min = \"1s\"\ngrace = \"1s\"\n");
    let before = lab.snapshot();
    for (shape, run) in lab.shapes() {
        lab.zone().put("ok.test", Entry::at(&["198.51.100.10"]).ttl(2));
        let mut inside = Inside::start(run.arg("--policy").arg(&policy));
        let (flow, old, new) = (
            lab.token(&format!("{shape}-flow")),
            lab.token(&format!("{shape}-old")),
            lab.token(&format!("{shape}-new")),
        );
        let flowing = inside.begin(&format!(
            "bash -c 'exec 3<>/dev/tcp/ok.test/80; while [ ! -e {shape} ]; do echo {flow} >&3 || exit 1; sleep 0.05; done'"
        ));
        let frames = |lab: &Lab, token: &str| lab.frames_to(OK).iter().filter(|frame| frame.carries(token)).count();
        until(SOON, "the flow flows", || frames(&lab, &flow) > 0);
        lab.zone().put("ok.test", Entry::at(&["198.51.100.11"]).ttl(2));
        let literal = |inside: &mut Inside, token: &str| {
            inside.ask(&format!("curl -sS -o /dev/null -m1 http://{OK}/{token}")).code
        };
        until(SOON, "the old address closes", || literal(&mut inside, &format!("{old}-early")) == Some(7));
        let flowed = frames(&lab, &flow);
        for number in 0..3 {
            assert_eq!(literal(&mut inside, &old), Some(7));
            inside.ask(&format!("curl -fsS -m3 http://ok.test/{new}-{number}")).exits(0);
        }
        assert_eq!(frames(&lab, &old) - frames(&lab, &format!("{old}-early")), 0);
        let hits = lab.expect_hits(&new, 3);
        assert!(hits.iter().all(|hit| hit.dst.ip().to_string() == "198.51.100.11"), "{hits:?}");
        until(SOON, "the flow still flows", || frames(&lab, &flow) > flowed);
        std::fs::write(lab.work_dir().join(shape), "").unwrap();
        inside.answer(flowing).exits(0);
        inside.end().exits(0);
    }
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new(), "nothing is left");
}

#[test]
fn t34_answer_shape() {
    let lab = Lab::new();
    let zone = lab.zone();
    zone.put(
        "ok.test",
        Entry::alias("c1.cdn.test").stray("evil.test", "198.51.100.20").additional("evil.test", "198.51.100.20"),
    );
    for number in 1..8 {
        zone.put(&format!("c{number}.cdn.test"), Entry::alias(&format!("c{}.cdn.test", number + 1)));
    }
    zone.put("c8.cdn.test", Entry::at(&["198.51.100.11"]));
    zone.put("b.ok.test", Entry::alias("secret.bad.test"));
    zone.put("secret.bad.test", Entry::at(&["198.51.100.21"]));
    for (shape, run) in lab.shapes() {
        let token = lab.token(shape);
        let output = run
            .flags("--allow ok.test --allow b.ok.test --deny .bad.test")
            .sh(&format!(
                "curl -fsS -m5 http://OK.tEsT./{token}; echo chain=$?
                curl -sS -m2 http://{EVIL}/{token}; echo stray=$?
                curl -sS -m2 http://b.ok.test/{token}; echo hop=$?
                curl -sS -m2 http://198.51.100.21/{token}; echo target=$?
                curl -sS -m2 http://c8.cdn.test/{token}; echo middle=$?"
            ))
            .output();
        let steps = ["chain", "stray", "hop", "target", "middle"].map(|step| output.step(step));
        assert_eq!(steps, [0, 7, 6, 7, 6], "{output}");
        let hits = lab.expect_hits(&token, 1);
        assert_eq!(hits[0].dst.ip().to_string(), "198.51.100.11");
    }
    lab.expect_silence(EVIL);
    lab.expect_silence("198.51.100.21".parse::<IpAddr>().unwrap());
    assert!(lab.zone().queries_for("b.ok.test").len() >= 2, "the chain was seen, and refused");
}

/// Addresses that no name may open, as a name's answer has them.
const INSIDE: [(&str, &str); 7] = [
    ("r1.test", "127.0.0.1"),
    ("r2.test", "169.254.169.254"),
    ("r3.test", "10.0.0.5"),
    ("r4.test", "::ffff:10.0.0.5"),
    ("r5.test", "::ffff:169.254.169.254"),
    ("r6.test", "64:ff9b::a9fe:a9fe"),
    // D12: the upstream's own.
    ("r7.test", "198.51.100.53"),
];

#[test]
fn t35_forged_answers_and_rebinding() {
    let lab = Lab::new();
    lab.sink_ns().ip("route add local 10.0.0.0/24 dev lo");
    let own = lab.box_ns().enter(|| std::net::TcpListener::bind(("127.0.0.1", 8000)).unwrap());
    own.set_nonblocking(true).unwrap();
    // Answered late: time for forgeries to come first.
    lab.zone().put("ok.test", Entry::at(&["198.51.100.10"]).after(Duration::from_millis(1500)));
    let mut flags = "--allow ok.test".to_owned();
    for (name, address) in INSIDE {
        lab.zone().put(name, Entry::at(&[address]));
        flags += &format!(" --allow {name}:8000");
    }
    let (spoof, token) = (lab.probe("spoof.py"), lab.token("spoofed"));
    for (shape, run) in lab.shapes() {
        let mut inside = Inside::start(run.flags(&flags));
        let upstream = if shape == "box" { lab::BOX } else { "198.51.100.2".parse().unwrap() };
        let asked = lab.zone().queries_for("ok.test").len();
        let lookup = inside.begin("getent ahostsv4 ok.test");
        until(SOON, "ok.test is being asked for", || lab.zone().queries_for("ok.test").len() > asked);
        // From the sandbox, and from a machine on the way that knows the port but not the id: as DNS's own address and as another.
        let port = lab.zone().queries_for("ok.test").last().unwrap().src.port();
        let within = inside.ask(&format!("{spoof} ok.test {EVIL} {upstream} {port} 0.0.0.0 0"));
        within.exits(0);
        for (from, source) in [(DNS, 53), (lab::DNS2, 53), (lab::DNS2, 5353)] {
            lab.sink_ns()
                .sh(&format!("{spoof} ok.test {EVIL} {upstream} {port} {from} {source}"))
                .exits(0)
                .says("sent=");
        }
        let found = inside.answer(lookup);
        assert!(found.stdout.contains("198.51.100.10") && !found.stdout.contains("198.51.100.20"), "{shape}: {found}");
        assert_eq!(inside.ask(&format!("curl -sS -m2 http://{EVIL}/{token}")).code, Some(7));
        for (name, _) in INSIDE {
            let tried = inside.ask(&format!("curl -sS -m2 http://{name}:8000/{token}"));
            assert_eq!(tried.code, Some(6), "{shape} {name}: {tried}");
        }
        until(SOON, "every refused address is told", || {
            let told = events(&lab);
            let of = |name: &str| told.iter().any(|event| event["dst_name"] == name && event["event"] == "dns");
            INSIDE.iter().all(|(name, _)| of(name))
        });
        inside.ask(&format!("curl -fsS -m3 http://ok.test/{token}")).exits(0);
        inside.end().exits(0);
    }
    lab.expect_hits(&token, 2);
    assert!(own.accept().is_err(), "a name led to loopback");
    lab.expect_silence(EVIL);
    lab.expect_silence(METADATA);
    lab.expect_silence("10.0.0.5".parse::<IpAddr>().unwrap());
}

/// 64 A and 64 AAAA by TCP, from the third and fourth server: the first two are dead.
#[test]
fn t37_resolver_transport() {
    need("dnsmasq");
    let lab = Lab::new();
    lab.sink_ns().ip("route add local 203.0.113.0/24 dev lo\nroute add local 2001:db8:1::/64 dev lo");
    let addresses: Vec<String> =
        (1..=64).flat_map(|host| [format!("203.0.113.{host}"), format!("2001:db8:1::{host:x}")]).collect();
    lab.zone().put("big.test", Entry::at(&addresses.iter().map(String::as_str).collect::<Vec<_>>()).tcp_only());
    let expected: BTreeSet<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
    let script = |token: &str| {
        format!(
            "set -e
            for a in $(getent ahosts big.test | awk '{{print $1}}' | sort -u); do
                case $a in *:*) b=[$a];; *) b=$a;; esac
                echo \"next
url = http://big.test/{token}
resolve = big.test:80:$b
output = /dev/null\"
            done | tail -n +2 > config
            curl -fsS -m5 -K config
            dig @198.51.100.54 +tries=1 big.test A | grep -c 'IN.A.203'"
        )
    };
    let reached = |token: &str| lab.expect_hits(token, 128).iter().map(|hit| hit.dst.ip()).collect::<BTreeSet<_>>();
    let job = Job::new(&lab, "job");
    let dead = format!("--dns {} --dns 2001:db8::99 --dns 2001:db8::53 --dns {DNS}", lab::NEIGHBOUR);
    let agent = crate::job::ready(job.attach(&format!("{dead} --allow big.test")).no_dns());
    let token = lab.token("four");
    job.sh(&script(&token)).exits(0).says("64");
    assert_eq!(reached(&token), expected);
    end(agent, Signal::SIGINT).exits(0);
    let queries = lab.zone().queries_for("big.test");
    assert!(
        queries.iter().any(|query| query.tcp) && queries.iter().all(|query| query.server.ip() != lab::DNS2),
        "{queries:?}"
    );
    assert!([RecordType::A, RecordType::AAAA].iter().all(|kind| queries.iter().any(|query| query.kind == *kind)));

    // A server on the host's own loopback.
    let mut server = lab.box_ns().command("dnsmasq");
    server.args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--listen-address=::1"]);
    server.args(["--bind-interfaces", "--user=", "--pid-file=", "--log-facility=-", &format!("--server={DNS}")]);
    let mut server = Running::spawn(server);
    until(SOON, "dnsmasq serves", || lab.box_ns().sh("dig @::1 +tries=1 +time=1 ok.test A").stdout.contains("NOERROR"));
    let agent = crate::job::ready(job.attach("--dns ::1 --allow big.test").no_dns());
    let token = lab.token("own");
    job.sh(&script(&token)).exits(0).says("64");
    assert_eq!(reached(&token), expected);
    assert!(server.is_alive(), "{}", server.said());
    end(agent, Signal::SIGINT).exits(0);
}
