//! An allowed name opens, a blocked one does not, and no client option makes a difference.

use lab::{EVIL, Inside, Lab, OK, need};

#[test]
fn t01_allowed_name() {
    let lab = Lab::new();
    let certificate = lab.https().display();
    for (shape, run) in lab.shapes() {
        let token = lab.token(shape);
        let get = format!("curl -fsS -m5 --cacert {certificate}");
        run.flags("--allow ok.test --allow both.test")
            .sh(&format!(
                "set -e
                {get} https://ok.test/{token}-tls
                {get} http://ok.test/{token}-plain
                {get} -4 http://ok.test/{token}-four
                {get} -4 http://both.test/{token}-both4
                {get} -6 http://both.test/{token}-both6"
            ))
            .output()
            .exits(0);
        let tls = lab.expect_hits(&format!("{token}-tls"), 1);
        assert_eq!((tls[0].sni.as_deref(), tls[0].dst), (Some("ok.test"), (OK, 443).into()));
        for (name, dst) in
            [("plain", "198.51.100.10"), ("four", "198.51.100.10"), ("both4", "198.51.100.10"), ("both6", lab::OK6)]
        {
            let hits = lab.expect_hits(&format!("{token}-{name}"), 1);
            assert_eq!(hits[0].dst.ip().to_string(), dst, "{hits:?}");
        }
    }
    let hellos =
        lab.frames_to(OK).into_iter().filter(|frame| frame.is_tcp(443) && frame.payload.starts_with(&[0x16, 3]));
    assert_eq!(hellos.filter(|frame| frame.carries("ok.test")).count(), 2, "one ClientHello a run");
}

#[test]
fn t02_blocked_name() {
    let lab = Lab::new();
    let certificate = lab.https().display();
    for (shape, run) in lab.shapes() {
        let token = lab.token(shape);
        let get = format!("curl -sS -m5 --cacert {certificate} -o /dev/null");
        let output = run
            .flags("--allow ok.test")
            .sh(&format!(
                "{get} -w 'ms=%{{time_total}}\\n' https://evil.test/{token}; echo evil=$?
                {get} https://ok.test/{token}; echo ok=$?"
            ))
            .output();
        assert!([6, 7].contains(&output.step("evil")) && output.step("ok") == 0, "{output}");
        let seconds = output.stdout.lines().find_map(|line| line.strip_prefix("ms=")?.parse::<f64>().ok()).unwrap();
        assert!(seconds < 1.0, "a denied name took {seconds} s");
        let told = output.stderr.lines().filter(|line| line.contains("evil.test") && line.contains("denied")).count();
        assert_eq!(told, 1, "one line names the denied destination: {output}");
        lab.expect_hits(&token, 1);
    }
    lab.expect_silence(EVIL);
    let asked: Vec<_> = lab.zone().queries().into_iter().filter(|query| query.name.contains("evil")).collect();
    assert!(asked.is_empty(), "{asked:?}");
    assert!(!lab.zone().queries_for("ok.test").is_empty(), "the log of queries works");
}

#[test]
fn t03_ip_literal() {
    let lab = Lab::new();
    let (before, after) = (lab.token("before"), lab.token("after"));
    let mut inside = Inside::start(lab.egressd("run").flags("--pre-resolve=off --allow ok.test"));
    inside.ask(&format!("curl -sS -m3 http://{EVIL}/{before}")).exits(7);
    inside.ask(&format!("curl -sS -m3 http://{OK}/{before}")).exits(7);
    lab.expect_silence(OK);
    inside.ask("getent hosts ok.test").exits(0).says("198.51.100.10");
    inside.ask(&format!("curl -fsS -m3 http://{OK}/{after}")).exits(0);
    inside.ask(&format!("curl -sS -m3 http://{EVIL}/{after}")).exits(7);
    inside.end().exits(0);
    lab.expect_hits(&after, 1);
    assert_eq!(lab.hits(&before), []);
    lab.expect_silence(EVIL);
    lab.unconfined(&format!("curl -fsS -m3 http://{EVIL}/{after}")).exits(0);
    assert!(!lab.frames_to(EVIL).is_empty(), "the control arrives");
}

#[test]
fn e12_what_was_resolved_ahead_is_closed_until_it_is_asked_for() {
    let lab = Lab::new();
    let token = lab.token("ahead");
    let mut inside = Inside::start(lab.egressd("run").flags("--pre-resolve --allow ok.test"));
    assert!(!lab.zone().queries_for("ok.test").is_empty(), "resolved before the command ran");
    inside.ask(&format!("curl -sS -m3 http://{OK}/{token}")).exits(7);
    lab.expect_silence(OK);
    inside.ask(&format!("curl -fsS -m3 http://ok.test/{token}")).exits(0);
    inside.end().exits(0);
    lab.expect_hits(&token, 1);
}

#[test]
fn t04_client_side_bypass_knobs() {
    need("wget");
    let lab = Lab::new();
    let token = lab.token("knob");
    let around = format!(
        "curl -sS -m3 --connect-to ::{EVIL}: http://ok.test/{token}; echo connect=$?
        curl -sS -m3 --resolve ok.test:80:{EVIL} http://ok.test/{token}; echo resolve=$?"
    );
    let output = lab
        .egressd("run")
        .env("http_proxy", "")
        .env("ALL_PROXY", "")
        .flags("--allow ok.test")
        .sh(&format!(
            "curl -sS -m3 --noproxy '*' http://evil.test/{token}; echo noproxy=$?
            {around}
            curl -sS -m3 -L http://ok.test/redir-to-evil/{token}; echo redirect=$?
            wget -q --no-proxy -T3 -t1 -O /dev/null http://evil.test/{token}; echo wget=$?"
        ))
        .output();
    for step in ["noproxy", "connect", "resolve", "redirect", "wget"] {
        assert_ne!(output.step(step), 0, "{step}: {output}");
    }
    let hits = lab.expect_hits(&token, 1);
    assert_eq!((hits[0].request(), hits[0].dst), (format!("GET /redir-to-evil/{token} HTTP/1.1"), (OK, 80).into()));
    lab.expect_silence(EVIL);
    let control = lab.unconfined(&around);
    assert!(control.step("connect") == 0 && control.step("resolve") == 0, "{control}");
    lab.expect_hits(&token, 3);
}
