//! Input that egressd must refuse: with a named error and its exit code, before anything is changed.

use lab::{Lab, OK, Output};

/// Policies that are wrong, with what the message must name beside file and line.
const POLICIES: [(&str, &str, usize, &str); 15] = [
    ("cut short", "version = 1\n[allow]\nnames = [\n", 3, ""),
    ("unknown version", "version = 7\n", 1, "version"),
    ("unknown key", "version = 1\n[allow]\nname = [\"ok.test\"]\n", 3, "name"),
    ("unknown table", "version = 1\n[alow]\n", 2, "alow"),
    ("wrong type", "version = 1\n[allow]\nnames = \"ok.test\"\n", 3, "names"),
    ("empty name", "version = 1\n[allow]\nnames = [\"\"]\n", 3, "names"),
    ("everything", "version = 1\n[allow]\nnames = [\"*\"]\n", 3, "*"),
    ("top-level domain", "version = 1\n[allow]\nnames = [\"*.com\"]\n", 3, "*.com"),
    ("path", "version = 1\n[allow]\nnames = [\"https://ok.test/path\"]\n", 3, "path"),
    ("port 0", "version = 1\n[allow]\nnames = [\"ok.test:0\"]\n", 3, "ok.test:0"),
    ("bad CIDR", "version = 1\n[allow]\naddresses = [\"198.51.100.0/33\"]\n", 3, "198.51.100.0/33"),
    ("bad protocol", "version = 1\n[allow]\naddresses = [\"198.51.100.1:80/sctp\"]\n", 3, "sctp"),
    ("proxy name", "version = 1\n[allow]\nproxy = [\"proxy.test:3128\"]\n", 3, "proxy.test"),
    ("duplicate", "version = 1\n[allow]\nnames = [\"ok.test\", \"ok.test\"]\n", 3, "ok.test"),
    ("covered", "version = 1\n[allow]\nnames = [\"ok.test\"]\n[deny]\nnames = [\"ok.test\"]\n", 0, "ok.test"),
];

/// Refused, in one message, with no trace of a crash.
#[track_caller]
fn refused(output: &Output, code: i32, name: &str, cause: &str) {
    assert_eq!(output.code, Some(code), "{name}: {output}");
    assert!(output.stderr.contains(cause), "{name} does not name {cause}: {output}");
    assert!(output.stdout.is_empty() && !output.stderr.contains("panicked"), "{name}: {output}");
}

#[test]
fn malformed_policies() {
    let lab = Lab::new();
    let token = lab.token("ran");
    let before = lab.snapshot();
    for (name, text, line, cause) in POLICIES {
        let file = lab.file("bad.toml", text);
        let check = lab.egressd("check").arg(&file).output();
        refused(&check, 2, name, cause);
        let place = if line == 0 { "bad.toml".to_owned() } else { format!("bad.toml:{line}") };
        assert!(check.stderr.contains(&place), "{name} does not say {place}: {check}");
        let run = lab.egressd("run").arg("--policy").arg(&file).sh(&format!("curl -m3 http://{OK}/{token}")).output();
        refused(&run, 125, name, cause);
    }
    assert_eq!(lab.hits(&token), []);
    lab.expect_silence(OK);
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
    let good = lab.file("good.toml", "version = 1\n[allow]\nnames = [\"ok.test\"]\n");
    lab.egressd("check").arg(&good).output().exits(0);
    lab.egressd("run")
        .arg("--policy")
        .arg(&good)
        .sh(&format!("curl -fsS -m3 http://ok.test/{token}"))
        .output()
        .exits(0);
    lab.expect_hits(&token, 1);
}

/// Flags that are wrong, with what the message must name.
const FLAGS: [(&[&str], &str); 14] = [
    (&["--allow", ""], "--allow"),
    (&["--allow", "*"], "*"),
    (&["--allow", "a*b.test"], "a*b.test"),
    (&["--allow", "ok.test,evil.test"], "ok.test,evil.test"),
    (&["--allow", "ftp://ok.test"], "ftp"),
    (&["--allow", "ok.test:70000"], "70000"),
    (&["--allow", "ok.test:90-80"], "90-80"),
    (&["--allow", "198.51.100.0/33"], "198.51.100.0/33"),
    (&["--allow", "2001:db8::/129"], "2001:db8::/129"),
    (&["--deny", ""], "--deny"),
    (&["--gateway", "198.51.100.1"], "198.51.100.1"),
    (&["--proxy", "198.51.100.80"], "198.51.100.80"),
    (&["--no-such-flag"], "--no-such-flag"),
    (&["--user", "no-such-user"], "no-such-user"),
];

#[test]
fn malformed_flags() {
    let lab = Lab::new();
    let token = lab.token("ran");
    let before = lab.snapshot();
    let words = |flags: &[&str]| {
        let user = if flags.contains(&"--user") { None } else { Some("nobody") };
        flags.iter().fold(lab.egressd("run").user(user), lab::Launch::arg)
    };
    for (flags, cause) in FLAGS {
        let output = words(flags).sh(&format!("curl -m3 http://{OK}/{token}")).output();
        refused(&output, 125, &flags.join(" "), cause);
    }
    refused(&lab.egressd("run").flags("--allow ok.test").output(), 125, "no command", "");
    assert_eq!(lab.hits(&token), []);
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
    words(&["--allow", "ok.test:80"]).sh(&format!("curl -fsS -m3 http://ok.test/{token}")).output().exits(0);
    lab.expect_hits(&token, 1);
}

#[test]
fn attach_to_what_cannot_be_enforced() {
    let lab = Lab::new();
    let before = lab.snapshot();
    let target = lab.cgroup().child("target");
    let attach = |words: &str| lab.egressd("attach").flags(words).output();
    let path = target.path().display();
    refused(&attach(&format!("--cgroup {path}/none --allow ok.test")), 2, "no such cgroup", "none");
    refused(&attach("--cgroup /etc --allow ok.test"), 2, "not a cgroup", "/etc");
    refused(&attach(&format!("--cgroup {path} --allow {}", "*")), 2, "everything", "*");
    refused(&attach("--allow ok.test"), 2, "no target", "--cgroup");
    refused(&attach(&format!("--cgroup {path} --pin --allow ok.test")), 2, "nobody answers DNS", "--pin");
    refused(&attach(&format!("--cgroup {path} --policy /nonexistent")), 2, "no policy file", "/nonexistent");
    let own = lab.caller().path().display();
    refused(&attach(&format!("--cgroup {own} --allow ok.test")), 2, "egressd's own cgroup", "egressd");
    let capsh = ["capsh", "--drop=cap_bpf,cap_sys_admin", "--", "-c", "exec \"$0\" \"$@\""];
    let output = lab.egressd("attach").flags(&format!("--cgroup {path} --allow ok.test")).through(&capsh).output();
    refused(&output, 4, "no CAP_BPF", "CAP_");
    std::fs::remove_dir(target.path()).unwrap();
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
}
