//! HTTPS at the sink: certificates made by openssl for this process, a small Python server behind port 443.

use std::{
    io::{BufRead, BufReader},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde::Deserialize;

use crate::{
    cgroup::Cgroup,
    netns::Netns,
    sink::{Hit, Hits},
};

/// The `.test` names in the certificate.
const NAMES: [&str; 13] = ["ok", "ok6", "both", "a", "b", "c", "d", "e", "f", "evil", "evil6", "*.ok", "*.lab"];

/// The running server. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Tls {
    child: Child,
    pub(crate) certificate: PathBuf,
}

#[derive(Deserialize)]
struct Line {
    src: (IpAddr, u16),
    dst: (IpAddr, u16),
    sni: Option<String>,
    text: String,
}

impl Tls {
    /// Starts the server in `netns` with a certificate for [`NAMES`] that it makes in `directory`.
    pub(crate) fn start(netns: &Netns, cgroup: &Cgroup, directory: &Path, hits: &Hits) -> Self {
        crate::need("openssl");
        // Spelled out, because no client takes a wildcard over a top-level domain.
        let names = NAMES.map(|name| format!("DNS:{name}.test")).join(",");
        let names = format!("subjectAltName={names}");
        let (certificate, key) = (directory.join("sink.pem"), directory.join("sink.key"));
        let mut openssl = Command::new("openssl");
        openssl.args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ]);
        openssl.args(["-subj", "/CN=sink.test", "-addext", &names, "-addext", "basicConstraints=critical,CA:TRUE"]);
        openssl.arg("-keyout").arg(&key).arg("-out").arg(&certificate);
        let made = openssl.output().expect("openssl");
        assert!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));

        let mut command = netns.command(crate::PYTHON);
        command.args(["-I", "-c", include_str!("tls.py")]).arg(&certificate).arg(&key);
        cgroup.place(&mut command);
        crate::process::ends_with_caller(&mut command);
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("python3");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        assert_eq!(lines.next().and_then(Result::ok).as_deref(), Some("ready"), "the TLS server did not start");
        let hits = hits.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let Line { src, dst, sni, text } = serde_json::from_str(&line).expect("a line of the TLS server");
                let bytes = text.chars().map(|byte| byte as u8).collect();
                hits.push(Hit { src: SocketAddr::from(src), dst: SocketAddr::from(dst), sni, bytes });
            }
        });
        Self { child, certificate }
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}
