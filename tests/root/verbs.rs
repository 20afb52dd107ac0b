//! The verbs that tell: status, events, explain, check, doctor, version; and the two that touch everything: detach --all and
//! observing.

mod observing;
mod reload;
mod several;

use crate::job::{Job, end, judges_foreign};
use lab::{EVIL, Lab, OK, Output, until};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(10);

/// One JSON value a line.
fn lines(output: &Output) -> Vec<Value> {
    output
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap_or_else(|| panic!("{value}")).keys().map(String::as_str).collect()
}

#[test]
fn status_tells_what_the_kernel_has() {
    const HOOKS: [&str; 14] = [
        "bind4",
        "bind6",
        "connect4",
        "connect6",
        "egress",
        "getpeername4",
        "getpeername6",
        "ingress",
        "recvmsg4",
        "recvmsg6",
        "sendmsg4",
        "sendmsg6",
        "sock_create",
        "sock_ops",
    ];
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let none = lab.egressd("status").flags("--json").output();
    assert_eq!(lines(none.exits(0)), [serde_json::json!({ "schema": 1, "sandboxes": [] })]);
    assert_eq!(job.status().0, Some(5));
    assert!(!lab.state_dir().exists() && !lab.pin_dir().exists(), "asking makes nothing");

    let policy = lab.file("ci.toml", "version = 1\nname = \"ci-build\"\n[allow]\nnames = [\"ok.test\"]\n");
    let attach = crate::job::ready(job.attach("").arg("--policy").arg(&policy));
    let (code, status) = job.status();
    assert_eq!(code, Some(0));
    assert_eq!(
        keys(&status),
        [
            "sandbox",
            "policy",
            "mode",
            "cgroup",
            "device",
            "in_force",
            "generation",
            "level",
            "agent_pid",
            "hooks",
            "maps",
            "counters",
            "bandwidth",
            "destinations"
        ]
    );
    assert_eq!(keys(&status["counters"]), ["allowed_packets", "allowed_bytes", "denied", "events_lost"]);
    assert_eq!(
        (&status["policy"], &status["mode"], &status["generation"]),
        (&"ci-build".into(), &"enforce".into(), &1.into())
    );
    assert_eq!((&status["level"]["level"], &status["device"]), (&"L1".into(), &Value::Null));
    assert_eq!(status["agent_pid"], attach.pid().as_raw());
    let hooks: Vec<_> = status["hooks"].as_array().unwrap().iter().map(|hook| hook["hook"].as_str().unwrap()).collect();
    // Those that follow the calling task are there where the kernel has them.
    let (of_tasks, of_sockets): (Vec<_>, Vec<_>) =
        hooks.into_iter().partition(|hook| hook.starts_with("socket_") || hook.starts_with("file_"));
    assert_eq!((of_sockets.as_slice(), !of_tasks.is_empty()), (&HOOKS[..], judges_foreign(&lab)), "{of_tasks:?}");
    assert!(status["hooks"].as_array().unwrap().iter().all(|hook| hook["attached"] == true), "{status}");
    assert!(job.path().ends_with(status["cgroup"].as_str().unwrap()));

    assert_eq!(job.curl("ok.test", &lab.token("ok")), Some(0));
    assert_eq!(job.curl(&EVIL.to_string(), &lab.token("closed")), Some(7));
    let (_, later) = job.status();
    let moved = |key: &str| later["counters"][key].as_u64() > status["counters"][key].as_u64();
    assert!(moved("allowed_packets") && moved("allowed_bytes"), "{later}");
    let [to] = &later["destinations"].as_array().unwrap()[..] else { panic!("one destination: {later}") };
    let bytes = |count: &Value| count.as_u64().unwrap();
    assert_eq!(to["destination"], "ok.test", "{later}");
    // The question went to egressd's own resolver.
    assert!(bytes(&to["bytes"]) > 200 && bytes(&to["bytes"]) < bytes(&later["counters"]["allowed_bytes"]), "{later}");
    assert_eq!(later["counters"]["denied"]["not_permitted"], 1, "one connect, one denial: {later}");
    let permits = |status: &Value| status["maps"][0]["entries"].as_u64().unwrap();
    assert_eq!((permits(&status), permits(&later), &later["maps"][0]["map"]), (0, 1, &"PERMITS".into()));

    // Not on a terminal: the bare table.
    let table = lab.egressd("status").output();
    let cells: Vec<_> = table.exits(0).stdout.trim_end().split('\t').collect();
    assert_eq!(&cells[1..7], ["ci-build", "enforce", "L1", "yes", "1", "1"], "{table}");
    assert_eq!(cells[7], format!("pid {}", attach.pid()));
    assert!(cells.len() == 10 && cells[9].ends_with('B') && !cells[9].starts_with('0'), "{table}");
    // However the cgroup is written.
    for path in [job.path().to_owned(), status["cgroup"].as_str().unwrap().to_owned(), format!("{}/../job", job.path())]
    {
        lab.egressd("status").flags(&format!("--cgroup {path}")).output().exits(0);
    }
    end(attach, Signal::SIGINT).exits(0);

    let owned = job.attach(&format!("--allow {OK} --pin")).entering(lab.box_ns()).output();
    owned.exits(0);
    let (_, status) = job.status();
    assert_eq!((&status["level"]["level"], &status["device"]), (&"L2".into(), &"box0".into()));
    assert_eq!(status["hooks"].as_array().unwrap().len(), HOOKS.len() + of_tasks.len() + 2, "{status}");
    // A link that somebody took off is seen, and said by the exit code.
    lab.outer_ns().ip("link del box0");
    let (code, status) = job.status();
    assert_eq!((code, &status["in_force"]), (Some(5), &false.into()), "the device is gone: {status}");
    job.detach().exits(0);
}

#[test]
fn events_are_lines_that_a_tool_can_read() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let attach = job.attached("--allow ok.test");
    let events = |flags: &str| lab.egressd("events").flags(&format!("--json {flags}")).output();
    let mut follow =
        lab.egressd("events").flags(&format!("--json --follow --verdict deny --cgroup {}", job.path())).spawn();
    assert_eq!(job.curl("ok.test", &lab.token("ok")), Some(0));
    assert_eq!(job.curl(&EVIL.to_string(), &lab.token("closed")), Some(7));
    assert!(job.curl("evil.test", &lab.token("closed")).is_some_and(|code| code != 0));

    let said = |follow: &lab::Running| -> Vec<Value> {
        follow.stdout().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    until(SOON, "both denials are followed", || {
        let denied = said(&follow);
        denied.iter().any(|event| event["event"] == "connect") && denied.iter().any(|event| event["event"] == "dns")
    });
    assert!(follow.is_alive());
    let denied = said(&follow);
    assert!(denied.iter().all(|event| event["verdict"] == "deny" && event["schema"] == 1), "{denied:#?}");
    let connect = denied.iter().find(|event| event["event"] == "connect").unwrap();
    for (key, value) in [
        ("reason", "not_permitted"),
        ("hook", "connect4"),
        ("proto", "tcp"),
        ("dst_ip", "198.51.100.20"),
        ("comm", "curl"),
        ("exe", ""),
    ] {
        assert!(value.is_empty() || connect[key] == value, "{key}: {connect}");
    }
    assert_eq!((&connect["dst_port"], &connect["uid"]), (&80.into(), &65534.into()), "{connect}");
    assert!(
        connect["pid"].as_u64().is_some() && connect["cgroup"].as_str().is_some_and(|path| job.path().ends_with(path))
    );
    let asked = denied.iter().find(|event| event["event"] == "dns").unwrap();
    assert_eq!((&asked["dst_name"], &asked["hook"]), (&"evil.test".into(), &"dns".into()), "{asked}");

    let all = lines(events("").exits(0));
    let kinds = |kind: &str| all.iter().filter(|event| event["event"] == kind).count();
    assert_eq!((kinds("attach"), kinds("permit")), (1, 1), "{all:#?}");
    let permit = all.iter().find(|event| event["event"] == "permit").unwrap();
    assert_eq!(
        (&permit["dst_name"], &permit["dst_ip"], &permit["rule"]),
        (&"ok.test".into(), &"198.51.100.10".into(), &"ok.test".into())
    );
    let only = lines(events("--verdict deny").exits(0));
    assert!(!only.is_empty() && only.iter().all(|event| event["verdict"] == "deny"));
    assert!(lines(events("--verdict would_deny").exits(0)).is_empty());
    events("--cgroup /no/such").exits(2).says("/no/such");
    let text = lab.egressd("events").flags("--verdict deny").output();
    assert!(
        text.exits(0).stdout.lines().any(|line| line.contains("198.51.100.20:80/tcp") && line.contains("curl")),
        "{text}"
    );

    // The reader ends with the sandbox that it was asked about, and has its last words.
    end(attach, Signal::SIGINT).exits(0);
    follow.finish(Duration::from_secs(30)).exits(0);
    lab.expect_silence(EVIL);
    lab.expect_hits(&lab.token("ok"), 1);
}

#[test]
fn explain_names_the_rule_and_the_end_or_the_reason() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let flags = "--allow ok.test --allow *.lab.test:8080 --allow 203.0.113.0/24:5432/tcp --deny bad.lab.test --deny 203.0.113.7";
    let attach = job.attached(flags);
    let explain = |dest: &str| {
        let output = lab.egressd("explain").arg(dest).flags("--json").output();
        let report: Value = serde_json::from_str(&output.exits(0).stdout).unwrap();
        report["explanations"].as_array().unwrap().clone()
    };
    let first = |dest: &str| explain(dest)[0].clone();
    let told = |dest: &str| {
        let one = first(dest);
        let word = |key: &str| one[key].as_str().unwrap_or("-").to_owned();
        (word("verdict"), word("reason"), word("rule"))
    };
    let words = |verdict: &str, reason: &str, rule: &str| (verdict.to_owned(), reason.to_owned(), rule.to_owned());
    assert_eq!(keys(&first("ok.test")), ["destination", "address", "verdict", "reason", "rule", "expires", "names"]);
    assert_eq!(told("ok.test"), words("allow", "not_resolved_yet", "ok.test"));
    assert_eq!(job.curl("ok.test", &lab.token("learn")), Some(0));
    until(SOON, "what was learned is written down", || told("ok.test").1 != "not_resolved_yet");
    // Where the line stands is said too, wherever it came from.
    let by = |text: &str| format!("{text} (--allow {})", text.rsplit(' ').next().unwrap());
    assert_eq!(told("ok.test"), words("allow", "permitted", &by("allow.names: ok.test")));
    let learned = first("198.51.100.10:80/tcp");
    assert_eq!(
        (&learned["verdict"], &learned["names"]),
        (&"allow".into(), &serde_json::json!(["ok.test"])),
        "{learned}"
    );
    assert!(learned["expires"].as_str().is_some_and(|end| end.ends_with('Z')), "{learned}");
    assert_eq!(told("198.51.100.10:22/tcp").1, "port_not_permitted");
    assert_eq!(told("evil.test"), words("deny", "not_permitted", "-"));
    assert_eq!(told("bad.lab.test:8080"), words("deny", "denied_by_rule", "bad.lab.test"));
    assert_eq!(told("good.lab.test:8080"), words("allow", "not_resolved_yet", "*.lab.test:8080"));
    assert_eq!(
        told("203.0.113.9:5432/tcp"),
        words("allow", "permitted", &by("allow.addresses: 203.0.113.0/24:5432/tcp"))
    );
    assert_eq!(told("203.0.113.7:5432/tcp").1, "denied_by_rule");
    assert_eq!(told("203.0.113.9:80/tcp").1, "port_not_permitted");
    assert_eq!(told("169.254.169.254:80/tcp").1, "restricted");
    assert_eq!(told("198.51.100.20:80/tcp"), words("deny", "not_permitted", "-"));
    let both = explain("198.51.100.20:80");
    assert_eq!(both.len(), 2, "one for each protocol: {both:?}");
    let text = lab.egressd("explain").arg("ok.test:443").output();
    assert!(
        text.exits(0).stdout.contains("allow, permitted, by \"allow.names: ok.test (--allow ok.test)\", until "),
        "{text}"
    );

    // What it says is what happens.
    assert_eq!(job.curl("198.51.100.20", &lab.token("closed")), Some(7));
    lab.egressd("explain").arg("http://").output().exits(2);
    end(attach, Signal::SIGINT).exits(0);
    lab.egressd("explain").arg("ok.test").output().exits(2);
    lab.expect_hits(&lab.token("learn"), 1);
}

#[test]
fn check_touches_nothing() {
    let lab = Lab::new();
    let org = lab.file("org.toml", "version = 1\n[allow]\nnames = [\"ok.test\"]\n[deny]\nnames = [\"evil.test\"]\n");
    let ci = lab.file("ci.toml", "version = 1\n[allow]\nnames = [\"evil.test\", \"a.test\"]\n");
    let broken = lab.file("broken.toml", "version = 1\n[allow]\naddresses = [\"198.51.100.300\"]\n");
    let check = |files: &[&std::path::PathBuf], flags: &str| {
        let launch = lab.egressd("check").flags(flags);
        files.iter().fold(launch, lab::Launch::arg).output()
    };
    check(&[&ci], "").exits(0);
    let refused = check(&[&org, &ci], "");
    refused.exits(2).says("evil.test");
    check(&[&broken], "").exits(2).says("broken.toml:3:");
    let printed = check(&[&ci], "--print");
    let merged = lab.file("merged.toml", &printed.exits(0).stdout);
    assert_eq!(check(&[&merged], "--print").exits(0).stdout, printed.stdout, "what is printed is a policy");
    assert!(!lab.state_dir().exists() && !lab.pin_dir().exists());
}

#[test]
fn doctor_and_version_tell_of_the_host_and_the_build() {
    let lab = Lab::new();
    let table = lab.egressd("doctor").output();
    let json = lab.egressd("doctor").flags("--json").output();
    let report: Value = serde_json::from_str(&json.stdout).unwrap();
    let needs = report["needs"].as_array().unwrap();
    assert_eq!(keys(&needs[0]), ["hook", "kernel", "contains", "level", "present", "why", "fix"]);
    assert_eq!(keys(&report), ["schema", "kernel", "highest", "needs", "programs"]);
    let hooks = needs.iter().filter(|need| need["hook"].as_str().unwrap().starts_with("cgroup"));
    assert!(
        hooks.clone().count() == 8 && hooks.clone().all(|need| need["present"] == "yes"),
        "they are here: {report}"
    );
    assert_eq!(report["highest"], "L3", "{report}");
    table.says("highest level possible L3");
    // Every program is in the table, and the kernel says what it took to verify it.
    let programs = report["programs"].as_array().unwrap();
    assert!(
        programs.len() >= 19 && programs.iter().all(|program| program["verified_instructions"].as_u64() > Some(0)),
        "{report}"
    );
    // What no level needs is no reason to fail.
    let all = needs.iter().all(|need| need["present"] == "yes" || need["present"] == "absent");
    let optional = needs.iter().filter(|need| {
        need["hook"].as_str().unwrap().contains("socket_sendmsg")
            || need["hook"].as_str().unwrap().contains("connect_unix")
    });
    assert!(optional.clone().count() == 2 && optional.clone().all(|need| need["level"].is_null()), "{report}");
    assert_eq!((json.code, table.code), (Some(if all { 0 } else { 3 }), json.code), "{json}");
    assert_eq!(table.stdout.lines().count(), needs.len());
    let nobody =
        lab.egressd("doctor").through(&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]).output();
    nobody.exits(3).says("highest level possible none");
    assert!(!lab.state_dir().exists() && !lab.pin_dir().exists(), "asking makes nothing");

    let version: Value =
        serde_json::from_str(&lab.egressd("version").flags("--json").output().exits(0).stdout).unwrap();
    assert_eq!(keys(&version), ["version", "revision", "dirty", "object", "abi"]);
    let text = lab.egressd("version").output().exits(0).stdout.clone();
    for key in ["version", "revision", "object"] {
        assert!(text.contains(version[key].as_str().unwrap()), "{key}: {text}");
    }
    assert!(version["abi"].as_u64().is_some_and(|abi| abi > 0));
}
