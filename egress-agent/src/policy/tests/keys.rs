//! Every documented key: flipped once, refused once, with its position.

use crate::policy::{Answers, Cnames, Established, Icmp, Local, Mode, Policy, PreResolve, Services, Unix, Warning};
use std::time::Duration;

fn toml(text: &str) -> Policy {
    Policy::from_toml(text).unwrap_or_else(|error| panic!("{text}\n{error}"))
}

fn error(text: &str) -> String {
    Policy::from_toml(text).expect_err(text).to_string()
}

#[test]
fn an_empty_file_denies_every_destination() {
    let policy = toml("");
    assert_eq!(policy, Policy::deny_all());
    assert_eq!(policy, toml("version = 1"));
    assert_eq!(policy, Policy::from_json("{}").unwrap());
    assert_eq!(policy, Policy::merge([]).unwrap());
    assert!(policy.allow.names.is_empty() && policy.allow.addresses.is_empty());
    assert_eq!((policy.allow.loopback, policy.allow.own), (Local::Open, None));
}

#[test]
fn every_key_changes_what_it_names() {
    let full = toml(FULL);
    assert_eq!(full.name.as_deref(), Some("ci-build"));
    assert_eq!(full.mode, Mode::Observe);
    assert_eq!(full.allow.loopback, Local::Ports(vec![80, 8080]));
    assert_eq!(full.allow.own, Some(Local::Closed));
    assert_eq!(full.allow.icmp, Icmp::Echo);
    assert_eq!(full.established, Established::Keep);
    let texts = |rules: &[crate::policy::AddressRule]| rules.iter().map(|rule| rule.text.clone()).collect::<Vec<_>>();
    assert_eq!(texts(&full.allow.proxy), ["198.51.100.80:3128"]);
    assert_eq!(texts(&full.allow.gateway), ["198.51.100.1:8080", "198.51.100.1:9000-9010"]);
    assert_eq!(texts(&full.allow.addresses), ["10.1.0.0/16:5432/tcp", "[2001:db8::/48]:443"]);
    assert_eq!(texts(&full.allow.inbound), ["198.51.100.1"]);
    assert_eq!(texts(&full.deny.addresses), ["198.51.100.66"]);
    assert_eq!(full.allow.names.len(), 4);
    assert_eq!(full.deny.names.first().map(|rule| rule.text.as_str()), Some("gist.github.com"));
    let dns = &full.dns;
    assert_eq!(dns.servers, ["198.51.100.53:53".parse().unwrap(), "[2001:db8::53]:5353".parse().unwrap()]);
    assert_eq!(dns.answers, Answers::Nets(vec!["10.2.0.0/16".parse().unwrap()]));
    assert_eq!((dns.permit_min, dns.permit_max), (Duration::from_secs(10), Duration::from_mins(10)));
    assert_eq!((dns.grace, dns.queries_per_second, dns.cname), (Duration::ZERO, 77, Cnames::Keep));
    assert_eq!(dns.svcb, Services::Sanitised);
    let position = full.allow.names.first().and_then(|rule| rule.at.clone()).unwrap();
    assert_eq!(position.to_string(), "policy:10:12");

    for (line, other) in [
        ("loopback = true", "loopback = false"),
        ("self = true", "self = false"),
        ("self = true", "self = [80]"),
        ("icmp = \"none\"", "icmp = \"echo\""),
    ] {
        assert_ne!(toml(&format!("[allow]\n{line}")), toml(&format!("[allow]\n{other}")), "{line}");
    }
    assert_eq!(toml("[allow]\nloopback = []").allow.loopback, Local::Closed);
    assert_eq!(toml("[dns]\nanswers = \"any\"").dns.answers, Answers::Any);
    assert_eq!(toml("[allow]\nunix = \"any\"\n[dns]\npre_resolve = \"warn\""), Policy::deny_all());
    for (text, names) in [("\"none\"", vec![]), ("[]", vec![]), ("[\"@b\", \"@a\", \"@b\"]", vec!["a", "b"])] {
        let names = names.into_iter().map(str::to_owned).collect();
        assert_eq!(toml(&format!("[allow]\nunix = {text}")).allow.unix, Unix::Names(names), "{text}");
    }
    for (text, value) in [("off", PreResolve::Off), ("require", PreResolve::Require)] {
        assert_eq!(toml(&format!("[dns]\npre_resolve = \"{text}\"")).dns.pre_resolve, value);
    }
}

const FULL: &str = r#"version = 1
name = "ci-build"
mode = "observe"
[allow]
loopback = [8080, 80]
self = false
proxy = ["198.51.100.80:3128"]
gateway = ["198.51.100.1:8080", "198.51.100.1:9000-9010"]
names = [
           "github.com", "*.githubusercontent.com:443", "db.example.com:5432", "https://dl.example.org"]
addresses = ["10.1.0.0/16:5432/tcp", "[2001:db8::/48]:443"]
inbound = ["198.51.100.1"]
icmp = "echo"
unix = ["@ready", "@/tmp/.X11-unix/X0"]
[deny]
names = ["gist.github.com"]
addresses = ["198.51.100.66"]
[dns]
servers = ["198.51.100.53", "[2001:db8::53]:5353"]
answers = ["10.2.0.0/16"]
permit_min = "10s"
permit_max = "10m"
grace = "0s"
queries_per_second = 77
pre_resolve = "off"
cname = "keep"
svcb = "sanitised"
[reload]
established = "keep"
"#;

#[test]
fn a_policy_prints_as_one_that_is_equal() {
    for text in [
        FULL,
        "",
        "[allow]\nnames = [\"bücher.example\", \"*.github.io\"]",
        "[dns]\nanswers = \"any\"\nservers = [\"::1\"]",
    ] {
        let policy = toml(text);
        let printed = policy.to_toml();
        assert_eq!(toml(&printed), policy, "{printed}");
        assert_eq!(toml(&printed).to_toml(), printed);
    }
}

#[test]
fn json_of_the_same_shape_is_the_same_policy_with_positions() {
    let json = "{\"allow\": {\"names\": [\"github.com\",\n  \"gitlab.com\"], \"loopback\": [80]}, \"dns\": {\"grace\": \"1m\"}}";
    let twin = "[allow]\nnames = [\"github.com\", \"gitlab.com\"]\nloopback = [80]\n[dns]\ngrace = \"1m\"";
    let policy = Policy::from_json(json).unwrap();
    assert_eq!(policy, toml(twin));
    assert_eq!(policy.allow.names[1].at.clone().unwrap().to_string(), "policy:2:3");
    for (text, want) in [
        ("{\"allow\": {\"names\": [\"*.com\"]}}", "policy:1:22: allow.names: \"*.com\" would open"),
        ("{\"alow\": {}}", "policy:1:2: unknown key alow"),
        ("{\"mode\": \"enforce\",\n \"mode\": \"observe\"}", "policy:2:2: mode stands here and at policy:1:2"),
        ("{\"mode\": null}", "policy:1:10: mode: null"),
        ("{\"name\": 1.5}", "a number that is no integer"),
        ("[]", "policy:1:1: policy: a list, but allowed is a table"),
        ("{\"name\": \"x\"", "policy:1:12: EOF"),
        ("", "policy:1:0: EOF"),
        (
            "{\"allow\": {\"names\": [[[[[[[[[]]]]]]]]]}}",
            "policy:1:22: allow.names: a list, but allowed is a list of strings",
        ),
    ] {
        let message = Policy::from_json(text).expect_err(text).to_string();
        assert!(message.contains(want), "{text}: {message}");
    }
    let deep = format!("{{\"name\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(Policy::from_json(&deep).is_err());
    assert!(Policy::from_toml(&format!("name = {}1{}", "[".repeat(100_000), "]".repeat(100_000))).is_err());
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    for (text, want) in [
        ("version = 2", "policy:1:11: version: 2, but allowed is 1"),
        ("nmae = \"x\"", "policy:1:1: unknown key nmae; allowed here: version, name, mode"),
        ("[allow]\nhosts = []", "policy:2:1: unknown key allow.hosts; allowed here: loopback, self"),
        ("[deny]\nports = []", "unknown key deny.ports; allowed here: names, addresses"),
        ("[dns]\nserver = []", "policy:2:1: unknown key dns.server"),
        ("[bandwidth]\nburst = \"1s\"", "policy:2:1: unknown key bandwidth.burst"),
        ("[reload]\nx = 1", "unknown key reload.x"),
        ("name = \"a\"\nname = \"b\"", "policy:2:1: duplicate key"),
        ("name = \"\"", "policy:1:8: name: \"\""),
        ("name = \"a\\u001bb\"", "without control characters"),
        ("mode = \"audit\"", "policy:1:8: mode: \"audit\", but allowed is \"enforce\" or \"observe\""),
        ("mode = ", "policy:1:"),
        ("allow = 5", "policy:1:9: allow: 5, but allowed is a table"),
        (
            "[allow]\nloopback = \"yes\"",
            "policy:2:12: allow.loopback: \"yes\", but allowed is true, false or a list of ports",
        ),
        ("[allow]\nloopback = [80, 0]", "policy:2:17: allow.loopback: 0"),
        ("[allow]\nself = [70000]", "policy:2:9: allow.self: 70000"),
        ("[allow]\nself = [80, 80]", "policy:2:13: allow.self: \"80\" says the same as the line at policy:2:9"),
        (
            "[allow]\nnames = \"github.com\"",
            "policy:2:9: allow.names: \"github.com\", but allowed is a list of strings",
        ),
        ("[allow]\nnames = [1]", "policy:2:10: allow.names: 1"),
        (
            "[allow]\nnames = [\"a.test\",\n  \"*.com\"]",
            "policy:3:3: allow.names: \"*.com\" would open a whole top-level domain",
        ),
        ("[allow]\nnames = [\"198.51.100.1\"]", "is an address, and this key takes names"),
        ("[allow]\naddresses = [\"a.test\"]", "is a name, and this key takes addresses"),
        ("[allow]\naddresses = [\"127.0.0.1:80\"]", "allow.loopback says what is open there"),
        ("[allow]\naddresses = [\"::/127\"]", "allow.loopback says what is open there"),
        ("[allow]\nproxy = [\"proxy.corp:3128\"]", "put it into names"),
        ("[allow]\nproxy = [\"198.51.100.80\"]", "policy:2:10: allow.proxy: \"198.51.100.80\" has no ports"),
        ("[allow]\ngateway = [\"198.51.100.0/24:80\"]", "is a network"),
        ("[allow]\ngateway = [\"0.0.0.0:80\"]", "allow.loopback"),
        ("[allow]\nicmp = \"all\"", "allow.icmp: \"all\", but allowed is \"none\" or \"echo\""),
        ("[allow]\nunix = \"some\"", "policy:2:8: allow.unix: \"some\", but allowed is \"any\", \"none\" or a list"),
        ("[allow]\nunix = [\"x\"]", "a list of abstract names such as \"@name\""),
        ("[allow]\nunix = [\"@\"]", "of 1 to 107 octets"),
        ("[allow]\nunix = [\"/run/docker.sock\"]", "a path cannot be judged"),
        ("[allow]\nunix = 1", "allow.unix: 1"),
        ("[deny]\nnames = [\"gist.github.com:443\"]", "a denied name is closed whole"),
        ("[deny]\nnames = [\"https://gist.github.com\"]", "a denied name is closed whole"),
        ("[deny]\naddresses = [\"127.0.0.1\"]", "spans loopback, which allow.loopback opens"),
        ("[deny]\naddresses = [\"0.0.0.0/0\"]", "spans loopback"),
        ("[dns]\nservers = \"198.51.100.53\"", "a list of strings"),
        ("[dns]\nanswers = \"private\"", "dns.answers: \"private\""),
        ("[dns]\nanswers = [\"10.0.0.0/8:80\"]", "dns.answers: \"10.0.0.0/8:80\""),
        ("[dns]\nanswers = [\"a.test\"]", "dns.answers: \"a.test\""),
        ("[dns]\nanswers = [\"10.0.0.1/8\"]", "bits set behind the prefix"),
        ("[dns]\npermit_min = 30", "dns.permit_min: 30, but allowed is \"1s\" to \"24h\""),
        ("[dns]\npermit_min = \"0s\"", "dns.permit_min"),
        ("[dns]\npermit_max = \"25h\"", "dns.permit_max"),
        ("[dns]\npermit_max = \"10s\"", "policy:2:14: dns.permit_max: \"10s\", but allowed is dns.permit_min"),
        ("[dns]\ngrace = \"2h\"", "dns.grace: \"2h\", but allowed is \"0s\" to \"1h\""),
        ("[dns]\nqueries_per_second = 0", "dns.queries_per_second: 0, but allowed is a number from 1 to 5000"),
        ("[dns]\nqueries_per_second = 5001", "from 1 to 5000"),
        ("[dns]\npre_resolve = \"on\"", "dns.pre_resolve: \"on\""),
        ("[dns]\nsvcb = \"all\"", "dns.svcb: \"all\", but allowed is \"none\" or \"sanitised\""),
        ("[dns]\ncname = true", "dns.cname: true, but allowed is \"flatten\" or \"keep\""),
        ("[reload]\nestablished = \"drop\"", "reload.established: \"drop\", but allowed is \"cut\" or \"keep\""),
        (
            "[allow]\nnames = [\"a.test\", \"A.test.\"]",
            "policy:2:20: allow.names: \"A.test.\" says the same as the line at policy:2:10",
        ),
        ("[allow]\naddresses = [\"10.0.0.1\", \"::ffff:10.0.0.1\"]", "says the same as"),
        ("[deny]\nnames = [\"a.test\", \"a.test\"]", "says the same as"),
    ] {
        let message = error(text);
        assert!(message.contains(want), "{text}\n{message}");
    }
}

#[test]
fn b06_an_allow_that_a_deny_closes_whole_is_refused_and_its_neighbour_is_not() {
    for (allow, deny, refused) in [
        ("names = [\"api.example.com\"]", "names = [\"*.example.com\"]", true),
        ("names = [\"example.com\"]", "names = [\"*.example.com\"]", false),
        ("names = [\".example.com\"]", "names = [\"*.example.com\"]", false),
        ("names = [\".example.com\"]", "names = [\"*.example.com\", \"example.com\"]", true),
        ("names = [\"*.a.example.com\"]", "names = [\".example.com\"]", true),
        ("names = [\"*.example.com\"]", "names = [\"a.example.com\"]", false),
        ("names = [\"aexample.com\"]", "names = [\".example.com\"]", false),
        ("addresses = [\"10.1.2.3:80\"]", "addresses = [\"10.1.0.0/16\"]", true),
        ("addresses = [\"10.1.2.3:80\"]", "addresses = [\"10.1.0.0/16:80/tcp\"]", false),
        ("addresses = [\"10.1.2.3:80/tcp\"]", "addresses = [\"10.1.0.0/16:1-100/tcp\"]", true),
        ("addresses = [\"10.1.2.3:80\"]", "addresses = [\"10.1.0.0/16:80/tcp\", \"10.0.0.0/8:*/udp\"]", true),
        ("addresses = [\"10.0.0.0/8\"]", "addresses = [\"10.1.0.0/16\"]", false),
        ("proxy = [\"10.1.2.3:80\"]", "addresses = [\"10.1.2.3\"]", true),
        ("gateway = [\"10.1.2.3:80\"]", "addresses = [\"10.1.2.3:81\"]", false),
        ("inbound = [\"10.1.2.3\"]", "addresses = [\"10.1.2.3\"]", true),
        ("inbound = [\"10.1.2.3:80\"]", "addresses = [\"10.1.2.3:80\"]", false),
        ("addresses = [\"2001:db8::1\"]", "addresses = [\"2001:db8::/32\"]", true),
        ("addresses = [\"10.1.2.3\"]", "addresses = [\"2001:db8::/32\"]", false),
    ] {
        let text = format!("[allow]\n{allow}\n[deny]\n{deny}\n");
        match Policy::from_toml(&text) {
            Ok(_) => assert!(!refused, "{text}"),
            Err(error) => {
                assert!(refused, "{text}\n{error}");
                let message = error.to_string();
                assert!(message.contains("is closed whole by deny.") && message.contains("(policy:4:"), "{message}");
            }
        }
    }
}

#[test]
fn a_deny_of_loopback_needs_loopback_closed() {
    toml("[allow]\nloopback = false\n[deny]\naddresses = [\"0.0.0.0/0\", \"::/0\"]");
    assert!(error("[deny]\naddresses = [\"::/0\"]").contains("spans loopback"));
    toml("[deny]\naddresses = [\"128.0.0.0/1\", \"8000::/1\"]");
}

#[test]
fn dns_servers_over_tls_are_a_feature_of_the_build() {
    for (text, want) in [
        ("tls://198.51.100.53#dns.test", "tls://198.51.100.53:853#dns.test"),
        ("tls://[2001:db8::53]:8853#dns.test", "tls://[2001:db8::53]:8853#dns.test"),
        ("https://198.51.100.53/dns-query#dns.test", "https://198.51.100.53:443/dns-query#dns.test"),
    ] {
        let policy = Policy::from_toml(&format!("[dns]\nservers = [\"{text}\"]"));
        if cfg!(feature = "encrypted-upstream") {
            let policy = policy.unwrap();
            assert_eq!(policy.dns.servers.iter().map(ToString::to_string).collect::<Vec<_>>(), [want]);
            assert_eq!(Policy::from_toml(&policy.to_toml()).unwrap().dns, policy.dns, "as it prints itself");
        } else {
            let message = policy.expect_err(text).to_string();
            assert!(message.contains("--features encrypted-upstream"), "{message}");
        }
    }
}

#[test]
fn f06_f07_dns_servers() {
    let servers = |text: &str| Policy::from_toml(&format!("[dns]\nservers = [{text}]"));
    for (text, want) in [
        ("\"198.51.100.53\"", "198.51.100.53:53"),
        ("\"198.51.100.53:5353\"", "198.51.100.53:5353"),
        ("\"2001:db8::8888\"", "[2001:db8::8888]:53"),
        ("\"[2001:db8::53]\"", "[2001:db8::53]:53"),
        ("\"[::1]:5353\"", "[::1]:5353"),
        ("\"::ffff:198.51.100.53\"", "198.51.100.53:53"),
        ("\"fe80::53%2\"", "[fe80::53%2]:53"),
        ("\"[fe80::53%2]:54\"", "[fe80::53%2]:54"),
    ] {
        let policy = servers(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(policy.dns.servers.iter().map(ToString::to_string).collect::<Vec<_>>(), [want]);
    }
    for (text, part) in [
        ("\"not:an:ipv6\"", "is no address"),
        ("\"198.51.100\"", "is no address"),
        ("\"dns.example\"", "is no address"),
        ("\"\"", "is no address"),
        ("\"tls://198.51.100.53\"", "says no name"),
        ("\"tls://198.51.100.53#\"", "says no name"),
        ("\"tls://198.51.100.53#dns_1.test\"", "says no name"),
        ("\"https://198.51.100.53#dns.test\"", "is no address"),
        ("\"quic://198.51.100.53#dns.test\"", "is no address"),
        ("\"tls://dns.test#dns.test\"", "is no address"),
        ("\"tls://198.51.100.53:0#dns.test\"", "no valid port"),
        ("\"198.51.100.053\"", "is no address"),
        ("\"[198.51.100.53]\"", "is no address"),
        ("\"[2001:db8::53\"", "is no address"),
        ("\"198.51.100.53:0\"", "no valid port"),
        ("\"198.51.100.53:65536\"", "no valid port"),
        ("\"198.51.100.53:\"", "no valid port"),
        ("\"[2001:db8::53]:0\"", "no valid port"),
        ("\"0.0.0.0\"", "unspecified"),
        ("\"::\"", "unspecified"),
        ("\"224.0.0.1\"", "multicast"),
        ("\"ff02::fb\"", "multicast"),
        ("\"255.255.255.255\"", "broadcast"),
        ("\"fe80::1\"", "says no interface"),
        ("\"fe80::1%nosuch\"", "no interface index"),
        ("\"fe80::1%0\"", "no interface index"),
        ("\"2001:db8::1%2\"", "no interface index"),
        ("\"198.51.100.53\", \"198.51.100.53:53\"", "is listed twice"),
    ] {
        let message = servers(text).expect_err(text).to_string();
        assert!(message.contains("dns.servers: ") && message.contains(part), "{text}: {message}");
    }
}

#[test]
fn warnings_stop_nothing() {
    let policy = toml(
        "[allow]\nnames = [\"*.github.io\", \"bücher.example\", \"a.test:53\"]\n[dns]\nservers = [\"127.0.0.53\"]",
    );
    let kinds = policy.warnings.iter().map(|warning| match warning {
        Warning::PrivateSuffix { .. } => "suffix",
        Warning::Mapped { .. } => "mapped",
        Warning::DnsPort { .. } => "dns",
        Warning::LoopbackServer { .. } => "loopback",
    });
    assert_eq!(kinds.collect::<Vec<_>>(), ["suffix", "mapped", "dns", "loopback"]);
    assert_eq!(policy.warnings[1].to_string(), "policy:2:25: \"bücher.example\" is matched as xn--bcher-kva.example");
    assert!(toml("[allow]\nnames = [\"github.io\", \"*.example.com\"]").warnings.is_empty());
}
