//! Sandboxes do not share anything, and no firewall rule of the host opens what a policy closes.

use std::net::IpAddr;

use lab::{BOX, EVIL, Inside, Lab, OK, need, until};

const SECOND: &str = "198.51.100.31";

#[test]
fn t13_sandbox_isolation() {
    let lab = Lab::new();
    let second = lab.another_box(31);
    let log = lab.work_dir().join("server.log");
    let got = |token: &str| std::fs::read_to_string(&log).unwrap().matches(token).count();
    // Open to the first box, so that a request which does arrive is answered: the first sandbox's policy is on trial.
    let policy = lab.file("server.toml", &format!("version = 1\n[allow]\ninbound = [\"{BOX}\"]\n"));
    let mut server = Inside::start(lab.egressd("run").entering(&second).arg("--policy").arg(&policy));
    server.ask(&format!("{} -I -u -m http.server 8080 > {} 2>&1 < /dev/null &", lab::PYTHON, log.display())).exits(0);
    let own = lab.token("own");
    until(std::time::Duration::from_secs(5), "the server answers itself", || {
        server.ask(&format!("curl -sS -m1 http://{SECOND}:8080/{own}")).code == Some(0)
    });
    assert_eq!(got(&own), 1);

    let token = lab.token("across");
    let output = lab.sh_netns(
        "",
        &format!("curl -sS -m2 http://{SECOND}:8080/{token}; echo peer=$?; curl -sS -m2 http://192.0.2.1/{token}; echo platform=$?"),
    );
    assert!(output.step("peer") == 7 && output.step("platform") == 7, "{output}");
    lab.expect_silence("192.0.2.1".parse::<IpAddr>().unwrap());

    let same = lab.token("same");
    let neighbour =
        lab.egressd("run").entering(&second).sh(&format!("curl -sS -m2 http://{SECOND}:8080/{same}")).output();
    neighbour.exits(0);
    let control = lab.token("control");
    lab.unconfined(&format!("curl -sS -m2 http://{SECOND}:8080/{control}; curl -sS -m1 http://192.0.2.1/{control}"));
    assert_eq!((got(&token), got(&same), got(&control)), (0, 1, 1), "{}", std::fs::read_to_string(&log).unwrap());
    assert!(!lab.frames_to("192.0.2.1".parse::<IpAddr>().unwrap()).is_empty());
    server.end();
}

/// Each learns its own name first, then tries the other's, by name and by address.
fn cross(lab: &Lab, mut first: Inside, mut second: Inside) {
    let token = |name: &str| lab.token(name);
    first.ask(&format!("curl -fsS -m3 http://ok.test/{}", token("first-own"))).exits(0);
    second.ask(&format!("curl -fsS -m3 http://evil.test/{}", token("second-own"))).exits(0);
    for (inside, name, address, who) in
        [(&mut first, "evil.test", EVIL, "first"), (&mut second, "ok.test", OK, "second")]
    {
        let asked = inside.ask(&format!("curl -sS -m3 http://{name}/{}", token(&format!("{who}-name"))));
        assert!([Some(6), Some(7)].contains(&asked.code), "{asked}");
        inside.ask(&format!("curl -sS -m3 http://{address}/{}", token(&format!("{who}-address")))).exits(7);
    }
    first.end().exits(0);
    second.end().exits(0);
    for (who, own) in [("first", OK), ("second", EVIL)] {
        assert_eq!(lab.expect_hits(&token(&format!("{who}-own")), 1)[0].dst.ip(), own);
        assert_eq!(
            lab.hits(&token(&format!("{who}-name"))).len() + lab.hits(&token(&format!("{who}-address"))).len(),
            0
        );
    }
}

#[test]
fn t14_independent_policies() {
    let lab = Lab::new();
    let other = lab.another_box(31);
    let first = Inside::start(lab.egressd("run").entering(lab.box_ns()).flags("--allow ok.test"));
    let second = Inside::start(lab.egressd("run").entering(&other).flags("--allow evil.test"));
    cross(&lab, first, second);
    let second: IpAddr = SECOND.parse().unwrap();
    let frames = lab.frames();
    let count = |src: IpAddr, dst: IpAddr| frames.iter().filter(|frame| frame.src == src && frame.dst == dst).count();
    assert_eq!((count(BOX, EVIL), count(second, OK)), (0, 0), "{frames:#?}");
    assert!(count(BOX, OK) > 0 && count(second, EVIL) > 0);
}

#[test]
fn t14_independent_policies_in_one_namespace() {
    let lab = Lab::new();
    let first = Inside::start(lab.egressd("run").flags("--allow ok.test"));
    let second = Inside::start(lab.egressd("run").flags("--allow evil.test"));
    cross(&lab, first, second);
    let opened = |dst: IpAddr| lab.frames_to(dst).iter().filter(|frame| frame.is_syn()).count();
    assert_eq!((opened(OK), opened(EVIL)), (1, 1), "one connection each");
}

#[test]
fn t15_no_order_against_other_firewalls() {
    need("iptables");
    need("nft");
    let lab = Lab::new();
    let dnat: IpAddr = "203.0.113.50".parse().unwrap();
    let (first, second, third, control) =
        (lab.token("one"), lab.token("two"), lab.token("three"), lab.token("control"));
    lab.box_ns().sh("iptables -I OUTPUT 1 -j ACCEPT && iptables -I FORWARD 1 -j ACCEPT").exits(0);
    lab.outer_ns().sh("iptables -I OUTPUT 1 -j ACCEPT && iptables -I FORWARD 1 -j ACCEPT").exits(0);
    for (shape, run) in lab.shapes() {
        let output = run
            .flags(&format!("--allow {dnat}/32"))
            .sh(&format!("curl -sS -m3 http://evil.test/{first}; echo name=$?; curl -sS -m3 http://{EVIL}/{first}; echo address=$?"))
            .output();
        assert!([6, 7].contains(&output.step("name")) && output.step("address") == 7, "{shape}: {output}");
    }
    lab.box_ns().sh("iptables -F && nft flush ruleset").exits(0);
    lab.box_ns().sh(&format!("iptables -t nat -A OUTPUT -d {dnat} -p tcp -j DNAT --to {OK}:80")).exits(0);
    let output = lab.sh(
        &format!("--allow {dnat}/32"),
        &format!("curl -sS -m3 http://{EVIL}/{second}; echo evil=$?; curl -fsS -m3 http://{dnat}/{third}; echo translated=$?; curl -sS -m3 http://{OK}/{second}; echo behind=$?"),
    );
    assert_eq!((output.step("evil"), output.step("translated"), output.step("behind")), (7, 0, 7), "{output}");
    lab.expect_silence(EVIL);
    assert_eq!(lab.hits(&first).len() + lab.hits(&second).len(), 0);
    assert_eq!(lab.expect_hits(&third, 1)[0].dst, (OK, 80).into());
    lab.unconfined(&format!("curl -fsS -m3 http://{EVIL}/{control}")).exits(0);
    lab.expect_hits(&control, 1);
}
