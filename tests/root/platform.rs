//! What a platform offers its sandboxes, and what it must not: gateway, proxy, metadata, services of the host.

use std::net::IpAddr;

use lab::{BOX, EVIL, Entry, GATEWAY, Lab, METADATA, OK, PROXY, need, until};

#[test]
fn t10_gateway() {
    need("nc");
    let lab = Lab::new();
    let (token, closed) = (lab.token("gateway"), lab.token("closed"));
    let script = |token: &str| {
        format!(
            "curl -sS -m3 http://{GATEWAY}:8080/{token}; echo open=$?
            nc -z -w2 {GATEWAY} 22; echo ssh=$?"
        )
    };
    let without = lab.sh("", &script(&closed));
    assert!(without.step("open") == 7 && without.step("ssh") != 0, "{without}");
    lab.expect_silence(GATEWAY);
    for (shape, run) in lab.shapes() {
        let token = lab.token(shape);
        let output = run.flags(&format!("--gateway {GATEWAY}:8080")).sh(&script(&token)).output();
        assert!(output.step("open") == 0 && output.step("ssh") != 0, "{shape}: {output}");
        lab.expect_hits(&token, 1);
    }
    let ssh = lab.frames_to(GATEWAY).into_iter().filter(|frame| frame.is_tcp(22)).count();
    assert_eq!(ssh, 0);
    let control = lab.unconfined(&script(&token));
    assert!(control.step("open") == 0 && control.step("ssh") == 0, "{control}");
    assert!(lab.frames_to(GATEWAY).iter().any(|frame| frame.is_tcp(22)), "the control arrives");
}

#[test]
fn t11_proxy_only() {
    let lab = Lab::new();
    let certificate = lab.https().display();
    let _squid = lab.squid(&["ok.test"]);
    let token = lab.token("proxied");
    let get = format!("curl -fsS -m9 --cacert {certificate}");
    let through = format!("{get} -x http://{PROXY}:3128");
    let output = lab.sh(
        &format!("--proxy {PROXY}:3128"),
        &format!(
            "{through} http://ok.test/{token}; echo plain=$?
            {through} https://ok.test/{token}; echo tls=$?
            {through} http://evil.test/{token}; echo evil=$?
            nc -z -w2 {PROXY} 22; echo ssh=$?
            {get} --noproxy '*' http://ok.test/{token}; echo direct=$?
            {get} --noproxy '*' http://{OK}/{token}; echo literal=$?"
        ),
    );
    let steps = ["plain", "tls", "evil", "ssh", "direct", "literal"].map(|step| output.step(step) == 0);
    assert_eq!(steps, [true, true, false, false, false, false], "{output}");
    let hits = lab.expect_hits(&token, 2);
    assert!(hits.iter().all(|hit| hit.src.ip() == PROXY && hit.dst.ip() == OK), "{hits:?}");
    let frames = lab.frames();
    let from_box = |dst: IpAddr, port: u16| {
        frames.iter().filter(move |frame| frame.src == BOX && frame.dst == dst && frame.is_tcp(port))
    };
    assert_eq!(from_box(PROXY, 22).count() + from_box(OK, 80).count() + from_box(OK, 443).count(), 0, "{frames:#?}");
    assert!(from_box(PROXY, 3128).count() > 0);
    lab.expect_silence(EVIL);
}

#[test]
fn t12_metadata_link_local_and_host_services() {
    let lab = Lab::new();
    lab.zone().put("host.docker.internal", Entry::at(&["198.51.100.1"]));
    // The proxy is careless: it passes on whatever it is asked. It sits in a sandbox of its own.
    let proxy_netns = lab.another_box(31);
    let proxy: IpAddr = "198.51.100.31".parse().unwrap();
    let words = lab.squid_words("careless", proxy, &[".test", ".internal", "169.254.169.254", "198.51.100.1"]);
    let policy =
        lab.file("proxy.toml", &format!("version = 1\n[allow]\nnames = [\"*.lab.test\"]\ninbound = [\"{BOX}\"]\n"));
    let squid = lab
        .egressd("run")
        .entering(&proxy_netns)
        .user(Some("proxy"))
        .arg("--policy")
        .arg(&policy)
        .program(&words)
        .spawn();
    until(std::time::Duration::from_secs(15), "the careless proxy listens", || {
        proxy_netns.sh("ss -Hltn 'sport = :3128'").stdout.contains("3128")
    });

    let (token, good) = (lab.token("secret"), lab.token("good"));
    let attempts = |token: &str| {
        format!(
            "curl -fsS -m2 http://{METADATA}/{token}; echo literal=$?
            curl -fsS -m2 http://{GATEWAY}:8000/projects/{token}; echo service=$?
            echo {token} | nc -u -w1 224.0.0.251 5353; echo multicast=$?"
        )
    };
    let through = format!("curl -fsS -m5 -x http://{proxy}:3128");
    let output = lab.sh_netns(
        &format!("--allow *.lab.test --proxy {proxy}:3128"),
        &format!(
            "{}
            curl -fsS -m2 http://meta.lab.test/{token}; echo name=$?
            {through} http://host.docker.internal:8000/{token}; echo docker=$?
            {through} http://meta.lab.test/{token}; echo proxied=$?
            {through} http://{METADATA}/{token}; echo proxiedip=$?
            curl -fsS -m2 http://good.lab.test/{good}; echo good=$?
            {through} http://good.lab.test/{good}; echo goodproxied=$?",
            attempts(&token)
        ),
    );
    for step in ["literal", "service", "name", "docker", "proxied", "proxiedip"] {
        assert_ne!(output.step(step), 0, "{step}: {output}");
    }
    assert!(output.step("good") == 0 && output.step("goodproxied") == 0, "{output}");
    let sources = lab.expect_hits(&good, 2).iter().map(|hit| hit.src.ip()).collect::<Vec<_>>();
    assert_eq!(sources, [BOX, proxy]);
    squid.signal(nix::sys::signal::Signal::SIGTERM);
    squid.finish(std::time::Duration::from_secs(60));
    lab.expect_silence(METADATA);
    lab.expect_silence("224.0.0.251".parse::<IpAddr>().unwrap());
    lab.expect_silence(GATEWAY);
    assert_eq!(lab.hits(&token), []);

    let control = lab.unconfined(&attempts(&lab.token("control")));
    assert!(control.step("literal") == 0 && control.step("service") == 0, "{control}");
    assert!(!lab.frames_to("224.0.0.251".parse::<IpAddr>().unwrap()).is_empty());
}
