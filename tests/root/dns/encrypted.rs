//! DNS servers over TLS and HTTPS. They are a feature of the build: without it a policy that names one is refused.

use lab::{Inside, Lab, Running, need, until};
use std::{fmt::Write as _, path::Path, process::Command, time::Duration};

const SOON: Duration = Duration::from_secs(20);
const SERVERS: [&str; 2] = ["tls://198.51.100.54:8853#dns.test", "https://198.51.100.54:8443/dns-query#dns.test"];

fn openssl(directory: &Path, arguments: &str) {
    let mut command = Command::new("openssl");
    command.args(arguments.split_whitespace()).current_dir(directory);
    let made = command.output().unwrap();
    assert!(made.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&made.stderr));
}

/// An authority in `ca.pem`, and what it says of dns.test in `dns.pem`.
fn certificates(directory: &Path) {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
    openssl(
        directory,
        &format!("req -x509 {key} -subj /CN=lab -addext basicConstraints=critical,CA:TRUE -keyout ca.key -out ca.pem"),
    );
    openssl(
        directory,
        &format!(
            "req -x509 {key} -subj /CN=dns.test -addext subjectAltName=DNS:dns.test -addext basicConstraints=critical,CA:FALSE \
             -CA ca.pem -CAkey ca.key -keyout dns.key -out dns.pem"
        ),
    );
}

/// unbound at the second DNS server's address, asking the first.
fn resolver(lab: &Lab, directory: &Path) -> Running {
    let mut text = String::from(
        "server:\n do-daemonize: no\n use-syslog: no\n username: \"\"\n chroot: \"\"\n pidfile: \"\"\n directory: \"/\"\n \
         num-threads: 1\n module-config: \"iterator\"\n access-control: 0.0.0.0/0 allow\n local-zone: \"test.\" nodefault\n \
         tls-port: 8853\n https-port: 8443\n interface: 198.51.100.54@8853\n interface: 198.51.100.54@8443\n",
    );
    let path = directory.display();
    writeln!(text, " tls-service-key: \"{path}/dns.key\"\n tls-service-pem: \"{path}/dns.pem\"").unwrap();
    text += "remote-control:\n control-enable: no\nforward-zone:\n name: \".\"\n forward-addr: 198.51.100.53\n";
    let configuration = lab.file("unbound.conf", &text);
    let mut command = lab.sink_ns().command("unbound");
    command.args(["-d", "-p", "-c"]).arg(configuration);
    Running::spawn(command)
}

#[test]
fn f07_servers_over_tls_and_https() {
    need("unbound");
    need("openssl");
    let lab = Lab::new();
    let directory = lab.work_dir();
    let authority = directory.join("ca.pem");
    let (good, refused) = (lab.token("good"), lab.token("refused"));
    let asks = |server: &str, token: &str| {
        let run = lab.egressd("run").no_dns().flags("--pre-resolve=off --allow ok.test --dns").arg(server);
        run.env("SSL_CERT_FILE", authority.to_str().unwrap())
            .sh(&format!("curl -4 -sS -m9 http://ok.test/{token}"))
            .output()
    };
    certificates(&directory);
    let first = asks(SERVERS[0], &refused);
    if first.stderr.contains("--features encrypted-upstream") {
        assert_eq!(first.code, Some(125), "{first}");
        assert_eq!(asks(SERVERS[1], &refused).code, Some(125));
        assert!(lab.zone().queries().is_empty(), "nobody is asked in the clear instead");
        assert_eq!(lab.hits(&refused), []);
        return;
    }
    assert_eq!(first.code, Some(6), "nobody serves yet: {first}");
    let mut server = resolver(&lab, &directory);
    until(SOON, "unbound serves", || {
        assert!(server.is_alive(), "{}", server.said());
        ["8853", "8443"].iter().all(|port| lab.sink_ns().sh(&format!("nc -z -w1 198.51.100.54 {port}")).code == Some(0))
    });
    for name in SERVERS {
        asks(name, &good).exits(0);
        assert!(!lab.zone().queries_for("ok.test").is_empty(), "{name}: the answer came from the zone");
        // Another name than the certificate bears, and an authority that nobody here knows.
        let other = asks(&name.replace("#dns.test", "#other.test"), &refused);
        assert_eq!(other.code, Some(6), "{name}: {other}");
        let unknown = lab.egressd("run").no_dns().flags("--pre-resolve=off --allow ok.test --dns").arg(name);
        let unknown = unknown.sh(&format!("curl -4 -sS -m9 http://ok.test/{refused}")).output();
        assert_ne!(unknown.code, Some(0), "{name}: {unknown}");
    }
    let untrusted = lab.egressd("run").no_dns().flags("--pre-resolve=off --allow ok.test --dns").arg(SERVERS[0]);
    let mut inside = Inside::start(untrusted);
    assert_eq!(inside.ask(&format!("curl -4 -sS -m9 http://ok.test/{refused}")).code, Some(6));
    until(SOON, "whom nobody knows is told", || {
        super::events(&lab).iter().any(|event| event["reason"] == "upstream_untrusted")
    });
    inside.end().exits(0);
    lab.expect_hits(&good, 2);
    assert_eq!(lab.hits(&refused), []);
    let frames = lab.frames();
    assert!(frames.iter().any(|frame| frame.is_tcp(8853)) && frames.iter().any(|frame| frame.is_tcp(8443)));
    assert!(!frames.iter().any(|frame| frame.is_udp(53) || frame.is_tcp(53)), "{frames:?}");
    assert!(!frames.iter().any(|frame| frame.carries("\u{2}ok\u{4}test")), "a question in the clear");
}
