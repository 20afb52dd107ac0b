//! DEST syntax.

use crate::policy::{Destination, Host, Ports};
use egress_common::{
    destination::{PortRange, Protocols},
    permit::RANGES,
};

fn parse(text: &str) -> Destination {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn host(text: &str) -> String {
    match parse(text).host() {
        Host::Name(pattern) => pattern.to_string(),
        Host::Net(net) => net.to_string(),
    }
}

fn error(text: &str) -> String {
    text.parse::<Destination>().expect_err(text).to_string()
}

#[test]
fn every_form_gives_its_host_and_ports() {
    for (text, want_host, want_ports) in [
        ("github.com", "github.com", "80/tcp 443"),
        ("github.com/tcp", "github.com", "80/tcp 443/tcp"),
        ("github.com/udp", "github.com", "443/udp"),
        ("GitHub.COM.:443", "github.com", "443"),
        ("*.example.com:443", "*.example.com", "443"),
        (".example.com:80,443/tcp", ".example.com", "80-80/tcp 443/tcp"),
        ("example.com:*", "example.com", "*"),
        ("example.com:*/udp", "example.com", "*/udp"),
        ("example.com:1-65535", "example.com", "*"),
        ("example.com:8000-8010", "example.com", "8000-8010"),
        ("example.com:80,81,82", "example.com", "80-82"),
        ("http://example.com", "example.com", "80/tcp"),
        ("http://example.com:8080", "example.com", "8080/tcp"),
        ("https://example.com", "example.com", "443"),
        ("HTTPS://example.com", "example.com", "443"),
        ("https://example.com/tcp", "example.com", "443/tcp"),
        ("https://example.com:8443", "example.com", "8443"),
        ("https://198.51.100.7", "198.51.100.7/32", "443"),
        ("198.51.100.7", "198.51.100.7/32", "*"),
        ("198.51.100.7/udp", "198.51.100.7/32", "*/udp"),
        ("198.51.100.7:5432/tcp", "198.51.100.7/32", "5432/tcp"),
        ("10.1.0.0/16", "10.1.0.0/16", "*"),
        ("10.1.0.0/16/tcp", "10.1.0.0/16", "*/tcp"),
        ("10.1.0.0/16:5432/tcp", "10.1.0.0/16", "5432/tcp"),
        ("0.0.0.0/0", "0.0.0.0/0", "*"),
        ("2001:db8::1", "2001:db8::1/128", "*"),
        ("2001:db8::/48", "2001:db8::/48", "*"),
        ("2001:db8::/48/udp", "2001:db8::/48", "*/udp"),
        ("[2001:db8::1]", "2001:db8::1/128", "*"),
        ("[2001:db8::/48]:443", "2001:db8::/48", "443"),
        ("[2001:db8::/48]:443/udp", "2001:db8::/48", "443/udp"),
        ("::ffff:198.51.100.7", "198.51.100.7/32", "*"),
        ("[::ffff:10.0.0.0/104]:80", "10.0.0.0/8", "80"),
        ("64:ff9b::c633:6407", "198.51.100.7/32", "*"),
        ("64:ff9b::/96", "0.0.0.0/0", "*"),
        ("64:ff9b::/64", "64:ff9b::/64", "*"),
        ("_sip.example.com", "_sip.example.com", "80/tcp 443"),
        ("intranet", "intranet", "80/tcp 443"),
    ] {
        let parsed = parse(text);
        assert_eq!(host(text), want_host, "{text}");
        assert_eq!(parsed.ports().to_string(), want_ports.replace("80-80", "80"), "{text}");
        assert_eq!(parsed.to_string(), text);
    }
}

#[test]
fn what_is_no_destination_says_what_to_write() {
    for (text, part) in [
        ("", "write a destination"),
        (" github.com", "without spaces"),
        ("github.com gitlab.com", "without spaces"),
        ("github.com,gitlab.com", "a comma separates ports only"),
        ("ftp://example.com", "\"example.com:21/tcp\""),
        ("tls://", "only http:// and https://"),
        ("http://example.com/path", "write \"http://example.com\""),
        ("https://example.com/", "write \"https://example.com\""),
        ("example.com/path", "write \"example.com\""),
        ("example.com:443/path", "write \"example.com:443\""),
        ("example.com?x", "not paths"),
        ("[2001:db8::1]/index", "not paths"),
        ("user@example.com", "write \"example.com\""),
        ("https://user:secret@example.com/x", "write \"example.com\""),
        ("example.com:0", "\"0\" is not a port"),
        ("example.com:", "\"\" is not a port"),
        ("example.com:65536", "\"65536\" is not a port"),
        ("example.com:+443", "\"+443\" is not a port"),
        ("example.com:0443", "\"0443\" is not a port"),
        ("example.com:80,", "\"\" is not a port"),
        ("example.com:https", "\"https\" is not a port"),
        ("example.com:0-80", "\"0-80\" is not a port"),
        ("example.com:80-", "\"80-\" is not a port"),
        ("example.com:90-80", "write 80-90"),
        ("example.com:*,80", "\"*\" is not a port"),
        ("http://example.com/udp", "http:// is TCP"),
        (":443", "names no host"),
        ("[2001:db8::1", "in brackets"),
        ("[2001:db8::1]443", "in brackets"),
        ("[198.51.100.7]:80", "in brackets"),
        ("[]:80", "in brackets"),
        ("2001:db8::/48:443", "in brackets"),
        ("1:2:3", "in brackets"),
        ("fe80::1%eth0", "no interfaces"),
        ("10.0.0.0/33", "0 to 32"),
        ("10.0.0.0/08", "0 to 32"),
        ("10.0.0.0/", "0 to 32"),
        ("2001:db8::/129", "0 to 128"),
        ("10.1.2.3/16", "write 10.1.0.0/16 for the network or 10.1.2.3 for the address"),
        ("198.51.100.07", "looks like an IPv4 address"),
        ("198.51.100.256", "looks like an IPv4 address"),
        ("198.51.100", "looks like an IPv4 address"),
        ("0x7f.1", "looks like an IPv4 address"),
        ("example.0x1f", "looks like an IPv4 address"),
        ("example.com/TCP", "not paths"),
    ] {
        let message = error(text);
        assert!(message.contains(part), "{text}: {message}");
    }
    assert!(!error("https://user:secret@example.com/x").contains("secret"));
}

#[test]
fn a_rule_holds_so_many_ranges_and_no_more() {
    let ports = |count: u16| (0..count).map(|n| (1000 + 2 * n).to_string()).collect::<Vec<_>>().join(",");
    assert_eq!(parse(&format!("example.com:{}", ports(RANGES as u16))).ports().ranges().len(), RANGES);
    let message = error(&format!("example.com:{}", ports(RANGES as u16 + 1)));
    assert!(message.contains("17 separate port ranges"), "{message}");
}

#[test]
fn all_ports_of_both_protocols_are_the_one_range_that_closes_everything() {
    for text in ["198.51.100.7", "198.51.100.7:*", "198.51.100.7:1-65535", "198.51.100.7:1-1000,1001-65535"] {
        assert_eq!(parse(text).ports().ranges(), [PortRange::ALL], "{text}");
    }
    assert_eq!(
        parse("198.51.100.7:*/tcp").ports().ranges(),
        [PortRange { protocols: Protocols::TCP, ..PortRange::ALL }]
    );
}

#[test]
fn name_service_ports_open_only_where_they_stand_alone() {
    for (text, open) in [
        ("198.51.100.7:853", true),
        ("198.51.100.7:852,853,854", true),
        ("198.51.100.7:*", false),
        ("198.51.100.7:852-854", false),
        ("198.51.100.7:800-852,853-900", false),
    ] {
        assert_eq!(parse(text).ports().opens(Protocols::TCP, 853), open, "{text}");
    }
    let both = Ports::union([PortRange::ALL, PortRange { first: 853, last: 853, protocols: Protocols::TCP }]).unwrap();
    assert!(both.opens(Protocols::TCP, 853) && !both.opens(Protocols::UDP, 853));
}

#[test]
fn joining_protocols_never_makes_a_single_port_of_a_range() {
    let range = |first, last, protocols| PortRange { first, last, protocols };
    let ports = Ports::union([range(130, 137, Protocols::TCP), range(137, 150, Protocols::UDP)]).unwrap();
    assert!(!ports.opens(Protocols::TCP, 137) && !ports.opens(Protocols::UDP, 137));
    assert!(ports.opens(Protocols::TCP, 136) && ports.opens(Protocols::UDP, 138));
}
