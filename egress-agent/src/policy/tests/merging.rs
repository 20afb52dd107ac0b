//! Several files and flags.

use crate::policy::{Flags, Local, Mode, Policy, PolicyError, PreResolve, Source};

fn file(name: &str, text: &str) -> Source {
    Source::Toml { name: name.into(), text: text.into() }
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

fn error(sources: impl IntoIterator<Item = Source>) -> String {
    Policy::merge(sources).expect_err("should be refused").to_string()
}

#[test]
fn allows_and_denies_add_up() {
    let org =
        file("org.toml", "[allow]\nnames = [\"github.com\"]\nloopback = [80]\n[deny]\nnames = [\"gist.github.com\"]");
    let repo = file("repo.toml", "[allow]\nnames = [\"github.com\", \"*.github.com\"]\nloopback = [443]");
    let policy = Policy::merge([org.clone(), repo.clone()]).unwrap();
    assert_eq!(policy.allow.names.len(), 2);
    assert_eq!(policy.allow.loopback, Local::Ports(vec![80, 443]));
    assert_eq!(policy.allow.names[0].at.clone().unwrap().to_string(), "org.toml:2:10");
    assert_eq!(policy.allow.names[1].at.clone().unwrap().to_string(), "repo.toml:2:24");
    assert_eq!(policy.deny.names.len(), 1);
}

#[test]
fn a_deny_of_one_file_closes_what_the_other_opens() {
    let message = error([
        file("repo.toml", "[allow]\nnames = [\"gist.github.com\"]"),
        file("org.toml", "[deny]\nnames = [\".github.com\"]"),
    ]);
    assert!(message.contains("repo.toml:2:10") && message.contains("org.toml:2:10"), "{message}");
}

#[test]
fn two_files_must_agree_about_single_values() {
    for (a, b) in [
        ("name = \"a\"", "name = \"b\""),
        ("mode = \"enforce\"", "mode = \"observe\""),
        ("[allow]\nloopback = true", "[allow]\nloopback = false"),
        ("[allow]\nself = [80]", "[allow]\nself = true"),
        ("[allow]\nicmp = \"none\"", "[allow]\nicmp = \"echo\""),
        ("[dns]\nanswers = \"public\"", "[dns]\nanswers = \"any\""),
        ("[dns]\npermit_min = \"1s\"", "[dns]\npermit_min = \"2s\""),
        ("[dns]\npermit_max = \"1h\"", "[dns]\npermit_max = \"2h\""),
        ("[dns]\ngrace = \"1s\"", "[dns]\ngrace = \"2s\""),
        ("[dns]\nqueries_per_second = 1", "[dns]\nqueries_per_second = 2"),
        ("[bandwidth]\negress = \"1mbit\"", "[bandwidth]\negress = \"2mbit\""),
        ("[bandwidth]\ningress = \"1mbit\"", "[bandwidth]\ningress = \"2mbit\""),
        ("[bandwidth]\nbudget = \"1MB\"", "[bandwidth]\nbudget = \"2MB\""),
        ("[bandwidth]\negress = \"1mbit\"\negress_burst = \"200ms\"", "[bandwidth]\negress_burst = \"300ms\""),
        ("[reload]\nestablished = \"cut\"", "[reload]\nestablished = \"keep\""),
    ] {
        let message = error([file("a.toml", a), file("b.toml", b)]);
        assert!(message.contains("a.toml:") && message.contains("b.toml:"), "{message}");
        Policy::merge([file("a.toml", a), file("b.toml", a)]).unwrap();
    }
}

#[test]
fn flags_add_to_files_by_the_same_rules() {
    let flags = Flags {
        allow: strings(&["github.com", "198.51.100.7:5432/tcp", "github.com"]),
        deny: strings(&["gist.github.com", "198.51.100.66"]),
        proxy: strings(&["198.51.100.80:3128"]),
        gateway: strings(&["198.51.100.1:9000-9010"]),
        dns: strings(&["198.51.100.53", "198.51.100.53"]),
        observe: true,
        pre_resolve: Some(PreResolve::Require),
        rate: Some("10mbit".into()),
    };
    let text = "mode = \"enforce\"\n[allow]\nnames = [\"github.com\"]\n[dns]\nservers = [\"198.51.100.53\"]";
    let policy = Policy::merge([Source::Flags(flags.clone()), file("ci.toml", text)]).unwrap();
    assert_eq!((policy.mode, policy.dns.pre_resolve), (Mode::Observe, PreResolve::Require));
    assert_eq!(policy.allow.names.len(), 1);
    assert_eq!(policy.allow.names[0].at.clone().unwrap().to_string(), "ci.toml:3:10");
    assert_eq!(policy.allow.addresses[0].at.clone().unwrap().to_string(), "--allow 198.51.100.7:5432/tcp");
    assert_eq!((policy.allow.proxy.len(), policy.allow.gateway.len()), (1, 1));
    assert_eq!((policy.deny.names.len(), policy.deny.addresses.len(), policy.dns.servers.len()), (1, 1, 1));
    assert_eq!(Policy::from_toml(&policy.to_toml()).unwrap(), policy);
}

#[test]
fn a_wrong_flag_is_named() {
    let flags = |flags: Flags| error([Source::Flags(flags)]);
    for (given, want) in [
        (Flags { allow: strings(&["*.com"]), ..Flags::default() }, "--allow: "),
        (
            Flags { deny: strings(&["a.test:80"]), ..Flags::default() },
            "--deny a.test:80: deny.names: \"a.test:80\" has ports",
        ),
        (Flags { proxy: strings(&["proxy.test:80"]), ..Flags::default() }, "--proxy proxy.test:80: allow.proxy: "),
        (Flags { gateway: strings(&["198.51.100.1"]), ..Flags::default() }, "--gateway 198.51.100.1: allow.gateway: "),
        (Flags { dns: strings(&["fe80::1"]), ..Flags::default() }, "--dns fe80::1: dns.servers: "),
    ] {
        let message = flags(given);
        assert!(message.starts_with(want), "{message}");
    }
}

#[test]
fn a_file_is_read_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let toml = dir.path().join("ci.toml");
    let json = dir.path().join("ci.json");
    std::fs::write(&toml, "[allow]\nnames = [\"github.com\"]").unwrap();
    std::fs::write(&json, "{\"allow\": {\"names\": [\"github.com\"]}}").unwrap();
    assert_eq!(Policy::from_path(&toml).unwrap(), Policy::from_path(&json).unwrap());
    std::fs::write(&toml, "[allow]\nnames = [\"*.com\"]").unwrap();
    assert!(Policy::from_path(&toml).unwrap_err().to_string().ends_with("e.g. \"*.example.com\""));
    assert!(matches!(Policy::from_path(dir.path().join("none.toml")), Err(PolicyError::Read { .. })));
}
