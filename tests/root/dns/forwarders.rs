//! C08: resolvers that people run inside a sandbox, forwarding to egressd.

use crate::job::{Job, end};
use lab::{Entry, Lab, Running, need, until};
use nix::sys::signal::Signal;
use std::{process::Command, time::Duration};

const SOON: Duration = Duration::from_secs(15);
/// Where each of them listens: port 53 would be redirected past it.
const AT: &str = "-p 5300 @127.0.0.1";

/// A name as content networks have them: two operators' names before an address.
fn shop(lab: &Lab) {
    for (name, target) in
        [("www.shop.test", "www.shop.test.edgekey.test"), ("www.shop.test.edgekey.test", "e1.dsca.edge.test")]
    {
        lab.zone().put(name, Entry::alias(target).ttl(20));
    }
    lab.zone().put("e1.dsca.edge.test", Entry::at(&["198.51.100.10", lab::OK6]).ttl(20));
}

/// Asks the forwarder as its sandbox's clients do.
fn resolves_a_chain(lab: &Lab, job: &Job<'_>, forwarder: &mut Running) {
    let ask = |name: &str, kind: &str| job.sh(&format!("dig {AT} +tries=1 +time=2 {name} {kind}"));
    until(SOON, "the forwarder answers", || {
        assert!(forwarder.is_alive(), "{}", forwarder.said());
        ask("localhost", "A").stdout.contains("status:")
    });
    let token = lab.token("chain");
    for (kind, address, url) in [("A", "198.51.100.10", "198.51.100.10"), ("AAAA", lab::OK6, "[2001:db8::10]")] {
        // From its own cache the second time.
        for _ in 0..2 {
            let found = ask("www.shop.test", kind);
            assert!(
                found.stdout.contains(address) && found.stdout.contains("NOERROR"),
                "{kind}: {found}\n{}",
                forwarder.said()
            );
        }
        assert_eq!(job.curl(url, &token), Some(0), "the address it names is open");
    }
    for name in ["evil.test", "e1.dsca.edge.test", "shop.test"] {
        let denied = ask(name, "A");
        assert!(!denied.stdout.contains("198.51.100."), "{denied}");
    }
    lab.expect_hits(&token, 2);
    let asked = lab.zone().queries();
    assert!(asked.iter().all(|query| query.name == "www.shop.test"), "{asked:?}");
}

/// Starts a forwarder in the job as nobody, with `prepare` done before as root in a mount namespace of its own.
fn forward(lab: &Lab, job: &Job<'_>, prepare: &str, words: &str) -> Running {
    let script =
        format!("{prepare}\nexec setpriv --reuid=65534 --regid=65534 --clear-groups --bounding-set=-all {words}");
    let mut command: Command = lab.box_ns().command("unshare");
    command.args(["-m", "sh", "-e", "-c", &script]).current_dir(lab.work_dir());
    job.cgroup().place(&mut command);
    Running::spawn(command)
}

fn shown(prepare: impl Fn(&Lab) -> String, words: impl Fn(&Lab) -> String) {
    let lab = Lab::new();
    shop(&lab);
    let job = Job::new(&lab, "job");
    let agent = job.attached("--allow www.shop.test");
    let mut forwarder = forward(&lab, &job, &prepare(&lab), &words(&lab));
    resolves_a_chain(&lab, &job, &mut forwarder);
    drop(forwarder);
    end(agent, Signal::SIGINT).exits(0);
    lab.expect_silence(lab::EVIL);
}

#[test]
fn c08_unbound() {
    need("unbound");
    let words = |lab: &Lab| {
        let configuration = lab.file(
            "unbound.conf",
            "server:
              do-daemonize: no
              use-syslog: no
              username: \"\"
              chroot: \"\"
              pidfile: \"\"
              directory: \".\"
              interface: 127.0.0.1@5300
              module-config: \"iterator\"
              local-zone: \"test.\" nodefault
            remote-control:
              control-enable: no
            forward-zone:
              name: \".\"
              forward-addr: 203.0.113.8
            ",
        );
        format!("unbound -d -p -c {}", configuration.display())
    };
    shown(|_| String::new(), words);
}

#[test]
fn c08_dnsmasq() {
    need("dnsmasq");
    let words = "dnsmasq --keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts --port=5300 --listen-address=127.0.0.1
        --bind-interfaces --server=203.0.113.8 --user= --pid-file= --log-facility=-";
    shown(|_| String::new(), |_| words.replace('\n', " "));
}

#[test]
fn c08_systemd_resolved() {
    let unpacked = lab::unpacked("systemd-resolved");
    let resolved = unpacked.join("lib/systemd/systemd-resolved");
    assert!(resolved.is_file(), "{} is missing: run `cargo xtask setup`", resolved.display());
    let prepare = |lab: &Lab| {
        let (lab, unpacked) = (lab.directory().display(), unpacked.display());
        // A /run of its own with the lab's directory in it, and the unpacked package where nobody can read it.
        format!(
            "mount --rbind {lab} /mnt; mount -t tmpfs -o mode=755 lab /run; mkdir -p {lab}
            mount --move /mnt {lab}
            mkdir -p /run/systemd/resolve /run/systemd/resolved.conf.d /run/unpacked
            mount --bind {unpacked} /run/unpacked
            printf '[Resolve]\\nDNS=203.0.113.8\\nDNSStubListener=no\\nDNSStubListenerExtra=127.0.0.1:5300\\nLLMNR=no\\nMulticastDNS=no\\n' \
                > /run/systemd/resolved.conf.d/lab.conf
            chown -R 65534:65534 /run/systemd"
        )
    };
    shown(prepare, |_| {
        "env LD_LIBRARY_PATH=/run/unpacked/usr/lib/x86_64-linux-gnu/systemd:/run/unpacked/lib/x86_64-linux-gnu/systemd /run/unpacked/lib/systemd/systemd-resolved"
            .to_owned()
    });
}
